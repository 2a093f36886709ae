//! Stands between the relay and the promises: no final dot without a note in the ledger and a lease that lasts.

use jiff::Timestamp;
use tokio::time::Instant;

use super::Shared;
use super::lane::{Job, Notes};
use crate::failpoint;
use crate::ledger::{self, EntryId, Transmission};
use crate::mail::Address;
use crate::outcome::{Cause, Reason, RecipientState, Reply, Scope, Stage, Trouble};
use crate::relay;

/// Watches over the transactions of one mail.
pub struct FinalDotGuard<'a> {
    shared: &'a Shared,
    job: &'a Job,
    notes: Notes,
    current: Option<(EntryId, usize)>,
    /// Recipients that need no further attempt.
    accepted: usize,
    stopped: Option<Stopped>,
}

/// Why a dot was stopped: neither mail nor smarthost is to blame.
#[derive(Debug)]
pub enum Stopped {
    /// Our heartbeat is: the claim may be somebody else's soon.
    Overdue,
    /// It cannot be written.
    Ledger(ledger::Error),
}

impl<'a> FinalDotGuard<'a> {
    pub fn new(shared: &'a Shared, job: &'a Job) -> Self {
        let known = job.history.in_states(&[RecipientState::Accepted]);
        let recipients = job.mail.envelope.recipients.iter();
        let accepted = recipients.filter(|address| known.contains(AsRef::<str>::as_ref(address))).count();
        Self { shared, job, notes: Notes::default(), current: None, accepted, stopped: None }
    }

    /// What was noted, and whether and why a dot was stopped.
    pub fn into_notes(mut self) -> (Notes, Option<Stopped>) {
        // A transaction that was cut off between the two calls: nobody knows.
        self.notes.other.extend(self.current.take().map(|(entry, _)| entry));
        (self.notes, self.stopped)
    }
}

fn stop(why: String) -> Trouble {
    Trouble { stage: Stage::FinalDot, scope: Scope::Relay, cause: Cause::Local(Reason::RelayUnavailable, why) }
}

impl relay::TransactionHook for FinalDotGuard<'_> {
    async fn before_final_dot(&mut self, recipients: &[Address]) -> Result<(), Trouble> {
        let job = self.job;
        let everybody = job.mail.envelope.recipients.len();
        let complete = job.mail.invalid.is_empty() && self.accepted + recipients.len() == everybody;
        let transmission = Transmission {
            id: job.id().clone(),
            record: *job.claim.record(),
            fingerprint: job.fingerprint,
            message_id: job.mail.message_id.clone(),
            recipients: recipients.iter().map(Address::to_string).collect(),
            complete,
            repairs: job.mail.repair_labels(),
            begun: Timestamp::now(),
        };
        match self.shared.ledger.transmitting(transmission).await {
            Ok(entry) => self.current = Some((entry, recipients.len())),
            Err(error) => {
                let why = error.to_string();
                self.stopped = Some(Stopped::Ledger(error));
                return Err(stop(why));
            }
        }
        // Last of all, and after everything that can take time: the process may have been stopped for an hour.
        if !job.lane.dot_allowed(job.confirmed, Instant::now()) {
            self.stopped = Some(Stopped::Overdue);
            if let Some((entry, _)) = self.current.take() {
                self.shared.ledger.refused(entry);
            }
            return Err(stop("our heartbeat could not be written for too long".to_owned()));
        }
        failpoint::hit("before-dot");
        Ok(())
    }

    async fn after_final_dot(&mut self, answer: Result<&Reply, &Trouble>) {
        let Some((entry, recipients)) = self.current.take() else { return };
        self.shared.progress.counters.dot(answer.err());
        match answer {
            Ok(reply) => {
                failpoint::hit("after-250");
                self.shared.ledger.accepted(entry, reply.to_string(), Timestamp::now());
                self.notes.accepted.push(entry);
                self.accepted += recipients;
            }
            Err(Trouble { cause: Cause::Reply(_), .. }) => self.shared.ledger.refused(entry),
            Err(_) => self.notes.other.push(entry),
        }
    }
}
