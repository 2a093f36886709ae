//! Rows and records as operators see them.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::db::connection::{Connection, DbRow, Value};
use super::db::dialect::Engine;
use super::db::error::Failure;
use super::error::Error;
use super::handle::{DispatcherId, Queue};
use super::records::{RECORD, RECORD_COLUMNS, Record, histories, time};
use super::schema::NAMES;
use super::table::{Oversize, columns, lengths};
use crate::mail::{Columns, Fingerprint, MailId, RecordId};
use crate::outcome::{History, Reason, State};

/// Up to this many waiting rows are counted.
const EXACTLY: i64 = 10_000;

/// Counts for `status`. `waiting` is exact to 10,000, then an estimate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub waiting: u64,
    pub waiting_is_estimate: bool,
    /// By state, without `Waiting`.
    pub records: Vec<(State, u64)>,
    /// Rows that were delivered and that the database does not delete; they are among those in `Held`.
    pub not_deleted: u64,
    /// The numbers of the rows that wait, ascending, at most 10,000.
    pub waiting_rows: Vec<i64>,
    /// The time at which the deferred row that is due for longest became due.
    pub oldest_deferred: Option<Timestamp>,
    /// The same of the rows that are claimed or being sent, by any dispatcher.
    pub oldest_claimed: Option<Timestamp>,
}

/// Which rows `list` shows. Conditions on decoded content (recipient, subject) are the caller's.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: all.
    pub states: Vec<State>,
    pub reason: Option<Reason>,
    /// First seen before this moment; a waiting row has none and does not match.
    pub seen_before: Option<Timestamp>,
}

/// A row as `list` and `show` see it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub id: MailId,
    pub state: State,
    pub reason: Option<Reason>,
    /// In words, for `unreadable` and the like.
    pub detail: Option<String>,
    /// `None` while waiting.
    pub record: Option<RecordId>,
    pub fingerprint: Option<Fingerprint>,
    /// The fingerprint of the content in the table, where that was read; `fingerprint` is that of the content that the
    /// record was made for.
    pub content: Option<Fingerprint>,
    pub message_id: Option<String>,
    pub first_seen: Option<Timestamp>,
    pub next_attempt: Option<Timestamp>,
    pub owner: Option<DispatcherId>,
    pub last_reply: Option<String>,
    pub history: History,
}

impl Listed {
    /// Returns true for a row that was delivered and that the database does not delete. Its next attempt is a DELETE.
    pub fn is_not_deleted(&self) -> bool {
        self.state == State::Held && self.reason == Some(Reason::NotDeleted)
    }
}

/// The content of a row, as far as it is read.
#[derive(Clone, Debug)]
pub enum Content {
    Read(Columns),
    /// A column is too long: nothing was loaded.
    TooLarge(Oversize),
}

impl Content {
    /// Bytes of all columns, as they are stored.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read(columns) => columns.len() as u64,
            Self::TooLarge(oversize) => oversize.row,
        }
    }

    /// `None` where the row is too large to be read.
    pub fn into_columns(self) -> Option<Columns> {
        match self {
            Self::Read(columns) => Some(columns),
            Self::TooLarge(_) => None,
        }
    }
}

impl Queue {
    /// Rows over `cursor` that match, ascending by number, at most `limit`.
    pub async fn list(&self, filter: &Filter, cursor: i64, limit: u32) -> Result<Vec<Listed>, Error> {
        self.retrying(|| self.list_once(filter, cursor, limit)).await
    }

    async fn list_once(&self, filter: &Filter, cursor: i64, limit: u32) -> Result<Vec<Listed>, Failure> {
        let mut connection = self.connection().await?;
        let schema = self.schema(&mut connection).await?;
        let states: BTreeSet<State> = filter.states.iter().copied().collect();
        // What asks for something that only records have needs no look at the rows that have none.
        let records_only = filter.reason.is_some()
            || filter.seen_before.is_some()
            || (!states.is_empty() && !states.contains(&State::Waiting));
        let words: Vec<_> =
            states.iter().filter(|&&state| state != State::Waiting).map(|state| format!("'{state}'")).collect();
        let mut conditions = String::new();
        let mut args: Vec<Value> = vec![self.key(), cursor.into()];
        match (states.is_empty(), states.contains(&State::Waiting), words.is_empty()) {
            (true, ..) => {}
            (false, true, true) => conditions.push_str(" AND d.mid IS NULL"),
            (false, true, false) => {
                conditions.push_str(&format!(" AND (d.mid IS NULL OR d.state IN ({}))", words.join(", ")));
            }
            (false, false, _) => conditions.push_str(&format!(" AND d.state IN ({})", words.join(", "))),
        }
        if let Some(reason) = filter.reason {
            conditions.push_str(" AND d.reason = ?");
            args.push(reason.as_str().into());
        }
        if let Some(before) = filter.seen_before {
            conditions.push_str(" AND d.created < ?");
            args.push(before.as_millisecond().into());
        }
        args.push(i64::from(limit).into());
        let (mid, table) = (self.dialect().mid, &schema.table);
        let sql = if records_only {
            format!(
                "SELECT {mid}, {RECORD} FROM mailqueue_delivery d JOIN {table} q ON q.mid = d.mid \
                 WHERE d.queue_table = ? AND d.mid > ?{conditions} ORDER BY d.mid LIMIT ?"
            )
        } else {
            format!(
                "SELECT {mid}, {RECORD} FROM {table} q LEFT JOIN mailqueue_delivery d \
                 ON d.queue_table = ? AND d.mid = q.mid WHERE q.mid > ?{conditions} ORDER BY q.mid LIMIT ?"
            )
        };
        let lines = connection.fetch(&sql, args).await?;
        self.listed(&mut connection, &lines).await
    }

    /// Lines of a row's number and [`RECORD`].
    async fn listed(&self, connection: &mut Connection, lines: &[DbRow]) -> Result<Vec<Listed>, Failure> {
        let mut records = Vec::new();
        for line in lines {
            if line.text(1)?.is_some() {
                records.push(Record::read(line, 1)?);
            }
        }
        histories(connection, &mut records).await?;
        let mut records = records.into_iter().peekable();
        let mut listed = Vec::with_capacity(lines.len());
        for line in lines {
            let mid = line.required_i64(0)?;
            let id = MailId::new(self.name().clone(), mid);
            listed.push(match records.next_if(|record| record.mid == mid) {
                Some(record) => of_record(id, record),
                None => waiting(id),
            });
        }
        Ok(listed)
    }

    /// One row with its record, and with its content unless that is too large to be read.
    pub async fn look(&self, mid: i64) -> Result<Option<(Listed, Content)>, Error> {
        self.retrying(|| self.look_once(mid)).await
    }

    async fn look_once(&self, mid: i64) -> Result<Option<(Listed, Content)>, Failure> {
        const LENGTHS: usize = 1 + RECORD_COLUMNS;
        let mut connection = self.connection().await?;
        let schema = self.schema(&mut connection).await?;
        // In one statement, so that record and content are of one moment. Where the condition does not hold, nothing of
        // the content is read.
        let bound = format!("{} <= {}", schema.longest, self.settings().longest_column());
        let bytes: Vec<_> = schema.bytes.iter().map(|bytes| format!("CASE WHEN {bound} THEN {bytes} END")).collect();
        let sql = format!(
            "SELECT {}, {RECORD}, {}, {} FROM {} q LEFT JOIN mailqueue_delivery d ON d.queue_table = ? \
             AND d.mid = q.mid WHERE q.mid = ?",
            self.dialect().mid,
            schema.lengths,
            bytes.join(", "),
            schema.table
        );
        let lines = connection.fetch(&sql, vec![self.key(), mid.into()]).await?;
        let Some(line) = lines.first() else { return Ok(None) };
        let content = match self.oversize(&lengths(line, LENGTHS)?) {
            Some(oversize) => Content::TooLarge(oversize),
            None => Content::Read(columns(line, LENGTHS + NAMES.len())?),
        };
        let fingerprint = match &content {
            Content::Read(columns) => Some(Fingerprint::of(columns)),
            Content::TooLarge(_) => None,
        };
        let listed = self.listed(&mut connection, &lines[..1]).await?.pop();
        Ok(listed.map(|listed| (Listed { content: fingerprint, ..listed }, content)))
    }

    pub async fn counts(&self, now: Timestamp) -> Result<Counts, Error> {
        self.retrying(|| self.counts_once(now)).await
    }

    async fn counts_once(&self, now: Timestamp) -> Result<Counts, Failure> {
        let mut connection = self.connection().await?;
        let schema = self.schema(&mut connection).await?;
        let mut counts = Counts::default();
        let sql = "SELECT d.state, COUNT(*) FROM mailqueue_delivery d WHERE d.queue_table = ? GROUP BY d.state";
        for line in connection.fetch(sql, vec![self.key()]).await? {
            if let Some(state) = State::parse(&line.required_text(0)?) {
                counts.records.push((state, u64::try_from(line.required_i64(1)?).unwrap_or(0)));
            }
        }
        counts.records.sort_unstable();
        counts.not_deleted = self.count_not_deleted(&mut connection).await?;

        // By number and not only counted, so that the age of each can be told.
        let sql = format!(
            "SELECT {} FROM {} q LEFT JOIN mailqueue_delivery d \
             ON d.queue_table = ? AND d.mid = q.mid WHERE d.mid IS NULL{} ORDER BY q.mid LIMIT ?",
            self.dialect().mid,
            schema.table,
            self.and_nameable()
        );
        let lines = connection.fetch(&sql, vec![self.key(), (EXACTLY + 1).into()]).await?;
        let mut waiting = lines.len() as i64;
        let counted = lines.iter().take(EXACTLY as usize);
        counts.waiting_rows = counted.map(|line| line.required_i64(0)).collect::<Result<_, _>>()?;
        if waiting > EXACTLY {
            let sql = self.dialect().estimate.replace("{table}", &schema.table);
            let name = if self.engine() == Engine::Postgres { &schema.table } else { &self.settings().table };
            let rows = connection.fetch(&sql, vec![name.as_str().into()]).await?;
            let rows = rows.first().map(|line| line.i64(0)).transpose()?.flatten().unwrap_or(0);
            let known: u64 = counts.records.iter().map(|(_, count)| count).sum();
            waiting = waiting.max(rows.saturating_sub_unsigned(known));
            counts.waiting_is_estimate = true;
        }
        counts.waiting = u64::try_from(waiting).unwrap_or(0);

        for (since, oldest) in [
            (
                "SELECT MIN(d.next_attempt) FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.state = 'deferred'",
                &mut counts.oldest_deferred,
            ),
            (
                "SELECT MIN(COALESCE(d.next_attempt, d.created)) FROM mailqueue_delivery d \
                 WHERE d.queue_table = ? AND d.state IN ('claimed', 'sending')",
                &mut counts.oldest_claimed,
            ),
        ] {
            let lines = connection.fetch(since, vec![self.key()]).await?;
            let since = lines.first().map(|line| line.i64(0)).transpose()?.flatten().map(time).transpose()?;
            *oldest = since.filter(|since| *since <= now);
        }
        Ok(counts)
    }

    async fn count_not_deleted(&self, connection: &mut Connection) -> Result<u64, Failure> {
        // Of the rows that are held, only these have a next attempt.
        let sql = format!(
            "SELECT COUNT(*) FROM mailqueue_delivery d{} WHERE d.queue_table = ? AND d.state = 'held' \
             AND d.next_attempt IS NOT NULL AND d.reason = ?",
            self.index_hint_due()
        );
        let rows = connection.fetch(&sql, vec![self.key(), Reason::NotDeleted.as_str().into()]).await?;
        let count = rows.first().map(|row| row.required_i64(0)).transpose()?.unwrap_or(0);
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

fn waiting(id: MailId) -> Listed {
    Listed {
        id,
        state: State::Waiting,
        reason: None,
        detail: None,
        record: None,
        fingerprint: None,
        content: None,
        message_id: None,
        first_seen: None,
        next_attempt: None,
        owner: None,
        last_reply: None,
        history: History::default(),
    }
}

fn of_record(id: MailId, record: Record) -> Listed {
    Listed {
        id,
        state: record.state,
        reason: record.reason,
        detail: record.detail,
        record: Some(record.id),
        fingerprint: record.fingerprint,
        content: None,
        message_id: record.message_id,
        first_seen: Some(record.created),
        next_attempt: record.next_attempt,
        owner: record.owner,
        last_reply: record.last_reply,
        history: record.history,
    }
}
