//! The file through which a dispatcher shows other processes what only it knows: the relay's state and signs of life.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, interval};

use super::health::{Health, Queue};
use super::relay::Relay;
use super::stall::Stalled;
use crate::failpoint;
use crate::mail::Capabilities;
use crate::telemetry::{LaneSample, Observed, Sample};

/// Below `state_dir`.
pub const FILE: &str = "status.json";

/// What stands in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusFile {
    pub pid: u32,
    /// At least every `every_seconds`, while the loops make progress.
    pub written: Timestamp,
    pub every_seconds: u64,
    /// The last one before an orderly end.
    pub stopped: bool,
    /// It makes one pass only (`mailqueue once`).
    #[serde(default)]
    pub once: bool,
    pub relay: Relay,
    /// It sends nothing while rows wait.
    #[serde(default)]
    pub stalled: Option<Stalled>,
    /// The time of the first poll that saw the oldest waiting row, by queue.
    #[serde(default)]
    pub waiting_since: BTreeMap<String, Timestamp>,
    /// The last words of each database that is out of reach or refuses something, by queue. Redacted as the log is.
    #[serde(default)]
    pub databases: BTreeMap<String, String>,
    /// Absent in what an older version wrote.
    #[serde(default)]
    pub pace: Option<Pace>,
    /// What the smarthost announced last.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    pub last_poll: Option<Timestamp>,
    pub last_accepted: Option<Timestamp>,
}

/// How fast it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// How many connections may be in use.
    pub connections: usize,
    /// Rows that were delivered in the last minute.
    pub mails_per_minute: u64,
}

impl StatusFile {
    /// `None` where no dispatcher has written one.
    pub fn read(state_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(state_dir.join(FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts it in place of the last one; readers see one or the other. Where there is no room for both, as on a full disk,
    /// which is just what `status` must tell then, it is written over the last one.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let content = serde_json::to_vec(self)?;
        replace(state_dir, FILE, &content)
            .or_else(|error| overwrite(&state_dir.join(FILE), &content).map_err(|_| error))
    }
}

/// Puts a file in place of the one before it; a reader sees one or the other.
pub(super) fn replace(state_dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = state_dir.join(format!("{name}.new"));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o640).open(&new)?.write_all(content)?;
    std::fs::rename(&new, state_dir.join(name))
}

/// Takes no room that the file does not have already.
fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)
}

/// A change of the relay's state is shown so soon.
const LOOK: Duration = Duration::from_secs(1);

/// Anything else that changed, and a sign of life.
const CHANGED: Duration = Duration::from_secs(10);
const ALIVE: Duration = Duration::from_secs(30);

/// Keeps the file of a running dispatcher until it is dropped. `once`: it makes one pass only, and `health` says nothing.
pub async fn keep(dispatcher: impl Observed, health: watch::Receiver<Health>, state_dir: PathBuf, once: bool) {
    let mut looks = interval(LOOK);
    let mut shown: Option<(StatusFile, Instant)> = None;
    let mut failing = false;
    let mut minute = Minute::default();
    loop {
        looks.tick().await;
        failpoint::hit("in-status-file");
        let sample = dispatcher.sample();
        let mails_per_minute = minute.passes(Instant::now(), sample.tally.delivered);
        if !sample.alive() {
            // Whoever reads the file sees it grow old.
            continue;
        }
        let now = StatusFile {
            pace: Some(Pace { connections: sample.relay.cap, mails_per_minute }),
            once,
            ..StatusFile::of(&sample, &health.borrow(), false)
        };
        if let Some((before, at)) = &shown {
            let changed = StatusFile { written: before.written, ..now.clone() } != *before;
            // The first poll is what somebody who has just started it waits to see.
            let calm = now.relay.state == before.relay.state
                && now.relay.pipelining == before.relay.pipelining
                && now.stalled == before.stalled
                && now.databases == before.databases
                && now.last_poll.is_some() == before.last_poll.is_some();
            let patience = match (calm, changed) {
                (false, _) => LOOK,
                (true, true) => CHANGED,
                (true, false) => ALIVE,
            };
            if at.elapsed() < patience {
                continue;
            }
        }
        let written = now.write(&state_dir);
        if let Err(error) = &written
            && !failing
        {
            tracing::warn!(target: "mailqueue::monitor", %error, file = %state_dir.join(FILE).display(),
                "cannot be written: `mailqueue status` does not see how the dispatcher is");
        }
        failing = written.is_err();
        shown = Some((now, Instant::now()));
    }
}

/// What was delivered within a minute, seen each second.
#[derive(Default)]
struct Minute(VecDeque<(Instant, u64)>);

impl Minute {
    /// `delivered` counts from the start on. Answers how much of it is of the last minute.
    fn passes(&mut self, now: Instant, delivered: u64) -> u64 {
        self.0.push_back((now, delivered));
        while self.0.front().is_some_and(|(at, _)| now - *at > Duration::from_secs(60)) {
            self.0.pop_front();
        }
        self.0.front().map_or(0, |(_, before)| delivered.saturating_sub(*before))
    }
}

/// Writes the last one of a dispatcher that has ended in good order.
pub fn close(dispatcher: &impl Observed, health: &Health, state_dir: &Path) -> io::Result<()> {
    let last = StatusFile::of(&dispatcher.sample(), health, true);
    StatusFile { relay: Relay::default(), stalled: None, ..last }.write(state_dir)
}

impl StatusFile {
    fn of(sample: &Sample, health: &Health, stopped: bool) -> Self {
        let since = |queue: &Queue| Some((queue.name.clone(), queue.waiting_since?));
        let trouble = |lane: &LaneSample| Some((lane.name.to_string(), lane.database.clone()?));
        Self {
            pid: std::process::id(),
            written: Timestamp::now(),
            every_seconds: ALIVE.as_secs(),
            stopped,
            once: false,
            relay: Relay::of(sample),
            stalled: health.stalled,
            databases: sample.lanes.iter().filter_map(trouble).collect(),
            waiting_since: health.queues.iter().filter_map(since).collect(),
            pace: None,
            capabilities: sample.capabilities,
            last_poll: sample.last_poll,
            last_accepted: sample.last_accepted,
        }
    }
}
