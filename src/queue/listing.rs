//! Rows and records as operators see them.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::Inner;
use super::claiming::columns;
use super::db::connection::{Line, Link, Value};
use super::db::error::{Error, Failure, persist};
use super::oversize::lengths;
use super::records::{RECORD, RECORD_COLUMNS, Record, histories, time};
use super::schema::{NAMES, Schema};
use super::view::{Content, Counts, Filter, Listed};
use crate::mail::{ColumnLimits, Fingerprint, MailId};
use crate::outcome::{History, State};

/// Up to this many waiting rows are counted.
const EXACTLY: i64 = 10_000;

impl Inner {
    pub(super) async fn limits(&self) -> Result<ColumnLimits, Error> {
        persist!(self, self.schema_once()).map(|schema| schema.cut_at)
    }

    pub(super) async fn column_sizes(&self) -> Result<ColumnLimits, Error> {
        persist!(self, self.schema_once()).map(|schema| schema.sizes)
    }

    async fn schema_once(&self) -> Result<Arc<Schema>, Failure> {
        let mut link = self.link().await?;
        self.schema(&mut link).await
    }

    pub(super) async fn list(&self, filter: &Filter, cursor: i64, limit: u32) -> Result<Vec<Listed>, Error> {
        persist!(self, self.list_once(filter, cursor, limit))
    }

    async fn list_once(&self, filter: &Filter, cursor: i64, limit: u32) -> Result<Vec<Listed>, Failure> {
        let mut link = self.link().await?;
        let schema = self.schema(&mut link).await?;
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
        let lines = link.fetch(&sql, args).await?;
        self.listed(&mut link, &lines).await
    }

    /// Lines of a row's number and [`RECORD`].
    async fn listed(&self, link: &mut Link, lines: &[Line]) -> Result<Vec<Listed>, Failure> {
        let mut records = Vec::new();
        for line in lines {
            if line.text(1)?.is_some() {
                records.push(Record::read(line, 1)?);
            }
        }
        histories(link, &mut records).await?;
        let mut records = records.into_iter().peekable();
        let mut listed = Vec::with_capacity(lines.len());
        for line in lines {
            let mid = line.some_int(0)?;
            let id = MailId::new(self.name().clone(), mid);
            listed.push(match records.next_if(|record| record.mid == mid) {
                Some(record) => of_record(id, record),
                None => waiting(id),
            });
        }
        Ok(listed)
    }

    pub(super) async fn look(&self, mid: i64) -> Result<Option<(Listed, Content)>, Error> {
        persist!(self, self.look_once(mid))
    }

    async fn look_once(&self, mid: i64) -> Result<Option<(Listed, Content)>, Failure> {
        const LENGTHS: usize = 1 + RECORD_COLUMNS;
        let mut link = self.link().await?;
        let schema = self.schema(&mut link).await?;
        // In one statement, so that record and content are of one moment. Where the condition does not hold, nothing of
        // the content is read.
        let bound = format!("{} <= {}", schema.longest, self.settings.longest_column());
        let bytes: Vec<_> = schema.bytes.iter().map(|bytes| format!("CASE WHEN {bound} THEN {bytes} END")).collect();
        let sql = format!(
            "SELECT {}, {RECORD}, {}, {} FROM {} q LEFT JOIN mailqueue_delivery d ON d.queue_table = ? \
             AND d.mid = q.mid WHERE q.mid = ?",
            self.dialect().mid,
            schema.lengths,
            bytes.join(", "),
            schema.table
        );
        let lines = link.fetch(&sql, vec![self.key(), mid.into()]).await?;
        let Some(line) = lines.first() else { return Ok(None) };
        let content = match self.oversize(&lengths(line, LENGTHS)?) {
            Some(oversize) => Content::TooLarge(oversize),
            None => Content::Read(columns(line, LENGTHS + NAMES.len())?),
        };
        let fingerprint = match &content {
            Content::Read(columns) => Some(Fingerprint::of(columns)),
            Content::TooLarge(_) => None,
        };
        let listed = self.listed(&mut link, &lines[..1]).await?.pop();
        Ok(listed.map(|listed| (Listed { content: fingerprint, ..listed }, content)))
    }

    pub(super) async fn counts(&self, now: Timestamp) -> Result<Counts, Error> {
        persist!(self, self.counts_once(now))
    }

    async fn counts_once(&self, now: Timestamp) -> Result<Counts, Failure> {
        let mut link = self.link().await?;
        let schema = self.schema(&mut link).await?;
        let mut counts = Counts::default();
        let sql = "SELECT d.state, COUNT(*) FROM mailqueue_delivery d WHERE d.queue_table = ? GROUP BY d.state";
        for line in link.fetch(sql, vec![self.key()]).await? {
            if let Some(state) = State::parse(&line.some_text(0)?) {
                counts.records.push((state, u64::try_from(line.some_int(1)?).unwrap_or(0)));
            }
        }
        counts.records.sort_unstable();

        let sql = format!(
            "SELECT COUNT(*) FROM (SELECT 1 AS one FROM {} q LEFT JOIN mailqueue_delivery d \
             ON d.queue_table = ? AND d.mid = q.mid WHERE d.mid IS NULL LIMIT ?) w",
            schema.table
        );
        let waiting = link.fetch(&sql, vec![self.key(), (EXACTLY + 1).into()]).await?;
        let mut waiting = waiting.first().map(|line| line.some_int(0)).transpose()?.unwrap_or(0);
        if waiting > EXACTLY {
            let sql = self.dialect().estimate.replace("{table}", &schema.table);
            let name = if self.dialect().name == "postgres" { &schema.table } else { &self.settings.table };
            let rows = link.fetch(&sql, vec![name.as_str().into()]).await?;
            let rows = rows.first().map(|line| line.int(0)).transpose()?.flatten().unwrap_or(0);
            let known: u64 = counts.records.iter().map(|(_, count)| count).sum();
            waiting = waiting.max(rows.saturating_sub_unsigned(known));
            counts.waiting_is_estimate = true;
        }
        counts.waiting = u64::try_from(waiting).unwrap_or(0);

        // Since when a waiting row waits nobody knows: the tables have no time.
        let mut oldest = (waiting > 0).then_some(now);
        for since in [
            "SELECT MIN(d.next_attempt) FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.state = 'deferred'",
            "SELECT MIN(COALESCE(d.next_attempt, d.created)) FROM mailqueue_delivery d \
             WHERE d.queue_table = ? AND d.state IN ('claimed', 'sending')",
        ] {
            let lines = link.fetch(since, vec![self.key()]).await?;
            if let Some(since) = lines.first().map(|line| line.int(0)).transpose()?.flatten() {
                let since = time(since)?;
                oldest = oldest.into_iter().chain((since <= now).then_some(since)).min();
            }
        }
        counts.oldest_due_seconds = oldest.map(|since| u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0));
        Ok(counts)
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
