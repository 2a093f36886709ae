//! Signs of life of the loops: a loop that makes progress, or waits for something that may take its time, steps on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, interval};

use crate::telemetry::LaneLiveness;

/// How often a loop that waits steps on.
const WHILE_WAITING: Duration = Duration::from_secs(5);

/// The newest step of each loop of each lane.
#[derive(Debug, Default)]
pub struct Pulse {
    lanes: Mutex<BTreeMap<Arc<str>, Beats>>,
}

#[derive(Clone, Copy, Debug)]
struct Beats {
    /// `None` once it has ended, as it does long before the last mails are finished.
    feeder: Option<Instant>,
    keeper: Instant,
    started: bool,
}

/// The loops of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    Feeder,
    Keeper,
}

impl Pulse {
    /// A lane that will run from now on.
    pub(super) fn expect(&self, lane: Arc<str>) {
        let now = Instant::now();
        self.lock().insert(lane, Beats { feeder: Some(now), keeper: now, started: false });
    }

    pub(super) fn step(&self, lane: &str, which: Loop) {
        if let Some(beats) = self.lock().get_mut(lane) {
            match which {
                Loop::Feeder => beats.feeder = Some(Instant::now()),
                Loop::Keeper => beats.keeper = Instant::now(),
            }
        }
    }

    pub(super) fn feeder_ended(&self, lane: &str) {
        if let Some(beats) = self.lock().get_mut(lane) {
            beats.feeder = None;
            beats.started = true;
        }
    }

    pub(super) fn started(&self, lane: &str) {
        if let Some(beats) = self.lock().get_mut(lane) {
            beats.started = true;
        }
    }

    /// The feeder waits for something that may rightly take long: a due row, room, memory, a relay that is paused.
    pub(super) async fn waiting<T>(&self, lane: &str, what: impl Future<Output = T>) -> T {
        let mut ticks = interval(WHILE_WAITING);
        tokio::pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => {
                    self.step(lane, Loop::Feeder);
                    return done;
                }
                _ = ticks.tick() => self.step(lane, Loop::Feeder),
            }
        }
    }

    /// Returns each lane's signs of life, in the order of their names.
    pub fn lanes(&self, now: Instant) -> Vec<(Arc<str>, LaneLiveness)> {
        let liveness = |beats: &Beats| LaneLiveness {
            stalled_for: now
                .saturating_duration_since(beats.feeder.map_or(beats.keeper, |feeder| feeder.min(beats.keeper))),
            started: beats.started,
        };
        self.lock().iter().map(|(name, beats)| (name.clone(), liveness(beats))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, Beats>> {
        self.lanes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
