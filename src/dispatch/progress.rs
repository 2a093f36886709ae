//! Progress of a running dispatcher: counts, signs of life and troubles. Reading it costs nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, interval};

use super::counters::Counters;
use crate::outcome::Fate;
use crate::telemetry::{FailedRow, FailureReport, LaneLiveness, Tally};

/// The work that a queue's database does for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Finding, claiming, loading and marking rows.
    Fetching,
    /// Renewing the lease, without which no mail is sent.
    Heartbeat,
    /// Taking delivery results.
    Settling,
    /// Taking the delivery results of rows that another session has locked.
    Locked,
}

/// The counts grow while a dispatcher runs.
#[derive(Debug, Default)]
pub struct Progress {
    claimed: AtomicU64,
    delivered: AtomicU64,
    deferred: AtomicU64,
    failed: AtomicU64,
    unreadable: AtomicU64,
    held: AtomicU64,
    not_deleted: AtomicU64,
    relay_trouble: Mutex<Option<String>>,
    last_poll: Mutex<Option<Timestamp>>,
    last_accepted: Mutex<Option<Timestamp>>,
    /// The end of each queue's last attempt to send a mail.
    attempts: Mutex<BTreeMap<Arc<str>, Instant>>,
    /// The work that a database does not do, with its last words.
    databases: Mutex<BTreeMap<(Arc<str>, Work), String>>,
    /// Rows that failed or became unreadable since the last [`Progress::take_failures`].
    failures: Mutex<FailureReport>,
    /// Counters and histograms for monitoring.
    pub counters: Counters,
    /// Signs of life of the loops.
    pub liveness: Liveness,
}

impl Progress {
    pub fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            claimed: read(&self.claimed),
            delivered: read(&self.delivered),
            deferred: read(&self.deferred),
            failed: read(&self.failed),
            unreadable: read(&self.unreadable),
            held: read(&self.held),
            not_deleted: read(&self.not_deleted),
        }
    }

    /// The trouble because of which the relay is down, or a pass ended early.
    pub fn relay_trouble(&self) -> Option<String> {
        lock(&self.relay_trouble).clone()
    }

    pub fn last_poll(&self) -> Option<Timestamp> {
        *lock(&self.last_poll)
    }

    pub fn last_accepted(&self) -> Option<Timestamp> {
        *lock(&self.last_accepted)
    }

    /// Returns the end of the queue's last attempt to send a mail.
    pub fn last_attempt(&self, queue: &str) -> Option<Instant> {
        lock(&self.attempts).get(queue).copied()
    }

    /// Returns the last words of a database that is out of reach, or does not do what it should.
    pub fn database_trouble(&self, queue: &str) -> Option<String> {
        let databases = lock(&self.databases);
        databases.iter().find(|((name, _), _)| **name == *queue).map(|(_, words)| words.clone())
    }

    /// Takes the rows that failed or became unreadable since the last call.
    pub fn take_failures(&self) -> FailureReport {
        std::mem::take(&mut *lock(&self.failures))
    }

    pub(super) fn expect_lane(&self, name: &Arc<str>) {
        self.counters.expect_queue(name);
        self.liveness.expect(name.clone());
    }

    /// The queue is gone, or its lane begins again.
    pub(super) fn forget_lane(&self, name: &str) {
        self.liveness.forget(name);
        lock(&self.databases).retain(|(queue, _), _| **queue != *name);
    }

    pub(super) fn note_relay_trouble(&self, reason: &str) {
        *lock(&self.relay_trouble) = Some(reason.to_owned());
    }

    pub(super) fn clear_relay_trouble(&self) {
        *lock(&self.relay_trouble) = None;
    }

    pub(super) fn note_poll(&self, now: Timestamp) {
        *lock(&self.last_poll) = Some(now);
    }

    pub(super) fn note_attempt(&self, queue: &Arc<str>, now: Instant) {
        lock(&self.attempts).insert(queue.clone(), now);
    }

    pub(super) fn note_accepted(&self, now: Timestamp) {
        *lock(&self.last_accepted) = Some(now);
    }

    pub(super) fn note_claimed(&self) {
        self.claimed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_settled(&self, queue: &str, fate: &Fate) {
        self.counters.settled(queue, fate);
        let count = match fate {
            Fate::Delivered => &self.delivered,
            Fate::Deferred { .. } => &self.deferred,
            Fate::Failed { .. } => &self.failed,
            Fate::Held { .. } => &self.held,
            Fate::Unreadable { .. } => &self.unreadable,
            Fate::Released => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_not_deleted(&self, queue: &str) {
        self.counters.not_deleted(queue);
        self.not_deleted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_failure(&self, row: FailedRow) {
        lock(&self.failures).push(row);
    }

    /// A database does not do some work. Returns true if it has not said these words of such work yet.
    pub(super) fn note_database(&self, queue: &Arc<str>, work: Work, words: &str) -> bool {
        let mut databases = lock(&self.databases);
        let is_known = |work: &Work| databases.get(&(queue.clone(), *work)).is_some_and(|said| said == words);
        let is_new = !work.reported_together().iter().any(is_known);
        databases.insert((queue.clone(), work), words.to_owned());
        is_new
    }

    /// A database does some work. Returns true if that ends its trouble with such work.
    pub(super) fn clear_database(&self, queue: &Arc<str>, work: Work) -> bool {
        let mut databases = lock(&self.databases);
        let cleared = databases.remove(&(queue.clone(), work)).is_some();
        cleared && !work.reported_together().iter().any(|work| databases.contains_key(&(queue.clone(), *work)))
    }
}

impl Work {
    /// Without fetching and without the heartbeat alike, nothing of a queue is sent.
    fn reported_together(self) -> &'static [Self] {
        match self {
            Self::Fetching | Self::Heartbeat => &[Self::Fetching, Self::Heartbeat],
            Self::Settling => &[Self::Settling],
            Self::Locked => &[Self::Locked],
        }
    }
}

/// The interval at which a loop that waits shows that it is alive.
const WHILE_WAITING: Duration = Duration::from_secs(5);

/// Signs of life of each lane's loops. A loop touches its own when it makes progress, and while it waits for something
/// that may take long.
#[derive(Debug, Default)]
pub struct Liveness {
    lanes: Mutex<BTreeMap<Arc<str>, Touched>>,
}

/// The time of each loop's newest sign of life.
#[derive(Clone, Copy, Debug)]
struct Touched {
    /// `None` once the loop has ended, long before the last mails are finished.
    fetcher: Option<Instant>,
    heartbeat: Instant,
    flags: Instant,
    take_over: Instant,
    started: bool,
}

/// The loops of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    Fetcher,
    Heartbeat,
    Flags,
    TakeOver,
}

impl Liveness {
    /// Adds a lane that runs from now on.
    fn expect(&self, lane: Arc<str>) {
        let now = Instant::now();
        let touched = Touched { fetcher: Some(now), heartbeat: now, flags: now, take_over: now, started: false };
        lock(&self.lanes).insert(lane, touched);
    }

    pub(super) fn forget(&self, lane: &str) {
        lock(&self.lanes).remove(lane);
    }

    pub(super) fn touch(&self, lane: &str, which: Loop) {
        self.with(lane, |touched| match which {
            Loop::Fetcher => touched.fetcher = Some(Instant::now()),
            Loop::Heartbeat => touched.heartbeat = Instant::now(),
            Loop::Flags => touched.flags = Instant::now(),
            Loop::TakeOver => touched.take_over = Instant::now(),
        });
    }

    pub(super) fn fetcher_ended(&self, lane: &str) {
        self.with(lane, |touched| (touched.fetcher, touched.started) = (None, true));
    }

    pub(super) fn started(&self, lane: &str) {
        self.with(lane, |touched| touched.started = true);
    }

    /// Touches the fetcher's sign of life while it waits for something that may take long: a due row, room, memory, a
    /// relay that is down.
    pub(super) async fn touch_while<T>(&self, lane: &str, what: impl Future<Output = T>) -> T {
        let mut ticks = interval(WHILE_WAITING);
        tokio::pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => {
                    self.touch(lane, Loop::Fetcher);
                    return done;
                }
                _ = ticks.tick() => self.touch(lane, Loop::Fetcher),
            }
        }
    }

    /// Returns a lane's signs of life.
    pub fn of(&self, lane: &str, now: Instant) -> LaneLiveness {
        let Some(touched) = lock(&self.lanes).get(lane).copied() else {
            return LaneLiveness::default();
        };
        let Touched { fetcher, heartbeat, flags, take_over, started } = touched;
        let oldest = fetcher.into_iter().chain([heartbeat, flags, take_over]).min().unwrap_or(now);
        LaneLiveness { stalled_for: now.saturating_duration_since(oldest), started }
    }

    fn with(&self, lane: &str, change: impl FnOnce(&mut Touched)) {
        if let Some(touched) = lock(&self.lanes).get_mut(lane) {
            change(touched);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
