//! One picture of health: what `status --json` prints, and what the other files turn into text.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::relay::Relay;
use super::stall::Stalled;
use crate::outcome::State;
use crate::queue::{self, Counts, Paused};

/// How mail flows. Its JSON form is a contract with monitoring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub queues: Vec<Queue>,
    pub relay: Relay,
    /// When a dispatcher of this `state_dir` last looked at a table.
    pub last_poll: Option<Timestamp>,
    pub last_accepted: Option<Timestamp>,
    /// Entries of the ledger that are not settled; `None` where there is no ledger yet or it cannot be read.
    pub ledger_open: Option<u64>,
    /// The dispatcher of this `state_dir`; `None` where its status file cannot be read.
    #[serde(default)]
    pub daemon: Option<DaemonStatus>,
    /// The dispatcher sends nothing while rows wait.
    #[serde(default)]
    pub stalled: Option<Stalled>,
}

/// The dispatcher of a `state_dir`, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DaemonStatus {
    Running,
    /// One pass is under way (`mailqueue once`).
    Once,
    /// None runs: it has ended, in good order or not, or none has run here.
    Stopped,
    /// The process exists and shows no signs of life.
    Silent,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    pub name: String,
    /// Absent where the database is out of reach: nobody knows then.
    #[serde(flatten)]
    pub rows: Option<Rows>,
    /// The words of a database that does not answer, so that `rows` are absent; or of one that does, and refuses a running
    /// dispatcher something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The time of the first poll that saw the oldest row of those that wait and have no record.
    #[serde(skip)]
    pub waiting_since: Option<Timestamp>,
}

/// Rows by state, and what an operator wants of the queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    pub waiting: u64,
    pub claimed: u64,
    pub sending: u64,
    pub deferred: u64,
    pub failed: u64,
    pub unreadable: u64,
    /// Set aside by an operator, or because the outcome is not known; without `not_deleted`.
    pub held: u64,
    /// Delivered, and held because the database does not delete them.
    #[serde(default)]
    pub not_deleted: u64,
    pub paused: bool,
    /// How long ago the oldest row that is due became due; `None` where none is.
    pub oldest_due_seconds: Option<u64>,
    /// `waiting` is an estimate.
    #[serde(skip)]
    pub about: bool,
    /// Rows are due that no dispatcher has claimed.
    #[serde(skip)]
    pub sendable: bool,
}

impl Queue {
    /// `waiting_since` is the time of the first poll that saw the oldest waiting row, where one is remembered.
    pub fn of(name: &str, counts: &Counts, paused: Paused, waiting_since: Option<Timestamp>, now: Timestamp) -> Self {
        let waiting_since = (counts.waiting > 0).then(|| waiting_since.unwrap_or(now));
        let oldest = [waiting_since, counts.oldest_deferred, counts.oldest_claimed].into_iter().flatten().min();
        let age = |since: Timestamp| u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
        let of = |state| counts.records.iter().filter(|(known, _)| *known == state).map(|(_, rows)| rows).sum();
        let rows = Rows {
            waiting: counts.waiting,
            claimed: of(State::Claimed),
            sending: of(State::Sending),
            deferred: of(State::Deferred),
            failed: of(State::Failed),
            unreadable: of(State::Unreadable),
            held: of(State::Held).saturating_sub(counts.not_deleted),
            not_deleted: counts.not_deleted,
            paused: paused.queue,
            oldest_due_seconds: oldest.map(age),
            about: counts.waiting_is_estimate,
            sendable: counts.waiting > 0 || counts.oldest_deferred.is_some(),
        };
        Self { name: name.to_owned(), rows: Some(rows), error: None, waiting_since }
    }

    /// A queue that has not been counted yet.
    pub fn uncounted(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A queue whose database did not answer.
    pub fn out_of_reach(name: &str, why: impl Into<String>) -> Self {
        Self { error: Some(why.into()), ..Self::uncounted(name) }
    }
}

impl Rows {
    /// Each state's count. Rows that are `not-deleted` are in none.
    pub fn by_state(&self) -> [(State, u64); 7] {
        State::ALL.map(|state| {
            let rows = match state {
                State::Waiting => self.waiting,
                State::Claimed => self.claimed,
                State::Sending => self.sending,
                State::Deferred => self.deferred,
                State::Failed => self.failed,
                State::Unreadable => self.unreadable,
                State::Held => self.held,
            };
            (state, rows)
        })
    }
}

/// Counts the rows of a queue. `waiting_since` tells from the numbers of the waiting rows since when the oldest of them
/// is known to wait. Also returns true while an operator has paused the relay in its database.
pub async fn count(
    queue: &queue::Queue,
    waiting_since: impl FnOnce(&[i64]) -> Option<Timestamp>,
    now: Timestamp,
) -> (Queue, bool) {
    let counted = async { Ok::<_, queue::Error>((queue.counts(now).await?, queue.paused().await?)) };
    match counted.await {
        Ok((counts, paused)) => {
            let since = waiting_since(&counts.waiting_rows);
            (Queue::of(queue.name(), &counts, paused, since, now), paused.relay)
        }
        Err(error) => (Queue::out_of_reach(queue.name(), error.to_string()), false),
    }
}
