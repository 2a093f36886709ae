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

/// The queue's name and its database's last words, by the number of the lane and the work.
type Troubles = BTreeMap<(usize, Work), (Arc<str>, String)>;

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
    /// The work that a lane's database does not do, with the queue and the database's last words. By the lane and not by
    /// the queue: after a reload two lanes can have one queue, one of which ends.
    databases: Mutex<Troubles>,
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

    /// Returns the last words of a database that is out of reach, or does not do what it should: those that this lane has
    /// heard, else those that another lane of the queue has, which ends.
    pub fn database_trouble(&self, lane: usize, queue: &str) -> Option<String> {
        let databases = lock(&self.databases);
        let own = databases.iter().find(|((of, _), _)| *of == lane);
        let any = || databases.values().find(|(of, _)| **of == *queue);
        own.map(|(_, trouble)| trouble).or_else(any).map(|(_, words)| words.clone())
    }

    /// Takes the rows that failed or became unreadable since the last call.
    pub fn take_failures(&self) -> FailureReport {
        std::mem::take(&mut *lock(&self.failures))
    }

    /// Adds a lane that runs from now on.
    pub(super) fn expect_lane(&self, lane: usize, queue: &str) {
        self.counters.expect_queue(queue);
        self.liveness.expect(lane);
    }

    /// Forgets a lane that has ended. What other lanes of the queue report stays.
    pub(super) fn forget_lane(&self, lane: usize) {
        self.liveness.forget(lane);
        lock(&self.databases).retain(|(of, _), _| *of != lane);
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

    /// A lane's database does not do some work. Returns true if it has not said these words of such work yet.
    pub(super) fn note_database(&self, lane: usize, queue: &Arc<str>, work: Work, words: &str) -> bool {
        let mut databases = lock(&self.databases);
        let is_known = |work: &Work| databases.get(&(lane, *work)).is_some_and(|(_, said)| said == words);
        let is_new = !work.reported_together().iter().any(is_known);
        // Nothing would clear it for a lane that has ended.
        if self.liveness.is_expected(lane) {
            databases.insert((lane, work), (queue.clone(), words.to_owned()));
        }
        is_new
    }

    /// A lane's database does some work. Returns true if that ends its trouble with such work.
    pub(super) fn clear_database(&self, lane: usize, work: Work) -> bool {
        let mut databases = lock(&self.databases);
        let cleared = databases.remove(&(lane, work)).is_some();
        cleared && !work.reported_together().iter().any(|work| databases.contains_key(&(lane, *work)))
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
    /// By the lanes' numbers.
    lanes: Mutex<BTreeMap<usize, Touched>>,
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
    fn expect(&self, lane: usize) {
        let now = Instant::now();
        let touched = Touched { fetcher: Some(now), heartbeat: now, flags: now, take_over: now, started: false };
        lock(&self.lanes).insert(lane, touched);
    }

    fn forget(&self, lane: usize) {
        lock(&self.lanes).remove(&lane);
    }

    fn is_expected(&self, lane: usize) -> bool {
        lock(&self.lanes).contains_key(&lane)
    }

    pub(super) fn touch(&self, lane: usize, which: Loop) {
        self.with(lane, |touched| match which {
            Loop::Fetcher => touched.fetcher = Some(Instant::now()),
            Loop::Heartbeat => touched.heartbeat = Instant::now(),
            Loop::Flags => touched.flags = Instant::now(),
            Loop::TakeOver => touched.take_over = Instant::now(),
        });
    }

    pub(super) fn fetcher_ended(&self, lane: usize) {
        self.with(lane, |touched| (touched.fetcher, touched.started) = (None, true));
    }

    pub(super) fn started(&self, lane: usize) {
        self.with(lane, |touched| touched.started = true);
    }

    /// Touches the fetcher's sign of life while it waits for something that may take long: a due row, room, memory, a
    /// relay that is down.
    pub(super) async fn touch_while<T>(&self, lane: usize, what: impl Future<Output = T>) -> T {
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
    pub fn of(&self, lane: usize, now: Instant) -> LaneLiveness {
        let Some(touched) = lock(&self.lanes).get(&lane).copied() else {
            return LaneLiveness::default();
        };
        let Touched { fetcher, heartbeat, flags, take_over, started } = touched;
        let oldest = fetcher.into_iter().chain([heartbeat, flags, take_over]).min().unwrap_or(now);
        LaneLiveness { stalled_for: now.saturating_duration_since(oldest), started }
    }

    fn with(&self, lane: usize, change: impl FnOnce(&mut Touched)) {
        if let Some(touched) = lock(&self.lanes).get_mut(&lane) {
            change(touched);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_ends_takes_nothing_from_the_lane_that_follows_it_under_the_same_name() {
        let progress = Progress::default();
        let queue: Arc<str> = "newsletter".into();
        progress.expect_lane(0, &queue);
        progress.liveness.started(0);
        progress.expect_lane(1, &queue);
        progress.liveness.fetcher_ended(0);
        let now = Instant::now();
        assert!(!progress.liveness.of(1, now).started, "the lane before has ended its fetching, and not this one");

        progress.note_database(1, &queue, Work::Fetching, "gone");
        assert!(!progress.clear_database(0, Work::Fetching));
        assert_eq!(progress.database_trouble(1, &queue).as_deref(), Some("gone"));
        progress.clear_database(1, Work::Fetching);
        progress.note_database(0, &queue, Work::Settling, "locked");
        assert_eq!(progress.database_trouble(1, &queue).as_deref(), Some("locked"), "rows of the queue stay");

        progress.forget_lane(0);
        progress.note_database(0, &queue, Work::Settling, "locked");
        assert_eq!(progress.database_trouble(1, &queue), None, "nothing would clear it");
        progress.liveness.started(1);
        assert!(progress.liveness.of(1, now).started);
    }
}
