//! The producers' table: what a row contains, how large it is, and its end.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::db::connection::{Connection, DbRow, Value};
use super::db::dialect::{Engine, GROUP, padded, placeholders};
use super::db::error::Failure;
use super::error::Error;
use super::handle::Queue;
use super::schema::{NAMES, Schema};
use crate::mail::{ColumnLimits, Columns, Fingerprint};

/// A row that was not read, because a column of it decodes to more than twice `message.max_size`. `Display` says it to a
/// person, with the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oversize {
    /// The longest column.
    pub column: &'static str,
    /// Bytes of that column as they are stored, in base64.
    pub stored: u64,
    /// Bytes of all columns together.
    pub row: u64,
    /// `message.max_size`, in bytes.
    pub max_size: u64,
}

impl fmt::Display for Oversize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, stored, max_size, .. } = self;
        let decoded = stored / 4 * 3;
        write!(
            f,
            "{column} holds {decoded} bytes ({stored} in base64), more than twice the {max_size} that message.max_size \
             allows a mail: the row was not read; raise message.max_size and `retry` the row, or `delete` it"
        )
    }
}

/// The columns' lengths in bytes; `None` is NULL.
pub(super) type ColumnLengths = [Option<u64>; 5];

/// Reads them, which begin at this column of the line.
pub(super) fn lengths(line: &DbRow, first: usize) -> Result<ColumnLengths, Failure> {
    let mut lengths = [None; 5];
    for (at, length) in lengths.iter_mut().enumerate() {
        *length = u64::try_from(line.required_i64(first + at)?).ok();
    }
    Ok(lengths)
}

/// The result of a DELETE of rows.
pub(super) enum Deletion {
    /// The rows are deleted, except those that were gone or had another content (`changed`) before, and those that the
    /// DELETE left alone although they are as they were (`kept`).
    Ended { gone: HashSet<i64>, changed: HashSet<i64>, kept: HashSet<i64> },
    /// Some of the rows were gone before, and it is not known which. Never so with a single row.
    Unclear,
    /// The database refuses it, in these words. The transaction is to be rolled back.
    Refused(String),
}

/// The rows that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lengths {
    /// None with a column that is too long to be read.
    Bounded,
    Any,
}

/// Bytes of a content whose hash takes about a millisecond. Larger ones are hashed on a thread of their own, so that no
/// heartbeat and no reply waits for them.
const HASHED_AT_ONCE: usize = 512 * 1024;

impl Queue {
    /// The lengths in bytes at which the database cuts a value off silently; `u64::MAX` for a column that it does not
    /// cut, as PostgreSQL and SQLite never do. Read again every five minutes.
    pub async fn limits(&self) -> Result<ColumnLimits, Error> {
        self.retrying(|| self.schema_once()).await.map(|schema| schema.cut_at)
    }

    /// The longest value that each column holds, in bytes of base64; `u64::MAX` for a column without a limit.
    pub async fn column_sizes(&self) -> Result<ColumnLimits, Error> {
        self.retrying(|| self.schema_once()).await.map(|schema| schema.sizes)
    }

    async fn schema_once(&self) -> Result<Arc<Schema>, Failure> {
        let mut connection = self.connection().await?;
        self.schema(&mut connection).await
    }

    /// Returns true where the table has a column for `mparams`.
    pub async fn has_params(&self) -> Result<bool, Error> {
        let schema = async { self.schema(&mut self.connection().await?).await };
        let schema = schema.await.map_err(|failure: Failure| failure.into_error(self.name()))?;
        Ok(schema.columns.iter().any(|(name, _)| *name == "mparams"))
    }

    /// Returns true where the table gives numbers out again at once (SQLite without AUTOINCREMENT), so that number and
    /// content of a mail sent earlier do not prove a restored dump.
    pub async fn reuses_numbers(&self) -> Result<bool, Error> {
        if self.engine() != Engine::Sqlite {
            return Ok(false);
        }
        self.retrying(|| self.reuses_numbers_once()).await
    }

    async fn reuses_numbers_once(&self) -> Result<bool, Failure> {
        let sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(?) \
                   AND upper(sql) LIKE '%AUTOINCREMENT%'";
        let lines = self.connection().await?.fetch(sql, vec![self.settings().table.as_str().into()]).await?;
        Ok(lines.is_empty())
    }

    /// Inserts a row as a producer would, and returns its number. It is not tried again when the answer is lost: a mail
    /// twice is worse than an error.
    pub async fn insert(&self, columns: &Columns) -> Result<i64, Error> {
        self.insert_once(columns).await.map_err(|failure| failure.into_error(self.name()))
    }

    async fn insert_once(&self, columns: &Columns) -> Result<i64, Failure> {
        let mut connection = self.connection().await?;
        let schema = self.schema(&mut connection).await?;
        let (mut names, mut marks, mut args) = (Vec::new(), Vec::new(), Vec::<Value>::new());
        for (name, value) in columns.each() {
            let Some((_, kind)) = schema.columns.iter().find(|(there, _)| *there == name) else {
                if value.is_some() {
                    return Err(Failure::Refused(format!("the table {} has no column {name}", self.settings().table)));
                }
                continue;
            };
            let text = value.map(std::str::from_utf8).transpose();
            let text = text.map_err(|_| Failure::Refused(format!("the value for {name} is no text")))?;
            names.push(name);
            marks.push((self.dialect().place)(kind));
            args.push(text.into());
        }
        let mut sql = format!("INSERT INTO {} ({}) VALUES ({})", schema.table, names.join(", "), marks.join(", "));
        let lines = match self.dialect().last_number {
            Some(last) => {
                connection.execute(&sql, args).await?;
                connection.fetch(last, Vec::new()).await?
            }
            None => {
                sql.push_str(" RETURNING CAST(mid AS BIGINT)");
                connection.fetch(&sql, args).await?
            }
        };
        lines.first().map(|line| line.required_i64(0)).transpose()?.ok_or_else(|| {
            Failure::Refused("the INSERT answered no number; does the table number its rows by itself?".to_owned())
        })
    }

    /// The columns of rows, as they stand now. Bounded: of those only that are not too large to be read.
    pub(super) async fn contents(
        &self,
        connection: &mut Connection,
        mids: impl Iterator<Item = i64>,
        lengths: Lengths,
    ) -> Result<HashMap<i64, Columns>, Failure> {
        let schema = self.schema(connection).await?;
        let (numbers, mids) = self.dialect().among("q.mid", mids);
        let bound = match lengths {
            Lengths::Bounded => format!(" AND {} <= {}", schema.longest, self.settings().longest_column()),
            Lengths::Any => String::new(),
        };
        let (mid, bytes, table) = (self.dialect().mid, schema.bytes.join(", "), &schema.table);
        let sql = format!("SELECT {mid}, {bytes} FROM {table} q WHERE {numbers}{bound}");
        let lines = connection.fetch(&sql, mids.into_iter().map(Value::from).collect()).await?;
        // Row by row, so that few bodies are in memory twice.
        lines.into_iter().map(|line| Ok((line.required_i64(0)?, columns(&line, 1)?))).collect()
    }

    /// The contents' fingerprints of those of the rows that are there.
    pub(super) async fn fingerprints(
        &self,
        connection: &mut Connection,
        mids: &[i64],
    ) -> Result<HashMap<i64, Fingerprint>, Failure> {
        let schema = self.schema(connection).await?;
        let mut found = HashMap::with_capacity(mids.len());
        let Some(fingerprint) = &schema.fingerprint else {
            // One row at a time: together they may be larger than memory.
            for &mid in mids {
                found.extend(self.fingerprint_here(connection, mid).await?.map(|content| (mid, content)));
            }
            return Ok(found);
        };
        for group in mids.chunks(GROUP) {
            let args: Vec<Value> = padded(group.iter().map(|&mid| mid.into()).collect());
            let sql = format!(
                "SELECT {}, {fingerprint} FROM {} q WHERE q.mid IN ({})",
                self.dialect().mid,
                schema.table,
                placeholders(args.len())
            );
            for line in connection.fetch(&sql, args).await? {
                let content = Fingerprint::from_hex(&line.required_text(1)?)
                    .ok_or_else(|| Failure::Refused("the database answers no SHA-256".to_owned()))?;
                found.insert(line.required_i64(0)?, content);
            }
        }
        Ok(found)
    }

    /// The fingerprint of a row whose database computes none; `None` where the row is gone. That of a row that is too
    /// large to be read is of its lengths, unless its record says that it was read once, under a larger `max_size`: the
    /// record must not be taken for another row's.
    pub(super) async fn fingerprint_here(
        &self,
        connection: &mut Connection,
        mid: i64,
    ) -> Result<Option<Fingerprint>, Failure> {
        let mut content = self.contents(connection, std::iter::once(mid), Lengths::Bounded).await?.remove(&mid);
        if content.is_none() {
            let Some(lengths) = self.lengths(connection, &[mid]).await?.remove(&mid) else { return Ok(None) };
            if self.oversize(&lengths).is_some() && !self.was_read(connection, mid).await? {
                return Ok(Some(Fingerprint::of_lengths(lengths)));
            }
            content = self.contents(connection, std::iter::once(mid), Lengths::Any).await?.remove(&mid);
        }
        match content {
            Some(columns) => Ok(Some(fingerprinted(columns).await.0)),
            None => Ok(None),
        }
    }

    async fn was_read(&self, connection: &mut Connection, mid: i64) -> Result<bool, Failure> {
        let sql = "SELECT d.fingerprint FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.mid = ?";
        let lines = connection.fetch(sql, vec![self.key(), mid.into()]).await?;
        let made_for = lines.first().map(|line| line.text(0)).transpose()?.flatten();
        Ok(made_for.and_then(|text| Fingerprint::from_hex(&text)).is_some_and(|made| !made.is_of_lengths()))
    }

    /// Says why a row with these columns is not read; `None` where it is.
    pub(super) fn oversize(&self, lengths: &ColumnLengths) -> Option<Oversize> {
        let named = NAMES.into_iter().zip(lengths.iter().map(|length| length.unwrap_or(0)));
        let (column, stored) = named.max_by_key(|&(_, length)| length)?;
        let row = lengths.iter().flatten().sum();
        let max_size = self.settings().max_size;
        (stored > self.settings().longest_column()).then_some(Oversize { column, stored, row, max_size })
    }

    /// The lengths of the columns of those of the rows that are there.
    pub(super) async fn lengths(
        &self,
        connection: &mut Connection,
        mids: &[i64],
    ) -> Result<HashMap<i64, ColumnLengths>, Failure> {
        let schema = self.schema(connection).await?;
        let mut found = HashMap::with_capacity(mids.len());
        for group in mids.chunks(GROUP) {
            let (numbers, args) = self.dialect().among("q.mid", group.iter().copied());
            let (mid, table) = (self.dialect().mid, &schema.table);
            let sql = format!("SELECT {mid}, {} FROM {table} q WHERE {numbers}", schema.lengths);
            for line in connection.fetch(&sql, args.into_iter().map(Value::from).collect()).await? {
                found.insert(line.required_i64(0)?, lengths(&line, 1)?);
            }
        }
        Ok(found)
    }

    /// Deletes rows by number and content, ascending. A DELETE that takes fewer rows than it should is looked into: a row
    /// that is still there with the same content was left alone by the database.
    pub(super) async fn delete_rows(
        &self,
        connection: &mut Connection,
        mut rows: Vec<(i64, Fingerprint)>,
    ) -> Result<Deletion, Failure> {
        rows.sort_unstable_by_key(|&(mid, _)| mid);
        let schema = self.schema(connection).await?;
        let (mut gone, mut changed, mut kept) = (HashSet::new(), HashSet::new(), HashSet::new());
        for group in rows.chunks(GROUP) {
            let deleted = match self.delete_group(connection, &schema, group).await {
                Ok(deleted) => deleted,
                Err(Failure::Refused(words)) => return Ok(Deletion::Refused(words)),
                // The table and its columns are there: a trigger on DELETE uses something that is not.
                Err(Failure::Missing(words)) if schema.is_new() => return Ok(Deletion::Refused(words)),
                Err(failure) => return Err(failure),
            };
            if deleted == group.len() as u64 {
                continue;
            }
            let mids: Vec<i64> = group.iter().map(|&(mid, _)| mid).collect();
            let there = self.fingerprints(connection, &mids).await?;
            let mut absent = Vec::new();
            for &(mid, content) in group {
                match there.get(&mid) {
                    Some(found) if *found == content => drop(kept.insert(mid)),
                    Some(_) => drop(changed.insert(mid)),
                    None => absent.push(mid),
                }
            }
            match deleted {
                0 => gone.extend(absent),
                deleted if deleted >= absent.len() as u64 => {}
                _ => return Ok(Deletion::Unclear),
            }
        }
        Ok(Deletion::Ended { gone, changed, kept })
    }

    /// Returns the number of rows that were deleted.
    async fn delete_group(
        &self,
        connection: &mut Connection,
        schema: &Schema,
        group: &[(i64, Fingerprint)],
    ) -> Result<u64, Failure> {
        let Some(fingerprint) = &schema.fingerprint else {
            // The database cannot compare contents, so that we do, and no other can write meanwhile.
            let mids: Vec<i64> = group.iter().map(|&(mid, _)| mid).collect();
            let found = self.fingerprints(connection, &mids).await?;
            let same = |(mid, content): &&(i64, Fingerprint)| found.get(mid) == Some(content);
            let mids: Vec<Value> = padded(group.iter().filter(same).map(|&(mid, _)| mid.into()).collect());
            let sql = format!("DELETE FROM {} WHERE mid IN ({})", schema.table, placeholders(mids.len()));
            return if mids.is_empty() { Ok(0) } else { connection.execute(&sql, mids).await };
        };
        let padded = padded(group.to_vec());
        let placeholders = placeholders(padded.len());
        let sql = format!(
            "{} {} AS q{} WHERE q.mid IN ({placeholders}) AND {} IN ({placeholders})",
            self.dialect().delete,
            schema.table,
            schema.by_mid,
            (self.dialect().pair)(fingerprint)
        );
        let pair =
            |(mid, content): &(i64, Fingerprint)| Value::Text(Some(format!("{mid}:{}", content.to_hex()).into()));
        let args = padded.iter().map(|&(mid, _)| mid.into()).chain(padded.iter().map(pair)).collect();
        connection.execute(&sql, args).await
    }
}

/// The content with its fingerprint.
pub(super) async fn fingerprinted(columns: Columns) -> (Fingerprint, Columns) {
    if columns.len() <= HASHED_AT_ONCE {
        return (Fingerprint::of(&columns), columns);
    }
    match tokio::task::spawn_blocking(move || (Fingerprint::of(&columns), columns)).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Reads the five columns, which begin at this column of the line.
pub(super) fn columns(line: &DbRow, first: usize) -> Result<Columns, Failure> {
    Ok(Columns {
        mto: line.bytes(first)?,
        msubject: line.bytes(first + 1)?,
        mbody: line.bytes(first + 2)?,
        mheaders: line.bytes(first + 3)?,
        mparams: line.bytes(first + 4)?,
    })
}
