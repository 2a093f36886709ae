//! Deletion of rows that were delivered and that the database did not delete: tried again when due. Nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::context::{Context, jitter};
use super::events;
use super::lane::Lane;
use crate::queue::{self, DeleteRetry, Settled};
use crate::retry;

/// The interval at which the database is asked for rows that are due, unless `retry.initial` is shorter.
const LOOK: Duration = Duration::from_secs(5);
const SHORTEST_LOOK: Duration = Duration::from_millis(200);

/// The most rows that are tried together.
const GROUP: u32 = 256;

pub struct Redeletion {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
}

impl Redeletion {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let mut ticks = interval(self.retry().initial.clamp(SHORTEST_LOOK, LOOK));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A database that does not answer is reported by the fetcher; here the next tick tries again.
            if let Err(error) = self.delete_due().await {
                tracing::debug!(target: events::DATABASE, queue = %self.lane.name(), %error, "redeletion");
            }
        }
    }

    fn retry(&self) -> retry::Settings {
        self.context.live.get().settings.retry
    }

    /// Tries all rows that are due once.
    pub async fn delete_due(&self) -> Result<(), queue::Error> {
        let begun = Timestamp::now();
        loop {
            let due = self.lane.queue.undeleted(begun, GROUP).await?;
            let now = Timestamp::now();
            let settings = self.retry();
            let retry = |since| DeleteRetry { now, next: retry::next_delete(&settings, since, now, jitter()) };
            let rows: Vec<_> = due.into_iter().map(|row| (row.clone(), retry(row.since))).collect();
            let mut locked = false;
            for (id, settled) in self.lane.queue.delete_again(&rows).await? {
                self.context.events.deleted_again(&id, &settled, self.context.once);
                // It stays due, so that the next look finds it again.
                locked |= matches!(settled, Settled::Locked { .. });
            }
            if locked || rows.len() < GROUP as usize {
                return Ok(());
            }
        }
    }
}
