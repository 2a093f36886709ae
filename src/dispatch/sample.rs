//! Shows a running dispatcher to its observers.

use tokio::time::Instant;

use super::{Handle, post};
use crate::mail::Mail;
use crate::telemetry::{FailureReport, LaneSample, Observed, RelayState, RelayView, Sample, SendError};

impl Observed for Handle {
    fn sample(&self) -> Sample {
        let shared = &self.shared;
        let progress = &shared.progress;
        let redact = |text: &str| (shared.settings.redact)(text);
        let now = Instant::now();
        let lanes = progress.pulse.lanes(now).into_iter().map(|(name, liveness)| LaneSample {
            database: progress.database_trouble(&name).map(|error| redact(&error)),
            liveness,
            name,
        });
        let announced = shared.relay.announced();
        let pipelining = announced.as_ref().map(|_| shared.relay.pipelining(now));
        Sample {
            lanes: lanes.collect(),
            relay: redacted(shared.health.watch().borrow().clone(), redact),
            pipelining: pipelining.map(|(mode, reason)| (mode.as_str(), reason)),
            capabilities: announced.map(|announced| announced.capabilities()),
            last_poll: progress.last_poll(),
            last_accepted: progress.last_accepted(),
            ledger_open: shared.ledger.open_count(),
            in_flight_bytes: shared.in_flight_bytes(),
            tally: progress.tally(),
        }
    }

    fn take_failures(&self) -> FailureReport {
        self.shared.progress.failures.take()
    }

    async fn send_notice(&self, mail: &Mail) -> Result<(), SendError> {
        let redact = |text: &str| (self.shared.settings.redact)(text);
        post::send_notice(&self.shared, mail).await.map_err(|error| match error {
            SendError::Temporary(reason) => SendError::Temporary(redact(&reason)),
            SendError::Permanent(reason) => SendError::Permanent(redact(&reason)),
        })
    }
}

fn redacted(view: RelayView, redact: impl Fn(&str) -> String) -> RelayView {
    let state = match view.state {
        RelayState::Down { until, reason } => RelayState::Down { until, reason: redact(&reason) },
        state @ (RelayState::Up | RelayState::Paused) => state,
    };
    RelayView { state, ..view }
}
