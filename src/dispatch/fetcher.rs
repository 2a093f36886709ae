//! Fetches the mails of one queue: finds and claims rows, and has mails made of them. Three tasks do so: the fetcher; one
//! for large rows, which wait for each other (see `large_fetcher`); and the marker, which marks mails `sending` shortly
//! before they go out.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::{PassError, StartError};
use super::lane::{Lane, Prepared};
use super::memory::Cost;
use super::prepare::{self, Batch, Preparer};
use super::progress::{Liveness, Loop, Work};
use super::recovery::Recovery;
use crate::failpoint;
use crate::mail::ColumnLimits;
use crate::outcome::{Fate, Reason, Verdict};
use crate::queue::{self, Claim, Found};

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

/// A look for due rows that took long, as one does that waits for locks, is followed by a pause of this many times as long.
const DUE_DUTY: u32 = 4;

/// The part of the time, as one in this number, in which the database looks at large rows that it has shown before. They
/// stay in the table unclaimed, and to tell their lengths some databases read them as a whole.
const SEARCH_DUTY: u32 = 10;

/// The first wait for a database that is out of reach; each doubles, until something goes well again.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// After an error, mails in hand that are not on the wire are given back if they have not gone out within this time.
const IN_HAND: Duration = Duration::from_secs(5);

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

/// A search for waiting rows, from the head of the table on. It begins again there every `poll_interval`: rows whose
/// INSERT was committed late are there.
#[derive(Clone, Copy)]
struct Search {
    /// Rows up to this number have had their turn.
    cursor: i64,
    begun: Instant,
    /// The time that looks took which found large rows.
    large: Duration,
}

impl Search {
    fn new() -> Self {
        Self { cursor: i64::MIN, begun: Instant::now(), large: Duration::ZERO }
    }

    /// Begins again at the head of the table, if this long has passed. Returns true if it does.
    fn begin_again_after(&mut self, interval: Duration) -> bool {
        let again = self.begun.elapsed() >= interval.max(self.large * SEARCH_DUTY);
        if again {
            *self = Self::new();
        }
        again
    }
}

/// The state of a pass over the table.
struct Pass {
    started: Timestamp,
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
        let mut search = Search::new();
        while !self.lane.stop.is_cancelled() {
            failpoint::hit("in-fetcher");
            if self.lane.take_left_claims() {
                // The recovery must not see claims that are in use.
                self.lane.large.forget().await;
                self.wait(self.all_sent_or_returned()).await;
                recovered = false;
            }
            // Made before the pass, so that a call that comes in the middle of it is not missed.
            let poll = context.poll.notified();
            match self.pass(&mut recovered, &mut search, &mut wait).await {
                Ok(()) => wait = FIRST_WAIT,
                Err(PassError::Start(error)) if self.lane.is_first => return Ended::Refused(error),
                Err(error) => {
                    context.fetching_failed(&self.lane, &error);
                    if context.once {
                        self.end_of_pass().await;
                        return Ended::OutOfReach(self.lane.name().clone(), error.to_string());
                    }
                    // Mails in hand go on. Claims whose making got no answer are given back by a later pass.
                    self.wait(tokio::time::sleep(wait)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
            }
            if context.once {
                self.end_of_pass().await;
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
        // None is claimed from here on.
        self.lane.large.forget().await;
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

    /// Waits at the end of a single pass until no mail of the lane is under way, and none can come any more.
    async fn end_of_pass(&self) {
        self.all_settled().await;
        // A claim of large rows may have been on its way.
        self.lane.large.forget().await;
        self.context.return_ready(&self.lane);
        self.all_settled().await;
    }

    /// Waits until no mail of the lane is under way. If the relay is in trouble, none is waited for: they are given back.
    async fn all_settled(&self) {
        if !self.context.may_send(&self.lane) {
            self.context.return_ready(&self.lane);
        }
        self.lane.queue.all_settled().await;
    }

    /// Waits until no mail of the lane is under way. Those that do not go out soon are given back: at a low rate they would
    /// keep the lane from fetching for hours after an error.
    async fn all_sent_or_returned(&self) {
        while timeout(IN_HAND, self.lane.queue.all_settled()).await.is_err() {
            self.context.return_ready(&self.lane);
        }
    }

    /// Waits until there may be something to do, or for `poll`.
    async fn rest(&self, poll: Notified<'_>) {
        let interval = self.poll_interval();
        let open = self.context.may_send(&self.lane);
        // A database that does not answer is reported by the next pass.
        let due = if open { self.lane.queue.next_due().await.ok().flatten() } else { None };
        let until = |due: Timestamp| Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
        let pause = due.map_or(interval, |due| until(due).clamp(SHORTEST_REST, interval.max(SHORTEST_REST)));
        let _ = timeout(pause, poll).await;
    }

    /// Fetches everything that is due now.
    async fn pass(&self, recovered: &mut bool, search: &mut Search, wait: &mut Duration) -> Result<(), PassError> {
        let Some(mut pass) = self.begin_pass(recovered, search).await? else { return Ok(()) };
        let mut preparing = FuturesUnordered::new();
        let mut outcome = Ok(());
        while outcome.is_ok() {
            let limits = pass.limits;
            let mut wanted = pin!(self.wait(self.context.wait_wanted(&self.lane)));
            let wanted = loop {
                tokio::select! {
                    Some(done) = preparing.next(), if outcome.is_ok() => outcome = outcome.and(done),
                    wanted = &mut wanted, if outcome.is_ok() => break wanted.unwrap_or(false),
                    else => break false,
                }
            };
            if !wanted {
                break;
            }
            let mut next = pin!(self.next_claims(&mut pass, search));
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
    async fn begin_pass(&self, recovered: &mut bool, search: &mut Search) -> Result<Option<Pass>, PassError> {
        if !*recovered {
            *search = Search::new();
            if self.wait(self.lane.predecessors_fetched()).await.is_none() {
                return Ok(None);
            }
            if self.lane.may_take_up() {
                self.recovery.take_up().await?;
            } else {
                if self.wait(self.lane.predecessors_settled()).await.is_none() {
                    return Ok(None);
                }
                let recovery = self.recovery.run();
                self.liveness().touch_while(self.lane.index, recovery).await?;
            }
            *recovered = true;
        }
        search.begin_again_after(Duration::ZERO);
        self.not_loaded().clear();
        self.lane.queue.sweep().await?;
        self.context.events.database_works(&self.lane, Work::Fetching);
        self.liveness().started(self.lane.index);
        Ok(Some(Pass {
            started: Timestamp::now(),
            due_from: Instant::now(),
            batch: FIRST_BATCH,
            limits: self.lane.queue.limits().await?,
        }))
    }

    /// Claims the next batch. Returns `None` if there is no more.
    /// A batch can be empty, where other dispatchers were quicker.
    async fn next_claims(&self, pass: &mut Pass, search: &mut Search) -> Result<Option<Vec<Claim>>, PassError> {
        self.liveness().touch(self.lane.index, Loop::Fetcher);
        if self.context.outage.is_owed_by(self.lane.index) {
            // Before a claim sees how long its mail has been deferred.
            self.context.outage.account(&self.lane).await?;
        }
        let now = if self.context.once { pass.started } else { Timestamp::now() };
        let mut due = Vec::new();
        if Instant::now() >= pass.due_from {
            let begun = Instant::now();
            due = match self.lane.queue.claim_due(now, pass.batch / 2).await {
                // All that are due are locked. A single pass has no later look at them.
                Err(queue::Error::Busy { .. }) if !self.context.once => Vec::new(),
                claimed => claimed?,
            };
            // Where another session has locked records that are due, each look waits for it, and new rows wait for the
            // look.
            let pause = (begun.elapsed() * DUE_DUTY).min(self.poll_interval());
            let is_short = due.len() < pass.batch as usize / 2;
            if due.is_empty() || is_short && pause > NONE_DUE && !self.context.once {
                pass.due_from = Instant::now() + pause.max(NONE_DUE);
            }
        }
        let (found, new) = match self.claim_new(search, pass.batch - due.len() as u32).await {
            Ok(both) => both,
            Err(error) => {
                due.into_iter().for_each(|claim| self.lane.release(claim));
                return Err(PassError::Database(error));
            }
        };
        self.context.events.progress.note_poll(Timestamp::now());
        self.context.events.database_works(&self.lane, Work::Fetching);
        if due.is_empty() && found == 0 {
            if self.context.once && self.lane.large.has_known() {
                // They belong to this pass.
                self.wait(self.context.wait_large_claimed(&self.lane)).await;
                return Ok(Some(Vec::new()));
            }
            return Ok(None);
        }
        pass.batch = (pass.batch * GROWTH).min(BATCH);
        let claims: Vec<_> = due.into_iter().chain(new).collect();
        claims.iter().for_each(|claim| self.context.events.claimed(claim));
        Ok(Some(claims))
    }

    /// Claims rows of which nothing is known, but for large ones, which are left to the fetcher of large rows. Also returns
    /// the number of rows that were found.
    async fn claim_new(&self, search: &mut Search, limit: u32) -> Result<(usize, Vec<Claim>), queue::Error> {
        if !self.context.once && search.begin_again_after(self.poll_interval()) {
            self.not_loaded().clear();
        }
        let begun = Instant::now();
        let mut found = self.lane.queue.find(search.cursor, limit).await?;
        search.cursor = found.last().map_or(search.cursor, |row| row.mid);
        let seen = found.len();
        {
            let not_loaded = self.not_loaded();
            found.retain(|row| !not_loaded.contains(&row.mid));
        }
        let budget = self.context.live.get().memory.clone();
        let (large, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|row| budget.is_large(row.bytes));
        if !large.is_empty() {
            search.large += begun.elapsed();
            self.leave_large(large).await;
        }
        let claims = self.lane.queue.claim(&found, Timestamp::now()).await?;
        Ok((seen, claims))
    }

    /// Leaves rows to the fetcher of large rows. Those of which it has enough already are found again by a later search; a
    /// single pass has none, and waits.
    async fn leave_large(&self, mut rows: Vec<Found>) {
        loop {
            rows = self.lane.large.remember(rows);
            self.lane.calls.large.notify_waiters();
            if rows.is_empty() || !self.context.once || !self.context.may_send(&self.lane) {
                return;
            }
            self.wait(self.context.wait_large_remembered(&self.lane)).await;
        }
    }

    /// Lets a large row that is claimed wait for its slot. Where enough others do, it is put off, so that those behind it
    /// have their turn; a single pass has no later turn, and waits.
    async fn keep_large(&self, mut claim: Claim) {
        while let Some(back) = self.lane.large.push(claim) {
            claim = back;
            if !self.context.once {
                return self.put_off(claim);
            }
            self.wait(self.context.wait_large_room(&self.lane)).await;
            if !self.context.may_send(&self.lane) {
                return self.lane.release(claim);
            }
        }
        self.lane.calls.large.notify_waiters();
    }

    /// No attempt is used.
    fn put_off(&self, claim: Claim) {
        let next_attempt = self.lane.large.next_turn(Timestamp::now());
        let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt };
        let last_reply = Some("not offered yet: other large mails of the queue go first".to_owned());
        let (history, fingerprint) = (claim.history().clone(), claim.fingerprint());
        self.lane.settle(claim, fingerprint, None, Verdict { fate, history, last_reply });
    }

    /// Makes mails of claimed rows, in groups that fit the memory. Large rows are left to the fetcher of large rows.
    async fn prepare(&self, claims: Vec<Claim>, limits: ColumnLimits) -> Result<(), PassError> {
        let budget = self.context.live.get().memory.clone();
        let claims = prepare::set_too_large_aside(&self.lane, claims).await?;
        let mut waiting = VecDeque::with_capacity(claims.len());
        for claim in claims {
            match budget.cost(&claim) {
                Cost::Part(units) => waiting.push_back((claim, units)),
                Cost::Large(_) => self.keep_large(claim).await,
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
