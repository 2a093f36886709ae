//! A database server: the connections to it that are idle, how many may be open, and which of them are kept free.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::Database;
use super::dialect::Engine;
use super::error::Failure;
use super::native::Native;
use super::open::CONNECT_TIMEOUT;

/// Connections of each database that only heartbeats and pause flags use: one for each kind, so that a heartbeat that waits
/// for a lock delays no pause flag. Each is used for milliseconds at a time.
const URGENT: usize = 2;
/// The same of each server: twice as many, so that a database whose tables are locked never takes those of another one.
const URGENT_OF_SERVER: usize = 2 * URGENT;
/// The least age of a connection that is closed because a statement was refused on it: at most one is opened again in
/// this time, however many rows are refused.
const REFUSED_AGE: Duration = Duration::from_secs(5);
/// The time in which a connection says goodbye before another is opened in its place.
const GOODBYE: Duration = Duration::from_secs(1);
/// The time after which the closing of a connection is looked at again.
const CLOSING: Duration = Duration::from_millis(5);

/// The number of connections, and the time for which they are used.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections to one server, at least 6. A queue uses half of them at most.
    pub connections: usize,
    /// The greatest age of a connection, give or take a tenth. An older one is closed after use, so that a change which
    /// only new connections see is seen: another server behind a name, rights, settings of a user.
    pub age: Duration,
}

impl Default for Limits {
    /// A busy queue uses 6: one for claims, two for what is claimed, one for settling, two for heartbeat and pause flags.
    /// MariaDB takes 151 in all, PostgreSQL 100.
    fn default() -> Self {
        Self { connections: 16, age: Duration::from_secs(600) }
    }
}

/// A database server, or an SQLite file.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: (Engine, String),
    pub(crate) limits: Limits,
    /// For everything but heartbeats and pause flags.
    work: Arc<Semaphore>,
    urgent: Arc<Semaphore>,
    /// One for each connection that is open.
    slots: Arc<Semaphore>,
    /// Those that were used last stand at the end.
    idle: Mutex<Vec<Idle>>,
    accounts: Mutex<Vec<Weak<Account>>>,
}

/// A database and a user of it.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) database: Database,
    /// A pooler was found before PostgreSQL. It is not looked for again.
    pub(crate) is_pooled: AtomicBool,
    /// A permit for each kind of urgent use. All users of a database share them.
    urgent: Arc<[Arc<Semaphore>; URGENT]>,
    /// The part of each table.
    parts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A use of a connection that waits for no work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgent {
    Heartbeat,
    PauseFlags,
}

/// An open connection.
pub(crate) struct Opened {
    pub(crate) native: Native,
    pub(crate) since: Instant,
    /// The time from which on it is too old.
    pub(crate) until: Instant,
    /// The last field, so that the connection is closed before another takes its place.
    pub(crate) _slot: OwnedSemaphorePermit,
}

struct Idle {
    account: Arc<Account>,
    opened: Opened,
    since: Instant,
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Idle")
    }
}

/// The place that a connection has while it is in use, and to which it goes back.
pub(crate) struct Place {
    server: Arc<Server>,
    account: Arc<Account>,
    /// That of the table or of the database, and that of the server.
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Server {
    pub(crate) fn new(address: (Engine, String), limits: Limits) -> Self {
        Self {
            address,
            limits,
            work: Arc::new(Semaphore::new(limits.connections - URGENT_OF_SERVER)),
            urgent: Arc::new(Semaphore::new(URGENT_OF_SERVER)),
            slots: Arc::new(Semaphore::new(limits.connections)),
            idle: Mutex::default(),
            accounts: Mutex::default(),
        }
    }

    pub(crate) fn account(&self, database: Database) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        accounts.retain(|account| account.strong_count() > 0);
        let known: Vec<_> = accounts.iter().filter_map(Weak::upgrade).collect();
        if let Some(same) = known.iter().find(|account| account.database == database) {
            return Arc::clone(same);
        }
        let urgent = known.iter().find(|account| account.database.url.path() == database.url.path());
        let urgent = urgent.map(|account| Arc::clone(&account.urgent));
        let urgent = urgent.unwrap_or_else(|| Arc::new(std::array::from_fn(|_| Arc::new(Semaphore::new(1)))));
        let account =
            Arc::new(Account { database, is_pooled: AtomicBool::new(false), urgent, parts: Mutex::default() });
        accounts.push(Arc::downgrade(&account));
        account
    }

    /// The connections that a table may use for its work: half of all, less those for heartbeats and pause flags.
    pub(crate) fn part(&self, account: &Account, table: &str) -> Arc<Semaphore> {
        let mut parts = lock(&account.parts);
        parts.retain(|_, part| part.strong_count() > 0);
        if let Some(part) = parts.get(table).and_then(Weak::upgrade) {
            return part;
        }
        let part = Arc::new(Semaphore::new(self.limits.connections / 2 - URGENT));
        parts.insert(table.to_owned(), Arc::downgrade(&part));
        part
    }

    /// A place for work, when there is one; `part` is that of the table.
    pub(crate) async fn place(
        self: &Arc<Self>,
        account: &Arc<Account>,
        part: &Arc<Semaphore>,
    ) -> Result<Place, Failure> {
        let part = permit(part).await?;
        let permits = (part, permit(&self.work).await?);
        Ok(Place { server: Arc::clone(self), account: Arc::clone(account), _permits: permits })
    }

    /// A place for a heartbeat or a pause flag. The database's own permit comes first, so that those of the server are held
    /// by as many of its uses as it may have at a time, and by none that wait.
    pub(crate) async fn urgent_place(
        self: &Arc<Self>,
        account: &Arc<Account>,
        urgent: Urgent,
    ) -> Result<Place, Failure> {
        let own = permit(&account.urgent[urgent as usize]).await?;
        let permits = (own, permit(&self.urgent).await?);
        Ok(Place { server: Arc::clone(self), account: Arc::clone(account), _permits: permits })
    }

    /// Takes the connection of this account that was used last, with the time of that.
    pub(crate) fn take(&self, account: &Arc<Account>) -> Option<(Opened, Instant)> {
        let mut idle = lock(&self.idle);
        let last = idle.iter().rposition(|idle| Arc::ptr_eq(&idle.account, account))?;
        let Idle { opened, since, .. } = idle.remove(last);
        Some((opened, since))
    }

    /// Counts a connection that is about to be opened. Where there are as many as there may be, the one that was idle for
    /// the longest time is closed first. Where none is idle, one is just being closed: each that is in use has a permit,
    /// as the caller has, and there are as many permits as slots.
    pub(crate) async fn slot(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                return slot;
            }
            let longest = {
                let mut idle = lock(&self.idle);
                (!idle.is_empty()).then(|| idle.remove(0))
            };
            match longest {
                Some(idle) => close(idle.opened).await,
                None => tokio::time::sleep(CLOSING).await,
            }
        }
    }
}

impl Place {
    /// Takes a connection back after use.
    pub(crate) fn give_back(&self, mut opened: Opened, was_refused: bool) {
        let now = Instant::now();
        if now >= opened.until || was_refused && now.duration_since(opened.since) >= REFUSED_AGE {
            return retire(opened);
        }
        opened.native.shrink();
        let mut all = lock(&self.server.idle);
        // Those that were not needed for long are closed too.
        all.extract_if(.., |idle| now >= idle.opened.until).for_each(|idle| retire(idle.opened));
        all.push(Idle { account: Arc::clone(&self.account), opened, since: now });
    }

    /// Closes the idle connections of the same database and user. One connection broke: the server was restarted or is
    /// away, and they are as dead.
    pub(crate) fn discard_idle(&self) {
        self.discard_idle_since(Instant::now());
    }

    /// The same, but for those that were used later than this: they worked then.
    pub(crate) fn discard_idle_since(&self, since: Instant) {
        lock(&self.server.idle).retain(|idle| !Arc::ptr_eq(&idle.account, &self.account) || idle.since > since);
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
    timeout(CONNECT_TIMEOUT, Arc::clone(semaphore).acquire_owned())
        .await
        .map_err(|_| {
            Failure::Stalled(format!(
                "our own connections to this server are all in use, and none came free within {} s",
                CONNECT_TIMEOUT.as_secs()
            ))
        })?
        .map_err(|closed| Failure::Broken(closed.to_string()))
}

/// Closes a connection, and says goodbye so that the server counts it no more.
async fn close(opened: Opened) {
    let Opened { native, _slot, .. } = opened;
    // One that is dead is closed without.
    let _ = timeout(GOODBYE, native.close()).await;
}

/// Closes a connection while others go on.
pub(super) fn retire(opened: Opened) {
    // Outside a runtime it is closed without a goodbye.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(close(opened));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
