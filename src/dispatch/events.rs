//! What happens to a mail, as log events and as counts: one event for each thing that happens, and no other at `info`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::Shared;
use super::counters::Counters;
use super::lane::{Job, Lane};
use super::news::Failures;
use super::pulse::Pulse;
use crate::mail::{Address, Mail, MailId};
use crate::outcome::{Attempt, Fate, Reason, RecipientOutcome, State};
use crate::queue::{self, Claim, Settled, Settlement};
use crate::telemetry::{FailedRow, Tally};

/// Events about one mail.
pub const MAIL: &str = "mailqueue::mail";
/// The relay's health.
pub const RELAY: &str = "mailqueue::relay";
/// Databases, and the dispatchers that share them.
pub const DATABASE: &str = "mailqueue::database";

/// Turns text in which addresses may stand into what a log may show of it.
pub type Redact = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// Counts that grow while a dispatcher runs. Reading them costs nothing.
#[derive(Debug, Default)]
pub struct Progress {
    claimed: AtomicU64,
    delivered: AtomicU64,
    deferred: AtomicU64,
    failed: AtomicU64,
    unreadable: AtomicU64,
    held: AtomicU64,
    relay_trouble: Mutex<Option<String>>,
    last_poll: Mutex<Option<Timestamp>>,
    last_accepted: Mutex<Option<Timestamp>>,
    /// Queues whose database is out of reach, with what was said of it last.
    databases: Mutex<HashMap<Arc<str>, String>>,
    /// Likewise of databases that do not take what became of mails.
    unsettled: Mutex<HashMap<Arc<str>, String>>,
    /// Counters and histograms for monitoring.
    pub counters: Counters,
    /// Signs of life of the loops.
    pub pulse: Pulse,
    /// Rows that newly failed or are unreadable.
    pub failures: Failures,
}

impl Progress {
    /// For the dispatcher after this one in the same process: counts go on, signs of life and trouble begin anew.
    pub fn handed_on(&self) -> Self {
        let Tally { claimed, delivered, deferred, failed, unreadable, held } = self.tally();
        Self {
            claimed: claimed.into(),
            delivered: delivered.into(),
            deferred: deferred.into(),
            failed: failed.into(),
            unreadable: unreadable.into(),
            held: held.into(),
            last_poll: self.last_poll().into(),
            last_accepted: self.last_accepted().into(),
            counters: self.counters.clone(),
            ..Self::default()
        }
    }

    pub fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            claimed: read(&self.claimed),
            delivered: read(&self.delivered),
            deferred: read(&self.deferred),
            failed: read(&self.failed),
            unreadable: read(&self.unreadable),
            held: read(&self.held),
        }
    }

    pub fn relay_trouble(&self) -> Option<String> {
        lock(&self.relay_trouble).clone()
    }

    pub fn last_poll(&self) -> Option<Timestamp> {
        *lock(&self.last_poll)
    }

    pub fn last_accepted(&self) -> Option<Timestamp> {
        *lock(&self.last_accepted)
    }

    /// What was said last of a database that is out of reach, or does not do what it should.
    pub fn database_trouble(&self, queue: &str) -> Option<String> {
        lock(&self.databases).get(queue).or(lock(&self.unsettled).get(queue)).cloned()
    }

    pub(super) fn expect_lane(&self, name: &Arc<str>) {
        self.counters.expect_queue(name);
        self.pulse.expect(name.clone());
    }

    pub(super) fn note_relay_trouble(&self, reason: &str) {
        *lock(&self.relay_trouble) = Some(reason.to_owned());
    }

    pub(super) fn clear_relay_trouble(&self) {
        *lock(&self.relay_trouble) = None;
    }

    pub(super) fn note_poll(&self, now: Timestamp) {
        *lock(&self.last_poll) = Some(now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub fn claimed(shared: &Shared, claim: &Claim) {
    shared.progress.claimed.fetch_add(1, Ordering::Relaxed);
    let id = claim.id();
    info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, attempt = claim.history().attempts + 1, "claimed");
}

/// Logs what the mail says otherwise than its row, at each attempt.
pub fn repaired(shared: &Shared, id: &MailId, mail: &Mail) {
    if mail.repairs.is_empty() || !tracing::enabled!(target: MAIL, tracing::Level::INFO) {
        return;
    }
    let texts: Vec<&str> = mail.repairs.iter().map(|repair| repair.text.as_str()).collect();
    let repairs = (shared.settings.redact)(&texts.join("; "));
    info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id = mail.message_id, repairs, "repaired");
}

pub fn claim_lost(id: &MailId) {
    warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, "claim lost to another dispatcher; not sent");
}

/// A row that was being sent when its dispatcher died.
pub fn unknown(claim: &Claim, message_id: Option<&str>) {
    let id = claim.id();
    warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, reason = %Reason::OutcomeUnknown,
        "unknown: the dispatcher died while it was being sent");
}

/// What one attempt came to: an event for those accepted, one for each refusal or deferral, one for an unknown outcome.
pub fn attempted(shared: &Shared, job: &Job, attempt: &Attempt, took: Duration) {
    let id = job.id();
    shared.progress.counters.attempted(&id.queue, attempt, took);
    let message_id = job.mail.message_id.as_str();
    let number = job.history.attempts + 1;
    let duration_ms = took.as_millis() as u64;
    let redact = |text: &str| (shared.settings.redact)(text);
    let mut accepted: Vec<&Address> = Vec::new();
    let mut reply = None;
    for (address, outcome) in &attempt.outcomes {
        let recipient = || redact(address.as_ref());
        match outcome {
            RecipientOutcome::Accepted(said) => {
                accepted.push(address);
                reply = Some(said);
            }
            RecipientOutcome::Refused(trouble) => {
                info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipient = recipient(),
                    reply = redact(&trouble.to_string()), attempt = number, duration_ms, "recipient refused");
            }
            RecipientOutcome::Deferred(trouble) => {
                info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipient = recipient(),
                    reply = redact(&trouble.to_string()), attempt = number, duration_ms, "recipient deferred");
            }
            RecipientOutcome::Unknown(trouble) => {
                warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipient = recipient(),
                    reply = redact(&trouble.to_string()), attempt = number, duration_ms, reason = %Reason::OutcomeUnknown,
                    "unknown: the link broke before the final dot was answered");
            }
            RecipientOutcome::Untried => {}
        }
    }
    if let Some(reply) = reply {
        *lock(&shared.progress.last_accepted) = Some(Timestamp::now());
        let recipients = || accepted.iter().map(|address| redact(address.as_ref())).collect::<Vec<_>>().join(" ");
        info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipients = recipients(),
            reply = redact(&reply.to_string()), attempt = number, duration_ms, "recipient accepted");
    }
}

/// What an event about a settled row says; taken before the queue consumes the settlement.
pub struct Story {
    id: MailId,
    message_id: Option<String>,
    fate: Fate,
    attempts: u32,
    reply: Option<String>,
}

pub fn story(shared: &Shared, settlement: &Settlement) -> Story {
    let reply = match settlement.verdict.fate {
        // The event of the acceptance has said it.
        Fate::Delivered => None,
        _ => settlement.verdict.last_reply.as_deref(),
    };
    Story {
        id: settlement.claim.id().clone(),
        message_id: settlement.message_id.clone(),
        fate: settlement.verdict.fate.clone(),
        attempts: settlement.verdict.history.attempts,
        reply: reply.map(|reply| (shared.settings.redact)(reply)),
    }
}

/// The row has come to where its verdict wanted it, or has not.
pub fn settled(shared: &Shared, story: Story, settled: &Settled) {
    let Story { id, message_id, fate, attempts, reply } = story;
    let (queue, mid) = (&*id.queue, id.mid);
    match settled {
        Settled::Done => {}
        Settled::RowGone => {
            warn!(target: MAIL, queue, mid, %id, message_id, "the row was changed or deleted by somebody else meanwhile");
        }
        Settled::ClaimLost => return claim_lost(&id),
    }
    let progress = &shared.progress;
    progress.counters.settled(queue, &fate);
    let count = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
    match fate {
        Fate::Delivered => {
            count(&progress.delivered);
            info!(target: MAIL, queue, mid, %id, message_id, "deleted");
        }
        Fate::Deferred { reason, next_attempt } => {
            count(&progress.deferred);
            info!(target: MAIL, queue, mid, %id, message_id, %reason, reply, attempts, %next_attempt, "deferred");
        }
        Fate::Failed { reason } => {
            count(&progress.failed);
            warn!(target: MAIL, queue, mid, %id, message_id, %reason, reply, attempts, "failed");
            progress.failures.add(FailedRow { id, state: State::Failed, reason, detail: reply });
        }
        Fate::Held { reason } => {
            count(&progress.held);
            warn!(target: MAIL, queue, mid, %id, message_id, %reason, reply, attempts, state = %State::Held, "held");
        }
        Fate::Unreadable { reason, .. } => {
            count(&progress.unreadable);
            warn!(target: MAIL, queue, mid, %id, %reason, detail = reply, "unreadable");
            progress.failures.add(FailedRow { id, state: State::Unreadable, reason, detail: reply });
        }
        Fate::Released => debug!(target: MAIL, queue, mid, %id, "released"),
    }
}

/// A database does not do what it should. Said once, until it changes its words or is well again.
pub fn database(shared: &Shared, lane: &Lane, error: &queue::Error) {
    let what = error.to_string();
    let before = lock(&shared.progress.databases).insert(lane.name().clone(), what.clone());
    if before.as_deref() != Some(&what) {
        warn!(target: DATABASE, queue = %lane.name(), error = what, "nothing of this queue is sent; trying again");
    }
}

/// What became of mails does not get into the database; others may well be sent meanwhile. Said as [`database`] is.
pub fn unsettled(shared: &Shared, lane: &Lane, rows: usize, error: &queue::Error) {
    let what = error.to_string();
    let before = lock(&shared.progress.unsettled).insert(lane.name().clone(), what.clone());
    if before.as_deref() != Some(&what) {
        warn!(target: DATABASE, queue = %lane.name(), rows, error = what,
            "what became of mails cannot be written to the database: their rows stay, the ledger remembers; trying again");
    }
}

pub fn settles_again(shared: &Shared, lane: &Lane) {
    if lock(&shared.progress.unsettled).remove(lane.name()).is_some() {
        info!(target: DATABASE, queue = %lane.name(), "what became of mails is in the database again");
    }
}

pub fn database_is_back(shared: &Shared, lane: &Lane) {
    if lock(&shared.progress.databases).remove(lane.name()).is_some() {
        info!(target: DATABASE, queue = %lane.name(), "the database is back");
    }
}
