//! The loop around everything: claims, translates, relays, decides and settles, for all queues side by side.
//!
//! Each queue has a *lane*: a feeder that claims rows and makes mails of them, a settler that carries verdicts out, and a
//! keeper that counts the heartbeat up. The workers, one for each connection, take ready mails from all lanes by weight.
//! Nothing but [`queue::Claim`](crate::queue::Claim)s wanders between them, so that no row can be in two places.

pub mod connections;
mod counters;
mod events;
mod fetcher;
mod final_dot;
pub mod health;
mod lane;
mod maintenance;
mod news;
mod outage;
mod post;
mod prepare;
mod pulse;
pub mod rate;
pub mod ready_queue;
mod recovery;
pub mod refusal_streak;
mod refusals;
mod sample;
mod sender;
mod settler;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;
use crate::queue::Queue;
use crate::relay::Relay;
use crate::telemetry::Tally;
use crate::{retry, translate};

pub use counters::Counters;
pub use events::{Progress, Redact};
pub use rate::Rate;

use health::Health;
use lane::{Job, Lane};
use outage::Outage;
use rate::Bucket;
use ready_queue::ReadyQueue;
use refusals::Refusals;

/// What the configuration says about the loop.
#[derive(Clone)]
pub struct Settings {
    /// Look again this long after a table ran empty.
    pub poll_interval: Duration,
    /// Where ledger and dispatcher id are.
    pub state_dir: PathBuf,
    /// A dispatcher that shows no signs of life for so long loses its claims.
    pub lease: Duration,
    /// How long the ledger remembers settled mails.
    pub ledger_keep: Duration,
    /// For the content of rows under way.
    pub max_in_flight_bytes: u64,
    pub connections: usize,
    pub rate: Option<Rate>,
    pub message: translate::Settings,
    pub retry: retry::Settings,
    /// Turns text with addresses into what a log may show of it.
    pub redact: Redact,
}

/// A queue with its share of the relay while several have work.
pub struct Source {
    pub queue: Queue,
    pub weight: u32,
}

/// What keeps a dispatcher from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
    /// The database knows of rows that this dispatcher was sending, and there is no ledger to tell what became of them.
    #[error(
        "the ledger in {} is missing, but queue {queue} has {rows} row(s) that this dispatcher was sending. Put {} back from \
         a backup; or, if it is lost, remove {}: the rows are then taken over after a lease as of unknown outcome",
        state_dir.display(), state_dir.join(crate::ledger::FILE).display(), state_dir.join("dispatcher").display()
    )]
    LedgerMissing { state_dir: PathBuf, queue: Arc<str>, rows: usize },
}

/// How one pass ended.
#[derive(Debug, Default)]
pub struct Pass {
    pub tally: Tally,
    /// The relay's trouble that ended the pass early.
    pub relay: Option<String>,
    /// Queues whose database was out of reach, with the reason.
    pub databases: Vec<(Arc<str>, String)>,
    /// It was stopped, or something is paused, so that rows may be left that had no turn.
    pub cut_short: bool,
    /// The ledger or the rows' records kept the dispatcher from starting.
    pub refused: Option<StartError>,
}

/// What all parts of a running dispatcher share.
pub(crate) struct Shared {
    settings: Settings,
    relay: Arc<Relay>,
    ledger: Ledger,
    health: Health,
    outage: Outage,
    bucket: Bucket,
    budget: Arc<Semaphore>,
    ready: ReadyQueue<Job>,
    refusals: Refusals,
    progress: Arc<Progress>,
    /// One pass, then the end; trouble of the relay ends it too.
    once: bool,
    /// No new claims; what is ready goes back, what is on the wire is finished.
    stop: CancellationToken,
    /// Look at the tables now.
    poll: tokio::sync::Notify,
}

/// A dispatcher that can be run.
pub struct Dispatcher {
    shared: Arc<Shared>,
    lanes: Vec<Arc<Lane>>,
    settlers: JoinSet<settler::Ended>,
}

/// Steers a running dispatcher from outside. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Finishes what is on the wire, gives everything else back, and lets [`Dispatcher::run`] end.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Looks at all tables now.
    pub fn poll(&self) {
        self.shared.poll.notify_waiters();
    }

    pub fn progress(&self) -> Arc<Progress> {
        self.shared.progress.clone()
    }
}

impl Shared {
    /// Returns the memory that rows under way take up, in bytes as the budget counts them.
    fn in_flight_bytes(&self) -> u64 {
        let free = self.budget.available_permits() as u64 * BUDGET_UNIT;
        self.settings.max_in_flight_bytes.saturating_sub(free)
    }
}

/// For what follows an answer, such as a QUIT.
const MARGIN: Duration = Duration::from_secs(30);

/// At the end, so long for a database that is slow or out of reach. With the time for a final dot, the margins and a
/// statement that a feeder waits for, a stop takes less than `TimeoutStopSec` in `config/mailqueue.service` says.
const LAST_SETTLING: Duration = Duration::from_secs(120);

/// Memory is counted in these, because a semaphore's permits are 32 bits wide.
const BUDGET_UNIT: u64 = 1024;

impl Dispatcher {
    /// Puts the parts together; starts nothing.
    pub fn new(settings: Settings, sources: Vec<Source>, relay: Arc<Relay>, ledger: Ledger, once: bool) -> Self {
        Self::counting_on(Progress::default(), settings, sources, relay, ledger, once)
    }

    /// The same with counts that were begun before; [`Progress::handed_on`] has those of an earlier dispatcher.
    pub fn counting_on(
        progress: Progress,
        settings: Settings,
        sources: Vec<Source>,
        relay: Arc<Relay>,
        ledger: Ledger,
        once: bool,
    ) -> Self {
        let budget = (settings.max_in_flight_bytes / BUDGET_UNIT).clamp(1, u64::from(u32::MAX)) as usize;
        let shared = Arc::new(Shared {
            health: Health::new(settings.connections),
            outage: Outage::new(&settings.state_dir, sources.len()),
            bucket: Bucket::new(settings.rate),
            budget: Arc::new(Semaphore::new(budget)),
            ready: ReadyQueue::new(sources.iter().map(|source| source.weight)),
            refusals: Refusals::default(),
            progress: Arc::new(progress),
            stop: CancellationToken::new(),
            poll: tokio::sync::Notify::new(),
            settings,
            relay,
            ledger,
            once,
        });
        let mut settlers = JoinSet::new();
        let lanes = sources
            .into_iter()
            .enumerate()
            .map(|(index, source)| {
                let (lane, inbox) = Lane::new(index, source.queue, &shared);
                shared.progress.expect_lane(lane.name());
                settlers.spawn(settler::run(shared.clone(), lane.clone(), inbox));
                lane
            })
            .collect();
        Self { shared, lanes, settlers }
    }

    pub fn handle(&self) -> Handle {
        Handle { shared: self.shared.clone() }
    }

    /// Runs until [`Handle::stop`], or for one pass if made so; everything that was claimed is settled or given back at
    /// the end, as far as the databases can be reached.
    pub async fn run(self) -> Pass {
        let Self { shared, lanes, mut settlers } = self;
        let background = CancellationToken::new();
        let mut keepers = JoinSet::new();
        for lane in &lanes {
            keepers.spawn(background.clone().run_until_cancelled_owned(maintenance::run(shared.clone(), lane.clone())));
        }
        keepers.spawn(background.clone().run_until_cancelled_owned(maintenance::expire(shared.clone())));
        if !shared.once {
            let probe = maintenance::probe(shared.clone());
            keepers.spawn(background.clone().run_until_cancelled_owned(probe));
        }
        outage::at_start(&shared).await;
        let work_is_over = CancellationToken::new();
        let mut workers = JoinSet::new();
        for connection in 0..shared.settings.connections {
            workers.spawn(sender::run(shared.clone(), connection, work_is_over.clone()));
        }
        let mut feeders = JoinSet::new();
        for lane in &lanes {
            let (shared, lane) = (shared.clone(), lane.clone());
            feeders.spawn(async move { fetcher::run(&shared, &lane).await });
        }

        let mut pass = Pass::default();
        while let Some(ended) = feeders.join_next().await {
            match ended {
                Ok(fetcher::Ended::Done) => {}
                Ok(fetcher::Ended::CutShort) => pass.cut_short = true,
                Ok(fetcher::Ended::OutOfReach(queue, why)) => pass.databases.push((queue, why)),
                Ok(fetcher::Ended::Refused(error)) => {
                    shared.stop.cancel();
                    pass.refused = Some(error);
                }
                Err(panic) => resume(panic),
            }
        }
        work_is_over.cancel();
        let patience = shared.relay.settings().timeouts.final_dot + MARGIN;
        if timeout(patience, join_all(&mut workers)).await.is_err() {
            // As if the process were killed: the ledger knows which dots are out.
            tracing::warn!(target: events::MAIL, "not all mails on the wire are finished; the next start sees to them");
            workers.shutdown().await;
        }
        shared.refusals.flush(&shared);
        for lane in &lanes {
            lane.close();
        }
        let mut unsettled: BTreeSet<_> = lanes.iter().map(|lane| lane.name().clone()).collect();
        let settling = async {
            while let Some(ended) = settlers.join_next().await {
                match ended {
                    Ok((queue, why)) => {
                        unsettled.remove(&queue);
                        pass.databases.extend(why.map(|why| (queue, why)));
                    }
                    Err(panic) => resume(panic),
                }
            }
        };
        if timeout(LAST_SETTLING, settling).await.is_err() {
            settlers.shutdown().await;
            for queue in unsettled {
                let why = "not everything could be settled in time; the next start settles from the ledger";
                tracing::error!(target: events::MAIL, %queue, "{why}");
                pass.databases.push((queue, why.to_owned()));
            }
        }
        background.cancel();
        join_all(&mut keepers).await;
        let closed = timeout(MARGIN, shared.ledger.shut()).await;
        if let Err(why) = closed.map_err(|_| "not in time".to_owned()).and_then(|done| done.map_err(|e| e.to_string()))
        {
            tracing::warn!(target: events::MAIL, why, "the ledger was not closed; the next start finds all of it");
        }
        pass.relay = shared.progress.relay_trouble();
        pass.tally = shared.progress.tally();
        pass
    }
}

async fn join_all<T: 'static>(tasks: &mut JoinSet<T>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(panic) = ended {
            resume(panic);
        }
    }
}

/// A panic in one part would leave claims in nobody's hands: the process ends, and the next start recovers.
fn resume(error: tokio::task::JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        std::panic::resume_unwind(panic);
    }
}

/// `jitter` for the policies, which take chance as an argument.
fn jitter() -> f64 {
    rand::random_range(0.0..1.0)
}
