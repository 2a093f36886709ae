//! Heartbeats, take-over, the emergency stop, and what each pass tidies up.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::MutexGuard;

use super::claim::{Claim, Recovered, TAKEN_OVER};
use super::claiming::token;
use super::db::connection::{Link, Value};
use super::db::dialect::GROUP;
use super::db::error::{Error, Failure, persist};
use super::records::{RECORD, RECORD_COLUMNS, Record, borrowed, histories, keys_of};
use super::view::Paused;
use super::{DispatcherId, Doubts, Inner};
use crate::mail::RecordId;
use crate::outcome::State;

impl Inner {
    pub(super) async fn beat(&self) -> Result<(), Error> {
        persist!(self, self.beat_once())
    }

    async fn beat_once(&self) -> Result<(), Failure> {
        let sql = format!(
            "INSERT INTO mailqueue_dispatcher (kind, id, heartbeat) VALUES ('dispatcher', ?, 1) {}",
            self.dialect().same_dispatcher
        );
        self.link().await?.execute(&sql, vec![self.owner()]).await.map(drop)
    }

    pub(super) async fn recover_own(&self, _now: Timestamp) -> Result<Recovered, Error> {
        let token = token();
        persist!(self, self.recover_once(&self.dispatcher, None, &token))
    }

    pub(super) async fn others(&self) -> Result<Vec<(DispatcherId, i64)>, Error> {
        persist!(self, self.others_once())
    }

    async fn others_once(&self) -> Result<Vec<(DispatcherId, i64)>, Failure> {
        let sql = format!(
            "SELECT o.owner, COALESCE(b.heartbeat, 0) FROM (SELECT DISTINCT d.owner FROM mailqueue_delivery d{} \
             WHERE d.queue_table = ? AND d.state IN ('claimed', 'sending') AND d.owner <> ?) o \
             LEFT JOIN mailqueue_dispatcher b ON b.kind = 'dispatcher' AND b.id = o.owner",
            self.by_state()
        );
        let lines = self.link().await?.fetch(&sql, vec![self.key(), self.owner()]).await?;
        lines.iter().map(|line| Ok((line.some_text(0)?, line.some_int(1)?))).collect()
    }

    pub(super) async fn take_over(
        &self,
        other: &DispatcherId,
        counter: i64,
        _now: Timestamp,
    ) -> Result<Recovered, Error> {
        let token = token();
        persist!(self, self.recover_once(other, Some(counter), &token))
    }

    /// Gives back what `owner` had claimed, and takes what it was sending, if its heartbeat still stands at `counter`.
    /// A try whose answer was lost has left its `token` behind.
    async fn recover_once(&self, owner: &str, counter: Option<i64>, token: &Arc<str>) -> Result<Recovered, Failure> {
        let mut link = self.link().await?;
        link.begin(self.dialect().begin).await?;
        if let Some(counter) = counter {
            let sql = format!(
                "SELECT b.heartbeat FROM mailqueue_dispatcher b WHERE b.kind = 'dispatcher' AND b.id = ?{}",
                self.dialect().lock
            );
            let lines = link.fetch(&sql, vec![owner.into()]).await?;
            if lines.first().map(|line| line.some_int(0)).transpose()?.unwrap_or(0) != counter {
                link.commit().await?;
                return Ok(Recovered::default());
            }
        }
        // Looked up first and locked by their keys, so that nobody else's claims are waited for.
        let theirs = "(d.owner = ? OR (d.owner = ? AND d.claim IN (?, ?)))";
        let sql = format!(
            "SELECT d.mid, d.id FROM mailqueue_delivery d{} WHERE d.queue_table = ? \
             AND d.state IN ('claimed', 'sending') AND {theirs}",
            self.by_state()
        );
        // Whose they were must be known also after we died before settling them.
        let foreign: Arc<str> = format!("{TAKEN_OVER}{}", &token[1..]).into();
        let whose: [Value; 4] = [owner.into(), self.owner(), (&**token).into(), (&*foreign).into()];
        let mut found = keys_of(link.fetch(&sql, [self.key()].into_iter().chain(whose.clone()).collect()).await?)?;
        found.sort_unstable();
        let (mut released, mut own, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for group in borrowed(&found).chunks(GROUP) {
            let (these, mut args) = self.these("d", group);
            let sql = format!(
                "SELECT {RECORD}, d.claim FROM mailqueue_delivery d{} WHERE {these} AND {theirs} ORDER BY d.mid{}",
                self.by_key(),
                self.dialect().lock
            );
            args.extend(whose.clone());
            for line in link.fetch(&sql, args).await? {
                let record = Record::read(&line, 0)?;
                let was_foreign =
                    counter.is_some() || line.text(RECORD_COLUMNS)?.is_some_and(|claim| claim.starts_with(TAKEN_OVER));
                let list = match record.state {
                    State::Sending if was_foreign => &mut taken,
                    State::Sending => &mut own,
                    _ => &mut released,
                };
                list.push(record);
            }
        }
        self.give_back(&mut link, &released.iter().map(Record::key).collect::<Vec<_>>()).await?;
        let mut unknown = Vec::with_capacity(own.len() + taken.len());
        for (records, token) in [(own, token), (taken, &foreign)] {
            unknown.extend(self.take(&mut link, records, token).await?);
        }
        link.commit().await?;
        Ok(Recovered { released: released.len(), unknown })
    }

    /// Makes these records, which stay `sending` until they are settled, claims of ours.
    async fn take(&self, link: &mut Link, mut records: Vec<Record>, token: &Arc<str>) -> Result<Vec<Claim>, Failure> {
        for group in records.chunks(GROUP) {
            let (these, which) = self.these("mailqueue_delivery", &group.iter().map(Record::key).collect::<Vec<_>>());
            let sql = format!("UPDATE mailqueue_delivery{} SET owner = ?, claim = ? WHERE {these}", self.by_key());
            let mut args = vec![self.owner(), (&**token).into()];
            args.extend(which);
            link.execute(&sql, args).await?;
        }
        histories(link, &mut records).await?;
        Ok(records.into_iter().map(|record| record.into_claim(self.name(), token, &self.claims)).collect())
    }

    /// Acts of claiming whose answer was lost, after they have been undone; nobody else claims while this is held.
    pub(super) async fn doubts(&self) -> Result<MutexGuard<'_, Doubts>, Error> {
        let mut doubts = self.doubts.lock().await;
        while let Some((token, keys)) = doubts.last() {
            persist!(self, self.undo_once(token, keys))?;
            doubts.pop();
        }
        Ok(doubts)
    }

    async fn undo_once(&self, token: &Arc<str>, keys: &[(i64, RecordId)]) -> Result<(), Failure> {
        let mut link = self.link().await?;
        link.begin(self.dialect().begin).await?;
        let (these, mut args) = self.these("d", &borrowed(keys));
        let sql = format!(
            "SELECT d.mid, d.id FROM mailqueue_delivery d{} WHERE {these} AND d.claim = ? AND d.owner = ? \
             AND d.state = 'claimed' ORDER BY d.mid{}",
            self.by_key(),
            self.dialect().lock
        );
        args.extend([(&**token).into(), self.owner()]);
        let ours = keys_of(link.fetch(&sql, args).await?)?;
        self.give_back(&mut link, &borrowed(&ours)).await?;
        link.commit().await
    }

    pub(super) async fn paused(&self) -> Result<Paused, Error> {
        persist!(self, self.paused_once())
    }

    async fn paused_once(&self) -> Result<Paused, Failure> {
        let sql = "SELECT p.kind FROM mailqueue_dispatcher p \
                   WHERE (p.kind = 'queue' AND p.id = ?) OR (p.kind = 'relay' AND p.id = '')";
        let mut paused = Paused::default();
        for line in self.link().await?.fetch(sql, vec![self.key()]).await? {
            match line.some_text(0)?.as_str() {
                "queue" => paused.queue = true,
                _ => paused.relay = true,
            }
        }
        Ok(paused)
    }

    pub(super) async fn pause(&self, relay: bool, stop: bool) -> Result<(), Error> {
        persist!(self, self.pause_once(relay, stop))
    }

    async fn pause_once(&self, relay: bool, stop: bool) -> Result<(), Failure> {
        let args = if relay { vec!["relay".into(), "".into()] } else { vec!["queue".into(), self.key()] };
        let sql = if stop {
            let (insert, skip) = self.dialect().skip;
            format!("{insert} mailqueue_dispatcher (kind, id) VALUES (?, ?) {skip}")
        } else {
            "DELETE FROM mailqueue_dispatcher WHERE kind = ? AND id = ?".to_owned()
        };
        self.link().await?.execute(&sql, args).await.map(drop)
    }

    pub(super) async fn excuse(&self, outage: Duration) -> Result<(), Error> {
        let outage = i64::try_from(outage.as_millis()).unwrap_or(i64::MAX);
        persist!(self, self.excuse_once(outage))
    }

    /// The line of kind `expiry` says until when somebody has accounted for expiry, by the database's clock: what was
    /// excused up to there, or had run while the relay was up, is not excused once more.
    async fn excuse_once(&self, outage: i64) -> Result<(), Failure> {
        let mut link = self.link().await?;
        let (insert, skip) = self.dialect().skip;
        let now = self.dialect().now;
        let line = format!("{insert} mailqueue_dispatcher (kind, id, heartbeat) VALUES ('expiry', ?, 0) {skip}");
        link.execute(&line, vec![self.key()]).await?;
        if outage == 0 {
            // No transaction, so that a dispatcher that is stopped here keeps nobody waiting.
            let sql = format!(
                "UPDATE mailqueue_dispatcher SET heartbeat = {now} WHERE kind = 'expiry' AND id = ? AND heartbeat < {now}"
            );
            return link.execute(&sql, vec![self.key()]).await.map(drop);
        }
        link.begin(self.dialect().begin).await?;
        let sql = format!(
            "SELECT e.heartbeat, {now} FROM mailqueue_dispatcher e WHERE e.kind = 'expiry' AND e.id = ?{}",
            self.dialect().lock
        );
        let lines = link.fetch(&sql, vec![self.key()]).await?;
        let read = |column| lines.first().map(|line| line.some_int(column)).transpose().map(Option::unwrap_or_default);
        let (until, now): (i64, i64) = (read(0)?, read(1)?);
        let owed = outage.min(now.saturating_sub(until)).min(now);
        if owed > 0 {
            // Of a mail that was first put off during the outage the time since then.
            let sql = "UPDATE mailqueue_delivery SET first_deferred = \
                       CASE WHEN first_deferred > ? THEN ? ELSE first_deferred + ? END WHERE queue_table = ? \
                       AND state IN ('deferred', 'claimed', 'sending') AND first_deferred < ?";
            let args = vec![(now - owed).into(), now.into(), owed.into(), self.key(), now.into()];
            link.execute(sql, args).await?;
        }
        let sql = "UPDATE mailqueue_dispatcher SET heartbeat = ? WHERE kind = 'expiry' AND id = ?";
        link.execute(sql, vec![now.max(until).into(), self.key()]).await?;
        link.commit().await
    }

    pub(super) async fn reuses_numbers(&self) -> Result<bool, Error> {
        if self.dialect().name != "sqlite" {
            return Ok(false);
        }
        persist!(self, self.reuses_numbers_once())
    }

    async fn reuses_numbers_once(&self) -> Result<bool, Failure> {
        let sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(?) \
                   AND upper(sql) LIKE '%AUTOINCREMENT%'";
        let lines = self.link().await?.fetch(sql, vec![self.settings.table.as_str().into()]).await?;
        Ok(lines.is_empty())
    }

    pub(super) async fn link(&self) -> Result<Link, Failure> {
        self.connections.link().await
    }
}
