//! Heartbeats, take-over, the emergency stop, and what each pass tidies up.

use std::collections::HashMap;
use std::time::Duration;

use super::claim::Claim;
use super::db::connection::{Connection, Value};
use super::db::dialect::GROUP;
use super::db::error::Failure;
use super::db::server::Urgent;
use super::error::Error;
use super::handle::{DispatcherId, Queue};
use super::records::{RECORD, RECORD_COLUMNS, Record, borrowed, histories, keys_of};
use super::token::{ClaimToken, is_taken_over};
use crate::mail::RecordId;
use crate::outcome::State;

/// The owner of rows whose take-over got no answer. It has no heartbeat, so that they are taken over again after a lease.
const NO_DISPATCHER: &str = "none";

/// The claims that recovery found: our own, or those of a dispatcher that shows no signs of life.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Claims that had not come to a dot: given back to where they were before.
    pub released: usize,
    /// Rows in `sending`: it is unknown whether their dot was answered. They are claimed by us now.
    pub unknown: Vec<Claim>,
}

/// The emergency stop, as it stands in the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    pub queue: bool,
    pub relay: bool,
}

/// A part of the work that operators can stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseTarget {
    /// This queue.
    Queue,
    /// The relay, for every dispatcher of this database.
    Relay,
}

impl Queue {
    /// Counts our heartbeat up.
    pub async fn beat(&self) -> Result<(), Error> {
        self.retrying(|| self.beat_once()).await
    }

    async fn beat_once(&self) -> Result<(), Failure> {
        let sql = format!(
            "INSERT INTO mailqueue_dispatcher (kind, id, heartbeat) VALUES ('dispatcher', ?, 1) {}",
            self.dialect().same_dispatcher
        );
        self.urgent_connection(Urgent::Heartbeat).await?.execute(&sql, vec![self.owner()]).await.map(drop)
    }

    /// Takes back what this dispatcher had claimed before it was started again.
    pub async fn recover_own(&self) -> Result<Recovered, Error> {
        let token = self.inner.tokens.create();
        self.retrying(|| self.recover_once(&self.inner.dispatcher, None, None, &token)).await
    }

    /// As [`Queue::recover_own`], of these rows only.
    pub async fn recover_rows(&self, mids: &[i64]) -> Result<Recovered, Error> {
        let token = self.inner.tokens.create();
        self.retrying(|| self.recover_once(&self.inner.dispatcher, None, Some(mids), &token)).await
    }

    /// Gives claims back that are ours and that no task of this process holds. A statement can arrive at the server
    /// after it was given up and undone: a server that was frozen, or a link that was interrupted, delivers what was
    /// sent before. Of what is `sending`, only rows that were taken over are left to a further take-over: our ledger
    /// knows nothing of them. The recovery asks the ledger for the others.
    pub(super) async fn release_unheld(&self) -> Result<(), Error> {
        for ((token, state), keys) in self.retrying(|| self.unheld_once()).await? {
            for keys in keys.chunks(GROUP) {
                match state {
                    State::Sending if is_taken_over(&token) => {
                        self.retrying(|| self.abandon_once(&token, keys)).await?;
                    }
                    State::Sending => {}
                    _ => self.retrying(|| self.undo_once(&token, keys)).await?,
                }
            }
        }
        Ok(())
    }

    /// Returns the records that are claimed by us under tokens that are not in use, by token and state.
    async fn unheld_once(&self) -> Result<HashMap<(String, State), Vec<(i64, RecordId)>>, Failure> {
        let sql = format!(
            "SELECT d.mid, d.id, d.claim, d.state FROM mailqueue_delivery d{} WHERE d.queue_table = ? \
             AND d.state IN ('claimed', 'sending') AND d.owner = ? ORDER BY d.mid",
            self.index_hint_due()
        );
        let lines = self.connection().await?.fetch(&sql, vec![self.key(), self.owner()]).await?;
        // Read after the answer: a token that is not in use by now never is again.
        let in_use = self.inner.tokens.in_use();
        let mut unheld: HashMap<_, Vec<_>> = HashMap::new();
        for line in lines {
            let token = line.text(2)?.unwrap_or_default();
            let state = State::parse(&line.required_text(3)?).unwrap_or(State::Sending);
            if !in_use.contains(token.as_str()) {
                unheld.entry((token, state)).or_default().extend(keys_of(vec![line])?);
            }
        }
        Ok(unheld)
    }

    /// Leaves those of the records that are claimed under this token to whichever dispatcher takes them over.
    async fn abandon_once(&self, token: &str, keys: &[(i64, RecordId)]) -> Result<(), Failure> {
        let keys = borrowed(keys);
        let (condition, which) = self.where_records("mailqueue_delivery", &keys);
        let sql = format!(
            "UPDATE mailqueue_delivery{} SET owner = ? WHERE {condition} AND state = 'sending' AND owner = ? AND claim = ?",
            self.index_hint_primary()
        );
        let mut args = vec![NO_DISPATCHER.into()];
        args.extend(which);
        args.extend([self.owner(), token.into()]);
        self.connection().await?.execute(&sql, args).await.map(drop)
    }

    /// The other dispatchers that hold claims, with their heartbeat counters.
    pub async fn others(&self) -> Result<Vec<(DispatcherId, i64)>, Error> {
        self.retrying(|| self.others_once()).await
    }

    async fn others_once(&self) -> Result<Vec<(DispatcherId, i64)>, Failure> {
        let sql = format!(
            "SELECT o.owner, COALESCE(b.heartbeat, 0) FROM (SELECT DISTINCT d.owner FROM mailqueue_delivery d{} \
             WHERE d.queue_table = ? AND d.state IN ('claimed', 'sending') AND d.owner <> ?) o \
             LEFT JOIN mailqueue_dispatcher b ON b.kind = 'dispatcher' AND b.id = o.owner",
            self.index_hint_due()
        );
        let lines = self.connection().await?.fetch(&sql, vec![self.key(), self.owner()]).await?;
        lines.iter().map(|line| Ok((line.required_text(0)?, line.required_i64(1)?))).collect()
    }

    /// Takes over the claims of a dispatcher whose counter still stands at `counter`.
    pub async fn take_over(&self, other: &DispatcherId, counter: i64) -> Result<Recovered, Error> {
        let token = self.inner.tokens.create();
        self.retrying(|| self.recover_once(other, Some(counter), None, &token)).await
    }

    /// Gives back what `owner` had claimed, and takes what it was sending, if its heartbeat still stands at `counter`; of
    /// the rows `only`, if there are such.
    /// A try whose answer was lost has left its `token` behind.
    async fn recover_once(
        &self,
        owner: &str,
        counter: Option<i64>,
        only: Option<&[i64]>,
        token: &ClaimToken,
    ) -> Result<Recovered, Failure> {
        let mut connection = self.connection().await?;
        connection.begin(self.dialect().begin).await?;
        if let Some(counter) = counter {
            let sql = format!(
                "SELECT b.heartbeat FROM mailqueue_dispatcher b WHERE b.kind = 'dispatcher' AND b.id = ?{}",
                self.dialect().lock
            );
            let lines = connection.fetch(&sql, vec![owner.into()]).await?;
            if lines.first().map(|line| line.required_i64(0)).transpose()?.unwrap_or(0) != counter {
                connection.commit().await?;
                return Ok(Recovered::default());
            }
        }
        // Looked up first and locked by their keys, so that nobody else's claims are waited for.
        let theirs = "(d.owner = ? OR (d.owner = ? AND d.claim IN (?, ?)))";
        let sql = format!(
            "SELECT d.mid, d.id FROM mailqueue_delivery d{} WHERE d.queue_table = ? \
             AND d.state IN ('claimed', 'sending') AND {theirs}",
            self.index_hint_due()
        );
        // Whose they were must be known also after we died before settling them.
        let foreign = self.inner.tokens.taken_over(token);
        let whose: [Value; 4] = [owner.into(), self.owner(), token.as_str().into(), foreign.as_str().into()];
        let mut found =
            keys_of(connection.fetch(&sql, [self.key()].into_iter().chain(whose.clone()).collect()).await?)?;
        found.retain(|(mid, _)| only.is_none_or(|only| only.contains(mid)));
        found.sort_unstable();
        let (mut released, mut own, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for group in borrowed(&found).chunks(GROUP) {
            let (condition, mut args) = self.where_records("d", group);
            let sql = format!(
                "SELECT {RECORD}, d.claim FROM mailqueue_delivery d{} WHERE {condition} AND {theirs} ORDER BY d.mid{}",
                self.index_hint_primary(),
                self.dialect().lock
            );
            args.extend(whose.clone());
            for line in connection.fetch(&sql, args).await? {
                let record = Record::read(&line, 0)?;
                let was_foreign =
                    counter.is_some() || line.text(RECORD_COLUMNS)?.is_some_and(|claim| is_taken_over(&claim));
                let list = match record.state {
                    State::Sending if was_foreign => &mut taken,
                    State::Sending => &mut own,
                    _ => &mut released,
                };
                list.push(record);
            }
        }
        self.give_back(&mut connection, &released.iter().map(Record::key).collect::<Vec<_>>()).await?;
        let mut unknown = Vec::with_capacity(own.len() + taken.len());
        for (records, token) in [(own, token), (taken, &foreign)] {
            unknown.extend(self.take(&mut connection, records, token).await?);
        }
        connection.commit().await?;
        Ok(Recovered { released: released.len(), unknown })
    }

    /// Makes these records, which stay `sending` until they are settled, claims of ours.
    async fn take(
        &self,
        connection: &mut Connection,
        mut records: Vec<Record>,
        token: &ClaimToken,
    ) -> Result<Vec<Claim>, Failure> {
        for group in records.chunks(GROUP) {
            let (condition, which) =
                self.where_records("mailqueue_delivery", &group.iter().map(Record::key).collect::<Vec<_>>());
            let sql = format!(
                "UPDATE mailqueue_delivery{} SET owner = ?, claim = ? WHERE {condition}",
                self.index_hint_primary()
            );
            let mut args = vec![self.owner(), token.as_str().into()];
            args.extend(which);
            connection.execute(&sql, args).await?;
        }
        histories(connection, &mut records).await?;
        Ok(records.into_iter().map(|record| Claim::of(self, record, token)).collect())
    }

    /// The emergency stop.
    pub async fn paused(&self) -> Result<Paused, Error> {
        self.retrying(|| self.paused_once()).await
    }

    async fn paused_once(&self) -> Result<Paused, Failure> {
        let sql = "SELECT p.kind FROM mailqueue_dispatcher p \
                   WHERE (p.kind = 'queue' AND p.id = ?) OR (p.kind = 'relay' AND p.id = '')";
        let mut paused = Paused::default();
        for line in self.urgent_connection(Urgent::PauseFlags).await?.fetch(sql, vec![self.key()]).await? {
            match line.required_text(0)?.as_str() {
                "queue" => paused.queue = true,
                _ => paused.relay = true,
            }
        }
        Ok(paused)
    }

    /// Sets the emergency stop.
    pub async fn pause(&self, target: PauseTarget) -> Result<(), Error> {
        let (insert, skip) = self.dialect().skip;
        let sql = format!("{insert} mailqueue_dispatcher (kind, id) VALUES (?, ?) {skip}");
        self.retrying(|| self.set_pause_once(&sql, target)).await
    }

    /// Lifts the emergency stop.
    pub async fn resume(&self, target: PauseTarget) -> Result<(), Error> {
        let sql = "DELETE FROM mailqueue_dispatcher WHERE kind = ? AND id = ?";
        self.retrying(|| self.set_pause_once(sql, target)).await
    }

    async fn set_pause_once(&self, sql: &str, target: PauseTarget) -> Result<(), Failure> {
        let args = match target {
            PauseTarget::Queue => vec!["queue".into(), self.key()],
            PauseTarget::Relay => vec!["relay".into(), "".into()],
        };
        self.connection().await?.execute(sql, args).await.map(drop)
    }

    /// Expiry does not run while the relay is out of reach, for which no mail can be blamed: moves `first_deferred` of
    /// all rows that wait later by as long as that has been so up to now, less what any dispatcher has accounted for
    /// before. To be called with zero while the relay is up, so that no dispatcher excuses that time.
    pub async fn excuse(&self, outage: Duration) -> Result<(), Error> {
        let outage = i64::try_from(outage.as_millis()).unwrap_or(i64::MAX);
        self.retrying(|| self.excuse_once(outage)).await
    }

    /// The line of kind `expiry` says until when somebody has accounted for expiry, by the database's clock: what was
    /// excused up to there, or had run while the relay was up, is not excused once more.
    async fn excuse_once(&self, outage: i64) -> Result<(), Failure> {
        let mut connection = self.connection().await?;
        let (insert, skip) = self.dialect().skip;
        let now = self.dialect().now;
        let line = format!("{insert} mailqueue_dispatcher (kind, id, heartbeat) VALUES ('expiry', ?, 0) {skip}");
        connection.execute(&line, vec![self.key()]).await?;
        if outage == 0 {
            // No transaction, so that a dispatcher that is stopped here keeps nobody waiting.
            let sql = format!(
                "UPDATE mailqueue_dispatcher SET heartbeat = {now} WHERE kind = 'expiry' AND id = ? AND heartbeat < {now}"
            );
            return connection.execute(&sql, vec![self.key()]).await.map(drop);
        }
        connection.begin(self.dialect().begin).await?;
        let sql = format!(
            "SELECT e.heartbeat, {now} FROM mailqueue_dispatcher e WHERE e.kind = 'expiry' AND e.id = ?{}",
            self.dialect().lock
        );
        let lines = connection.fetch(&sql, vec![self.key()]).await?;
        let read =
            |column| lines.first().map(|line| line.required_i64(column)).transpose().map(Option::unwrap_or_default);
        let (until, now): (i64, i64) = (read(0)?, read(1)?);
        let owed = outage.min(now.saturating_sub(until)).min(now);
        if owed > 0 {
            // Of a mail that was first put off during the outage the time since then.
            let sql = "UPDATE mailqueue_delivery SET first_deferred = \
                       CASE WHEN first_deferred > ? THEN ? ELSE first_deferred + ? END WHERE queue_table = ? \
                       AND state IN ('deferred', 'claimed', 'sending') AND first_deferred < ?";
            let args = vec![(now - owed).into(), now.into(), owed.into(), self.key(), now.into()];
            connection.execute(sql, args).await?;
        }
        let sql = "UPDATE mailqueue_dispatcher SET heartbeat = ? WHERE kind = 'expiry' AND id = ?";
        connection.execute(sql, vec![now.max(until).into(), self.key()]).await?;
        connection.commit().await
    }
}
