//! Connections: made when needed, few, used again while they are sound.
//!
//! sqlx's own pools are not used: they read the password once, hide why a connection failed behind a time-out, and wait
//! without limit on a stalled connection that is given back.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::LevelFilter;
use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use url::Url;

use super::super::settings::{Database, Password};
use super::connection::{Link, Raw};
use super::dialect::Dialect;
use super::error::Failure;
use super::{mysql, postgres, sqlite};

/// A dispatcher keeps one for claims, two for what is claimed, one for settling, one for heartbeat and stop flag, one to
/// spare.
const CONNECTIONS: usize = 6;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that lay idle for longer is asked whether it is still there.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Connections {
    database: Database,
    pub(crate) dialect: &'static Dialect,
    permits: Arc<Semaphore>,
    idle: Arc<Idle>,
}

#[derive(Default)]
struct Idle(Mutex<Vec<(Raw, Instant)>>);

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idle")
    }
}

impl Idle {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Raw, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is in use; when it is dropped it goes back if it is `reusable`, and is closed if not.
pub(crate) struct Lent {
    raw: Option<Raw>,
    pub(crate) reusable: bool,
    idle: Arc<Idle>,
    _permit: OwnedSemaphorePermit,
}

impl Lent {
    pub(crate) fn raw(&mut self) -> &mut Raw {
        // `None` only inside `drop`.
        self.raw.as_mut().unwrap_or_else(|| unreachable!("a connection that was given back"))
    }

    pub(crate) fn take(&mut self) -> Raw {
        self.raw.take().unwrap_or_else(|| unreachable!("a connection that was given back"))
    }

    /// One connection broke: the server was restarted or is away, and the idle ones are as dead.
    pub(crate) fn distrust_others(&self) {
        self.idle.lock().clear();
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(mut raw) = self.raw.take().filter(|_| self.reusable) {
            raw.shrink();
            self.idle.lock().push((raw, Instant::now()));
        }
    }
}

impl Connections {
    /// Opens nothing yet. The text says why the URL cannot be used.
    pub(crate) fn new(database: Database) -> Result<Self, String> {
        let dialect = match database.url.scheme() {
            "mysql" | "mariadb" => &mysql::DIALECT,
            "postgres" | "postgresql" => &postgres::DIALECT,
            "sqlite" => &sqlite::DIALECT,
            other => return Err(format!("`{other}:` is no database; write mysql:, postgres: or sqlite:")),
        };
        Ok(Self { database, dialect, permits: Arc::new(Semaphore::new(CONNECTIONS)), idle: Arc::default() })
    }

    pub(crate) async fn link(&self) -> Result<Link, Failure> {
        let permit = timeout(CONNECT_TIMEOUT, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| Failure::Stalled("all connections are busy and none came free".to_owned()))?
            .map_err(|closed| Failure::Broken(closed.to_string()))?;
        loop {
            let Some((mut raw, since)) = self.idle.lock().pop() else { break };
            if since.elapsed() < FRESH || matches!(timeout(FRESH, raw.ping()).await, Ok(Ok(()))) {
                return Ok(self.lend(raw, permit));
            }
        }
        match timeout(CONNECT_TIMEOUT, self.connect()).await {
            Ok(raw) => Ok(self.lend(raw?, permit)),
            Err(_) => Err(Failure::Stalled(format!("no connection within {} seconds", CONNECT_TIMEOUT.as_secs()))),
        }
    }

    fn lend(&self, raw: Raw, permit: OwnedSemaphorePermit) -> Link {
        Link::new(Lent { raw: Some(raw), reusable: true, idle: Arc::clone(&self.idle), _permit: permit })
    }

    async fn connect(&self) -> Result<Raw, Failure> {
        let url = &self.database.url;
        let password = self.database.password.as_ref().map(read).transpose()?;
        let bad = |error: sqlx::Error| Failure::Refused(format!("the URL {url} cannot be used: {error}"));
        let raw = match self.dialect.name {
            "mysql" => {
                let mut options = MySqlConnectOptions::from_url(url).map_err(bad)?.pipes_as_concat(false);
                let host = bare(options.get_host()).to_owned();
                options = options.host(&host);
                if let Some(password) = &password {
                    options = options.password(password);
                }
                if !named(url, &["ssl-mode", "sslmode"]) && options.get_socket().is_none() && is_remote(&host) {
                    options = options.ssl_mode(MySqlSslMode::VerifyIdentity);
                }
                Raw::MySql(Box::new(quiet(options).connect().await?))
            }
            "postgres" => {
                let mut options = PgConnectOptions::from_url(url).map_err(bad)?;
                let host = bare(options.get_host()).to_owned();
                options = options.host(&host);
                if let Some(password) = &password {
                    options = options.password(password);
                }
                if !named(url, &["ssl-mode", "sslmode"]) && options.get_socket().is_none() && is_remote(&host) {
                    options = options.ssl_mode(PgSslMode::VerifyFull);
                }
                Raw::Postgres(Box::new(quiet(options).connect().await?))
            }
            _ => Raw::Sqlite(Box::new(quiet(sqlite_options(url)?).connect().await?)),
        };
        // The session is set up through a loan of its own, so that a failure closes the connection.
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().map_err(|e| Failure::Broken(e.to_string()))?;
        let mut link = self.lend(raw, permit);
        link.command(self.dialect.session).await?;
        Ok(link.into_raw())
    }

    /// Creates the file of an SQLite database that does not exist yet; answers whether it did. WAL is a property of
    /// the file, and files that others made keep what they have.
    pub(crate) async fn create_file(&self) -> Result<bool, Failure> {
        if self.dialect.name != "sqlite" || file(&self.database.url).exists() {
            return Ok(false);
        }
        let options = SqliteConnectOptions::new()
            .filename(file(&self.database.url))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        quiet(options).connect().await?;
        Ok(true)
    }
}

/// Statements, which hold no values, are logged for those who ask for `sqlx::query=trace`.
fn quiet<O: ConnectOptions>(options: O) -> O {
    options.log_statements(LevelFilter::Trace).log_slow_statements(LevelFilter::Off, Duration::MAX)
}

fn read(password: &Password) -> Result<String, Failure> {
    password.read().map_err(|error| Failure::NoSecret(error.to_string()))
}

fn sqlite_options(url: &Url) -> Result<SqliteConnectOptions, Failure> {
    let path = file(url);
    if !path.exists() {
        return Err(Failure::NotMigrated(format!("the file {} does not exist", path.display())));
    }
    Ok(SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(5)))
}

fn file(url: &Url) -> PathBuf {
    let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy();
    Path::new(path.as_ref()).to_owned()
}

fn named(url: &Url, keys: &[&str]) -> bool {
    url.query_pairs().any(|(key, _)| keys.contains(&key.as_ref()))
}

/// The host without the brackets in which an IPv6 address stands in a URL (RFC 3986 §3.2.2): neither a resolver nor TLS
/// takes them.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Neither a socket nor loopback, so that what is said passes a network. `host` is the one that is dialled, which a
/// parameter of the URL can name too.
fn is_remote(host: &str) -> bool {
    let host = percent_encoding::percent_decode_str(host).decode_utf8_lossy();
    let loopback = IpAddr::from_str(&host).is_ok_and(|address| address.is_loopback());
    !(host.is_empty() || host.eq_ignore_ascii_case("localhost") || host.starts_with('/') || loopback)
}
