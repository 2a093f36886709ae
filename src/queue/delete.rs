//! The end of delivered rows where something is not as expected: a claim that is not ours any more, a row that is gone or
//! changed, a lock, a database that refuses. The usual case is `settle`'s. Row and record are deleted in one transaction.
//! A row that the database does not let us delete is set aside as `held`, `not-deleted`, so that it is never sent again
//! and holds up no other, and its DELETE is tried again later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::db::connection::{Connection, LockWait, Value};
use super::db::dialect::GROUP;
use super::db::error::Failure;
use super::error::Error;
use super::handle::Queue;
use super::parts::Parts;
use super::records::{Key, time, write_recipients};
use super::settled::Settled;
use super::table::Deletion;
use crate::failpoint;
use crate::mail::{Fingerprint, MailId, RecordId};
use crate::outcome::{Reason, RecipientRecord};

/// Rows that were refused one by one without a success between them. From here on the database is taken to refuse all,
/// unless the last row of the group tells otherwise: the right to DELETE is lost, say. The rest of the group is set aside
/// with the last refusal's words, because to try each row takes two transactions.
const REFUSED_ENOUGH: u32 = 32;

/// The same while the database refused all of the group before.
const REFUSED_AGAIN: u32 = 4;

/// The detail of a row that a DELETE leaves alone without an error.
pub(super) const KEPT: &str =
    "the DELETE reported success and left the row in the table; look for a trigger or a rule on DELETE";

/// The detail of a row that a DELETE changes and leaves in the table.
const CHANGED: &str = "the DELETE changed the row and left it in the table; look for a trigger or a rule on DELETE";

/// A delivered row, with what its record says if the database does not delete it.
#[derive(Clone, Copy)]
pub(super) struct Delivery<'a> {
    pub(super) mid: i64,
    pub(super) record: &'a RecordId,
    pub(super) content: Fingerprint,
    /// The recipients, all of them accepted; of those that the record has already, nothing is written.
    pub(super) recipients: &'a [RecipientRecord],
    pub(super) known: &'a [RecipientRecord],
    pub(super) retry: DeleteRetry,
}

/// The times that a row gets which the database does not delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteRetry {
    pub now: Timestamp,
    /// The next DELETE.
    pub next: Timestamp,
}

/// A row that is `held`, `not-deleted`.
#[derive(Clone, Debug)]
pub struct Undeleted {
    pub(super) mid: i64,
    pub(super) record: RecordId,
    pub(super) content: Fingerprint,
    /// The time of the first DELETE that the database refused.
    pub since: Timestamp,
}

/// The result of one transaction for a part of a group.
enum Part {
    /// As it says for each row.
    Ended(Vec<Settled>),
    /// Rolled back; a smaller part tells more. Some rows were gone, and a DELETE of many does not say which.
    Unclear,
    /// Rolled back: the database refuses the DELETE, in these words.
    Refused(String),
    /// Nothing happened: another session has a lock that this part needs.
    Locked(String),
}

impl Queue {
    /// Deletes rows and records, also where another dispatcher holds the claims. A part that the database refuses, or
    /// whose lock does not come free, is halved until the row stands alone; that row is set aside, or left for later. A
    /// broken connection halves nothing: it is an error here.
    pub(super) async fn delete_deliveries(
        &self,
        deliveries: &[Delivery<'_>],
        mut wait: LockWait,
    ) -> Result<Vec<Settled>, Error> {
        // This group may be refused for another reason than the one before.
        let refused = &self.inner.refused_deletes;
        refused.fetch_min(REFUSED_ENOUGH - REFUSED_AGAIN, Ordering::Relaxed);
        let mut parts = Parts::of(deliveries.len());
        while let Some(part) = parts.next() {
            let end = self.delete_part(&deliveries[part.clone()], wait).await?;
            if let Part::Locked(_) = end {
                wait = LockWait::Short;
            }
            match end {
                Part::Ended(ends) => parts.ended(part, ends),
                _ if parts.halve(&part) => {}
                Part::Locked(detail) => parts.locked(part, detail),
                Part::Unclear => parts.set(part.clone(), self.set_aside(&deliveries[part], KEPT, wait).await?),
                Part::Refused(words) => {
                    parts.set(part.clone(), self.set_aside(&deliveries[part], &words, wait).await?);
                    match refused.fetch_add(1, Ordering::Relaxed) + 1 {
                        ..REFUSED_ENOUGH => {}
                        REFUSED_ENOUGH => parts.try_last(),
                        _ => {
                            for part in parts.rest() {
                                let aside = &deliveries[part.clone()];
                                parts.set(part, self.set_aside(aside, &words, wait).await?);
                            }
                        }
                    }
                }
            }
        }
        Ok(parts.into_ends())
    }

    /// The database deletes rows.
    pub(super) fn note_deletion(&self) {
        self.inner.refused_deletes.store(0, Ordering::Relaxed);
    }

    async fn delete_part(&self, part: &[Delivery<'_>], wait: LockWait) -> Result<Part, Error> {
        match self.retrying_part(|| self.delete_part_once(part, wait)).await {
            Err(Failure::Busy(words)) if self.dialect().locks_rows => Ok(Part::Locked(words)),
            done => done.map_err(|failure| failure.into_error(self.name())),
        }
    }

    async fn delete_part_once(&self, part: &[Delivery<'_>], wait: LockWait) -> Result<Part, Failure> {
        let mut connection = self.connection().await?;
        let schema = self.schema(&mut connection).await?;
        connection.begin_waiting(self.dialect(), wait).await?;
        let present = self.lock_records(&mut connection, part).await?;
        let rows = part.iter().filter(|delivery| present.contains(delivery.record));
        let rows: Vec<_> = rows.map(|delivery| (delivery.mid, delivery.content)).collect();
        let mids: Vec<i64> = rows.iter().map(|&(mid, _)| mid).collect();
        let before = self.fingerprints(&mut connection, &mids).await?;
        let was_as_sent: HashSet<i64> =
            rows.iter().filter(|(mid, content)| before.get(mid) == Some(content)).map(|&(mid, _)| mid).collect();
        let (gone, changed, kept) = match self.delete_rows(&mut connection, rows).await? {
            Deletion::Ended { changed, .. } if schema.transactional && !changed.is_disjoint(&was_as_sent) => {
                // The DELETE itself changed the row. Rolled back, it is as it was sent.
                connection.rollback().await?;
                return Ok(Part::Refused(CHANGED.to_owned()));
            }
            Deletion::Ended { gone, changed, kept } => (gone, changed, kept),
            Deletion::Unclear => {
                connection.rollback().await?;
                return Ok(Part::Unclear);
            }
            Deletion::Refused(words) => {
                connection.rollback().await?;
                return Ok(Part::Refused(words));
            }
        };
        failpoint::hit("in-settle");
        let (aside, done): (Vec<&Delivery>, Vec<&Delivery>) =
            part.iter().filter(|delivery| present.contains(delivery.record)).partition(|row| kept.contains(&row.mid));
        self.drop_records(&mut connection, &done.iter().map(|delivery| delivery.key()).collect::<Vec<_>>()).await?;
        self.mark_not_deleted(&mut connection, &aside, KEPT).await?;
        match connection.commit().await {
            // A constraint that is checked at the end of a transaction.
            Err(Failure::Refused(words)) if !done.is_empty() => return Ok(Part::Refused(words)),
            committed => committed?,
        }
        if done.len() > gone.len() + changed.len() {
            self.note_deletion();
        }
        let ends = part.iter().map(|delivery| match &delivery.mid {
            _ if !present.contains(delivery.record) => Settled::Done,
            mid if kept.contains(mid) => delivery.not_deleted(KEPT),
            mid if changed.contains(mid) => Settled::RowGone,
            // Without transactions it may have been this very delivery: before a crash, or in a group that was refused.
            mid if gone.contains(mid) && schema.transactional => Settled::RowGone,
            _ => Settled::Done,
        });
        Ok(Part::Ended(ends.collect()))
    }

    /// Sets rows aside that the database refuses to delete.
    async fn set_aside(&self, aside: &[Delivery<'_>], words: &str, wait: LockWait) -> Result<Vec<Settled>, Error> {
        match self.retrying_part(|| self.set_aside_once(aside, words, wait)).await {
            Err(Failure::Busy(detail)) if self.dialect().locks_rows => {
                Ok(vec![Settled::Locked { detail }; aside.len()])
            }
            done => done.map_err(|failure| failure.into_error(self.name())),
        }
    }

    async fn set_aside_once(
        &self,
        aside: &[Delivery<'_>],
        words: &str,
        wait: LockWait,
    ) -> Result<Vec<Settled>, Failure> {
        let mut connection = self.connection().await?;
        connection.begin_waiting(self.dialect(), wait).await?;
        let present = self.lock_records(&mut connection, aside).await?;
        let there: Vec<_> = aside.iter().filter(|delivery| present.contains(delivery.record)).collect();
        self.mark_not_deleted(&mut connection, &there, words).await?;
        connection.commit().await?;
        let end = |delivery: &Delivery| match present.contains(delivery.record) {
            true => delivery.not_deleted(words),
            false => Settled::Done,
        };
        Ok(aside.iter().map(end).collect())
    }

    /// Locks the records, ascending, and returns the ids of those that are there.
    async fn lock_records(
        &self,
        connection: &mut Connection,
        deliveries: &[Delivery<'_>],
    ) -> Result<HashSet<RecordId>, Failure> {
        let mut keys: Vec<_> = deliveries.iter().map(Delivery::key).collect();
        keys.sort_unstable();
        let mut present = HashSet::with_capacity(keys.len());
        for keys in keys.chunks(GROUP) {
            let (condition, args) = self.where_records("d", keys);
            let sql = format!(
                "SELECT d.id FROM mailqueue_delivery d{} WHERE {condition} ORDER BY d.mid{}",
                self.index_hint_primary(),
                self.dialect().lock
            );
            for row in connection.fetch(&sql, args).await? {
                present.extend(RecordId::parse(&row.required_text(0)?));
            }
        }
        Ok(present)
    }

    /// Writes into the records, which are there and locked, that all recipients are accepted and the row is not deleted.
    async fn mark_not_deleted(
        &self,
        connection: &mut Connection,
        aside: &[&Delivery<'_>],
        words: &str,
    ) -> Result<(), Failure> {
        let mut recipients = Vec::new();
        for delivery in aside {
            let new = delivery.recipients.iter().enumerate();
            let new = new.filter(|(at, recipient)| delivery.known.get(*at) != Some(*recipient));
            recipients.extend(new.map(|(at, recipient)| (delivery.record, at, recipient)));
        }
        write_recipients(connection, self.dialect(), &recipients).await?;
        // `first_deferred` is the time of the first refusal, from which the pauses follow.
        let mut by_times: HashMap<(i64, i64), Vec<Key>> = HashMap::new();
        for delivery in aside {
            let DeleteRetry { now, next } = delivery.retry;
            by_times.entry((now.as_millisecond(), next.as_millisecond())).or_default().push(delivery.key());
        }
        for ((now, next), keys) in by_times {
            for keys in keys.chunks(GROUP) {
                let (condition, which) = self.where_records("mailqueue_delivery", keys);
                let sql = format!(
                    "UPDATE mailqueue_delivery{} SET first_deferred = CASE WHEN reason = ? AND first_deferred IS NOT NULL \
                     THEN first_deferred ELSE ? END, state = 'held', reason = ?, detail = ?, next_attempt = ?, \
                     owner = NULL WHERE {condition}",
                    self.index_hint_primary()
                );
                let reason = Reason::NotDeleted.as_str();
                let mut args: Vec<Value> = vec![reason.into(), now.into(), reason.into(), words.into(), next.into()];
                args.extend(which);
                connection.execute(&sql, args).await?;
            }
        }
        Ok(())
    }

    /// Returns rows that are `held`, `not-deleted`, and whose next DELETE is due, the longest due first.
    pub async fn undeleted(&self, now: Timestamp, limit: u32) -> Result<Vec<Undeleted>, Error> {
        self.retrying(|| self.undeleted_once(now, limit)).await
    }

    async fn undeleted_once(&self, now: Timestamp, limit: u32) -> Result<Vec<Undeleted>, Failure> {
        let sql = format!(
            "SELECT d.mid, d.id, d.fingerprint, COALESCE(d.first_deferred, d.created) FROM mailqueue_delivery d{} \
             WHERE d.queue_table = ? AND d.state = 'held' AND d.next_attempt <= ? AND d.reason = ? \
             AND d.fingerprint IS NOT NULL ORDER BY d.next_attempt, d.mid LIMIT ?",
            self.index_hint_due()
        );
        let reason = Reason::NotDeleted.as_str();
        let args = vec![self.key(), now.as_millisecond().into(), reason.into(), i64::from(limit).into()];
        let mut undeleted = Vec::new();
        for row in self.connection().await?.fetch(&sql, args).await? {
            let (id, content) = (row.required_text(1)?, row.text(2)?.unwrap_or_default());
            let unreadable = || Failure::Refused(format!("record {id} in mailqueue_delivery is unreadable"));
            undeleted.push(Undeleted {
                mid: row.required_i64(0)?,
                record: RecordId::parse(&id).ok_or_else(unreadable)?,
                content: Fingerprint::from_hex(&content).ok_or_else(unreadable)?,
                since: time(row.required_i64(3)?)?,
            });
        }
        Ok(undeleted)
    }

    /// Tries to delete rows again that are `held`, `not-deleted`. Nothing is sent.
    pub async fn delete_again(&self, rows: &[(Undeleted, DeleteRetry)]) -> Result<Vec<(MailId, Settled)>, Error> {
        let deliveries: Vec<_> = rows.iter().map(|(row, retry)| row.delivery(*retry)).collect();
        let settled = self.delete_deliveries(&deliveries, LockWait::Usual).await?;
        let ids = rows.iter().map(|(row, _)| MailId::new(Arc::clone(self.name()), row.mid));
        Ok(ids.zip(settled).collect())
    }
}

impl Delivery<'_> {
    fn key(&self) -> Key<'_> {
        (self.mid, self.record)
    }

    fn not_deleted(&self, words: &str) -> Settled {
        Settled::NotDeleted { detail: words.to_owned(), next_attempt: self.retry.next }
    }
}

impl Undeleted {
    fn delivery(&self, retry: DeleteRetry) -> Delivery<'_> {
        Delivery { mid: self.mid, record: &self.record, content: self.content, recipients: &[], known: &[], retry }
    }
}
