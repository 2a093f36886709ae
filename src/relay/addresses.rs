//! The order of the addresses of the smarthost's name. No I/O.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Time for which an address that did not work, while another did, is tried only when no other works.
pub(super) const PASSED_OVER: Duration = Duration::from_secs(600);

/// Shared by all connections to one smarthost.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The address of the newest connection.
    worked: Option<SocketAddr>,
    /// Until when each is passed over.
    failed: HashMap<SocketAddr, Instant>,
}

/// An address in the order of the tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub address: SocketAddr,
    /// It is tried only when no other works.
    pub is_last_resort: bool,
}

impl Addresses {
    /// The order in which to try what the resolver has found: the address that worked, the others in their order, and
    /// those that did not work.
    pub fn order(&self, found: &[SocketAddr], now: Instant) -> Vec<Candidate> {
        let state = self.state();
        let mut candidates: Vec<_> = found
            .iter()
            .map(|address| {
                let is_last_resort = state.failed.get(address).is_some_and(|until| now < *until);
                Candidate { address: *address, is_last_resort }
            })
            .collect();
        candidates.sort_by_key(|one| (one.is_last_resort, state.worked != Some(one.address)));
        candidates
    }

    /// A connection over `address` can take mail, and those in `failed` did not come so far. Returns those of them that
    /// were not known to fail.
    pub fn note(&self, address: SocketAddr, failed: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let mut state = self.state();
        state.worked = Some(address);
        state.failed.retain(|known, until| now < *until && *known != address);
        let news = failed.iter().filter(|failed| !state.failed.contains_key(failed)).copied().collect();
        state.failed.extend(failed.iter().map(|failed| (*failed, now + PASSED_OVER)));
        news
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 25))
    }

    #[test]
    fn what_worked_goes_first_and_what_failed_goes_last_for_a_while() {
        let (addresses, now) = (Addresses::default(), Instant::now());
        let found = [at(1), at(2), at(3)];
        let order = |now| -> Vec<_> {
            let order = addresses.order(&found, now);
            order.iter().map(|one| (one.address, one.is_last_resort)).collect()
        };
        assert_eq!(order(now), [(at(1), false), (at(2), false), (at(3), false)]);
        assert_eq!(addresses.note(at(2), &[at(1)], now), [at(1)]);
        assert_eq!(order(now), [(at(2), false), (at(3), false), (at(1), true)]);
        // Again, and it is no news.
        assert_eq!(addresses.note(at(3), &[at(1)], now), []);
        assert_eq!(order(now), [(at(3), false), (at(2), false), (at(1), true)]);
        assert_eq!(order(now + PASSED_OVER), [(at(3), false), (at(1), false), (at(2), false)]);
        // It works again.
        assert_eq!(addresses.note(at(1), &[at(3), at(2)], now), [at(3), at(2)]);
        assert_eq!(order(now), [(at(1), false), (at(2), true), (at(3), true)]);
    }
}
