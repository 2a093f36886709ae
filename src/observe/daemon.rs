//! The dispatcher of a `state_dir` as other processes see it, and the health that they read.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use super::health::{self, DaemonStatus, Health, Queue};
use super::relay::Relay;
use super::status_file::{Pace, StatusFile};
use super::words::span;
use crate::ledger::{self, Tracer};
use crate::queue;

/// The time by which a status file may be late before its dispatcher counts as silent.
const GRACE: Duration = Duration::from_secs(120);

/// The longest wait of a command for the counts of a queue: shorter than the 45 s for which the local check of Checkmk
/// waits, and longer than counting takes.
const ANSWER: Duration = Duration::from_secs(30);

/// The dispatcher of a `state_dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    Running {
        pid: u32,
        /// It makes one pass only.
        once: bool,
        pace: Option<Pace>,
    },
    /// The process exists and shows no signs of life.
    Silent { pid: u32, since: Timestamp },
    /// It ended in good order, or has never run here.
    Stopped { since: Option<Timestamp> },
    /// It ended without noting its end.
    Died { since: Timestamp },
    /// Its status file cannot be read.
    Unknown { why: String },
}

impl Daemon {
    /// The dispatcher in words, without a capital letter or a full stop.
    pub fn sentence(&self, now: Timestamp) -> String {
        let ago = |at: &Timestamp| span(u64::try_from(now.duration_since(*at).as_secs()).unwrap_or(0));
        match self {
            Self::Running { pid, once: false, .. } => format!("running as process {pid}"),
            Self::Running { pid, once: true, .. } => format!("running one pass (`mailqueue once`) as process {pid}"),
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

    /// The dispatcher in a word; `None` where it cannot be told.
    pub fn status(&self) -> Option<DaemonStatus> {
        match self {
            Self::Running { once: false, .. } => Some(DaemonStatus::Running),
            Self::Running { once: true, .. } => Some(DaemonStatus::Once),
            Self::Silent { .. } => Some(DaemonStatus::Silent),
            Self::Stopped { .. } | Self::Died { .. } => Some(DaemonStatus::Stopped),
            Self::Unknown { .. } => None,
        }
    }
}

/// Reads the health from databases, ledger and status file, whether the dispatcher runs or not. A database that is out of
/// reach is part of the result.
pub async fn health(queues: &[queue::Queue], state_dir: &Path, now: Timestamp) -> (Health, Daemon) {
    let file = StatusFile::read(state_dir);
    let daemon = match &file {
        Ok(file) => daemon(file.as_ref(), now, is_alive),
        Err(error) => Daemon::Unknown { why: format!("{}: {error}", state_dir.display()) },
    };
    let file = file.ok().flatten();
    let counted = join_all(queues.iter().map(|queue| async {
        let since = file.as_ref().and_then(|file| file.waiting_since.get(&**queue.name()).copied());
        let unanswered = |_| {
            let why = format!("database of queue {} has not answered within {} s", queue.name(), ANSWER.as_secs());
            (Queue::out_of_reach(queue.name(), why), false)
        };
        tokio::time::timeout(ANSWER, health::count(queue, |_| since, now)).await.unwrap_or_else(unanswered)
    }));
    let (mut queues, pauses): (Vec<_>, Vec<_>) = counted.await.into_iter().unzip();
    let (ledger_open, accepted) = ledger(state_dir).unzip();
    let running = file.as_ref().filter(|_| matches!(daemon, Daemon::Running { .. } | Daemon::Silent { .. }));
    for queue in queues.iter_mut().filter(|queue| queue.error.is_none()) {
        queue.error = running.and_then(|file| file.databases.get(&queue.name).cloned());
    }
    let relay = match running {
        _ if pauses.contains(&true) => Relay::paused(),
        Some(file) => file.relay.clone(),
        None => Relay::unused(),
    };
    let health = Health {
        queues,
        relay,
        last_poll: file.as_ref().and_then(|file| file.last_poll),
        last_accepted: accepted.flatten().max(file.as_ref().and_then(|file| file.last_accepted)),
        ledger_open,
        daemon: daemon.status(),
        stalled: running.and_then(|file| file.stalled),
    };
    (health, daemon)
}

/// Tells from its status file how a dispatcher is. `is_alive` tells whether there is a process of that number.
pub fn daemon(file: Option<&StatusFile>, now: Timestamp, is_alive: impl Fn(u32) -> bool) -> Daemon {
    let Some(file) = file else { return Daemon::Stopped { since: None } };
    let StatusFile { pid, written, once, pace, .. } = *file;
    let age = Duration::try_from(now.duration_since(written)).unwrap_or_default();
    match (file.stopped, is_alive(pid)) {
        (true, _) => Daemon::Stopped { since: Some(written) },
        (false, false) => Daemon::Died { since: written },
        (false, true) if age > Duration::from_secs(file.every_seconds) + GRACE => {
            Daemon::Silent { pid, since: written }
        }
        (false, true) => Daemon::Running { pid, once, pace },
    }
}

/// Returns true if there is a process of that number, and it is a mailqueue.
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
