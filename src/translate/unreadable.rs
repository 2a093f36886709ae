//! The reason why a row cannot be a mail.

use crate::decode::Damage;
use crate::outcome::Reason;

/// The row stays as it is, for this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Unreadable {
    pub reason: Reason,
    /// Which column, and what is wrong with it, in words for a person.
    pub detail: String,
}

impl Unreadable {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl From<Damage> for Unreadable {
    fn from(Damage { reason, detail }: Damage) -> Self {
        Self { reason, detail }
    }
}
