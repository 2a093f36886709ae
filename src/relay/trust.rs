//! Whether the smarthost keeps what it announces with PIPELINING (RFC 2920).

use std::sync::{Mutex, PoisonError};

use tracing::warn;

/// After a flight that was lost, so many transactions go one command at a time before the next is tried.
const REST: u32 = 16;

/// Shared by all connections to one smarthost.
///
/// A reply out of turn proves that the smarthost does not keep it. A connection that was lost while replies to a flight
/// were due proves nothing, so it counts only when it happens twice with no success between.
#[derive(Debug, Default)]
pub(super) struct Trust(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    off: bool,
    warned: bool,
    lost: u32,
    rest: u32,
}

impl Trust {
    /// Whether the next transaction may go out as one flight.
    pub fn allows(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.rest > 0 {
            state.rest -= 1;
            return false;
        }
        !state.off
    }

    /// A flight was answered as it should be.
    pub fn kept(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lost = 0;
    }

    /// A flight was not answered.
    pub fn lost(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.lost += 1;
        state.rest = REST;
        state.off |= state.lost > 1;
        state.warn();
    }

    /// A flight was answered out of turn.
    pub fn broken(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.off = true;
        state.warn();
    }
}

impl State {
    fn warn(&mut self) {
        if !std::mem::replace(&mut self.warned, true) {
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
        assert!(trust.allows());
        trust.lost();
        for _ in 0..REST {
            assert!(!trust.allows());
        }
        assert!(trust.allows());
        trust.kept();
        trust.lost();
        assert_eq!((0..=REST).filter(|_| trust.allows()).count(), 1);
        trust.lost();
        assert_eq!((0..100).filter(|_| trust.allows()).count(), 0);
    }

    #[test]
    fn a_reply_out_of_turn_is_not_forgiven() {
        let trust = Trust::default();
        trust.broken();
        trust.kept();
        assert!(!trust.allows());
    }
}
