//! Rows and records as operators see them, and what operators do with them.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::db::connection::{Connection, DbRow, Value};
use super::db::dialect::{Engine, tuples};
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

/// The most rows that one transaction of an operator changes.
const GROUP: usize = 64;

/// Counts for `status`. `waiting` is exact to 10,000, then an estimate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub waiting: u64,
    pub waiting_is_estimate: bool,
    /// By state, without `Waiting`.
    pub records: Vec<(State, u64)>,
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

/// A row that an operator means, as it was when it was selected.
#[derive(Clone, Debug)]
pub struct Selected {
    pub mid: i64,
    /// `None`: whatever stands under the number.
    pub(super) seen: Option<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub state: State,
    pub reason: Option<Reason>,
    pub record: Option<RecordId>,
    /// The fingerprint of the content in the table.
    pub content: Fingerprint,
}

impl Selected {
    /// Returns the row as it is `now`, if it has the content that it had when it was selected; else as it was, which
    /// [`Queue::apply`] takes for changed.
    pub fn refreshed(&self, now: Self) -> Self {
        match (&self.seen, &now.seen) {
            (Some(then), Some(seen)) if then.content != seen.content => self.clone(),
            _ => now,
        }
    }
}

impl From<i64> for Selected {
    fn from(mid: i64) -> Self {
        Self { mid, seen: None }
    }
}

/// An operator's action on rows.
#[derive(Clone, Debug)]
pub enum Action {
    /// Due now; acceptances are kept.
    Retry,
    Hold,
    /// Back from `held`, due now; acceptances are kept.
    Release,
    /// Row and record are deleted.
    Delete,
}

/// The outcome of an operator's action for one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There is no such row.
    NotFound,
    /// A dispatcher is at work on it, or it is not in a state in which the action makes sense; the text says which.
    Rejected(String),
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

        // By number and not only counted, so that the age of each can be told.
        let sql = format!(
            "SELECT {} FROM {} q LEFT JOIN mailqueue_delivery d \
             ON d.queue_table = ? AND d.mid = q.mid WHERE d.mid IS NULL ORDER BY q.mid LIMIT ?",
            self.dialect().mid,
            schema.table
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

    /// Holds on to how these rows are now, so that [`Queue::apply`] touches none that is another by then; rows that are
    /// gone are left out.
    pub async fn select(&self, rows: &[Listed]) -> Result<Vec<Selected>, Error> {
        let mut selected = Vec::with_capacity(rows.len());
        for group in rows.chunks(GROUP) {
            let unread = group.iter().filter(|row| row.content.is_none());
            let mids: Vec<_> = unread.map(|row| row.id.mid).collect();
            let contents =
                self.retrying(async || self.fingerprints(&mut self.connection().await?, &mids).await).await?;
            selected.extend(group.iter().filter_map(|row| {
                let content = row.content.or(contents.get(&row.id.mid).copied())?;
                let seen = Seen { state: row.state, reason: row.reason, record: row.record, content };
                Some(Selected { mid: row.id.mid, seen: Some(seen) })
            }));
        }
        Ok(selected)
    }

    /// Carries out an operator's action, row by row, in groups. Claimed and sending rows are left alone, and so are those
    /// that have changed since they were selected.
    pub async fn apply(
        &self,
        action: &Action,
        rows: &[Selected],
        now: Timestamp,
    ) -> Result<Vec<(i64, Outcome)>, Error> {
        let mut outcomes = HashMap::new();
        let mut ascending: Vec<_> = rows.iter().collect();
        ascending.sort_by_key(|row| row.mid);
        ascending.dedup_by_key(|row| row.mid);
        for group in ascending.chunks(GROUP) {
            outcomes.extend(self.retrying(|| self.apply_once(action, group, now)).await?);
        }
        Ok(rows.iter().filter_map(|row| Some((row.mid, outcomes.get(&row.mid)?.clone()))).collect())
    }

    async fn apply_once(
        &self,
        action: &Action,
        rows: &[&Selected],
        now: Timestamp,
    ) -> Result<Vec<(i64, Outcome)>, Failure> {
        let mids: &[i64] = &rows.iter().map(|row| row.mid).collect::<Vec<_>>();
        let mut connection = self.connection().await?;
        // Before the transaction: hashing large rows takes its time.
        let contents = self.fingerprints(&mut connection, mids).await?;
        connection.begin(self.dialect().begin).await?;
        let mut records = self.locked(&mut connection, mids).await?;
        let changes: HashMap<i64, String> = rows
            .iter()
            .filter_map(|row| {
                let change = row.seen.as_ref()?.change(contents.get(&row.mid)?, records.get(&row.mid))?;
                Some((row.mid, change))
            })
            .collect();
        if matches!(action, Action::Hold | Action::Delete) {
            // A record of our own keeps dispatchers away from rows that were waiting.
            let is_waiting = |mid: &&i64| !records.contains_key(mid) && !changes.contains_key(mid);
            let fresh = mids.iter().filter(is_waiting);
            let fresh: Vec<_> = fresh.filter_map(|mid| Some((*mid, *contents.get(mid)?))).collect();
            self.hold_waiting(&mut connection, &fresh, now).await?;
            if !fresh.is_empty() {
                records = self.locked(&mut connection, mids).await?;
            }
        }
        let mut outcomes = Vec::with_capacity(mids.len());
        for &mid in mids {
            let answer = match (contents.get(&mid), records.get(&mid)) {
                (None, _) => Outcome::NotFound,
                (Some(_), Some(record)) if matches!(record.state, State::Claimed | State::Sending) => {
                    Outcome::Rejected(format!("a dispatcher is at work on it ({})", record.state))
                }
                _ if changes.contains_key(&mid) => Outcome::Rejected(changes[&mid].clone()),
                (Some(content), Some(record)) if record.fingerprint.is_some_and(|made| made != *content) => {
                    self.drop_records(&mut connection, &[record.key()]).await?;
                    let was_unread = record.fingerprint.is_some_and(Fingerprint::is_of_lengths);
                    match action {
                        // Under a larger `max_size` it can be read now: as a waiting row it is tried again.
                        Action::Retry if was_unread => Outcome::Done,
                        _ => Outcome::Rejected("the row has another content than it had; it is waiting now".to_owned()),
                    }
                }
                (Some(content), record) => {
                    self.apply_to_row(&mut connection, action, mid, *content, record, now).await?
                }
            };
            outcomes.push((mid, answer));
        }
        connection.commit().await?;
        Ok(outcomes)
    }

    /// Locks and reads the records of these rows.
    async fn locked(&self, connection: &mut Connection, mids: &[i64]) -> Result<HashMap<i64, Record>, Failure> {
        let (condition, args) = self.where_rows("d", mids.iter().copied());
        let sql = format!(
            "SELECT {RECORD} FROM mailqueue_delivery d{} WHERE {condition} ORDER BY d.mid{}",
            self.index_hint_primary(),
            self.dialect().lock
        );
        let lines = connection.fetch(&sql, args).await?;
        lines.iter().map(|line| Record::read(line, 0).map(|record| (record.mid, record))).collect()
    }

    async fn hold_waiting(
        &self,
        connection: &mut Connection,
        rows: &[(i64, Fingerprint)],
        now: Timestamp,
    ) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        let (insert, skip) = self.dialect().skip;
        let sql = format!(
            "{insert} mailqueue_delivery (id, queue_table, mid, fingerprint, state, reason, created) VALUES {} {skip}",
            tuples(rows.len(), "?, ?, ?, ?, 'held', 'operator', ?")
        );
        let ids: Vec<_> = rows.iter().map(|_| RecordId::new(rand::random())).collect();
        let mut args: Vec<Value> = Vec::with_capacity(rows.len() * 5);
        for (id, &(mid, content)) in ids.iter().zip(rows) {
            args.extend([
                id.as_str().into(),
                self.key(),
                mid.into(),
                Some(content).into(),
                now.as_millisecond().into(),
            ]);
        }
        connection.execute(&sql, args).await.map(drop)
    }

    /// `record` is of this content, and nobody's claim.
    async fn apply_to_row(
        &self,
        connection: &mut Connection,
        action: &Action,
        mid: i64,
        content: Fingerprint,
        record: Option<&Record>,
        now: Timestamp,
    ) -> Result<Outcome, Failure> {
        let not_now = |what: &str| Ok(Outcome::Rejected(what.to_owned()));
        match (action, record) {
            (Action::Retry, None) => Ok(Outcome::Done),
            (Action::Release, None) => not_now("it is waiting, not held"),
            (Action::Hold | Action::Delete, None) => not_now("another process has just taken it"),
            (Action::Retry, Some(record)) if record.state == State::Held => not_now("it is held; `release` it"),
            (Action::Release, Some(record)) if record.state != State::Held => {
                not_now(&format!("it is {}, not held", record.state))
            }
            (Action::Retry | Action::Release, Some(record)) => {
                // Whoever asks for another try asks for those who were refused as well.
                let sql = "DELETE FROM mailqueue_recipient WHERE record = ? AND state <> 'accepted'";
                connection.execute(sql, vec![record.id.as_str().into()]).await?;
                // Expiry counts anew, or what was too old would fail at once.
                let sql = "UPDATE mailqueue_delivery SET state = 'deferred', reason = 'operator', detail = NULL, \
                           first_deferred = NULL, next_attempt = ?, owner = NULL WHERE queue_table = ? AND mid = ?";
                connection.execute(sql, vec![now.as_millisecond().into(), self.key(), mid.into()]).await?;
                Ok(Outcome::Done)
            }
            (Action::Hold, Some(record)) if record.state == State::Held => Ok(Outcome::Done),
            (Action::Hold, Some(_)) => {
                let sql = "UPDATE mailqueue_delivery SET state = 'held', reason = 'operator', next_attempt = NULL, \
                           owner = NULL WHERE queue_table = ? AND mid = ?";
                connection.execute(sql, vec![self.key(), mid.into()]).await?;
                Ok(Outcome::Done)
            }
            (Action::Delete, Some(record)) => {
                let gone = self.delete_rows(connection, vec![(mid, content)], true).await?.unwrap_or_default();
                self.drop_records(connection, &[record.key()]).await?;
                if gone.is_empty() { Ok(Outcome::Done) } else { not_now("the row was changed just now") }
            }
        }
    }
}

impl Seen {
    /// Says in words how the row has changed since it was selected; `None` where it is as it was.
    fn change(&self, content: &Fingerprint, record: Option<&Record>) -> Option<String> {
        let state = record.map_or(State::Waiting, |record| record.state);
        if self.content != *content {
            return Some("it changed meanwhile: there is another mail under its number".to_owned());
        }
        if self.state != state {
            return Some(format!("it changed meanwhile: it was {} when it was chosen, and is {state}", self.state));
        }
        let same = record.map(|record| &record.id) == self.record.as_ref()
            && record.and_then(|record| record.reason) == self.reason;
        (!same).then(|| format!("it changed meanwhile: it was tried again, and is {state} anew"))
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
