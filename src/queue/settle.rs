//! The end of a claim: carries verdicts out, and acceptances that only the ledger knows.

use std::collections::{HashMap, HashSet};

use super::claim::Claim;
use super::db::connection::{Connection, Value};
use super::db::dialect::{GROUP, padded, placeholders, tuples};
use super::db::error::Failure;
use super::error::Error;
use super::handle::Queue;
use super::records::write_recipients;
use crate::failpoint;
use crate::mail::{Fingerprint, MailId, RecordId};
use crate::outcome::{Fate, RecipientRecord, RecipientState, Verdict};

/// The result of settling a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As the verdict wanted. Row and record are gone, or the record says it.
    Done,
    /// The row was gone or had another content; the record is dropped, nothing else was touched.
    RowGone,
    /// Another dispatcher has the claim. Acceptances were recorded all the same; nothing else was.
    ClaimLost,
}

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
    /// Carries out verdicts, in one transaction for the group; the answers are in the same order. On an error nothing
    /// is known to have happened, everything comes back, and the caller tries again: doing it twice is harmless.
    pub async fn settle(&self, group: Vec<Settlement>) -> Result<Vec<(MailId, Settled)>, (Error, Vec<Settlement>)> {
        let numbered = |group: Vec<Settlement>| group.into_iter().map(|settlement| settlement.claim.id);
        if group.iter().all(|settlement| matches!(settlement.verdict.fate, Fate::Delivered)) {
            match self.retrying(|| self.delete_once(&group)).await {
                Ok(true) => return Ok(numbered(group).map(|id| (id, Settled::Done)).collect()),
                Ok(false) => {}
                Err(error) => return Err((error, group)),
            }
        }
        let mut singly = false;
        let done = loop {
            match self.retrying(|| self.settle_once(&group, singly)).await {
                Ok(Some(done)) => break done,
                // Some row was gone or changed: row by row it can be told which.
                Ok(None) => singly = true,
                Err(error) => return Err((error, group)),
            }
        };
        Ok(numbered(group).zip(done).collect())
    }

    /// What nearly always suffices: all rows were delivered, all claims are ours still, and each row is as it was when it
    /// was sent. False: something was otherwise, and nothing has happened.
    async fn delete_once(&self, group: &[Settlement]) -> Result<bool, Failure> {
        let mut rows = Vec::with_capacity(group.len());
        for settlement in group {
            let content = settlement.content().ok_or_else(|| Failure::Refused(never_loaded(settlement)))?;
            rows.push((settlement.claim.id.mid, content));
        }
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
        same = same && self.delete_rows(&mut connection, rows, false).await?.is_some();
        if !same {
            connection.rollback().await?;
            return Ok(false);
        }
        failpoint::hit("in-settle");
        // A record that was made with its claim has no recipients yet.
        let known = group.iter().map(|settlement| &settlement.claim).filter(|claim| !claim.new);
        self.drop_recipients(&mut connection, &known.map(Claim::key).collect::<Vec<_>>()).await?;
        connection.commit().await?;
        Ok(true)
    }

    /// `None`: rolled back, because not all rows were there as they were when they were sent, and a group's DELETE
    /// cannot say which.
    async fn settle_once(&self, group: &[Settlement], singly: bool) -> Result<Option<Vec<Settled>>, Failure> {
        let mut connection = self.connection().await?;
        self.schema(&mut connection).await?;
        connection.begin(self.dialect().begin).await?;
        let standing = self.standing(&mut connection, group).await?;
        let mut recipients = Vec::new();
        let mut deliveries = Vec::new();
        let mut released = Vec::new();
        let mut fates = Vec::new();
        let mut settled = Vec::with_capacity(group.len());
        for (index, (settlement, standing)) in group.iter().zip(&standing).enumerate() {
            let record = &settlement.claim.record;
            // What stands in the table already is not written again: of very many recipients an attempt may concern one.
            let known = &settlement.claim.history.recipients;
            let history = settlement.verdict.history.recipients.iter().enumerate();
            let history = history.filter(move |(at, recipient)| known.get(*at) != Some(*recipient));
            let of_history =
                |only: Option<RecipientState>| history.filter(move |(_, r)| only.is_none_or(|only| r.state == only));
            let accepted = Some(RecipientState::Accepted);
            settled.push(match (&settlement.verdict.fate, standing) {
                (Fate::Delivered, Standing::Gone) => Settled::Done,
                (Fate::Delivered, _) => match settlement.content() {
                    Some(fingerprint) => {
                        deliveries.push((index, settlement.claim.id.mid, fingerprint));
                        Settled::Done
                    }
                    None => return Err(Failure::Refused(never_loaded(settlement))),
                },
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
                    fates.push(settlement);
                    Settled::Done
                }
            });
        }
        write_recipients(&mut connection, self.dialect(), &recipients).await?;
        self.write_fates(&mut connection, &fates).await?;
        self.give_back(&mut connection, &released).await?;

        let rows: Vec<_> = deliveries.iter().map(|&(_, mid, fingerprint)| (mid, fingerprint)).collect();
        let Some(gone) = self.delete_rows(&mut connection, rows, singly).await? else {
            connection.rollback().await?;
            return Ok(None);
        };
        for &(index, mid, _) in &deliveries {
            if gone.contains(&mid) {
                settled[index] = Settled::RowGone;
            }
        }
        failpoint::hit("in-settle");
        let delivered: Vec<_> = deliveries.iter().map(|&(index, ..)| group[index].claim.key()).collect();
        self.drop_records(&mut connection, &delivered).await?;
        connection.commit().await?;
        Ok(Some(settled))
    }

    /// Locks the records, ascending, and says how each stands.
    async fn standing(&self, connection: &mut Connection, group: &[Settlement]) -> Result<Vec<Standing>, Failure> {
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
    /// last that the row was waiting for, so row and record are deleted; otherwise the recipients are marked and the row
    /// is due now. Acts only where that very record still stands. True: it did.
    pub async fn replay(
        &self,
        mid: i64,
        record: &RecordId,
        fingerprint: Fingerprint,
        accepted: &[RecipientRecord],
        complete: bool,
    ) -> Result<bool, Error> {
        self.retrying(|| self.replay_once(mid, record, fingerprint, accepted, complete)).await
    }

    async fn replay_once(
        &self,
        mid: i64,
        record: &RecordId,
        fingerprint: Fingerprint,
        accepted: &[RecipientRecord],
        complete: bool,
    ) -> Result<bool, Failure> {
        let mut connection = self.connection().await?;
        self.schema(&mut connection).await?;
        connection.begin(self.dialect().begin).await?;
        let sql = format!(
            "SELECT d.fingerprint FROM mailqueue_delivery d{} WHERE d.queue_table = ? AND d.mid = ? AND d.id = ?{}",
            self.index_hint_primary(),
            self.dialect().lock
        );
        let lines = connection.fetch(&sql, vec![self.key(), mid.into(), record.as_str().into()]).await?;
        let made_for = lines.first().map(|line| line.text(0)).transpose()?;
        let stands = made_for.is_some_and(|made| made.is_none_or(|made| made == fingerprint.to_hex()));
        if stands && complete {
            self.delete_rows(&mut connection, vec![(mid, fingerprint)], true).await?;
            self.drop_records(&mut connection, &[(mid, record)]).await?;
        } else if stands {
            let lines: Vec<_> = accepted.iter().enumerate().map(|(at, recipient)| (record, at, recipient)).collect();
            write_recipients(&mut connection, self.dialect(), &lines).await?;
            // Due now, which a moment that is past says without a clock. A claim of another dispatcher stays its own.
            let sql = "UPDATE mailqueue_delivery SET state = 'deferred', owner = NULL, next_attempt = created \
                       WHERE queue_table = ? AND mid = ? \
                       AND (state = 'deferred' OR (state IN ('claimed', 'sending') AND owner = ?))";
            connection.execute(sql, vec![self.key(), mid.into(), self.owner()]).await?;
        }
        connection.commit().await?;
        Ok(stands)
    }
}

impl Settlement {
    /// The content that the row had when it was loaded, now or at an earlier attempt.
    fn content(&self) -> Option<Fingerprint> {
        self.fingerprint.or(self.claim.fingerprint)
    }
}

fn never_loaded(settlement: &Settlement) -> String {
    format!("{} was never loaded, so that its delivery cannot be settled", settlement.claim.id)
}
