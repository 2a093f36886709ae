//! One connection's work: takes the next mail, offers it, passes the outcome on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connections::Learned;
use super::fetcher::{give_back, is_open};
use super::final_dot::{FinalDotGuard, Stopped};
use super::health::Opened;
use super::lane::{Done, Finished, Job};
use super::refusal_streak::{PATIENCE, refusal};
use super::{Shared, events, jitter, prepare};
use crate::ledger;
use crate::outcome::{Attempt, Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};
use crate::queue::Settlement;
use crate::relay::{Offer, Worker};
use crate::retry;

/// A connection that had nothing to do for so long is closed politely; smarthosts dislike idlers.
const IDLE: Duration = Duration::from_secs(30);

/// A mail is made again this many times for a smarthost whose connections announce different extensions.
const REMAKES: usize = 3;

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
            shared.refusals.release(&shared, job);
            continue;
        }
        shared.health.connecting(connection);
        match shared.stop.run_until_cancelled(worker.ready()).await {
            Some(Ok(())) => {
                connected(&shared, connection);
                // Connecting can take minutes, and operators are obeyed within a second.
                if may_go(&job) && shared.health.is_up() {
                    ahead = offer(&shared, connection, &mut worker, job).await;
                } else {
                    shared.refusals.release(&shared, job);
                }
            }
            Some(Err(trouble)) => {
                shared.progress.counters.try_failed(&trouble);
                not_let_in(&shared, connection, &trouble);
                put_back(&shared, job);
            }
            None => {
                shared.health.left(connection);
                shared.refusals.release(&shared, job);
            }
        }
    }
    worker.quit().await;
    shared.health.left(connection);
}

fn may_go(job: &Job) -> bool {
    !job.lane.is_paused() && job.lane.dot_allowed(job.confirmed, Instant::now())
}

/// Waits for the worker's turn, and takes a mail.
async fn next_job(shared: &Shared, connection: usize, worker: &mut Worker) -> Job {
    let idle_since = Instant::now();
    loop {
        // Neither mail nor token is in hand while this waits, so that it can be given up at any moment.
        let turn = async {
            shared.health.admitted(connection).await;
            let _turn = shared.bucket.turn().await;
            shared.ready.wait_nonempty(|| shared.refusals.has_next(shared)).await;
            shared.bucket.available().await;
        };
        let patience = if shared.refusals.is_idle() { IDLE } else { PATIENCE };
        tokio::select! {
            () = turn => {
                if let Some(job) = take(shared, connection) {
                    return job;
                }
            }
            // A probe must not be refused because of connections that are idle.
            () = shared.health.down(), if worker.is_connected() => close(shared, connection, worker).await,
            () = tokio::time::sleep(patience) => {}
        }
        shared.refusals.flush_ripe(shared);
        if worker.is_connected() && idle_since.elapsed() >= IDLE {
            close(shared, connection, worker).await;
        }
    }
}

async fn close(shared: &Shared, connection: usize, worker: &mut Worker) {
    worker.quit().await;
    shared.health.left(connection);
}

/// The next mail with a token for it, where there are both and this worker may have them.
fn take(shared: &Shared, connection: usize) -> Option<Job> {
    let now = Instant::now();
    let may = !shared.stop.is_cancelled() && shared.health.admits(connection, now);
    may.then(|| shared.bucket.take_for(now, || shared.refusals.next(shared, now))).flatten()
}

/// Offers a mail, and answers the next one where its commands are on their way already.
async fn offer(shared: &Shared, connection: usize, worker: &mut Worker, mut job: Job) -> Option<Job> {
    // The next mail, if it can follow at once: its commands then travel with the content of the one before.
    let ahead = take(shared, connection);
    let mut remakes = 0;
    loop {
        let begun = Instant::now();
        let mut guard = FinalDotGuard::new(shared, &job);
        let attempt = worker.send_ahead(offered(&job), ahead.as_ref().map(offered), &mut guard).await;
        let (notes, stopped) = guard.into_notes();
        if ahead.is_none() {
            // Else it goes on file with the next mail's transaction, which cannot come to its dot without.
            // Who depends on it asks again: the next dot, and the settler.
            let _ = shared.ledger.flush();
        }
        if !worker.is_connected() {
            shared.health.left(connection);
        }
        events::attempted(shared, &job, &attempt, begun.elapsed());
        match attempt.remake {
            Some(capabilities) if is_untried(&attempt) => {
                remakes += 1;
                if remakes > REMAKES {
                    shared.refusals.release(shared, job);
                    break;
                }
                let sender = job.mail.own_sender.clone();
                match prepare::remake(shared, job, capabilities).await {
                    Some(remade) => job = remade,
                    None => {
                        shared.refusals.came_back(shared, &sender);
                        break;
                    }
                }
            }
            _ => {
                conclude_attempt(shared, connection, Finished { job, attempt, begun, notes }, stopped.as_ref());
                break;
            }
        }
    }
    // Trouble of the relay or with its sender keeps the next mail from its turn too.
    match ahead {
        Some(job) if !shared.health.admits(connection, Instant::now()) || shared.refusals.is_paused(&job) => {
            put_back(shared, job);
            None
        }
        ahead => ahead,
    }
}

fn conclude_attempt(shared: &Shared, connection: usize, finished: Finished, stopped: Option<&Stopped>) {
    let attempt = &finished.attempt;
    let no_connection = attempt.relay.as_ref().filter(|trouble| trouble.stage < Stage::Mail && stopped.is_none());
    if let Some(trouble) = no_connection {
        not_let_in(shared, connection, trouble);
        if is_untried(attempt) {
            return put_back(shared, finished.job);
        }
    } else {
        judge_relay(shared, attempt, stopped);
    }
    shared.refusals.take(shared, finished);
}

fn offered(job: &Job) -> Offer<'_> {
    Offer { mail: &job.mail, recipients: &job.recipients }
}

/// Nothing became of the mail.
fn is_untried(attempt: &Attempt) -> bool {
    attempt.outcomes.iter().all(|(_, outcome)| matches!(outcome, RecipientOutcome::Untried))
}

/// Back to the ready mails, for another connection; or to the table, where none will come.
fn put_back(shared: &Shared, job: Job) {
    let lane = job.lane.clone();
    if !is_open(shared, &lane) {
        return shared.refusals.release(shared, job);
    }
    shared.refusals.put_back(shared, job);
    // What closed it meanwhile may have given back all that was ready before.
    if !is_open(shared, &lane) {
        give_back(shared, &lane);
    }
}

fn connected(shared: &Shared, connection: usize) {
    learned(shared.health.connected(connection, Instant::now()));
}

fn learned(learned: Learned) {
    match learned {
        Learned::Nothing => {}
        Learned::Limit(connections) => {
            tracing::info!(target: events::RELAY, connections,
                "the smarthost takes no more connections than these: the others wait; set relay.connections to this number");
        }
        Learned::More(connections) => {
            tracing::info!(target: events::RELAY, connections, "the smarthost takes more connections again");
        }
    }
}

/// No connection could be made. While another one works and this can be a limit, there are just fewer connections.
fn not_let_in(shared: &Shared, connection: usize, trouble: &Trouble) {
    if trouble.is_connection_limit() {
        if let Some(news) = shared.health.refused(connection, Instant::now()) {
            tracing::debug!(target: events::RELAY, reason = (shared.settings.redact)(&trouble.to_string()),
                "a connection was refused while others work");
            return learned(news);
        }
    } else {
        shared.health.left(connection);
    }
    relay_trouble(shared, &with_remedy(trouble));
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
        None if was_answered(attempt) && refusal(attempt).is_none() => shared.health.clean(),
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
    pause(shared, reason, "relay down", "relay in trouble: the pass ends here");
}

/// Likewise, because of our own disk: nothing is sent that cannot be written down.
pub fn ledger_trouble(shared: &Shared, error: &ledger::Error) {
    let reason =
        format!("{error}: make room on its disk, or mend its rights; until then nothing is sent, and nothing is lost");
    pause(shared, &reason, "sending suspended", "the ledger cannot be written: the pass ends here");
}

fn pause(shared: &Shared, reason: &str, paused: &str, ended: &str) {
    if let Opened::Now(pause) = shared.health.trouble(reason, Instant::now(), jitter()) {
        shared.outage.begins(Timestamp::now());
        shared.progress.note_relay_trouble(reason);
        // Nothing more comes that could make a streak longer.
        shared.refusals.flush(shared);
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
    let Finished { job, attempt, mut notes, .. } = finished;
    let verdict = retry::decide(&shared.settings.retry, &job.history, &attempt, Timestamp::now(), jitter());
    let Job { lane, claim, fingerprint, mail, memory, .. } = job;
    notes.memory = Some(memory);
    let message_id = Some(mail.message_id.clone());
    let settlement = Settlement { claim, fingerprint: Some(fingerprint), message_id, verdict };
    lane.settle(Done { settlement, notes });
}
