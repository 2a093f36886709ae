//! From a row that is due to its content, and to the mark that it is being sent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::Inner;
use super::claim::{Claim, Found, Row};
use super::db::connection::{Line, Link, Value};
use super::db::dialect::{GROUP, padded, tuples};
use super::db::error::{Error, Failure, persist};
use super::records::{Key, RECORD, RECORD_COLUMNS, Record, histories, keys_of};
use crate::mail::{Columns, Fingerprint, MailId, RecordId};
use crate::outcome::History;

impl Inner {
    pub(super) async fn claim(&self, found: &[Found], now: Timestamp) -> Result<Vec<Claim>, Error> {
        let mut found = found.to_vec();
        found.sort_unstable_by_key(|row| row.mid);
        found.dedup_by_key(|row| row.mid);
        // Whole milliseconds, as the table keeps it: the mail's Date is the same on every attempt.
        let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        let mut claims = Vec::with_capacity(found.len());
        let mut doubts = self.doubts().await?;
        for group in found.chunks(GROUP) {
            let token = token();
            let rows: Vec<_> = group.iter().map(|&row| (RecordId::new(rand::random()), row)).collect();
            doubts.push((Arc::clone(&token), rows.iter().map(|(id, row)| (row.mid, *id)).collect()));
            let mut first = true;
            let ours = persist!(self, self.claim_once(&rows, &token, now, std::mem::take(&mut first)))?;
            doubts.pop();
            claims.extend(rows.into_iter().filter(|(id, _)| ours.contains(id)).map(|(record, row)| Claim {
                id: MailId::new(Arc::clone(self.name()), row.mid),
                record,
                token: Arc::clone(&token),
                created: now,
                fingerprint: row.fingerprint,
                new: true,
                history: History::default(),
                bytes: row.bytes,
                longest: row.longest,
                _alive: self.claims.token(),
            }));
        }
        Ok(claims)
    }

    async fn claim_once(
        &self,
        rows: &[(RecordId, Found)],
        token: &str,
        now: Timestamp,
        first: bool,
    ) -> Result<HashSet<RecordId>, Failure> {
        let mut link = self.link().await?;
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
            args.extend([now.as_millisecond().into(), self.owner(), token.into()]);
        }
        let made = link.execute(&sql, args).await?;
        if first && made == rows.len() as u64 {
            return Ok(rows.iter().map(|(id, _)| *id).collect());
        }
        self.ours(&mut link, &rows.iter().map(|(id, row)| (row.mid, id)).collect::<Vec<_>>(), token).await
    }

    /// Which of these records stand under this claim.
    async fn ours(&self, link: &mut Link, keys: &[Key<'_>], token: &str) -> Result<HashSet<RecordId>, Failure> {
        let (these, mut args) = self.claimed("d", keys);
        args.push(token.into());
        let by_key = self.by_key();
        let sql = format!("SELECT d.mid, d.id FROM mailqueue_delivery d{by_key} WHERE {these} AND d.claim = ?");
        ids_of(link.fetch(&sql, args).await?)
    }

    pub(super) async fn claim_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Claim>, Error> {
        let mut doubts = self.doubts().await?;
        let mut due = persist!(self, self.due_once(now, limit))?;
        let mut claims = Vec::with_capacity(due.len());
        while !due.is_empty() {
            let mut group: Vec<Record> = due.drain(..due.len().min(GROUP)).collect();
            let token = token();
            doubts.push((Arc::clone(&token), group.iter().map(|record| (record.mid, record.id)).collect()));
            let ours = persist!(self, self.claim_due_once(&mut group, &token, now))?;
            doubts.pop();
            let won = group.into_iter().filter(|record| ours.contains(&record.id));
            claims.extend(won.map(|record| record.into_claim(self.name(), &token, &self.claims)));
        }
        Ok(claims)
    }

    async fn due_once(&self, now: Timestamp, limit: u32) -> Result<Vec<Record>, Failure> {
        let mut link = self.link().await?;
        let sql = format!(
            "SELECT {RECORD} FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.state = 'deferred' \
             AND d.next_attempt <= ? ORDER BY d.next_attempt, d.mid LIMIT ?"
        );
        let args = vec![self.key(), now.as_millisecond().into(), i64::from(limit).into()];
        link.fetch(&sql, args).await?.iter().map(|line| Record::read(line, 0)).collect()
    }

    async fn claim_due_once(
        &self,
        group: &mut [Record],
        token: &str,
        now: Timestamp,
    ) -> Result<HashSet<RecordId>, Failure> {
        let mut link = self.link().await?;
        let keys: Vec<_> = group.iter().map(Record::key).collect();
        let (these, which) = self.these("mailqueue_delivery", &keys);
        let sql = format!(
            "UPDATE mailqueue_delivery{} SET state = 'claimed', owner = ?, claim = ? \
             WHERE {these} AND state = 'deferred' AND next_attempt <= ?",
            self.by_key()
        );
        let mut args = vec![self.owner(), token.into()];
        args.extend(which);
        args.push(now.as_millisecond().into());
        link.execute(&sql, args).await?;
        // Read anew under the claim: between our look and our claim another dispatcher may have had its turn.
        let schema = self.schema(&mut link).await?;
        let (these, mut args) = self.claimed("d", &keys);
        let sql = format!(
            "SELECT {RECORD}, {}, {} FROM mailqueue_delivery d{} LEFT JOIN {} q ON q.mid = d.mid \
             WHERE {these} AND d.claim = ?",
            schema.size,
            schema.longest,
            self.by_key(),
            schema.table
        );
        args.push(token.into());
        let mut ours = Vec::with_capacity(group.len());
        for line in link.fetch(&sql, args).await? {
            let number = |column| line.int(column).map(|bytes| bytes.unwrap_or(0).unsigned_abs());
            let (bytes, longest) = (number(RECORD_COLUMNS)?, number(RECORD_COLUMNS + 1)?);
            ours.push(Record { bytes, longest, ..Record::read(&line, 0)? });
        }
        histories(&mut link, &mut ours).await?;
        let mut ours: HashMap<RecordId, Record> = ours.into_iter().map(|record| (record.id, record)).collect();
        let won = ours.keys().cloned().collect();
        for record in group {
            if let Some(fresh) = ours.remove(&record.id) {
                *record = fresh;
            }
        }
        Ok(won)
    }

    pub(super) async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        persist!(self, self.next_due_once())
    }

    async fn next_due_once(&self) -> Result<Option<Timestamp>, Failure> {
        let sql =
            "SELECT MIN(d.next_attempt) FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.state = 'deferred'";
        let lines = self.link().await?.fetch(sql, vec![self.key()]).await?;
        let first = lines.first().map(|line| line.int(0)).transpose()?.flatten();
        first.map(super::records::time).transpose()
    }

    pub(super) async fn load(&self, claims: Vec<Claim>) -> Result<Vec<Row>, (Error, Vec<Claim>)> {
        match persist!(self, self.load_once(&claims)) {
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
        let mut link = self.link().await?;
        let mut contents = HashMap::new();
        let mut void = Vec::new();
        for group in claims.chunks(GROUP) {
            let mut found = self.contents(&mut link, group.iter().map(|claim| claim.id.mid), Lengths::Bounded).await?;
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
        self.drop_void(&mut link, &void).await?;
        Ok(contents)
    }

    /// Drops the records of claims whose row is gone or another. Ours only: a record that was taken over is the other's
    /// to drop.
    pub(super) async fn drop_void(&self, link: &mut Link, void: &[&Claim]) -> Result<(), Failure> {
        for claim in void {
            let sql = "DELETE FROM mailqueue_delivery WHERE queue_table = ? AND mid = ? AND claim = ?";
            if link.execute(sql, vec![self.key(), claim.id.mid.into(), (&*claim.token).into()]).await? > 0 {
                self.drop_recipients(link, &[claim.key()]).await?;
                self.forget_head();
            }
        }
        Ok(())
    }

    pub(super) async fn sending(&self, rows: &[(&Claim, Fingerprint)]) -> Result<Vec<bool>, Error> {
        let mut acts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, (claim, _)) in rows.iter().enumerate() {
            acts.entry(&claim.token).or_default().push(index);
        }
        let mut ours = vec![false; rows.len()];
        for (token, indices) in acts {
            for group in indices.chunks(GROUP) {
                let rows: Vec<_> = group.iter().map(|&index| rows[index]).collect();
                let marked = persist!(self, self.sending_once(token, &rows))?;
                group.iter().zip(marked).for_each(|(&index, marked)| ours[index] = marked);
            }
        }
        Ok(ours)
    }

    /// For rows that were claimed in one act.
    async fn sending_once(&self, token: &str, rows: &[(&Claim, Fingerprint)]) -> Result<Vec<bool>, Failure> {
        let mut link = self.link().await?;
        let keys: Vec<_> = rows.iter().map(|(claim, _)| claim.key()).collect();
        let (these, mut here_args) = self.claimed("mailqueue_delivery", &keys);
        let here = format!("{these} AND owner = ? AND claim = ?");
        here_args.extend([self.owner(), token.into()]);

        // Most records know their content.
        let open = padded(rows.iter().filter(|(claim, _)| claim.fingerprint.is_none()).collect());
        let content = match open.len() {
            0 => String::new(),
            _ => format!(", fingerprint = CASE mid {}ELSE fingerprint END", "WHEN ? THEN ? ".repeat(open.len())),
        };
        let sql = format!(
            "UPDATE mailqueue_delivery{} SET state = 'sending'{content} \
             WHERE {here} AND state IN ('claimed', 'sending')",
            self.by_key()
        );
        let contents = open.iter().flat_map(|(claim, content)| [claim.id.mid.into(), Some(*content).into()]);
        let args = contents.chain(here_args.clone()).collect();
        if link.execute(&sql, args).await? == rows.len() as u64 {
            return Ok(vec![true; rows.len()]);
        }
        let sql = format!("SELECT mid, id FROM mailqueue_delivery{} WHERE {here} AND state = 'sending'", self.by_key());
        let marked = ids_of(link.fetch(&sql, here_args).await?)?;
        Ok(rows.iter().map(|(claim, _)| marked.contains(&claim.record)).collect())
    }

    /// The columns of rows, as they stand now. Bounded: of those only that are not too large to be read.
    pub(super) async fn contents(
        &self,
        link: &mut Link,
        mids: impl Iterator<Item = i64>,
        lengths: Lengths,
    ) -> Result<HashMap<i64, Columns>, Failure> {
        let schema = self.schema(link).await?;
        let (numbers, mids) = self.dialect().among("q.mid", mids);
        let bound = match lengths {
            Lengths::Bounded => format!(" AND {} <= {}", schema.longest, self.settings.longest_column()),
            Lengths::Any => String::new(),
        };
        let (mid, bytes, table) = (self.dialect().mid, schema.bytes.join(", "), &schema.table);
        let sql = format!("SELECT {mid}, {bytes} FROM {table} q WHERE {numbers}{bound}");
        let lines = link.fetch(&sql, mids.into_iter().map(Value::from).collect()).await?;
        // Line by line, so that few bodies are in memory twice.
        lines.into_iter().map(|line| Ok((line.some_int(0)?, columns(&line, 1)?))).collect()
    }
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
pub(super) fn columns(line: &Line, first: usize) -> Result<Columns, Failure> {
    Ok(Columns {
        mto: line.bytes(first)?,
        msubject: line.bytes(first + 1)?,
        mbody: line.bytes(first + 2)?,
        mheaders: line.bytes(first + 3)?,
        mparams: line.bytes(first + 4)?,
    })
}

fn ids_of(lines: Vec<Line>) -> Result<HashSet<RecordId>, Failure> {
    Ok(keys_of(lines)?.into_iter().map(|(_, id)| id).collect())
}

/// Names one act of claiming, so that its outcome can be found out when its answer was lost.
pub(super) fn token() -> Arc<str> {
    RecordId::new(rand::random()).as_str().into()
}
