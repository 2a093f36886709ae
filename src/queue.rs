//! The tables: finds, claims, loads and settles rows. All SQL on the producers' tables and on our records is below here.

mod apply;
mod check;
mod claim;
mod claiming;
mod cleanup;
mod db;
mod finding;
mod leases;
mod listing;
mod migrate;
mod oversize;
mod records;
mod rights;
mod schema;
mod settings;
mod settle;
mod view;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{Mutex, RwLock};
use tokio_util::task::TaskTracker;

pub use self::check::clock_ahead;
pub use self::claim::{Claim, Found, Recovered, Row, Settled, Settlement};
pub use self::db::error::Error;
pub use self::oversize::{Oversize, Unread};
pub use self::settings::{Database, Password, Settings};
pub use self::view::{Action, Content, Counts, Filter, Finding, Level, Listed, Outcome, Paused, Selected};
use crate::mail::{ColumnLimits, Columns, Fingerprint, MailId, RecordId};
use crate::outcome::RecipientRecord;

/// Names this dispatcher in the database; durable, from `state_dir`.
pub type DispatcherId = String;

/// One queue: a producers' table and our records beside it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    dispatcher: DispatcherId,
    connections: db::pool::Connections,
    schema: RwLock<Option<Arc<schema::Schema>>>,
    doubts: Mutex<Doubts>,
    head: std::sync::Mutex<Option<finding::Head>>,
    sweep: Mutex<cleanup::Position>,
    /// Claims that are in somebody's hands.
    claims: TaskTracker,
}

/// Acts of claiming that were begun, each with its token and the records that it may have won.
type Doubts = Vec<(Arc<str>, Vec<(i64, RecordId)>)>;

impl Inner {
    fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    fn dialect(&self) -> &'static db::dialect::Dialect {
        self.connections.dialect
    }

    /// The producers' table as our records name it. `public` is where PostgreSQL looks unasked.
    fn key(&self) -> db::connection::Value<'_> {
        self.settings.table.strip_prefix("public.").unwrap_or(&self.settings.table).into()
    }

    fn owner(&self) -> db::connection::Value<'_> {
        self.dispatcher.as_str().into()
    }
}

/// Every function opens a connection when there is none, and answers `Error::Unreachable` when there can be none.
impl Queue {
    /// Opens nothing yet. `dispatcher` is empty for commands that claim nothing.
    pub fn new(settings: Settings, dispatcher: DispatcherId) -> Result<Self, Error> {
        let refused = |what| Error::Refused { queue: Arc::clone(&settings.name), what };
        let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !settings.table.split('.').all(part) || settings.table.split('.').count() > 2 {
            return Err(refused(format!("`{}` is no table name", settings.table.escape_debug())));
        }
        let connections = db::pool::Connections::new(settings.database.clone()).map_err(refused)?;
        let (schema, doubts, sweep) = (RwLock::default(), Mutex::default(), Mutex::default());
        let claims = TaskTracker::new();
        claims.close();
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                dispatcher,
                connections,
                schema,
                doubts,
                head: Default::default(),
                sweep,
                claims,
            }),
        })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.inner.settings.name
    }

    // --- what the dispatcher does ---

    /// How many claims of this queue are in anybody's hands in this process.
    pub fn claims(&self) -> usize {
        self.inner.claims.len()
    }

    /// Ends when there are none.
    pub async fn all_settled(&self) {
        self.inner.claims.wait().await;
    }

    /// Rows over `cursor` that no record stands for, ascending by number. `i64::MIN` begins anew, but where very many
    /// records stand at the head of the table not every time at the very beginning.
    pub async fn find(&self, cursor: i64, limit: u32) -> Result<Vec<Found>, Error> {
        self.inner.find(cursor, limit).await
    }

    /// Claims waiting rows; those that somebody else was quicker with are left out.
    pub async fn claim(&self, found: &[Found], now: Timestamp) -> Result<Vec<Claim>, Error> {
        self.inner.claim(found, now).await
    }

    /// Claims deferred rows whose next attempt is due, the longest due first.
    pub async fn claim_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Claim>, Error> {
        self.inner.claim_due(now, limit).await
    }

    /// When the next deferred row becomes due.
    pub async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        self.inner.next_due().await
    }

    /// Loads the content. Rows that are gone, claims whose record was made for another content, and rows that have grown
    /// too large since they were claimed, are settled here: their record is dropped, and the row (if any) is waiting again.
    pub async fn load(&self, claims: Vec<Claim>) -> Result<Vec<Row>, (Error, Vec<Claim>)> {
        self.inner.load(claims).await
    }

    /// Returns true for a claim whose row has a column that decodes to more than twice [`Settings::max_size`]. It goes to
    /// [`Queue::measure`], because [`Queue::load`] does not load it.
    pub fn is_too_large(&self, claim: &Claim) -> bool {
        self.inner.is_too_large(claim)
    }

    /// Measures rows that are too large to be read; nothing of their content is loaded. Claims whose row is gone, changed
    /// or small by now are settled here, as in [`Queue::load`].
    pub async fn measure(&self, claims: Vec<Claim>) -> Result<Vec<Unread>, (Error, Vec<Claim>)> {
        self.inner.measure(claims).await
    }

    /// The lengths in bytes at which the database cuts a value off silently; `u64::MAX` for a column that it does not
    /// cut, as PostgreSQL and SQLite never do. Read again every five minutes.
    pub async fn limits(&self) -> Result<ColumnLimits, Error> {
        self.inner.limits().await
    }

    /// The longest value that each column holds, in bytes of base64; `u64::MAX` for a column without a limit.
    pub async fn column_sizes(&self) -> Result<ColumnLimits, Error> {
        self.inner.column_sizes().await
    }

    /// Marks rows `sending` before any of their dots may go out, with the fingerprint of what will be sent. Answers for
    /// each row, in order, whether the claim is still ours; one that is not must not be sent.
    pub async fn sending(&self, rows: &[(&Claim, Fingerprint)]) -> Result<Vec<bool>, Error> {
        self.inner.sending(rows).await
    }

    /// Carries out verdicts, in one transaction for the group; the answers are in the same order. On an error nothing
    /// is known to have happened, everything comes back, and the caller tries again: doing it twice is harmless.
    pub async fn settle(&self, group: Vec<Settlement>) -> Result<Vec<(MailId, Settled)>, (Error, Vec<Settlement>)> {
        self.inner.settle(group).await
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
        self.inner.replay(mid, record, fingerprint, accepted, complete).await
    }

    /// Counts our heartbeat up.
    pub async fn beat(&self) -> Result<(), Error> {
        self.inner.beat().await
    }

    /// Takes back what this dispatcher had claimed before it was started anew.
    pub async fn recover_own(&self, now: Timestamp) -> Result<Recovered, Error> {
        self.inner.recover_own(now).await
    }

    /// The other dispatchers that hold claims, with their heartbeat counters.
    pub async fn others(&self) -> Result<Vec<(DispatcherId, i64)>, Error> {
        self.inner.others().await
    }

    /// Takes over the claims of a dispatcher whose counter still stands at `counter`.
    pub async fn take_over(&self, other: &DispatcherId, counter: i64, now: Timestamp) -> Result<Recovered, Error> {
        self.inner.take_over(other, counter, now).await
    }

    /// Drops records without a row and records whose row has another content; answers how many.
    pub async fn sweep(&self) -> Result<u64, Error> {
        self.inner.sweep().await
    }

    /// The emergency stop.
    pub async fn paused(&self) -> Result<Paused, Error> {
        self.inner.paused().await
    }

    /// Expiry does not run while the relay is out of reach, for which no mail can be blamed: moves `first_deferred` of
    /// all rows that wait later by as long as that has been so up to now, less what any dispatcher has accounted for
    /// before. To be called with zero while the relay is up, so that nobody excuses that time.
    pub async fn excuse(&self, outage: std::time::Duration) -> Result<(), Error> {
        self.inner.excuse(outage).await
    }

    /// Whether the table gives numbers out again at once (SQLite without AUTOINCREMENT), so that number and content of
    /// a mail sent earlier do not prove a restored dump.
    pub async fn reuses_numbers(&self) -> Result<bool, Error> {
        self.inner.reuses_numbers().await
    }

    // --- what operators do ---

    /// Creates our tables, and the producers' table too if asked, where they do not exist. Answers in sentences.
    pub async fn migrate(&self, producers: bool) -> Result<Vec<String>, Error> {
        self.inner.migrate(producers).await
    }

    /// Whether database, rights and schema are fit for the job. The first finding that fails may end the list.
    pub async fn check(&self) -> Vec<Finding> {
        self.inner.check().await
    }

    /// The longest statement or row that the server takes or gives; `None` where there is no such limit.
    pub async fn longest_packet(&self) -> Result<Option<u64>, Error> {
        self.inner.longest_packet().await
    }

    /// Whether the table has a column for `mparams`.
    pub async fn has_params(&self) -> Result<bool, Error> {
        self.inner.has_params().await
    }

    /// Inserts a row as a producer would, and answers its number.
    pub async fn insert(&self, columns: &Columns) -> Result<i64, Error> {
        self.inner.insert(columns).await
    }

    /// Rows over `cursor` that match, ascending by number, at most `limit`.
    pub async fn list(&self, filter: &Filter, cursor: i64, limit: u32) -> Result<Vec<Listed>, Error> {
        self.inner.list(filter, cursor, limit).await
    }

    /// One row with its record, and with its content unless that is too large to be read.
    pub async fn look(&self, mid: i64) -> Result<Option<(Listed, Content)>, Error> {
        self.inner.look(mid).await
    }

    pub async fn counts(&self, now: Timestamp) -> Result<Counts, Error> {
        self.inner.counts(now).await
    }

    /// Holds on to how these rows are now, so that [`Queue::apply`] touches none that is another by then; rows that are
    /// gone are left out.
    pub async fn select(&self, rows: &[Listed]) -> Result<Vec<Selected>, Error> {
        self.inner.select(rows).await
    }

    /// Carries out an operator's action, row by row, in groups. Claimed and sending rows are left alone, and so are those
    /// that have changed since they were selected.
    pub async fn apply(
        &self,
        action: &Action,
        rows: &[Selected],
        now: Timestamp,
    ) -> Result<Vec<(i64, Outcome)>, Error> {
        self.inner.apply(action, rows, now).await
    }

    /// Sets or lifts the emergency stop of this queue, or of the relay for every dispatcher of this database.
    pub async fn pause(&self, relay: bool, stop: bool) -> Result<(), Error> {
        self.inner.pause(relay, stop).await
    }
}
