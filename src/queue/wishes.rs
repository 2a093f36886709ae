//! What operators ask of rows.

use std::collections::HashMap;

use jiff::Timestamp;

use super::Inner;
use super::db::connection::{Link, Value};
use super::db::dialect::tuples;
use super::db::error::{Error, Failure, persist};
use super::records::{RECORD, Record};
use super::view::{Chosen, Granted, Listed, Seen, Wish};
use crate::mail::{Fingerprint, RecordId};
use crate::outcome::State;

const GROUP: usize = 64;

impl Inner {
    pub(super) async fn choose(&self, rows: &[Listed]) -> Result<Vec<Chosen>, Error> {
        let mut chosen = Vec::with_capacity(rows.len());
        for group in rows.chunks(GROUP) {
            let unread = group.iter().filter(|row| row.content.is_none());
            let mids: Vec<_> = unread.map(|row| row.id.mid).collect();
            let contents = persist!(self, async { self.fingerprints(&mut self.link().await?, &mids).await })?;
            chosen.extend(group.iter().filter_map(|row| {
                let content = row.content.or(contents.get(&row.id.mid).copied())?;
                let seen = Seen { state: row.state, reason: row.reason, record: row.record, content };
                Some(Chosen { mid: row.id.mid, seen: Some(seen) })
            }));
        }
        Ok(chosen)
    }

    pub(super) async fn grant(
        &self,
        wish: &Wish,
        rows: &[Chosen],
        now: Timestamp,
    ) -> Result<Vec<(i64, Granted)>, Error> {
        let mut granted = HashMap::new();
        let mut ascending: Vec<_> = rows.iter().collect();
        ascending.sort_by_key(|row| row.mid);
        ascending.dedup_by_key(|row| row.mid);
        for group in ascending.chunks(GROUP) {
            granted.extend(persist!(self, self.grant_once(wish, group, now))?);
        }
        Ok(rows.iter().filter_map(|row| Some((row.mid, granted.get(&row.mid)?.clone()))).collect())
    }

    async fn grant_once(&self, wish: &Wish, rows: &[&Chosen], now: Timestamp) -> Result<Vec<(i64, Granted)>, Failure> {
        let mids: &[i64] = &rows.iter().map(|row| row.mid).collect::<Vec<_>>();
        let mut link = self.link().await?;
        // Before the transaction: hashing large rows takes its time.
        let contents = self.fingerprints(&mut link, mids).await?;
        link.begin(self.dialect().begin).await?;
        let mut records = self.locked(&mut link, mids).await?;
        let changes: HashMap<i64, String> = rows
            .iter()
            .filter_map(|row| {
                let change = row.seen.as_ref()?.change(contents.get(&row.mid)?, records.get(&row.mid))?;
                Some((row.mid, change))
            })
            .collect();
        if matches!(wish, Wish::Hold | Wish::Delete) {
            // A record of our own keeps dispatchers away from rows that were waiting.
            let is_waiting = |mid: &&i64| !records.contains_key(mid) && !changes.contains_key(mid);
            let fresh = mids.iter().filter(is_waiting);
            let fresh: Vec<_> = fresh.filter_map(|mid| Some((*mid, *contents.get(mid)?))).collect();
            self.hold_waiting(&mut link, &fresh, now).await?;
            if !fresh.is_empty() {
                records = self.locked(&mut link, mids).await?;
            }
        }
        let mut granted = Vec::with_capacity(mids.len());
        for &mid in mids {
            let answer = match (contents.get(&mid), records.get(&mid)) {
                (None, _) => Granted::NoSuchRow,
                (Some(_), Some(record)) if matches!(record.state, State::Claimed | State::Sending) => {
                    Granted::NotNow(format!("a dispatcher is at work on it ({})", record.state))
                }
                _ if changes.contains_key(&mid) => Granted::NotNow(changes[&mid].clone()),
                (Some(content), Some(record)) if record.fingerprint.is_some_and(|made| made != *content) => {
                    self.drop_records(&mut link, &[record.key()]).await?;
                    let was_unread = record.fingerprint.is_some_and(Fingerprint::is_of_lengths);
                    match wish {
                        // Under a larger `max_size` it can be read now: as a waiting row it is tried again.
                        Wish::Retry if was_unread => Granted::Done,
                        _ => Granted::NotNow("the row has another content than it had; it is waiting now".to_owned()),
                    }
                }
                (Some(content), record) => self.grant_one(&mut link, wish, mid, *content, record, now).await?,
            };
            granted.push((mid, answer));
        }
        link.commit().await?;
        Ok(granted)
    }

    /// Locks and reads the records of these rows.
    async fn locked(&self, link: &mut Link, mids: &[i64]) -> Result<HashMap<i64, Record>, Failure> {
        let (these, args) = self.numbered("d", mids.iter().copied());
        let sql = format!(
            "SELECT {RECORD} FROM mailqueue_delivery d{} WHERE {these} ORDER BY d.mid{}",
            self.by_key(),
            self.dialect().lock
        );
        let lines = link.fetch(&sql, args).await?;
        lines.iter().map(|line| Record::read(line, 0).map(|record| (record.mid, record))).collect()
    }

    async fn hold_waiting(&self, link: &mut Link, rows: &[(i64, Fingerprint)], now: Timestamp) -> Result<(), Failure> {
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
        link.execute(&sql, args).await.map(drop)
    }

    /// `record` is of this content, and nobody's claim.
    async fn grant_one(
        &self,
        link: &mut Link,
        wish: &Wish,
        mid: i64,
        content: Fingerprint,
        record: Option<&Record>,
        now: Timestamp,
    ) -> Result<Granted, Failure> {
        let not_now = |what: &str| Ok(Granted::NotNow(what.to_owned()));
        match (wish, record) {
            (Wish::Retry, None) => Ok(Granted::Done),
            (Wish::Release, None) => not_now("it is waiting, not held"),
            (Wish::Hold | Wish::Delete, None) => not_now("another process has just taken it"),
            (Wish::Retry, Some(record)) if record.state == State::Held => not_now("it is held; `release` it"),
            (Wish::Release, Some(record)) if record.state != State::Held => {
                not_now(&format!("it is {}, not held", record.state))
            }
            (Wish::Retry | Wish::Release, Some(record)) => {
                // Whoever asks for another try asks for those who were refused as well.
                let sql = "DELETE FROM mailqueue_recipient WHERE record = ? AND state <> 'accepted'";
                link.execute(sql, vec![record.id.as_str().into()]).await?;
                // Expiry counts anew, or what was too old would fail at once.
                let sql = "UPDATE mailqueue_delivery SET state = 'deferred', reason = 'operator', detail = NULL, \
                           first_deferred = NULL, next_attempt = ?, owner = NULL WHERE queue_table = ? AND mid = ?";
                link.execute(sql, vec![now.as_millisecond().into(), self.key(), mid.into()]).await?;
                Ok(Granted::Done)
            }
            (Wish::Hold, Some(record)) if record.state == State::Held => Ok(Granted::Done),
            (Wish::Hold, Some(_)) => {
                let sql = "UPDATE mailqueue_delivery SET state = 'held', reason = 'operator', next_attempt = NULL, \
                           owner = NULL WHERE queue_table = ? AND mid = ?";
                link.execute(sql, vec![self.key(), mid.into()]).await?;
                Ok(Granted::Done)
            }
            (Wish::Delete, Some(record)) => {
                let gone = self.delete_rows(link, vec![(mid, content)], true).await?.unwrap_or_default();
                self.drop_records(link, &[record.key()]).await?;
                if gone.is_empty() { Ok(Granted::Done) } else { not_now("the row was changed just now") }
            }
        }
    }
}

impl Seen {
    /// What has changed since the row was chosen, in words; `None` where it is as it was.
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
