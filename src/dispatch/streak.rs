//! Ten mails in a row refused wholly with the same policy code: rights were lost, not ten mails.

use std::sync::Mutex;

use super::Shared;
use super::lane::Finished;
use super::worker;
use crate::outcome::{Attempt, Cause, RecipientOutcome, Reply};
use crate::retry;

/// So many such refusals in a row are the relay's trouble.
const LIMIT: usize = 10;

/// Refusals whose verdict waits until it is clear whether they stand alone.
#[derive(Default)]
pub struct Streak {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Of the newest attempt, where it was such a refusal.
    code: Option<(u8, u16, u16)>,
    waiting: Vec<Finished>,
    /// Refusals in a row with this code, those included that did not wait for the others.
    length: usize,
}

impl std::fmt::Debug for Streak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Streak")
    }
}

impl Streak {
    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Takes a finished attempt. Settles it, with those that waited, unless it makes a streak longer.
    pub fn take(&self, shared: &Shared, finished: Finished) {
        let code = policy_refusal(&finished.attempt);
        if self.lock().code != code {
            self.flush(shared);
            let mut inner = self.lock();
            (inner.code, inner.length) = (code, 0);
        }
        let Some((class, subject, detail)) = code else { return worker::conclude(shared, finished) };
        let full = {
            let mut inner = self.lock();
            inner.waiting.push(finished);
            inner.length = inner.length.saturating_add(1);
            if inner.length >= LIMIT { std::mem::take(&mut inner.waiting) } else { Vec::new() }
        };
        if full.is_empty() {
            return;
        }
        // Once it is clear, one more is enough: rights do not come back by trying ten more mails.
        worker::relay_trouble(shared, &format!("mails in a row are refused with {class}.{subject}.{detail}"));
        for finished in full {
            let attempt = retry::excused(&finished.attempt);
            worker::conclude(shared, Finished { attempt, ..finished });
        }
    }

    /// Settles what waits, because nothing else may come for a while; the row of refusals goes on.
    pub fn flush(&self, shared: &Shared) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        for finished in waiting {
            worker::conclude(shared, finished);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The code, where the whole mail was refused with one and the same 5.7.x.
pub fn policy_refusal(attempt: &Attempt) -> Option<(u8, u16, u16)> {
    let code = |outcome: &RecipientOutcome| match outcome {
        RecipientOutcome::Refused(trouble) => match &trouble.cause {
            Cause::Reply(Reply { enhanced: Some(code @ (5, 7, _)), .. }) => Some(*code),
            _ => None,
        },
        _ => None,
    };
    let first = code(&attempt.outcomes.first()?.1)?;
    attempt.outcomes.iter().all(|(_, outcome)| code(outcome) == Some(first)).then_some(first)
}
