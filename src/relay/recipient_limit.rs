//! The number of recipients that the smarthost takes in one message, as its replies to RCPT have shown.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Time for which a learned number holds. After it, one transaction more than needed tells whether it still does.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);

/// Shared by all connections to one smarthost, because a reply such as `421 4.5.3` ends the connection that it came over.
#[derive(Debug, Default)]
pub(super) struct RecipientLimit(Mutex<Option<(usize, Instant)>>);

impl RecipientLimit {
    /// A transaction was told "enough" behind this number of recipients, and the next one began with the first of the
    /// others.
    pub fn learn(&self, recipients: usize, now: Instant) {
        let least = self.at(now).map_or(recipients, |known| known.min(recipients)).max(1);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((least, now + KNOWN_FOR));
    }

    /// The number that is known at this time.
    pub fn at(&self, now: Instant) -> Option<usize> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.filter(|(_, until)| now < *until).map(|(recipients, _)| recipients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_number_is_known_for_an_hour() {
        let (limit, now) = (RecipientLimit::default(), Instant::now());
        assert_eq!(limit.at(now), None);
        limit.learn(10, now);
        limit.learn(20, now);
        assert_eq!(limit.at(now), Some(10));
        limit.learn(0, now);
        assert_eq!(limit.at(now + KNOWN_FOR - Duration::from_millis(1)), Some(1));
        assert_eq!(limit.at(now + KNOWN_FOR), None);
        limit.learn(20, now + KNOWN_FOR);
        assert_eq!(limit.at(now + KNOWN_FOR), Some(20));
    }
}
