//! What a database can answer besides what was asked for, and what to do about it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;

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

/// An [`Error`] before it is known whether another try helps.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection broke: a fresh one may do.
    Broken(String),
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
    pub(crate) fn told(self, queue: &Arc<str>) -> Error {
        let queue = Arc::clone(queue);
        match self {
            Self::Broken(what) | Self::Stalled(what) | Self::NoSecret(what) => Error::Unreachable { queue, what },
            Self::NotMigrated(what) => Error::NotMigrated { queue, what },
            Self::Missing(what) if what.contains("mailqueue_") => Error::NotMigrated { queue, what },
            Self::Busy(what) | Self::Missing(what) | Self::Refused(what) => Error::Refused { queue, what },
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(refused) = &error else {
            return match error {
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                    Self::Broken(plain(&error))
                }
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
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        error => error.to_string(),
    }
}

/// Numbers from the server error reference of MySQL and MariaDB.
fn mysql(number: u16, what: String) -> Failure {
    match number {
        // Too many connections, shutdown, killed, limits, aborted or read errors of the network, Galera not ready.
        1040 | 1047 | 1053 | 1077 | 1079 | 1152..=1161 | 1184 | 1203 | 1226 | 1927 | 4031 => Failure::Broken(what),
        // A conflict with another node of a cluster is told as a deadlock, as an interrupted statement, or at COMMIT.
        1205 | 1213 | 1020 | 1180 | 1317 => Failure::Busy(what),
        1054 | 1146 => Failure::Missing(what),
        // Who one is, and where.
        1044 | 1045 | 1049 | 1698 => Failure::Refused(who_and_where(&what)),
        _ => Failure::Refused(what),
    }
}

/// SQLSTATE, PostgreSQL documentation, appendix A.
fn postgres(code: &str, what: String) -> Failure {
    match code {
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "53300" => Failure::Broken(what),
        "40001" | "40P01" | "55P03" => Failure::Busy(what),
        // CREATE TABLE IF NOT EXISTS, twice at the same moment.
        "23505" if what.contains("pg_") => Failure::Busy(what),
        "42P01" | "42703" => Failure::Missing(what),
        "28000" | "28P01" | "3D000" => Failure::Refused(who_and_where(&what)),
        code if code.starts_with("08") => Failure::Broken(what),
        _ => Failure::Refused(what),
    }
}

fn who_and_where(what: &str) -> String {
    format!("{what}; look at user and database in `database`, at its password, and at what the user was GRANTed")
}

/// Result codes of SQLite; the low byte is the primary code.
fn sqlite(code: u32, what: String) -> Failure {
    match code & 0xff {
        5 | 6 | 17 => Failure::Busy(what),
        10 | 14 => Failure::Broken(what),
        // Another process was quicker with the same migration.
        19 if what.contains("mailqueue_migrations") => Failure::Busy(what),
        1 if what.starts_with("no such table") || what.starts_with("no such column") => Failure::Missing(what),
        _ => Failure::Refused(what),
    }
}

/// How often an operation was tried. A lock that does not come free costs seconds each time, a deadlock nothing.
#[derive(Default)]
pub(crate) struct Tries {
    broken: u32,
    missing: u32,
    busy: u32,
    since: Option<tokio::time::Instant>,
}

const BUSY_TRIES: u32 = 8;
const BUSY_TIME: Duration = Duration::from_secs(12);

impl Tries {
    /// Whether the same again is worth a try, and after which pause. Everything that is tried again is harmless to
    /// repeat, even where the first try did all of its work and only its answer was lost.
    pub(crate) fn again(&mut self, failure: &Failure) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(tokio::time::Instant::now);
        match failure {
            Failure::Broken(_) if self.broken == 0 => {
                self.broken += 1;
                Some(Duration::ZERO)
            }
            Failure::Missing(_) if self.missing == 0 => {
                self.missing += 1;
                Some(Duration::ZERO)
            }
            Failure::Busy(_) if self.busy < BUSY_TRIES && since.elapsed() < BUSY_TIME => {
                self.busy += 1;
                Some(Duration::from_millis(rand::random_range(1..=10u64 << self.busy.min(5))))
            }
            _ => None,
        }
    }
}

/// Runs an operation anew as long as [`Tries::again`] sees hope in it.
macro_rules! persist {
    ($inner:expr, $once:expr) => {{
        let mut tries = $crate::queue::db::error::Tries::default();
        loop {
            match $once.await {
                Ok(value) => break Ok(value),
                Err(failure) => {
                    if let $crate::queue::db::error::Failure::Missing(_) = failure {
                        $inner.forget_schema().await;
                    }
                    match tries.again(&failure) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => break Err(failure.told($inner.name())),
                    }
                }
            }
        }
    }};
}
pub(crate) use persist;
