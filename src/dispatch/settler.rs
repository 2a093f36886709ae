//! Carries verdicts out, in groups, and does not give up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::lane::{Done, Lane, Notes};
use super::sender::ledger_trouble;
use super::{Shared, events};
use crate::failpoint;
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

pub async fn run(shared: Arc<Shared>, lane: Arc<Lane>, inbox: mpsc::UnboundedReceiver<Done>) -> Ended {
    let (closing, closed) = mpsc::unbounded_channel();
    let (unsettled, ()) = tokio::join!(settle_all(&shared, &lane, inbox, closing), close_entries(&shared, closed));
    (lane.name().clone(), unsettled)
}

/// Until no more verdicts can come. Answers the last trouble because of which some were given up.
async fn settle_all(
    shared: &Shared,
    lane: &Lane,
    mut inbox: mpsc::UnboundedReceiver<Done>,
    closing: mpsc::UnboundedSender<Closing>,
) -> Option<String> {
    let mut unsettled = None;
    let mut group = Vec::with_capacity(GROUP);
    while inbox.recv_many(&mut group, GROUP).await > 0 {
        if group.len() < GROUP && !inbox.is_closed() {
            // Where all of the queue's claims are in the group, nobody else can come.
            let full = |group: &Vec<Done>| group.len() >= GROUP.min(lane.queue.claims());
            let more = async { while !full(&group) && inbox.recv_many(&mut group, 1).await > 0 {} };
            // Whether the group filled up or the time ran out, it goes now.
            let _ = tokio::time::timeout(LINGER, more).await;
        }
        match settle(shared, lane, group.drain(..)).await {
            // Its other end is open as long as this one.
            Ok(entries) => drop(closing.send(entries)),
            Err(error) => unsettled = Some(error.to_string()),
        }
    }
    unsettled
}

async fn settle(shared: &Shared, lane: &Lane, group: impl Iterator<Item = Done>) -> Result<Closing, queue::Error> {
    let (mut settlements, notes): (Vec<Settlement>, Vec<Notes>) =
        group.map(|Done { settlement, notes }| (settlement, notes)).unzip();
    let mut entries = Closing::default();
    let mut memory = Vec::new();
    for notes in notes {
        memory.extend(notes.memory);
        entries.accepted.extend(notes.accepted);
        entries.other.extend(notes.other);
    }
    if let Err(error) = shared.ledger.flush() {
        // The rows are deleted all the same: the database then is what remembers the acceptances.
        tracing::error!(target: events::MAIL, queue = %lane.name(), %error, "acceptances are not in the ledger");
    }
    failpoint::hit("after-ledger");
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
    failpoint::hit("after-delete");
    events::settles_again(shared, lane);
    shared.progress.counters.settling_took(lane.name(), begun.elapsed());
    for (story, (_, settled)) in stories.into_iter().zip(&results) {
        events::settled(shared, story, settled);
    }
    Ok(entries)
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

/// Closes entries while the next group is being settled. What cannot be closed is tried again with what comes next; should
/// nothing come, that is no harm: replay at the next start finds that the rows are settled.
async fn close_entries(shared: &Shared, mut inbox: mpsc::UnboundedReceiver<Closing>) {
    let mut due = Closing::default();
    while let Some(mut closing) = inbox.recv().await {
        due.accepted.append(&mut closing.accepted);
        due.other.append(&mut closing.other);
        let closed = match shared.ledger.settled(&due.accepted).await {
            Ok(()) => shared.ledger.forget(&due.other),
            Err(error) => Err(error),
        };
        match closed {
            Ok(()) => due = Closing::default(),
            Err(error) => ledger_trouble(shared, &error),
        }
    }
}
