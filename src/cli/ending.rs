//! The ends of a command, and their exit statuses.

use super::output::{self, safe};
use crate::config::Invalid;
use crate::{ledger, queue};

/// Exit statuses beside 0, 1 and [`crate::panics::EXIT_STATUS`]; the last two are EX_UNAVAILABLE and EX_TEMPFAIL of
/// sysexits.h.
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

/// The errors of single queues. A command says each on standard error, goes on with the other queues, and ends with the
/// exit status of the worst.
#[derive(Debug, Default)]
pub struct QueueErrors {
    worst: Option<Ending>,
}

impl QueueErrors {
    /// Says an error, and returns what there is without one.
    pub fn pass<T>(&mut self, result: Result<T, queue::Error>) -> Option<T> {
        result.map_err(|error| self.note("", &error)).ok()
    }

    /// The same where an error can concern the whole command; that one is returned.
    pub fn pass_any<T>(&mut self, result: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match result.map_err(anyhow::Error::downcast::<queue::Error>) {
            Ok(value) => Ok(Some(value)),
            Err(Ok(error)) => Ok(self.pass(Err(error))),
            Err(Err(other)) => Err(other),
        }
    }

    /// Says an error behind `context`.
    pub fn note(&mut self, context: &str, error: &queue::Error) {
        output::tell(&format!("mailqueue: {context}{}", safe(&error.to_string())));
        let ending = match error {
            queue::Error::Unreachable { .. } => Ending::OutOfReach,
            _ => Ending::LeftOver,
        };
        if self.worst != Some(Ending::OutOfReach) {
            self.worst = Some(ending);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.worst.is_none()
    }

    /// The end of a command that ends with `otherwise` where no queue had an error.
    pub fn ending(self, otherwise: Ending) -> Ending {
        self.worst.unwrap_or(otherwise)
    }
}

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
