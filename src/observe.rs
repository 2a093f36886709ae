//! What people and machines see of the work: logs, and one picture of health that others turn into text.

pub mod logs;

use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The file in `state_dir` through which a running dispatcher shows its health to other processes.
const FILE: &str = "status.json";

/// A dispatcher that has not drawn its picture for so long is taken for dead, or stuck.
const STALE: Duration = Duration::from_secs(15);

/// How a dispatcher is, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    pub pid: u32,
    pub drawn: Timestamp,
    pub last_poll: Option<Timestamp>,
    pub last_accepted: Option<Timestamp>,
    pub relay: RelayPicture,
}

/// `up`; `paused` after trouble, until then; `stopped` by an operator, or because no dispatcher runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayPicture {
    pub state: String,
    pub until: Option<Timestamp>,
    pub reason: Option<String>,
}

impl Picture {
    /// Replaces the picture in `state_dir` as a whole: a reader sees the old one or the new one.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let fresh = state_dir.join("status.json.new");
        std::fs::write(&fresh, serde_json::to_vec(self)?)?;
        std::fs::rename(fresh, state_dir.join(FILE))
    }

    /// The picture that a dispatcher left in `state_dir`; `None` where there is none that can be read, or an old one.
    pub fn read(state_dir: &Path, now: Timestamp) -> Option<Self> {
        let bytes = std::fs::read(state_dir.join(FILE)).ok()?;
        let picture: Self = serde_json::from_slice(&bytes).ok()?;
        (now.duration_since(picture.drawn).unsigned_abs() < STALE).then_some(picture)
    }

    /// Takes the picture away when the dispatcher ends; one that stays behind is soon too old to count.
    pub fn remove(state_dir: &Path) {
        let _ = std::fs::remove_file(state_dir.join(FILE));
    }

    /// One line for people.
    pub fn sentence(&self) -> String {
        match &self.relay.reason {
            Some(reason) => format!("relay {}: {reason}", self.relay.state),
            None => format!("relay {}", self.relay.state),
        }
    }
}
