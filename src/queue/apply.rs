//! What operators ask of rows.

use std::collections::HashMap;

use jiff::Timestamp;

use super::Inner;
use super::db::connection::{Link, Value};
use super::db::dialect::tuples;
use super::db::error::{Error, Failure, persist};
use super::records::{RECORD, Record};
use super::view::{Action, Listed, Outcome, Seen, Selected};
use crate::mail::{Fingerprint, RecordId};
use crate::outcome::State;

const GROUP: usize = 64;

impl Inner {
    pub(super) async fn select(&self, rows: &[Listed]) -> Result<Vec<Selected>, Error> {
        let mut selected = Vec::with_capacity(rows.len());
        for group in rows.chunks(GROUP) {
            let unread = group.iter().filter(|row| row.content.is_none());
            let mids: Vec<_> = unread.map(|row| row.id.mid).collect();
            let contents = persist!(self, async { self.fingerprints(&mut self.link().await?, &mids).await })?;
            selected.extend(group.iter().filter_map(|row| {
                let content = row.content.or(contents.get(&row.id.mid).copied())?;
                let seen = Seen { state: row.state, reason: row.reason, record: row.record, content };
                Some(Selected { mid: row.id.mid, seen: Some(seen) })
            }));
        }
        Ok(selected)
    }

    pub(super) async fn apply(
        &self,
        action: &Action,
        rows: &[Selected],
        now: Timestamp,
    ) -> Result<Vec<(i64, Outcome)>, Error> {
        let mut outcomes = HashMap::new();
        let mut ascending: Vec<_> = rows.iter().collect();
        ascending.sort_by_key(|row| row.mid);
        ascending.dedup_by_key(|row| row.mid);
        for group in ascending.chunks(GROUP) {
            outcomes.extend(persist!(self, self.apply_once(action, group, now))?);
        }
        Ok(rows.iter().filter_map(|row| Some((row.mid, outcomes.get(&row.mid)?.clone()))).collect())
    }

    async fn apply_once(
        &self,
        action: &Action,
        rows: &[&Selected],
        now: Timestamp,
    ) -> Result<Vec<(i64, Outcome)>, Failure> {
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
        if matches!(action, Action::Hold | Action::Delete) {
            // A record of our own keeps dispatchers away from rows that were waiting.
            let is_waiting = |mid: &&i64| !records.contains_key(mid) && !changes.contains_key(mid);
            let fresh = mids.iter().filter(is_waiting);
            let fresh: Vec<_> = fresh.filter_map(|mid| Some((*mid, *contents.get(mid)?))).collect();
            self.hold_waiting(&mut link, &fresh, now).await?;
            if !fresh.is_empty() {
                records = self.locked(&mut link, mids).await?;
            }
        }
        let mut outcomes = Vec::with_capacity(mids.len());
        for &mid in mids {
            let answer = match (contents.get(&mid), records.get(&mid)) {
                (None, _) => Outcome::NotFound,
                (Some(_), Some(record)) if matches!(record.state, State::Claimed | State::Sending) => {
                    Outcome::Rejected(format!("a dispatcher is at work on it ({})", record.state))
                }
                _ if changes.contains_key(&mid) => Outcome::Rejected(changes[&mid].clone()),
                (Some(content), Some(record)) if record.fingerprint.is_some_and(|made| made != *content) => {
                    self.drop_records(&mut link, &[record.key()]).await?;
                    let was_unread = record.fingerprint.is_some_and(Fingerprint::is_of_lengths);
                    match action {
                        // Under a larger `max_size` it can be read now: as a waiting row it is tried again.
                        Action::Retry if was_unread => Outcome::Done,
                        _ => Outcome::Rejected("the row has another content than it had; it is waiting now".to_owned()),
                    }
                }
                (Some(content), record) => self.apply_to_row(&mut link, action, mid, *content, record, now).await?,
            };
            outcomes.push((mid, answer));
        }
        link.commit().await?;
        Ok(outcomes)
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
    async fn apply_to_row(
        &self,
        link: &mut Link,
        action: &Action,
        mid: i64,
        content: Fingerprint,
        record: Option<&Record>,
        now: Timestamp,
    ) -> Result<Outcome, Failure> {
        let not_now = |what: &str| Ok(Outcome::Rejected(what.to_owned()));
        match (action, record) {
            (Action::Retry, None) => Ok(Outcome::Done),
            (Action::Release, None) => not_now("it is waiting, not held"),
            (Action::Hold | Action::Delete, None) => not_now("another process has just taken it"),
            (Action::Retry, Some(record)) if record.state == State::Held => not_now("it is held; `release` it"),
            (Action::Release, Some(record)) if record.state != State::Held => {
                not_now(&format!("it is {}, not held", record.state))
            }
            (Action::Retry | Action::Release, Some(record)) => {
                // Whoever asks for another try asks for those who were refused as well.
                let sql = "DELETE FROM mailqueue_recipient WHERE record = ? AND state <> 'accepted'";
                link.execute(sql, vec![record.id.as_str().into()]).await?;
                // Expiry counts anew, or what was too old would fail at once.
                let sql = "UPDATE mailqueue_delivery SET state = 'deferred', reason = 'operator', detail = NULL, \
                           first_deferred = NULL, next_attempt = ?, owner = NULL WHERE queue_table = ? AND mid = ?";
                link.execute(sql, vec![now.as_millisecond().into(), self.key(), mid.into()]).await?;
                Ok(Outcome::Done)
            }
            (Action::Hold, Some(record)) if record.state == State::Held => Ok(Outcome::Done),
            (Action::Hold, Some(_)) => {
                let sql = "UPDATE mailqueue_delivery SET state = 'held', reason = 'operator', next_attempt = NULL, \
                           owner = NULL WHERE queue_table = ? AND mid = ?";
                link.execute(sql, vec![self.key(), mid.into()]).await?;
                Ok(Outcome::Done)
            }
            (Action::Delete, Some(record)) => {
                let gone = self.delete_rows(link, vec![(mid, content)], true).await?.unwrap_or_default();
                self.drop_records(link, &[record.key()]).await?;
                if gone.is_empty() { Ok(Outcome::Done) } else { not_now("the row was changed just now") }
            }
        }
    }
}

impl Seen {
    /// What has changed since the row was selected, in words; `None` where it is as it was.
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
