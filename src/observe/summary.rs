//! One line an hour: what happened since the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::telemetry::{Observed, Tally};

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
pub async fn run(dispatcher: impl Observed, summary: Arc<Mutex<Summary>>) {
    let mut summary = summary.lock().await;
    loop {
        sleep_until(summary.begun + EVERY).await;
        let now = dispatcher.sample().tally;
        log(now.since(summary.before), "the last hour");
        // A machine that slept, or was held up, does not make up for the hours.
        *summary = Summary { begun: Instant::now(), before: now };
    }
}

/// The line itself.
pub fn log(tally: Tally, span: &'static str) {
    let Tally { claimed, delivered, deferred, failed, unreadable, held, not_deleted } = tally;
    tracing::info!(target: SUMMARY, span, claimed, delivered, deferred, failed, unreadable, held, not_deleted, "summary");
}
