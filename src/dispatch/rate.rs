//! `rate`: at most so many mails in so much time, over all connections.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// So many mails in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub mails: u32,
    pub per: Duration,
}

/// A token bucket that holds the tokens of one second, or one token at least.
#[derive(Debug)]
pub struct Bucket {
    state: Mutex<State>,
    /// Called when the rate changes.
    changed: Notify,
    /// With a rate, one worker at a time waits for the next token.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// `None` without a rate.
    pace: Option<Pace>,
    /// The time at which the bucket would be full again; later than now by what has been taken.
    full: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Pace {
    /// From one token to the next.
    interval: Duration,
    /// The tokens that the bucket holds.
    burst: u32,
}

impl Pace {
    fn of(rate: Rate) -> Self {
        let interval = rate.per / rate.mails.max(1);
        Self { interval, burst: (1.0 / interval.as_secs_f64()).clamp(1.0, 1e6) as u32 }
    }

    /// The time at which the next token is there, in a bucket that is full at `full`.
    fn token_of(self, full: Instant) -> Instant {
        full.checked_sub(self.interval * (self.burst - 1)).unwrap_or(full)
    }
}

impl Bucket {
    pub fn new(rate: Option<Rate>) -> Self {
        let state = State { pace: rate.map(Pace::of), full: None };
        Self { state: Mutex::new(state), changed: Notify::new(), turn: tokio::sync::Mutex::new(()) }
    }

    /// Goes on with another rate. The tokens that were taken stay taken.
    pub fn set_rate(&self, rate: Option<Rate>, now: Instant) {
        let pace = rate.map(Pace::of);
        let mut state = self.state();
        if pace == state.pace {
            return;
        }
        state.full = match (state.pace, pace, state.full) {
            (Some(before), Some(pace), Some(full)) => {
                let taken = full.saturating_duration_since(now).as_secs_f64() / before.interval.as_secs_f64();
                Some(now + pace.interval.mul_f64(taken))
            }
            _ => None,
        };
        state.pace = pace;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits for the turn to wait for a token. No wait without a rate.
    pub async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let has_rate = self.state().pace.is_some();
        if has_rate { Some(self.turn.lock().await) } else { None }
    }

    /// Waits until there is a token, and leaves it where it is: a token is taken only with a mail in hand.
    pub async fn available(&self) {
        loop {
            let changed = self.changed.notified();
            let token = self.next_token(Instant::now());
            tokio::select! {
                () = tokio::time::sleep_until(token) => return,
                () = changed => {}
            }
        }
    }

    /// Takes a token for the item, where there are both. Without an item the token stays.
    pub fn take_for<T>(&self, now: Instant, item: impl FnOnce() -> Option<T>) -> Option<T> {
        let mut state = self.state();
        let Some(pace) = state.pace else {
            drop(state);
            return item();
        };
        let was_full = state.full.unwrap_or(now).max(now);
        if pace.token_of(was_full) > now {
            return None;
        }
        let item = item()?;
        state.full = Some(was_full + pace.interval);
        Some(item)
    }

    /// Returns true if a mail may go now.
    pub fn has_token(&self, now: Instant) -> bool {
        self.next_token(now) <= now
    }

    /// Takes the next token there will be, and waits for it.
    pub async fn take(&self) {
        let at = self.reserve(Instant::now());
        tokio::time::sleep_until(at).await;
    }

    fn reserve(&self, now: Instant) -> Instant {
        let mut state = self.state();
        let Some(pace) = state.pace else { return now };
        let was_full = state.full.unwrap_or(now).max(now);
        state.full = Some(was_full + pace.interval);
        pace.token_of(was_full).max(now)
    }

    fn next_token(&self, now: Instant) -> Instant {
        let State { pace, full } = *self.state();
        pace.map_or(now, |pace| pace.token_of(full.unwrap_or(now).max(now)).max(now))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn another_rate_holds_at_once_and_tokens_that_were_taken_stay_taken() {
        let now = Instant::now();
        let bucket = Bucket::new(Some(Rate { mails: 1, per: 3600 * SECOND }));
        assert_eq!(bucket.take_for(now, || Some(1)), Some(1));
        assert_eq!(bucket.take_for(now, || Some(2)), None, "the next comes after an hour");
        let waiting = bucket.available();
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(SECOND, &mut waiting).await.is_err());
        bucket.set_rate(Some(Rate { mails: 1, per: 10 * SECOND }), now);
        tokio::time::timeout(10 * SECOND, waiting).await.expect("after ten seconds");
        assert_eq!(bucket.take_for(now + 9 * SECOND, || Some(2)), None);
        assert_eq!(bucket.take_for(now + 10 * SECOND, || Some(2)), Some(2));
        bucket.set_rate(None, now);
        assert_eq!(bucket.take_for(now, || Some(3)), Some(3));
    }
}
