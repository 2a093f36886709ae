//! Errors of databases, and the ones that go away when an operation is repeated.

use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;
use tokio::time::Instant;

use crate::open_files;

/// An error, before it is known whether another try helps.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection broke: a fresh one may do.
    Broken(String),
    /// The server has answered that it does not serve: it is full, starts, stops, or has ended the connection. Like
    /// `Broken` otherwise.
    Unavailable(String),
    /// Nothing came for longer than we wait; a further try would only wait again.
    Stalled(String),
    /// Deadlock, lock wait, serialization: nothing happened, and the same again may succeed.
    Busy(String),
    /// A table or a column is not there, or no longer.
    Missing(String),
    NotMigrated(String),
    Refused(String),
    /// There is no password to log in with.
    NoSecret(String),
}

impl Failure {
    /// The same, with the file that is missing where one is.
    pub(crate) fn naming(self, missing: Option<String>) -> Self {
        match (self, missing) {
            (Self::Broken(what), Some(missing)) => Self::Broken(format!("{what}: {missing}")),
            (Self::Unavailable(what), Some(missing)) => Self::Unavailable(format!("{what}: {missing}")),
            (failure, _) => failure,
        }
    }

    /// Returns true where the connection is of no use any more.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Unavailable(_) | Self::Stalled(_))
    }
}

/// Returns the server's words where an error says that a server is away or read-only and may mean another server: one that
/// a trigger asked, say by dblink or a foreign table. The same error of our own server ends the connection, or comes again
/// as long as that server is read-only.
pub(crate) fn words_of_another_server(error: &sqlx::Error) -> Option<String> {
    let sqlx::Error::Database(refused) = error else { return None };
    let may_be = match (refused.try_downcast_ref::<MySqlDatabaseError>(), refused.code()) {
        (Some(refused), _) => is_read_only(refused.number()),
        (None, Some(code)) if code.len() == 5 => {
            matches!(postgres(&code, refused.message().to_owned()), Failure::Unavailable(_))
        }
        (None, _) => false,
    };
    may_be.then(|| refused.message().to_owned())
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(refused) = &error else {
            return match error {
                sqlx::Error::Io(error) if open_files::is_limit(&error) => Self::Broken(open_files::explanation()),
                sqlx::Error::Tls(error) => Self::Unavailable(format!(
                    "TLS: {error}; look at the server's certificate, and at ssl-mode and ssl-ca in `database`"
                )),
                sqlx::Error::Protocol(what) => no_such_login(&what).map_or(Self::Broken(what), Self::Refused),
                sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => Self::Broken(plain(&error)),
                _ => Self::Refused(plain(&error)),
            };
        };
        let what = refused.message().to_owned();
        if let Some(refused) = refused.try_downcast_ref::<MySqlDatabaseError>() {
            return mysql(refused.number(), what);
        }
        match refused.code() {
            Some(code) if code.len() == 5 => postgres(&code, what),
            Some(code) => sqlite(code.parse().unwrap_or(1), what),
            None => Self::Refused(what),
        }
    }
}

fn plain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// Numbers from the server error reference of MySQL and MariaDB.
fn mysql(number: u16, what: String) -> Failure {
    match number {
        // Too many connections, shutdown, killed, limits, aborted or read errors of the network, Galera not ready.
        1040 | 1047 | 1053 | 1077 | 1079 | 1152..=1161 | 1184 | 1203 | 1226 | 1461 | 1927 | 4031 => {
            Failure::Unavailable(what)
        }
        // Another server may not be read-only.
        number if is_read_only(number) => Failure::Unavailable(read_only(&what)),
        // A conflict with another node of a cluster is told as a deadlock, as an interrupted statement, or at COMMIT.
        // So is a statement that took longer than a limit, or that the server wants prepared again.
        1205 | 1213 | 1020 | 1180 | 1317 | 1615 | 1969 | 3024 | 3101 => Failure::Busy(what),
        1054 | 1146 => Failure::Missing(what),
        // Who one is, and where.
        1044 | 1045 | 1049 | 1698 => Failure::Refused(who_and_where(&what)),
        _ => Failure::Refused(what),
    }
}

/// The server or the session is read-only. 1290 stands for other options of a server, too.
fn is_read_only(number: u16) -> bool {
    matches!(number, 1290 | 1792 | 1836)
}

/// SQLSTATE, PostgreSQL documentation, appendix A.
fn postgres(code: &str, what: String) -> Failure {
    match code {
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "53300" => Failure::Unavailable(what),
        "25006" => Failure::Unavailable(read_only(&what)),
        "40001" | "40P01" | "55P03" | "57014" => Failure::Busy(what),
        // CREATE TABLE IF NOT EXISTS, twice at the same moment.
        "23505" if what.contains("pg_") => Failure::Busy(what),
        "42P01" | "42703" => Failure::Missing(what),
        "28000" | "28P01" | "3D000" => Failure::Refused(who_and_where(&what)),
        "08P01" if what.contains("statement pooling") => Failure::Refused(format!(
            "{what}; set `pool_mode` to session or transaction there, because several statements belong together"
        )),
        code if code.starts_with("08") => Failure::Unavailable(what),
        _ => Failure::Refused(what),
    }
}

/// The remedy where the server wants a login that sqlx does not have; `None` for another breach of the protocol.
fn no_such_login(what: &str) -> Option<String> {
    if let Some((_, method)) = what.split_once("unsupported authentication method: ") {
        return Some(format!(
            "the server wants a login by {method}, which is not supported; let it take scram-sha-256 from this user and \
             host (pg_hba.conf)"
        ));
    }
    let plugin = match what.split_once("unknown authentication plugin: ") {
        Some((_, plugin)) => plugin.split_whitespace().next()?,
        None => what.contains("mysql_cleartext_plugin disabled").then_some("mysql_clear_password")?,
    };
    Some(format!(
        "the user logs in by {plugin}, which is not supported; supported are mysql_native_password, caching_sha2_password \
         and sha256_password: ALTER USER … IDENTIFIED VIA mysql_native_password USING PASSWORD('…') on MariaDB, \
         IDENTIFIED WITH caching_sha2_password BY '…' on MySQL"
    ))
}

fn read_only(what: &str) -> String {
    format!("{what}; the queue goes on by itself when it can be written again")
}

fn who_and_where(what: &str) -> String {
    format!("{what}; look at user and database in `database`, at its password, and at what the user was GRANTed")
}

/// Result codes of SQLite; the low byte is the primary code.
fn sqlite(code: u32, what: String) -> Failure {
    match code & 0xff {
        5 | 6 | 17 => Failure::Busy(what),
        // It cannot open a file, and does not say why.
        10 | 14 if open_files::is_reached() => Failure::Broken(open_files::explanation()),
        8 => Failure::Unavailable(read_only(&what)),
        10 | 14 => Failure::Broken(what),
        // Another process was quicker with the same migration.
        19 if what.contains("mailqueue_migrations") => Failure::Busy(what),
        1 if what.starts_with("no such table") || what.starts_with("no such column") => Failure::Missing(what),
        _ => Failure::Refused(what),
    }
}

/// The tries of an operation, which begins when this is made. A lock that does not come free costs seconds each time, a
/// deadlock nothing.
pub(crate) struct Retries {
    broken: u32,
    missing: u32,
    busy: u32,
    since: Instant,
    /// The time after which a lock is not waited for again.
    patience: Duration,
}

const BUSY_TRIES: u32 = 8;

/// Three lock waits of 5 s.
const BUSY_TIME: Duration = Duration::from_secs(12);

/// One lock wait of any length; a deadlock takes less.
const ONE_LOCK_WAIT: Duration = Duration::from_millis(500);

impl Default for Retries {
    fn default() -> Self {
        Self { broken: 0, missing: 0, busy: 0, since: Instant::now(), patience: BUSY_TIME }
    }
}

impl Retries {
    /// Waits for a lock once.
    pub(crate) fn with_one_lock_wait() -> Self {
        Self { patience: ONE_LOCK_WAIT, ..Self::default() }
    }

    /// Returns the pause after which the same is worth another try; `None` where it is not.
    pub(crate) fn next_pause(&mut self, failure: &Failure) -> Option<Duration> {
        match failure {
            Failure::Broken(_) | Failure::Unavailable(_) if self.broken == 0 => {
                self.broken += 1;
                Some(Duration::ZERO)
            }
            Failure::Missing(_) if self.missing == 0 => {
                self.missing += 1;
                Some(Duration::ZERO)
            }
            Failure::Busy(_) if self.busy < BUSY_TRIES && self.since.elapsed() < self.patience => {
                self.busy += 1;
                Some(Duration::from_millis(rand::random_range(1..=10u64 << self.busy.min(5))))
            }
            _ => None,
        }
    }
}
