//! Keeps a lane's claims alive, obeys the operators' stop, takes over from dispatchers that show no signs of life, and
//! tries a relay that is down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::fetcher::{give_back, is_open};
use super::lane::{Done, Lane, Notes};
use super::pulse::Loop;
use super::sender::{ledger_trouble, relay_trouble, with_remedy};
use super::{Shared, events, jitter, outage};
use crate::queue::{self, DispatcherId, Settlement};
use crate::telemetry::RelayState;
use crate::{queue::Claim, retry};

/// How often the operators' stop is looked up: it must be obeyed within a second.
const LOOK: Duration = Duration::from_millis(600);

/// How often the database hears what time expiry must not count, or that it runs: of several dispatchers that see an
/// outage in part, each accounts for what it sees.
const ACCOUNT: Duration = Duration::from_secs(30);

/// Other dispatchers' counters, and since when each stands as it does by our own monotonic clock.
type Sightings = HashMap<DispatcherId, (i64, Instant)>;

/// Runs until it is dropped.
pub async fn run(shared: Arc<Shared>, lane: Arc<Lane>) {
    let beat_every = (shared.settings.lease / 30).max(Duration::from_millis(50));
    let mut beats = interval(beat_every);
    let mut looks = interval(LOOK);
    let mut accounts = interval(ACCOUNT);
    let mut health = shared.health.watch();
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    accounts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sightings = Sightings::new();
    loop {
        shared.progress.pulse.step(lane.name(), Loop::Keeper);
        // Databases that do not answer are the feeder's to report; here the next tick tries again.
        let result = tokio::select! {
            _ = beats.tick() => {
                let beaten = beat(&shared, &lane, &mut sightings).await;
                if beaten.is_err() {
                    // Nobody could write a heartbeat that we could have seen: everybody's lease begins anew.
                    sightings.clear();
                }
                beaten
            }
            _ = accounts.tick() => outage::account(&shared, &lane).await,
            _ = looks.tick() => look(&shared, &lane).await,
            _ = health.changed() => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(target: events::DATABASE, queue = %lane.name(), %error, "keeper");
        }
        if !is_open(&shared, &lane) {
            give_back(&shared, &lane);
            shared.refusals.flush(&shared);
        }
    }
}

async fn beat(shared: &Shared, lane: &Lane, sightings: &mut Sightings) -> Result<(), queue::Error> {
    let sent_off = Instant::now();
    lane.queue.beat().await?;
    lane.has_beaten(sent_off, Instant::now());

    let others = lane.queue.others().await?;
    let now = Instant::now();
    sightings.retain(|id, _| others.iter().any(|(other, _)| other == id));
    for (other, counter) in others {
        let seen = sightings.entry(other.clone()).or_insert((counter, now));
        if seen.0 != counter {
            *seen = (counter, now);
        } else if now - seen.1 >= shared.settings.lease {
            take_over(shared, lane, &other, counter).await?;
        }
    }
    Ok(())
}

async fn take_over(shared: &Shared, lane: &Lane, other: &DispatcherId, counter: i64) -> Result<(), queue::Error> {
    let now = Timestamp::now();
    let recovered = lane.queue.take_over(other, counter).await?;
    tracing::warn!(target: events::DATABASE, queue = %lane.name(), dispatcher = other, released = recovered.released,
        unknown = recovered.unknown.len(), "took over from a dispatcher that shows no signs of life");
    for claim in recovered.unknown {
        settle_unknown(shared, lane, claim, now);
    }
    Ok(())
}

fn settle_unknown(shared: &Shared, lane: &Lane, claim: Claim, now: Timestamp) {
    events::unknown(&claim, None);
    let verdict = retry::unknown(&shared.settings.retry, claim.history().clone(), now, jitter());
    let fingerprint = claim.fingerprint();
    let settlement = Settlement { claim, fingerprint, message_id: None, verdict };
    lane.settle(Done { settlement, notes: Notes::default() });
}

/// Looks the operators' stop up.
pub async fn look(shared: &Shared, lane: &Lane) -> Result<(), queue::Error> {
    let paused = lane.queue.paused().await?;
    if lane.set_paused(paused.queue) {
        let word = if paused.queue { "queue paused by an operator" } else { "queue resumed by an operator" };
        tracing::info!(target: events::DATABASE, queue = %lane.name(), "{word}");
        shared.poll.notify_waiters();
    }
    if shared.health.stop(lane.index, paused.relay) {
        let word = if paused.relay { "relay paused by an operator" } else { "relay resumed by an operator" };
        tracing::info!(target: events::RELAY, "{word}");
        shared.poll.notify_waiters();
    }
    Ok(())
}

/// Drops what the ledger need not remember any more. Runs until it is dropped.
pub async fn expire(shared: Arc<Shared>) {
    let mut hourly = interval(Duration::from_secs(3600));
    loop {
        hourly.tick().await;
        if let Err(error) = shared.ledger.expire(Timestamp::now(), shared.settings.ledger_keep).await {
            tracing::warn!(target: events::MAIL, %error, "old entries stay in the ledger");
        }
    }
}

/// Connections are closed before a probe, which takes this long at most where a smarthost does not answer QUIT. A
/// connection with a mail under way may stay.
const CLOSING: Duration = Duration::from_secs(2);

/// Tries a relay that is down, at the times that its health says. Runs until it is dropped.
pub async fn probe(shared: Arc<Shared>) {
    let mut view = shared.health.watch();
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
        // Without it no mail would come to its dot, and the smarthost be troubled for nothing.
        if let Err(error) = shared.ledger.is_writable().await {
            ledger_trouble(&shared, &error);
            continue;
        }
        // A smarthost that takes few connections would refuse one more.
        let _ = tokio::time::timeout(CLOSING, shared.health.all_left()).await;
        match shared.relay.probe().await {
            Ok(_) => {
                let down = shared.outage.ends(Timestamp::now());
                shared.health.reachable(Instant::now());
                tracing::info!(target: events::RELAY, seconds = down.as_secs(), "relay up again");
                shared.progress.clear_relay_trouble();
                shared.poll.notify_waiters();
            }
            Err(trouble) => relay_trouble(&shared, &with_remedy(&trouble)),
        }
    }
}
