//! A producer's or an operator's own connection to a database.

use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection, Row, SqliteConnection};
use url::Url;

pub enum Session {
    MariaDb(MySqlConnection),
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Session {
    pub fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    pub async fn on(url: &Url) -> Self {
        match url.scheme() {
            "mysql" => Self::MariaDb(MySqlConnection::connect(url.as_str()).await.expect("MariaDB")),
            "postgres" => Self::Postgres(PgConnection::connect(url.as_str()).await.expect("PostgreSQL")),
            _ => Self::Sqlite(SqliteConnection::connect(url.as_str()).await.expect("SQLite")),
        }
    }

    pub async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::MariaDb(connection) => connection.execute(sql).await.map(drop),
            Self::Postgres(connection) => connection.execute(sql).await.map(drop),
            Self::Sqlite(connection) => connection.execute(sql).await.map(drop),
        }
    }

    /// The first cell of the answer.
    pub async fn number(&mut self, sql: &str) -> Result<i64, sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::MariaDb(connection) => connection.fetch_one(sql).await?.try_get_unchecked(0),
            Self::Postgres(connection) => {
                let row = connection.fetch_one(sql).await?;
                // Such an answer comes as text.
                row.try_get_unchecked::<&str, _>(0)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
            }
            Self::Sqlite(connection) => connection.fetch_one(sql).await?.try_get_unchecked(0),
        }
    }
}
