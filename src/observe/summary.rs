//! One line an hour: what happened since the last one.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::subject::{Subject, Tally};

/// The target of these lines.
pub const SUMMARY: &str = "mailqueue::summary";

const EVERY: Duration = Duration::from_secs(3600);

/// Logs until it is dropped.
pub async fn run(subject: impl Subject) {
    let mut hours = interval_at(Instant::now() + EVERY, EVERY);
    hours.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = subject.look().tally;
    loop {
        hours.tick().await;
        let now = subject.look().tally;
        log(now.since(before), "the last hour");
        before = now;
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
