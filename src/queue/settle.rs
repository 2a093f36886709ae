//! What becomes of a claim: nothing of it is left to chance between the final dot and the row's end.

use std::collections::{HashMap, HashSet};

use super::Inner;
use super::claim::{Claim, Settled, Settlement};
use super::db::connection::{Link, Value};
use super::db::dialect::{GROUP, padded, places, tuples};
use super::db::error::{Error, Failure, persist};
use super::records::write_recipients;
use crate::failpoint;
use crate::mail::{Fingerprint, MailId, RecordId};
use crate::outcome::{Fate, RecipientRecord, RecipientState};

/// How a record stands towards the claim that is to be settled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ours,
    /// This very claim was settled before, and only the answer was lost.
    SettledBefore,
    Others,
    Gone,
}

impl Inner {
    pub(super) async fn settle(
        &self,
        group: Vec<Settlement>,
    ) -> Result<Vec<(MailId, Settled)>, (Error, Vec<Settlement>)> {
        let numbered = |group: Vec<Settlement>| group.into_iter().map(|settlement| settlement.claim.id);
        if group.iter().all(|settlement| matches!(settlement.verdict.fate, Fate::Delivered)) {
            match persist!(self, self.delete_once(&group)) {
                Ok(true) => return Ok(numbered(group).map(|id| (id, Settled::Done)).collect()),
                Ok(false) => {}
                Err(error) => return Err((error, group)),
            }
        }
        let mut singly = false;
        let done = loop {
            match persist!(self, self.settle_once(&group, singly)) {
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
        let mut link = self.link().await?;
        self.schema(&mut link).await?;
        let tokens: HashSet<&str> = group.iter().map(|settlement| &*settlement.claim.token).collect();
        let tokens: Vec<Value> = padded(tokens.into_iter().map(Value::from).collect());
        let (delete, by_key) = (self.dialect().delete, self.by_key());
        link.begin(self.dialect().begin).await?;
        let mut keys: Vec<_> = group.iter().map(|settlement| settlement.claim.key()).collect();
        keys.sort_unstable();
        let mut same = true;
        for keys in keys.chunks(GROUP) {
            let (these, mut args) = self.claimed("q", keys);
            let sql = format!(
                "{delete} mailqueue_delivery AS q{by_key} WHERE {these} AND q.claim IN ({})",
                places(tokens.len())
            );
            args.extend(tokens.iter().cloned());
            same = same && link.execute(&sql, args).await? == keys.len() as u64;
        }
        same = same && self.delete_rows(&mut link, rows, false).await?.is_some();
        if !same {
            link.rollback().await?;
            return Ok(false);
        }
        failpoint::hit("in-settle");
        // A record that was made with its claim has no recipients yet.
        let known = group.iter().map(|settlement| &settlement.claim).filter(|claim| !claim.new);
        self.drop_recipients(&mut link, &known.map(Claim::key).collect::<Vec<_>>()).await?;
        link.commit().await?;
        Ok(true)
    }

    /// `None`: rolled back, because not all rows were there as they were when they were sent, and a group's DELETE
    /// cannot say which.
    async fn settle_once(&self, group: &[Settlement], singly: bool) -> Result<Option<Vec<Settled>>, Failure> {
        let mut link = self.link().await?;
        self.schema(&mut link).await?;
        link.begin(self.dialect().begin).await?;
        let standing = self.standing(&mut link, group).await?;
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
        write_recipients(&mut link, self.dialect(), &recipients).await?;
        self.write_fates(&mut link, &fates).await?;
        self.give_back(&mut link, &released).await?;

        let rows: Vec<_> = deliveries.iter().map(|&(_, mid, fingerprint)| (mid, fingerprint)).collect();
        let Some(gone) = self.delete_rows(&mut link, rows, singly).await? else {
            link.rollback().await?;
            return Ok(None);
        };
        for &(index, mid, _) in &deliveries {
            if gone.contains(&mid) {
                settled[index] = Settled::RowGone;
            }
        }
        failpoint::hit("in-settle");
        let delivered: Vec<_> = deliveries.iter().map(|&(index, ..)| group[index].claim.key()).collect();
        self.drop_records(&mut link, &delivered).await?;
        link.commit().await?;
        Ok(Some(settled))
    }

    /// Locks the records, ascending, and says how each stands.
    async fn standing(&self, link: &mut Link, group: &[Settlement]) -> Result<Vec<Standing>, Failure> {
        let mut keys: Vec<_> = group.iter().map(|settlement| settlement.claim.key()).collect();
        keys.sort_unstable();
        let mut found = HashMap::new();
        for keys in keys.chunks(GROUP) {
            let (these, args) = self.these("d", keys);
            let sql = format!(
                "SELECT d.id, d.owner, d.claim FROM mailqueue_delivery d{} WHERE {these} ORDER BY d.mid{}",
                self.by_key(),
                self.dialect().lock
            );
            for line in link.fetch(&sql, args).await? {
                found.insert(line.some_text(0)?, (line.text(1)?, line.text(2)?));
            }
        }
        let standing = group.iter().map(|Settlement { claim, .. }| match found.get(claim.record.as_str()) {
            None => Standing::Gone,
            Some((_, token)) if token.as_deref() != Some(&*claim.token) => Standing::Others,
            Some((None, _)) => Standing::SettledBefore,
            Some(_) => Standing::Ours,
        });
        Ok(standing.collect())
    }

    async fn write_fates(&self, link: &mut Link, fates: &[&Settlement]) -> Result<(), Failure> {
        // All of these records are there and locked: an INSERT that finds them overwrites many in one statement.
        for group in fates.chunks(GROUP) {
            let sql = format!(
                "INSERT INTO mailqueue_delivery (id, queue_table, mid, created, fingerprint, message_id, state, reason, \
                 detail, next_attempt, attempts, unknowns, first_deferred, last_reply) VALUES {} {}",
                tuples(group.len(), &places(14)),
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
            link.execute(&sql, args).await?;
        }
        Ok(())
    }

    /// Deletes rows by number and content, ascending. Answers the numbers of those that were gone or had another
    /// content; `None` if there are such and `singly` was not asked for.
    pub(super) async fn delete_rows(
        &self,
        link: &mut Link,
        mut rows: Vec<(i64, Fingerprint)>,
        singly: bool,
    ) -> Result<Option<HashSet<i64>>, Failure> {
        rows.sort_unstable_by_key(|&(mid, _)| mid);
        let schema = self.schema(link).await?;
        let mut gone = HashSet::new();
        for group in rows.chunks(if singly { 1 } else { GROUP }) {
            let deleted = match &schema.fingerprint {
                Some(fingerprint) => {
                    let padded = padded(group.to_vec());
                    let places = places(padded.len());
                    let sql = format!(
                        "{} {} AS q{} WHERE q.mid IN ({places}) AND {} IN ({places})",
                        self.dialect().delete,
                        schema.table,
                        schema.by_mid,
                        (self.dialect().pair)(fingerprint)
                    );
                    let mut args: Vec<Value> = padded.iter().map(|&(mid, _)| mid.into()).collect();
                    args.extend(
                        padded
                            .iter()
                            .map(|(mid, content)| Value::Text(Some(format!("{mid}:{}", content.to_hex()).into()))),
                    );
                    link.execute(&sql, args).await?
                }
                None => {
                    // The database cannot compare contents, so that we do, and nobody can write meanwhile.
                    let mids: Vec<i64> = group.iter().map(|&(mid, _)| mid).collect();
                    let found = self.fingerprints(link, &mids).await?;
                    let same = |(mid, content): &&(i64, Fingerprint)| found.get(mid) == Some(content);
                    let mids: Vec<Value> = padded(group.iter().filter(same).map(|&(mid, _)| mid.into()).collect());
                    let sql = format!("DELETE FROM {} WHERE mid IN ({})", schema.table, places(mids.len()));
                    if mids.is_empty() { 0 } else { link.execute(&sql, mids).await? }
                }
            };
            if deleted != group.len() as u64 {
                if !singly {
                    return Ok(None);
                }
                gone.extend(group.iter().map(|&(mid, _)| mid));
            }
        }
        Ok(Some(gone))
    }

    pub(super) async fn replay(
        &self,
        mid: i64,
        record: &RecordId,
        fingerprint: Fingerprint,
        accepted: &[RecipientRecord],
        complete: bool,
    ) -> Result<bool, Error> {
        persist!(self, self.replay_once(mid, record, fingerprint, accepted, complete))
    }

    async fn replay_once(
        &self,
        mid: i64,
        record: &RecordId,
        fingerprint: Fingerprint,
        accepted: &[RecipientRecord],
        complete: bool,
    ) -> Result<bool, Failure> {
        let mut link = self.link().await?;
        self.schema(&mut link).await?;
        link.begin(self.dialect().begin).await?;
        let sql = format!(
            "SELECT d.fingerprint FROM mailqueue_delivery d{} WHERE d.queue_table = ? AND d.mid = ? AND d.id = ?{}",
            self.by_key(),
            self.dialect().lock
        );
        let lines = link.fetch(&sql, vec![self.key(), mid.into(), record.as_str().into()]).await?;
        let made_for = lines.first().map(|line| line.text(0)).transpose()?;
        let stands = made_for.is_some_and(|made| made.is_none_or(|made| made == fingerprint.to_hex()));
        if stands && complete {
            self.delete_rows(&mut link, vec![(mid, fingerprint)], true).await?;
            self.drop_records(&mut link, &[(mid, record)]).await?;
        } else if stands {
            let lines: Vec<_> = accepted.iter().enumerate().map(|(at, recipient)| (record, at, recipient)).collect();
            write_recipients(&mut link, self.dialect(), &lines).await?;
            // Due now, which a moment that is past says without a clock. A claim of another dispatcher stays its own.
            let sql = "UPDATE mailqueue_delivery SET state = 'deferred', owner = NULL, next_attempt = created \
                       WHERE queue_table = ? AND mid = ? \
                       AND (state = 'deferred' OR (state IN ('claimed', 'sending') AND owner = ?))";
            link.execute(sql, vec![self.key(), mid.into(), self.owner()]).await?;
        }
        link.commit().await?;
        Ok(stands)
    }
}

impl Settlement {
    /// What the row held when it was loaded, now or at an earlier attempt.
    fn content(&self) -> Option<Fingerprint> {
        self.fingerprint.or(self.claim.fingerprint)
    }
}

fn never_loaded(settlement: &Settlement) -> String {
    format!("{} was never loaded, so that its delivery cannot be settled", settlement.claim.id)
}
