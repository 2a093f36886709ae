//! A connection as the driver knows it.

use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

/// A native connection.
pub(crate) enum Native {
    MySql(Box<MySqlConnection>),
    Postgres(Box<PgConnection>),
    /// To PostgreSQL by way of a pooler, which may give each transaction another connection. So each statement is in a
    /// transaction, none is prepared for later ones, and no setting outlives its transaction.
    Pooled(Box<PgConnection>),
    Sqlite(Box<SqliteConnection>),
}

impl Native {
    /// Gives memory back that a large row has taken.
    pub(crate) fn shrink(&mut self) {
        match self {
            Self::MySql(raw) => raw.shrink_buffers(),
            Self::Postgres(raw) | Self::Pooled(raw) => raw.shrink_buffers(),
            Self::Sqlite(raw) => raw.shrink_buffers(),
        }
    }

    /// Says goodbye to the server.
    pub(crate) async fn close(self) -> Result<(), sqlx::Error> {
        match self {
            Self::MySql(raw) => raw.close().await,
            Self::Postgres(raw) | Self::Pooled(raw) => raw.close().await,
            Self::Sqlite(raw) => raw.close().await,
        }
    }

    pub(crate) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::MySql(raw) => raw.ping().await,
            Self::Postgres(raw) | Self::Pooled(raw) => raw.ping().await,
            Self::Sqlite(raw) => raw.ping().await,
        }
    }
}
