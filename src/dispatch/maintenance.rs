//! Maintenance of a lane: keeps its claims alive, obeys the operators, and takes over from dispatchers that show no signs
//! of life. Also tries a relay that is down, and drops old entries of the ledger. Each is a task of its own, so that none
//! waits for the slowest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

use super::context::{Context, jitter};
use super::events;
use super::lane::Lane;
use super::progress::{Loop, Work};
use super::settings::Live;
use crate::failpoint;
use crate::ledger::Ledger;
use crate::queue::{self, Claim, DispatcherId};
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

/// Writes the heartbeats of a lane.
pub struct Heartbeat {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
}

impl Heartbeat {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let Self { context, lane } = &self;
        loop {
            let begun = Instant::now();
            context.events.progress.liveness.touch(lane.index, Loop::Heartbeat);
            failpoint::hit("in-heartbeat");
            match lane.renew_lease().await {
                Ok(()) => context.events.database_works(lane, Work::Heartbeat),
                Err(error) => context.events.database_failed(lane, Work::Heartbeat, &error),
            }
            // A call says that the lease has another length, and with it the interval.
            let _ = timeout_at(begun + lane.beat_interval(), lane.calls.heartbeat.notified()).await;
        }
    }
}

/// Looks up whether an operator has paused the queue or the relay.
pub struct Flags {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
}

impl Flags {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let Self { context, lane } = &self;
        let mut looks = ticks(LOOK);
        loop {
            looks.tick().await;
            context.events.progress.liveness.touch(lane.index, Loop::Flags);
            failpoint::hit("in-flags");
            if let Err(error) = context.obey_operator(lane).await {
                // The heartbeat and the fetcher report a database that does not answer.
                tracing::debug!(target: events::DATABASE, queue = %lane.name(), %error, "the pause flags cannot be read");
            }
            context.return_unless_open(lane);
        }
    }
}

/// Gives a lane's mails back as soon as they may not go, and those of senders that are not offered. Asks no database, so
/// that nothing holds it up.
pub async fn return_when_closed(context: Arc<Context>, lane: Arc<Lane>) {
    let mut relay = context.breaker.watch();
    let mut looks = ticks(LOOK);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            // An error would say that the breaker is gone, and this task with it.
            _ = relay.changed() => {}
        }
        failpoint::hit("in-return");
        context.return_unless_open(&lane);
        context.clear_paused();
    }
}

/// Tells a lane's database of the time that expiry must not count. Runs until it is dropped.
pub async fn account_for_outages(context: Arc<Context>, lane: Arc<Lane>) {
    let mut accounts = ticks(ACCOUNT);
    loop {
        accounts.tick().await;
        failpoint::hit("in-account");
        if let Err(error) = context.outage.account(&lane).await {
            tracing::debug!(target: events::DATABASE, queue = %lane.name(), %error, "the outage cannot be accounted for");
        }
    }
}

/// Takes the claims of a queue over from dispatchers that show no signs of life.
pub struct TakeOver {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
}

/// Other dispatchers' counters, each with the time since when we have seen it unchanged, by our own monotonic clock.
type Sightings = HashMap<DispatcherId, (i64, Instant)>;

impl TakeOver {
    /// Runs until `over`. A take-over that has begun comes to its end: claims that it makes need this lane, which settles
    /// them.
    pub async fn run(self, over: CancellationToken) {
        let lane = &self.lane;
        let mut sightings = Sightings::new();
        while over.run_until_cancelled(tokio::time::sleep(lane.beat_interval())).await.is_some() {
            self.context.events.progress.liveness.touch(lane.index, Loop::TakeOver);
            failpoint::hit("in-take-over");
            if let Err(error) = self.look(&mut sightings, &over).await {
                tracing::debug!(target: events::DATABASE, queue = %lane.name(), %error, "other dispatchers cannot be seen");
                sightings.clear();
            }
        }
    }

    async fn look(&self, sightings: &mut Sightings, over: &CancellationToken) -> Result<(), queue::Error> {
        let others = self.lane.queue.others().await?;
        let now = Instant::now();
        // While we could not write a heartbeat, others may have been unable to: each lease begins again.
        let failed = self.lane.renewal_failed_at();
        sightings.retain(|id, _| others.iter().any(|(other, _)| other == id));
        for (other, counter) in others {
            let seen = sightings.entry(other.clone()).or_insert((counter, now));
            if seen.0 != counter {
                *seen = (counter, now);
            }
            let since = failed.map_or(seen.1, |failed| failed.max(seen.1));
            if over.is_cancelled() {
                return Ok(());
            }
            if now.saturating_duration_since(since) >= self.lane.lease_length() {
                self.take_over(&other, counter).await?;
            }
        }
        Ok(())
    }

    async fn take_over(&self, other: &DispatcherId, counter: i64) -> Result<(), queue::Error> {
        let recovered = self.lane.queue.take_over(other, counter).await?;
        tracing::warn!(target: events::DATABASE, queue = %self.lane.name(), dispatcher = other,
            released = recovered.released, unknown = recovered.unknown.len(),
            "took over from a dispatcher that shows no signs of life");
        recovered.unknown.into_iter().for_each(|claim| self.settle_unknown(claim, Timestamp::now()));
        Ok(())
    }

    fn settle_unknown(&self, claim: Claim, now: Timestamp) {
        self.context.events.unknown(&claim, None);
        let verdict = retry::unknown(&self.context.live.get().settings.retry, claim.history().clone(), now, jitter());
        let fingerprint = claim.fingerprint();
        self.lane.settle(claim, fingerprint, None, verdict);
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Drops entries of the ledger that are older than `ledger_keep`, every hour. Runs until it is dropped.
pub async fn expire_ledger(ledger: Ledger, live: Arc<Live>) {
    let mut ticks = interval(EXPIRY);
    loop {
        ticks.tick().await;
        failpoint::hit("in-expire");
        if let Err(error) = ledger.expire(Timestamp::now(), live.get().settings.ledger_keep).await {
            tracing::warn!(target: events::MAIL, %error, "old entries stay in the ledger");
        }
    }
}

/// Tries a relay that is down.
pub struct Probe {
    pub context: Arc<Context>,
    pub ledger: Ledger,
}

impl Probe {
    /// Takes the relay down if an earlier process left it in trouble: nothing is claimed before it has been tried.
    pub async fn at_start(&self) {
        let Self { context, .. } = self;
        if !context.outage.lasts() {
            return;
        }
        if !context.once {
            return context.take_relay_down("it was out of reach when mailqueue last ran; it is tried first");
        }
        match context.stop.run_until_cancelled(context.live.get().relay.probe()).await {
            Some(Ok(_)) => drop(context.outage.ends(Timestamp::now())),
            Some(Err(trouble)) => context.relay_failed(&trouble),
            None => {}
        }
    }

    /// Tries the relay at the times that the breaker says. Runs until it is dropped.
    pub async fn run(self) {
        let Self { context, ledger } = self;
        let mut view = context.breaker.watch();
        loop {
            failpoint::hit("in-probe");
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
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                changed = view.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            // Without the ledger no mail would come to its dot, and a connection would only trouble the smarthost.
            if let Err(error) = ledger.is_writable().await {
                context.ledger_failed(&error);
                continue;
            }
            // A smarthost that takes few connections would refuse one more.
            let _ = tokio::time::timeout(CLOSING, context.breaker.all_left()).await;
            let relay = context.live.get().relay.clone();
            let probed = relay.probe().await;
            if !Arc::ptr_eq(&relay, &context.live.get().relay) {
                // It has other settings now, and is up until they are found not to work.
                continue;
            }
            match probed {
                Ok(_) => context.relay_is_back(),
                Err(trouble) => context.relay_failed(&trouble),
            }
        }
    }
}
