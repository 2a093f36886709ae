//! Rows that a dispatcher of this host was at work on when it died: settled for an operator, and never by sending.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::recovery::settlement;
use crate::ledger::OpenEntry;
use crate::mail::RecordId;
use crate::outcome::Fate;
use crate::queue::{self, DeleteRetry, Queue, Settled};
use crate::retry::{self, OnUnknown};

/// Settles those of the rows `mids` that the dispatcher of `queue` had claimed, by the open entries of its ledger: what
/// was accepted is recorded, and its row deleted; what never came to a dot is given back; a row with an entry and no
/// acceptance becomes `held`, `outcome-unknown`. Returns the rows that were deleted as delivered.
///
/// Only while that dispatcher is known to be dead and cannot start. The entries stay open: its next start finds that
/// these rows are settled, and closes them.
pub async fn settle(
    queue: &Queue,
    entries: Vec<OpenEntry>,
    mids: &[i64],
    retry: &retry::Settings,
    now: Timestamp,
) -> Result<Vec<i64>, queue::Error> {
    let mut by_record: HashMap<RecordId, Vec<OpenEntry>> = HashMap::new();
    for entry in entries {
        by_record.entry(entry.transmission.record).or_default().push(entry);
    }
    // An operator who holds a row, or deletes it, does not want it to be sent once more.
    let retry = retry::Settings { on_unknown: OnUnknown::Hold, ..*retry };
    let recovered = queue.recover_rows(mids).await?;
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
        return Err(queue::Error::Busy { queue: queue.name().clone(), what });
    }
    let deleted = settled.into_iter().filter(|(_, settled)| *settled == Settled::Done);
    Ok(deleted.map(|(id, _)| id.mid).filter(|mid| delivered.contains(mid)).collect())
}
