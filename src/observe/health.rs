//! One picture of health: what `status --json` prints, and what the other files turn into text.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::relay::Relay;
use super::status_file::{Pace, StatusFile};
use super::words::span;
use crate::ledger::{self, Tracer};
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
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    pub name: String,
    /// Absent where the database is out of reach: nobody knows then.
    #[serde(flatten)]
    pub rows: Option<Rows>,
    /// Why `rows` are absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
    pub held: u64,
    pub paused: bool,
    /// How long ago the oldest row that is due became due; `None` where none is.
    pub oldest_due_seconds: Option<u64>,
    /// `waiting` is an estimate.
    #[serde(skip)]
    pub about: bool,
}

impl Queue {
    pub fn of(name: &str, counts: &Counts, paused: Paused) -> Self {
        let of = |state| counts.records.iter().filter(|(known, _)| *known == state).map(|(_, rows)| rows).sum();
        let rows = Rows {
            waiting: counts.waiting,
            claimed: of(State::Claimed),
            sending: of(State::Sending),
            deferred: of(State::Deferred),
            failed: of(State::Failed),
            unreadable: of(State::Unreadable),
            held: of(State::Held),
            paused: paused.queue,
            oldest_due_seconds: counts.oldest_due_seconds,
            about: counts.waiting_is_estimate,
        };
        Self { name: name.to_owned(), rows: Some(rows), error: None }
    }

    /// A queue whose database did not answer.
    pub fn out_of_reach(name: &str, why: impl Into<String>) -> Self {
        Self { name: name.to_owned(), rows: None, error: Some(why.into()) }
    }
}

impl Rows {
    /// Each state's count.
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

/// A file that is older than the time in which it should have been written anew, and so much more, is of a dispatcher
/// that hangs.
const GRACE: Duration = Duration::from_secs(120);

/// The dispatcher of this `state_dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    Running {
        pid: u32,
        pace: Option<Pace>,
    },
    /// The process is there, and does nothing.
    Silent {
        pid: u32,
        since: Timestamp,
    },
    /// It ended in good order, or has never run here.
    Stopped {
        since: Option<Timestamp>,
    },
    /// It ended without saying so.
    Died {
        since: Timestamp,
    },
    /// `state_dir` cannot be read.
    Unknown {
        why: String,
    },
}

impl Daemon {
    /// In words, without a capital letter or a full stop.
    pub fn sentence(&self, now: Timestamp) -> String {
        let ago = |at: &Timestamp| span(u64::try_from(now.duration_since(*at).as_secs()).unwrap_or(0));
        match self {
            Self::Running { pid, .. } => format!("running as process {pid}"),
            Self::Silent { pid, since } => {
                format!("process {pid} shows no signs of life for {}; restart it", ago(since))
            }
            Self::Stopped { since: Some(since) } => format!("not running, stopped {} ago; nothing is sent", ago(since)),
            Self::Stopped { since: None } => "not running on this host; nothing is sent".to_owned(),
            Self::Died { since } => {
                format!("not running, died without a word; last sign of life {} ago; nothing is sent", ago(since))
            }
            Self::Unknown { why } => format!("cannot be told: {why}"),
        }
    }
}

/// Looks at everything. A database that is out of reach is part of the answer.
pub async fn look(queues: &[queue::Queue], state_dir: &Path, now: Timestamp) -> (Health, Daemon) {
    let counted = counts(queues, now).await;
    let snapshot = StatusFile::read(state_dir);
    let daemon = match &snapshot {
        Ok(snapshot) => daemon(snapshot.as_ref(), now, is_alive),
        Err(error) => Daemon::Unknown { why: format!("{}: {error}", state_dir.display()) },
    };
    let snapshot = snapshot.ok().flatten();
    let (ledger_open, accepted) = match ledger(state_dir) {
        Some((open, accepted)) => (Some(open), accepted),
        None => (None, None),
    };
    let relay = match (&snapshot, &daemon) {
        _ if counted.relay_paused => Relay::paused(),
        (Some(snapshot), Daemon::Running { .. } | Daemon::Silent { .. }) => snapshot.relay.clone(),
        _ => Relay::unused(),
    };
    let health = Health {
        queues: counted.queues,
        relay,
        last_poll: snapshot.as_ref().and_then(|snapshot| snapshot.last_poll),
        last_accepted: accepted.max(snapshot.as_ref().and_then(|snapshot| snapshot.last_accepted)),
        ledger_open,
    };
    (health, daemon)
}

/// What the databases say.
#[derive(Debug, Default)]
pub struct Counted {
    pub queues: Vec<Queue>,
    /// An operator paused the relay in one of them.
    pub relay_paused: bool,
}

/// Counts the rows of all queues, side by side.
pub async fn counts(queues: &[queue::Queue], now: Timestamp) -> Counted {
    let one = |queue: &queue::Queue| {
        let queue = queue.clone();
        async move {
            let counted = async { Ok::<_, queue::Error>((queue.counts(now).await?, queue.paused().await?)) };
            match counted.await {
                Ok((counts, paused)) => (Queue::of(queue.name(), &counts, paused), paused.relay),
                Err(error) => (Queue::out_of_reach(queue.name(), error.to_string()), false),
            }
        }
    };
    let (queues, stops): (Vec<_>, Vec<_>) = join_all(queues.iter().map(one)).await.into_iter().unzip();
    Counted { queues, relay_paused: stops.contains(&true) }
}

/// What the file says of the dispatcher's life.
pub fn daemon(snapshot: Option<&StatusFile>, now: Timestamp, is_alive: impl Fn(u32) -> bool) -> Daemon {
    let Some(snapshot) = snapshot else { return Daemon::Stopped { since: None } };
    let StatusFile { pid, written, .. } = *snapshot;
    let age = Duration::try_from(now.duration_since(written)).unwrap_or_default();
    match (snapshot.stopped, is_alive(pid)) {
        (true, _) => Daemon::Stopped { since: Some(written) },
        (false, false) => Daemon::Died { since: written },
        (false, true) if age > Duration::from_secs(snapshot.every_seconds) + GRACE => {
            Daemon::Silent { pid, since: written }
        }
        (false, true) => Daemon::Running { pid, pace: snapshot.pace },
    }
}

/// Whether there is a process of that number, and it is a mailqueue.
fn is_alive(pid: u32) -> bool {
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    match name("self") {
        Some(own) => name(&pid.to_string()) == Some(own),
        // No /proc to look at: the file's age has to tell.
        None => true,
    }
}

/// Entries that are open and the last acceptance, where there is a ledger that can be read.
fn ledger(state_dir: &Path) -> Option<(u64, Option<Timestamp>)> {
    if !ledger::exists(state_dir) {
        return None;
    }
    match Tracer::open(state_dir).and_then(|ledger| ledger.summary()) {
        Ok(summary) => Some(summary),
        Err(error) => {
            tracing::warn!(target: "mailqueue::ledger", %error, "the ledger cannot be read");
            None
        }
    }
}
