//! One connection's work: takes the next mail, offers it, passes the outcome on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::Opened;
use super::lane::{Done, Finished, Job};
use super::witness::Witness;
use super::{Shared, events, jitter};
use crate::outcome::{Attempt, Cause, RecipientOutcome, Reply, Scope, Trouble};
use crate::queue::Settlement;
use crate::relay::Worker;
use crate::retry;

/// A connection that had nothing to do for so long is closed politely; smarthosts dislike idlers.
const IDLE: Duration = Duration::from_secs(30);

/// So long without a further mail, and refusals that might be a streak are none.
const STREAK_PATIENCE: Duration = Duration::from_millis(500);

/// Works until `over`; mails that are still ready then have been taken back by their feeders.
pub async fn run(shared: Arc<Shared>, connection: usize, over: CancellationToken) {
    let mut worker = shared.relay.worker();
    loop {
        let next = async {
            shared.health.admitted(connection).await;
            next_job(&shared, &mut worker).await
        };
        let Some(job) = over.run_until_cancelled(next).await else { break };
        if job.lane.is_paused() || !job.lane.dot_allowed(Instant::now()) {
            job.release();
            continue;
        }
        shared.bucket.take().await;
        if let Err(trouble) = worker.ready().await {
            shared.progress.meter.try_failed(&trouble);
            relay_trouble(&shared, &trouble.to_string());
            job.release();
            continue;
        }
        offer(&shared, &mut worker, job).await;
    }
    worker.quit().await;
}

async fn next_job(shared: &Shared, worker: &mut Worker) -> Job {
    let idle_since = Instant::now();
    let mut open = true;
    loop {
        let patience = if shared.streak.is_empty() { IDLE } else { STREAK_PATIENCE };
        if let Ok(job) = tokio::time::timeout(patience, shared.ready.next()).await {
            return job;
        }
        shared.streak.flush(shared);
        if open && idle_since.elapsed() >= IDLE {
            worker.quit().await;
            open = false;
        }
    }
}

async fn offer(shared: &Shared, worker: &mut Worker, job: Job) {
    let begun = Instant::now();
    let mut witness = Witness::new(shared, &job);
    let attempt = worker.send(&job.mail, &job.recipients, &mut witness).await;
    let (notes, stopped) = witness.into_notes();
    events::attempted(shared, &job, &attempt, begun.elapsed());
    judge_relay(shared, &attempt, stopped);
    shared.streak.take(shared, Finished { job, attempt, notes });
}

/// What an attempt says of the relay.
fn judge_relay(shared: &Shared, attempt: &Attempt, stopped: bool) {
    let blameless =
        |outcome: &RecipientOutcome| matches!(outcome, RecipientOutcome::Untried | RecipientOutcome::Accepted(_));
    match &attempt.relay {
        Some(trouble) if attempt.outcomes.iter().all(|(_, outcome)| blameless(outcome)) => {
            if !stopped || matches!(&trouble.cause, Cause::Local(..)) {
                relay_trouble(shared, &trouble.to_string());
            }
        }
        Some(_) => throttled(shared),
        None if asks_for_less(attempt) => throttled(shared),
        None => shared.health.clean(),
    }
}

/// The pace is too high for the smarthost: a 4yz reply that concerns neither mail nor recipient.
fn asks_for_less(attempt: &Attempt) -> bool {
    attempt.outcomes.iter().any(|(_, outcome)| {
        matches!(
            outcome,
            RecipientOutcome::Deferred(Trouble {
                scope: Scope::Relay,
                cause: Cause::Reply(Reply { code: 421..=454, .. }),
                ..
            })
        )
    })
}

fn throttled(shared: &Shared) {
    if let Some(cap) = shared.health.throttled(Instant::now()) {
        tracing::info!(target: events::RELAY, connections = cap, "the smarthost throttles: fewer connections");
    }
}

/// Pauses the relay, or ends the pass.
pub fn relay_trouble(shared: &Shared, reason: &str) {
    if let Opened::Now(pause) = shared.health.trouble(reason, Instant::now(), jitter()) {
        shared.progress.note_relay_trouble(reason);
        let reason = (shared.settings.redact)(reason);
        if shared.once {
            tracing::warn!(target: events::RELAY, %reason, "relay in trouble: the pass ends here");
        } else {
            tracing::warn!(target: events::RELAY, %reason, seconds = pause.as_secs(), "relay paused");
        }
    }
}

/// Decides what becomes of the row and hands it to the settler.
pub fn conclude(shared: &Shared, finished: Finished) {
    let Finished { job, attempt, notes } = finished;
    let verdict = retry::decide(&shared.settings.retry, &job.history, &attempt, Timestamp::now(), jitter());
    let Job { lane, claim, fingerprint, mail, .. } = job;
    let message_id = Some(mail.message_id.clone());
    let settlement = Settlement { claim, fingerprint: Some(fingerprint), message_id, verdict };
    lane.settle(Done { settlement, notes });
}
