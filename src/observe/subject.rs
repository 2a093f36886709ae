//! What observers see of a running dispatcher. They know it only by this, so that they can be tested without one.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::health;
use crate::mail::{Mail, MailId};
use crate::outcome::{Reason, State};

/// Longer than any step of a loop takes: a database statement is given up after a minute.
pub const STALLED: Duration = Duration::from_secs(300);

/// A running dispatcher.
pub trait Subject: Clone + Send + Sync + 'static {
    /// How it is. Costs nothing: no database, no file.
    fn look(&self) -> Look;

    /// Rows that failed or became unreadable since the last call.
    fn take_news(&self) -> News;

    /// Offers a mail that no row stands behind.
    fn post(&self, mail: &Mail) -> impl Future<Output = Result<(), Undelivered>> + Send;
}

#[derive(Clone, Debug, Default)]
pub struct Look {
    pub lanes: Vec<Lane>,
    pub relay: health::Relay,
    /// How many connections may be in use: less than configured while the smarthost throttles.
    pub connections: usize,
    /// What the smarthost announced last; `None` before the first connection.
    pub carries: Option<Carries>,
    pub last_poll: Option<Timestamp>,
    pub last_accepted: Option<Timestamp>,
    pub ledger_open: u64,
    pub in_flight_bytes: u64,
    pub tally: Tally,
}

/// Which mails the smarthost can carry as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carries {
    /// 8BITMIME (RFC 6152)
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531)
    pub smtputf8: bool,
}

/// A queue's loops.
#[derive(Clone, Debug)]
pub struct Lane {
    pub name: Arc<str>,
    /// How long ago the slower of its loops took a step.
    pub still_for: Duration,
    /// It has been seen to once, with success or without.
    pub started: bool,
    /// What its database said last, while that is out of reach.
    pub database: Option<String>,
}

/// Rows since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub claimed: u64,
    pub delivered: u64,
    pub deferred: u64,
    pub failed: u64,
    pub unreadable: u64,
    pub held: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    pub rows: Vec<Gone>,
    /// Further ones, of which only the number is known.
    pub more: u64,
}

/// A row that failed or is unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    pub id: MailId,
    pub state: State,
    pub reason: Reason,
    /// The last reply, or what is wrong with the row, as a log may show it.
    pub said: Option<String>,
}

/// Why a mail did not go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// It can be tried again.
    NotNow(String),
    /// It was refused for good, or nobody knows what became of it.
    Never(String),
}

impl Look {
    /// Every lane has been seen to once.
    pub fn started(&self) -> bool {
        self.lanes.iter().all(|lane| lane.started)
    }

    /// Every loop makes progress.
    pub fn alive(&self) -> bool {
        self.lanes.iter().all(|lane| lane.still_for < STALLED)
    }

    /// What keeps mail from flowing and is nobody's wish, a sentence each. Empty when all is well.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for Lane { name, still_for, database, .. } in &self.lanes {
            if *still_for >= STALLED {
                troubles.push(format!("queue {name}: no progress for {} s", still_for.as_secs()));
            }
            if let Some(said) = database {
                // The database's words name the queue.
                troubles.push(said.clone());
            }
        }
        if self.relay.state == health::RelayState::Paused {
            troubles.push(format!("relay paused: {}", self.relay.reason.as_deref().unwrap_or("in trouble")));
        }
        troubles
    }
}
