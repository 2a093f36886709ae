//! The end of a claim: carries verdicts out, and acceptances that only the ledger knows.

use std::collections::{HashMap, HashSet};

use super::claim::Claim;
use super::db::connection::{Connection, LockWait, Value};
use super::db::dialect::{GROUP, padded, placeholders, tuples};
use super::db::error::Failure;
use super::delete::{DeleteRetry, Delivery};
use super::error::Error;
use super::handle::Queue;
use super::parts::Parts;
use super::records::write_recipients;
use super::settled::Settled;
use super::table::Deletion;
use crate::failpoint;
use crate::mail::{Fingerprint, MailId, RecordId};
use crate::outcome::{Fate, RecipientRecord, RecipientState, Verdict};

/// A claim with what shall become of it. The fingerprint is that of the content that was loaded, or `None` if the row
/// was not: then the claim's own counts, from an earlier attempt. `Fate::Delivered` wants one of the two.
#[derive(Debug)]
pub struct Settlement {
    pub claim: Claim,
    pub fingerprint: Option<Fingerprint>,
    pub message_id: Option<String>,
    pub verdict: Verdict,
}

/// The state of a record as seen from the claim that is to be settled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ours,
    /// This very claim was settled before, and only the answer was lost.
    SettledBefore,
    Others,
    Gone,
}

impl Queue {
    /// Carries out verdicts; the results are in the same order. Delivered rows are deleted in one transaction, and what a
    /// row's record says is written in another. On an error the caller tries again: to do it twice is harmless. A database
    /// that refuses to delete a row makes no error, but [`Settled::NotDeleted`], and a row that another session has locked
    /// makes [`Settled::Locked`]: neither holds up the others of its group.
    pub async fn settle(&self, group: &[Settlement], retry: DeleteRetry) -> Result<Vec<(MailId, Settled)>, Error> {
        self.settle_waiting(group, retry, LockWait::Usual).await
    }

    /// The same for rows that were [`Settled::Locked`] before: waits for their locks for a shorter time.
    pub async fn settle_locked(
        &self,
        group: &[Settlement],
        retry: DeleteRetry,
    ) -> Result<Vec<(MailId, Settled)>, Error> {
        self.settle_waiting(group, retry, LockWait::Short).await
    }

    async fn settle_waiting(
        &self,
        group: &[Settlement],
        retry: DeleteRetry,
        wait: LockWait,
    ) -> Result<Vec<(MailId, Settled)>, Error> {
        let is_delivered = |settlement: &&Settlement| matches!(settlement.verdict.fate, Fate::Delivered);
        let (delivered, others): (Vec<_>, Vec<_>) = group.iter().partition(is_delivered);
        let mut ends = self.settle_delivered(&delivered, retry, wait).await?.into_iter();
        let mut other_ends = self.settle_others(&others, wait).await?.into_iter();
        let mut end = |settlement| if is_delivered(&settlement) { ends.next() } else { other_ends.next() };
        Ok(group.iter().filter_map(|settlement| Some((settlement.claim.id.clone(), end(settlement)?))).collect())
    }

    async fn settle_delivered(
        &self,
        group: &[&Settlement],
        retry: DeleteRetry,
        wait: LockWait,
    ) -> Result<Vec<Settled>, Error> {
        if group.is_empty() {
            return Ok(Vec::new());
        }
        let deliveries: Result<Vec<_>, _> = group.iter().map(|settlement| settlement.delivery(retry)).collect();
        let deliveries = deliveries.map_err(|failure| failure.into_error(self.name()))?;
        if wait == LockWait::Short {
            return self.delete_deliveries(&deliveries, wait).await;
        }
        let wait = match self.retrying_part(|| self.delete_unchanged_once(group)).await {
            Ok(true) => {
                self.note_deletion();
                return Ok(vec![Settled::Done; group.len()]);
            }
            Ok(false) => LockWait::Usual,
            Err(Failure::Busy(_)) => LockWait::Short,
            Err(failure) => return Err(failure.into_error(self.name())),
        };
        self.delete_deliveries(&deliveries, wait).await
    }

    /// Carries out verdicts after which the rows stay. A part in which another session has locked something is halved until
    /// the row stands alone; that row is left for later.
    async fn settle_others(&self, group: &[&Settlement], mut wait: LockWait) -> Result<Vec<Settled>, Error> {
        let mut parts = Parts::of(group.len());
        while let Some(part) = parts.next() {
            match self.retrying_part(|| self.settle_once(&group[part.clone()], wait)).await {
                Ok(ends) => parts.ended(part, ends),
                Err(Failure::Busy(detail)) if self.dialect().locks_rows => {
                    wait = LockWait::Short;
                    if !parts.halve(&part) {
                        parts.locked(part, detail);
                    }
                }
                Err(failure) => return Err(failure.into_error(self.name())),
            }
        }
        Ok(parts.into_ends())
    }

    /// The usual case in few statements: all claims are ours still, and each row is as it was when it was sent. Returns
    /// false where that is not so, or the database refuses something; nothing has happened then.
    async fn delete_unchanged_once(&self, group: &[&Settlement]) -> Result<bool, Failure> {
        let row = |settlement: &&Settlement| Some((settlement.claim.id.mid, settlement.content()?));
        let rows = group.iter().filter_map(row).collect();
        let mut connection = self.connection().await?;
        self.schema(&mut connection).await?;
        let tokens: HashSet<&str> = group.iter().map(|settlement| settlement.claim.token.as_str()).collect();
        let tokens: Vec<Value> = padded(tokens.into_iter().map(Value::from).collect());
        let (delete, index_hint) = (self.dialect().delete, self.index_hint_primary());
        connection.begin(self.dialect().begin).await?;
        let mut keys: Vec<_> = group.iter().map(|settlement| settlement.claim.key()).collect();
        keys.sort_unstable();
        let mut same = true;
        for keys in keys.chunks(GROUP) {
            let (condition, mut args) = self.where_claimed("q", keys);
            let sql = format!(
                "{delete} mailqueue_delivery AS q{index_hint} WHERE {condition} AND q.claim IN ({})",
                placeholders(tokens.len())
            );
            args.extend(tokens.iter().cloned());
            same = same && connection.execute(&sql, args).await? == keys.len() as u64;
        }
        let deleted_all = |end| match end {
            Deletion::Ended { gone, changed, kept } => gone.is_empty() && changed.is_empty() && kept.is_empty(),
            Deletion::Unclear | Deletion::Refused(_) => false,
        };
        if !same || !deleted_all(self.delete_rows(&mut connection, rows).await?) {
            connection.rollback().await?;
            return Ok(false);
        }
        failpoint::hit("in-settle");
        // A record that was made with its claim has no recipients yet.
        let known = group.iter().map(|settlement| &settlement.claim).filter(|claim| !claim.new);
        self.drop_recipients(&mut connection, &known.map(Claim::key).collect::<Vec<_>>()).await?;
        match connection.commit().await {
            // A constraint that is checked at the end of a transaction.
            Err(Failure::Refused(_)) => Ok(false),
            committed => committed.map(|()| true),
        }
    }

    async fn settle_once(&self, group: &[&Settlement], wait: LockWait) -> Result<Vec<Settled>, Failure> {
        let mut connection = self.connection().await?;
        connection.begin_waiting(self.dialect(), wait).await?;
        let standing = self.standing(&mut connection, group).await?;
        let mut recipients = Vec::new();
        let mut released = Vec::new();
        let mut fates = Vec::new();
        let mut settled = Vec::with_capacity(group.len());
        for (settlement, standing) in group.iter().zip(&standing) {
            let record = &settlement.claim.record;
            // What stands in the table already is not written again: of very many recipients an attempt may concern one.
            let known = &settlement.claim.history.recipients;
            let history = settlement.verdict.history.recipients.iter().enumerate();
            let history = history.filter(move |(at, recipient)| known.get(*at) != Some(*recipient));
            let of_history =
                |only: Option<RecipientState>| history.filter(move |(_, r)| only.is_none_or(|only| r.state == only));
            let accepted = Some(RecipientState::Accepted);
            settled.push(match (&settlement.verdict.fate, standing) {
                (_, Standing::SettledBefore) | (Fate::Released, Standing::Gone) => Settled::Done,
                (_, Standing::Gone) => Settled::ClaimLost,
                (_, Standing::Others) => {
                    recipients.extend(of_history(accepted).map(|(at, recipient)| (record, at, recipient)));
                    Settled::ClaimLost
                }
                (Fate::Released, Standing::Ours) => {
                    recipients.extend(of_history(accepted).map(|(at, recipient)| (record, at, recipient)));
                    released.push(settlement.claim.key());
                    Settled::Done
                }
                (_, Standing::Ours) => {
                    recipients.extend(of_history(None).map(|(at, recipient)| (record, at, recipient)));
                    fates.push(*settlement);
                    Settled::Done
                }
            });
        }
        write_recipients(&mut connection, self.dialect(), &recipients).await?;
        self.write_fates(&mut connection, &fates).await?;
        self.give_back(&mut connection, &released).await?;
        failpoint::hit("in-settle");
        connection.commit().await?;
        Ok(settled)
    }

    /// Locks the records, ascending, and says how each stands.
    async fn standing(&self, connection: &mut Connection, group: &[&Settlement]) -> Result<Vec<Standing>, Failure> {
        let mut keys: Vec<_> = group.iter().map(|settlement| settlement.claim.key()).collect();
        keys.sort_unstable();
        let mut found = HashMap::new();
        for keys in keys.chunks(GROUP) {
            let (condition, args) = self.where_records("d", keys);
            let sql = format!(
                "SELECT d.id, d.owner, d.claim FROM mailqueue_delivery d{} WHERE {condition} ORDER BY d.mid{}",
                self.index_hint_primary(),
                self.dialect().lock
            );
            for line in connection.fetch(&sql, args).await? {
                found.insert(line.required_text(0)?, (line.text(1)?, line.text(2)?));
            }
        }
        let standing = group.iter().map(|Settlement { claim, .. }| match found.get(claim.record.as_str()) {
            None => Standing::Gone,
            Some((_, token)) if token.as_deref() != Some(claim.token.as_str()) => Standing::Others,
            Some((None, _)) => Standing::SettledBefore,
            Some(_) => Standing::Ours,
        });
        Ok(standing.collect())
    }

    async fn write_fates(&self, connection: &mut Connection, fates: &[&Settlement]) -> Result<(), Failure> {
        // All of these records are there and locked: an INSERT that finds them overwrites many in one statement.
        for group in fates.chunks(GROUP) {
            let sql = format!(
                "INSERT INTO mailqueue_delivery (id, queue_table, mid, created, fingerprint, message_id, state, reason, \
                 detail, next_attempt, attempts, unknowns, first_deferred, last_reply) VALUES {} {}",
                tuples(group.len(), &placeholders(14)),
                self.dialect().same_record
            );
            let mut args: Vec<Value> = Vec::with_capacity(group.len() * 14);
            for settlement in group {
                let Settlement { claim, verdict, .. } = settlement;
                let (state, reason, detail, next_attempt) = match &verdict.fate {
                    Fate::Deferred { reason, next_attempt } => ("deferred", reason, None, Some(next_attempt)),
                    Fate::Failed { reason } => ("failed", reason, None, None),
                    Fate::Held { reason } => ("held", reason, None, None),
                    Fate::Unreadable { reason, detail } => ("unreadable", reason, Some(detail.as_str()), None),
                    Fate::Delivered | Fate::Released => continue,
                };
                args.extend([claim.record.as_str().into(), self.key(), claim.id.mid.into()]);
                args.push(claim.created.as_millisecond().into());
                args.push(settlement.content().into());
                args.push(settlement.message_id.as_deref().into());
                args.extend([state.into(), reason.as_str().into(), detail.into()]);
                args.push(next_attempt.map(|time| time.as_millisecond()).into());
                args.push(i64::from(verdict.history.attempts).into());
                args.push(i64::from(verdict.history.unknowns).into());
                args.push(verdict.history.first_deferred.map(|time| time.as_millisecond()).into());
                args.push(verdict.last_reply.as_deref().into());
            }
            connection.execute(&sql, args).await?;
        }
        Ok(())
    }

    /// Records acceptances that the ledger knows and no claim is held for (replay at start). `complete`: they were the
    /// last that the row was waiting for, so row and record are deleted; otherwise the recipients are marked, and the
    /// row is due now if it was still claimed by us. Acts only where that very record is still there, and returns
    /// `None` where it is not.
    pub async fn replay(
        &self,
        mid: i64,
        record: &RecordId,
        content: Fingerprint,
        accepted: &[RecipientRecord],
        complete: Option<DeleteRetry>,
    ) -> Result<Option<Settled>, Error> {
        let Some(retry) = complete else {
            return self.retrying(|| self.replay_part_once(mid, record, content, accepted)).await;
        };
        let is_there = async || self.is_record_of(&mut self.connection().await?, mid, record, content).await;
        if !self.retrying(is_there).await? {
            return Ok(None);
        }
        let delivery = Delivery { mid, record, content, recipients: accepted, known: &[], retry };
        match self.delete_deliveries(&[delivery], LockWait::Usual).await?.pop() {
            Some(Settled::Locked { detail }) => Err(Failure::Busy(detail).into_error(self.name())),
            settled => Ok(settled),
        }
    }

    async fn replay_part_once(
        &self,
        mid: i64,
        record: &RecordId,
        content: Fingerprint,
        accepted: &[RecipientRecord],
    ) -> Result<Option<Settled>, Failure> {
        let mut connection = self.connection().await?;
        connection.begin(self.dialect().begin).await?;
        let is_there = self.is_record_of(&mut connection, mid, record, content).await?;
        if is_there {
            let lines: Vec<_> = accepted.iter().enumerate().map(|(at, recipient)| (record, at, recipient)).collect();
            write_recipients(&mut connection, self.dialect(), &lines).await?;
            // Due now, which a moment that is past says without a clock. A claim of another dispatcher stays its own, and a
            // row that was deferred already keeps the time of its next attempt.
            let sql = "UPDATE mailqueue_delivery SET state = 'deferred', owner = NULL, next_attempt = created \
                       WHERE queue_table = ? AND mid = ? AND state IN ('claimed', 'sending') AND owner = ?";
            connection.execute(sql, vec![self.key(), mid.into(), self.owner()]).await?;
        }
        connection.commit().await?;
        Ok(is_there.then_some(Settled::Done))
    }

    /// Returns true where this record is there and was made for this content. Locks it inside a transaction.
    async fn is_record_of(
        &self,
        connection: &mut Connection,
        mid: i64,
        record: &RecordId,
        content: Fingerprint,
    ) -> Result<bool, Failure> {
        let sql = format!(
            "SELECT d.fingerprint FROM mailqueue_delivery d{} WHERE d.queue_table = ? AND d.mid = ? AND d.id = ?{}",
            self.index_hint_primary(),
            self.dialect().lock
        );
        let lines = connection.fetch(&sql, vec![self.key(), mid.into(), record.as_str().into()]).await?;
        let made_for = lines.first().map(|line| line.text(0)).transpose()?;
        Ok(made_for.is_some_and(|made| made.is_none_or(|made| made == content.to_hex())))
    }
}

impl Settlement {
    /// The content that the row had when it was loaded, now or at an earlier attempt.
    fn content(&self) -> Option<Fingerprint> {
        self.fingerprint.or(self.claim.fingerprint)
    }

    fn delivery(&self, retry: DeleteRetry) -> Result<Delivery<'_>, Failure> {
        let content = self.content().ok_or_else(|| {
            Failure::Refused(format!("{} was never loaded, so that its delivery cannot be settled", self.claim.id))
        })?;
        let (recipients, known) = (&self.verdict.history.recipients, &self.claim.history.recipients);
        Ok(Delivery { mid: self.claim.id.mid, record: &self.claim.record, content, recipients, known, retry })
    }
}
