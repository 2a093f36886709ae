//! From a row that is due to its content, and to the mark that it is being sent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::db::connection::{Connection, DbRow, LockWait};
use super::db::dialect::{Engine, GROUP, padded, tuples};
use super::db::error::Failure;
use super::error::Error;
use super::handle::{Queue, ScanStart};
use super::parts::LOCKED_ENOUGH;
use super::records::{Key, RECORD, RECORD_COLUMNS, Record, borrowed, histories, keys_of};
use super::table::{Lengths, Oversize, fingerprinted};
use super::token::ClaimToken;
use crate::mail::{Columns, Fingerprint, MailId, RecordId};
use crate::outcome::History;

/// A look at the head of the table that takes longer is one at very many records.
const SLOW_SCAN: Duration = Duration::from_millis(100);

/// The share of such looks in the time, as one part in this number; none is put off for longer than [`LONGEST_PAUSE`].
const SCAN_DUTY: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Bytes. The fingerprint of a content of at most this size is read with the row's number and goes into the record with
/// the claim: to mark a batch `sending` then takes half as long. Larger contents would hold up the search.
const SMALL: u64 = 64 * 1024;

/// The most recipients with a history in one claim of due rows, unless a single row has more: about 6 MB with their
/// replies.
const MOST_RECIPIENTS: i64 = 20_000;

/// The highest number that a record can name. MySQL's BIGINT UNSIGNED has higher ones.
pub(super) const HIGHEST_NUMBER: i64 = i64::MAX;

/// A row that no record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub mid: i64,
    /// Bytes of its columns together, as they are stored.
    pub bytes: u64,
    /// Bytes of its longest column.
    pub longest: u64,
    /// The fingerprint of its content, where the database computes it and the row is small.
    pub fingerprint: Option<Fingerprint>,
}

/// The right to handle one row, from [`Queue::claim`](super::Queue::claim) until
/// [`Queue::settle`](super::Queue::settle). Made only here; settling consumes it.
#[must_use = "a claim that is dropped stays claimed until the next pass, or, once it is `sending`, until the next recovery"]
#[derive(Debug)]
pub struct Claim {
    pub(super) id: MailId,
    pub(super) record: RecordId,
    /// Random, new with every claim: a claim that was lost and won back by the same dispatcher is another claim.
    pub(super) token: ClaimToken,
    pub(super) created: Timestamp,
    /// The fingerprint of the content that the record was made for, as far as the record says it.
    pub(super) fingerprint: Option<Fingerprint>,
    /// The record was made with this claim: nothing was known of the row before.
    pub(super) new: bool,
    pub(super) history: History,
    /// Bytes of the row's columns when it was found; 0 where the row was not looked at, or was gone.
    pub(super) bytes: u64,
    /// Bytes of its longest column, likewise.
    pub(super) longest: u64,
    /// Counts the claims that are in somebody's hands.
    pub(super) _alive: TaskTrackerToken,
}

impl Claim {
    /// The claim on a row that a record stands for.
    pub(super) fn of(queue: &Queue, record: Record, token: &ClaimToken) -> Self {
        Self {
            id: MailId::new(Arc::clone(queue.name()), record.mid),
            record: record.id,
            token: token.clone(),
            created: record.created,
            fingerprint: record.fingerprint,
            new: false,
            history: record.history,
            bytes: record.bytes,
            longest: record.longest,
            _alive: queue.inner.claims.token(),
        }
    }

    pub(super) fn key(&self) -> (i64, &RecordId) {
        (self.id.mid, &self.record)
    }

    pub fn id(&self) -> &MailId {
        &self.id
    }

    pub fn record(&self) -> &RecordId {
        &self.record
    }

    /// The time at which the record was made.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Nothing was known of the row before.
    pub fn is_new(&self) -> bool {
        self.new
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    /// The bytes of the row's columns when it was found.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Another dispatcher was sending this row when it died, and nobody has settled that yet: our ledger knows nothing
    /// of it.
    pub fn was_taken_over(&self) -> bool {
        self.token.is_taken_over()
    }
}

/// A row with its content.
#[derive(Debug)]
pub struct Row {
    pub claim: Claim,
    pub columns: Columns,
    pub fingerprint: Fingerprint,
}

/// A claimed row that is too large to be read.
#[derive(Debug)]
pub struct Unread {
    pub claim: Claim,
    pub oversize: Oversize,
    /// The fingerprint of the content where the database computes it, else of the columns' lengths.
    pub fingerprint: Fingerprint,
}

impl Queue {
    /// The number of claims of this queue that this process holds.
    pub fn claims(&self) -> usize {
        self.inner.claims.len()
    }

    /// Ends when there are none.
    pub async fn all_settled(&self) {
        self.inner.claims.wait().await;
    }

    /// Rows over `cursor` that no record stands for, ascending by number. `i64::MIN` begins again, but where very many
    /// records stand at the head of the table not every time at the very beginning.
    pub async fn find(&self, cursor: i64, limit: u32) -> Result<Vec<Found>, Error> {
        let known = self.scan_start().filter(|start| Instant::now() < start.again);
        let from = known.map_or(cursor, |start| start.end.max(cursor));
        if from > i64::MIN {
            return self.retrying(|| self.find_once(from, limit)).await;
        }
        let begin = Instant::now();
        let found = self.retrying(|| self.find_once(from, limit)).await?;
        let took = begin.elapsed();
        if took > SLOW_SCAN {
            let end = match found.first() {
                Some(first) => first.mid - 1,
                None => self.retrying(|| self.last_record_once()).await?.unwrap_or(i64::MIN),
            };
            let again = Instant::now() + (took * SCAN_DUTY).min(LONGEST_PAUSE);
            self.set_scan_start(Some(ScanStart { end, again }));
        }
        Ok(found)
    }

    /// The condition that a row's number can be named by us. Only MySQL has higher numbers, and PostgreSQL would look
    /// through the whole table.
    pub(super) fn and_nameable(&self) -> String {
        match self.engine() {
            Engine::MySql => format!(" AND q.mid <= {HIGHEST_NUMBER}"),
            Engine::Postgres | Engine::Sqlite => String::new(),
        }
    }

    async fn last_record_once(&self) -> Result<Option<i64>, Failure> {
        let sql = "SELECT MAX(d.mid) FROM mailqueue_delivery d WHERE d.queue_table = ?";
        let lines = self.connection().await?.fetch(sql, vec![self.key()]).await?;
        lines.first().map_or(Ok(None), |line| line.i64(0))
    }

    async fn find_once(&self, cursor: i64, limit: u32) -> Result<Vec<Found>, Failure> {
        let mut connection = self.connection().await?;
        let schema = self.schema(&mut connection).await?;
        let fingerprint = match &schema.fingerprint {
            Some(fingerprint) => format!("CASE WHEN {} <= {SMALL} THEN {fingerprint} END", schema.size),
            None => "NULL".to_owned(),
        };
        let nameable = self.and_nameable();
        // Length and fingerprint apart from the search: where a table keeps long columns elsewhere, they are read for what
        // is found only, and not for all that is looked at.
        let sql = format!(
            "SELECT {}, {size}, {}, {fingerprint} FROM (SELECT q.mid FROM {table} q LEFT JOIN mailqueue_delivery d \
             ON d.queue_table = ? AND d.mid = q.mid WHERE q.mid > ?{nameable} AND d.mid IS NULL \
             ORDER BY q.mid LIMIT ?) f \
             JOIN {table} q ON q.mid = f.mid ORDER BY f.mid",
            self.dialect().mid,
            schema.longest,
            size = schema.size,
            table = schema.table
        );
        let lines = connection.fetch(&sql, vec![self.key(), cursor.into(), i64::from(limit).into()]).await?;
        let found = |line: &DbRow| {
            Ok(Found {
                mid: line.required_i64(0)?,
                bytes: line.required_i64(1)?.unsigned_abs(),
                longest: line.required_i64(2)?.unsigned_abs(),
                fingerprint: line.text(3)?.and_then(|text| Fingerprint::from_hex(&text)),
            })
        };
        lines.iter().map(found).collect()
    }

    /// Claims waiting rows; those that somebody else was quicker with are left out.
    pub async fn claim(&self, found: &[Found], now: Timestamp) -> Result<Vec<Claim>, Error> {
        let mut found = found.to_vec();
        found.sort_unstable_by_key(|row| row.mid);
        found.dedup_by_key(|row| row.mid);
        // Whole milliseconds, as the table keeps it: the mail's Date is the same on every attempt.
        let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        let mut claims = Vec::with_capacity(found.len());
        let mut unconfirmed = self.unconfirmed().await?;
        for group in found.chunks(GROUP) {
            let token = self.inner.tokens.create();
            let rows: Vec<_> = group.iter().map(|&row| (RecordId::new(rand::random()), row)).collect();
            unconfirmed.push((token.clone(), rows.iter().map(|(id, row)| (row.mid, *id)).collect()));
            let ours = self.retrying(|| self.claim_once(&rows, &token, now)).await?;
            unconfirmed.pop();
            claims.extend(rows.into_iter().filter(|(id, _)| ours.contains(id)).map(|(record, row)| Claim {
                id: MailId::new(Arc::clone(self.name()), row.mid),
                record,
                token: token.clone(),
                created: now,
                fingerprint: row.fingerprint,
                new: true,
                history: History::default(),
                bytes: row.bytes,
                longest: row.longest,
                _alive: self.inner.claims.token(),
            }));
        }
        Ok(claims)
    }

    async fn claim_once(
        &self,
        rows: &[(RecordId, Found)],
        token: &ClaimToken,
        now: Timestamp,
    ) -> Result<HashSet<RecordId>, Failure> {
        let mut connection = self.connection().await?;
        let padded = padded(rows.to_vec());
        let (insert, skip) = self.dialect().skip;
        let sql = format!(
            "{insert} mailqueue_delivery (id, queue_table, mid, fingerprint, state, created, owner, claim) \
             VALUES {} {skip}",
            tuples(padded.len(), "?, ?, ?, ?, 'claimed', ?, ?, ?")
        );
        let mut args = Vec::with_capacity(padded.len() * 7);
        for (id, row) in &padded {
            args.extend([id.as_str().into(), self.key(), row.mid.into(), row.fingerprint.into()]);
            args.extend([now.as_millisecond().into(), self.owner(), token.as_str().into()]);
        }
        let made = connection.execute(&sql, args).await?;
        // A repetition finds the records that the first try made, and counts none of them.
        if made == rows.len() as u64 {
            return Ok(rows.iter().map(|(id, _)| *id).collect());
        }
        self.ours(&mut connection, &rows.iter().map(|(id, row)| (row.mid, id)).collect::<Vec<_>>(), token).await
    }

    /// Which of these records stand under this claim.
    async fn ours(
        &self,
        connection: &mut Connection,
        keys: &[Key<'_>],
        token: &ClaimToken,
    ) -> Result<HashSet<RecordId>, Failure> {
        let (condition, mut args) = self.where_claimed("d", keys);
        args.push(token.as_str().into());
        let index_hint = self.index_hint_primary();
        let sql = format!("SELECT d.mid, d.id FROM mailqueue_delivery d{index_hint} WHERE {condition} AND d.claim = ?");
        ids_of(connection.fetch(&sql, args).await?)
    }

    /// Claims deferred rows whose next attempt is due, the longest due first.
    pub async fn claim_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Claim>, Error> {
        let mut unconfirmed = self.unconfirmed().await?;
        let due = self.retrying(|| self.due_once(now, limit)).await?;
        let mut claims = Vec::with_capacity(due.len());
        let (mut wait, mut locked, mut busy) = (LockWait::Usual, 0, None);
        // The groups that are left, the first one on top.
        let mut groups: Vec<_> = due.chunks(GROUP).rev().collect();
        while let Some(group) = groups.pop() {
            let token = self.inner.tokens.create();
            unconfirmed.push((token.clone(), group.to_vec()));
            let mut ours = match self.retrying_part(|| self.claim_due_once(group, &token, now, wait)).await {
                Ok(ours) => ours,
                // Another session has locked some of the records. Those wait; they hold up neither the other due rows nor
                // new ones.
                Err(Failure::Busy(words)) if self.dialect().locks_rows => {
                    self.retrying(|| self.undo_unlocked_once(token.as_str(), group)).await?;
                    unconfirmed.pop();
                    wait = LockWait::Short;
                    tracing::debug!(queue = %self.name(), rows = group.len(), words, "due records are locked");
                    busy = Some(words);
                    match group.split_at(group.len() / 2) {
                        ([], _) if locked == LOCKED_ENOUGH => break,
                        ([], _) => locked += 1,
                        (first, second) => groups.extend([second, first]),
                    }
                    if locked == LOCKED_ENOUGH {
                        last_first(&mut groups);
                    }
                    continue;
                }
                Err(failure) => return Err(failure.into_error(self.name())),
            };
            unconfirmed.pop();
            locked = 0;
            let won = group.iter().filter_map(|(_, id)| ours.remove(id));
            claims.extend(won.map(|record| Claim::of(self, record, &token)));
        }
        match busy {
            Some(words) if claims.is_empty() => Err(Failure::Busy(words).into_error(self.name())),
            _ => Ok(claims),
        }
    }

    /// Returns the due records, at least one, that together have no more than [`MOST_RECIPIENTS`]: their histories are
    /// read with the claim.
    async fn due_once(&self, now: Timestamp, limit: u32) -> Result<Vec<(i64, RecordId)>, Failure> {
        let sql = "SELECT d.mid, d.id, (SELECT COUNT(*) FROM mailqueue_recipient r WHERE r.record = d.id) \
                   FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.state = 'deferred' \
                   AND d.next_attempt <= ? ORDER BY d.next_attempt, d.mid LIMIT ?";
        let args = vec![self.key(), now.as_millisecond().into(), i64::from(limit).into()];
        let mut due = self.connection().await?.fetch(sql, args).await?;
        let mut sum = 0;
        let mut fits = 0;
        for line in &due {
            sum += line.required_i64(2)?;
            if fits > 0 && sum > MOST_RECIPIENTS {
                break;
            }
            fits += 1;
        }
        due.truncate(fits);
        keys_of(due)
    }

    /// Returns the records that were claimed, as they are now: between our look and our claim another dispatcher may have
    /// had its turn.
    async fn claim_due_once(
        &self,
        group: &[(i64, RecordId)],
        token: &ClaimToken,
        now: Timestamp,
        wait: LockWait,
    ) -> Result<HashMap<RecordId, Record>, Failure> {
        let mut connection = self.connection().await?;
        let keys = borrowed(group);
        if wait == LockWait::Short {
            connection.begin_waiting(self.dialect(), wait).await?;
        }
        let (condition, which) = self.where_records("mailqueue_delivery", &keys);
        let sql = format!(
            "UPDATE mailqueue_delivery{} SET state = 'claimed', owner = ?, claim = ? \
             WHERE {condition} AND state = 'deferred' AND next_attempt <= ?",
            self.index_hint_primary()
        );
        let mut args = vec![self.owner(), token.as_str().into()];
        args.extend(which);
        args.push(now.as_millisecond().into());
        connection.execute(&sql, args).await?;
        let schema = self.schema(&mut connection).await?;
        let (condition, mut args) = self.where_claimed("d", &keys);
        let sql = format!(
            "SELECT {RECORD}, {}, {} FROM mailqueue_delivery d{} LEFT JOIN {} q ON q.mid = d.mid \
             WHERE {condition} AND d.claim = ?",
            schema.size,
            schema.longest,
            self.index_hint_primary(),
            schema.table
        );
        args.push(token.as_str().into());
        let mut ours = Vec::with_capacity(group.len());
        for line in connection.fetch(&sql, args).await? {
            let number = |column| line.i64(column).map(|bytes| bytes.unwrap_or(0).unsigned_abs());
            let (bytes, longest) = (number(RECORD_COLUMNS)?, number(RECORD_COLUMNS + 1)?);
            ours.push(Record { bytes, longest, ..Record::read(&line, 0)? });
        }
        histories(&mut connection, &mut ours).await?;
        if wait == LockWait::Short {
            connection.commit().await?;
        }
        Ok(ours.into_iter().map(|record| (record.id, record)).collect())
    }

    /// Returns the time at which the next deferred row becomes due.
    pub async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        self.retrying(|| self.next_due_once()).await
    }

    async fn next_due_once(&self) -> Result<Option<Timestamp>, Failure> {
        let sql =
            "SELECT MIN(d.next_attempt) FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.state = 'deferred'";
        let lines = self.connection().await?.fetch(sql, vec![self.key()]).await?;
        let first = lines.first().map(|line| line.i64(0)).transpose()?.flatten();
        first.map(super::records::time).transpose()
    }

    /// Loads the content. Rows that are gone, claims whose record was made for another content, and rows that have grown
    /// too large since they were claimed, are settled here: their record is dropped, and the row (if any) is waiting again.
    pub async fn load(&self, claims: Vec<Claim>) -> Result<Vec<Row>, (Error, Vec<Claim>)> {
        match self.retrying(|| self.load_once(&claims)).await {
            Ok(mut contents) => {
                let rows = claims.into_iter().filter_map(|claim| {
                    let (columns, fingerprint) = contents.remove(&claim.record)?;
                    Some(Row { claim, columns, fingerprint })
                });
                Ok(rows.collect())
            }
            Err(error) => Err((error, claims)),
        }
    }

    async fn load_once(&self, claims: &[Claim]) -> Result<HashMap<RecordId, (Columns, Fingerprint)>, Failure> {
        let mut connection = self.connection().await?;
        let mut contents = HashMap::new();
        let mut void = Vec::new();
        for group in claims.chunks(GROUP) {
            let mut found =
                self.contents(&mut connection, group.iter().map(|claim| claim.id.mid), Lengths::Bounded).await?;
            for claim in group {
                let content = match found.remove(&claim.id.mid) {
                    Some(columns) => Some(fingerprinted(columns).await),
                    None => None,
                };
                match content {
                    Some((fingerprint, columns)) if claim.fingerprint.is_none_or(|made| made == fingerprint) => {
                        contents.insert(claim.record, (columns, fingerprint));
                    }
                    _ => void.push(claim),
                }
            }
        }
        self.drop_void(&mut connection, &void).await?;
        Ok(contents)
    }

    /// Returns true for a claim whose row has a column that decodes to more than twice
    /// [`Settings::max_size`](super::settings::Settings::max_size). It goes to [`Queue::measure`], because [`Queue::load`]
    /// does not load it.
    pub fn is_too_large(&self, claim: &Claim) -> bool {
        claim.longest > self.settings().longest_column()
    }

    /// Measures rows that are too large to be read; nothing of their content is loaded. Claims whose row is gone, changed
    /// or small by now are settled here, as in [`Queue::load`].
    pub async fn measure(&self, claims: Vec<Claim>) -> Result<Vec<Unread>, (Error, Vec<Claim>)> {
        match self.retrying(|| self.measure_once(&claims)).await {
            Ok(mut found) => {
                let unread = claims.into_iter().filter_map(|claim| {
                    let (oversize, fingerprint) = found.remove(&claim.record)?;
                    Some(Unread { claim, oversize, fingerprint })
                });
                Ok(unread.collect())
            }
            Err(error) => Err((error, claims)),
        }
    }

    async fn measure_once(&self, claims: &[Claim]) -> Result<HashMap<RecordId, (Oversize, Fingerprint)>, Failure> {
        let mut connection = self.connection().await?;
        let mids: Vec<_> = claims.iter().map(|claim| claim.id.mid).collect();
        let lengths = self.lengths(&mut connection, &mids).await?;
        let fingerprints = self.fingerprints(&mut connection, &mids).await?;
        let mut measured = HashMap::new();
        let mut void = Vec::new();
        for claim in claims {
            let oversize = lengths.get(&claim.id.mid).and_then(|lengths| self.oversize(lengths));
            match oversize.zip(fingerprints.get(&claim.id.mid)) {
                Some((oversize, &fingerprint)) if claim.fingerprint.is_none_or(|made| made == fingerprint) => {
                    measured.insert(claim.record, (oversize, fingerprint));
                }
                _ => void.push(claim),
            }
        }
        self.drop_void(&mut connection, &void).await?;
        Ok(measured)
    }

    /// Drops the records of claims whose row is gone or another. Ours only: a record that was taken over is the other's
    /// to drop.
    pub(super) async fn drop_void(&self, connection: &mut Connection, void: &[&Claim]) -> Result<(), Failure> {
        if void.is_empty() {
            return Ok(());
        }
        connection.begin(self.dialect().begin).await?;
        for claim in void {
            let sql = "DELETE FROM mailqueue_delivery WHERE queue_table = ? AND mid = ? AND claim = ?";
            if connection.execute(sql, vec![self.key(), claim.id.mid.into(), claim.token.as_str().into()]).await? > 0 {
                self.drop_recipients(connection, &[claim.key()]).await?;
            }
        }
        connection.commit().await?;
        self.set_scan_start(None);
        Ok(())
    }

    /// Marks rows `sending` before any of their dots may go out, with the fingerprint of what will be sent. Answers for
    /// each row, in order, whether the claim is still ours; one that is not must not be sent.
    pub async fn sending(&self, rows: &[(&Claim, Fingerprint)]) -> Result<Vec<bool>, Error> {
        let mut acts: BTreeMap<&ClaimToken, Vec<usize>> = BTreeMap::new();
        for (index, (claim, _)) in rows.iter().enumerate() {
            acts.entry(&claim.token).or_default().push(index);
        }
        let mut ours = vec![false; rows.len()];
        for (token, indices) in acts {
            for group in indices.chunks(GROUP) {
                let rows: Vec<_> = group.iter().map(|&index| rows[index]).collect();
                let marked = self.retrying(|| self.sending_once(token, &rows)).await?;
                group.iter().zip(marked).for_each(|(&index, marked)| ours[index] = marked);
            }
        }
        Ok(ours)
    }

    /// For rows that were claimed in one act.
    async fn sending_once(&self, token: &ClaimToken, rows: &[(&Claim, Fingerprint)]) -> Result<Vec<bool>, Failure> {
        let mut connection = self.connection().await?;
        let keys: Vec<_> = rows.iter().map(|(claim, _)| claim.key()).collect();
        let (condition, mut here_args) = self.where_claimed("mailqueue_delivery", &keys);
        let here = format!("{condition} AND owner = ? AND claim = ?");
        here_args.extend([self.owner(), token.as_str().into()]);

        // Most records know their content.
        let open = padded(rows.iter().filter(|(claim, _)| claim.fingerprint.is_none()).collect());
        let content = match open.len() {
            0 => String::new(),
            _ => format!(", fingerprint = CASE mid {}ELSE fingerprint END", "WHEN ? THEN ? ".repeat(open.len())),
        };
        let sql = format!(
            "UPDATE mailqueue_delivery{} SET state = 'sending'{content} \
             WHERE {here} AND state IN ('claimed', 'sending')",
            self.index_hint_primary()
        );
        let contents = open.iter().flat_map(|(claim, content)| [claim.id.mid.into(), Some(*content).into()]);
        let args = contents.chain(here_args.clone()).collect();
        if connection.execute(&sql, args).await? == rows.len() as u64 {
            return Ok(vec![true; rows.len()]);
        }
        let sql = format!(
            "SELECT mid, id FROM mailqueue_delivery{} WHERE {here} AND state = 'sending'",
            self.index_hint_primary()
        );
        let marked = ids_of(connection.fetch(&sql, here_args).await?)?;
        Ok(rows.iter().map(|(claim, _)| marked.contains(&claim.record)).collect())
    }
}

/// Lets the last of all rows come next, alone: where it is locked like those before it, all are taken to be.
fn last_first(groups: &mut Vec<&[(i64, RecordId)]>) {
    let Some(bottom) = groups.first_mut() else { return };
    let (rest, last) = bottom.split_at(bottom.len() - 1);
    *bottom = rest;
    groups.push(last);
    groups.retain(|group| !group.is_empty());
}

fn ids_of(lines: Vec<DbRow>) -> Result<HashSet<RecordId>, Failure> {
    Ok(keys_of(lines)?.into_iter().map(|(_, id)| id).collect())
}
