//! The picture that a running dispatcher gives of itself: plain data, and the trait through which observers ask for it.
//!
//! [`crate::dispatch`] fills it and [`crate::observe`] shows it. Neither imports the other.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::mail::{Capabilities, Mail, MailId};
use crate::outcome::{Reason, State};

/// A lane without progress for this long counts as stalled. Longer than any step of a loop takes: a database statement is
/// given up after 60 s.
pub const STALLED: Duration = Duration::from_secs(300);

/// Rows that a [`FailureReport`] names one by one; further ones are counted only, so that its size is bounded.
pub const LONGEST_REPORT: usize = 200;

/// A running dispatcher, as observers see it.
pub trait Observed: Clone + Send + Sync + 'static {
    /// Returns the current picture. Reads memory only: no database, no file.
    fn sample(&self) -> Sample;

    /// Takes the rows that failed or became unreadable since the last call.
    fn take_failures(&self) -> FailureReport;

    /// Tells it that our own limit of open files was reached. It then uses fewer connections, so that files come free.
    fn out_of_files(&self);

    /// Offers a mail of our own that has no row. Texts of an error are redacted as the log is.
    fn send_notice(&self, mail: &Mail) -> impl Future<Output = Result<(), SendError>> + Send;
}

/// A dispatcher at one moment. Texts are redacted as the log is.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub lanes: Vec<LaneSample>,
    pub relay: RelayView,
    /// The form of pipelining in use (`full`, `commands` or `off`) and its reason; `None` before the first connection.
    pub pipelining: Option<(&'static str, String)>,
    /// The smarthost's last announcement; `None` before the first connection.
    pub capabilities: Option<Capabilities>,
    pub last_poll: Option<Timestamp>,
    pub last_accepted: Option<Timestamp>,
    /// Entries of the ledger that are not settled yet.
    pub ledger_open: u64,
    /// Memory of rows under way, as the budget counts it.
    pub in_flight_bytes: u64,
    pub tally: Tally,
}

/// A queue's lane.
#[derive(Clone, Debug)]
pub struct LaneSample {
    pub name: Arc<str>,
    pub liveness: LaneLiveness,
    /// The last words of its database, while that is out of reach or refuses something.
    pub database: Option<String>,
    /// Rows of the queue are in the hands of this dispatcher.
    pub in_hand: bool,
    /// The end of the last attempt to send a mail of the queue.
    pub attempted: Option<Instant>,
    /// The thing that keeps the next mail of the queue from being sent, should none be sent.
    pub waits_for: Wait,
}

/// The things that can keep mails from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// The queue's part of `max_in_flight_bytes` is used up.
    Memory,
    /// The smarthost takes no mail, or does not answer.
    Relay,
    /// `relay.rate` lets no more through.
    Rate,
    /// The queue's database does not answer, or refuses something.
    Database,
    /// Our own limit of open files is reached.
    Files,
}

impl Wait {
    pub const ALL: [Self; 5] = [Self::Memory, Self::Relay, Self::Rate, Self::Database, Self::Files];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Relay => "relay",
            Self::Rate => "rate",
            Self::Database => "database",
            Self::Files => "files",
        }
    }
}

/// Signs of life of a lane's loops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneLiveness {
    /// Time since the last step of the slower loop.
    pub stalled_for: Duration,
    /// The lane has reached its database once, or has found it out of reach.
    pub started: bool,
}

/// The relay at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RelayView {
    pub state: RelayState,
    /// Connections that may be in use: fewer than configured where the smarthost takes no more, or throttles.
    pub cap: usize,
    /// The reason for fewer connections where it is our own limit of open files, with what to do.
    pub cap_reason: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum RelayState {
    #[default]
    Up,
    /// In trouble that is no single mail's; tried again at `until`.
    Down { until: Instant, reason: String },
    /// Paused by an operator.
    Paused,
}

/// Rows since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub claimed: u64,
    pub delivered: u64,
    pub deferred: u64,
    pub failed: u64,
    pub unreadable: u64,
    pub held: u64,
    /// Delivered, and held because the database does not delete them.
    pub not_deleted: u64,
}

impl Tally {
    /// Returns the number of rows that a pass left in the table.
    pub fn left_over(&self) -> u64 {
        self.deferred + self.failed + self.unreadable + self.held + self.not_deleted
    }

    /// Returns the rows that came on top of `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            claimed: self.claimed.saturating_sub(before.claimed),
            delivered: self.delivered.saturating_sub(before.delivered),
            deferred: self.deferred.saturating_sub(before.deferred),
            failed: self.failed.saturating_sub(before.failed),
            unreadable: self.unreadable.saturating_sub(before.unreadable),
            held: self.held.saturating_sub(before.held),
            not_deleted: self.not_deleted.saturating_sub(before.not_deleted),
        }
    }
}

/// Rows that failed or became unreadable. Holds at most [`LONGEST_REPORT`] rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureReport {
    pub rows: Vec<FailedRow>,
    /// The number of further rows.
    pub omitted: u64,
}

/// A row that failed, is unreadable, or was delivered and not deleted (`held`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRow {
    pub id: MailId,
    pub state: State,
    pub reason: Reason,
    /// The last reply, or the fault of the row, redacted as the log is.
    pub detail: Option<String>,
}

impl FailureReport {
    /// Returns the number of all rows, including omitted ones.
    pub fn len(&self) -> u64 {
        self.rows.len() as u64 + self.omitted
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a row; beyond [`LONGEST_REPORT`] it is counted only.
    pub fn push(&mut self, row: FailedRow) {
        if self.rows.len() < LONGEST_REPORT {
            self.rows.push(row);
        } else {
            self.omitted += 1;
        }
    }

    /// Adds a newer report; rows beyond [`LONGEST_REPORT`] are counted only.
    pub fn append(&mut self, newer: Self) {
        self.omitted += newer.omitted;
        newer.rows.into_iter().for_each(|row| self.push(row));
    }
}

/// The failure of a mail of our own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The mail can be offered again later.
    #[error("{0}")]
    Temporary(String),
    /// The mail was refused, or its outcome is unknown: it is not offered again.
    #[error("{0}")]
    Permanent(String),
}

impl Sample {
    /// Returns true once every lane has reached its database, or found it out of reach.
    pub fn started(&self) -> bool {
        self.lanes.iter().all(|lane| lane.liveness.started)
    }

    /// Returns true while every loop makes progress.
    pub fn alive(&self) -> bool {
        self.lanes.iter().all(|lane| lane.liveness.stalled_for < STALLED)
    }

    /// Lists the troubles that keep mail from flowing, a sentence each. An operator's pause is none.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for LaneSample { name, liveness, database, .. } in &self.lanes {
            if liveness.stalled_for >= STALLED {
                troubles.push(format!("queue {name}: no progress for {} s", liveness.stalled_for.as_secs()));
            }
            if let Some(error) = database {
                // The error names the queue.
                troubles.push(error.clone());
            }
        }
        if let RelayState::Down { reason, .. } = &self.relay.state {
            troubles.push(format!("relay down: {reason}"));
        }
        troubles
    }
}
