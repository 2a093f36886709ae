//! Connections: made when needed, few, used again while nothing is wrong with them.
//!
//! sqlx's own pools are not used: they read the password once, hide why a connection failed behind a time-out, and wait
//! without limit on a stalled connection that is given back.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::LevelFilter;
use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use url::Url;

use super::connection::{Connection, Idle, Native};
use super::dialect::{Dialect, Engine};
use super::error::Failure;
use super::{Database, Password, mysql, postgres, sqlite};

/// A dispatcher keeps one for claims, two for what is claimed, one for settling, one for heartbeat and stop flag, one to
/// spare.
const CONNECTIONS: usize = 6;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that lay idle for longer is asked whether it is still there.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Pool {
    database: Database,
    dialect: &'static Dialect,
    permits: Arc<Semaphore>,
    idle: Arc<Idle>,
    /// A pooler was found before PostgreSQL. It is not looked for again.
    is_pooled: AtomicBool,
}

impl Pool {
    /// Opens nothing yet. The text says why the URL cannot be used.
    pub(crate) fn new(database: Database) -> Result<Self, String> {
        let dialect = match database.url.scheme() {
            "mysql" | "mariadb" => &mysql::DIALECT,
            "postgres" | "postgresql" => &postgres::DIALECT,
            "sqlite" => &sqlite::DIALECT,
            other => return Err(format!("`{other}:` is no database; write mysql:, postgres: or sqlite:")),
        };
        Ok(Self {
            database,
            dialect,
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            idle: Arc::default(),
            is_pooled: AtomicBool::new(false),
        })
    }

    pub(crate) fn dialect(&self) -> &'static Dialect {
        self.dialect
    }

    pub(crate) async fn connection(&self) -> Result<Connection, Failure> {
        let permit = timeout(CONNECT_TIMEOUT, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| Failure::Stalled("all connections are busy and none came free".to_owned()))?
            .map_err(|closed| Failure::Broken(closed.to_string()))?;
        while let Some((mut native, since)) = self.idle.pop() {
            if since.elapsed() < FRESH || matches!(timeout(FRESH, native.ping()).await, Ok(Ok(()))) {
                return Ok(Connection::new(native, Arc::clone(&self.idle), permit));
            }
        }
        match timeout(CONNECT_TIMEOUT, self.open(permit)).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::Stalled(format!("no connection within {} seconds", CONNECT_TIMEOUT.as_secs()))),
        }
    }

    /// Opens a connection and sets its session up.
    async fn open(&self, permit: OwnedSemaphorePermit) -> Result<Connection, Failure> {
        let native = self.connect().await.map_err(|failure| failure.naming(missing_file(&self.database.url)))?;
        let mut connection = Connection::new(native, Arc::clone(&self.idle), permit);
        if self.dialect.session.is_empty() {
            return Ok(connection);
        }
        let ready = connection.command(self.dialect.session).await;
        if ready.is_err() {
            connection.mark_dirty();
        }
        ready.map(|()| connection)
    }

    async fn connect(&self) -> Result<Native, Failure> {
        let url = &self.database.url;
        let password = self.database.password.as_ref().map(read).transpose()?;
        let bad = |error: sqlx::Error| Failure::Refused(format!("the URL {url} cannot be used: {error}"));
        match self.dialect.engine {
            Engine::MySql => {
                let mut options = MySqlConnectOptions::from_url(url).map_err(bad)?.pipes_as_concat(false);
                let host = bare(options.get_host()).to_owned();
                options = options.host(&host);
                if let Some(password) = &password {
                    options = options.password(password);
                }
                if !named(url, &["ssl-mode", "sslmode"]) && options.get_socket().is_none() && is_remote(&host) {
                    options = options.ssl_mode(MySqlSslMode::VerifyIdentity);
                }
                Ok(Native::MySql(Box::new(quiet(options).connect().await?)))
            }
            Engine::Postgres => {
                let mut options = PgConnectOptions::from_url(url).map_err(bad)?;
                let host = bare(options.get_host()).to_owned();
                options = options.host(&host);
                if let Some(password) = &password {
                    options = options.password(password);
                }
                if !named(url, &["ssl-mode", "sslmode"]) && options.get_socket().is_none() && is_remote(&host) {
                    options = options.ssl_mode(PgSslMode::VerifyFull);
                }
                self.connect_postgres(quiet(options).extra_float_digits(None)).await
            }
            Engine::Sqlite => Ok(Native::Sqlite(Box::new(quiet(sqlite_options(url)?).connect().await?))),
        }
    }

    async fn connect_postgres(&self, options: PgConnectOptions) -> Result<Native, Failure> {
        if !self.is_pooled.load(Ordering::Relaxed) {
            let mark = format!("{:016x}", rand::random::<u64>());
            if let Some(native) = postgres::connect_directly(&options, &mark).await? {
                return Ok(Native::Postgres(Box::new(native)));
            }
            self.is_pooled.store(true, Ordering::Relaxed);
        }
        Ok(Native::Pooled(Box::new(options.connect().await?)))
    }

    /// Creates the file of an SQLite database that does not exist yet; answers whether it did. WAL is a property of
    /// the file, and files that others made keep what they have.
    pub(crate) async fn create_file(&self) -> Result<bool, Failure> {
        if self.dialect.engine != Engine::Sqlite || file(&self.database.url).exists() {
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

/// Returns the file that the URL names and that does not exist, with the parameter that names it.
fn missing_file(url: &Url) -> Option<String> {
    let paths = url.query_pairs().filter(|(_, value)| value.starts_with('/'));
    let mut files = paths.map(|(key, value)| {
        let path = Path::new(&*value);
        // PostgreSQL's `host` is the folder of the socket.
        let file = match &*key {
            "host" => path.join(format!(".s.PGSQL.{}", url.port().unwrap_or(5432))),
            _ => path.to_owned(),
        };
        (key, file)
    });
    let missing = files.find(|(_, file)| !file.exists());
    missing.map(|(key, file)| format!("{} does not exist (`{key}` in `database`)", file.display()))
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
