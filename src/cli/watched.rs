//! Shows a running dispatcher to the observers, who know it only by [`Subject`].

use jiff::Timestamp;
use tokio::time::Instant;

use crate::dispatch::{self, Handle, PostError, RelayState};
use crate::mail::Mail;
use crate::observe::health;
use crate::observe::subject::{Carries, Gone, Lane, Look, News, Subject, Tally, Undelivered};

/// A dispatcher that is watched.
#[derive(Clone)]
pub struct Watched(pub Handle);

impl Subject for Watched {
    fn look(&self) -> Look {
        let Self(handle) = self;
        let progress = handle.progress();
        let now = Instant::now();
        let lane = |(name, vital): (std::sync::Arc<str>, dispatch::Vital)| Lane {
            database: progress.database_trouble(&name).map(|said| handle.redact(&said)),
            still_for: vital.still_for,
            started: vital.started,
            name,
        };
        let relay = handle.relay();
        Look {
            lanes: progress.pulse.vitals(now).into_iter().map(lane).collect(),
            connections: relay.cap,
            carries: handle
                .announced()
                .map(|announced| Carries { eight_bit: announced.eight_bit, smtputf8: announced.smtputf8 }),
            relay: health::Relay { connections_cap: Some(relay.cap), ..self.relay(relay.state, now) },
            last_poll: progress.last_poll(),
            last_accepted: progress.last_accepted(),
            ledger_open: handle.ledger_open(),
            in_flight_bytes: handle.in_flight_bytes(),
            tally: tally(progress.tally()),
        }
    }

    fn take_news(&self) -> News {
        let dispatch::News { rows, more } = self.0.progress().news.take();
        let gone = |dispatch::Gone { id, state, reason, said }| Gone { id, state, reason, said };
        News { rows: rows.into_iter().map(gone).collect(), more }
    }

    async fn post(&self, mail: &Mail) -> Result<(), Undelivered> {
        self.0.post(mail).await.map_err(|error| match error {
            PostError::NotNow(why) => Undelivered::NotNow(self.0.redact(&why)),
            PostError::Never(why) => Undelivered::Never(self.0.redact(&why)),
        })
    }
}

impl Watched {
    fn relay(&self, state: RelayState, now: Instant) -> health::Relay {
        let relay = match state {
            RelayState::Up => health::Relay::default(),
            RelayState::Stopped => health::Relay::stopped(),
            RelayState::Paused { until, reason } => health::Relay {
                state: health::RelayState::Paused,
                until: Timestamp::now().checked_add(until.saturating_duration_since(now)).ok(),
                reason: Some(self.0.redact(&reason)),
                ..health::Relay::default()
            },
        };
        match self.0.pipelining(now) {
            Some((mode, why)) => {
                health::Relay { pipelining: Some(mode.as_str().to_owned()), pipelining_reason: Some(why), ..relay }
            }
            None => relay,
        }
    }
}

fn tally(tally: dispatch::Tally) -> Tally {
    let dispatch::Tally { claimed, delivered, deferred, failed, unreadable, held } = tally;
    Tally { claimed, delivered, deferred, failed, unreadable, held }
}
