//! `rate`: at most so many mails in so much time, over all connections.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    interval: Option<Duration>,
    burst: u32,
    /// When the bucket would be full again; later than now by what has been taken.
    full: Mutex<Option<Instant>>,
    /// With a rate, one worker at a time waits for the next token.
    turn: tokio::sync::Mutex<()>,
}

impl Bucket {
    pub fn new(rate: Option<Rate>) -> Self {
        let interval = rate.map(|rate| rate.per / rate.mails.max(1));
        let burst = interval.map_or(1, |interval| (1.0 / interval.as_secs_f64()).clamp(1.0, 1e6) as u32);
        Self { interval, burst, full: Mutex::new(None), turn: tokio::sync::Mutex::new(()) }
    }

    /// Waits for the turn to wait for a token. No wait without a rate.
    pub async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.interval.is_some() { Some(self.turn.lock().await) } else { None }
    }

    /// Waits until there is a token, and leaves it where it is: a token is taken only with a mail in hand.
    pub async fn available(&self) {
        tokio::time::sleep_until(self.next_token(Instant::now())).await;
    }

    /// Takes a token for the item, where there are both. Without an item the token stays.
    pub fn take_for<T>(&self, now: Instant, item: impl FnOnce() -> Option<T>) -> Option<T> {
        let Some(interval) = self.interval else { return item() };
        let mut full = self.full();
        let was_full = full.unwrap_or(now).max(now);
        if self.token_of(was_full, interval) > now {
            return None;
        }
        let item = item()?;
        *full = Some(was_full + interval);
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
        let Some(interval) = self.interval else { return now };
        let mut full = self.full();
        let was_full = full.unwrap_or(now).max(now);
        *full = Some(was_full + interval);
        self.token_of(was_full, interval).max(now)
    }

    fn next_token(&self, now: Instant) -> Instant {
        let Some(interval) = self.interval else { return now };
        let was_full = self.full().unwrap_or(now).max(now);
        self.token_of(was_full, interval).max(now)
    }

    /// The time at which the next token is there, in a bucket that is full at `full`.
    fn token_of(&self, full: Instant, interval: Duration) -> Instant {
        full.checked_sub(interval * (self.burst - 1)).unwrap_or(full)
    }

    fn full(&self) -> MutexGuard<'_, Option<Instant>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
