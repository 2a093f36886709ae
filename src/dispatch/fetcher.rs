//! Fetches the mails of one queue: finds and claims rows, and has mails made of them. Three tasks do so: the fetcher; one
//! for large rows, which wait for each other; and the marker, which marks mails `sending` shortly before they go out.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::{PassError, StartError};
use super::lane::{Lane, Prepared};
use super::memory::{Cost, Reserved};
use super::prepare::{self, Batch, Preparer};
use super::progress::{Liveness, Loop, Work};
use super::recovery::Recovery;
use crate::failpoint;
use crate::mail::ColumnLimits;
use crate::queue::{self, Claim};

/// The most rows of one claim. Deferred ones get half of it while there are new ones too, so that neither starves.
const BATCH: u32 = 256;

/// Rows of the first batch of a pass: few, so that the smarthost has something to do while the next is read.
const FIRST_BATCH: u32 = 32;
/// The factor by which each further batch is larger, up to [`BATCH`].
const GROWTH: u32 = 4;

/// Batches that are made into mails at once, while a further one is claimed.
const PREPARING: usize = 2;

/// Once no deferred row was due, none is looked for until this much later while new ones keep coming.
const NONE_DUE: Duration = Duration::from_secs(1);

/// The first wait for a database that is out of reach; each doubles, until something goes well again.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait for a database that is out of reach.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The shortest time between two passes: a row that is due and cannot be claimed must not make the loop spin.
const SHORTEST_REST: Duration = Duration::from_millis(100);

pub struct Fetcher {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
    pub recovery: Recovery,
    pub preparer: Arc<Preparer>,
    /// Rows that were claimed since the search began at the head of the table, and could not be loaded. They are not
    /// claimed again before it begins there again.
    pub not_loaded: Mutex<HashSet<i64>>,
}

pub enum Ended {
    Done,
    /// An operator's pause, or the order to end, came before everything had its turn.
    CutShort,
    /// One pass was wanted, and the database was not there for it.
    OutOfReach(Arc<str>, String),
    Refused(StartError),
}

/// The state of a pass over the table.
struct Pass {
    started: Timestamp,
    /// Rows up to this number have had their turn. It goes back to the head of the table at `head_at`: rows whose INSERT
    /// was committed late are there.
    cursor: i64,
    head_at: Instant,
    /// Deferred rows are looked for from this time on.
    due_from: Instant,
    /// Rows of the next batch.
    batch: u32,
    limits: ColumnLimits,
}

impl Fetcher {
    /// Fetches until the order to end, or for one pass.
    pub async fn run(self) -> Ended {
        let context = &*self.context;
        let mut recovered = false;
        let mut wait = FIRST_WAIT;
        while !self.lane.stop.is_cancelled() {
            failpoint::hit("in-fetcher");
            if self.lane.take_left_claims() {
                // The recovery must not see claims that are in use.
                self.wait(self.all_settled()).await;
                recovered = false;
            }
            // Made before the pass, so that a call that comes in the middle of it is not missed.
            let poll = context.poll.notified();
            match self.pass(&mut recovered, &mut wait).await {
                Ok(()) => wait = FIRST_WAIT,
                Err(PassError::Start(error)) if self.lane.is_first => return Ended::Refused(error),
                Err(error) => {
                    recovered = false;
                    context.fetching_failed(&self.lane, &error);
                    if context.once {
                        self.all_settled().await;
                        return Ended::OutOfReach(self.lane.name().clone(), error.to_string());
                    }
                    // Claims whose making or giving back got no answer are taken back by the recovery, which must not see
                    // those that are in use.
                    let both = async { tokio::join!(self.lane.queue.all_settled(), tokio::time::sleep(wait)) };
                    self.wait(both).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
            }
            if context.once {
                self.all_settled().await;
                if let Err(error) = self.marking(&mut wait) {
                    context.fetching_failed(&self.lane, &error);
                    return Ended::OutOfReach(self.lane.name().clone(), error.to_string());
                }
                if !context.may_send(&self.lane) {
                    return Ended::CutShort;
                }
                break;
            }
            self.wait(self.rest(poll)).await;
        }
        if !recovered {
            // Claims may be left of which this lane knows nothing.
            self.lane.note_given_up();
        }
        context.return_ready(&self.lane);
        self.liveness().fetcher_ended(self.lane.index);
        Ended::Done
    }

    /// The time after which a table that ran empty is looked at again.
    fn poll_interval(&self) -> Duration {
        self.context.live.get().settings.poll_interval
    }

    fn liveness(&self) -> &Liveness {
        &self.context.events.progress.liveness
    }

    /// Waits for something that may take long. Returns `None` at the order to end.
    async fn wait<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        let what = self.lane.stop.run_until_cancelled(what);
        self.liveness().touch_while(self.lane.index, what).await
    }

    /// Waits until no mail of the lane is under way. If the relay is in trouble, none is waited for: they are given back.
    async fn all_settled(&self) {
        if !self.context.may_send(&self.lane) {
            self.context.return_ready(&self.lane);
        }
        self.lane.queue.all_settled().await;
    }

    /// Waits until there may be something to do, or for `poll`.
    async fn rest(&self, poll: Notified<'_>) {
        let interval = self.poll_interval();
        let open = self.context.may_send(&self.lane);
        // A database that does not answer is reported by the next pass.
        let due = if open { self.lane.queue.next_due().await.ok().flatten() } else { None };
        let until = |due: Timestamp| Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
        let pause = due.map_or(interval, |due| until(due).clamp(SHORTEST_REST, interval.max(SHORTEST_REST)));
        let _ = tokio::time::timeout(pause, poll).await;
    }

    /// Fetches everything that is due now.
    async fn pass(&self, recovered: &mut bool, wait: &mut Duration) -> Result<(), PassError> {
        let Some(mut pass) = self.begin_pass(recovered).await? else { return Ok(()) };
        let mut preparing = FuturesUnordered::new();
        let mut outcome = Ok(());
        while outcome.is_ok() {
            let limits = pass.limits;
            let mut next = pin!(self.next_claims(&mut pass));
            let next = loop {
                tokio::select! {
                    Some(done) = preparing.next() => outcome = outcome.and(done),
                    next = &mut next => break next,
                }
            };
            outcome = outcome.and(self.marking(wait));
            match next {
                Ok(Some(claims)) => preparing.push(self.prepare(claims, limits)),
                Ok(None) => break,
                Err(error) => outcome = outcome.and(Err(error)),
            }
            if preparing.len() == PREPARING
                && let Some(done) = preparing.next().await
            {
                outcome = outcome.and(done);
            }
        }
        // The batches under way come to their end, so that no claim is forgotten.
        while let Some(done) = preparing.next().await {
            outcome = outcome.and(done);
        }
        outcome.and(self.marking(wait))
    }

    /// Takes note of the marker's success: the database does all that is asked of it, and the next wait for it is a short
    /// one again. Returns its error.
    fn marking(&self, wait: &mut Duration) -> Result<(), PassError> {
        if let Some(result) = self.lane.take_marking() {
            result?;
            *wait = FIRST_WAIT;
        }
        Ok(())
    }

    /// Returns `None` at the order to end.
    async fn begin_pass(&self, recovered: &mut bool) -> Result<Option<Pass>, PassError> {
        if !*recovered {
            if self.wait(self.lane.predecessors_fetched()).await.is_none() {
                return Ok(None);
            }
            if self.lane.may_take_up() {
                self.recovery.take_up().await?;
            } else {
                if self.wait(self.lane.predecessors_settled()).await.is_none() {
                    return Ok(None);
                }
                self.recovery.run().await?;
            }
            *recovered = true;
        }
        self.not_loaded().clear();
        self.lane.queue.sweep().await?;
        self.context.events.database_works(&self.lane, Work::Fetching);
        self.liveness().started(self.lane.index);
        Ok(Some(Pass {
            started: Timestamp::now(),
            cursor: i64::MIN,
            head_at: Instant::now() + self.poll_interval(),
            due_from: Instant::now(),
            batch: FIRST_BATCH,
            limits: self.lane.queue.limits().await?,
        }))
    }

    /// Claims the next batch, as soon as it is wanted. Returns `None` if there is no more, or none is wanted in this pass.
    /// A batch can be empty, where other dispatchers were quicker.
    async fn next_claims(&self, pass: &mut Pass) -> Result<Option<Vec<Claim>>, PassError> {
        if !self.wait(self.context.wait_wanted(&self.lane)).await.unwrap_or(false) {
            return Ok(None);
        }
        self.liveness().touch(self.lane.index, Loop::Fetcher);
        if self.context.outage.is_owed_by(self.lane.index) {
            // Before a claim sees how long its mail has been deferred.
            self.context.outage.account(&self.lane).await?;
        }
        let now = if self.context.once { pass.started } else { Timestamp::now() };
        let mut due = Vec::new();
        if Instant::now() >= pass.due_from {
            due = self.lane.queue.claim_due(now, pass.batch / 2).await?;
            if due.is_empty() {
                pass.due_from = Instant::now() + NONE_DUE;
            }
        }
        let (found, new) = match self.claim_new(pass, pass.batch - due.len() as u32).await {
            Ok(both) => both,
            Err(error) => {
                due.into_iter().for_each(|claim| self.lane.release(claim));
                return Err(PassError::Database(error));
            }
        };
        self.context.events.progress.note_poll(Timestamp::now());
        if due.is_empty() && found == 0 {
            return Ok(None);
        }
        pass.batch = (pass.batch * GROWTH).min(BATCH);
        let claims: Vec<_> = due.into_iter().chain(new).collect();
        claims.iter().for_each(|claim| self.context.events.claimed(claim));
        Ok(Some(claims))
    }

    /// Claims rows of which nothing is known. Also returns the number of rows that were found.
    async fn claim_new(&self, pass: &mut Pass, limit: u32) -> Result<(usize, Vec<Claim>), queue::Error> {
        if !self.context.once && Instant::now() >= pass.head_at {
            pass.cursor = i64::MIN;
            pass.head_at = Instant::now() + self.poll_interval();
            self.not_loaded().clear();
        }
        let mut found = self.lane.queue.find(pass.cursor, limit).await?;
        pass.cursor = found.last().map_or(pass.cursor, |row| row.mid);
        let seen = found.len();
        {
            let not_loaded = self.not_loaded();
            found.retain(|row| !not_loaded.contains(&row.mid));
        }
        let claims = self.lane.queue.claim(&found, Timestamp::now()).await?;
        Ok((seen, claims))
    }

    /// Makes mails of claimed rows, in groups that fit the memory. Large rows are left to [`LargeFetcher`].
    async fn prepare(&self, claims: Vec<Claim>, limits: ColumnLimits) -> Result<(), PassError> {
        let budget = self.context.live.get().memory.clone();
        let claims = prepare::set_too_large_aside(&self.lane, claims).await?;
        let mut waiting = VecDeque::with_capacity(claims.len());
        for claim in claims {
            match budget.cost(&claim) {
                Cost::Part(units) => waiting.push_back((claim, units)),
                Cost::Large(_) => self.lane.push_large(claim),
            }
        }
        while !waiting.is_empty() {
            let group = next_group(&mut waiting, budget.group());
            let cost = group.iter().map(|(_, cost)| cost).sum();
            let reserved = self.lane.wait_for_memory(self.wait(budget.reserve(self.lane.index, cost)));
            let memory = match reserved.await {
                Some(memory) if self.context.may_send(&self.lane) => memory,
                _ => {
                    group.into_iter().chain(waiting).for_each(|(claim, _)| self.lane.release(claim));
                    return Ok(());
                }
            };
            match self.preparer.prepare(&self.lane, group, memory, limits).await {
                Ok(Batch { mails, not_loaded }) => {
                    self.not_loaded().extend(not_loaded);
                    mails.into_iter().for_each(|mail| self.context.push_prepared(mail));
                }
                Err(error) => {
                    waiting.into_iter().for_each(|(claim, _)| self.lane.release(claim));
                    return Err(error);
                }
            }
            if !self.context.may_send(&self.lane) {
                self.context.return_ready(&self.lane);
            }
        }
        Ok(())
    }

    fn not_loaded(&self) -> MutexGuard<'_, HashSet<i64>> {
        self.not_loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fetches the large rows of a queue one at a time, so that the queue's other mails never wait for them.
pub struct LargeFetcher {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
    pub preparer: Arc<Preparer>,
}

impl LargeFetcher {
    /// Works until `over`.
    pub async fn run(self, over: CancellationToken) {
        let next = async || {
            self.context.wait_large(&self.lane).await;
            let budget = self.context.live.get().memory.clone();
            (budget.reserve_large().await, budget)
        };
        while let Some((memory, budget)) = over.run_until_cancelled(next()).await {
            failpoint::hit("in-large-fetcher");
            // The rows may have been given back meanwhile.
            let Some(claim) = self.lane.next_large() else { continue };
            if !self.context.may_send(&self.lane) {
                self.lane.release(claim);
                continue;
            }
            if let Cost::Large(units) = budget.cost(&claim) {
                memory.note_large(units);
            }
            if let Err(error) = self.prepare(claim, memory).await {
                self.context.fetching_failed(&self.lane, &error);
                over.run_until_cancelled(tokio::time::sleep(FIRST_WAIT)).await;
            }
        }
    }

    async fn prepare(&self, claim: Claim, memory: Reserved) -> Result<(), PassError> {
        let limits = match self.lane.queue.limits().await {
            Ok(limits) => limits,
            Err(error) => {
                self.lane.release(claim);
                return Err(error.into());
            }
        };
        let batch = self.preparer.prepare(&self.lane, vec![(claim, 0)], memory, limits).await?;
        batch.mails.into_iter().for_each(|mail| self.context.push_prepared(mail));
        if !self.context.may_send(&self.lane) {
            self.context.return_ready(&self.lane);
        }
        Ok(())
    }
}

/// Marks mails `sending` shortly before they go out. If this machine dies, the outcome of those that are marked is unknown.
pub struct Marker {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
}

impl Marker {
    /// Works until `over`.
    pub async fn run(self, over: CancellationToken) {
        let Self { context, lane } = &self;
        while let Some(mails) = over.run_until_cancelled(context.next_to_mark(lane)).await {
            failpoint::hit("in-marker");
            match lane.mark_sending(mails).await {
                Ok((jobs, lost)) => {
                    lane.note_marking(Ok(()));
                    jobs.into_iter().for_each(|job| context.push(job));
                    lost.iter().for_each(|id| context.events.claim_lost(id));
                }
                Err((error, mails)) => {
                    lane.note_marking(Err(error));
                    mails.into_iter().for_each(Prepared::release);
                    // The fetcher reports the error, and looks after the rows.
                    context.return_ready(lane);
                }
            }
            if !context.may_send(lane) {
                context.return_ready(lane);
            }
        }
    }
}

/// Takes the next claims that together cost no more than `most`; one that costs more goes alone.
fn next_group(waiting: &mut VecDeque<(Claim, u32)>, most: u32) -> Vec<(Claim, u32)> {
    let mut group = Vec::new();
    let mut sum = 0;
    while let Some((claim, cost)) = waiting.pop_front_if(|(_, cost)| sum == 0 || sum + *cost <= most) {
        sum += cost;
        group.push((claim, cost));
    }
    group
}
