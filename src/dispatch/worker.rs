//! One connection's work: takes the next mail, offers it, passes the outcome on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::Opened;
use super::lane::{Done, Finished, Job};
use super::streak::policy_refusal;
use super::witness::{Stopped, Witness};
use super::{Shared, events, jitter};
use crate::ledger;
use crate::outcome::{Attempt, Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};
use crate::queue::Settlement;
use crate::relay::{Offer, Worker};
use crate::retry;

/// A connection that had nothing to do for so long is closed politely; smarthosts dislike idlers.
const IDLE: Duration = Duration::from_secs(30);

/// So long without a further mail, and refusals that might be a streak are none.
const STREAK_PATIENCE: Duration = Duration::from_millis(500);

/// Works until `over`; mails that are still ready then have been taken back by their feeders.
pub async fn run(shared: Arc<Shared>, connection: usize, over: CancellationToken) {
    let mut worker = shared.relay.worker();
    let mut ahead = None;
    loop {
        let job = match ahead.take() {
            Some(job) => job,
            None => match over.run_until_cancelled(next_job(&shared, connection, &mut worker)).await {
                Some(job) => job,
                None => break,
            },
        };
        if !may_go(&job) {
            job.release();
            continue;
        }
        match shared.stop.run_until_cancelled(worker.ready()).await {
            // Connecting can take minutes, and operators are obeyed within a second.
            Some(Ok(())) if !may_go(&job) || !shared.health.is_up() => job.release(),
            Some(Ok(())) => ahead = offer(&shared, connection, &mut worker, job).await,
            Some(Err(trouble)) => {
                shared.progress.meter.try_failed(&trouble);
                relay_trouble(&shared, &with_remedy(&trouble));
                job.release();
            }
            None => job.release(),
        }
    }
    worker.quit().await;
}

fn may_go(job: &Job) -> bool {
    !job.lane.is_paused() && job.lane.dot_allowed(job.confirmed, Instant::now())
}

async fn next_job(shared: &Shared, connection: usize, worker: &mut Worker) -> Job {
    let idle_since = Instant::now();
    let mut open = true;
    // Outlives a wait that is given up, or a low rate would never let anything through.
    let mut token = None;
    loop {
        // The mail comes last: where the wait is given up, none is in nobody's hands.
        let admitted = async {
            shared.health.admitted(connection).await;
            shared.ready.arrival().await;
            tokio::time::sleep_until(*token.get_or_insert_with(|| shared.bucket.reserve(Instant::now()))).await;
            shared.ready.next().await
        };
        let patience = if shared.streak.is_empty() { IDLE } else { STREAK_PATIENCE };
        if let Ok(job) = tokio::time::timeout(patience, admitted).await {
            return job;
        }
        shared.streak.flush(shared);
        if open && idle_since.elapsed() >= IDLE {
            worker.quit().await;
            open = false;
        }
    }
}

/// The next mail, if it can follow at once: its commands then travel with the content of the one before.
fn job_ahead(shared: &Shared, connection: usize) -> Option<Job> {
    let may = !shared.stop.is_cancelled() && shared.health.admits(connection);
    if may && !shared.ready.is_empty() && shared.bucket.try_take() { shared.ready.try_next() } else { None }
}

/// Offers a mail, and answers the next one where its commands are on their way already.
async fn offer(shared: &Shared, connection: usize, worker: &mut Worker, job: Job) -> Option<Job> {
    let begun = Instant::now();
    let ahead = job_ahead(shared, connection);
    let mut witness = Witness::new(shared, &job);
    let attempt = worker.send_ahead(offered(&job), ahead.as_ref().map(offered), &mut witness).await;
    let (notes, stopped) = witness.into_notes();
    if ahead.is_none() {
        // Else it goes on file with the next mail's transaction, which cannot come to its dot without.
        // Who depends on it asks again: the next dot, and the settler.
        let _ = shared.ledger.flush();
    }
    events::attempted(shared, &job, &attempt, begun.elapsed());
    judge_relay(shared, &attempt, stopped.as_ref());
    shared.streak.take(shared, Finished { job, attempt, notes });
    // Trouble of the relay keeps the next mail from its turn too.
    match ahead {
        Some(job) if !shared.health.admits(connection) => {
            job.release();
            None
        }
        ahead => ahead,
    }
}

fn offered(job: &Job) -> Offer<'_> {
    Offer { mail: &job.mail, recipients: &job.recipients }
}

/// What an attempt says of the relay.
fn judge_relay(shared: &Shared, attempt: &Attempt, stopped: Option<&Stopped>) {
    let blameless =
        |outcome: &RecipientOutcome| matches!(outcome, RecipientOutcome::Untried | RecipientOutcome::Accepted(_));
    let all_blameless = attempt.outcomes.iter().all(|(_, outcome)| blameless(outcome));
    if let Some(Stopped::Ledger(error)) = stopped {
        return ledger_trouble(shared, error);
    }
    match &attempt.relay {
        // Our own heartbeat is overdue: the smarthost has no part in that.
        Some(_) if stopped.is_some() && all_blameless => {}
        Some(trouble) if all_blameless => relay_trouble(shared, &with_remedy(trouble)),
        Some(_) => throttled(shared),
        None if asks_for_less(attempt) => throttled(shared),
        None if was_answered(attempt) && policy_refusal(attempt).is_none() => shared.health.clean(),
        None => {}
    }
}

/// The pace is too high for the smarthost: a 4yz reply that concerns neither mail nor recipient, or speaks of policy or
/// of a system that is full.
fn asks_for_less(attempt: &Attempt) -> bool {
    attempt.outcomes.iter().any(|(_, outcome)| match outcome {
        RecipientOutcome::Deferred(Trouble {
            scope,
            cause: Cause::Reply(Reply { code: 421..=454, enhanced, .. }),
            ..
        }) => *scope == Scope::Relay || matches!(enhanced, Some((4, 7, _) | (4, 3, 1 | 2))),
        _ => false,
    })
}

/// The smarthost had an answer to everything: no connection broke and none fell silent.
fn was_answered(attempt: &Attempt) -> bool {
    attempt.outcomes.iter().all(|(_, outcome)| match outcome {
        RecipientOutcome::Accepted(_) => true,
        RecipientOutcome::Deferred(trouble) | RecipientOutcome::Refused(trouble) => {
            matches!(trouble.cause, Cause::Reply(_) | Cause::Local(..))
        }
        RecipientOutcome::Unknown(_) | RecipientOutcome::Untried => false,
    })
}

fn throttled(shared: &Shared) {
    if let Some(cap) = shared.health.throttled(Instant::now()) {
        tracing::info!(target: events::RELAY, connections = cap, "the smarthost throttles: fewer connections");
    }
}

/// The smarthost's words, with what an operator can do where they do not say it.
pub fn with_remedy(trouble: &Trouble) -> String {
    match (&trouble.cause, trouble.stage) {
        (Cause::Reply(Reply { code: 535, .. }), _) => {
            format!("{trouble}: the login was refused; relay.username or the file in relay.password_file is wrong")
        }
        (Cause::Reply(Reply { code: 530, .. }), stage) if stage >= Stage::Mail => {
            format!(
                "{trouble}: the smarthost wants a login; set relay.username and relay.password_file, or look at relay.tls"
            )
        }
        (Cause::Timeout, Stage::Greeting) => {
            format!("{trouble}: it may wait for TLS, as on port 465, which wants relay.tls = \"implicit\"")
        }
        _ => trouble.to_string(),
    }
}

/// Pauses the relay, or ends the pass.
pub fn relay_trouble(shared: &Shared, reason: &str) {
    pause(shared, reason, "relay paused", "relay in trouble: the pass ends here");
}

/// Likewise, because of our own disk: nothing is sent that cannot be written down.
pub fn ledger_trouble(shared: &Shared, error: &ledger::Error) {
    let reason =
        format!("{error}: make room on its disk, or mend its rights; until then nothing is sent, and nothing is lost");
    pause(shared, &reason, "sending paused", "the ledger cannot be written: the pass ends here");
}

fn pause(shared: &Shared, reason: &str, paused: &str, ended: &str) {
    if let Opened::Now(pause) = shared.health.trouble(reason, Instant::now(), jitter()) {
        shared.outage.begins(Timestamp::now());
        shared.progress.note_relay_trouble(reason);
        // Nothing more comes that could make a streak longer.
        shared.streak.flush(shared);
        let reason = (shared.settings.redact)(reason);
        if shared.once {
            tracing::warn!(target: events::RELAY, reason = reason.as_str(), "{ended}");
        } else {
            tracing::warn!(target: events::RELAY, reason = reason.as_str(), seconds = pause.as_secs(), "{paused}");
        }
    }
}

/// Decides what becomes of the row and hands it to the settler.
pub fn conclude(shared: &Shared, finished: Finished) {
    let Finished { job, attempt, mut notes } = finished;
    let verdict = retry::decide(&shared.settings.retry, &job.history, &attempt, Timestamp::now(), jitter());
    let Job { lane, claim, fingerprint, mail, memory, .. } = job;
    notes.memory = Some(memory);
    let message_id = Some(mail.message_id.clone());
    let settlement = Settlement { claim, fingerprint: Some(fingerprint), message_id, verdict };
    lane.settle(Done { settlement, notes });
}
