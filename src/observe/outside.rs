//! The picture of health from outside: from databases, ledger and the dispatcher's own file, whether it runs or not.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use super::health::{self, Health, Relay, span};
use super::snapshot::{Pace, Snapshot};
use crate::ledger::{self, Tracer};
use crate::queue::{self, Queue};

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
pub async fn look(queues: &[Queue], state_dir: &Path, now: Timestamp) -> (Health, Daemon) {
    let counted = counts(queues, now).await;
    let snapshot = Snapshot::read(state_dir);
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
        _ if counted.relay_stopped => Relay::stopped(),
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
    pub queues: Vec<health::Queue>,
    /// An operator stopped the relay in one of them.
    pub relay_stopped: bool,
}

/// Counts the rows of all queues, side by side.
pub async fn counts(queues: &[Queue], now: Timestamp) -> Counted {
    let one = |queue: &Queue| {
        let queue = queue.clone();
        async move {
            let counted = async { Ok::<_, queue::Error>((queue.counts(now).await?, queue.paused().await?)) };
            match counted.await {
                Ok((counts, paused)) => (health::Queue::of(queue.name(), &counts, paused), paused.relay),
                Err(error) => (health::Queue::out_of_reach(queue.name(), error.to_string()), false),
            }
        }
    };
    let (queues, stops): (Vec<_>, Vec<_>) = join_all(queues.iter().map(one)).await.into_iter().unzip();
    Counted { queues, relay_stopped: stops.contains(&true) }
}

/// What the file says of the dispatcher's life.
pub fn daemon(snapshot: Option<&Snapshot>, now: Timestamp, is_alive: impl Fn(u32) -> bool) -> Daemon {
    let Some(snapshot) = snapshot else { return Daemon::Stopped { since: None } };
    let Snapshot { pid, written, .. } = *snapshot;
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
