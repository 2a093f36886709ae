//! The actions of operators on rows: retry, hold, release and delete.

use std::collections::HashMap;

use jiff::Timestamp;

use super::db::connection::{Connection, Value};
use super::db::dialect::tuples;
use super::db::error::Failure;
use super::delete::{DeleteRetry, KEPT, Undeleted};
use super::error::Error;
use super::handle::Queue;
use super::list::Listed;
use super::records::{RECORD, Record};
use super::settled::Settled;
use super::table::Deletion;
use crate::mail::{Fingerprint, RecordId};
use crate::outcome::{Reason, State};

/// The most rows that one transaction of an operator changes.
const GROUP: usize = 64;

/// A row that an operator means, as it was when it was selected.
#[derive(Clone, Debug)]
pub struct Selected {
    pub mid: i64,
    /// `None`: whatever stands under the number.
    pub(super) seen: Option<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub state: State,
    pub reason: Option<Reason>,
    pub record: Option<RecordId>,
    /// The fingerprint of the content in the table.
    pub content: Fingerprint,
}

impl Selected {
    /// Returns the row as it is `now`, if it has the content that it had when it was selected; else as it was, which
    /// [`Queue::apply`] takes for changed.
    pub fn refreshed(&self, now: Self) -> Self {
        match (&self.seen, &now.seen) {
            (Some(then), Some(seen)) if then.content != seen.content => self.clone(),
            _ => now,
        }
    }
}

impl From<i64> for Selected {
    fn from(mid: i64) -> Self {
        Self { mid, seen: None }
    }
}

/// An operator's action on rows.
#[derive(Clone, Debug)]
pub enum Action {
    /// Due now; acceptances are kept.
    Retry,
    Hold,
    /// Back from `held`, due now; acceptances are kept.
    Release,
    /// Row and record are deleted.
    Delete,
}

/// The outcome of an operator's action for one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It was delivered before, and the database has deleted it now.
    Deleted,
    /// There is no such row.
    NotFound,
    /// A dispatcher is at work on it, or it is not in a state in which the action makes sense; the text says which.
    Rejected(String),
}

/// The result of one transaction for a group of rows.
enum Applied {
    /// The rows that are `not-deleted` are left to a DELETE of their own.
    Done { outcomes: Vec<(i64, Outcome)>, undeleted: Vec<(Undeleted, DeleteRetry)> },
    /// Rolled back: the database does not delete a row, in these words.
    Refused(String),
}

impl Queue {
    /// Holds on to how these rows are now, so that [`Queue::apply`] touches none that is another by then; rows that are
    /// gone are left out.
    pub async fn select(&self, rows: &[Listed]) -> Result<Vec<Selected>, Error> {
        let mut selected = Vec::with_capacity(rows.len());
        for group in rows.chunks(GROUP) {
            let unread = group.iter().filter(|row| row.content.is_none());
            let mids: Vec<_> = unread.map(|row| row.id.mid).collect();
            let contents =
                self.retrying(async || self.fingerprints(&mut self.connection().await?, &mids).await).await?;
            selected.extend(group.iter().filter_map(|row| {
                let content = row.content.or(contents.get(&row.id.mid).copied())?;
                let seen = Seen { state: row.state, reason: row.reason, record: row.record, content };
                Some(Selected { mid: row.id.mid, seen: Some(seen) })
            }));
        }
        Ok(selected)
    }

    /// Carries out an operator's action, row by row, in groups. Claimed and sending rows are left alone, and so are those
    /// that have changed since they were selected.
    pub async fn apply(
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
            match self.retrying(|| self.apply_once(action, group, now)).await? {
                applied @ Applied::Done { .. } => outcomes.extend(self.outcomes(applied, group).await?),
                // One row must not keep the others from being deleted.
                Applied::Refused(_) => {
                    for row in group.chunks(1) {
                        let applied = self.retrying(|| self.apply_once(action, row, now)).await?;
                        outcomes.extend(self.outcomes(applied, row).await?);
                    }
                }
            }
        }
        Ok(rows.iter().filter_map(|row| Some((row.mid, outcomes.get(&row.mid)?.clone()))).collect())
    }

    /// The outcomes for rows, after a DELETE of those that are `not-deleted`.
    async fn outcomes(&self, applied: Applied, rows: &[&Selected]) -> Result<Vec<(i64, Outcome)>, Error> {
        let (mut outcomes, undeleted) = match applied {
            Applied::Done { outcomes, undeleted } => (outcomes, undeleted),
            Applied::Refused(words) => {
                let refused = Outcome::Rejected(format!("the database does not delete it: {words}"));
                return Ok(rows.iter().map(|row| (row.mid, refused.clone())).collect());
            }
        };
        for (id, settled) in self.delete_again(&undeleted).await? {
            let outcome = match settled {
                Settled::Done | Settled::ClaimLost => Outcome::Deleted,
                Settled::RowGone => Outcome::NotFound,
                Settled::Locked { detail } => Outcome::Rejected(format!(
                    "another session has locked it: {detail}; end that session, and try again"
                )),
                Settled::NotDeleted { detail, .. } => {
                    Outcome::Rejected(format!("it is delivered, and the database does not delete it: {detail}"))
                }
            };
            outcomes.push((id.mid, outcome));
        }
        Ok(outcomes)
    }

    async fn apply_once(&self, action: &Action, rows: &[&Selected], now: Timestamp) -> Result<Applied, Failure> {
        let mids: &[i64] = &rows.iter().map(|row| row.mid).collect::<Vec<_>>();
        let mut connection = self.connection().await?;
        // Before the transaction: hashing large rows takes its time.
        let contents = self.fingerprints(&mut connection, mids).await?;
        connection.begin(self.dialect().begin).await?;
        let mut records = self.locked(&mut connection, mids).await?;
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
            self.hold_waiting(&mut connection, &fresh, now).await?;
            if !fresh.is_empty() {
                records = self.locked(&mut connection, mids).await?;
            }
        }
        let mut outcomes = Vec::with_capacity(mids.len());
        let mut undeleted = Vec::new();
        for &mid in mids {
            let answer = match (contents.get(&mid), records.get(&mid)) {
                (None, _) => Outcome::NotFound,
                (Some(_), Some(record)) if matches!(record.state, State::Claimed | State::Sending) => {
                    Outcome::Rejected(format!("a dispatcher is at work on it ({})", record.state))
                }
                _ if changes.contains_key(&mid) => Outcome::Rejected(changes[&mid].clone()),
                (Some(content), Some(record)) if record.fingerprint.is_some_and(|made| made != *content) => {
                    self.drop_records(&mut connection, &[record.key()]).await?;
                    let was_unread = record.fingerprint.is_some_and(Fingerprint::is_of_lengths);
                    match action {
                        // Under a larger `max_size` it can be read now: as a waiting row it is tried again.
                        Action::Retry if was_unread => Outcome::Done,
                        _ => Outcome::Rejected("the row has another content than it had; it is waiting now".to_owned()),
                    }
                }
                // Held already, or never to be sent again.
                (Some(content), Some(record)) if record.is_not_deleted() && !matches!(action, Action::Hold) => {
                    let since = record.history.first_deferred.unwrap_or(record.created);
                    let row = Undeleted { mid, record: record.id, content: *content, since };
                    let next = record.next_attempt.unwrap_or(now);
                    undeleted.push((row, DeleteRetry { now, next }));
                    continue;
                }
                (Some(content), record) => {
                    match self.apply_to_row(&mut connection, action, mid, *content, record, now).await? {
                        Ok(outcome) => outcome,
                        Err(words) => {
                            connection.rollback().await?;
                            return Ok(Applied::Refused(words));
                        }
                    }
                }
            };
            outcomes.push((mid, answer));
        }
        match connection.commit().await {
            // A constraint that is checked at the end of a transaction.
            Err(Failure::Refused(words)) if matches!(action, Action::Delete) => Ok(Applied::Refused(words)),
            committed => committed.map(|()| Applied::Done { outcomes, undeleted }),
        }
    }

    /// Deletes a row and its record. The error is the database's words.
    async fn delete_held(
        &self,
        connection: &mut Connection,
        record: &Record,
        content: Fingerprint,
    ) -> Result<Result<Outcome, String>, Failure> {
        Ok(match self.delete_rows(connection, vec![(record.mid, content)]).await? {
            Deletion::Refused(words) => Err(words),
            Deletion::Ended { kept, .. } if !kept.is_empty() => Err(KEPT.to_owned()),
            Deletion::Ended { gone, changed, .. } => {
                self.drop_records(connection, &[record.key()]).await?;
                Ok(match gone.is_empty() && changed.is_empty() {
                    true => Outcome::Done,
                    false => Outcome::Rejected("the row was changed just now".to_owned()),
                })
            }
            Deletion::Unclear => Err(KEPT.to_owned()),
        })
    }

    /// Locks and reads the records of these rows.
    async fn locked(&self, connection: &mut Connection, mids: &[i64]) -> Result<HashMap<i64, Record>, Failure> {
        let (condition, args) = self.where_rows("d", mids.iter().copied());
        let sql = format!(
            "SELECT {RECORD} FROM mailqueue_delivery d{} WHERE {condition} ORDER BY d.mid{}",
            self.index_hint_primary(),
            self.dialect().lock
        );
        let lines = connection.fetch(&sql, args).await?;
        lines.iter().map(|line| Record::read(line, 0).map(|record| (record.mid, record))).collect()
    }

    async fn hold_waiting(
        &self,
        connection: &mut Connection,
        rows: &[(i64, Fingerprint)],
        now: Timestamp,
    ) -> Result<(), Failure> {
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
        connection.execute(&sql, args).await.map(drop)
    }

    /// `record` is of this content, and no claim. The error is the words with which the database refuses a DELETE.
    async fn apply_to_row(
        &self,
        connection: &mut Connection,
        action: &Action,
        mid: i64,
        content: Fingerprint,
        record: Option<&Record>,
        now: Timestamp,
    ) -> Result<Result<Outcome, String>, Failure> {
        let not_now = |what: &str| Ok(Ok(Outcome::Rejected(what.to_owned())));
        match (action, record) {
            (Action::Retry, None) => Ok(Ok(Outcome::Done)),
            (Action::Release, None) => not_now("it is waiting, not held"),
            (Action::Hold | Action::Delete, None) => not_now("another process has just taken it"),
            (Action::Retry, Some(record)) if record.state == State::Held => not_now("it is held; `release` it"),
            (Action::Release, Some(record)) if record.state != State::Held => {
                not_now(&format!("it is {}, not held", record.state))
            }
            (Action::Retry | Action::Release, Some(record)) => {
                // Another try is for refused recipients as well.
                let sql = "DELETE FROM mailqueue_recipient WHERE record = ? AND state <> 'accepted'";
                connection.execute(sql, vec![record.id.as_str().into()]).await?;
                // Expiry counts from now, or what was too old would fail at once.
                let sql = "UPDATE mailqueue_delivery SET state = 'deferred', reason = 'operator', detail = NULL, \
                           first_deferred = NULL, next_attempt = ?, owner = NULL WHERE queue_table = ? AND mid = ?";
                connection.execute(sql, vec![now.as_millisecond().into(), self.key(), mid.into()]).await?;
                Ok(Ok(Outcome::Done))
            }
            (Action::Hold, Some(record)) if record.state == State::Held => Ok(Ok(Outcome::Done)),
            (Action::Hold, Some(_)) => {
                let sql = "UPDATE mailqueue_delivery SET state = 'held', reason = 'operator', next_attempt = NULL, \
                           owner = NULL WHERE queue_table = ? AND mid = ?";
                connection.execute(sql, vec![self.key(), mid.into()]).await?;
                Ok(Ok(Outcome::Done))
            }
            (Action::Delete, Some(record)) => self.delete_held(connection, record, content).await,
        }
    }
}

impl Seen {
    /// Says in words how the row has changed since it was selected; `None` where it is as it was.
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
        (!same).then(|| format!("it changed meanwhile: it was tried again, and is {state} again"))
    }
}
