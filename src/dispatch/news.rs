//! Rows that newly failed or became unreadable, kept until an observer takes them.

use std::sync::Mutex;

use crate::telemetry::{FailedRow, FailureReport};

/// The report that the next caller of [`Failures::take`] gets.
#[derive(Debug, Default)]
pub struct Failures {
    report: Mutex<FailureReport>,
}

impl Failures {
    pub(super) fn add(&self, row: FailedRow) {
        self.lock().push(row);
    }

    /// Takes the rows that were added since the last call.
    pub fn take(&self) -> FailureReport {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FailureReport> {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
