//! Whether the smarthost keeps what it announces with PIPELINING (RFC 2920).

use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

/// After a flight that was lost, so many transactions go one command at a time before the next is tried.
const REST: u32 = 16;

/// Shared by all connections to one smarthost.
///
/// A reply out of turn proves that the smarthost does not keep it. A connection that was lost while replies to a flight
/// were due proves nothing, so it counts only when it happens twice with no success between. Where a smarthost goes away,
/// all connections are lost at once, and that happens once.
#[derive(Debug, Default)]
pub(super) struct Trust(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    off: bool,
    lost: u32,
    rest: u32,
}

impl Trust {
    /// Whether commands may go out as one flight.
    pub fn allows(&self) -> bool {
        let state = self.state();
        !state.off && state.rest == 0
    }

    /// A transaction went out one command at a time.
    pub fn rested(&self) {
        let mut state = self.state();
        state.rest = state.rest.saturating_sub(1);
    }

    /// A flight was answered as it should be.
    pub fn kept(&self) {
        self.state().lost = 0;
    }

    /// A flight was not answered.
    pub fn lost(&self) {
        let mut state = self.state();
        if state.rest == 0 {
            // Else it was out already when the one before was lost: none goes out in a rest.
            state.lost += 1;
        }
        state.rest = REST;
        if state.lost > 1 {
            state.give_up();
        }
    }

    /// A flight was answered out of turn.
    pub fn broken(&self) {
        self.state().give_up();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_up(&mut self) {
        if !std::mem::replace(&mut self.off, true) {
            warn!(
                target: super::LOG,
                "the smarthost announces PIPELINING and does not seem to keep it: going on one command at a time"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_flight_is_forgiven_after_a_rest_and_two_in_a_row_are_not() {
        let trust = Trust::default();
        let rest = || (0..100).take_while(|_| !trust.allows()).map(|_| trust.rested()).count();
        assert_eq!(rest(), 0);
        trust.lost();
        assert_eq!(rest(), REST as usize);
        trust.kept();
        trust.lost();
        assert_eq!(rest(), REST as usize);
        trust.lost();
        assert_eq!(rest(), 100);
    }

    #[test]
    fn flights_that_are_lost_together_count_once() {
        let trust = Trust::default();
        (0..4).for_each(|_| trust.lost());
        (0..REST).for_each(|_| trust.rested());
        assert!(trust.allows());
        trust.lost();
        (0..REST).for_each(|_| trust.rested());
        assert!(!trust.allows());
    }

    #[test]
    fn a_reply_out_of_turn_is_not_forgiven() {
        let trust = Trust::default();
        trust.broken();
        trust.kept();
        assert!(!trust.allows());
    }
}
