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

/// What one pass over the own claims, or over those of a dispatcher that shows no signs of life, found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Claims that had not come to a dot: given back to where they were before.
    pub released: usize,
    /// Rows in `sending`: nobody knows whether their dot was answered. They are claimed by us now.
    pub unknown: Vec<Claim>,
}

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
    pub message_id: Option<String>,
    pub first_seen: Option<Timestamp>,
    pub next_attempt: Option<Timestamp>,
    pub owner: Option<DispatcherId>,
    pub last_reply: Option<String>,
    pub history: History,
}

/// What an operator wants of rows.
#[derive(Clone, Debug)]
pub enum Wish {
    /// Due now; acceptances are kept.
    Retry,
    Hold,
    /// Back from `held`, due now; acceptances are kept.
    Release,
    /// Row and record are deleted.
    Delete,
}

/// What became of an operator's wish for one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    Done,
    /// There is no such row.
    NoSuchRow,
    /// A dispatcher is at work on it, or it is not in a state in which the wish makes sense; the text says which.
    NotNow(String),
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

/// One queue: a producers' table and our records beside it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    dispatcher: DispatcherId,
}

/// Every function opens a connection when there is none, and answers `Error::Unreachable` when there can be none.
impl Queue {
    /// Opens nothing yet. `dispatcher` is empty for commands that claim nothing.
    pub fn new(settings: Settings, dispatcher: DispatcherId) -> Result<Self, Error> {
        Ok(Self { inner: Arc::new(Inner { settings, dispatcher }) })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.inner.settings.name
    }

    // --- what the dispatcher does ---

    /// Ends when no claim of this queue is in anybody's hands in this process.
    pub async fn all_settled(&self) {
        todo!()
    }

    /// Numbers of rows over `cursor` that no record stands for, ascending. `i64::MIN` begins anew.
    pub async fn find(&self, cursor: i64, limit: u32) -> Result<Vec<i64>, Error> {
        todo!()
    }

    /// Claims waiting rows; those that somebody else was quicker with are left out. `records` gives an unused id a row.
    pub async fn claim(&self, mids: &[i64], now: Timestamp) -> Result<Vec<Claim>, Error> {
        todo!()
    }

    /// Claims deferred rows whose next attempt is due, the longest due first.
    pub async fn claim_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Claim>, Error> {
        todo!()
    }

    /// When the next deferred row becomes due.
    pub async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        todo!()
    }

    /// Bytes of the columns of each claimed row; `None` where the row is gone.
    pub async fn sizes(&self, claims: &[Claim]) -> Result<Vec<Option<u64>>, Error> {
        todo!()
    }

    /// Loads the content. Rows that are gone, and claims whose record was made for another content, are settled here:
    /// their record is dropped, and the row (if any) is waiting again.
    pub async fn load(&self, claims: Vec<Claim>) -> Result<Vec<Row>, (Error, Vec<Claim>)> {
        todo!()
    }

    /// What the schema says of the columns' sizes; read once a connection, then remembered.
    pub async fn limits(&self) -> Result<ColumnLimits, Error> {
        todo!()
    }

    /// Marks rows `sending` before any of their dots may go out, with fingerprint and Message-ID. Answers for each row,
    /// in order, whether the claim is still ours; one that is not must not be sent.
    pub async fn sending(&self, rows: &[(&Claim, Fingerprint, &str)]) -> Result<Vec<bool>, Error> {
        todo!()
    }

    /// Carries out verdicts, in one transaction for the group; the answers are in the same order. On an error nothing
    /// is known to have happened, everything comes back, and the caller tries again: doing it twice is harmless.
    pub async fn settle(&self, group: Vec<Settlement>) -> Result<Vec<(MailId, Settled)>, (Error, Vec<Settlement>)> {
        todo!()
    }

    /// Records acceptances that the ledger knows and no claim is held for (replay at start). `complete`: they were the
    /// last that the row was waiting for, so row and record are deleted; otherwise the recipients are marked and the row
    /// is due now. Acts only where that very record still stands. True: it did.
    pub async fn replay(
        &self,
        mid: i64,
        record: &RecordId,
        fingerprint: Fingerprint,
        accepted: &[RecipientRecord],
        complete: bool,
    ) -> Result<bool, Error> {
        todo!()
    }

    /// Counts our heartbeat up.
    pub async fn beat(&self) -> Result<(), Error> {
        todo!()
    }

    /// Takes back what this dispatcher had claimed before it was started anew.
    pub async fn recover_own(&self, now: Timestamp) -> Result<Recovered, Error> {
        todo!()
    }

    /// The other dispatchers that hold claims, with their heartbeat counters.
    pub async fn others(&self) -> Result<Vec<(DispatcherId, i64)>, Error> {
        todo!()
    }

    /// Takes over the claims of a dispatcher whose counter still stands at `counter`.
    pub async fn take_over(&self, other: &DispatcherId, counter: i64, now: Timestamp) -> Result<Recovered, Error> {
        todo!()
    }

    /// Drops records without a row and records whose row has another content; answers how many.
    pub async fn sweep(&self) -> Result<u64, Error> {
        todo!()
    }

    /// The emergency stop.
    pub async fn paused(&self) -> Result<Paused, Error> {
        todo!()
    }

    /// Moves `first_deferred` of all deferred rows later by as long as the relay was out of reach, for which no mail
    /// can be blamed: expiry does not run meanwhile.
    pub async fn excuse(&self, pause: std::time::Duration) -> Result<(), Error> {
        todo!()
    }

    /// Whether the table gives numbers out again at once (SQLite without AUTOINCREMENT), so that number and content of
    /// a mail sent earlier do not prove a restored dump.
    pub async fn reuses_numbers(&self) -> Result<bool, Error> {
        todo!()
    }

    // --- what operators do ---

    /// Creates our tables, and the producers' table too if asked, where they do not exist. Answers in sentences.
    pub async fn migrate(&self, producers: bool) -> Result<Vec<String>, Error> {
        todo!()
    }

    /// Whether database, rights and schema are fit for the job. The first finding that fails may end the list.
    pub async fn check(&self) -> Vec<Finding> {
        todo!()
    }

    /// Inserts a row as a producer would, and answers its number.
    pub async fn insert(&self, columns: &Columns) -> Result<i64, Error> {
        todo!()
    }

    /// Rows over `cursor` that match, ascending by number, at most `limit`.
    pub async fn list(&self, filter: &Filter, cursor: i64, limit: u32) -> Result<Vec<Listed>, Error> {
        todo!()
    }

    /// One row with its record.
    pub async fn look(&self, mid: i64) -> Result<Option<(Listed, Columns)>, Error> {
        todo!()
    }

    pub async fn counts(&self, now: Timestamp) -> Result<Counts, Error> {
        todo!()
    }

    /// Carries out an operator's wish, row by row, in groups. Claimed and sending rows are left alone.
    pub async fn grant(&self, wish: &Wish, mids: &[i64], now: Timestamp) -> Result<Vec<(i64, Granted)>, Error> {
        todo!()
    }

    /// Sets or lifts the emergency stop of this queue, or of the relay for every dispatcher of this database.
    pub async fn pause(&self, relay: bool, stop: bool) -> Result<(), Error> {
        todo!()
    }
}

/// A claim with what shall become of it. The fingerprint is that of the content that was loaded; without it (the row
/// was never loaded) only `Fate::Released` can be carried out.
#[derive(Debug)]
pub struct Settlement {
    pub claim: Claim,
    pub fingerprint: Option<Fingerprint>,
    pub message_id: Option<String>,
    pub verdict: Verdict,
}
