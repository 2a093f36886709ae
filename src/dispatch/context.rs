//! State that all tasks share: it decides whether a mail may go and which goes next, and takes back those that may not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::breaker::{Breaker, Trip};
use super::error::PassError;
use super::events::{self, Events};
use super::lane::{Finished, Job, Lane, Prepared};
use super::outage::Outage;
use super::progress::Work;
use super::ready_queue::ReadyQueue;
use super::refusal_streak::{Consequence, Heard, Offered, RefusalStreak, Ruling, Sender, Turn, heard};
use super::settings::Live;
use crate::ledger;
use crate::mail::Address;
use crate::open_files;
use crate::outcome::{Cause, Fate, Reason, Reply, Stage, Trouble, Verdict};
use crate::queue::{self, DeleteRetry};
use crate::retry;

/// Further mails of a queue are wanted when fewer than these are prepared: enough to last until the next are.
const LOW: usize = 512;

pub struct Context {
    pub breaker: Breaker,
    pub outage: Outage,
    pub events: Events,
    /// One pass, then the end; trouble of the relay ends it too.
    pub once: bool,
    /// The order to end: no new claims; ready mails are given back, mails on the wire are finished.
    pub stop: CancellationToken,
    /// Wakes the fetchers.
    pub poll: Notify,
    /// Mails that are not marked `sending` yet.
    prepared: ReadyQueue<Prepared>,
    /// Mails that are marked, and wait for a connection.
    ready: ReadyQueue<Job>,
    /// Attempts that were refused. Its lock is taken before that of the ready mails, never the other way round.
    refusals: Mutex<RefusalStreak<Finished>>,
    pub live: Arc<Live>,
}

impl Context {
    /// `weights` has one for each queue.
    pub fn new(
        breaker: Breaker,
        outage: Outage,
        events: Events,
        weights: impl IntoIterator<Item = u32> + Clone,
        live: Arc<Live>,
        once: bool,
    ) -> Self {
        Self {
            breaker,
            outage,
            events,
            once,
            stop: CancellationToken::new(),
            poll: Notify::new(),
            prepared: ReadyQueue::new(weights.clone()),
            ready: ReadyQueue::new(weights),
            refusals: Mutex::default(),
            live,
        }
    }

    // --- a lane ---

    /// Returns true while mails of this lane may be claimed and offered.
    pub fn may_send(&self, lane: &Lane) -> bool {
        // The lane's token is cancelled with that of the dispatcher.
        let allowed = self.breaker.is_up() && !lane.is_paused() && !lane.stop.is_cancelled();
        allowed && lane.is_covered(self.live.get().relay.settings().timeouts.final_dot, Instant::now())
    }

    /// Waits until further mails of the lane are wanted, and the lane may send. Returns false if it will not in this pass.
    pub async fn wait_wanted(&self, lane: &Lane) -> bool {
        let mut relay = self.breaker.watch();
        while !self.may_send(lane) {
            if self.once || lane.is_paused() {
                return false;
            }
            tokio::select! {
                // An error would say that the breaker is gone; then this task is, too.
                _ = relay.changed() => {}
                () = wait_until(&lane.calls.fetcher, || self.may_send(lane) || lane.is_paused()) => {}
            }
        }
        wait_until(&lane.calls.fetcher, || self.are_wanted(lane)).await;
        self.may_send(lane)
    }

    fn are_wanted(&self, lane: &Lane) -> bool {
        self.prepared.len(lane.index) + self.ready.len(lane.index) < LOW
    }

    /// Waits until a row of the lane waits for the slot for large mails, or one can be claimed.
    pub async fn wait_large(&self, lane: &Lane) {
        let is_any = || lane.large.has_claimed() || lane.large.has_known() && self.may_send(lane);
        wait_until(&lane.calls.large, is_any).await;
    }

    /// Waits until all large rows that were found are claimed, or the lane may not send.
    pub async fn wait_large_claimed(&self, lane: &Lane) {
        wait_until(&lane.calls.fetcher, || !lane.large.has_known() || !self.may_send(lane)).await;
    }

    /// Waits until a further large row can be remembered, or the lane may not send.
    pub async fn wait_large_remembered(&self, lane: &Lane) {
        wait_until(&lane.calls.fetcher, || lane.large.remembers_more() || !self.may_send(lane)).await;
    }

    /// Waits until a further large row can wait for its slot, or the lane may not send.
    pub async fn wait_large_room(&self, lane: &Lane) {
        wait_until(&lane.calls.fetcher, || lane.large.has_room() || !self.may_send(lane)).await;
    }

    /// Waits until the lane has mails to be marked `sending`, and less than a second's worth of marked ones. Takes as many
    /// as make two seconds' worth, those that may go first before others.
    pub async fn next_to_mark(&self, lane: &Lane) -> Vec<Prepared> {
        let mut mails = Vec::new();
        wait_until(&lane.calls.marker, || {
            mails = match self.missing_marks(lane) {
                0 => Vec::new(),
                missing => self.take_prepared(lane, missing),
            };
            !mails.is_empty()
        })
        .await;
        mails
    }

    /// Returns the number of mails that are to be marked; 0 while there are marked ones for another second. Mails of a
    /// paused sender are not counted, or they would keep those of other senders from being marked.
    fn missing_marks(&self, lane: &Lane) -> usize {
        let now = Instant::now();
        let streak = self.refusals();
        let marked = if streak.is_quiet() {
            self.ready.len(lane.index)
        } else {
            self.ready.count(lane.index, |job| streak.turn(job.sender(), lane.index, now).is_some())
        };
        drop(streak);
        let ahead = lane.mark_ahead(now);
        if marked < ahead.div_ceil(2) { ahead - marked } else { 0 }
    }

    fn take_prepared(&self, lane: &Lane, limit: usize) -> Vec<Prepared> {
        let streak = self.refusals();
        if streak.is_quiet() {
            return self.prepared.take(lane.index, limit, |_| Some(()));
        }
        let now = Instant::now();
        self.prepared.take(lane.index, limit, |mail| streak.turn(mail.sender(), lane.index, now))
    }

    /// Gives the lane's mails that are ready, and its claimed rows that wait, back to the table. Mails on the wire are not
    /// among them.
    pub fn return_ready(&self, lane: &Lane) {
        self.ready.drain(lane.index).into_iter().for_each(Job::release);
        self.prepared.drain(lane.index).into_iter().for_each(Prepared::release);
        while let Some(claim) = lane.large.next() {
            lane.release(claim);
        }
        lane.calls.fetcher.notify_waiters();
    }

    /// Takes the mails of senders that are not offered out of the way of others: a trial that takes long has begun since
    /// they became ready.
    pub fn clear_paused(&self) {
        let paused = self.take_paused(&self.refusals());
        paused.into_iter().for_each(|(mail, left, said)| self.keep_for_later(mail, left, &said));
    }

    /// Gives the lane's mails back if they may not go now. Settles refusals if no lane's mails may go, so that none comes
    /// that makes a streak longer; of a single lane that is closed, they are settled after a while.
    pub fn return_unless_open(&self, lane: &Lane) {
        if self.may_send(lane) {
            return;
        }
        self.return_ready(lane);
        if !self.breaker.is_up() || self.stop.is_cancelled() {
            self.flush_refusals();
        }
    }

    /// Notes and logs an error because of which the lane fetches nothing now.
    pub fn fetching_failed(&self, lane: &Lane, error: &PassError) {
        self.events.progress.liveness.started(lane.index);
        match error {
            PassError::Database(error) => {
                self.check_files();
                self.events.database_failed(lane, Work::Fetching, error);
            }
            PassError::Ledger(error) => self.ledger_failed(error),
            PassError::Start(error) => {
                tracing::error!(target: events::MAIL, queue = %lane.name(), %error, "nothing of this queue is sent");
            }
        }
    }

    /// Looks up whether an operator has paused the queue or the relay, and obeys.
    pub async fn obey_operator(&self, lane: &Lane) -> Result<(), queue::Error> {
        let paused = lane.queue.paused().await?;
        if lane.ended.is_cancelled() {
            // What it says of the relay is another lane's to say now.
            return Ok(());
        }
        if lane.set_paused(paused.queue) {
            let word = if paused.queue { "queue paused by an operator" } else { "queue resumed by an operator" };
            tracing::info!(target: events::DATABASE, queue = %lane.name(), "{word}");
            self.poll.notify_waiters();
        }
        if self.breaker.set_paused(lane.index, paused.relay) {
            let word = if paused.relay { "relay paused by an operator" } else { "relay resumed by an operator" };
            tracing::info!(target: events::RELAY, "{word}");
            self.poll.notify_waiters();
        }
        Ok(())
    }

    /// Returns the times for rows that the database does not delete.
    pub fn delete_retry(&self) -> DeleteRetry {
        let now = Timestamp::now();
        DeleteRetry { now, next: retry::next_delete(&self.live.get().settings.retry, now, now, jitter()) }
    }

    // --- ready mails ---

    /// Takes a mail that is to be marked `sending` and offered. Where its sender is paused, it is deferred until the pause
    /// is over.
    pub fn push_prepared(&self, mail: Prepared) {
        let lane = mail.lane.clone();
        let streak = self.refusals();
        match streak.paused(mail.sender(), Instant::now()) {
            Some((left, said)) => self.keep_for_later(mail, left, said),
            None => self.prepared.push(lane.index, mail),
        }
        drop(streak);
        if self.missing_marks(&lane) > 0 {
            lane.calls.marker.notify_waiters();
        }
    }

    /// Makes a mail ready that is marked.
    pub fn push(&self, job: Job) {
        self.make_ready(job, |flow, job| self.ready.push(flow, job));
    }

    /// Makes a mail ready again that was taken and not offered, for another connection; or gives it back to the table,
    /// where no connection will take it.
    pub fn put_back(&self, job: Job) {
        let lane = job.lane().clone();
        if !self.may_send(&lane) {
            return self.release(job);
        }
        self.refusals().came_back(job.sender());
        self.make_ready(job, |flow, job| self.ready.push_front(flow, job));
        // What closed the lane meanwhile may have given back all that was ready before.
        if !self.may_send(&lane) {
            self.return_ready(&lane);
        }
    }

    /// Gives a mail back to the table that was taken and not offered.
    pub fn release(&self, job: Job) {
        let sender = job.sender().clone();
        job.release();
        self.came_back(&sender);
    }

    /// A mail of this sender was taken and not offered. Another one may try whether the sender's pause is over.
    pub fn came_back(&self, sender: &Sender) {
        self.refusals().came_back(sender);
        self.ready.stir();
    }

    fn make_ready(&self, job: Job, push: impl FnOnce(usize, Job)) {
        let now = Instant::now();
        let streak = self.refusals();
        match streak.paused(job.sender(), now) {
            Some((left, said)) => self.keep_for_later(job.prepared, left, said),
            None => push(job.lane().index, job),
        }
    }

    /// Takes the next mail whose turn it is.
    pub fn next(&self, now: Instant) -> Option<Job> {
        let mut streak = self.refusals();
        let job = if streak.is_quiet() {
            self.ready.try_next()?
        } else {
            let turn = |flow, job: &Job| streak.turn(job.sender(), flow, now);
            let job = self.ready.try_next_by(Turn::Now, turn)?;
            streak.goes_out(job.sender(), now);
            job
        };
        drop(streak);
        let lane = job.lane();
        if self.missing_marks(lane) > 0 {
            lane.calls.marker.notify_waiters();
        }
        if self.are_wanted(lane) {
            lane.calls.fetcher.notify_waiters();
        }
        Some(job)
    }

    /// Waits until [`Context::next`] would return a mail.
    pub async fn wait_nonempty(&self) {
        self.ready.wait_nonempty(|| self.has_next()).await;
    }

    fn has_next(&self) -> bool {
        let streak = self.refusals();
        if streak.is_quiet() {
            return !self.ready.is_empty();
        }
        let now = Instant::now();
        self.ready.any(|flow, job| streak.turn(job.sender(), flow, now).is_some())
    }

    /// Returns true while the mails of this one's sender are not offered.
    pub fn sender_is_paused(&self, job: &Job) -> bool {
        self.refusals().paused(job.sender(), Instant::now()).is_some()
    }

    // --- attempts ---

    /// Takes a finished attempt. Settles it, unless it may be part of a streak of refusals.
    pub fn finished(&self, finished: Finished) {
        let heard = heard(&finished.attempt);
        let was_accepted = heard == Heard::Accepted;
        let (sender, flow) = (finished.job.sender().clone(), finished.job.lane().index);
        let (ruling, paused) = {
            let mut streak = self.refusals();
            // A single pass goes on behind the mails of one sender: other senders' may follow, and have no later turn.
            let others = || self.once || self.others_are_ready(&sender);
            let begun = finished.begun;
            let offered = Offered { item: finished, sender: &sender, queue: flow, begun };
            let ruling = streak.take(offered, heard, others, Instant::now(), jitter());
            (ruling, self.take_paused(&streak))
        };
        if self.once && was_accepted && self.breaker.is_up() {
            self.events.progress.clear_relay_trouble();
        }
        self.ready.stir();
        let Ruling { settled, excused, consequences } = ruling;
        settled.into_iter().for_each(|finished| self.conclude(finished));
        for finished in excused {
            let attempt = retry::excused(&finished.attempt);
            self.conclude(Finished { attempt, ..finished });
        }
        for consequence in consequences {
            match consequence {
                Consequence::Sender { sender, pause, said } => {
                    self.note_sender_paused(sender.as_ref(), pause, &said);
                    if self.once && !self.others_are_ready(&sender) {
                        // Unless a mail of another sender is accepted, the pass ends with this.
                        self.events.progress.note_relay_trouble(&in_a_row(&said));
                    }
                }
                Consequence::Relay { said } => self.take_relay_down(&in_a_row(&said)),
            }
        }
        paused.into_iter().for_each(|(mail, left, said)| self.keep_for_later(mail, left, &said));
    }

    /// Returns true while refused mails wait for others.
    pub fn has_refusals_waiting(&self) -> bool {
        !self.refusals().is_idle()
    }

    /// Settles the refused mails to which no further refusal came for a while.
    pub fn flush_ripe_refusals(&self) {
        let ripe = self.refusals().ripe(Instant::now());
        ripe.into_iter().for_each(|finished| self.conclude(finished));
    }

    /// Settles all refused mails that wait, because no other may come for a while. The streaks go on.
    pub fn flush_refusals(&self) {
        let waiting = self.refusals().flush();
        waiting.into_iter().for_each(|finished| self.conclude(finished));
    }

    /// Decides what becomes of the row, and hands it to the settler.
    fn conclude(&self, finished: Finished) {
        let history = &finished.job.prepared.history;
        let verdict =
            retry::decide(&self.live.get().settings.retry, history, &finished.attempt, Timestamp::now(), jitter());
        finished.settle(verdict);
    }

    fn others_are_ready(&self, sender: &Sender) -> bool {
        self.ready.any(|_, job| job.sender() != sender) || self.prepared.any(|_, mail| mail.sender() != sender)
    }

    /// Takes out the ready mails of senders that are paused.
    fn take_paused(&self, streak: &RefusalStreak<Finished>) -> Vec<(Prepared, Duration, String)> {
        let now = Instant::now();
        let is_paused = |sender: &Sender| streak.paused(sender, now).is_some();
        let is_any = || {
            self.ready.any(|_, job| is_paused(job.sender())) || self.prepared.any(|_, mail| is_paused(mail.sender()))
        };
        if streak.is_quiet() || !is_any() {
            return Vec::new();
        }
        let marked = self.ready.extract(|job| is_paused(job.sender())).into_iter().map(|job| job.prepared);
        let mails = marked.chain(self.prepared.extract(|mail| is_paused(mail.sender())));
        let with_pause = |mail: Prepared| {
            let (left, said) = streak.paused(mail.sender(), now)?;
            let said = said.to_owned();
            Some((mail, left, said))
        };
        mails.filter_map(with_pause).collect()
    }

    fn note_sender_paused(&self, sender: Option<&Address>, pause: Duration, said: &str) {
        let sender = sender.map_or("<>".to_owned(), |sender| self.events.redact(sender.as_ref()));
        tracing::warn!(target: events::RELAY, sender, reason = self.events.redact(said),
            seconds = pause.as_secs_f64().round(),
            "sender paused: its mails in a row are refused; they are deferred, and one is tried after the pause");
    }

    /// Defers a mail that is not offered, because its sender is paused for this long. No attempt is used.
    fn keep_for_later(&self, mail: Prepared, left: Duration, said: &str) {
        if self.once && mail.claim.is_new() {
            // This pass has its turn behind it. A row that was deferred before would be found again at once.
            mail.release();
        } else {
            defer(mail, left, said);
        }
    }

    fn refusals(&self) -> MutexGuard<'_, RefusalStreak<Finished>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles the refused mails that wait, and ends all streaks: they say nothing about the relay as it is set now.
    fn forget_refusals(&self) {
        let mut ended = std::mem::take(&mut *self.refusals());
        ended.flush().into_iter().for_each(|finished| self.conclude(finished));
    }

    // --- the configuration ---

    /// Makes room for the mails of a further lane.
    pub fn add_flow(&self, weight: u32) {
        self.prepared.add_flow(weight);
        self.ready.add_flow(weight);
    }

    pub fn set_weight(&self, lane: &Lane, weight: u32) {
        self.prepared.set_weight(lane.index, weight);
        self.ready.set_weight(lane.index, weight);
    }

    /// The relay is another one from now on, or has other settings: what was known of it says nothing any more. Its
    /// connections are numbered from `first`. Connections of before count with them where `same_host`.
    pub fn relay_changed(&self, first: usize, connections: usize, same_host: bool) {
        self.forget_refusals();
        if self.events.progress.relay_trouble().is_some() {
            self.outage.ends(Timestamp::now());
            self.events.progress.clear_relay_trouble();
            tracing::info!(target: events::RELAY, "the relay has other settings and is tried at once");
        }
        self.breaker.renew(first, connections, same_host);
        self.poll.notify_waiters();
    }

    // --- the relay ---

    /// Takes the relay down, or ends the pass, because of trouble that is no mail's.
    pub fn relay_failed(&self, trouble: &Trouble) {
        self.take_relay_down(&with_remedy(trouble));
    }

    /// As [`Context::relay_failed`], for a reason in words.
    pub fn take_relay_down(&self, reason: &str) {
        self.trip(reason, "relay down", "relay in trouble: the pass ends here");
    }

    /// Stops sending because of our own disk: no mail is sent that cannot be noted in the ledger.
    pub fn ledger_failed(&self, error: &ledger::Error) {
        let reason = format!(
            "{error}: make room on its disk, or mend its rights; until then nothing is sent, and nothing is lost"
        );
        self.trip(&reason, "sending suspended", "the ledger cannot be written: the pass ends here");
    }

    /// Uses fewer connections, because our own limit of open files was reached: at the connection of this sender, or
    /// elsewhere. The relay stays up.
    pub fn out_of_files(&self, connection: Option<usize>) {
        if let Some(connections) = self.breaker.out_of_files(connection, Instant::now()) {
            tracing::warn!(target: events::RELAY, connections, reason = open_files::explanation(),
                "fewer connections: our own limit of open files was reached");
        }
    }

    /// As [`Context::out_of_files`], where a part that opens files failed and may not say why.
    pub fn check_files(&self) {
        if open_files::is_reached() {
            self.out_of_files(None);
        }
    }

    fn trip(&self, reason: &str, down: &str, ended: &str) {
        let Trip::Opened(pause) = self.breaker.trip(reason, Instant::now(), jitter()) else { return };
        self.outage.begins(Timestamp::now());
        self.events.progress.note_relay_trouble(reason);
        // No more mails come that could make a streak longer.
        self.flush_refusals();
        let reason = self.events.redact(reason);
        if self.once {
            tracing::warn!(target: events::RELAY, reason, "{ended}");
        } else {
            tracing::warn!(target: events::RELAY, reason, seconds = pause.as_secs(), "{down}");
        }
    }

    /// The relay can be reached again.
    pub fn relay_is_back(&self) {
        let down = self.outage.ends(Timestamp::now());
        self.breaker.close();
        tracing::info!(target: events::RELAY, seconds = down.as_secs(), "relay up again");
        self.events.progress.clear_relay_trouble();
        self.poll.notify_waiters();
    }
}

/// `jitter` for the policies, which take chance as an argument.
pub fn jitter() -> f64 {
    rand::random_range(0.0..1.0)
}

/// The time after which a task looks again whether what it waits for has come: the pause of a sender ends by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Waits until `reached`, which is asked at each call.
async fn wait_until(calls: &Notify, mut reached: impl FnMut() -> bool) {
    loop {
        let call = calls.notified();
        tokio::pin!(call);
        // Registered before the look, so that no call between the two is missed.
        call.as_mut().enable();
        if reached() {
            return;
        }
        // Whether it was called or the time has passed, it looks again.
        let _ = timeout(LOOK_AGAIN, call).await;
    }
}

fn in_a_row(said: &str) -> String {
    format!("mails in a row are refused with {said}")
}

/// Defers a mail. The mails come back one after the other, over a time as long as the pause, because after it a single
/// one is tried.
fn defer(mail: Prepared, left: Duration, said: &str) {
    let next_attempt = Timestamp::now().checked_add(left + left.mul_f64(jitter())).unwrap_or(Timestamp::MAX);
    let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt };
    let last_reply = Some(format!("not offered: mails of its sender are refused with {said}"));
    let history = mail.history.clone();
    mail.settle(Verdict { fate, history, last_reply });
}

/// Returns the smarthost's words, with a remedy where they do not say it.
fn with_remedy(trouble: &Trouble) -> String {
    match (&trouble.cause, trouble.stage) {
        (Cause::Reply(Reply { code: 535, .. }), _) => {
            format!("{trouble}: the login was refused; relay.username or the file in relay.password_file is wrong")
        }
        (Cause::Reply(Reply { code: 530, .. }), stage) if stage >= Stage::Mail => {
            format!(
                "{trouble}: the smarthost wants a login; set relay.username and relay.password_file, or look at relay.tls"
            )
        }
        (Cause::Timeout, Stage::Greeting) => {
            format!("{trouble}: it may wait for TLS, as on port 465, which wants relay.tls = \"implicit\"")
        }
        _ => trouble.to_string(),
    }
}
