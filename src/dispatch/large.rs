//! Large rows of a queue, which wait for the slot for large mails. Few of them are claimed: the others stay as they are in
//! the table, and rows behind them are found all the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::queue::{Claim, Found};

/// Large rows of a queue that are claimed at most and wait for the slot. They go out one at a time, so that this many last
/// longer than it takes to claim further ones. Each keeps its history in memory beside the budget, and none of them goes
/// out through another dispatcher.
pub const MOST_CLAIMED: usize = 8;

/// Large rows at most of which number and length are remembered, with 64 bytes each. Further ones are found by a later
/// search from the head of the table.
const MOST_KNOWN: usize = 4096;

/// The time between the turns of rows that are put off, about as long as a large mail takes on the wire.
const TURN: Duration = Duration::from_secs(1);

/// The longest time for which a row is put off. Expiry is looked at only when a mail is offered.
const LONGEST: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub struct LargeRows {
    inner: Mutex<Inner>,
    /// Held while rows are claimed.
    claiming: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    claimed: VecDeque<Claim>,
    /// Rows that are not claimed yet, by number.
    known: BTreeMap<i64, Found>,
    /// The last turn that was given to a row.
    last_turn: Option<Timestamp>,
}

impl LargeRows {
    /// Lets a claimed row wait for the slot. Returns it if enough others do.
    pub fn push(&self, claim: Claim) -> Option<Claim> {
        let mut inner = self.lock();
        if inner.claimed.len() >= MOST_CLAIMED {
            return Some(claim);
        }
        inner.claimed.push_back(claim);
        None
    }

    /// Lets a row wait that was claimed because there was room. Due rows may have taken the room meanwhile, so that there are
    /// at most twice as many.
    pub fn push_claimed(&self, claim: Claim) {
        self.lock().claimed.push_back(claim);
    }

    /// Takes the claimed row that has waited longest.
    pub fn next(&self) -> Option<Claim> {
        self.lock().claimed.pop_front()
    }

    pub fn has_claimed(&self) -> bool {
        !self.lock().claimed.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.lock().claimed.len() < MOST_CLAIMED
    }

    /// Remembers rows that are not claimed. Returns those for which there is no room.
    pub fn remember(&self, rows: Vec<Found>) -> Vec<Found> {
        let mut inner = self.lock();
        let mut left = Vec::new();
        for row in rows {
            if inner.known.len() < MOST_KNOWN || inner.known.contains_key(&row.mid) {
                inner.known.insert(row.mid, row);
            } else {
                left.push(row);
            }
        }
        left
    }

    /// Returns true while there is room to remember a row.
    pub fn remembers_more(&self) -> bool {
        self.lock().known.len() < MOST_KNOWN
    }

    /// Returns true while a row is remembered that is not claimed.
    pub fn has_known(&self) -> bool {
        !self.lock().known.is_empty()
    }

    /// Claims the next of the remembered rows with `claim`, and forgets them: all of them after an error.
    ///
    /// Only what the fetcher has remembered is claimed, and [`LargeRows::forget`] waits for this. So no claim is made
    /// while the fetcher recovers those of before, and none after it has ended.
    pub async fn claim_next<E>(&self, claim: impl AsyncFnOnce(&[Found]) -> Result<(), E>) -> Result<(), E> {
        let _claiming = self.claiming.lock().await;
        let rows: Vec<_> = self.lock().known.values().take(MOST_CLAIMED).copied().collect();
        let claimed = claim(&rows).await;
        let mut inner = self.lock();
        match claimed {
            Ok(()) => inner.known.retain(|mid, _| rows.iter().all(|row| row.mid != *mid)),
            Err(_) => inner.known.clear(),
        }
        claimed
    }

    /// Forgets the rows that are not claimed. Waits for those that are being claimed.
    pub async fn forget(&self) {
        let _claiming = self.claiming.lock().await;
        self.lock().known.clear();
    }

    /// Returns the time at which a row that is put off is due again: its turn behind all others that were.
    pub fn next_turn(&self, now: Timestamp) -> Timestamp {
        let mut inner = self.lock();
        let after = |time: Timestamp, wait: Duration| time.checked_add(wait).unwrap_or(Timestamp::MAX);
        let turn = after(inner.last_turn.map_or(now, |last| last.max(now)), TURN).min(after(now, LONGEST));
        inner.last_turn = Some(turn);
        turn
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_put_off_are_due_one_after_the_other_and_within_an_hour() {
        let rows = LargeRows::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!((rows.next_turn(at(0)), rows.next_turn(at(0)), rows.next_turn(at(1))), (at(1), at(2), at(3)));
        assert_eq!(rows.next_turn(at(100)), at(101));
        for _ in 0..4000 {
            rows.next_turn(at(100));
        }
        assert_eq!(rows.next_turn(at(100)), at(3700));
    }

    #[test]
    fn few_rows_are_remembered_and_each_once() {
        let rows = LargeRows::default();
        let found = |mid| Found { mid, bytes: 1, longest: 1, fingerprint: None };
        let all: Vec<_> = (0..MOST_KNOWN as i64).map(found).collect();
        assert!(rows.remember(all.clone()).is_empty() && !rows.remembers_more());
        assert!(rows.remember(all).is_empty());
        assert_eq!(rows.remember(vec![found(-1)]).len(), 1);
    }
}
