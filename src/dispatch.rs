//! The dispatcher: claims, translates, relays, decides and settles, for all queues side by side.
//!
//! It has three tiers, and imports run one way between them:
//!
//! 1. *Parts* know no task and no other part's insides: [`ready_queue`], [`breaker`], [`connections`], [`refusal_streak`],
//!    [`rate`], `memory`, `large`, `lane`, `outage`, `progress`, `events`, `counters`.
//! 2. The *context* puts those together that all tasks share, and decides whether a mail may go.
//! 3. *Tasks* do the work. For each queue: a fetcher (claims rows and has mails made of them), one for large rows, a marker
//!    (marks mails `sending` shortly before they go out), a settler (carries verdicts out), and maintenance (heartbeat,
//!    operators' pause, take-over). For each connection: a sender, with a final-dot guard for each mail. For all: the
//!    relay's probe.

pub mod abandoned;
pub mod breaker;
pub mod connections;
mod context;
mod counters;
mod error;
mod events;
mod fetcher;
mod final_dot_guard;
mod handle;
mod lane;
mod large;
mod large_fetcher;
mod lease;
mod maintenance;
mod memory;
mod notice;
mod outage;
mod prepare;
mod progress;
pub mod rate;
pub mod ready_queue;
mod recovery;
mod redeletion;
pub mod refusal_streak;
mod sender;
mod settings;
mod settler;
mod tasks;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use self::counters::Counters;
pub use self::error::StartError;
pub use self::events::Redact;
pub use self::handle::Handle;
pub use self::progress::Progress;
pub use self::rate::Rate;
pub use self::settings::{Change, Settings, Source};
pub use self::tasks::Pass;

use self::breaker::Breaker;
use self::context::Context;
use self::events::Events;
use self::fetcher::{Fetcher, Marker};
use self::lane::{Done, Lane, Predecessor};
use self::large_fetcher::LargeFetcher;
use self::maintenance::{Flags, Heartbeat, Probe, TakeOver};
use self::memory::Memory;
use self::outage::Outage;
use self::prepare::Preparer;
use self::rate::Bucket;
use self::recovery::Recovery;
use self::redeletion::Redeletion;
use self::sender::Sender;
use self::settings::{Current, Live};
use self::settler::Settler;
use self::tasks::Tasks;
use crate::ledger::Ledger;
use crate::queue::Queue;
use crate::relay::Relay;

/// A dispatcher that can be run.
pub struct Dispatcher {
    handle: Handle,
    live: Arc<Live>,
    preparer: Arc<Preparer>,
    /// The queues in force.
    lanes: Vec<Running>,
    /// Lanes that end, because their queues have other settings now or are gone.
    ending: Vec<Weak<Lane>>,
    /// The number of the next lane. Numbers are not used again.
    next_lane: usize,
    /// The senders in force, and the number of the next.
    senders: Senders,
    tasks: Tasks,
    changes: mpsc::UnboundedReceiver<(Change, oneshot::Sender<()>)>,
}

/// A lane with what its tasks are ended by.
struct Running {
    lane: Arc<Lane>,
    /// Taken when the settler starts.
    inbox: Option<mpsc::UnboundedReceiver<Done>>,
    /// Cancelled when the fetcher has ended.
    fetched: CancellationToken,
    /// Cancelled when the settler has ended.
    settled: CancellationToken,
    /// Ends the tasks between fetcher and senders.
    no_more_claims: CancellationToken,
    /// Lets the task that takes over from other dispatchers end behind the take-over that it has begun.
    no_more_take_overs: CancellationToken,
    /// Cancelled when that task has ended.
    taken_over: CancellationToken,
    /// Ends the maintenance.
    over: CancellationToken,
}

/// The senders of the relay in force.
struct Senders {
    /// The order to end, for these or for all.
    stop: CancellationToken,
    /// Ends those of them that wait for a mail.
    no_more_mails: CancellationToken,
    next: usize,
}

/// The interval at which a lane that ends is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The time beyond that of a final dot that senders have to end, for what follows a reply, such as a QUIT. Also the time
/// that closing the ledger may take.
const MARGIN: Duration = Duration::from_secs(30);

/// At the end, a database that is slow or out of reach is waited for this long. With the time for a final dot, the margins
/// and a statement that a fetcher waits for, a stop takes less than `TimeoutStopSec` in `config/mailqueue.service` says.
const LAST_SETTLING: Duration = Duration::from_secs(120);

impl Dispatcher {
    /// Puts the parts together; starts nothing.
    pub fn new(settings: Settings, sources: Vec<Source>, relay: Arc<Relay>, ledger: Ledger, once: bool) -> Self {
        let events = Events::new(Arc::new(Progress::default()), settings.redact.clone());
        let (connections, lease) = (settings.connections, settings.lease);
        let memory = Arc::new(Memory::new(settings.max_in_flight_bytes, sources.len()));
        let outage = Outage::new(&settings.state_dir, sources.len());
        let bucket = Arc::new(Bucket::new(settings.rate));
        let live = Arc::new(Live::new(Current { settings, relay, memory }));
        let weights = sources.iter().map(|source| source.weight);
        let breaker = Breaker::new(connections);
        let context = Arc::new(Context::new(breaker, outage, events.clone(), weights, live.clone(), once));
        let next_lane = sources.len();
        let tasks = Tasks::new(context.stop.clone());
        let lane = |(index, Source { queue, .. })| {
            let stop = context.stop.child_token();
            let (lane, inbox) = Lane::new(index, queue, lease, stop, true, Vec::new());
            events.progress.expect_lane(lane.index, lane.name());
            Running::new(lane, inbox, &tasks)
        };
        let lanes: Vec<_> = sources.into_iter().enumerate().map(lane).collect();
        let preparer = Arc::new(Preparer { live: live.clone(), ledger: ledger.clone(), events });
        let (sender, changes) = mpsc::unbounded_channel();
        let senders = Senders {
            stop: context.stop.child_token(),
            no_more_mails: tasks.no_more_mails.child_token(),
            next: connections,
        };
        let handle = Handle { context, lanes: Arc::default(), ledger, changes: sender, bucket };
        handle.set_lanes(lanes.iter().map(|running| running.lane.clone()).collect());
        Self { handle, live, preparer, lanes, ending: Vec::new(), next_lane, senders, tasks, changes }
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until [`Handle::stop`], or for one pass if made so; every claim is settled or given back at the end, as far as
    /// the databases can be reached. A panic of any task is passed on at once: claims of that task would stay claimed
    /// until the next start recovers them.
    pub async fn run(mut self) -> Pass {
        let ended = Tasks::new(self.handle.context.stop.clone());
        let mut tasks = std::mem::replace(&mut self.tasks, ended);
        self.start(&mut tasks).await;
        self.serve(&mut tasks).await;
        self.drain(&mut tasks).await;
        self.shut_down(tasks).await
    }

    /// Starts the tasks. Settlers come first, because all others have verdicts for them; then maintenance, so that the
    /// lease is renewed before a mail needs it; then senders; and fetchers, which supply them, last, when it is known
    /// whether the relay is down.
    async fn start(&mut self, tasks: &mut Tasks) {
        let Handle { context, ledger, .. } = self.handle.clone();
        let mut lanes = std::mem::take(&mut self.lanes);
        lanes.iter_mut().for_each(|running| self.start_settling(running, tasks));
        tasks.add_background(tasks.background.clone(), maintenance::expire_ledger(ledger.clone(), self.live.clone()));
        let probe = Probe { context: context.clone(), ledger };
        probe.at_start().await;
        if !context.once {
            tasks.add_background(tasks.background.clone(), probe.run());
        }
        self.start_senders(0, tasks);
        lanes.iter().for_each(|running| self.start_fetching(running, tasks));
        self.lanes = lanes;
    }

    /// Starts the settler and the maintenance of a lane.
    fn start_settling(&self, running: &mut Running, tasks: &mut Tasks) {
        let Handle { context, ledger, .. } = &self.handle;
        let lane = &running.lane;
        if let Some(inbox) = running.inbox.take() {
            let settler = Settler { context: context.clone(), lane: lane.clone(), ledger: ledger.clone() };
            tasks.add_settler(lane.index, lane.name().clone(), settler.run(inbox), running.settled.clone());
        }
        let over = running.over.clone();
        let both = || (context.clone(), lane.clone());
        let (context, lane) = both();
        if !context.once {
            tasks.add_background(over.clone(), Redeletion { context, lane }.run());
        }
        let (context, lane) = both();
        tasks.add_background(over.clone(), Heartbeat { context, lane }.run());
        let (context, lane) = both();
        tasks.add_background(over.clone(), Flags { context, lane }.run());
        let (context, lane) = both();
        let (no_more, ended) = (running.no_more_take_overs.clone(), running.taken_over.clone().drop_guard());
        tasks.add_background(over.clone(), async move {
            let _ended = ended;
            TakeOver { context, lane }.run(no_more).await;
        });
        let (context, lane) = both();
        tasks.add_background(over.clone(), maintenance::return_when_closed(context, lane));
        let (context, lane) = both();
        tasks.add_background(over, maintenance::account_for_outages(context, lane));
    }

    /// Starts the senders of the relay in force, numbered from `first`.
    fn start_senders(&self, first: usize, tasks: &mut Tasks) {
        let current = self.live.get();
        for connection in first..first + current.settings.connections {
            let Handle { context, ledger, bucket, .. } = self.handle.clone();
            let (preparer, client) = (self.preparer.clone(), current.relay.worker());
            let final_dot = current.relay.settings().timeouts.final_dot;
            let stop = self.senders.stop.clone();
            let sender = Sender { context, bucket, ledger, preparer, connection, client, final_dot, stop };
            tasks.add_sender(connection, final_dot, sender.run(self.senders.no_more_mails.clone()));
        }
    }

    /// Starts the fetcher of a lane, and those that work for it.
    fn start_fetching(&self, running: &Running, tasks: &mut Tasks) {
        let Handle { context, ledger, .. } = &self.handle;
        let both = || (context.clone(), running.lane.clone());
        let over = running.no_more_claims.clone();
        let (context, lane) = both();
        let large = LargeFetcher { context, lane, preparer: self.preparer.clone() };
        tasks.add_supplier(large.run(over.clone()));
        let (context, lane) = both();
        let recovery = Recovery { context: context.clone(), lane: lane.clone(), ledger: ledger.clone() };
        let (preparer, not_loaded) = (self.preparer.clone(), Mutex::default());
        let fetcher = Fetcher { context, lane, recovery, preparer, not_loaded };
        tasks.add_fetcher(fetcher.run(), running.fetched.clone());
        let (context, lane) = both();
        tasks.add_supplier(Marker { context, lane }.run(over));
    }

    /// Waits until all fetchers have ended, with their pass or at the order to end. Puts changes in force meanwhile.
    async fn serve(&mut self, tasks: &mut Tasks) {
        loop {
            tokio::select! {
                biased;
                Some((change, done)) = self.changes.recv() => {
                    self.change(change, tasks);
                    // The one who asked may have gone.
                    let _ = done.send(());
                }
                () = tasks.until(|tasks| tasks.fetchers == 0) => break,
            }
        }
        // Changes come too late now; those who wait for one are told by the end of the channel.
        self.changes.close();
        while self.changes.try_recv().is_ok() {}
    }

    /// Puts a change in force. What is as before goes on untouched.
    fn change(&mut self, change: Change, tasks: &mut Tasks) {
        let Change { settings, sources, relay } = change;
        let before = self.live.get();
        let relay = if before.relay.is_same_as(&relay) { before.relay.clone() } else { relay };
        let relay_changed = !Arc::ptr_eq(&relay, &before.relay) || settings.connections != before.settings.connections;
        let same_host = relay.is_at_host_of(&before.relay);

        let queues = sources.len();
        let (gone, new) = self.compare(sources, &settings);
        let first = self.next_lane;
        self.next_lane += new.len();
        let same_lanes = gone.is_empty() && new.is_empty();
        let memory = if same_lanes && settings.max_in_flight_bytes == before.settings.max_in_flight_bytes {
            before.memory.clone()
        } else {
            // What is in use of the memory before comes on top until it is given back.
            Arc::new(Memory::among(settings.max_in_flight_bytes, queues, self.next_lane))
        };
        self.handle.bucket.set_rate(settings.rate, Instant::now());
        self.live.replace(Current { settings, relay, memory });

        if relay_changed {
            self.change_relay(same_host, tasks);
        }
        gone.into_iter().for_each(|running| self.end_lane(running, tasks));
        for (index, Source { queue, weight }) in (first..).zip(new) {
            self.add_lane(index, queue, weight, tasks);
        }
        self.handle.context.outage.set_lanes(self.lanes.iter().map(|running| running.lane.index).collect());
        self.show_lanes();
        self.handle.poll();
    }

    /// Lets the observers see the lanes in force.
    fn show_lanes(&self) {
        self.handle.set_lanes(self.lanes.iter().map(|running| running.lane.clone()).collect());
    }

    /// Compares the queues in force with those that shall be. Takes out the lanes of queues that are gone or have other
    /// settings, and returns them with the queues that need a new lane.
    fn compare(&mut self, sources: Vec<Source>, settings: &Settings) -> (Vec<Running>, Vec<Source>) {
        let mut kept = HashSet::new();
        let mut new = Vec::new();
        for source in sources {
            match self.lanes.iter().find(|running| running.lane.queue.is_same_as(&source.queue)) {
                Some(Running { lane, .. }) => {
                    lane.set_lease(settings.lease);
                    self.handle.context.set_weight(lane, source.weight);
                    kept.insert(lane.index);
                }
                None => new.push(source),
            }
        }
        let all = std::mem::take(&mut self.lanes).into_iter();
        let (kept, gone) = all.partition(|running| kept.contains(&running.lane.index));
        self.lanes = kept;
        (gone, new)
    }

    /// Lets the senders end with the mail that they have on the wire, and starts others.
    fn change_relay(&mut self, same_host: bool, tasks: &mut Tasks) {
        let first = self.senders.next;
        let connections = self.live.get().settings.connections;
        self.senders.stop.cancel();
        self.senders.no_more_mails.cancel();
        self.handle.context.relay_changed(first, connections, same_host);
        let stop = self.handle.context.stop.child_token();
        self.senders = Senders { stop, no_more_mails: tasks.no_more_mails.child_token(), next: first + connections };
        self.start_senders(first, tasks);
    }

    /// Lets a lane end: no new claims; mails on the wire are finished, all others given back.
    fn end_lane(&mut self, running: Running, tasks: &mut Tasks) {
        running.lane.stop.cancel();
        running.no_more_take_overs.cancel();
        self.ending.push(Arc::downgrade(&running.lane));
        let context = self.handle.context.clone();
        tasks.add_background(tasks.background.clone(), async move {
            let Running { lane, fetched, taken_over, settled, no_more_claims, over, .. } = running;
            fetched.cancelled().await;
            no_more_claims.cancel();
            context.flush_refusals();
            // The claims that it makes are settled here like the others.
            taken_over.cancelled().await;
            // A mail that another task has in hand may become ready yet.
            while timeout(LOOK_AGAIN, lane.queue.all_settled()).await.is_err() {
                context.return_ready(&lane);
            }
            lane.close();
            settled.cancelled().await;
            lane.ended.cancel();
            over.cancel();
            context.breaker.set_paused(lane.index, false);
            context.events.progress.forget_lane(lane.index);
        });
    }

    fn add_lane(&mut self, index: usize, queue: Queue, weight: u32, tasks: &mut Tasks) {
        self.ending.retain(|lane| lane.strong_count() > 0);
        // A lane of another queue on another table holds no claims that a recovery here could meet.
        let before =
            self.ending.iter().filter_map(Weak::upgrade).filter(|lane| {
                lane.name() == queue.name() || lane.queue.unqualified_table() == queue.unqualified_table()
            });
        let before =
            before.map(|lane| Predecessor { has_same_table: lane.queue.has_same_table_as(&queue), lane }).collect();
        let current = self.live.get();
        let stop = self.handle.context.stop.child_token();
        let (lane, inbox) = Lane::new(index, queue, current.settings.lease, stop, false, before);
        self.handle.context.add_flow(weight);
        self.handle.progress().expect_lane(index, lane.name());
        let mut running = Running::new(lane, inbox, tasks);
        self.start_settling(&mut running, tasks);
        self.start_fetching(&running, tasks);
        self.lanes.push(running);
    }

    /// Lets all mails come to an end, each task after those that supply it: the fetchers have ended, so no claims come, and
    /// those end that make mails of them; then no mails come, and the senders finish those on the wire; then no verdicts
    /// come, and the settlers carry out those that they have.
    async fn drain(&self, tasks: &mut Tasks) {
        tasks.no_more_claims.cancel();
        tasks.until(|tasks| tasks.suppliers == 0).await;
        tasks.no_more_mails.cancel();
        // Of a sender that a reload has replaced, the final dots may take longer than those of the relay in force.
        let patience = tasks.senders.values().max().copied().unwrap_or_default() + MARGIN;
        if timeout(patience, tasks.until(|tasks| tasks.senders.is_empty())).await.is_err() {
            // As if the process were killed: the ledger knows which dots are out.
            tracing::warn!(target: events::MAIL, "not all mails on the wire are finished; the next start sees to them");
            tasks.cut_senders.cancel();
            tasks.until(|tasks| tasks.senders.is_empty()).await;
        }
        // Before the settlers end, which carry out what a take-over decides.
        for running in &self.lanes {
            if timeout(MARGIN, running.taken_over.cancelled()).await.is_err() {
                tracing::warn!(target: events::DATABASE, queue = %running.lane.name(),
                    "a take-over is cut off at the end; the next start sees to the rows that it may have taken");
            }
        }
        self.handle.context.flush_refusals();
        self.lanes.iter().for_each(|running| running.lane.close());
        self.ending.iter().filter_map(Weak::upgrade).for_each(|lane| lane.close());
        if timeout(LAST_SETTLING, tasks.until(|tasks| tasks.unsettled.is_empty())).await.is_err() {
            tasks.cut_settlers.cancel();
            for queue in std::mem::take(&mut tasks.unsettled).into_values() {
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

impl Running {
    fn new(lane: Arc<Lane>, inbox: mpsc::UnboundedReceiver<Done>, tasks: &Tasks) -> Self {
        Self {
            fetched: lane.fetched.clone(),
            lane,
            inbox: Some(inbox),
            settled: CancellationToken::new(),
            no_more_claims: tasks.no_more_claims.child_token(),
            no_more_take_overs: tasks.no_more_claims.child_token(),
            taken_over: CancellationToken::new(),
            over: tasks.background.child_token(),
        }
    }
}
