//! Recovery: settles what an earlier process left behind, before anything is sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::context::{Context, jitter};
use super::error::{PassError, StartError};
use super::events;
use super::lane::{Done, Lane};
use super::redeletion::Redeletion;
use crate::ledger::{Closing, Ledger, OpenEntry};
use crate::mail::RecordId;
use crate::outcome::{Fate, History, Reason, RecipientRecord, RecipientState, Verdict};
use crate::queue::{Claim, Settled, Settlement};
use crate::retry;

pub struct Recovery {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
    pub ledger: Ledger,
}

impl Recovery {
    /// Takes our own claims back and replays the ledger, at start and whenever the database comes back.
    pub async fn run(&self) -> Result<(), PassError> {
        let Self { lane, ledger, .. } = self;
        lane.renew_lease().await?;
        self.context.obey_operator(lane).await?;

        let now = Timestamp::now();
        let recovered = lane.queue.recover_own().await?;
        let mut entries: HashMap<RecordId, Vec<OpenEntry>> = HashMap::new();
        let records: HashSet<RecordId> = recovered.unknown.iter().map(|claim| *claim.record()).collect();
        for entry in ledger.open_entries_of(lane.name(), &records) {
            entries.entry(entry.transmission.record).or_default().push(entry);
        }
        // Where it has entries of these rows, the ledger is there, and the queue had another name.
        let has_entries = recovered.unknown.iter().any(|claim| entries.contains_key(claim.record()));
        if !recovered.unknown.is_empty() && !lane.was_recovered() && !has_entries && !ledger.knows(lane.name()).await? {
            return Err(PassError::Start(StartError::LedgerMissing {
                state_dir: self.context.live.get().settings.state_dir.clone(),
                queue: lane.name().clone(),
                rows: recovered.unknown.len(),
            }));
        }
        let (mut settlements, mut closings) = (Vec::new(), Vec::new());
        for claim in recovered.unknown {
            let entries = entries.remove(claim.record()).unwrap_or_default();
            let mut closing = Closing::default();
            entries.iter().for_each(|entry| close(&mut closing, entry));
            closings.push(closing);
            settlements.push(self.settlement(claim, entries, now));
        }
        let (mut closing, locked) = self.settle(settlements, closings).await?;
        for entry in entries.into_values().flatten() {
            close(&mut closing, &entry);
            self.replay(entry).await?;
        }
        ledger.close(&closing).await?;
        if !lane.was_recovered() {
            ledger.know(lane.name()).await?;
        }
        lane.set_recovered();
        // Not before: a recovery that fails finds these claims again.
        locked.into_iter().for_each(|done| lane.send(done));
        if self.context.once {
            let (context, lane) = (self.context.clone(), lane.clone());
            Redeletion { context, lane }.delete_due().await?;
        }
        Ok(())
    }

    /// Takes a queue up without taking claims back: those that are ours are in use by another lane of this process.
    pub async fn take_up(&self) -> Result<(), PassError> {
        let Self { lane, ledger, .. } = self;
        lane.renew_lease().await?;
        self.context.obey_operator(lane).await?;
        ledger.know(lane.name()).await?;
        lane.set_recovered();
        Ok(())
    }

    /// Carries verdicts out. Returns the entries that can be closed, and what is to go to the settler because another
    /// session has locked its row, so that it does not hold up the start.
    async fn settle(
        &self,
        settlements: Vec<Settlement>,
        closings: Vec<Closing>,
    ) -> Result<(Closing, Vec<Done>), PassError> {
        // What cannot be settled now is found again: the claims are still ours.
        let results = self.lane.queue.settle(&settlements, self.context.delete_retry()).await?;
        let (mut closed, mut locked) = (Closing::default(), Vec::new());
        for ((settlement, closing), (_, settled)) in settlements.into_iter().zip(closings).zip(results) {
            if let Settled::Locked { .. } = settled {
                locked.push(Done { settlement, closing, memory: None });
                continue;
            }
            self.context.events.settled(self.context.events.story(&settlement), &settled);
            closed.append(closing);
        }
        Ok((closed, locked))
    }

    /// Decides on a row that we were sending, by what the ledger knows of it.
    fn settlement(&self, claim: Claim, entries: Vec<OpenEntry>, now: Timestamp) -> Settlement {
        settlement(claim, entries, now, |claim, message_id, history| {
            self.context.events.unknown(claim, message_id);
            retry::unknown(&self.context.live.get().settings.retry, history, now, jitter())
        })
    }

    /// Settles an entry whose row is no longer ours. An acceptance counts all the same; all else has been dealt with by
    /// the dispatcher that has the row.
    async fn replay(&self, entry: OpenEntry) -> Result<(), PassError> {
        if entry.accepted.is_none() {
            return Ok(());
        }
        let recipients: Vec<_> = accepted(&entry).collect();
        let sent = entry.transmission;
        let complete = sent.complete.then(|| self.context.delete_retry());
        let replayed = self.lane.queue.replay(sent.id.mid, &sent.record, sent.fingerprint, &recipients, complete);
        let settled = replayed.await?;
        tracing::info!(target: events::MAIL, id = %sent.id, message_id = sent.message_id, stood = settled.is_some(),
            "acceptance settled from the ledger");
        if let Some(Settled::NotDeleted { detail, next_attempt }) = &settled {
            self.context.events.not_deleted(&sent.id, Some(&sent.message_id), detail, *next_attempt);
        }
        Ok(())
    }
}

/// Decides on a row that was being sent, by the entries that the ledger has of it. `unknown` decides where the outcome is
/// unknown; it is given the claim, the Message-ID and the history with all acceptances.
pub fn settlement(
    claim: Claim,
    entries: Vec<OpenEntry>,
    now: Timestamp,
    unknown: impl FnOnce(&Claim, Option<&str>, History) -> Verdict,
) -> Settlement {
    let mut history = claim.history().clone();
    history.note(entries.iter().flat_map(accepted));
    let last_reply = entries.iter().rev().find_map(|entry| Some(entry.accepted.as_ref()?.0.clone()));
    let fingerprint = entries.first().map(|entry| entry.transmission.fingerprint).or(claim.fingerprint());
    let message_id = entries.first().map(|entry| entry.transmission.message_id.clone());
    let complete = entries.iter().any(|entry| entry.accepted.is_some() && entry.transmission.complete);
    let in_doubt = entries.iter().any(|entry| entry.accepted.is_none());
    let verdict = if complete {
        Verdict { fate: Fate::Delivered, history, last_reply }
    } else if in_doubt || entries.is_empty() && claim.was_taken_over() {
        unknown(&claim, message_id.as_deref(), history)
    } else if entries.is_empty() {
        Verdict::released()
    } else {
        let fate = Fate::Deferred { reason: Reason::RelayUnavailable, next_attempt: now };
        Verdict { fate, history, last_reply }
    };
    Settlement { claim, fingerprint, message_id, verdict }
}

fn close(closing: &mut Closing, entry: &OpenEntry) {
    let list = if entry.accepted.is_some() { &mut closing.accepted } else { &mut closing.other };
    list.push(entry.entry);
}

/// Returns the recipients that the entry says were accepted.
fn accepted(entry: &OpenEntry) -> impl Iterator<Item = RecipientRecord> {
    entry.accepted.iter().flat_map(|(reply, at)| {
        entry.transmission.recipients.iter().map(|address| RecipientRecord {
            address: address.clone(),
            state: RecipientState::Accepted,
            reply: Some(reply.clone()),
            at: *at,
        })
    })
}
