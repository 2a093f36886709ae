//! The memory for rows that are being processed: `max_in_flight_bytes`.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit, because a semaphore's permits are counted in 32 bits.
const UNIT: u64 = 1024;

/// A row counts this many times its columns: as it was stored, decoded, and rendered.
const COPIES: u64 = 3;

/// The budget of all queues.
#[derive(Debug)]
pub struct Memory {
    free: Arc<Semaphore>,
    /// In units.
    whole: u32,
}

/// A part of the memory that is in use. Dropping it gives it back.
#[derive(Debug)]
pub struct Reserved {
    permit: OwnedSemaphorePermit,
}

impl Memory {
    pub fn new(bytes: u64) -> Self {
        let whole = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(whole as usize)), whole }
    }

    /// Returns the units that a row with columns of this many bytes takes; never more than there are.
    pub fn cost(&self, bytes: u64) -> u32 {
        u32::try_from((bytes * COPIES).div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.whole)
    }

    /// Returns the units that a group of rows may take which are loaded together. A single row may take more.
    pub fn group(&self) -> u32 {
        self.whole / 4
    }

    /// Waits until this many units are free, and takes them.
    pub async fn reserve(&self, units: u32) -> Reserved {
        match self.free.clone().acquire_many_owned(units).await {
            Ok(permit) => Reserved { permit },
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Bytes that are in use.
    pub fn in_use(&self) -> u64 {
        (u64::from(self.whole)).saturating_sub(self.free.available_permits() as u64) * UNIT
    }
}

impl Reserved {
    /// Splits a part off for one row; all that is left where that is less.
    pub fn split(&mut self, units: u32) -> Self {
        let units = self.permit.num_permits().min(units as usize);
        match self.permit.split(units) {
            Some(permit) => Self { permit },
            None => unreachable!("a permit holds as many as it says"),
        }
    }
}
