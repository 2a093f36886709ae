//! The moment that the promises rest on: no final dot without an entry in the ledger and a lease that lasts, and each reply
//! to a dot in the ledger before the next one.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::lane::Job;
use super::progress::Progress;
use crate::failpoint;
use crate::ledger::{self, Closing, EntryId, Ledger, Transmission};
use crate::mail::Address;
use crate::outcome::{Cause, Reason, Reply, Scope, Stage, Trouble};
use crate::relay::TransactionHook;

/// Guards the transactions of one mail: no final dot without an entry in the ledger and a lease that lasts.
pub struct FinalDotGuard<'a> {
    ledger: &'a Ledger,
    progress: &'a Progress,
    job: &'a Job,
    /// The time that the reply may take.
    final_dot: Duration,
    closing: Closing,
    /// The entry of the transaction under way, and the number of its recipients.
    current: Option<(EntryId, usize)>,
    /// The number of recipients that are accepted.
    accepted: usize,
    stopped: Option<Stopped>,
}

/// The reason for which a final dot was stopped: neither mail nor smarthost is to blame.
#[derive(Debug)]
pub enum Stopped {
    /// Our heartbeat is overdue: another dispatcher may take the claim over.
    Overdue,
    /// The ledger cannot be written.
    Ledger(ledger::Error),
}

impl<'a> FinalDotGuard<'a> {
    pub fn new(ledger: &'a Ledger, progress: &'a Progress, job: &'a Job, final_dot: Duration) -> Self {
        let accepted = job.prepared.history.accepted_of(&job.mail().envelope.recipients);
        Self { ledger, progress, job, final_dot, closing: Closing::default(), current: None, accepted, stopped: None }
    }

    /// Returns the entries that can be closed once the row is settled, and the reason for which a dot was stopped.
    pub fn end(mut self) -> (Closing, Option<Stopped>) {
        // A transaction that was cut off between the two calls has an unknown outcome.
        self.closing.other.extend(self.current.take().map(|(entry, _)| entry));
        (self.closing, self.stopped)
    }

    fn transmission(&self, recipients: &[Address]) -> Transmission {
        let (job, mail) = (self.job, self.job.mail());
        let complete = mail.invalid.is_empty() && self.accepted + recipients.len() == mail.envelope.recipients.len();
        Transmission {
            id: job.id().clone(),
            record: *job.prepared.claim.record(),
            fingerprint: job.prepared.fingerprint,
            message_id: mail.message_id.clone(),
            recipients: recipients.iter().map(Address::to_string).collect(),
            complete,
            repairs: mail.repair_labels(),
            begun: Timestamp::now(),
        }
    }
}

fn stop(why: String) -> Trouble {
    Trouble { stage: Stage::FinalDot, scope: Scope::Relay, cause: Cause::Local(Reason::RelayUnavailable, why) }
}

impl TransactionHook for FinalDotGuard<'_> {
    async fn before_final_dot(&mut self, recipients: &[Address]) -> Result<(), Trouble> {
        match self.ledger.transmitting(self.transmission(recipients)).await {
            Ok(entry) => self.current = Some((entry, recipients.len())),
            Err(error) => {
                let why = error.to_string();
                self.stopped = Some(Stopped::Ledger(error));
                return Err(stop(why));
            }
        }
        // Last of all, and after everything that can take time: the process may have been stopped for an hour.
        if !self.job.is_covered(self.final_dot, Instant::now()) {
            self.stopped = Some(Stopped::Overdue);
            if let Some((entry, _)) = self.current.take() {
                self.ledger.refused(entry);
            }
            return Err(stop("our heartbeat could not be written for too long".to_owned()));
        }
        failpoint::hit("before-dot");
        Ok(())
    }

    async fn after_final_dot(&mut self, answer: Result<&Reply, &Trouble>) {
        let Some((entry, recipients)) = self.current.take() else { return };
        self.progress.counters.dot(answer.err());
        match answer {
            Ok(reply) => {
                failpoint::hit("after-250");
                self.ledger.accepted(entry, reply.to_string(), Timestamp::now());
                self.closing.accepted.push(entry);
                self.accepted += recipients;
            }
            Err(Trouble { cause: Cause::Reply(_), .. }) => self.ledger.refused(entry),
            Err(_) => self.closing.other.push(entry),
        }
    }
}
