//! Maintenance of a lane: keeps its claims alive, obeys the operators, and takes over from dispatchers that show no signs
//! of life. Also tries a relay that is down, and drops old entries of the ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::context::{Context, jitter};
use super::events;
use super::lane::Lane;
use super::progress::Loop;
use crate::ledger::Ledger;
use crate::queue::{self, Claim, DispatcherId};
use crate::relay::Relay;
use crate::retry;
use crate::telemetry::RelayState;

/// The interval at which the operators' pause is looked up: it must be obeyed within a second.
const LOOK: Duration = Duration::from_millis(600);

/// The interval at which the database is told of the time that expiry must not count. Each of several dispatchers may see
/// only a part of an outage, and accounts for what it sees.
const ACCOUNT: Duration = Duration::from_secs(30);

/// The interval at which old entries of the ledger are dropped.
const EXPIRY: Duration = Duration::from_secs(3600);

/// The longest wait for connections to close before a probe, where a smarthost does not answer QUIT. A connection with a
/// mail under way may stay.
const CLOSING: Duration = Duration::from_secs(2);

/// Other dispatchers' counters, each with the time since when we have seen it unchanged, by our own monotonic clock.
type Sightings = HashMap<DispatcherId, (i64, Instant)>;

/// The maintenance of one lane.
pub struct Maintenance {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
    pub lease: Duration,
    pub retry: retry::Settings,
}

impl Maintenance {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let Self { context, lane, .. } = &self;
        let ticks = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let mut beats = ticks((self.lease / 30).max(Duration::from_millis(50)));
        let mut looks = ticks(LOOK);
        let mut accounts = ticks(ACCOUNT);
        let mut relay = context.breaker.watch();
        let mut sightings = Sightings::new();
        loop {
            context.events.progress.liveness.touch(lane.name(), Loop::Maintenance);
            // A database that does not answer is reported by the fetcher; here the next tick tries again.
            let result = tokio::select! {
                _ = beats.tick() => {
                    let beaten = self.beat(&mut sightings).await;
                    if beaten.is_err() {
                        // Another dispatcher may have been unable to write a heartbeat too: each lease begins again.
                        sightings.clear();
                    }
                    beaten
                }
                _ = accounts.tick() => context.outage.account(lane).await,
                _ = looks.tick() => context.obey_operator(lane).await,
                _ = relay.changed() => Ok(()),
            };
            if let Err(error) = result {
                tracing::debug!(target: events::DATABASE, queue = %lane.name(), %error, "maintenance");
            }
            context.return_unless_open(lane);
        }
    }

    async fn beat(&self, sightings: &mut Sightings) -> Result<(), queue::Error> {
        self.lane.renew_lease().await?;
        let others = self.lane.queue.others().await?;
        let now = Instant::now();
        sightings.retain(|id, _| others.iter().any(|(other, _)| other == id));
        for (other, counter) in others {
            let seen = sightings.entry(other.clone()).or_insert((counter, now));
            if seen.0 != counter {
                *seen = (counter, now);
            } else if now - seen.1 >= self.lease {
                self.take_over(&other, counter).await?;
            }
        }
        Ok(())
    }

    async fn take_over(&self, other: &DispatcherId, counter: i64) -> Result<(), queue::Error> {
        let now = Timestamp::now();
        let recovered = self.lane.queue.take_over(other, counter).await?;
        tracing::warn!(target: events::DATABASE, queue = %self.lane.name(), dispatcher = other,
            released = recovered.released, unknown = recovered.unknown.len(),
            "took over from a dispatcher that shows no signs of life");
        recovered.unknown.into_iter().for_each(|claim| self.settle_unknown(claim, now));
        Ok(())
    }

    fn settle_unknown(&self, claim: Claim, now: Timestamp) {
        self.context.events.unknown(&claim, None);
        let verdict = retry::unknown(&self.retry, claim.history().clone(), now, jitter());
        let fingerprint = claim.fingerprint();
        self.lane.settle(claim, fingerprint, None, verdict);
    }
}

/// Drops entries of the ledger that are older than `keep`, every hour. Runs until it is dropped.
pub async fn expire_ledger(ledger: Ledger, keep: Duration) {
    let mut ticks = interval(EXPIRY);
    loop {
        ticks.tick().await;
        if let Err(error) = ledger.expire(Timestamp::now(), keep).await {
            tracing::warn!(target: events::MAIL, %error, "old entries stay in the ledger");
        }
    }
}

/// Tries a relay that is down.
pub struct Probe {
    pub context: Arc<Context>,
    pub relay: Arc<Relay>,
    pub ledger: Ledger,
}

impl Probe {
    /// Takes the relay down if an earlier process left it in trouble: nothing is claimed before it has been tried.
    pub async fn at_start(&self) {
        let Self { context, relay, .. } = self;
        if !context.outage.lasts() {
            return;
        }
        if !context.once {
            return context.take_relay_down("it was out of reach when mailqueue last ran; it is tried first");
        }
        match context.stop.run_until_cancelled(relay.probe()).await {
            Some(Ok(_)) => drop(context.outage.ends(Timestamp::now())),
            Some(Err(trouble)) => context.relay_failed(&trouble),
            None => {}
        }
    }

    /// Tries the relay at the times that the breaker says. Runs until it is dropped.
    pub async fn run(self) {
        let Self { context, relay, ledger } = self;
        let mut view = context.breaker.watch();
        loop {
            let until = match &view.borrow_and_update().state {
                RelayState::Down { until, .. } => Some(*until),
                RelayState::Up | RelayState::Paused => None,
            };
            let Some(until) = until else {
                if view.changed().await.is_err() {
                    return;
                }
                continue;
            };
            tokio::time::sleep_until(until).await;
            // Without the ledger no mail would come to its dot, and a connection would only trouble the smarthost.
            if let Err(error) = ledger.is_writable().await {
                context.ledger_failed(&error);
                continue;
            }
            // A smarthost that takes few connections would refuse one more.
            let _ = tokio::time::timeout(CLOSING, context.breaker.all_left()).await;
            match relay.probe().await {
                Ok(_) => context.relay_is_back(),
                Err(trouble) => context.relay_failed(&trouble),
            }
        }
    }
}
