//! `rate`: at most so many mails in so much time, over all connections.

use std::sync::Mutex;
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
    next: Mutex<Option<Instant>>,
}

impl Bucket {
    pub fn new(rate: Option<Rate>) -> Self {
        let interval = rate.map(|rate| rate.per / rate.mails.max(1));
        let burst = interval.map_or(1, |interval| (1.0 / interval.as_secs_f64()).clamp(1.0, 1e6) as u32);
        Self { interval, burst, next: Mutex::new(None) }
    }

    /// Waits for a token and takes it.
    pub async fn take(&self) {
        tokio::time::sleep_until(self.reserve(Instant::now())).await;
    }

    /// Takes a token if there is one now.
    pub fn try_take(&self) -> bool {
        let Some(interval) = self.interval else { return true };
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let full = next.unwrap_or(now).max(now);
        if full.checked_sub(interval * (self.burst - 1)).is_some_and(|moment| moment > now) {
            return false;
        }
        *next = Some(full + interval);
        true
    }

    /// Takes the next token there will be, and answers when that is. It is taken for good: whoever gives up waiting keeps
    /// the moment for later.
    pub fn reserve(&self, now: Instant) -> Instant {
        let Some(interval) = self.interval else { return now };
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let full = next.unwrap_or(now).max(now);
        *next = Some(full + interval);
        full.checked_sub(interval * (self.burst - 1)).unwrap_or(now)
    }
}
