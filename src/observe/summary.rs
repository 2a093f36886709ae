//! One line an hour: what happened since the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::subject::{Subject, Tally};

/// The target of these lines.
pub const SUMMARY: &str = "mailqueue::summary";

const EVERY: Duration = Duration::from_secs(3600);

/// Since when, and what had happened by then.
#[derive(Debug)]
pub struct Summary {
    begun: Instant,
    before: Tally,
}

impl Summary {
    /// An hour that begins now, before anything happened.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), before: Tally::default() }
    }
}

/// Logs until it is dropped. Whoever goes on with the same `summary` goes on in the middle of the hour.
pub async fn run(subject: impl Subject, summary: Arc<Mutex<Summary>>) {
    let mut summary = summary.lock().await;
    loop {
        sleep_until(summary.begun + EVERY).await;
        let now = subject.look().tally;
        log(now.since(summary.before), "the last hour");
        // A machine that slept, or was held up, does not make up for the hours.
        *summary = Summary { begun: Instant::now(), before: now };
    }
}

/// The line itself.
pub fn log(tally: Tally, span: &'static str) {
    let Tally { claimed, delivered, deferred, failed, unreadable, held } = tally;
    tracing::info!(target: SUMMARY, span, claimed, delivered, deferred, failed, unreadable, held, "summary");
}

impl Tally {
    /// What came on top of `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            claimed: self.claimed.saturating_sub(before.claimed),
            delivered: self.delivered.saturating_sub(before.delivered),
            deferred: self.deferred.saturating_sub(before.deferred),
            failed: self.failed.saturating_sub(before.failed),
            unreadable: self.unreadable.saturating_sub(before.unreadable),
            held: self.held.saturating_sub(before.held),
        }
    }
}
