//! One connection to a database, whichever it is: SQL and values in, rows out.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::mysql::{MySql, MySqlRow};
use sqlx::postgres::{PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{AssertSqlSafe, Row};
use tokio::time::{Instant, timeout};

use super::dialect::Dialect;
use super::error::{self, Failure};
use super::native::Native;
use super::open::CONNECT_TIMEOUT;
use super::server::{Opened, Place};
use super::{mysql, postgres};

/// The longest wait for a statement's answer, or for its next row. Longer than any lock wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time that the statements of a transaction wait for each lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockWait {
    /// As the session has it, 5 s.
    Usual,
    /// At most 1 s. For parts of a group that waited before.
    Short,
}

/// A value that a statement takes in place of a `?`. Texts are borrowed: a batch has thousands.
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

/// PostgreSQL has no NUL in texts.
fn storable(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => text.replace('\0', "\u{fffd}").into(),
        false => text.into(),
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

/// A connection that is in use. When it is dropped, it goes back to the idle ones only if nothing is under way on it: one
/// that is dropped inside a transaction, or while an answer is outstanding, is closed, and the server undoes what was not
/// committed.
pub(crate) struct Connection {
    /// `None` only inside `drop`.
    opened: Option<Opened>,
    reusable: bool,
    /// A statement was refused on it. A new connection may see what this one does not: a right that was granted since, or
    /// another server.
    was_refused: bool,
    in_transaction: bool,
    place: Place,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take().filter(|_| self.reusable) {
            self.place.give_back(opened, self.was_refused);
        }
    }
}

impl Connection {
    pub(crate) fn new(opened: Opened, place: Place) -> Self {
        Self { opened: Some(opened), reusable: true, was_refused: false, in_transaction: false, place }
    }

    /// The connection itself, for work after which it is closed unless [`Connection::mark_clean`] is called.
    pub(crate) fn mark_dirty(&mut self) -> &mut Native {
        self.reusable = false;
        self.native()
    }

    /// Has the connection closed after use, unless it is new: another one may see more.
    pub(crate) fn mark_refused(&mut self) {
        self.was_refused = true;
    }

    pub(crate) fn mark_clean(&mut self) {
        self.reusable = true;
    }

    fn native(&mut self) -> &mut Native {
        let opened = self.opened.as_mut().unwrap_or_else(|| unreachable!("a connection that was dropped"));
        &mut opened.native
    }

    /// Begins a transaction with the dialect's own words.
    pub(crate) async fn begin(&mut self, words: &'static str) -> Result<(), Failure> {
        let words = if self.is_pooled() { postgres::POOLED_BEGIN } else { words };
        self.in_transaction = true;
        self.command(words).await
    }

    /// Begins a transaction whose statements wait this long for locks. After short waits the connection is closed, because
    /// its session may keep them.
    pub(crate) async fn begin_waiting(&mut self, dialect: &Dialect, wait: LockWait) -> Result<(), Failure> {
        self.begin(dialect.begin).await?;
        if wait == LockWait::Short {
            if let Some(opened) = &mut self.opened {
                opened.until = Instant::now();
            }
            self.command(dialect.short_waits).await?;
        }
        Ok(())
    }

    pub(crate) async fn commit(&mut self) -> Result<(), Failure> {
        self.command("COMMIT").await?;
        self.in_transaction = false;
        self.reusable = true;
        Ok(())
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), Failure> {
        match self.command("ROLLBACK").await {
            Ok(()) => self.reusable = true,
            // The server has ended the transaction itself, as SQLite does at RAISE(ROLLBACK). The connection is closed.
            Err(Failure::Refused(_)) => {}
            Err(failure) => return Err(failure),
        }
        self.in_transaction = false;
        Ok(())
    }

    /// A statement, or several, without values and without an answer.
    pub(crate) async fn command(&mut self, sql: impl Into<String>) -> Result<(), Failure> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.into()));
        self.reusable = false;
        let done = timeout(PATIENCE, async {
            match self.native() {
                Native::MySql(raw) => sql.execute(&mut **raw).await.map(drop),
                Native::Postgres(raw) | Native::Pooled(raw) => sql.execute(&mut **raw).await.map(drop),
                Native::Sqlite(raw) => sql.execute(&mut **raw).await.map(drop),
            }
        });
        let done = done.await;
        self.judge(done).await
    }

    /// Returns the number of rows that the statement changed (on MySQL: found, changed or not).
    pub(crate) async fn execute(&mut self, sql: &str, args: Vec<Value<'_>>) -> Result<u64, Failure> {
        if !self.wants_transaction() {
            return self.execute_here(sql, args).await;
        }
        self.begin(postgres::POOLED_BEGIN).await?;
        let done = self.execute_here(sql, args).await;
        self.end(done).await
    }

    /// Returns the rows that the statement answers.
    pub(crate) async fn fetch(&mut self, sql: &str, args: Vec<Value<'_>>) -> Result<Vec<DbRow>, Failure> {
        if !self.wants_transaction() {
            return self.fetch_here(sql, args).await;
        }
        self.begin(postgres::POOLED_BEGIN).await?;
        let done = self.fetch_here(sql, args).await;
        self.end(done).await
    }

    /// Returns true for a connection by way of a pooler.
    pub(crate) fn is_pooled(&mut self) -> bool {
        matches!(self.native(), Native::Pooled(_))
    }

    /// Returns true outside a transaction, where a statement by way of a pooler needs one.
    fn wants_transaction(&mut self) -> bool {
        !self.in_transaction && self.is_pooled()
    }

    /// Ends the transaction of a single statement.
    async fn end<T>(&mut self, done: Result<T, Failure>) -> Result<T, Failure> {
        match &done {
            Ok(_) => self.commit().await?,
            // The connection is closed, and the server undoes what was not committed.
            Err(failure) if failure.ends_connection() => {}
            Err(_) => self.rollback().await?,
        }
        done
    }

    async fn execute_here(&mut self, sql: &str, args: Vec<Value<'_>>) -> Result<u64, Failure> {
        self.reusable = false;
        let done = timeout(PATIENCE, async {
            match self.native() {
                Native::MySql(raw) => {
                    query!(MySql, sql.to_owned(), &args).execute(&mut **raw).await.map(|done| done.rows_affected())
                }
                Native::Postgres(raw) => query!(Postgres, dollar_placeholders(sql), &args)
                    .execute(&mut **raw)
                    .await
                    .map(|done| done.rows_affected()),
                Native::Pooled(raw) => {
                    let query = query!(Postgres, dollar_placeholders(sql), &args).persistent(false);
                    query.execute(&mut **raw).await.map(|done| done.rows_affected())
                }
                Native::Sqlite(raw) => {
                    query!(Sqlite, sql.to_owned(), &args).execute(&mut **raw).await.map(|done| done.rows_affected())
                }
            }
        });
        let done = done.await;
        self.judge(done).await
    }

    async fn fetch_here(&mut self, sql: &str, args: Vec<Value<'_>>) -> Result<Vec<DbRow>, Failure> {
        self.reusable = false;
        macro_rules! rows {
            ($query:expr, $raw:expr, $kind:path) => {{
                let mut stream = $query.fetch(&mut **$raw);
                let mut rows = Vec::new();
                loop {
                    match timeout(PATIENCE, stream.try_next()).await {
                        Ok(Ok(Some(row))) => rows.push($kind(row)),
                        Ok(Ok(None)) => break Ok(Ok(rows)),
                        Ok(Err(error)) => break Ok(Err(error)),
                        Err(late) => break Err(late),
                    }
                }
            }};
        }
        let done = match self.native() {
            Native::MySql(raw) => rows!(query!(MySql, sql.to_owned(), &args), raw, DbRow::MySql),
            Native::Postgres(raw) => rows!(query!(Postgres, dollar_placeholders(sql), &args), raw, DbRow::Postgres),
            Native::Pooled(raw) => {
                rows!(query!(Postgres, dollar_placeholders(sql), &args).persistent(false), raw, DbRow::Postgres)
            }
            Native::Sqlite(raw) => rows!(query!(Sqlite, sql.to_owned(), &args), raw, DbRow::Sqlite),
        };
        self.judge(done).await
    }

    async fn judge<T>(
        &mut self,
        done: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, Failure> {
        match done {
            Ok(Ok(value)) => {
                self.reusable = !self.in_transaction;
                Ok(value)
            }
            Ok(Err(error)) => {
                let failure = self.failure(error).await;
                if failure.ends_connection() {
                    self.reusable = false;
                    self.place.discard_idle();
                }
                self.was_refused |= !matches!(failure, Failure::Busy(_));
                Err(failure)
            }
            Err(_) => {
                self.place.discard_idle();
                Err(Failure::Stalled(format!("no answer within {} seconds", PATIENCE.as_secs())))
            }
        }
    }

    /// The meaning of a statement's error. A server that says that it is away or read-only, and afterwards answers that it
    /// can be written, has spoken of another one: it refuses the statement.
    async fn failure(&mut self, error: sqlx::Error) -> Failure {
        let refused = match error::words_of_another_server(&error) {
            Some(words) if self.can_be_written().await => Some(words),
            _ => None,
        };
        self.reusable = !self.in_transaction && matches!(error, sqlx::Error::Database(_));
        refused.map_or_else(|| Failure::from(error), Failure::Refused)
    }

    /// Asks the server, after an error, whether it and this session can be written. Ends a transaction of PostgreSQL, which
    /// the error has made useless; the caller rolls it back as after every error.
    async fn can_be_written(&mut self) -> bool {
        self.reusable = false;
        let is_aborted = self.in_transaction;
        let asked = timeout(CONNECT_TIMEOUT, async {
            let first = match self.native() {
                Native::MySql(raw) => {
                    let read_only = sqlx::raw_sql(mysql::READ_ONLY).fetch_optional(&mut **raw).await?;
                    return Ok(read_only.is_none());
                }
                Native::Postgres(raw) | Native::Pooled(raw) => {
                    if is_aborted {
                        sqlx::raw_sql("ROLLBACK").execute(&mut **raw).await?;
                    }
                    sqlx::raw_sql(postgres::WRITABLE).fetch_one(&mut **raw).await?
                }
                Native::Sqlite(_) => return Ok(false),
            };
            // Such an answer comes as text.
            first.try_get_unchecked::<&str, _>(0).map(|writable| writable == "t")
        });
        matches!(asked.await, Ok(Ok::<bool, sqlx::Error>(true)))
    }
}

/// The statement with `$1`, `$2` and so on for each `?`, as PostgreSQL wants it. No text of ours has a question mark
/// for anything else.
fn dollar_placeholders(sql: &str) -> String {
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

/// A row of an answer. Columns are counted from 0 and decoded as what the statement made of them.
pub(crate) enum DbRow {
    MySql(MySqlRow),
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

macro_rules! cell {
    ($row:expr, $column:expr, $type:ty) => {
        match $row {
            DbRow::MySql(row) => row.try_get_unchecked::<Option<$type>, _>($column),
            DbRow::Postgres(row) => row.try_get_unchecked::<Option<$type>, _>($column),
            DbRow::Sqlite(row) => row.try_get_unchecked::<Option<$type>, _>($column),
        }
        .map_err(Failure::from)
    };
}

impl DbRow {
    pub(crate) fn i64(&self, column: usize) -> Result<Option<i64>, Failure> {
        cell!(self, column, i64)
    }

    pub(crate) fn text(&self, column: usize) -> Result<Option<String>, Failure> {
        cell!(self, column, String)
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<Option<Vec<u8>>, Failure> {
        cell!(self, column, Vec<u8>)
    }

    /// For a column whose definition rules NULL out.
    pub(crate) fn required_i64(&self, column: usize) -> Result<i64, Failure> {
        self.i64(column)?.ok_or_else(|| null(column))
    }

    pub(crate) fn required_text(&self, column: usize) -> Result<String, Failure> {
        self.text(column)?.ok_or_else(|| null(column))
    }
}

fn null(column: usize) -> Failure {
    Failure::Refused(format!("a value that cannot be NULL is NULL (column {column} of the answer)"))
}
