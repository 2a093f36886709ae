//! One connection to a database, whichever it is: texts and values in, lines out.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::mysql::{MySql, MySqlConnection, MySqlRow};
use sqlx::postgres::{PgConnection, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::time::timeout;

use super::error::Failure;
use super::pool::Lent;
use crate::mail::Fingerprint;

/// How long we wait for a statement's answer, or for its next line. Longer than any lock wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a statement takes in place of a `?`. Texts are borrowed: a batch has thousands.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Int(Option<i64>),
    Text(Option<Cow<'a, str>>),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(Some(storable(value)))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self::Text(value.map(storable))
    }
}

impl From<Option<Fingerprint>> for Value<'_> {
    fn from(value: Option<Fingerprint>) -> Self {
        Self::Text(value.map(|content| content.to_hex().into()))
    }
}

/// PostgreSQL has no NUL in texts.
fn storable(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => text.replace('\0', "\u{fffd}").into(),
        false => text.into(),
    }
}

/// A native connection.
pub(crate) enum Raw {
    MySql(Box<MySqlConnection>),
    Postgres(Box<PgConnection>),
    Sqlite(Box<SqliteConnection>),
}

impl Raw {
    /// Gives memory back that a large row has taken.
    pub(crate) fn shrink(&mut self) {
        match self {
            Self::MySql(raw) => raw.shrink_buffers(),
            Self::Postgres(raw) => raw.shrink_buffers(),
            Self::Sqlite(raw) => raw.shrink_buffers(),
        }
    }

    pub(crate) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::MySql(raw) => raw.ping().await,
            Self::Postgres(raw) => raw.ping().await,
            Self::Sqlite(raw) => raw.ping().await,
        }
    }
}

macro_rules! query {
    ($db:ty, $sql:expr, $args:expr) => {{
        let mut query = sqlx::query::<$db>(AssertSqlSafe($sql));
        for arg in $args {
            query = match arg {
                Value::Int(value) => query.bind(*value),
                Value::Text(value) => query.bind(value.as_deref()),
            };
        }
        query
    }};
}

/// A connection on loan. It goes back to the others only when nothing is under way on it: one that is dropped inside a
/// transaction, or while an answer is outstanding, is closed, and the server undoes what was not committed.
pub(crate) struct Link {
    lent: Lent,
    in_transaction: bool,
}

impl Link {
    pub(crate) fn new(lent: Lent) -> Self {
        Self { lent, in_transaction: false }
    }

    pub(crate) fn into_raw(mut self) -> Raw {
        self.lent.take()
    }

    /// The connection itself, for work that leaves it unusable unless [`Link::sound`] is called afterwards.
    pub(crate) fn unsound(&mut self) -> &mut Raw {
        self.lent.reusable = false;
        self.lent.raw()
    }

    pub(crate) fn sound(&mut self) {
        self.lent.reusable = true;
    }

    /// Begins a transaction with the dialect's own words.
    pub(crate) async fn begin(&mut self, words: &'static str) -> Result<(), Failure> {
        self.in_transaction = true;
        self.command(words).await
    }

    pub(crate) async fn commit(&mut self) -> Result<(), Failure> {
        self.command("COMMIT").await?;
        self.in_transaction = false;
        self.lent.reusable = true;
        Ok(())
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), Failure> {
        self.command("ROLLBACK").await?;
        self.in_transaction = false;
        self.lent.reusable = true;
        Ok(())
    }

    /// A statement, or several, without values and without an answer.
    pub(crate) async fn command(&mut self, sql: impl Into<String>) -> Result<(), Failure> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.into()));
        self.lent.reusable = false;
        let done = timeout(PATIENCE, async {
            match self.lent.raw() {
                Raw::MySql(raw) => sql.execute(&mut **raw).await.map(drop),
                Raw::Postgres(raw) => sql.execute(&mut **raw).await.map(drop),
                Raw::Sqlite(raw) => sql.execute(&mut **raw).await.map(drop),
            }
        });
        let done = done.await;
        self.judge(done)
    }

    /// Answers how many rows the statement changed (on MySQL: found, changed or not).
    pub(crate) async fn execute(&mut self, sql: &str, args: Vec<Value<'_>>) -> Result<u64, Failure> {
        self.lent.reusable = false;
        let done = timeout(PATIENCE, async {
            match self.lent.raw() {
                Raw::MySql(raw) => {
                    query!(MySql, sql.to_owned(), &args).execute(&mut **raw).await.map(|done| done.rows_affected())
                }
                Raw::Postgres(raw) => {
                    query!(Postgres, numbered(sql), &args).execute(&mut **raw).await.map(|done| done.rows_affected())
                }
                Raw::Sqlite(raw) => {
                    query!(Sqlite, sql.to_owned(), &args).execute(&mut **raw).await.map(|done| done.rows_affected())
                }
            }
        });
        let done = done.await;
        self.judge(done)
    }

    pub(crate) async fn fetch(&mut self, sql: &str, args: Vec<Value<'_>>) -> Result<Vec<Line>, Failure> {
        self.lent.reusable = false;
        macro_rules! lines {
            ($query:expr, $raw:expr, $kind:path) => {{
                let mut stream = $query.fetch(&mut **$raw);
                let mut lines = Vec::new();
                loop {
                    match timeout(PATIENCE, stream.try_next()).await {
                        Ok(Ok(Some(line))) => lines.push($kind(line)),
                        Ok(Ok(None)) => break Ok(Ok(lines)),
                        Ok(Err(error)) => break Ok(Err(error)),
                        Err(late) => break Err(late),
                    }
                }
            }};
        }
        let done = match self.lent.raw() {
            Raw::MySql(raw) => lines!(query!(MySql, sql.to_owned(), &args), raw, Line::MySql),
            Raw::Postgres(raw) => lines!(query!(Postgres, numbered(sql), &args), raw, Line::Postgres),
            Raw::Sqlite(raw) => lines!(query!(Sqlite, sql.to_owned(), &args), raw, Line::Sqlite),
        };
        self.judge(done)
    }

    fn judge<T>(&mut self, done: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>) -> Result<T, Failure> {
        match done {
            Ok(Ok(value)) => {
                self.lent.reusable = !self.in_transaction;
                Ok(value)
            }
            Ok(Err(error)) => {
                self.lent.reusable = !self.in_transaction && matches!(error, sqlx::Error::Database(_));
                let failure = Failure::from(error);
                if matches!(failure, Failure::Broken(_)) {
                    self.lent.reusable = false;
                    self.lent.distrust_others();
                }
                Err(failure)
            }
            Err(_) => {
                self.lent.distrust_others();
                Err(Failure::Stalled(format!("no answer within {} seconds", PATIENCE.as_secs())))
            }
        }
    }
}

/// PostgreSQL counts its places. No text of ours has a question mark for anything else.
fn numbered(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 32);
    let mut number = 0;
    for c in sql.chars() {
        if c == '?' {
            number += 1;
            out.push('$');
            out.push_str(&number.to_string());
        } else {
            out.push(c);
        }
    }
    out
}

/// A line of an answer. Columns are counted from 0 and decoded as what the statement made of them.
pub(crate) enum Line {
    MySql(MySqlRow),
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

macro_rules! cell {
    ($line:expr, $column:expr, $type:ty) => {
        match $line {
            Line::MySql(row) => row.try_get_unchecked::<Option<$type>, _>($column),
            Line::Postgres(row) => row.try_get_unchecked::<Option<$type>, _>($column),
            Line::Sqlite(row) => row.try_get_unchecked::<Option<$type>, _>($column),
        }
        .map_err(Failure::from)
    };
}

impl Line {
    pub(crate) fn int(&self, column: usize) -> Result<Option<i64>, Failure> {
        cell!(self, column, i64)
    }

    pub(crate) fn text(&self, column: usize) -> Result<Option<String>, Failure> {
        cell!(self, column, String)
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<Option<Vec<u8>>, Failure> {
        cell!(self, column, Vec<u8>)
    }

    /// Where the table's definition rules NULL out.
    pub(crate) fn some_int(&self, column: usize) -> Result<i64, Failure> {
        self.int(column)?.ok_or_else(|| null(column))
    }

    pub(crate) fn some_text(&self, column: usize) -> Result<String, Failure> {
        self.text(column)?.ok_or_else(|| null(column))
    }
}

fn null(column: usize) -> Failure {
    Failure::Refused(format!("a value that cannot be NULL is NULL (column {column} of the answer)"))
}
