//! Finds and claims rows of one queue, makes mails of them, and keeps the workers fed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::lane::Lane;
use super::pulse::Loop;
use super::{Shared, StartError, events, outage, prepare, recovery};
use crate::queue::Claim;
use crate::{ledger, queue};

/// The most rows of one claim. Deferred ones get half of it while there are new ones too, so that neither starves.
const BATCH: u32 = 256;

/// The first batch of a pass is smaller, so that the smarthost has something to do while the next is read; each further
/// one is so many times larger.
const FIRST_BATCH: u32 = 32;
const GROWTH: u32 = 4;

/// So many batches are made into mails at once, while a further one is claimed: the database marks one and reads another.
const FEEDING: usize = 2;

/// The next batch is claimed when fewer than so many mails of the queue are ready: enough to last until it is made.
const LOW: usize = 512;

/// Once no deferred row was due, none is looked for until so much later while new ones keep coming.
const NONE_DUE: Duration = Duration::from_secs(1);

/// The first wait for a database that is out of reach; each doubles, until something goes well again.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait for a database that is out of reach.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Between two passes: a row that is due and cannot be claimed must not make the loop spin.
const SHORTEST_REST: Duration = Duration::from_millis(100);

pub enum Ended {
    Done,
    /// An operator's stop, or the order to end, came before everything had its turn.
    CutShort,
    /// One pass was wanted, and the database was not there for it.
    OutOfReach(Arc<str>, String),
    Refused(StartError),
}

pub enum Trouble {
    Database(queue::Error),
    Ledger(ledger::Error),
    Start(StartError),
}

impl From<queue::Error> for Trouble {
    fn from(error: queue::Error) -> Self {
        Self::Database(error)
    }
}

impl From<ledger::Error> for Trouble {
    fn from(error: ledger::Error) -> Self {
        Self::Ledger(error)
    }
}

/// Feeds until the order to stop, or for one pass.
pub async fn run(shared: &Shared, lane: &Arc<Lane>) -> Ended {
    let mut recovered = false;
    let mut wait = FIRST_WAIT;
    while !shared.stop.is_cancelled() {
        // Made before the pass, so that a call that comes in the middle of it is not missed.
        let poll = shared.poll.notified();
        match pass(shared, lane, &mut recovered, &mut wait).await {
            Ok(()) => wait = FIRST_WAIT,
            Err(Trouble::Start(error)) => return Ended::Refused(error),
            Err(trouble) => {
                recovered = false;
                let why = report(shared, lane, trouble);
                if shared.once {
                    settle_all(shared, lane).await;
                    return Ended::OutOfReach(lane.name().clone(), why);
                }
                // Claims whose making or giving back went unheard are taken back by the recovery, which must not see
                // those that somebody still works on.
                let both = async { tokio::join!(lane.queue.all_settled(), tokio::time::sleep(wait)) };
                shared.progress.pulse.waiting(lane.name(), shared.stop.run_until_cancelled(both)).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                continue;
            }
        }
        if shared.once {
            settle_all(shared, lane).await;
            if !is_open(shared, lane) {
                return Ended::CutShort;
            }
            break;
        }
        let rest = shared.stop.run_until_cancelled(rest(shared, lane, poll));
        shared.progress.pulse.waiting(lane.name(), rest).await;
    }
    give_back(shared, lane);
    shared.progress.pulse.feeder_ended(lane.name());
    Ended::Done
}

fn report(shared: &Shared, lane: &Lane, trouble: Trouble) -> String {
    shared.progress.pulse.started(lane.name());
    match trouble {
        Trouble::Database(error) => {
            events::database(shared, lane, &error);
            error.to_string()
        }
        Trouble::Ledger(error) => {
            tracing::error!(target: events::MAIL, queue = %lane.name(), %error, "nothing is sent");
            error.to_string()
        }
        Trouble::Start(error) => error.to_string(),
    }
}

/// Waits until nothing of the lane is under way. A relay in trouble is waited for by nobody: the keeper gives back.
async fn settle_all(shared: &Shared, lane: &Lane) {
    if !is_open(shared, lane) {
        give_back(shared, lane);
    }
    lane.queue.all_settled().await;
}

/// Until there may be something to do, or `poll` says so.
async fn rest(shared: &Shared, lane: &Lane, poll: Notified<'_>) {
    let interval = shared.settings.poll_interval;
    // A database that does not answer is the next pass's to report.
    let due = if is_open(shared, lane) { lane.queue.next_due().await.ok().flatten() } else { None };
    let until = |due: Timestamp| Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
    let pause = due.map_or(interval, |due| until(due).clamp(SHORTEST_REST, interval.max(SHORTEST_REST)));
    let _ = tokio::time::timeout(pause, poll).await;
}

/// Everything that is due now.
async fn pass(shared: &Shared, lane: &Arc<Lane>, recovered: &mut bool, wait: &mut Duration) -> Result<(), Trouble> {
    if !*recovered {
        recovery::run(shared, lane).await?;
        *recovered = true;
    }
    lane.queue.sweep().await?;
    events::database_is_back(shared, lane);
    shared.progress.pulse.started(lane.name());
    let limits = lane.queue.limits().await?;
    let started = Timestamp::now();
    let mut cursor = i64::MIN;
    let mut due_from = Instant::now();
    let mut batch = FIRST_BATCH;
    let mut feeding = FuturesUnordered::new();
    let mut outcome = Ok(());
    while outcome.is_ok() {
        let mut next = pin!(next_claims(shared, lane, &mut cursor, &mut due_from, batch, started));
        let next = loop {
            tokio::select! {
                Some(fed) = feeding.next() => outcome = outcome.and(noted(fed, wait)),
                next = &mut next => break next,
            }
        };
        match next {
            Ok(Some(claims)) => {
                batch = (batch * GROWTH).min(BATCH);
                feeding.push(prepare::feed(shared, lane, claims, limits));
            }
            Ok(None) => break,
            Err(error) => outcome = outcome.and(Err(error)),
        }
        if feeding.len() == FEEDING
            && let Some(fed) = feeding.next().await
        {
            outcome = outcome.and(noted(fed, wait));
        }
    }
    // What is under way comes to its end, so that no claim is forgotten.
    while let Some(fed) = feeding.next().await {
        outcome = outcome.and(noted(fed, wait));
    }
    outcome
}

/// The database does all that is asked of it: the next wait for it is a short one again.
fn noted(fed: Result<(), Trouble>, wait: &mut Duration) -> Result<(), Trouble> {
    if fed.is_ok() {
        *wait = FIRST_WAIT;
    }
    fed
}

/// The next batch, as soon as it is wanted; `None` where there is no more, or none is wanted in this pass. It can be
/// empty, where other dispatchers were quicker.
async fn next_claims(
    shared: &Shared,
    lane: &Lane,
    cursor: &mut i64,
    due_from: &mut Instant,
    batch: u32,
    started: Timestamp,
) -> Result<Option<Vec<Claim>>, Trouble> {
    if !opened(shared, lane).await {
        return Ok(None);
    }
    shared.progress.pulse.step(lane.name(), Loop::Feeder);
    if shared.outage.is_owed_by(lane.index) {
        // Before a claim sees how long its mail has been put off.
        outage::account(shared, lane).await?;
    }
    let now = if shared.once { started } else { Timestamp::now() };
    let mut due = Vec::new();
    if Instant::now() >= *due_from {
        due = lane.queue.claim_due(now, batch / 2).await?;
        if due.is_empty() {
            *due_from = Instant::now() + NONE_DUE;
        }
    }
    let new = async {
        let found = lane.queue.find(*cursor, batch - due.len() as u32).await?;
        *cursor = found.last().map_or(*cursor, |row| row.mid);
        let claims = lane.queue.claim(&found, Timestamp::now()).await?;
        Ok((found, claims))
    };
    let (found, new) = match new.await {
        Ok(both) => both,
        Err(error) => {
            due.into_iter().for_each(|claim| lane.release(claim));
            return Err(Trouble::Database(error));
        }
    };
    shared.progress.note_poll(Timestamp::now());
    if due.is_empty() && found.is_empty() {
        return Ok(None);
    }
    let claims: Vec<_> = due.into_iter().chain(new).collect();
    claims.iter().for_each(|claim| events::claimed(shared, claim));
    Ok(Some(claims))
}

/// Waits until mails of this lane are wanted. False where they will not be in this pass.
async fn opened(shared: &Shared, lane: &Lane) -> bool {
    let ready = async {
        let mut view = shared.health.watch();
        while !is_open(shared, lane) {
            if shared.once || lane.is_paused() {
                return false;
            }
            if view.changed().await.is_err() {
                return false;
            }
        }
        shared.ready.wait_below(lane.index, LOW).await;
        is_open(shared, lane)
    };
    let ready = shared.stop.run_until_cancelled(ready);
    shared.progress.pulse.waiting(lane.name(), ready).await.unwrap_or(false)
}

pub fn is_open(shared: &Shared, lane: &Lane) -> bool {
    shared.health.is_up() && !lane.is_paused() && !shared.stop.is_cancelled()
}

/// Gives back what is ready and not on the wire.
pub fn give_back(shared: &Shared, lane: &Lane) {
    for job in shared.ready.drain(lane.index) {
        job.release();
    }
}
