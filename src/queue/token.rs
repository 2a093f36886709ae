//! The tokens of claims.

use std::sync::Arc;

use crate::mail::RecordId;

/// Names one act of claiming, so that its outcome can be found out when its answer was lost. 32 characters; the first is
/// [`TAKEN_OVER`] where the claim was taken over from another dispatcher that was sending, and a hexadecimal digit
/// otherwise. The database keeps that together with the claim: it must be known also after a restart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClaimToken(Arc<str>);

const TAKEN_OVER: char = 'x';

impl ClaimToken {
    pub(super) fn new() -> Self {
        Self(RecordId::new(rand::random()).as_str().into())
    }

    /// The token for what this act takes over.
    pub(super) fn taken_over(&self) -> Self {
        Self(format!("{TAKEN_OVER}{}", &self.0[1..]).into())
    }

    pub(super) fn is_taken_over(&self) -> bool {
        self.0.starts_with(TAKEN_OVER)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for ClaimToken {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}
