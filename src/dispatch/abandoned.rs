//! Rows that a dispatcher of this host was at work on when it died: settled for an operator, and never by sending.

use std::collections::HashMap;

use jiff::Timestamp;

use super::recovery::settlement;
use crate::ledger::OpenEntry;
use crate::mail::RecordId;
use crate::outcome::Fate;
use crate::queue::{self, Queue};
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
    let delivered = settlements.iter().filter(|settlement| is_delivered(settlement));
    let delivered = delivered.map(|settlement| settlement.claim.id().mid).collect();
    queue.settle(settlements).await.map_err(|(error, _)| error)?;
    Ok(delivered)
}
