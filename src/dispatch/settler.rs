//! Carries verdicts out, in groups, and does not give up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::lane::{Done, Lane, Notes};
use super::worker::ledger_trouble;
use super::{Shared, events};
use crate::crash;
use crate::ledger::EntryId;
use crate::outcome::Fate;
use crate::queue::{self, Settlement};

/// The most verdicts of one transaction.
const GROUP: usize = 256;

/// How long a verdict waits for company.
const LINGER: Duration = Duration::from_millis(15);

/// After the order to stop, so long for a database that is out of reach; the ledger remembers.
const LAST_TRIES: Duration = Duration::from_secs(10);

/// The queue, and what kept verdicts from being carried out, where the end came before they were.
pub type Ended = (Arc<str>, Option<String>);

pub async fn run(shared: Arc<Shared>, lane: Arc<Lane>, mut inbox: mpsc::UnboundedReceiver<Done>) -> Ended {
    let mut unsettled = None;
    let mut closing = Closing::default();
    let mut group = Vec::with_capacity(GROUP);
    while inbox.recv_many(&mut group, GROUP).await > 0 {
        if group.len() < GROUP && !inbox.is_closed() {
            // Where all of the queue's claims are in the group, nobody else can come.
            let full = |group: &Vec<Done>| group.len() >= GROUP.min(lane.queue.claims());
            let more = async { while !full(&group) && inbox.recv_many(&mut group, 1).await > 0 {} };
            // Whether the group filled up or the time ran out, it goes now.
            let _ = tokio::time::timeout(LINGER, more).await;
        }
        if let Err(error) = settle(&shared, &lane, group.drain(..), &mut closing).await {
            unsettled = Some(error.to_string());
        }
    }
    closing.close(&shared).await;
    (lane.name().clone(), unsettled)
}

async fn settle(
    shared: &Shared,
    lane: &Lane,
    group: impl Iterator<Item = Done>,
    closing: &mut Closing,
) -> Result<(), queue::Error> {
    let (mut settlements, notes): (Vec<Settlement>, Vec<Notes>) =
        group.map(|Done { settlement, notes }| (settlement, notes)).unzip();
    let mut closable = Closing::default();
    let mut memory = Vec::new();
    for notes in notes {
        memory.extend(notes.memory);
        closable.accepted.extend(notes.accepted);
        closable.other.extend(notes.other);
    }
    if let Err(error) = shared.ledger.flush() {
        // The rows are deleted all the same: the database then is what remembers the acceptances.
        tracing::error!(target: events::MAIL, queue = %lane.name(), %error, "acceptances are not in the ledger");
    }
    crash::point("after-ledger");
    let stories: Vec<_> = settlements.iter().map(|settlement| events::story(shared, settlement)).collect();
    let begun = Instant::now();
    let mut pause = Duration::from_millis(200);
    let mut give_up = None;
    let results = loop {
        match lane.queue.settle(settlements).await {
            Ok(results) => break results,
            Err((error, back)) => {
                settlements = back;
                if matches!(error, queue::Error::Refused { .. }) {
                    // Words of the smarthost's that this database cannot hold must not keep a row from being settled.
                    settlements.iter_mut().for_each(plain);
                }
                events::unsettled(shared, lane, settlements.len(), &error);
                let now = Instant::now();
                let ending = shared.once || shared.stop.is_cancelled();
                if ending && now >= *give_up.get_or_insert(now + LAST_TRIES) {
                    let rows = settlements.len();
                    tracing::error!(target: events::MAIL, queue = %lane.name(), rows, %error,
                        "not settled before the end; the next start settles from the ledger");
                    return Err(error);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
        }
    };
    crash::point("after-delete");
    events::settles_again(shared, lane);
    shared.progress.meter.settling_took(lane.name(), begun.elapsed());
    for (story, (_, settled)) in stories.into_iter().zip(&results) {
        events::settled(shared, story, settled);
    }
    closing.accepted.append(&mut closable.accepted);
    closing.other.append(&mut closable.other);
    closing.close(shared).await;
    Ok(())
}

/// Leaves nothing but ASCII in what was only said.
fn plain(settlement: &mut Settlement) {
    let verdict = &mut settlement.verdict;
    let detail = match &mut verdict.fate {
        Fate::Unreadable { detail, .. } => Some(detail),
        _ => None,
    };
    let replies = verdict.history.recipients.iter_mut().filter_map(|recipient| recipient.reply.as_mut());
    for text in replies.chain(&mut verdict.last_reply).chain(detail) {
        if !text.is_ascii() {
            *text = text.replace(|c: char| !c.is_ascii(), "?");
        }
    }
}

/// Entries of which the database knows everything now, so that the ledger need not hold them open.
#[derive(Default)]
struct Closing {
    accepted: Vec<EntryId>,
    other: Vec<EntryId>,
}

impl Closing {
    /// What cannot be closed now is tried again with the next group. Should it come to no next, that is no harm: replay at
    /// the next start finds that the rows are settled.
    async fn close(&mut self, shared: &Shared) {
        match shared.ledger.settled(&self.accepted).await {
            Ok(()) => self.accepted.clear(),
            Err(error) => return ledger_trouble(shared, &error),
        }
        match shared.ledger.forget(&self.other) {
            Ok(()) => self.other.clear(),
            Err(error) => ledger_trouble(shared, &error),
        }
    }
}
