//! Keeps the health of a running dispatcher current: counts the rows of each queue, and looks for stalls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep};

use super::first_seen::FirstSeen;
use super::health::{self, Health};
use super::metrics::Metrics;
use super::stall::{AFTER, Moment, Watch};
use crate::failpoint;
use crate::queue::Queue;
use crate::telemetry::{LaneSample, Observed, RelayState, Sample};

/// The shortest time from one count to the next.
const SHORTEST: Duration = Duration::from_secs(5);

/// The interval at which a stall is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// The waiting rows of each queue with the polls that first saw them.
pub type Waiting = Arc<Mutex<HashMap<String, FirstSeen>>>;

/// Counts the rows of a queue every `poll_interval`, so that nothing that shows the counts waits for a database. Each
/// queue has a task of its own, so that none waits for the database of another. Runs until it is dropped.
pub async fn count(
    queue: Queue,
    health: watch::Sender<Health>,
    metrics: Arc<Metrics>,
    waiting: Waiting,
    poll_interval: Duration,
) {
    loop {
        let begun = Instant::now();
        failpoint::hit("in-count");
        let now = Timestamp::now();
        let first_seen = |rows: &[i64]| {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.entry(queue.name().to_string()).or_default().update(rows, now)
        };
        let (counted, _) = health::count(&queue, first_seen, now).await;
        let took = begun.elapsed();
        metrics.counting_took(took);
        metrics.counted(&counted);
        health.send_modify(|health| {
            if let Some(known) = health.queues.iter_mut().find(|known| known.name == counted.name) {
                *known = counted;
            }
        });
        // A database that is slow to count has as much time without it.
        sleep(poll_interval.max(SHORTEST).saturating_sub(took).max(took)).await;
    }
}

/// Keeps the stall current. A row that is due may wait for `poll_interval` until it is seen. Runs until it is dropped.
pub async fn stall(dispatcher: impl Observed, health: watch::Sender<Health>, poll_interval: Duration) {
    let after = failpoint::shortened("stall", AFTER.max(poll_interval * 2));
    let mut watch = Watch::new(after);
    let mut looks = interval(LOOK);
    loop {
        looks.tick().await;
        failpoint::hit("in-stall");
        let sample = dispatcher.sample();
        let stalled = {
            let health = health.borrow();
            watch.look(moments(&sample, &health), Instant::now(), Timestamp::now())
        };
        let changed = health.send_if_modified(|health| {
            let changed = health.stalled != stalled;
            health.stalled = stalled;
            changed
        });
        match stalled {
            Some(stalled) if changed => {
                let reason = stalled.reason.as_str();
                tracing::error!(target: "mailqueue::monitor", reason, since = %stalled.since, "{}",
                    stalled.sentence(Timestamp::now()));
            }
            None if changed => {
                tracing::info!(target: "mailqueue::monitor", "mails are sent again, or none waits any more")
            }
            _ => {}
        }
    }
}

fn moments<'a>(sample: &'a Sample, health: &'a Health) -> impl Iterator<Item = Moment<'a>> {
    let relay_is_paused = sample.relay.state == RelayState::Paused;
    sample.lanes.iter().map(move |LaneSample { name, attempted, waits_for, in_hand, .. }| {
        let rows = health.queues.iter().find(|queue| queue.name == **name).and_then(|queue| queue.rows.as_ref());
        let due = rows.map(|rows| !rows.paused && (rows.sendable || *in_hand));
        let due = if relay_is_paused { Some(false) } else { due };
        Moment { queue: name, due, attempted: *attempted, waits_for: *waits_for }
    })
}
