//! The lease of a queue's claims, as our heartbeats renew it.

use std::time::Duration;

use tokio::time::Instant;

/// Our heartbeats as the database has them. Pure: time is an argument.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub length: Duration,
    /// The greatest age of the newest heartbeat at which a final dot may go out: the lease less the time that the dot's
    /// reply may take.
    pub dot_allowance: Duration,
    /// The time at which the newest heartbeat that reached the database was sent off.
    newest: Option<Instant>,
    /// The time since which no other dispatcher can have taken us for dead. Earlier claims need not be ours any more.
    unbroken_since: Instant,
    /// The time at which a heartbeat could last not be written.
    pub failed: Option<Instant>,
}

impl Lease {
    pub fn new(length: Duration, final_dot: Duration, now: Instant) -> Self {
        Self {
            length,
            dot_allowance: length.saturating_sub(final_dot),
            newest: None,
            unbroken_since: now,
            failed: None,
        }
    }

    /// A heartbeat that was sent off at `sent_off` has reached the database by `now`.
    pub fn renewed(&mut self, sent_off: Instant, now: Instant) {
        if self.newest.is_none_or(|newest| now.duration_since(newest) >= self.length) {
            self.unbroken_since = now;
        }
        self.newest = Some(sent_off);
    }

    /// Returns true if a final dot may go out for a row that was ours at `confirmed`.
    pub fn covers_final_dot(&self, confirmed: Instant, now: Instant) -> bool {
        let fresh = self.newest.is_some_and(|newest| now.duration_since(newest) < self.dot_allowance);
        fresh && confirmed >= self.unbroken_since
    }
}
