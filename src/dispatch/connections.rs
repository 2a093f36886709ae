//! The number of connections that the smarthost takes from us, and those of ours that exist. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// The cap after a refused connection is first tried again after this time: long enough that a smarthost with a limit
/// is not asked all the time, short enough that a short trouble does not cost a connection for long.
const FIRST_PROBE: Duration = Duration::from_secs(30);

/// Each refused probe doubles the time until the next, up to this.
const LONGEST_PROBE: Duration = Duration::from_secs(3600);

/// Throttling replies that come within this time are answers to what was under way at once, and shrink the cap once.
const ONE_SHRINK: Duration = Duration::from_secs(1);

/// After our own limit of open files was reached, one connection more is tried after this time. Files come free when the
/// peers of other connections close them, within seconds.
const FIRST_FILES_PROBE: Duration = Duration::from_secs(2);

/// A limit of open files that was not met again for this long after the time of a probe is taken to be over, once a
/// connection could be opened. Ten times the longest wait for a probe.
const FILES_FORGOTTEN: Duration = Duration::from_secs(600);

/// Each further time doubles the pause before a probe, up to this: a limit that is too low stays so until it is raised.
const LONGEST_FILES_PROBE: Duration = Duration::from_secs(60);

/// The connections of all workers, which are counted from 0.
///
/// A worker may connect only while it holds a slot. There are as many slots as the cap says: the least of what is
/// configured, what throttling left, and what the smarthost was seen to take.
#[derive(Debug)]
pub struct Connections {
    slots: Vec<Slot>,
    configured: usize,
    /// Workers below this number are those of a relay that is ours no more: their connections do not count.
    foreign: usize,
    /// Shrinks when the smarthost throttles, and grows with clean transactions.
    pace: f64,
    shrunk: Option<Instant>,
    limit: Option<Limit>,
    files: Option<FilesLimit>,
}

/// The number for which there are files. It can be 0.
#[derive(Clone, Copy, Debug)]
struct FilesLimit {
    connections: usize,
    /// From here on one more connection may be tried.
    probe_at: Instant,
    /// Before the next probe.
    patience: Duration,
}

/// The state of a worker. Greater is more worth keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Nothing,
    /// The right to connect.
    Right,
    Connecting,
    /// A connection that was greeted and logged in.
    Connected,
}

/// The number that the smarthost was seen to take.
#[derive(Clone, Copy, Debug)]
struct Limit {
    connections: usize,
    /// From here on one more connection may be tried.
    probe_at: Instant,
    /// Before the next probe.
    patience: Duration,
    /// At least one connection worked while another was refused.
    proven: bool,
}

/// The change that a connection attempt made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nothing new is known for sure.
    Nothing,
    /// The smarthost takes this many connections, which is news.
    Limit(usize),
    /// The smarthost takes this many connections, more than it did before.
    More(usize),
    /// There are files for all connections again.
    Files,
}

impl Connections {
    pub fn new(configured: usize) -> Self {
        let configured = configured.max(1);
        let slots = vec![Slot::Nothing; configured];
        Self { pace: configured as f64, slots, configured, foreign: 0, shrunk: None, limit: None, files: None }
    }

    /// The workers are others from now on: `configured` of them, numbered from `first`. Connections of those before count
    /// until they end, if `same_host`.
    pub fn renew(&mut self, first: usize, configured: usize, same_host: bool) {
        let configured = configured.max(1);
        self.slots.resize(first + configured, Slot::Nothing);
        if !same_host {
            self.foreign = first;
            self.slots[..first].fill(Slot::Nothing);
            self.limit = None;
        }
        // Its workers ask for nothing more; a right that was not used is free.
        for slot in &mut self.slots[..first] {
            if *slot == Slot::Right {
                *slot = Slot::Nothing;
            }
        }
        self.configured = configured;
        self.pace = configured as f64;
        self.limit = self.limit.filter(|limit| limit.connections < configured);
        self.files = self.files.filter(|files| files.connections < configured);
    }

    /// Returns the number of connections that there may be, a probe left out.
    pub fn cap(&self) -> usize {
        let limit = self.limit.map_or(self.configured, |limit| limit.connections);
        let files = self.files.map_or(self.configured, |files| files.connections);
        (self.pace as usize).min(limit).min(files).max(1)
    }

    fn cap_at(&self, now: Instant) -> usize {
        let limit = self.limit.map_or(self.configured, |limit| limit.connections + usize::from(now >= limit.probe_at));
        let files = self.files.map_or(self.configured, |files| files.connections + usize::from(now >= files.probe_at));
        (self.pace as usize).min(limit).max(1).min(files)
    }

    /// The time at which a cap that was learned may be tried again.
    pub fn probe_at(&self) -> Option<Instant> {
        self.limit.map(|limit| limit.probe_at)
    }

    /// The next time after `now` at which one connection more may be tried.
    pub fn next_probe(&self, now: Instant) -> Option<Instant> {
        let files = self.files.map(|files| files.probe_at);
        self.probe_at().into_iter().chain(files).filter(|probe_at| *probe_at > now).min()
    }

    /// Returns true if this worker has a connection for which there is no file any more.
    pub fn is_surplus(&self, worker: usize, now: Instant) -> bool {
        self.files.is_some() && self.slots[worker] >= Slot::Connecting && !self.admits(worker, now)
    }

    /// Returns true while there are fewer connections because our own limit of open files was reached.
    pub fn is_short_of_files(&self) -> bool {
        self.files.is_some()
    }

    /// No file could be opened: for the connection of this worker, or, with `None`, for something else, which then needs
    /// the place of a connection. Returns the new cap where it is news.
    pub fn out_of_files(&mut self, worker: Option<usize>, now: Instant) -> Option<usize> {
        if let Some(worker) = worker {
            self.slots[worker] = Slot::Nothing;
        }
        let before = self.files;
        let in_use = self.in_use();
        let connections = if worker.is_some() { in_use } else { in_use.saturating_sub(1) };
        let was_probe = before.is_some_and(|files| files.probe_at <= now);
        let (probe_at, patience) = match before {
            Some(files) if !was_probe => (files.probe_at, files.patience),
            Some(files) => (now + files.patience * 2, files.patience * 2),
            None => (now + FIRST_FILES_PROBE, FIRST_FILES_PROBE),
        };
        let patience = patience.min(LONGEST_FILES_PROBE);
        let probe_at = probe_at.min(now + patience);
        let connections = before.map_or(connections, |files| files.connections.min(connections));
        self.files = Some(FilesLimit { connections, probe_at, patience });
        before.is_none().then(|| self.cap())
    }

    /// A file could be opened again that is as good as a connection. Returns true where the limit is over.
    fn files_came_free(&mut self, connected: usize, now: Instant) -> bool {
        let configured = self.configured;
        match &mut self.files {
            Some(files) if connected > files.connections => {
                files.connections = connected;
                // The next one is tried at once.
                files.probe_at = now;
                if connected >= configured {
                    self.files = None;
                }
                self.files.is_none()
            }
            // Where little is sent, there are never as many connections at the same time.
            Some(files) if now >= files.probe_at + FILES_FORGOTTEN => {
                self.files = None;
                true
            }
            _ => false,
        }
    }

    /// Returns true if this worker has a slot, or can have one, and its turn for a mail.
    pub fn admits(&self, worker: usize, now: Instant) -> bool {
        let cap = self.cap_at(now);
        let mine = self.slots[worker];
        if mine == Slot::Nothing {
            return self.slots.iter().filter(|slot| **slot > Slot::Nothing).count() < cap;
        }
        // Connections that exist go first, then those of a lower number.
        let before = |(other, slot): (usize, &Slot)| *slot > mine || *slot == mine && other < worker;
        self.slots.iter().enumerate().filter(|one| before(*one)).count() < cap
    }

    /// Takes a slot where the worker has none. False if none is free.
    pub fn enter(&mut self, worker: usize, now: Instant) -> bool {
        let admitted = self.admits(worker, now);
        if admitted && self.slots[worker] == Slot::Nothing {
            self.slots[worker] = Slot::Right;
        }
        admitted
    }

    /// The worker uses its connection, or makes one.
    pub fn connecting(&mut self, worker: usize) {
        if worker >= self.foreign {
            self.slots[worker] = self.slots[worker].max(Slot::Connecting);
        }
    }

    /// The worker's connection was greeted and logged in.
    pub fn connected(&mut self, worker: usize, now: Instant) -> Learned {
        if worker < self.foreign {
            return Learned::Nothing;
        }
        self.slots[worker] = Slot::Connected;
        let connected = self.slots.iter().filter(|slot| **slot == Slot::Connected).count();
        if self.files_came_free(connected, now) {
            return Learned::Files;
        }
        let configured = self.configured;
        let Some(limit) = &mut self.limit else { return Learned::Nothing };
        if connected > limit.connections {
            // The next one is tried at once: one refusal more is all that it can cost.
            *limit = Limit { connections: connected, probe_at: now, patience: FIRST_PROBE, proven: true };
            if connected >= configured {
                self.limit = None;
            }
            return Learned::More(connected);
        }
        if std::mem::replace(&mut limit.proven, true) { Learned::Nothing } else { Learned::Limit(limit.connections) }
    }

    /// The worker has no connection any more, and needs none for now.
    pub fn left(&mut self, worker: usize) {
        self.slots[worker] = Slot::Nothing;
    }

    /// The smarthost did not let this worker in. `None` if no other connection of ours exists or is being made: then
    /// that is no limit, and the relay is out of reach.
    pub fn refused(&mut self, worker: usize, now: Instant) -> Option<Learned> {
        if worker < self.foreign {
            return Some(Learned::Nothing);
        }
        self.slots[worker] = Slot::Nothing;
        let with = |least: Slot| self.slots.iter().filter(|slot| **slot >= least).count();
        let (others, connected) = (with(Slot::Connecting), with(Slot::Connected));
        if others == 0 {
            return None;
        }
        let before = self.limit;
        let was_probe = before.is_some_and(|limit| limit.probe_at <= now && limit.connections <= others);
        let patience = match before {
            Some(limit) if was_probe => (limit.patience * 2).min(LONGEST_PROBE),
            Some(limit) => limit.patience,
            None => FIRST_PROBE,
        };
        let connections = before.map_or(others, |limit| limit.connections.min(others));
        let proven = connected > 0;
        self.limit = Some(Limit { connections, probe_at: now + patience, patience, proven });
        let known = before.is_some_and(|limit| limit.connections == connections && limit.proven);
        Some(if proven && !known { Learned::Limit(connections) } else { Learned::Nothing })
    }

    /// The smarthost asks for less. Returns the new cap where it changed.
    pub fn throttled(&mut self, now: Instant) -> Option<usize> {
        if self.shrunk.is_some_and(|shrunk| now < shrunk + ONE_SHRINK) {
            return None;
        }
        self.shrunk = Some(now);
        let before = self.cap();
        let most = self.limit.map_or(self.configured, |limit| limit.connections) as f64;
        self.pace = (self.pace.min(most) / 2.0).max(1.0);
        Some(self.cap()).filter(|cap| *cap != before)
    }

    /// A transaction ended without trouble that is the relay's: one connection more for each round of the cap (additive
    /// increase).
    pub fn clean(&mut self) {
        self.pace = (self.pace + 1.0 / self.pace).min(self.configured as f64);
    }

    /// The relay is out of reach: what was learned with it is worth nothing.
    pub fn forget_limit(&mut self) {
        self.limit = None;
    }

    /// The relay is back: one connection first, more as mails get through.
    pub fn begin_with_one(&mut self) {
        self.pace = 1.0;
    }

    /// Workers that have a connection or make one.
    pub fn in_use(&self) -> usize {
        self.slots.iter().filter(|slot| **slot >= Slot::Connecting).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments that are a number of seconds after the start.
    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    /// Four workers that all connect at once, of which the smarthost lets only some in.
    fn with_room_for(room: usize, now: Instant) -> (Connections, Vec<Option<Learned>>) {
        let mut connections = Connections::new(4);
        for worker in 0..4 {
            assert!(connections.enter(worker, now));
            connections.connecting(worker);
        }
        let mut learned = Vec::new();
        // The refusals come first: they cost the smarthost nothing.
        for worker in room..4 {
            learned.push(connections.refused(worker, now));
        }
        for worker in 0..room {
            learned.push(Some(connections.connected(worker, now)));
        }
        (connections, learned)
    }

    #[test]
    fn a_refusal_while_others_work_is_a_limit_and_said_once_a_connection_works() {
        let at = clock();
        let (connections, learned) = with_room_for(3, at(0));
        assert_eq!(connections.cap(), 3);
        let nothing = Some(Learned::Nothing);
        assert_eq!(learned, [nothing, Some(Learned::Limit(3)), nothing, nothing]);
        assert!((0..3).all(|worker| connections.admits(worker, at(1))));
        assert!(!connections.admits(3, at(1)), "it has to wait");
    }

    #[test]
    fn a_refusal_with_no_other_connection_is_no_limit() {
        let at = clock();
        let (_, learned) = with_room_for(0, at(0));
        assert_eq!(learned, [Some(Learned::Nothing), Some(Learned::Nothing), Some(Learned::Nothing), None]);
        let mut one = Connections::new(1);
        assert!(one.enter(0, at(0)));
        one.connecting(0);
        assert_eq!(one.refused(0, at(0)), None);
    }

    #[test]
    fn a_worker_that_holds_a_slot_without_a_connection_is_no_other_connection() {
        let at = clock();
        let mut connections = Connections::new(2);
        assert!(connections.enter(0, at(0)) && connections.enter(1, at(0)));
        connections.connecting(1);
        assert_eq!(connections.refused(1, at(0)), None);
    }

    #[test]
    fn a_limit_is_tried_again_after_longer_and_longer_times_by_one_connection() {
        let at = clock();
        let (mut connections, _) = with_room_for(3, at(0));
        let mut now = 0;
        for patience in [30, 60, 120, 240, 480, 960, 1920, 3600, 3600] {
            assert_eq!(connections.probe_at(), Some(at(now + patience)));
            assert!(!connections.enter(3, at(now + patience - 1)), "after {patience} s");
            now += patience;
            assert!(connections.admits(3, at(now)), "after {patience} s");
            assert!(connections.enter(3, at(now)));
            connections.connecting(3);
            assert_eq!(connections.refused(3, at(now)), Some(Learned::Nothing), "no news");
            assert_eq!(connections.cap(), 3);
        }
    }

    #[test]
    fn a_limit_that_is_gone_is_found_gone_one_connection_at_a_time() {
        let at = clock();
        let (mut connections, learned) = with_room_for(1, at(0));
        assert_eq!(learned.last(), Some(&Some(Learned::Limit(1))));
        assert_eq!(connections.cap(), 1);
        assert!(connections.enter(2, at(30)));
        assert!(!connections.enter(1, at(30)), "one probe at a time");
        connections.connecting(2);
        assert_eq!(connections.connected(2, at(31)), Learned::More(2));
        assert_eq!(connections.cap(), 2);
        for (worker, more) in [(1, 3), (3, 4)] {
            assert!(connections.enter(worker, at(31)), "the next is tried at once");
            connections.connecting(worker);
            assert_eq!(connections.connected(worker, at(31)), Learned::More(more));
        }
        assert_eq!((connections.cap(), connections.probe_at()), (4, None));
    }

    #[test]
    fn a_refusal_that_comes_before_the_probe_is_due_does_not_put_it_off_longer() {
        let at = clock();
        let (mut connections, _) = with_room_for(3, at(0));
        // A connection of the three ends, and its successor is not let in.
        connections.connecting(2);
        assert_eq!(connections.refused(2, at(5)), Some(Learned::Limit(2)));
        assert_eq!((connections.cap(), connections.probe_at()), (2, Some(at(35))));
    }

    #[test]
    fn connections_that_exist_go_before_those_that_would_have_to_be_made() {
        let at = clock();
        let mut connections = Connections::new(4);
        assert!(connections.enter(3, at(0)));
        connections.connecting(3);
        connections.connected(3, at(0));
        connections.begin_with_one();
        assert!(connections.admits(3, at(0)));
        assert!(!connections.admits(0, at(0)) && !connections.enter(0, at(0)));
        connections.left(3);
        assert!(connections.enter(0, at(0)));
        assert!(!connections.admits(3, at(0)));
    }

    #[test]
    fn throttling_below_a_limit_shrinks_from_the_limit() {
        let at = clock();
        let (mut connections, _) = with_room_for(2, at(0));
        assert_eq!(connections.throttled(at(10)), Some(1));
        assert_eq!(connections.throttled(at(10)), None, "the answer to what was under way at once");
        assert_eq!(connections.throttled(at(11)), None, "one remains");
        (0..20).for_each(|_| connections.clean());
        assert_eq!(connections.cap(), 2, "it grows back up to the limit");
        connections.forget_limit();
        assert_eq!(connections.cap(), 4);
    }

    #[test]
    fn throttling_counts_again_when_a_second_has_passed() {
        let at = clock();
        let mut connections = Connections::new(8);
        assert_eq!(connections.throttled(at(0)), Some(4));
        assert_eq!(connections.throttled(at(0) + ONE_SHRINK - Duration::from_millis(1)), None);
        assert_eq!(connections.throttled(at(0) + ONE_SHRINK), Some(2));
    }

    #[test]
    fn what_is_in_use_is_connected_or_connecting() {
        let at = clock();
        let mut connections = Connections::new(3);
        connections.enter(0, at(0));
        assert_eq!(connections.in_use(), 0);
        connections.connecting(0);
        connections.enter(1, at(0));
        connections.connecting(1);
        connections.connected(1, at(0));
        assert_eq!(connections.in_use(), 2);
        connections.left(1);
        assert_eq!(connections.in_use(), 1);
    }

    #[test]
    fn without_a_file_for_a_connection_there_are_fewer_and_one_more_is_tried_after_a_while() {
        let at = clock();
        let mut connections = Connections::new(4);
        for worker in 0..4 {
            assert!(connections.enter(worker, at(0)));
            connections.connecting(worker);
        }
        connections.connected(0, at(0));
        connections.connected(1, at(0));
        assert_eq!(connections.out_of_files(Some(3), at(0)), Some(3), "that is news");
        assert_eq!(connections.out_of_files(Some(2), at(0)), None, "and said once");
        assert_eq!((connections.cap(), connections.is_short_of_files()), (2, true));
        assert!(!connections.enter(2, at(1)));
        assert_eq!(connections.next_probe(at(1)), Some(at(2)));
        assert!(connections.enter(2, at(2)) && !connections.enter(3, at(2)), "one at a time");
        connections.connecting(2);
        assert_eq!(connections.out_of_files(Some(2), at(2)), None);
        assert_eq!(connections.next_probe(at(2)), Some(at(6)), "after twice the time");

        assert!(connections.enter(2, at(6)));
        connections.connecting(2);
        assert_eq!(connections.connected(2, at(6)), Learned::Nothing);
        assert!(connections.enter(3, at(6)), "the next is tried at once");
        connections.connecting(3);
        assert_eq!(connections.connected(3, at(6)), Learned::Files);
        assert_eq!((connections.cap(), connections.is_short_of_files()), (4, false));
    }

    #[test]
    fn without_a_file_for_any_connection_none_is_tried_for_a_while() {
        let at = clock();
        let mut connections = Connections::new(2);
        assert!(connections.enter(0, at(0)));
        connections.connecting(0);
        assert_eq!(connections.out_of_files(Some(0), at(0)), Some(1));
        assert!(!connections.enter(0, at(1)) && !connections.enter(1, at(1)));
        assert!(connections.enter(1, at(2)));
    }

    #[test]
    fn a_limit_of_files_is_over_after_a_while_where_few_connections_are_needed() {
        let at = clock();
        let mut connections = Connections::new(4);
        for worker in 0..2 {
            assert!(connections.enter(worker, at(0)));
            connections.connecting(worker);
        }
        connections.connected(0, at(0));
        assert_eq!(connections.out_of_files(Some(1), at(0)), Some(1));
        connections.enter(0, at(500));
        connections.connecting(0);
        assert_eq!(connections.connected(0, at(500)), Learned::Nothing);
        assert!(connections.is_short_of_files());
        connections.connecting(0);
        assert_eq!(connections.connected(0, at(700)), Learned::Files);
        assert_eq!((connections.cap(), connections.is_short_of_files()), (4, false));
    }

    #[test]
    fn a_file_that_something_else_needs_is_that_of_a_connection() {
        let at = clock();
        let mut connections = Connections::new(2);
        for worker in 0..2 {
            assert!(connections.enter(worker, at(0)));
            connections.connecting(worker);
            connections.connected(worker, at(0));
        }
        assert!(!connections.is_surplus(1, at(0)));
        assert_eq!(connections.out_of_files(None, at(0)), Some(1));
        assert!(connections.is_surplus(1, at(0)) && !connections.is_surplus(0, at(0)));
    }
}
