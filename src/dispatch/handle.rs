//! The view of a running dispatcher from outside: steers it, and shows it to its observers.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::context::Context;
use super::lane::Lane;
use super::notice;
use super::progress::Progress;
use super::rate::Bucket;
use super::settings::Change;
use crate::ledger::Ledger;
use crate::mail::Mail;
use crate::queue::{self, Queue};
use crate::telemetry::{FailureReport, LaneSample, Observed, RelayState, RelayView, Sample, SendError, Wait};

/// Steers a running dispatcher. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) context: Arc<Context>,
    /// The lanes in force.
    pub(super) lanes: Arc<RwLock<Vec<Arc<Lane>>>>,
    pub(super) ledger: Ledger,
    pub(super) changes: mpsc::UnboundedSender<(Change, oneshot::Sender<()>)>,
    pub(super) bucket: Arc<Bucket>,
}

impl Handle {
    /// Finishes the mails on the wire, gives all others back, and lets [`Dispatcher::run`](super::Dispatcher::run) end.
    pub fn stop(&self) {
        self.context.stop.cancel();
    }

    /// Puts another configuration in force, without a pause: mails on the wire are finished under the old settings.
    /// Returns when it is in force, or the dispatcher has ended.
    pub async fn change(&self, change: Change) {
        let (done, applied) = oneshot::channel();
        // A dispatcher that has ended takes no change, and drops both ends.
        if self.changes.send((change, done)).is_ok() {
            let _ = applied.await;
        }
    }

    /// Asks the database of a queue that is not in force yet, so that a wrong setting is found before anything changes.
    pub async fn check_new(&self, queue: &Queue, within: Duration) -> Result<(), queue::Error> {
        if self.lanes().iter().any(|lane| lane.queue.is_same_as(queue)) {
            return Ok(());
        }
        let asked = timeout(within, queue.paused()).await;
        let late = |_| queue::Error::Unreachable {
            queue: queue.name().clone(),
            what: format!("no answer within {} seconds", within.as_secs()),
        };
        asked.map_err(late)?.map(drop)
    }

    /// Looks at all tables now.
    pub fn poll(&self) {
        self.context.poll.notify_waiters();
    }

    pub fn progress(&self) -> Arc<Progress> {
        self.context.events.progress.clone()
    }

    pub(super) fn set_lanes(&self, lanes: Vec<Arc<Lane>>) {
        *self.lanes.write().unwrap_or_else(PoisonError::into_inner) = lanes;
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lanes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn redact(&self, text: &str) -> String {
        self.context.events.redact(text)
    }

    /// Returns the thing that keeps the lane's next mail from being sent, if none is sent.
    fn waits_for(&self, lane: &Lane, database_fails: bool, now: Instant) -> Wait {
        if database_fails {
            Wait::Database
        } else if !self.context.breaker.is_up() {
            Wait::Relay
        } else if self.context.breaker.is_short_of_files() {
            Wait::Files
        } else if lane.waits_for_memory() {
            Wait::Memory
        } else if !self.bucket.has_token(now) {
            Wait::Rate
        } else if lane.queue.claims() > 0 {
            Wait::Relay
        } else {
            // Rows wait, and the fetcher has none of them: it waits for a statement.
            Wait::Database
        }
    }

    fn relay_view(&self) -> RelayView {
        let view = self.context.breaker.watch().borrow().clone();
        let state = match view.state {
            RelayState::Down { until, reason } => RelayState::Down { until, reason: self.redact(&reason) },
            state @ (RelayState::Up | RelayState::Paused) => state,
        };
        RelayView { state, ..view }
    }
}

impl Observed for Handle {
    fn sample(&self) -> Sample {
        let progress = &self.context.events.progress;
        let now = Instant::now();
        let lanes = self.lanes();
        let lanes = lanes.iter().map(|lane| {
            let database = progress.database_trouble(lane.index, lane.name()).map(|error| self.redact(&error));
            LaneSample {
                name: lane.name().clone(),
                liveness: progress.liveness.of(lane.index, now),
                in_hand: lane.queue.claims() > 0,
                attempted: progress.last_attempt(lane.name()),
                waits_for: self.waits_for(lane, database.is_some(), now),
                database,
            }
        });
        let current = self.context.live.get();
        let announced = current.relay.announced();
        let pipelining = announced.as_ref().map(|_| current.relay.pipelining(now));
        Sample {
            lanes: lanes.collect(),
            relay: self.relay_view(),
            pipelining: pipelining.map(|(mode, reason)| (mode.as_str(), reason)),
            capabilities: announced.map(|announced| announced.capabilities()),
            last_poll: progress.last_poll(),
            last_accepted: progress.last_accepted(),
            ledger_open: self.ledger.open_count(),
            in_flight_bytes: current.memory.in_use(),
            tally: progress.tally(),
        }
    }

    fn take_failures(&self) -> FailureReport {
        self.context.events.progress.take_failures()
    }

    fn out_of_files(&self) {
        self.context.out_of_files(None);
    }

    async fn send_notice(&self, mail: &Mail) -> Result<(), SendError> {
        if !self.context.breaker.is_up() {
            return Err(SendError::Temporary("the relay is down or paused".to_owned()));
        }
        notice::send(&self.context.live.get().relay, &self.bucket, mail).await.map_err(|error| match error {
            SendError::Temporary(reason) => SendError::Temporary(self.redact(&reason)),
            SendError::Permanent(reason) => SendError::Permanent(self.redact(&reason)),
        })
    }
}
