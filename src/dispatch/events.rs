//! Log events about mails, the relay and databases, with the counts that go with them. Each thing that happens has one
//! event, and nothing else is logged at `info`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::lane::{Job, Lane};
use super::progress::{Progress, Work};
use crate::mail::{Address, Mail, MailId};
use crate::outcome::{Attempt, Fate, Reason, RecipientOutcome, State};
use crate::queue::{self, Claim, Settled, Settlement};
use crate::telemetry::FailedRow;

/// Events about one mail.
pub const MAIL: &str = "mailqueue::mail";
/// The relay's state.
pub const RELAY: &str = "mailqueue::relay";
/// Databases, and the dispatchers that share them.
pub const DATABASE: &str = "mailqueue::database";

/// Turns text in which addresses may stand into the form in which a log may show it.
pub type Redact = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// Logs events and counts them. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    pub progress: Arc<Progress>,
    redact: Redact,
}

/// The content of the event about a settled row; taken before the queue consumes the settlement.
pub struct Story {
    id: MailId,
    message_id: Option<String>,
    fate: Fate,
    attempts: u32,
    reply: Option<String>,
}

impl Events {
    pub fn new(progress: Arc<Progress>, redact: Redact) -> Self {
        Self { progress, redact }
    }

    /// Returns the text as the log may show it.
    pub fn redact(&self, text: &str) -> String {
        (self.redact)(text)
    }

    pub fn claimed(&self, claim: &Claim) {
        self.progress.note_claimed();
        let id = claim.id();
        info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, attempt = claim.history().attempts + 1, "claimed");
    }

    /// Logs the differences between the mail and its row, at each attempt.
    pub fn repaired(&self, id: &MailId, mail: &Mail) {
        if mail.repairs.is_empty() || !tracing::enabled!(target: MAIL, tracing::Level::INFO) {
            return;
        }
        let texts: Vec<&str> = mail.repairs.iter().map(|repair| repair.text.as_str()).collect();
        let repairs = self.redact(&texts.join("; "));
        info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id = mail.message_id, repairs, "repaired");
    }

    pub fn claim_lost(&self, id: &MailId) {
        warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, "claim lost to another dispatcher; not sent");
    }

    /// A row that was being sent when its dispatcher died.
    pub fn unknown(&self, claim: &Claim, message_id: Option<&str>) {
        let id = claim.id();
        warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, reason = %Reason::OutcomeUnknown,
            "unknown: the dispatcher died while it was being sent");
    }

    /// Logs the result of one attempt: an event for all accepted recipients, and one for each recipient that was refused,
    /// deferred, or has an unknown outcome.
    pub fn attempted(&self, job: &Job, attempt: &Attempt, took: Duration) {
        let id = job.id();
        self.progress.counters.attempted(&id.queue, attempt, took);
        self.progress.note_attempt(&id.queue, Instant::now());
        let message_id = job.mail().message_id.as_str();
        let number = job.prepared.history.attempts + 1;
        let duration_ms = took.as_millis() as u64;
        let mut accepted: Vec<&Address> = Vec::new();
        let mut reply = None;
        for (address, outcome) in &attempt.outcomes {
            let recipient = || self.redact(address.as_ref());
            match outcome {
                RecipientOutcome::Accepted(said) => {
                    accepted.push(address);
                    reply = Some(said);
                }
                RecipientOutcome::Refused(trouble) => {
                    info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipient = recipient(),
                        reply = self.redact(&trouble.to_string()), attempt = number, duration_ms, "recipient refused");
                }
                RecipientOutcome::Deferred(trouble) => {
                    info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipient = recipient(),
                        reply = self.redact(&trouble.to_string()), attempt = number, duration_ms, "recipient deferred");
                }
                RecipientOutcome::Unknown(trouble) => {
                    warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipient = recipient(),
                        reply = self.redact(&trouble.to_string()), attempt = number, duration_ms,
                        reason = %Reason::OutcomeUnknown,
                        "unknown: the link broke before the final dot was answered");
                }
                RecipientOutcome::Untried => {}
            }
        }
        if let Some(reply) = reply {
            self.progress.note_accepted(Timestamp::now());
            let recipients =
                || accepted.iter().map(|address| self.redact(address.as_ref())).collect::<Vec<_>>().join(" ");
            info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, recipients = recipients(),
                reply = self.redact(&reply.to_string()), attempt = number, duration_ms, "recipient accepted");
        }
    }

    pub fn story(&self, settlement: &Settlement) -> Story {
        let reply = match settlement.verdict.fate {
            // The event of the acceptance has it.
            Fate::Delivered => None,
            _ => settlement.verdict.last_reply.as_deref(),
        };
        Story {
            id: settlement.claim.id().clone(),
            message_id: settlement.message_id.clone(),
            fate: settlement.verdict.fate.clone(),
            attempts: settlement.verdict.history.attempts,
            reply: reply.map(|reply| self.redact(reply)),
        }
    }

    /// The row has come to the state that its verdict wanted, or has not.
    pub fn settled(&self, story: Story, settled: &Settled) {
        let Story { id, message_id, fate, attempts, reply } = story;
        let (queue, mid) = (&*id.queue, id.mid);
        match settled {
            Settled::Done => {}
            Settled::RowGone => self.row_gone(&id, message_id.as_deref()),
            Settled::ClaimLost => return self.claim_lost(&id),
            // It is tried again, and `rows_locked` names it.
            Settled::Locked { .. } => return,
            Settled::NotDeleted { detail, next_attempt } => {
                return self.not_deleted(&id, message_id.as_deref(), detail, *next_attempt);
            }
        }
        self.progress.note_settled(queue, &fate);
        match fate {
            Fate::Delivered => info!(target: MAIL, queue, mid, %id, message_id, "deleted"),
            Fate::Deferred { reason, next_attempt } => {
                info!(target: MAIL, queue, mid, %id, message_id, %reason, reply, attempts, %next_attempt, "deferred");
            }
            Fate::Failed { reason } => {
                warn!(target: MAIL, queue, mid, %id, message_id, %reason, reply, attempts, "failed");
                self.progress.note_failure(FailedRow { id, state: State::Failed, reason, detail: reply });
            }
            Fate::Held { reason } => {
                warn!(target: MAIL, queue, mid, %id, message_id, %reason, reply, attempts, state = %State::Held, "held");
            }
            Fate::Unreadable { reason, .. } => {
                warn!(target: MAIL, queue, mid, %id, %reason, detail = reply, "unreadable");
                self.progress.note_failure(FailedRow { id, state: State::Unreadable, reason, detail: reply });
            }
            Fate::Released => debug!(target: MAIL, queue, mid, %id, "released"),
        }
    }

    /// A row was delivered, and the database does not delete it.
    pub fn not_deleted(&self, id: &MailId, message_id: Option<&str>, detail: &str, next_attempt: Timestamp) {
        self.progress.note_not_deleted(&id.queue);
        let detail = self.redact(detail);
        warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id, reason = %Reason::NotDeleted,
            detail,
            %next_attempt, state = %State::Held, "held");
        let detail = Some(detail);
        self.progress.note_failure(FailedRow {
            id: id.clone(),
            state: State::Held,
            reason: Reason::NotDeleted,
            detail,
        });
    }

    /// The DELETE of a row that is held as `not-deleted` was tried again. Its row is counted where that is the work of a
    /// single pass; a daemon has counted it at the first refusal.
    pub fn deleted_again(&self, id: &MailId, settled: &Settled, is_single_pass: bool) {
        match settled {
            Settled::Done | Settled::ClaimLost => {
                self.progress.note_settled(&id.queue, &Fate::Delivered);
                info!(target: MAIL, queue = %id.queue, mid = id.mid, %id, "deleted");
            }
            Settled::RowGone => self.row_gone(id, None),
            Settled::Locked { detail } => {
                debug!(target: MAIL, queue = %id.queue, mid = id.mid, %id, detail, "locked by another session");
            }
            // The event of the first refusal has said it.
            Settled::NotDeleted { detail, next_attempt } => {
                if is_single_pass {
                    self.progress.note_not_deleted(&id.queue);
                }
                debug!(target: MAIL, queue = %id.queue, mid = id.mid, %id, detail = self.redact(detail), %next_attempt,
                    "not deleted again");
            }
        }
    }

    fn row_gone(&self, id: &MailId, message_id: Option<&str>) {
        warn!(target: MAIL, queue = %id.queue, mid = id.mid, %id, message_id,
            "the row was changed or deleted by somebody else meanwhile");
    }

    /// A database does not do its work. Logged once, until its words change or it works again.
    pub fn database_failed(&self, lane: &Lane, work: Work, error: &queue::Error) {
        let (queue, error) = (lane.name(), error.to_string());
        if !self.progress.note_database(lane.index, queue, work, &error) {
            return;
        }
        match work {
            Work::Fetching => warn!(target: DATABASE, %queue, error, "nothing of this queue is sent; trying again"),
            Work::Heartbeat => warn!(target: DATABASE, %queue, error,
                "the lease of this queue cannot be renewed: without it nothing of this queue is sent; trying again"),
            Work::Settling | Work::Locked => warn!(target: DATABASE, %queue, error,
                "what became of mails cannot be written to the database: their rows stay, the ledger remembers; trying again"),
        }
    }

    /// Rows that are done with are locked by another session; `first` is one of them. Logged once, until it is another.
    pub fn rows_locked(&self, lane: &Lane, first: &MailId) {
        let error = format!("row {first} is locked by another session, which may have locked more");
        if self.progress.note_database(lane.index, lane.name(), Work::Locked, &error) {
            warn!(target: DATABASE, queue = %lane.name(), error, "what became of mails cannot be written to locked rows: they \
                stay, the ledger remembers, other rows go on; trying again; end that session's transaction");
        }
    }

    pub fn database_works(&self, lane: &Lane, work: Work) {
        let queue = lane.name();
        if !self.progress.clear_database(lane.index, work) {
            return;
        }
        match work {
            Work::Fetching | Work::Heartbeat => info!(target: DATABASE, %queue, "the database is back"),
            Work::Settling | Work::Locked => {
                info!(target: DATABASE, %queue, "what became of mails is in the database again");
            }
        }
    }
}
