//! A dispatcher that sends nothing while rows wait: seen by the clock, so that it is trouble even where nothing reports an
//! error.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::words::span;
use crate::telemetry::Wait;

/// A queue that has rows to send and has sent none for this long is stalled. Longer than any step of a mail takes while
/// all is well, but for the reply to a final dot, which may rightly take 10 minutes (RFC 5321 §4.5.3.2.6).
pub const AFTER: Duration = Duration::from_secs(300);

/// A stall, as `status --json` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalled {
    /// The end of the last attempt, or the moment from which on rows have waited, if that is later.
    pub since: Timestamp,
    pub reason: Wait,
}

impl Stalled {
    /// The stall in words, with its remedy; without a capital letter or a full stop.
    pub fn sentence(&self, now: Timestamp) -> String {
        let seconds = u64::try_from(now.duration_since(self.since).as_secs()).unwrap_or(0);
        let reason = match self.reason {
            Wait::Memory => {
                "max_in_flight_bytes is used up by mails under way; a queue whose database takes no results, or a larger value"
            }
            Wait::Relay => "the smarthost takes none; `mailqueue check` tries each step",
            Wait::Rate => "relay.rate lets no more through",
            Wait::Database => "a database does not answer, or refuses; `mailqueue check` says which",
            Wait::Files => "the limit of open files is reached; raise LimitNOFILE",
        };
        format!("nothing sent for {} while mails wait: {reason}", span(seconds))
    }
}

/// A queue at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub queue: &'a str,
    /// Rows are due, and no operator keeps them back. `None` while the database does not tell.
    pub due: Option<bool>,
    /// The end of the last attempt to send a mail of it.
    pub attempted: Option<Instant>,
    pub waits_for: Wait,
}

/// The memory of a watch over queues: the time since when each of them has had rows to send and sent none.
#[derive(Debug)]
pub struct Watch {
    after: Duration,
    idle: HashMap<String, (Instant, Timestamp)>,
}

impl Watch {
    /// `after` is the time without a mail that makes a stall.
    pub fn new(after: Duration) -> Self {
        Self { after, idle: HashMap::new() }
    }

    /// Takes all queues as they are at `now`, which is `wall` by the calendar. Returns the longest stall.
    pub fn look<'a>(
        &mut self,
        queues: impl IntoIterator<Item = Moment<'a>>,
        now: Instant,
        wall: Timestamp,
    ) -> Option<Stalled> {
        let before = std::mem::take(&mut self.idle);
        let mut longest: Option<(Instant, Stalled)> = None;
        for Moment { queue, due, attempted, waits_for } in queues {
            let known = before.get(queue).copied();
            let (mut since, mut wall_since) = match (due, known) {
                (Some(false), _) | (None, None) => continue,
                (Some(true), None) => (now, wall),
                // A database that does not tell leaves it as it was.
                (_, Some(known)) => known,
            };
            if let Some(at) = attempted.filter(|at| *at > since) {
                since = at;
                wall_since = wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(wall);
            }
            self.idle.insert(queue.to_owned(), (since, wall_since));
            let stalled = now.saturating_duration_since(since) >= self.after;
            if stalled && longest.is_none_or(|(earlier, _)| since < earlier) {
                longest = Some((since, Stalled { since: wall_since, reason: waits_for }));
            }
        }
        longest.map(|(_, stalled)| stalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        watch: Watch,
        begun: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { watch: Watch::new(AFTER), begun: Instant::now() }
        }

        fn at(&self, second: u64) -> Instant {
            self.begun + Duration::from_secs(second)
        }

        /// A look at one queue; the stall as seconds since the beginning and its reason.
        fn look(&mut self, second: u64, due: Option<bool>, attempted: Option<u64>, wait: Wait) -> Option<(i64, Wait)> {
            let attempted = attempted.map(|second| self.at(second));
            self.look_at(second, &[("a", due, attempted, wait)])
        }

        fn look_at(
            &mut self,
            second: u64,
            queues: &[(&str, Option<bool>, Option<Instant>, Wait)],
        ) -> Option<(i64, Wait)> {
            let wall = Timestamp::from_second(second as i64).unwrap();
            let queues =
                queues.iter().map(|&(queue, due, attempted, waits_for)| Moment { queue, due, attempted, waits_for });
            let stalled = self.watch.look(queues, self.at(second), wall);
            stalled.map(|stalled| (stalled.since.as_second(), stalled.reason))
        }
    }

    #[test]
    fn a_queue_that_sends_nothing_for_five_minutes_while_rows_wait_is_stalled_with_the_reason_it_has_now() {
        let mut bench = Bench::new();
        assert_eq!(bench.look(0, Some(false), None, Wait::Relay), None);
        assert_eq!(bench.look(100, Some(true), None, Wait::Memory), None);
        assert_eq!(bench.look(399, Some(true), None, Wait::Memory), None);
        assert_eq!(bench.look(400, Some(true), None, Wait::Memory), Some((100, Wait::Memory)));
        assert_eq!(bench.look(460, Some(true), None, Wait::Rate), Some((100, Wait::Rate)));
        assert_eq!(bench.look(470, Some(true), Some(465), Wait::Rate), None, "a mail was tried");
        assert_eq!(bench.look(765, Some(true), Some(465), Wait::Relay), Some((465, Wait::Relay)));
        assert_eq!(
            bench.look(766, Some(false), Some(465), Wait::Relay),
            None,
            "none waits any more, or somebody paused it"
        );
        assert_eq!(bench.look(1000, Some(true), Some(465), Wait::Relay), None, "the rows have come just now");
        assert_eq!(bench.look(1300, Some(true), Some(465), Wait::Relay), Some((1000, Wait::Relay)));
    }

    #[test]
    fn rows_that_a_database_does_not_tell_of_are_taken_to_wait_as_they_did() {
        let mut bench = Bench::new();
        assert_eq!(bench.look(0, None, None, Wait::Database), None);
        assert_eq!(bench.look(1000, None, None, Wait::Database), None, "no waiting row is known");
        assert_eq!(bench.look(1001, Some(true), None, Wait::Database), None);
        assert_eq!(bench.look(1301, None, None, Wait::Database), Some((1001, Wait::Database)));
    }

    #[test]
    fn a_queue_that_goes_on_does_not_hide_one_that_stands_still() {
        let mut bench = Bench::new();
        let queues = |bench: &Bench, second| {
            let sent = Some(bench.at(second));
            [("busy", Some(true), sent, Wait::Rate), ("still", Some(true), None, Wait::Memory)]
        };
        for second in [0, 200] {
            let queues = queues(&bench, second);
            assert_eq!(bench.look_at(second, &queues), None);
        }
        let queues = queues(&bench, 300);
        assert_eq!(bench.look_at(300, &queues), Some((0, Wait::Memory)));
    }
}
