//! The tables: finds, claims, loads and settles rows. All SQL on the producers' tables and on our records is below here.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::mail::{ColumnLimits, Columns, Fingerprint, MailId, RecordId};
use crate::outcome::{History, Reason, RecipientRecord, State, Verdict};

/// One `[[queue]]` of the configuration, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: Arc<str>,
    pub database: Database,
    /// An identifier, `[A-Za-z0-9_]+`, in PostgreSQL optionally `schema.table`.
    pub table: String,
}

/// Where a database is and who we are there. `Debug` shows no password.
#[derive(Clone)]
pub struct Database {
    /// Without the password.
    pub url: url::Url,
    pub password: Option<Password>,
}

#[derive(Clone)]
pub enum Password {
    /// Read whenever a connection is made.
    File(PathBuf),
    Value(String),
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.url)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached, or the connection broke: try again later.
    #[error("database of queue {queue} is out of reach: {what}")]
    Unreachable { queue: Arc<str>, what: String },
    /// Our tables are missing or older than this program.
    #[error("queue {queue}: {what}; run `mailqueue migrate`")]
    NotMigrated { queue: Arc<str>, what: String },
    /// The server refused a statement: rights, a missing column, a lock that did not come free.
    #[error("database of queue {queue}: {what}")]
    Refused { queue: Arc<str>, what: String },
}

/// Names this dispatcher in the database; durable, from `state_dir`.
pub type DispatcherId = String;

/// The right to handle one row, from [`Queue::claim`] until [`Queue::settle`]. Made only here; settling consumes it.
#[must_use = "a claim that is dropped stays claimed until the dispatcher starts anew"]
#[derive(Debug)]
pub struct Claim {
    id: MailId,
    record: RecordId,
    created: Timestamp,
    /// From an earlier attempt.
    fingerprint: Option<Fingerprint>,
    history: History,
}

impl Claim {
    pub fn id(&self) -> &MailId {
        &self.id
    }

    pub fn record(&self) -> &RecordId {
        &self.record
    }

    /// When the record was made.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    pub fn history(&self) -> &History {
        &self.history
    }
}

/// A row with its content.
#[derive(Debug)]
pub struct Row {
    pub claim: Claim,
    pub columns: Columns,
    pub fingerprint: Fingerprint,
}

/// What settling a claim came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As the verdict wanted. Row and record are gone, or the record says it.
    Done,
    /// The row was gone or had another content; the record is dropped, nothing else was touched.
    RowGone,
    /// Another dispatcher has the claim. Acceptances were recorded all the same; nothing else was.
    ClaimLost,
}

/// One queue: a producers' table and our records beside it.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
}
