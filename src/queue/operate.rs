//! The actions of operators on rows: retry, hold, release and delete.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::db::connection::{Connection, LockWait, Value};
use super::db::dialect::tuples;
use super::db::error::Failure;
use super::delete::{DeleteRetry, KEPT, Undeleted};
use super::error::Error;
use super::handle::Queue;
use super::list::Listed;
use super::parts::LOCKED_ENOUGH;
use super::records::{RECORD, Record};
use super::settled::Settled;
use super::table::Deletion;
use crate::mail::{Fingerprint, RecordId};
use crate::outcome::{Reason, State};

/// The most rows that one transaction of an operator changes.
const GROUP: usize = 64;

/// The reason for which a row is left alone that has another content than when it was chosen.
const ANOTHER_MAIL: &str = "it changed meanwhile: there is another mail under its number";

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

/// The outcomes of an operator's action, by number.
pub type Outcomes = Vec<(i64, Outcome)>;

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
    Done { outcomes: Outcomes, undeleted: Vec<(Undeleted, DeleteRetry)> },
    /// Rolled back: the database does not delete a row, in these words.
    Refused(String),
}

/// The step that a transaction takes for one row.
enum Step {
    Ended(Outcome),
    /// The row is `not-deleted`.
    DeleteAgain(Undeleted, DeleteRetry),
    /// The database does not delete it, in these words.
    Refused(String),
}

/// Numbers of rows whose change is in a transaction of which the COMMIT was sent. Where the answer is lost, the repetition
/// tells by them which changes are its own.
type Committing = Mutex<HashSet<i64>>;

/// One row within a transaction.
struct Standing<'a> {
    mid: i64,
    /// `None` where there is no row.
    content: Option<Fingerprint>,
    record: Option<&'a Record>,
    /// The change since the row was selected, in words.
    change: Option<&'a String>,
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

    /// Carries out an operator's action in groups of rows. Claimed and sending rows are left alone, and so are those that
    /// have changed since they were selected. A row that the database does not delete, or that another transaction keeps
    /// locked, is left alone too, and keeps no other from its change.
    ///
    /// An error comes with the outcomes that there were before it: these rows are changed for good.
    pub async fn apply(
        &self,
        action: &Action,
        rows: &[Selected],
        now: Timestamp,
    ) -> Result<Outcomes, (Error, Outcomes)> {
        let mut outcomes = HashMap::new();
        let mut ascending: Vec<_> = rows.iter().collect();
        ascending.sort_by_key(|row| row.mid);
        ascending.dedup_by_key(|row| row.mid);
        let mut applied = Ok(());
        for group in ascending.chunks(GROUP) {
            applied = self.apply_to_group(action, group, now, &mut outcomes).await;
            if applied.is_err() {
                break;
            }
        }
        let ended = rows.iter().filter_map(|row| Some((row.mid, outcomes.get(&row.mid)?.clone()))).collect();
        match applied {
            Ok(()) => Ok(ended),
            Err(error) => Err((error, ended)),
        }
    }

    /// Returns the outcomes that [`Queue::apply`] would have now, and changes nothing: [`Outcome::Deleted`] for a row
    /// that is `not-deleted`, as if the database deleted it now.
    pub async fn foresee(&self, action: &Action, rows: &[Selected]) -> Result<Outcomes, Error> {
        let mut outcomes = Vec::with_capacity(rows.len());
        for row in rows {
            let now = match &row.seen {
                Some(seen) => Some((seen.state, seen.reason)),
                None => self.look(row.mid).await?.map(|(listed, _)| (listed.state, listed.reason)),
            };
            let outcome = match now {
                None => Outcome::NotFound,
                Some((state, reason)) => match action.obstacle(state, reason) {
                    Some(why) => Outcome::Rejected(why),
                    None if action.deletes_again(state, reason) => Outcome::Deleted,
                    None => Outcome::Done,
                },
            };
            outcomes.push((row.mid, outcome));
        }
        Ok(outcomes)
    }

    /// Carries the action out on a group, and goes on row by row where one of them keeps the group from it.
    async fn apply_to_group(
        &self,
        action: &Action,
        group: &[&Selected],
        now: Timestamp,
        outcomes: &mut HashMap<i64, Outcome>,
    ) -> Result<(), Error> {
        let mut parts = vec![group];
        let (mut wait, mut locked_rows) = (LockWait::Usual, 0);
        while let Some(part) = parts.pop() {
            let committing = Committing::default();
            let applied = self.retrying_part(|| self.apply_once(action, part, now, &committing, wait)).await;
            if let Err(Failure::Busy(_)) = applied {
                wait = LockWait::Short;
            }
            let rejected = match applied {
                Ok(Applied::Done { outcomes: ended, undeleted }) => {
                    outcomes.extend(ended);
                    self.delete_undeleted(undeleted, outcomes).await?;
                    locked_rows = 0;
                    continue;
                }
                Ok(_) | Err(Failure::Busy(_)) if part.len() > 1 => {
                    parts.extend(part.chunks(1).rev());
                    continue;
                }
                Ok(Applied::Refused(words)) => {
                    locked_rows = 0;
                    format!("the database does not delete it: {words}")
                }
                Err(Failure::Busy(words)) => {
                    locked_rows += 1;
                    if locked_rows == LOCKED_ENOUGH {
                        return Err(Failure::Busy(words).into_error(self.name()));
                    }
                    format!("another transaction keeps it locked ({words}); try again")
                }
                Err(failure) => return Err(failure.into_error(self.name())),
            };
            outcomes.extend(part.iter().map(|row| (row.mid, Outcome::Rejected(rejected.clone()))));
        }
        Ok(())
    }

    /// Tries to delete rows that are `not-deleted`.
    async fn delete_undeleted(
        &self,
        undeleted: Vec<(Undeleted, DeleteRetry)>,
        outcomes: &mut HashMap<i64, Outcome>,
    ) -> Result<(), Error> {
        let settled = self.delete_again(&undeleted).await?;
        outcomes.extend(settled.into_iter().map(|(id, settled)| (id.mid, deleted_again(settled))));
        Ok(())
    }

    async fn apply_once(
        &self,
        action: &Action,
        rows: &[&Selected],
        now: Timestamp,
        committing: &Committing,
        wait: LockWait,
    ) -> Result<Applied, Failure> {
        let mids: &[i64] = &rows.iter().map(|row| row.mid).collect::<Vec<_>>();
        let mut connection = self.connection().await?;
        // Before the transaction: hashing large rows takes its time.
        let contents = self.fingerprints(&mut connection, mids).await?;
        connection.begin_waiting(self.dialect(), wait).await?;
        let mut records = self.locked(&mut connection, mids).await?;
        let own = committing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_own = |mid: i64| own.contains(&mid) && action.is_done(contents.get(&mid), records.get(&mid), now);
        let own: HashSet<i64> = mids.iter().copied().filter(|&mid| is_own(mid)).collect();
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
        let (mut outcomes, mut undeleted) = (Vec::with_capacity(mids.len()), Vec::new());
        for &mid in mids {
            let (content, record) = (contents.get(&mid).copied(), records.get(&mid));
            let row = Standing { mid, content, record, change: changes.get(&mid) };
            let step = match own.contains(&mid) {
                true => Step::Ended(Outcome::Done),
                false => self.apply_to_row(&mut connection, action, &row, now).await?,
            };
            match step {
                Step::Ended(outcome) => outcomes.push((mid, outcome)),
                Step::DeleteAgain(row, retry) => undeleted.push((row, retry)),
                Step::Refused(words) => {
                    connection.rollback().await?;
                    return Ok(Applied::Refused(words));
                }
            }
        }
        let done = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Done).map(|&(mid, _)| mid);
        *committing.lock().unwrap_or_else(PoisonError::into_inner) = done.collect();
        match connection.commit().await {
            // A constraint that is checked at the end of a transaction.
            Err(Failure::Refused(words)) if matches!(action, Action::Delete) => Ok(Applied::Refused(words)),
            committed => committed.map(|()| Applied::Done { outcomes, undeleted }),
        }
    }

    async fn apply_to_row(
        &self,
        connection: &mut Connection,
        action: &Action,
        row: &Standing<'_>,
        now: Timestamp,
    ) -> Result<Step, Failure> {
        let Some(content) = row.content else { return Ok(Step::Ended(Outcome::NotFound)) };
        let obstacle = match row.record {
            Some(record) => action.obstacle(record.state, record.reason),
            None => action.obstacle(State::Waiting, None),
        };
        let is_at_work = row.record.is_some_and(|record| matches!(record.state, State::Claimed | State::Sending));
        let why = if is_at_work { obstacle.as_ref() } else { row.change };
        if let Some(why) = why {
            return Ok(Step::Ended(Outcome::Rejected(why.clone())));
        }
        if let Some(record) = row.record
            && record.fingerprint.is_some_and(|made| made != content)
        {
            return self.drop_record_of_another(connection, action, record).await.map(Step::Ended);
        }
        if let Some(why) = obstacle {
            return Ok(Step::Ended(Outcome::Rejected(why)));
        }
        match row.record {
            // Held already, or never to be sent again.
            Some(record) if action.deletes_again(record.state, record.reason) => {
                let since = record.history.first_deferred.unwrap_or(record.created);
                let again = Undeleted { mid: row.mid, record: record.id, content, since };
                let next = record.next_attempt.unwrap_or(now);
                Ok(Step::DeleteAgain(again, DeleteRetry { now, next }))
            }
            record => self.change_row(connection, action, row.mid, content, record, now).await,
        }
    }

    /// Drops a record whose content was not that of the row before the transaction. In the transaction, which has locked
    /// the record, the row is read again: meanwhile the number may have been given to a new mail, and the record be the
    /// new mail's.
    async fn drop_record_of_another(
        &self,
        connection: &mut Connection,
        action: &Action,
        record: &Record,
    ) -> Result<Outcome, Failure> {
        let content = self.fingerprints(connection, &[record.mid]).await?.remove(&record.mid);
        let Some(content) = content else { return Ok(Outcome::NotFound) };
        if record.fingerprint == Some(content) {
            return Ok(Outcome::Rejected(ANOTHER_MAIL.to_owned()));
        }
        self.drop_records(connection, &[record.key()]).await?;
        let was_unread = record.fingerprint.is_some_and(Fingerprint::is_of_lengths);
        Ok(match action {
            // Under a larger `max_size` it can be read now: as a waiting row it is tried again.
            Action::Retry if was_unread => Outcome::Done,
            _ => Outcome::Rejected("the row has another content than it had; it is waiting now".to_owned()),
        })
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

    /// Changes a row that no [`Action::obstacle`] keeps from it. `record` is of this content, and no claim.
    async fn change_row(
        &self,
        connection: &mut Connection,
        action: &Action,
        mid: i64,
        content: Fingerprint,
        record: Option<&Record>,
        now: Timestamp,
    ) -> Result<Step, Failure> {
        let outcome = match (action, record) {
            (Action::Retry | Action::Release, None) => Outcome::Done,
            (Action::Hold | Action::Delete, None) => Outcome::Rejected("another process has just taken it".to_owned()),
            (Action::Retry | Action::Release, Some(record)) => {
                // Another try is for refused recipients as well.
                let sql = "DELETE FROM mailqueue_recipient WHERE record = ? AND state <> 'accepted'";
                connection.execute(sql, vec![record.id.as_str().into()]).await?;
                // Expiry counts from now, or what was too old would fail at once.
                let sql = "UPDATE mailqueue_delivery SET state = 'deferred', reason = 'operator', detail = NULL, \
                           first_deferred = NULL, next_attempt = ?, owner = NULL WHERE queue_table = ? AND mid = ?";
                connection.execute(sql, vec![now.as_millisecond().into(), self.key(), mid.into()]).await?;
                Outcome::Done
            }
            (Action::Hold, Some(record)) if record.state == State::Held => Outcome::Done,
            (Action::Hold, Some(_)) => {
                let sql = "UPDATE mailqueue_delivery SET state = 'held', reason = 'operator', next_attempt = NULL, \
                           owner = NULL WHERE queue_table = ? AND mid = ?";
                connection.execute(sql, vec![self.key(), mid.into()]).await?;
                Outcome::Done
            }
            (Action::Delete, Some(record)) => match self.delete_held(connection, record, content).await? {
                Ok(outcome) => outcome,
                Err(words) => return Ok(Step::Refused(words)),
            },
        };
        Ok(Step::Ended(outcome))
    }
}

fn deleted_again(settled: Settled) -> Outcome {
    match settled {
        Settled::Done | Settled::ClaimLost => Outcome::Deleted,
        Settled::RowGone => Outcome::NotFound,
        Settled::Locked { detail } => Outcome::Rejected(format!(
            "it is delivered, and another transaction keeps its row locked ({detail}); try again"
        )),
        Settled::NotDeleted { detail, .. } => {
            Outcome::Rejected(format!("it is delivered, and the database does not delete it: {detail}"))
        }
    }
}

impl Action {
    /// Says why a row in this state is left alone; `None` where nothing is in the way.
    fn obstacle(&self, state: State, reason: Option<Reason>) -> Option<String> {
        match (self, state) {
            (_, State::Claimed | State::Sending) => Some(format!("a dispatcher is at work on it ({state})")),
            _ if self.deletes_again(state, reason) => None,
            (Self::Retry, State::Held) => Some("it is held; `release` it".to_owned()),
            (Self::Release, state) if state != State::Held => Some(format!("it is {state}, not held")),
            _ => None,
        }
    }

    /// Returns true where the action tries to delete a delivered row.
    fn deletes_again(&self, state: State, reason: Option<Reason>) -> bool {
        state == State::Held && reason == Some(Reason::NotDeleted) && !matches!(self, Self::Hold)
    }

    /// Returns true where row and record are as the action leaves them that was applied at `now`.
    fn is_done(&self, content: Option<&Fingerprint>, record: Option<&Record>, now: Timestamp) -> bool {
        match (self, record) {
            (Self::Delete, record) => content.is_none() && record.is_none(),
            (Self::Hold, Some(record)) => record.state == State::Held,
            (Self::Hold, None) => false,
            // Nothing is written for a row that is waiting.
            (Self::Retry | Self::Release, None) => content.is_some(),
            (Self::Retry | Self::Release, Some(record)) => {
                let next = record.next_attempt.map(|next| next.as_millisecond());
                record.reason == Some(Reason::Operator) && next == Some(now.as_millisecond())
            }
        }
    }
}

impl Seen {
    /// Says in words how the row has changed since it was selected; `None` where it is as it was.
    fn change(&self, content: &Fingerprint, record: Option<&Record>) -> Option<String> {
        let state = record.map_or(State::Waiting, |record| record.state);
        if self.content != *content {
            return Some(ANOTHER_MAIL.to_owned());
        }
        if self.state != state {
            return Some(format!("it changed meanwhile: it was {} when it was chosen, and is {state}", self.state));
        }
        let same = record.map(|record| &record.id) == self.record.as_ref()
            && record.and_then(|record| record.reason) == self.reason;
        (!same).then(|| format!("it changed meanwhile: it was tried again, and is {state} again"))
    }
}
