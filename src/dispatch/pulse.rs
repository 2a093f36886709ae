//! Signs of life of the loops: a loop that makes progress, or waits for something that may take its time, steps on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, interval};

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

/// How a lane's loops are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vital {
    /// How long ago the slower of the two loops took its last step.
    pub still_for: Duration,
    /// It has been seen to with the database once, or has found that the database cannot be reached.
    pub started: bool,
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

    /// How each lane is, in the order of their names.
    pub fn vitals(&self, now: Instant) -> Vec<(Arc<str>, Vital)> {
        let vital = |beats: &Beats| Vital {
            still_for: now
                .saturating_duration_since(beats.feeder.map_or(beats.keeper, |feeder| feeder.min(beats.keeper))),
            started: beats.started,
        };
        self.lock().iter().map(|(name, beats)| (name.clone(), vital(beats))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, Beats>> {
        self.lanes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
