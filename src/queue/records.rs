//! Our records as they stand in `mailqueue_delivery` and `mailqueue_recipient`.

use std::collections::HashMap;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::db::connection::{Connection, DbRow, Value};
use super::db::dialect::{GROUP, padded, placeholders, tuples};
use super::db::error::Failure;
use super::{db::dialect::Dialect, handle::Queue};
use crate::mail::{Fingerprint, RecordId, hex};
use crate::outcome::{History, Reason, RecipientRecord, RecipientState, State};

/// The columns that [`Record::read`] reads.
pub(super) const RECORD: &str = "d.id, d.mid, d.fingerprint, d.state, d.reason, d.detail, d.attempts, d.unknowns, \
                                 d.created, d.first_deferred, d.next_attempt, d.owner, d.last_reply, d.message_id";

/// The number of these columns.
pub(super) const RECORD_COLUMNS: usize = 14;

pub(super) struct Record {
    pub id: RecordId,
    pub mid: i64,
    pub fingerprint: Option<Fingerprint>,
    pub state: State,
    pub reason: Option<Reason>,
    pub detail: Option<String>,
    pub created: Timestamp,
    pub next_attempt: Option<Timestamp>,
    pub owner: Option<String>,
    pub last_reply: Option<String>,
    pub message_id: Option<String>,
    /// Bytes of the row's columns together, and of the longest; 0 until the row was looked at.
    pub bytes: u64,
    pub longest: u64,
    /// Without recipients until [`histories`] has read them.
    pub history: History,
}

impl Record {
    pub(super) fn key(&self) -> Key<'_> {
        (self.mid, &self.id)
    }

    /// Reads [`RECORD`], which begins at this column of the line.
    pub(super) fn read(line: &DbRow, first: usize) -> Result<Self, Failure> {
        let id = line.required_text(first)?;
        let unreadable = |what: &str| Failure::Refused(format!("record {id} in mailqueue_delivery: unreadable {what}"));
        let state = line.required_text(first + 3)?;
        Ok(Self {
            id: RecordId::parse(&id).ok_or_else(|| unreadable("id"))?,
            mid: line.required_i64(first + 1)?,
            fingerprint: line.text(first + 2)?.and_then(|text| Fingerprint::from_hex(&text)),
            state: State::parse(&state).ok_or_else(|| unreadable("state"))?,
            reason: line.text(first + 4)?.and_then(|text| Reason::parse(&text)),
            detail: line.text(first + 5)?,
            created: time(line.required_i64(first + 8)?)?,
            next_attempt: line.i64(first + 10)?.map(time).transpose()?,
            owner: line.text(first + 11)?,
            last_reply: line.text(first + 12)?,
            message_id: line.text(first + 13)?,
            bytes: 0,
            longest: 0,
            history: History {
                attempts: u32::try_from(line.required_i64(first + 6)?).unwrap_or(u32::MAX),
                unknowns: u32::try_from(line.required_i64(first + 7)?).unwrap_or(u32::MAX),
                first_deferred: line.i64(first + 9)?.map(time).transpose()?,
                recipients: Vec::new(),
            },
        })
    }
}

pub(super) fn time(milliseconds: i64) -> Result<Timestamp, Failure> {
    Timestamp::from_millisecond(milliseconds)
        .map_err(|error| Failure::Refused(format!("a time in mailqueue_delivery is out of range: {error}")))
}

/// Reads the recipients of the records into their histories.
pub(super) async fn histories(connection: &mut Connection, records: &mut [Record]) -> Result<(), Failure> {
    for group in records.chunks_mut(GROUP) {
        let ids = padded(group.iter().map(|record| record.id.as_str().into()).collect());
        let sql = format!(
            "SELECT r.record, r.address, r.state, r.reply, r.at FROM mailqueue_recipient r WHERE r.record IN ({}) \
             ORDER BY r.record, r.position, r.address_key",
            placeholders(ids.len())
        );
        let mut found: HashMap<String, Vec<RecipientRecord>> = HashMap::new();
        for line in connection.fetch(&sql, ids).await? {
            let state = line.required_text(2)?;
            found.entry(line.required_text(0)?).or_default().push(RecipientRecord {
                address: line.required_text(1)?,
                state: RecipientState::parse(&state)
                    .ok_or_else(|| Failure::Refused("unreadable state in mailqueue_recipient".to_owned()))?,
                reply: line.text(3)?,
                at: time(line.required_i64(4)?)?,
            });
        }
        for record in group {
            record.history.recipients = found.remove(record.id.as_str()).unwrap_or_default();
        }
    }
    Ok(())
}

/// Writes what became of recipients. What was accepted stays accepted.
pub(super) async fn write_recipients(
    connection: &mut Connection,
    dialect: &Dialect,
    recipients: &[(&RecordId, usize, &RecipientRecord)],
) -> Result<(), Failure> {
    // One statement must not name the same line twice.
    let mut lines: Vec<(String, &(&RecordId, usize, &RecipientRecord))> = Vec::new();
    let mut seen = HashMap::new();
    for recipient in recipients {
        let key = address_key(&recipient.2.address);
        let at = *seen.entry((recipient.0, key.clone())).or_insert(lines.len());
        if at == lines.len() {
            lines.push((key, recipient));
        } else if lines[at].1.2.state != RecipientState::Accepted {
            lines[at].1 = recipient;
        }
    }
    lines.sort_by(|a, b| (a.1.0, &a.0).cmp(&(b.1.0, &b.0)));
    for group in lines.chunks(GROUP) {
        let sql = format!(
            "INSERT INTO mailqueue_recipient (record, address_key, position, address, state, reply, at) VALUES {} {}",
            tuples(group.len(), &placeholders(7)),
            dialect.same_recipient
        );
        let mut args: Vec<Value> = Vec::with_capacity(group.len() * 7);
        for (key, (record, position, recipient)) in group {
            args.push(record.as_str().into());
            args.push(key.as_str().into());
            args.push(i64::try_from(*position).unwrap_or(i64::MAX).into());
            args.push(recipient.address.as_str().into());
            args.push(recipient.state.as_str().into());
            args.push(recipient.reply.as_deref().into());
            args.push(recipient.at.as_millisecond().into());
        }
        connection.execute(&sql, args).await?;
    }
    Ok(())
}

/// Addresses can be longer than a column of an index.
fn address_key(address: &str) -> String {
    hex(&Sha256::digest(address)[..16])
}

impl From<Option<Fingerprint>> for Value<'_> {
    fn from(value: Option<Fingerprint>) -> Self {
        Self::Text(value.map(|content| content.to_hex().into()))
    }
}

impl Queue {
    /// Behind a table of ours in a statement that finds lines by their key and locks them.
    pub(super) fn index_hint_primary(&self) -> String {
        (self.dialect().by_index)("PRIMARY")
    }

    /// Behind a table of records in a statement that finds them by their state: few have one of those that it names.
    pub(super) fn index_hint_due(&self) -> String {
        (self.dialect().by_index)("mailqueue_delivery_due")
    }

    /// Which records, in a statement that calls their table `of`. Ids are for ever, and numbers come back.
    pub(super) fn where_records<'a>(&'a self, of: &str, keys: &[Key<'a>]) -> (String, Vec<Value<'a>>) {
        let ids = padded(keys.iter().map(|(_, id)| Value::from(id.as_str())).collect());
        let by_id = format!("{of}.id IN ({})", placeholders(ids.len()));
        if !self.dialect().by_number {
            return (by_id, ids);
        }
        let (by_number, mut args) = self.where_rows(of, keys.iter().map(|&(mid, _)| mid));
        args.extend(ids);
        (format!("{by_number} AND {by_id}"), args)
    }

    /// The same, where the claim that is asked for as well tells which records are meant.
    pub(super) fn where_claimed<'a>(&'a self, of: &str, keys: &[Key<'a>]) -> (String, Vec<Value<'a>>) {
        match self.dialect().by_number {
            true => self.where_rows(of, keys.iter().map(|&(mid, _)| mid)),
            false => self.where_records(of, keys),
        }
    }

    /// Whichever records stand for these rows.
    pub(super) fn where_rows(&self, of: &str, mids: impl Iterator<Item = i64>) -> (String, Vec<Value<'_>>) {
        let (numbers, mids) = self.dialect().among(&format!("{of}.mid"), mids);
        let sql = format!("{of}.queue_table = ? AND {numbers}");
        (sql, [self.key()].into_iter().chain(mids.into_iter().map(Value::from)).collect())
    }

    /// Deletes records with their recipients.
    pub(super) async fn drop_records(&self, connection: &mut Connection, keys: &[Key<'_>]) -> Result<(), Failure> {
        self.drop_recipients(connection, keys).await?;
        for group in keys.chunks(GROUP) {
            let (condition, args) = self.where_records("q", group);
            let sql = format!(
                "{} mailqueue_delivery AS q{} WHERE {condition}",
                self.dialect().delete,
                self.index_hint_primary()
            );
            connection.execute(&sql, args).await?;
        }
        Ok(())
    }

    pub(super) async fn drop_recipients(&self, connection: &mut Connection, keys: &[Key<'_>]) -> Result<(), Failure> {
        for group in keys.chunks(GROUP) {
            let ids = padded(group.iter().map(|(_, id)| id.as_str().into()).collect());
            let (delete, index_hint, placeholders) =
                (self.dialect().delete, self.index_hint_primary(), placeholders(ids.len()));
            let sql = format!("{delete} mailqueue_recipient AS q{index_hint} WHERE q.record IN ({placeholders})");
            connection.execute(&sql, ids).await?;
        }
        Ok(())
    }

    /// Puts claims back to where they were: a row that was waiting is waiting again, unless a recipient of it was
    /// accepted meanwhile, and any other is deferred with its old time. Inside a transaction that has locked them.
    pub(super) async fn give_back(&self, connection: &mut Connection, keys: &[Key<'_>]) -> Result<(), Failure> {
        for group in keys.chunks(GROUP) {
            let (condition, args) = self.where_records("d", group);
            let fresh = format!(
                "SELECT d.mid, d.id FROM mailqueue_delivery d{} WHERE {condition} AND d.next_attempt IS NULL AND NOT EXISTS \
                 (SELECT 1 FROM mailqueue_recipient r WHERE r.record = d.id AND r.state = 'accepted')",
                self.index_hint_primary()
            );
            let fresh = keys_of(connection.fetch(&fresh, args).await?)?;
            self.drop_records(connection, &borrowed(&fresh)).await?;
            let (condition, args) = self.where_records("mailqueue_delivery", group);
            let rest = format!(
                "UPDATE mailqueue_delivery{} SET state = 'deferred', owner = NULL, \
                 next_attempt = COALESCE(next_attempt, created) WHERE {condition}",
                self.index_hint_primary()
            );
            connection.execute(&rest, args).await?;
        }
        self.set_scan_start(None);
        Ok(())
    }
}

/// A record's number and id.
pub(super) type Key<'a> = (i64, &'a RecordId);

/// Reads numbers and ids.
pub(super) fn keys_of(lines: Vec<DbRow>) -> Result<Vec<(i64, RecordId)>, Failure> {
    let bad = || Failure::Refused("unreadable id in mailqueue_delivery".to_owned());
    lines
        .iter()
        .map(|line| Ok((line.required_i64(0)?, RecordId::parse(&line.required_text(1)?).ok_or_else(bad)?)))
        .collect()
}

pub(super) fn borrowed(keys: &[(i64, RecordId)]) -> Vec<Key<'_>> {
    keys.iter().map(|(mid, id)| (*mid, id)).collect()
}
