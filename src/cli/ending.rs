//! The ends of a command, and their exit statuses.

use crate::config::Invalid;
use crate::{ledger, queue};

/// Exit statuses beside 0, 1 and [`crate::panics::EXIT_STATUS`]; the last two are EX_UNAVAILABLE and EX_TEMPFAIL of sysexits.h.
pub const USAGE: u8 = 2;
pub const UNAVAILABLE: u8 = 69;
pub const BUSY: u8 = 75;

/// The end of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Done,
    /// Something is left over, or was not done.
    LeftOver,
    /// A database or the smarthost was out of reach.
    OutOfReach,
}

/// The command line cannot be carried out as it is; the text says what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Returns the exit status for a command that failed.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if error.is::<Invalid>() || error.is::<Usage>() {
        USAGE
    } else if matches!(error.downcast_ref(), Some(queue::Error::Unreachable { .. })) {
        UNAVAILABLE
    } else if matches!(error.downcast_ref(), Some(ledger::Error::Busy { .. })) {
        BUSY
    } else {
        1
    }
}
