//! The lease of a queue's claims, as our heartbeats renew it.

use std::time::Duration;

use tokio::time::Instant;

/// Our heartbeats as the database has them. Pure: time is an argument.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub length: Duration,
    /// The time at which the newest heartbeat that reached the database was sent off.
    newest: Option<Instant>,
    /// The time since which no other dispatcher can have taken us for dead. Earlier claims need not be ours any more.
    unbroken_since: Instant,
    /// The time at which a heartbeat could last not be written.
    pub failed: Option<Instant>,
}

impl Lease {
    pub fn new(length: Duration, now: Instant) -> Self {
        Self { length, newest: None, unbroken_since: now, failed: None }
    }

    /// A heartbeat that was sent off at `sent_off` has reached the database by `now`.
    pub fn renewed(&mut self, sent_off: Instant, now: Instant) {
        if self.newest.is_none_or(|newest| now.duration_since(newest) >= self.length) {
            self.unbroken_since = now;
        }
        self.newest = Some(sent_off);
    }

    /// Returns true if a final dot whose reply may take `final_dot` may go out for a row that was ours at `confirmed`: the
    /// newest heartbeat keeps the row ours until the reply is due.
    pub fn covers_final_dot(&self, final_dot: Duration, confirmed: Instant, now: Instant) -> bool {
        let allowance = self.length.saturating_sub(final_dot);
        let fresh = self.newest.is_some_and(|newest| now.duration_since(newest) < allowance);
        fresh && confirmed >= self.unbroken_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(900);
    const FINAL_DOT: Duration = Duration::from_secs(600);

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_final_dot_needs_a_heartbeat_that_outlasts_its_reply() {
        let at = clock();
        let mut lease = Lease::new(LEASE, at(0));
        assert!(!lease.covers_final_dot(FINAL_DOT, at(0), at(0)), "no heartbeat was written yet");
        lease.renewed(at(10), at(12));
        assert!(!lease.covers_final_dot(FINAL_DOT, at(11), at(12)), "the row was claimed before the first heartbeat");
        assert!(lease.covers_final_dot(FINAL_DOT, at(12), at(12)));
        assert!(lease.covers_final_dot(FINAL_DOT, at(12), at(309)));
        assert!(
            !lease.covers_final_dot(FINAL_DOT, at(12), at(310)),
            "900 s less 600 s after the heartbeat was sent off"
        );
    }

    #[test]
    fn a_connection_of_before_a_reload_needs_the_time_for_its_own_final_dots() {
        let at = clock();
        let mut lease = Lease::new(LEASE, at(0));
        lease.renewed(at(0), at(0));
        let (before, now) = (FINAL_DOT, Duration::from_secs(60));
        assert!(lease.covers_final_dot(now, at(0), at(500)));
        assert!(!lease.covers_final_dot(before, at(0), at(500)));
    }

    #[test]
    fn a_lease_that_ran_out_covers_no_row_that_was_claimed_before() {
        let at = clock();
        let mut lease = Lease::new(LEASE, at(0));
        lease.renewed(at(0), at(0));
        lease.renewed(at(899), at(899));
        assert!(lease.covers_final_dot(FINAL_DOT, at(0), at(899)), "it was renewed in time");
        lease.renewed(at(1799), at(1799));
        assert!(!lease.covers_final_dot(FINAL_DOT, at(1798), at(1799)), "another dispatcher may have it");
        assert!(lease.covers_final_dot(FINAL_DOT, at(1799), at(1799)));
    }
}
