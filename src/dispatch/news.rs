//! Rows that newly came to an end that is not delivery, kept until somebody has been told.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::mail::MailId;
use crate::outcome::{Reason, State};

/// So many are kept one by one; of further ones only the number.
const KEPT: usize = 200;

/// A row that failed or is unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    pub id: MailId,
    pub state: State,
    pub reason: Reason,
    /// The last reply, or what is wrong with the row, as a log may show it.
    pub said: Option<String>,
}

/// Bounded, whatever happens.
#[derive(Debug, Default)]
pub struct News {
    inner: Mutex<Kept>,
}

/// What there is to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub rows: VecDeque<Gone>,
    /// Further ones, that were too many to be kept one by one.
    pub more: u64,
}

impl News {
    pub(super) fn add(&self, gone: Gone) {
        let mut kept = self.lock();
        if kept.rows.len() < KEPT {
            kept.rows.push_back(gone);
        } else {
            kept.more += 1;
        }
    }

    /// What there is to tell, which is told from now on.
    pub fn take(&self) -> Kept {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
