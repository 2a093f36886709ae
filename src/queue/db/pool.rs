//! Connections: made when needed, few, shared, used again while nothing is wrong with them.
//!
//! A process has one [`Pools`]. Queues of one database and user share connections, and all queues of one server together
//! have at most [`Limits::connections`] open. A queue uses half of them at most, so that a table that is locked never takes
//! the last one. Some are kept for heartbeats and pause flags, of which one database never takes the last either.
//!
//! sqlx's own pools are not used: they read the password once, hide why a connection failed behind a time-out, and wait
//! without limit on a stalled connection that is given back.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::dialect::{Dialect, Engine};
use super::error::Failure;
use super::open::{self, CONNECT_TIMEOUT};
use super::server::{Account, Limits, Opened, Place, Server, Urgent, lock, retire};
use super::{Database, mysql, postgres, sqlite};
use crate::queue::token::Tokens;

/// A connection that was idle for longer is asked whether it is still there.
const FRESH: Duration = Duration::from_secs(2);

/// The connections of a process, by server. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    limits: Limits,
    /// The tokens of this process's claims, whichever queue they are of.
    pub(in crate::queue) tokens: Tokens,
    servers: Arc<Mutex<Vec<Weak<Server>>>>,
}

/// One queue's way to its connections.
#[derive(Debug)]
pub(crate) struct Pool {
    dialect: &'static Dialect,
    server: Arc<Server>,
    account: Arc<Account>,
    /// A permit for each connection that this table may use for its work.
    part: Arc<Semaphore>,
}

impl Pools {
    /// Pools with other limits than the default ones.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The connections for a table of a database. Opens nothing yet. The text says why the URL cannot be used.
    pub(crate) fn pool(&self, database: Database, table: &str) -> Result<Pool, String> {
        let dialect = match database.url.scheme() {
            "mysql" | "mariadb" => &mysql::DIALECT,
            "postgres" | "postgresql" => &postgres::DIALECT,
            "sqlite" => &sqlite::DIALECT,
            other => return Err(format!("`{other}:` is no database; write mysql:, postgres: or sqlite:")),
        };
        let server = self.server((dialect.engine, open::address(&database.url)));
        let account = server.account(database);
        let part = server.part(&account, table);
        Ok(Pool { dialect, server, account, part })
    }

    fn server(&self, address: (Engine, String)) -> Arc<Server> {
        let mut servers = lock(&self.servers);
        servers.retain(|server| server.strong_count() > 0);
        let known = servers.iter().filter_map(Weak::upgrade).find(|server| server.address == address);
        known.unwrap_or_else(|| {
            let server = Arc::new(Server::new(address, self.limits));
            servers.push(Arc::downgrade(&server));
            server
        })
    }
}

impl Pool {
    pub(crate) fn dialect(&self) -> &'static Dialect {
        self.dialect
    }

    /// A connection for work.
    pub(crate) async fn connection(&self) -> Result<Connection, Failure> {
        self.connection_at(self.server.place(&self.account, &self.part).await?).await
    }

    /// A connection for a heartbeat or a pause flag, which wait for no work.
    pub(crate) async fn urgent_connection(&self, urgent: Urgent) -> Result<Connection, Failure> {
        self.connection_at(self.server.urgent_place(&self.account, urgent).await?).await
    }

    async fn connection_at(&self, place: Place) -> Result<Connection, Failure> {
        while let Some((mut opened, since)) = self.server.take(&self.account) {
            let now = Instant::now();
            if now >= opened.until {
                retire(opened);
                continue;
            }
            let is_fresh = now.duration_since(since) < FRESH;
            if is_fresh || matches!(timeout(FRESH, opened.native.ping()).await, Ok(Ok(()))) {
                return Ok(Connection::new(opened, place));
            }
            // The others are as dead, and after an outage without a word each would be waited for.
            place.discard_idle_since(now);
        }
        match timeout(CONNECT_TIMEOUT, self.open(place)).await {
            Ok(connection) => connection,
            Err(_) => Err(Failure::Stalled(format!("no connection within {} seconds", CONNECT_TIMEOUT.as_secs()))),
        }
    }

    /// Opens a connection and sets its session up.
    async fn open(&self, place: Place) -> Result<Connection, Failure> {
        let slot = self.server.slot().await;
        let native = open::connect(&self.account.database, self.dialect.engine, &self.account.is_pooled).await?;
        let since = Instant::now();
        let until = since + greatest_age(self.server.limits.age, rand::random());
        let mut connection = Connection::new(Opened { native, since, until, _slot: slot }, place);
        if self.dialect.session.is_empty() {
            return Ok(connection);
        }
        let ready = connection.command(self.dialect.session).await;
        if ready.is_err() {
            connection.mark_dirty();
        }
        ready.map(|()| connection)
    }

    /// Creates the file of an SQLite database that does not exist yet; answers whether it did.
    pub(crate) async fn create_file(&self) -> Result<bool, Failure> {
        match self.dialect.engine {
            Engine::Sqlite => open::create_file(&self.account.database.url).await,
            _ => Ok(false),
        }
    }
}

/// The age at which a connection is closed: between 0.9 and 1.1 times `age`, as `jitter` between 0 and 1 decides. So
/// those that were opened at the same moment are not all opened again at the same moment.
fn greatest_age(age: Duration, jitter: f64) -> Duration {
    age.mul_f64(0.9 + 0.2 * jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_grow_old_within_a_tenth_of_the_greatest_age() {
        let age = Duration::from_secs(600);
        assert_eq!([0.0, 0.5, 1.0].map(|jitter| greatest_age(age, jitter).as_secs()), [540, 600, 660]);
    }
}
