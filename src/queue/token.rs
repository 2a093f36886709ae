//! The tokens of claims.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::mail::RecordId;

/// Names one act of claiming, so that its outcome can be found out when its answer was lost. 32 characters; the first is
/// [`TAKEN_OVER`] where the claim was taken over from another dispatcher that was sending, and a hexadecimal digit
/// otherwise. The database keeps that together with the claim: it must be known also after a restart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClaimToken(Arc<str>);

const TAKEN_OVER: char = 'x';

impl ClaimToken {
    pub(super) fn is_taken_over(&self) -> bool {
        is_taken_over(&self.0)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns true for the text of a token whose claims were taken over.
pub(super) fn is_taken_over(token: &str) -> bool {
    token.starts_with(TAKEN_OVER)
}

/// Makes tokens, and knows which of them are in use: that of an act under way, or of a claim that exists. A claim in the
/// database under another token is held by no task of this process, and never will be. All queues of a process share one.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens(Arc<Mutex<HashMap<Box<str>, Weak<str>>>>);

impl Tokens {
    pub(super) fn create(&self) -> ClaimToken {
        self.known(RecordId::new(rand::random()).as_str())
    }

    /// The token for what the act `token` takes over.
    pub(super) fn taken_over(&self, token: &ClaimToken) -> ClaimToken {
        self.known(&format!("{TAKEN_OVER}{}", &token.0[1..]))
    }

    fn known(&self, text: &str) -> ClaimToken {
        let token: Arc<str> = text.into();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Seldom, so that it costs little however many there are.
        if known.len() == known.capacity() {
            known.retain(|_, token| token.strong_count() > 0);
        }
        known.insert(text.into(), Arc::downgrade(&token));
        ClaimToken(token)
    }

    /// The tokens of all acts under way and of all claims that exist.
    pub(super) fn in_use(&self) -> HashSet<Box<str>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, token| token.strong_count() > 0);
        known.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_in_use_as_long_as_a_copy_of_it_exists() {
        let tokens = Tokens::default();
        let (own, other) = (tokens.create(), tokens.clone().create());
        let foreign = tokens.taken_over(&own);
        assert!(foreign.is_taken_over() && !own.is_taken_over());
        let in_use = |token: &str| tokens.in_use().contains(token);
        let [own_text, foreign_text] = [&own, &foreign].map(|token| token.as_str().to_owned());
        let copy = own.clone();
        drop((own, foreign));
        assert!(in_use(&own_text) && in_use(other.as_str()) && !in_use(&foreign_text));
        drop(copy);
        assert!(!in_use(&own_text));
    }

    #[test]
    fn tokens_that_are_no_longer_in_use_take_no_memory() {
        let tokens = Tokens::default();
        for _ in 0..10_000 {
            drop(tokens.create());
        }
        assert!(tokens.0.lock().unwrap().len() < 100);
    }
}
