//! What operators see of a queue and ask of it. No I/O.

use jiff::Timestamp;

use super::DispatcherId;
use super::oversize::Oversize;
use crate::mail::{Columns, Fingerprint, MailId, RecordId};
use crate::outcome::{History, Reason, State};

/// Counts for `status`. `waiting` is exact to 10,000, then an estimate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub waiting: u64,
    pub waiting_is_estimate: bool,
    /// By state, without `Waiting`.
    pub records: Vec<(State, u64)>,
    /// How long ago the oldest row that is due now became due.
    pub oldest_due_seconds: Option<u64>,
}

/// The emergency stop, as it stands in the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    pub queue: bool,
    pub relay: bool,
}

/// Which rows `list` shows. Conditions on decoded content (recipient, subject) are the caller's.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: all.
    pub states: Vec<State>,
    pub reason: Option<Reason>,
    /// First seen before this moment; a waiting row has none and does not match.
    pub seen_before: Option<Timestamp>,
}

/// A row as `list` and `show` see it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub id: MailId,
    pub state: State,
    pub reason: Option<Reason>,
    /// In words, for `unreadable` and the like.
    pub detail: Option<String>,
    /// `None` while waiting.
    pub record: Option<RecordId>,
    pub fingerprint: Option<Fingerprint>,
    /// Of the content in the table, where that was read; `fingerprint` is of what the record was made for.
    pub content: Option<Fingerprint>,
    pub message_id: Option<String>,
    pub first_seen: Option<Timestamp>,
    pub next_attempt: Option<Timestamp>,
    pub owner: Option<DispatcherId>,
    pub last_reply: Option<String>,
    pub history: History,
}

/// The content of a row, as far as it is read.
#[derive(Clone, Debug)]
pub enum Content {
    Read(Columns),
    /// A column is too long: nothing was loaded.
    TooLarge(Oversize),
}

impl Content {
    /// Bytes of all columns, as they are stored.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read(columns) => columns.len() as u64,
            Self::TooLarge(oversize) => oversize.row,
        }
    }

    /// `None` where the row is too large to be read.
    pub fn into_columns(self) -> Option<Columns> {
        match self {
            Self::Read(columns) => Some(columns),
            Self::TooLarge(_) => None,
        }
    }
}

/// A row that an operator means, as it was when it was selected.
#[derive(Clone, Debug)]
pub struct Selected {
    pub mid: i64,
    /// `None`: whatever stands under the number.
    pub(super) seen: Option<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub state: State,
    pub reason: Option<Reason>,
    pub record: Option<RecordId>,
    /// Of the content in the table.
    pub content: Fingerprint,
}

impl From<i64> for Selected {
    fn from(mid: i64) -> Self {
        Self { mid, seen: None }
    }
}

/// What an operator wants of rows.
#[derive(Clone, Debug)]
pub enum Action {
    /// Due now; acceptances are kept.
    Retry,
    Hold,
    /// Back from `held`, due now; acceptances are kept.
    Release,
    /// Row and record are deleted.
    Delete,
}

/// What became of an operator's action for one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There is no such row.
    NotFound,
    /// A dispatcher is at work on it, or it is not in a state in which the action makes sense; the text says which.
    Rejected(String),
}

/// One finding of `check`.
#[derive(Clone, Debug)]
pub struct Finding {
    pub level: Level,
    /// What was looked at, in a few words.
    pub what: String,
    /// What was found, and on a warning or failure what to do.
    pub found: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    Warning,
    Failed,
}
