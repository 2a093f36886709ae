//! Rows that a dispatcher of this host was at work on when it died: settled for an operator, and never by sending.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::recovery::settlement;
use crate::ledger::OpenEntry;
use crate::mail::RecordId;
use crate::outcome::Fate;
use crate::queue::{self, DeleteRetry, Queue, Settled};
use crate::retry::{self, OnUnknown};

/// An error that leaves the rows as they are.
#[derive(Debug, thiserror::Error)]
pub enum AbandonedError {
    #[error(transparent)]
    Database(#[from] queue::Error),
    /// The dispatcher was sending the rows, and its ledger has never seen the queue: another one has been lost.
    #[error(
        "the ledger that knows what became of {rows} row(s) of queue {queue} is missing: put it back from a backup"
    )]
    LedgerMissing { queue: Arc<str>, rows: usize },
}

/// Settles those of the rows `mids` that the dispatcher of `queue` had claimed, by the open entries of its ledger: what
/// was accepted is recorded, and its row deleted; what never came to a dot is given back; a row with an entry and no
/// acceptance becomes `held`, `outcome-unknown`. Returns the rows that were deleted as delivered.
///
/// Only while that dispatcher is known to be dead and cannot start. The entries stay open: its next start finds that
/// these rows are settled, and closes them. `entries` may be of any queue, because this one may have had another name.
/// `is_known`: the ledger was there for all that was sent of the queue, see
/// [`Ledger::knows`](crate::ledger::Ledger::knows). If it was not, and has no entry of the rows, those that were
/// being sent stay as they are.
pub async fn settle(
    queue: &Queue,
    entries: Vec<OpenEntry>,
    is_known: bool,
    mids: &[i64],
    retry: &retry::Settings,
    now: Timestamp,
) -> Result<Vec<i64>, AbandonedError> {
    let mut by_record: HashMap<RecordId, Vec<OpenEntry>> = HashMap::new();
    for entry in entries {
        by_record.entry(entry.transmission.record).or_default().push(entry);
    }
    // An operator who holds a row, or deletes it, does not want it to be sent once more.
    let retry = retry::Settings { on_unknown: OnUnknown::Hold, ..*retry };
    let recovered = queue.recover_rows(mids).await?;
    let has_entries = recovered.unknown.iter().any(|claim| by_record.contains_key(claim.record()));
    if !recovered.unknown.is_empty() && !has_entries && !is_known {
        return Err(AbandonedError::LedgerMissing { queue: queue.name().clone(), rows: recovered.unknown.len() });
    }
    let settlements: Vec<_> = recovered
        .unknown
        .into_iter()
        .map(|claim| {
            let entries = by_record.remove(claim.record()).unwrap_or_default();
            settlement(claim, entries, now, |_, _, history| retry::unknown(&retry, history, now, 0.5))
        })
        .collect();
    let is_delivered = |settlement: &queue::Settlement| settlement.verdict.fate == Fate::Delivered;
    let delivered: HashSet<i64> =
        settlements.iter().filter(|one| is_delivered(one)).map(|settlement| settlement.claim.id().mid).collect();
    let again = DeleteRetry { now, next: retry::next_delete(&retry, now, now, 0.5) };
    let settled = queue.settle(&settlements, again).await?;
    if let Some((id, _)) = settled.iter().find(|(_, settled)| matches!(settled, Settled::Locked { .. })) {
        let what = format!("row {id} is locked by another session; end that session, and try again");
        return Err(queue::Error::Busy { queue: queue.name().clone(), what }.into());
    }
    let deleted = settled.into_iter().filter(|(_, settled)| *settled == Settled::Done);
    Ok(deleted.map(|(id, _)| id.mid).filter(|mid| delivered.contains(mid)).collect())
}
