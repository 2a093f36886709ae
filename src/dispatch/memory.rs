//! The memory for rows that are being processed: `max_in_flight_bytes`, an equal part for each queue.
//!
//! A queue uses its own part only, so that a database that does not settle holds up no other. A row that is larger than
//! half of the part uses the slot for large mails, which all queues share: one such row is in memory at a time, on top of
//! the parts, and nothing but other large rows waits for it. Two of them would never fit into the part together, and in
//! it all other rows of the queue would wait for each.
//!
//! An acceptance that is in the ledger gives the content's memory back. SQLite computes no fingerprints, so that settling
//! there reads the content of one row at a time once more: a large row keeps the slot for that. If it is not settled soon,
//! it gives the slot back all the same, because the large rows of all queues wait for it; the database is locked then, and
//! reads nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::outcome::History;
use crate::queue::Claim;

/// Bytes of one permit, because a semaphore's permits are counted in 32 bits.
const UNIT: u64 = 1024;

/// A row counts this many times its columns: as it was stored, decoded, and rendered.
const COPIES: u64 = 3;

/// A large row is settled within this time where the database does what it should: reading 40 MB once more takes 0.2 s.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// A history counts this many times: as it was read, and with the results of the attempt.
const HISTORIES: u64 = 2;

/// The budget of all queues.
#[derive(Debug)]
pub struct Memory {
    /// The free units of each queue's part.
    parts: Vec<Arc<Semaphore>>,
    /// Units of each part.
    part: u32,
    large: Arc<Semaphore>,
    /// Units of the large row in memory; 0 if there is none.
    large_in_use: Arc<AtomicU64>,
}

/// The memory that a row needs, in units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// In its queue's part.
    Part(u32),
    /// In the slot for large mails.
    Large(u64),
}

/// Memory that is in use. Dropping it gives it back.
#[derive(Debug)]
pub struct Reserved(Kind);

#[derive(Debug)]
enum Kind {
    Part(OwnedSemaphorePermit),
    Large(LargeSlot),
    /// Given back after a while, if it is not dropped before.
    Lent {
        _slot: Arc<Mutex<Option<LargeSlot>>>,
    },
    /// Given back before the end.
    Nothing,
}

#[derive(Debug)]
struct LargeSlot {
    in_use: Arc<AtomicU64>,
    /// Dropped after `in_use` was set back, so that the next row's units are not lost.
    _permit: OwnedSemaphorePermit,
}

impl Drop for LargeSlot {
    fn drop(&mut self) {
        self.in_use.store(0, Ordering::Relaxed);
    }
}

impl Memory {
    /// Divides `bytes` among this many queues, which are counted from 0.
    pub fn new(bytes: u64, queues: usize) -> Self {
        Self::among(bytes, queues, queues)
    }

    /// Divides `bytes` among this many queues, whose numbers are below `numbers`.
    pub fn among(bytes: u64, queues: usize, numbers: usize) -> Self {
        let part = u32::try_from(bytes / queues.max(1) as u64 / UNIT).unwrap_or(u32::MAX).max(1);
        Self {
            parts: (0..numbers).map(|_| Arc::new(Semaphore::new(part as usize))).collect(),
            part,
            large: Arc::new(Semaphore::new(1)),
            large_in_use: Arc::default(),
        }
    }

    /// Returns the memory that a claimed row needs.
    pub fn cost(&self, claim: &Claim) -> Cost {
        let bytes = claim.bytes() * COPIES + claim.history().bytes() * HISTORIES;
        self.cost_of(bytes)
    }

    /// Returns true for a row without a history, of these bytes of columns, that needs the slot for large mails.
    pub fn is_large(&self, bytes: u64) -> bool {
        matches!(self.cost_of(bytes.saturating_mul(COPIES)), Cost::Large(_))
    }

    fn cost_of(&self, bytes: u64) -> Cost {
        let units = bytes.div_ceil(UNIT).max(1);
        match u32::try_from(units) {
            Ok(units) if units <= self.part.div_ceil(2) => Cost::Part(units),
            _ => Cost::Large(units),
        }
    }

    /// Returns the units that a group of rows may take which are loaded together. A single row may take more.
    pub fn group(&self) -> u32 {
        self.part / 4
    }

    /// Waits until this many units of a queue's part are free, and takes them. Queues are counted from 0.
    pub async fn reserve(&self, queue: usize, units: u32) -> Reserved {
        Reserved(Kind::Part(acquire(&self.parts[queue], units).await))
    }

    /// Waits until no large row is in memory, and takes the slot for one with this many units.
    pub async fn reserve_large(&self) -> Reserved {
        let permit = acquire(&self.large, 1).await;
        let in_use = self.large_in_use.clone();
        Reserved(Kind::Large(LargeSlot { in_use, _permit: permit }))
    }

    /// Bytes that are in use.
    pub fn in_use(&self) -> u64 {
        let used = |part: &Arc<Semaphore>| u64::from(self.part).saturating_sub(part.available_permits() as u64);
        (self.parts.iter().map(used).sum::<u64>() + self.large_in_use.load(Ordering::Relaxed)) * UNIT
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    match semaphore.clone().acquire_many_owned(permits).await {
        Ok(permit) => permit,
        Err(_) => unreachable!("the semaphore is never closed"),
    }
}

impl Reserved {
    /// Notes the units of the row for which the slot for large mails was taken.
    pub fn note_large(&self, units: u64) {
        if let Kind::Large(slot) = &self.0 {
            slot.in_use.store(units, Ordering::Relaxed);
        }
    }

    /// Splits a part off for one row; all that is left where that is less. Of the slot for large mails all is split off.
    pub fn split(&mut self, units: u32) -> Self {
        match &mut self.0 {
            Kind::Part(permit) => {
                let units = permit.num_permits().min(units as usize);
                match permit.split(units) {
                    Some(permit) => Self(Kind::Part(permit)),
                    None => unreachable!("a permit holds as many as it says"),
                }
            }
            Kind::Large(_) | Kind::Lent { .. } | Kind::Nothing => Self(std::mem::replace(&mut self.0, Kind::Nothing)),
        }
    }

    /// Lets a large row keep its slot while its content is read once more, and no longer than [`READ_WITHIN`].
    pub fn keep_to_read(&mut self) {
        let Kind::Large(slot) = std::mem::replace(&mut self.0, Kind::Nothing) else { return };
        let slot = Arc::new(Mutex::new(Some(slot)));
        let kept = Arc::downgrade(&slot);
        self.0 = Kind::Lent { _slot: slot };
        tokio::spawn(async move {
            tokio::time::sleep(READ_WITHIN).await;
            if let Some(slot) = kept.upgrade() {
                drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
            }
        });
    }

    pub fn is_large(&self) -> bool {
        matches!(self.0, Kind::Large(_))
    }

    /// Gives back what a settlement with this history does not need: the content.
    pub fn shrink_to(&mut self, history: &History) {
        let units = (history.bytes() * HISTORIES).div_ceil(UNIT).max(1);
        match &mut self.0 {
            Kind::Part(permit) => {
                let more = permit.num_permits().saturating_sub(usize::try_from(units).unwrap_or(usize::MAX));
                drop(permit.split(more));
            }
            Kind::Large(_) | Kind::Lent { .. } | Kind::Nothing => self.0 = Kind::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_queue_uses_its_own_part_and_no_other_queues() {
        let memory = Memory::new(20 * UNIT, 2);
        let all = memory.reserve(0, 10).await;
        assert_eq!(memory.in_use(), 10 * UNIT);
        assert!(timeout(SOON, memory.reserve(0, 1)).await.is_err(), "its part is in use");
        let other = timeout(SOON, memory.reserve(1, 10)).await.expect("the other queue's part is free");
        assert_eq!(memory.in_use(), 20 * UNIT);
        drop(all);
        assert!(timeout(SOON, memory.reserve(0, 10)).await.is_ok());
        drop(other);
        assert_eq!(memory.in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_large_row_is_in_memory_at_a_time_and_only_large_ones_wait_for_it() {
        let memory = Memory::new(20 * UNIT, 2);
        let large = memory.reserve_large().await;
        large.note_large(50);
        assert_eq!(memory.in_use(), 50 * UNIT, "it comes on top of the parts");
        assert!(timeout(SOON, memory.reserve_large()).await.is_err());
        assert!(timeout(SOON, memory.reserve(0, 10)).await.is_ok());
        drop(large);
        assert_eq!(memory.in_use(), 0);
        assert!(timeout(SOON, memory.reserve_large()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_settlement_holds_its_history_and_not_the_content() {
        let memory = Memory::new(100 * UNIT, 1);
        let mut reserved = memory.reserve(0, 90).await;
        reserved.shrink_to(&History::default());
        assert_eq!(memory.in_use(), UNIT);
        let mut large = memory.reserve_large().await;
        large.note_large(500);
        large.shrink_to(&History::default());
        assert_eq!(memory.in_use(), UNIT);
        assert!(timeout(SOON, memory.reserve_large()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_row_that_is_read_once_more_keeps_the_slot_for_a_few_seconds_at_most() {
        let memory = Memory::new(100 * UNIT, 1);
        let mut settled = memory.reserve_large().await;
        settled.keep_to_read();
        assert!(timeout(SOON, memory.reserve_large()).await.is_err());
        drop(settled);
        let mut locked = timeout(SOON, memory.reserve_large()).await.expect("it was settled");
        locked.keep_to_read();
        assert!(timeout(READ_WITHIN - SOON, memory.reserve_large()).await.is_err());
        assert!(timeout(2 * SOON, memory.reserve_large()).await.is_ok(), "it is not settled in time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_is_split_into_the_parts_of_its_rows() {
        let memory = Memory::new(100 * UNIT, 1);
        let mut group = memory.reserve(0, 30).await;
        let (first, second) = (group.split(10), group.split(25));
        drop(group);
        assert_eq!(memory.in_use(), 30 * UNIT);
        drop(first);
        assert_eq!(memory.in_use(), 20 * UNIT, "the second has what was left");
        drop(second);
        assert_eq!(memory.in_use(), 0);
    }
}
