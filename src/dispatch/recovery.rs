//! What an earlier process left behind is settled before anything is sent.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio::time::Instant;

use super::fetcher::Trouble;
use super::lane::Lane;
use super::{Shared, StartError, events, jitter, maintenance};
use crate::ledger::{EntryId, OpenEntry};
use crate::mail::RecordId;
use crate::outcome::{Fate, Reason, RecipientRecord, RecipientState, Verdict};
use crate::queue::{Claim, Settlement};
use crate::retry;

/// Takes our own claims back and replays the ledger, at start and whenever the database comes back.
pub async fn run(shared: &Shared, lane: &Lane) -> Result<(), Trouble> {
    let sent_off = Instant::now();
    lane.queue.beat().await?;
    lane.has_beaten(sent_off, Instant::now());
    maintenance::look(shared, lane).await?;

    let now = Timestamp::now();
    let recovered = lane.queue.recover_own().await?;
    if !recovered.unknown.is_empty() && !lane.was_recovered() && !shared.ledger.knows(lane.name()).await? {
        return Err(Trouble::Start(StartError::LedgerMissing {
            state_dir: shared.settings.state_dir.clone(),
            queue: lane.name().clone(),
            rows: recovered.unknown.len(),
        }));
    }
    let mut entries: HashMap<RecordId, Vec<OpenEntry>> = HashMap::new();
    for entry in shared.ledger.open_entries(lane.name()) {
        entries.entry(entry.transmission.record).or_default().push(entry);
    }

    let mut settlements = Vec::new();
    let mut closed = Closed::default();
    for claim in recovered.unknown {
        let entries = entries.remove(claim.record()).unwrap_or_default();
        closed.add(&entries);
        settlements.push(settlement(shared, claim, entries, now));
    }
    let stories: Vec<_> = settlements.iter().map(|settlement| events::story(shared, settlement)).collect();
    // What cannot be settled now is found again: the claims are still ours.
    let results = lane.queue.settle(settlements).await.map_err(|(error, _)| error)?;
    for (story, (_, settled)) in stories.into_iter().zip(&results) {
        events::settled(shared, story, settled);
    }
    for entry in entries.into_values().flatten() {
        closed.add(std::slice::from_ref(&entry));
        replay(lane, entry).await?;
    }
    shared.ledger.settled(&closed.accepted).await?;
    shared.ledger.forget(&closed.other)?;
    if !lane.was_recovered() {
        shared.ledger.know(lane.name()).await?;
    }
    lane.set_recovered();
    Ok(())
}

#[derive(Default)]
struct Closed {
    accepted: Vec<EntryId>,
    other: Vec<EntryId>,
}

impl Closed {
    fn add(&mut self, entries: &[OpenEntry]) {
        for entry in entries {
            let list = if entry.accepted.is_some() { &mut self.accepted } else { &mut self.other };
            list.push(entry.entry);
        }
    }
}

/// A row that we were sending: what the ledger knows decides.
fn settlement(shared: &Shared, claim: Claim, entries: Vec<OpenEntry>, now: Timestamp) -> Settlement {
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
        events::unknown(&claim, message_id.as_deref());
        retry::unknown(&shared.settings.retry, history, now, jitter())
    } else if entries.is_empty() {
        Verdict::released()
    } else {
        let fate = Fate::Deferred { reason: Reason::RelayUnavailable, next_attempt: now };
        Verdict { fate, history, last_reply }
    };
    Settlement { claim, fingerprint, message_id, verdict }
}

/// An entry whose row is no longer in our hands. An acceptance counts all the same; for the rest, whoever has the row
/// has dealt with it.
async fn replay(lane: &Lane, entry: OpenEntry) -> Result<(), Trouble> {
    if entry.accepted.is_none() {
        return Ok(());
    }
    let recipients: Vec<_> = accepted(&entry).collect();
    let transmission = entry.transmission;
    let stood = lane
        .queue
        .replay(transmission.id.mid, &transmission.record, transmission.fingerprint, &recipients, transmission.complete)
        .await?;
    tracing::info!(target: events::MAIL, id = %transmission.id, message_id = transmission.message_id, stood,
        "acceptance settled from the ledger");
    Ok(())
}

/// The recipients that the entry says were accepted.
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
