//! The dispatcher: claims, translates, relays, decides and settles, for all queues side by side.
//!
//! It has three tiers, and imports run one way between them:
//!
//! 1. *Parts* know no task and no other part's insides: [`ready_queue`], [`breaker`], [`connections`], [`refusal_streak`],
//!    [`rate`], `memory`, `lane`, `outage`, `progress`, `events`, `counters`.
//! 2. The *context* puts those together that all tasks share, and decides whether a mail may go.
//! 3. *Tasks* do the work. For each queue: a fetcher (claims rows and has mails made of them), one for large rows, a marker
//!    (marks mails `sending` shortly before they go out), a settler (carries verdicts out), and maintenance (heartbeat,
//!    operators' pause, take-over). For each connection: a sender. For all: the relay's probe.

pub mod abandoned;
pub mod breaker;
pub mod connections;
mod context;
mod counters;
mod error;
mod events;
mod fetcher;
mod handle;
mod lane;
mod maintenance;
mod memory;
mod outage;
mod prepare;
mod progress;
pub mod rate;
pub mod ready_queue;
mod recovery;
pub mod refusal_streak;
mod sender;
mod settler;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::counters::Counters;
pub use self::error::StartError;
pub use self::events::Redact;
pub use self::handle::Handle;
pub use self::progress::Progress;
pub use self::rate::Rate;

use self::breaker::Breaker;
use self::context::Context;
use self::events::Events;
use self::fetcher::{Fetcher, LargeFetcher, Marker};
use self::lane::{Done, Lane};
use self::maintenance::{Flags, Heartbeat, Probe, TakeOver};
use self::memory::Memory;
use self::outage::Outage;
use self::prepare::Preparer;
use self::rate::Bucket;
use self::recovery::Recovery;
use self::sender::Sender;
use self::settler::Settler;
use crate::ledger::Ledger;
use crate::queue::Queue;
use crate::relay::Relay;
use crate::telemetry::Tally;
use crate::{retry, translate};

/// The settings of the dispatcher.
#[derive(Clone)]
pub struct Settings {
    /// The time after which a table that ran empty is looked at again.
    pub poll_interval: Duration,
    /// The directory of the ledger and the dispatcher id.
    pub state_dir: PathBuf,
    /// A dispatcher that shows no signs of life for this long loses its claims.
    pub lease: Duration,
    /// The time for which the ledger remembers settled mails.
    pub ledger_keep: Duration,
    /// Bytes for the content of rows under way.
    pub max_in_flight_bytes: u64,
    pub connections: usize,
    pub rate: Option<Rate>,
    pub message: translate::Settings,
    pub retry: retry::Settings,
    /// Turns text with addresses into the form in which a log may show it.
    pub redact: Redact,
}

/// A queue with its share of the relay while several have work.
pub struct Source {
    pub queue: Queue,
    pub weight: u32,
}

/// The end of one pass.
#[derive(Debug, Default)]
pub struct Pass {
    pub tally: Tally,
    /// The relay's trouble that ended the pass early.
    pub relay: Option<String>,
    /// Queues whose database was out of reach, with the reason.
    pub databases: Vec<(Arc<str>, String)>,
    /// The pass was stopped, or something is paused, so that rows may be left that had no turn.
    pub cut_short: bool,
    /// The ledger or the rows' records kept the dispatcher from starting.
    pub refused: Option<StartError>,
}

/// A dispatcher that can be run.
pub struct Dispatcher {
    handle: Handle,
    settings: Settings,
    preparer: Arc<Preparer>,
    lanes: Vec<Arc<Lane>>,
    inboxes: Vec<mpsc::UnboundedReceiver<Done>>,
}

/// The time beyond that of a final dot that senders have to end, for what follows a reply, such as a QUIT. Also the time
/// that closing the ledger may take.
const MARGIN: Duration = Duration::from_secs(30);

/// At the end, a database that is slow or out of reach is waited for this long. With the time for a final dot, the margins
/// and a statement that a fetcher waits for, a stop takes less than `TimeoutStopSec` in `config/mailqueue.service` says.
const LAST_SETTLING: Duration = Duration::from_secs(120);

impl Dispatcher {
    /// Puts the parts together; starts nothing.
    pub fn new(settings: Settings, sources: Vec<Source>, relay: Arc<Relay>, ledger: Ledger, once: bool) -> Self {
        Self::counting_on(Progress::default(), settings, sources, relay, ledger, once)
    }

    /// As [`Dispatcher::new`], and goes on with counts that were begun before; [`Progress::carry_over`] has those of an
    /// earlier dispatcher.
    pub fn counting_on(
        progress: Progress,
        settings: Settings,
        sources: Vec<Source>,
        relay: Arc<Relay>,
        ledger: Ledger,
        once: bool,
    ) -> Self {
        let events = Events::new(Arc::new(progress), settings.redact.clone());

        let context = Context::new(
            Breaker::new(settings.connections),
            Outage::new(&settings.state_dir, sources.len()),
            events.clone(),
            sources.iter().map(|source| source.weight),
            settings.retry,
            once,
        );
        let final_dot = relay.settings().timeouts.final_dot;
        let sources = sources.into_iter().enumerate();
        let lanes = sources.map(|(index, source)| Lane::new(index, source.queue, settings.lease, final_dot));
        let (lanes, inboxes): (Vec<_>, Vec<_>) = lanes.unzip();
        lanes.iter().for_each(|lane| events.progress.expect_lane(lane.name()));
        let preparer = Preparer {
            message: settings.message.clone(),
            retry: settings.retry,
            relay: relay.clone(),
            ledger: ledger.clone(),
            events,
        };
        let handle = Handle {
            context: Arc::new(context),
            lanes: lanes.clone(),
            relay,
            ledger,
            memory: Arc::new(Memory::new(settings.max_in_flight_bytes, lanes.len())),
            bucket: Arc::new(Bucket::new(settings.rate)),
        };
        Self { handle, settings, preparer: Arc::new(preparer), lanes, inboxes }
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until [`Handle::stop`], or for one pass if made so; every claim is settled or given back at the end, as far as
    /// the databases can be reached. A panic of any task is passed on at once: claims of that task would stay claimed
    /// until the next start recovers them.
    pub async fn run(mut self) -> Pass {
        let mut tasks = self.start().await;
        self.drain(&mut tasks).await;
        self.shut_down(tasks).await
    }

    /// Starts the tasks. Settlers come first, because all others have verdicts for them; then maintenance, so that the
    /// lease is renewed before a mail needs it; then senders; and fetchers, which supply them, last, when it is known
    /// whether the relay is down.
    async fn start(&mut self) -> Tasks {
        let Handle { context, relay, ledger, .. } = &self.handle;
        let mut tasks = Tasks::new(context.stop.clone());
        for (lane, inbox) in self.lanes.iter().zip(std::mem::take(&mut self.inboxes)) {
            let settler = Settler { context: context.clone(), lane: lane.clone(), ledger: ledger.clone() };
            tasks.add_settler(lane.name().clone(), settler.run(inbox));
        }
        for lane in &self.lanes {
            let Settings { lease, retry, .. } = self.settings;
            let both = || (context.clone(), lane.clone());
            let (context, lane) = both();
            tasks.add_background(Heartbeat { context, lane, lease }.run());
            let (context, lane) = both();
            tasks.add_background(Flags { context, lane }.run());
            let (context, lane) = both();
            tasks.add_background(TakeOver { context, lane, lease, retry }.run());
            let (context, lane) = both();
            tasks.add_background(maintenance::return_when_closed(context, lane));
            let (context, lane) = both();
            tasks.add_background(maintenance::account_for_outages(context, lane));
        }
        tasks.add_background(maintenance::expire_ledger(ledger.clone(), self.settings.ledger_keep));
        let probe = Probe { context: context.clone(), relay: relay.clone(), ledger: ledger.clone() };
        probe.at_start().await;
        if !context.once {
            tasks.add_background(probe.run());
        }
        for connection in 0..self.settings.connections {
            let over = tasks.no_more_mails.clone();
            tasks.add_sender(self.sender(connection).run(over));
        }
        for lane in &self.lanes {
            let (context, lane) = (self.handle.context.clone(), lane.clone());
            let (large, over) = (self.large_fetcher(&lane), tasks.no_more_claims.clone());
            tasks.add_supplier(large.run(over.clone()));
            tasks.add_fetcher(self.fetcher(&lane).run());
            tasks.add_supplier(Marker { context, lane }.run(over));
        }
        tasks
    }

    fn large_fetcher(&self, lane: &Arc<Lane>) -> LargeFetcher {
        let Handle { context, memory, .. } = self.handle.clone();
        LargeFetcher { context, lane: lane.clone(), preparer: self.preparer.clone(), memory }
    }

    fn sender(&self, connection: usize) -> Sender {
        let Handle { context, relay, ledger, bucket, .. } = self.handle.clone();
        Sender { context, bucket, ledger, preparer: self.preparer.clone(), connection, client: relay.worker() }
    }

    fn fetcher(&self, lane: &Arc<Lane>) -> Fetcher {
        let Handle { context, ledger, memory, .. } = self.handle.clone();
        let Settings { retry, state_dir, poll_interval, .. } = self.settings.clone();
        let recovery = Recovery { context: context.clone(), lane: lane.clone(), ledger, retry, state_dir };
        let (preparer, not_loaded) = (self.preparer.clone(), Mutex::default());
        Fetcher { context, lane: lane.clone(), recovery, preparer, memory, poll_interval, not_loaded }
    }

    /// Lets all mails come to an end, each task after those that supply it: the fetchers end with their pass or at the
    /// order to end; then no claims come, and those end that make mails of them; then no mails come, and the senders finish those on the wire; then no verdicts come, and the settlers
    /// carry out those that they have.
    async fn drain(&self, tasks: &mut Tasks) {
        tasks.until(|tasks| tasks.fetchers == 0).await;
        tasks.no_more_claims.cancel();
        tasks.until(|tasks| tasks.suppliers == 0).await;
        tasks.no_more_mails.cancel();
        let patience = self.handle.relay.settings().timeouts.final_dot + MARGIN;
        if timeout(patience, tasks.until(|tasks| tasks.senders == 0)).await.is_err() {
            // As if the process were killed: the ledger knows which dots are out.
            tracing::warn!(target: events::MAIL, "not all mails on the wire are finished; the next start sees to them");
            tasks.cut_senders.cancel();
            tasks.until(|tasks| tasks.senders == 0).await;
        }
        self.handle.context.flush_refusals();
        self.lanes.iter().for_each(|lane| lane.close());
        if timeout(LAST_SETTLING, tasks.until(|tasks| tasks.unsettled.is_empty())).await.is_err() {
            tasks.cut_settlers.cancel();
            for queue in std::mem::take(&mut tasks.unsettled) {
                let why = "not everything could be settled in time; the next start settles from the ledger";
                tracing::error!(target: events::MAIL, %queue, "{why}");
                tasks.pass.databases.push((queue, why.to_owned()));
            }
        }
    }

    /// Ends the remaining tasks, and closes the ledger, which no task uses any more. The heartbeat goes on until here:
    /// verdicts need claims that are ours.
    async fn shut_down(self, mut tasks: Tasks) -> Pass {
        tasks.background.cancel();
        tasks.until(|tasks| tasks.set.is_empty()).await;
        let closed = timeout(MARGIN, self.handle.ledger.shut()).await;
        if let Err(why) = closed.map_err(|_| "not in time".to_owned()).and_then(|done| done.map_err(|e| e.to_string()))
        {
            tracing::warn!(target: events::MAIL, why, "the ledger was not closed; the next start finds all of it");
        }
        let progress = self.handle.progress();
        Pass { relay: progress.relay_trouble(), tally: progress.tally(), ..tasks.pass }
    }
}

/// The end of a task.
enum Ended {
    Fetcher(fetcher::Ended),
    Supplier,
    Sender,
    /// `None` if it was cut off.
    Settler(Option<settler::Ended>),
    Background,
}

/// The tasks of a running dispatcher, with what they have reported so far.
struct Tasks {
    set: JoinSet<Ended>,
    /// Fetchers that have not ended.
    fetchers: usize,
    /// Tasks between fetchers and senders that have not ended.
    suppliers: usize,
    /// Senders that have not ended.
    senders: usize,
    /// Queues whose settlers have not ended.
    unsettled: BTreeSet<Arc<str>>,
    pass: Pass,
    /// The order to end.
    stop: CancellationToken,
    /// Ends suppliers that wait for a claim.
    no_more_claims: CancellationToken,
    /// Ends senders that wait for a mail.
    no_more_mails: CancellationToken,
    cut_senders: CancellationToken,
    cut_settlers: CancellationToken,
    background: CancellationToken,
}

impl Tasks {
    fn new(stop: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            fetchers: 0,
            suppliers: 0,
            senders: 0,
            unsettled: BTreeSet::new(),
            pass: Pass::default(),
            stop,
            no_more_claims: CancellationToken::new(),
            no_more_mails: CancellationToken::new(),
            cut_senders: CancellationToken::new(),
            cut_settlers: CancellationToken::new(),
            background: CancellationToken::new(),
        }
    }

    fn add_fetcher(&mut self, task: impl Future<Output = fetcher::Ended> + Send + 'static) {
        self.fetchers += 1;
        self.set.spawn(async { Ended::Fetcher(task.await) });
    }

    fn add_supplier(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.suppliers += 1;
        self.set.spawn(async {
            task.await;
            Ended::Supplier
        });
    }

    fn add_sender(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.senders += 1;
        let task = self.cut_senders.clone().run_until_cancelled_owned(task);
        self.set.spawn(async {
            task.await;
            Ended::Sender
        });
    }

    fn add_settler(&mut self, queue: Arc<str>, task: impl Future<Output = settler::Ended> + Send + 'static) {
        self.unsettled.insert(queue);
        let task = self.cut_settlers.clone().run_until_cancelled_owned(task);
        self.set.spawn(async { Ended::Settler(task.await) });
    }

    fn add_background(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.background.clone().run_until_cancelled_owned(task);
        self.set.spawn(async {
            task.await;
            Ended::Background
        });
    }

    /// Waits for tasks to end until `reached`. Passes on the panic of any task.
    async fn until(&mut self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            match self.set.join_next().await {
                Some(Ok(ended)) => self.note(ended),
                Some(Err(error)) => resume(error),
                None => return,
            }
        }
    }

    fn note(&mut self, ended: Ended) {
        match ended {
            Ended::Fetcher(ended) => {
                self.fetchers -= 1;
                match ended {
                    fetcher::Ended::Done => {}
                    fetcher::Ended::CutShort => self.pass.cut_short = true,
                    fetcher::Ended::OutOfReach(queue, why) => self.pass.databases.push((queue, why)),
                    fetcher::Ended::Refused(error) => {
                        self.stop.cancel();
                        self.pass.refused = Some(error);
                    }
                }
            }
            Ended::Supplier => self.suppliers -= 1,
            Ended::Sender => self.senders -= 1,
            Ended::Settler(Some((queue, why))) => {
                self.unsettled.remove(&queue);
                self.pass.databases.extend(why.map(|why| (queue, why)));
            }
            Ended::Settler(None) | Ended::Background => {}
        }
    }
}

/// Passes a panic on. Nothing else ends a task with an error, because none is aborted.
fn resume(error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        std::panic::resume_unwind(panic);
    }
}
