//! The handle to a queue: its settings, its connections, and what is remembered of it from call to call.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use tokio::sync::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::db::connection::{Connection, Value};
use super::db::dialect::{Dialect, Engine};
use super::db::error::{Failure, Retries};
use super::db::open::address;
use super::db::pool::{Pool, Pools};
use super::db::server::Urgent;
use super::error::Error;
use super::schema::Schema;
use super::settings::Settings;
use super::token::{ClaimToken, Tokens};
use crate::mail::RecordId;

/// Names this dispatcher in the database; durable, from `state_dir`.
pub type DispatcherId = String;

/// One queue: a producers' table and our records beside it. Cheap to clone.
///
/// Every function opens a connection when there is none, and returns [`Error::Unreachable`] when there can be none.
#[derive(Clone, Debug)]
pub struct Queue {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    settings: Settings,
    pub(super) dispatcher: DispatcherId,
    pub(super) pool: Pool,
    schema: RwLock<Option<Arc<Schema>>>,
    pub(super) tokens: Tokens,
    pub(super) unconfirmed: Mutex<UnconfirmedClaims>,
    scan_start: StdMutex<Option<ScanStart>>,
    pub(super) cleanup: Mutex<CleanupPosition>,
    /// Rows whose DELETE was refused one by one since the last that succeeded.
    pub(super) refused_deletes: AtomicU32,
    /// Counts the claims that this process holds.
    pub(super) claims: TaskTracker,
}

/// Acts of claiming that were begun, each with its token and the records that it may have won.
pub(super) type UnconfirmedClaims = Vec<(ClaimToken, Vec<(i64, RecordId)>)>;

/// The numbers up to `end`, which all had records when they were last looked at. Rows that come to stand among them, as
/// late commits do, are found by the next look at the head, at `again`; all others at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanStart {
    pub(super) end: i64,
    pub(super) again: Instant,
}

/// The numbers behind which the walks over the records go on at the next pass.
#[derive(Debug, Default)]
pub(super) struct CleanupPosition {
    pub(super) rowless: Option<i64>,
    pub(super) changed: Option<i64>,
}

impl Queue {
    /// A queue that shares connections with none. Opens nothing yet. `dispatcher` is empty for commands that claim nothing.
    pub fn new(settings: Settings, dispatcher: DispatcherId) -> Result<Self, Error> {
        Self::sharing(settings, dispatcher, &Pools::default())
    }

    /// The same, with the connections of `pools`. All queues of a process with one dispatcher share them: so each knows the
    /// claims of the others.
    pub fn sharing(settings: Settings, dispatcher: DispatcherId, pools: &Pools) -> Result<Self, Error> {
        let refused = |what| Error::Refused { queue: Arc::clone(&settings.name), what };
        let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !settings.table.split('.').all(part) || settings.table.split('.').count() > 2 {
            return Err(refused(format!("`{}` is no table name", settings.table.escape_debug())));
        }
        let pool = pools.pool(settings.database.clone(), &settings.table).map_err(refused)?;
        let claims = TaskTracker::new();
        claims.close();
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                dispatcher,
                pool,
                schema: RwLock::default(),
                tokens: pools.tokens.clone(),
                unconfirmed: Mutex::default(),
                scan_start: StdMutex::default(),
                cleanup: Mutex::default(),
                refused_deletes: AtomicU32::new(0),
                claims,
            }),
        })
    }

    /// Returns true if settling reads each row once more, because the database cannot compare contents.
    pub fn reads_to_settle(&self) -> bool {
        self.dialect().fingerprint.is_none()
    }

    pub fn name(&self) -> &Arc<str> {
        &self.inner.settings.name
    }

    /// Returns true if the other has the same settings and dispatcher, so that either can do the other's work.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.settings() == other.settings() && self.inner.dispatcher == other.inner.dispatcher
    }

    /// Returns true if the other has the same table, as far as the settings tell: one database can have several names.
    pub fn has_same_table_as(&self, other: &Self) -> bool {
        fn place(queue: &Queue) -> (Engine, String, &str, &str) {
            let url = &queue.settings().database.url;
            (queue.engine(), address(url), url.path(), queue.unqualified_table())
        }
        place(self) == place(other)
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(super) fn dialect(&self) -> &'static Dialect {
        self.inner.pool.dialect()
    }

    pub(super) fn engine(&self) -> Engine {
        self.dialect().engine
    }

    /// The producers' table as our records name it. `public` is where PostgreSQL looks unasked.
    pub(super) fn key(&self) -> Value<'_> {
        self.unqualified_table().into()
    }

    /// Returns the table without the schema in which PostgreSQL looks unasked.
    pub fn unqualified_table(&self) -> &str {
        let table = &self.settings().table;
        table.strip_prefix("public.").unwrap_or(table)
    }

    /// This dispatcher as our records name it.
    pub(super) fn owner(&self) -> Value<'_> {
        self.inner.dispatcher.as_str().into()
    }

    pub(super) async fn connection(&self) -> Result<Connection, Failure> {
        self.inner.pool.connection().await
    }

    /// A connection that waits for no work of this queue or of another one.
    pub(super) async fn urgent_connection(&self, urgent: Urgent) -> Result<Connection, Failure> {
        self.inner.pool.urgent_connection(urgent).await
    }

    /// Runs an operation, and repeats it as long as [`Retries::next_pause`] allows. Everything that is repeated is harmless
    /// to repeat, even where the first try did all of its work and only its answer was lost.
    pub(super) async fn retrying<T, Once>(&self, mut operation: impl FnMut() -> Once) -> Result<T, Error>
    where
        Once: Future<Output = Result<T, Failure>>,
    {
        let done = self.retrying_while(Retries::default(), &mut operation).await;
        done.map_err(|failure| failure.into_error(self.name()))
    }

    /// The same for a part of a group: an operation that waited in vain for a lock is not repeated, because a smaller part
    /// may not need that lock.
    pub(super) async fn retrying_part<T, Once>(&self, mut operation: impl FnMut() -> Once) -> Result<T, Failure>
    where
        Once: Future<Output = Result<T, Failure>>,
    {
        self.retrying_while(Retries::with_one_lock_wait(), &mut operation).await
    }

    async fn retrying_while<T, Once>(
        &self,
        mut retries: Retries,
        operation: &mut impl FnMut() -> Once,
    ) -> Result<T, Failure>
    where
        Once: Future<Output = Result<T, Failure>>,
    {
        loop {
            let failure = match operation().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            if let Failure::Missing(_) = failure {
                self.forget_schema().await;
            }
            match retries.next_pause(&failure) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(failure),
            }
        }
    }

    /// The table's definition, from memory where that is fresh.
    pub(super) async fn schema(&self, connection: &mut Connection) -> Result<Arc<Schema>, Failure> {
        let known = self.inner.schema.read().await.clone();
        if let Some(schema) = known.filter(|schema| schema.is_fresh()) {
            return Ok(schema);
        }
        let schema = Schema::read(connection, self.dialect(), &self.settings().table).await;
        if schema.is_err() {
            // A database shows only what there is a right to see, as it was granted when the connection was opened.
            connection.mark_refused();
        }
        let schema = Arc::new(schema?);
        *self.inner.schema.write().await = Some(Arc::clone(&schema));
        Ok(schema)
    }

    pub(super) async fn forget_schema(&self) {
        *self.inner.schema.write().await = None;
    }

    pub(super) fn scan_start(&self) -> Option<ScanStart> {
        *self.inner.scan_start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With `None`, the next search begins at the beginning, as it must where records of rows that wait were dropped.
    pub(super) fn set_scan_start(&self, start: Option<ScanStart>) {
        *self.inner.scan_start.lock().unwrap_or_else(PoisonError::into_inner) = start;
    }
}
