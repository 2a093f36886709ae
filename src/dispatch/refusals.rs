//! Carries out what a streak of refusals leads to: pauses a sender or the relay, and lets each mail wait for its turn.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::lane::{Done, Finished, Job, Notes};
use super::refusal_streak::{Heard, Offered, RefusalStreak, Ruling, Sender, Trip, Turn, heard};
use super::{Shared, events, jitter, sender};
use crate::mail::Address;
use crate::outcome::{Fate, Reason, Verdict};
use crate::queue::Settlement;
use crate::retry;

/// The refusals of all workers. Its lock is taken before that of the ready mails, never the other way round.
#[derive(Default)]
pub struct Refusals {
    streak: Mutex<RefusalStreak<Finished>>,
}

impl std::fmt::Debug for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refusals")
    }
}

impl Refusals {
    /// No refused mail waits for others.
    pub fn is_idle(&self) -> bool {
        self.lock().is_idle()
    }

    /// The sender of this mail is paused.
    pub fn is_paused(&self, job: &Job) -> bool {
        self.lock().paused(&job.mail.own_sender, Instant::now()).is_some()
    }

    /// Makes a mail ready. Where its sender is paused, it is deferred until the pause is over.
    pub fn push(&self, shared: &Shared, job: Job) {
        self.ready(shared, job, |line, job| shared.ready.push(line, job));
    }

    /// Makes a mail ready again that went out and was not offered.
    pub fn put_back(&self, shared: &Shared, job: Job) {
        self.lock().came_back(&job.mail.own_sender);
        self.ready(shared, job, |line, job| shared.ready.push_front(line, job));
    }

    /// Gives a mail's claim back, which went out and was not offered.
    pub fn release(&self, shared: &Shared, job: Job) {
        let sender = job.mail.own_sender.clone();
        job.release();
        self.came_back(shared, &sender);
    }

    /// A mail of this sender went out and was not offered. Another one may try whether the sender's pause is over.
    pub fn came_back(&self, shared: &Shared, sender: &Sender) {
        self.lock().came_back(sender);
        shared.ready.stir();
    }

    fn ready(&self, shared: &Shared, job: Job, push: impl FnOnce(usize, Job)) {
        let now = Instant::now();
        let streak = self.lock();
        match streak.paused(&job.mail.own_sender, now) {
            Some((left, said)) => keep_for_later(shared, job, left, said),
            None => push(job.lane.index, job),
        }
    }

    /// The next mail whose turn it is.
    pub fn next(&self, shared: &Shared, now: Instant) -> Option<Job> {
        let mut streak = self.lock();
        if streak.is_quiet() {
            return shared.ready.try_next();
        }
        let turn = |line, job: &Job| streak.turn(&job.mail.own_sender, line, now);
        let job = shared.ready.try_next_by(Turn::Now, turn)?;
        streak.goes_out(&job.mail.own_sender);
        Some(job)
    }

    /// Returns true if [`Refusals::next`] would find a mail.
    pub fn has_next(&self, shared: &Shared) -> bool {
        let streak = self.lock();
        if streak.is_quiet() {
            return !shared.ready.is_empty();
        }
        let now = Instant::now();
        shared.ready.any(|line, job| streak.turn(&job.mail.own_sender, line, now).is_some())
    }

    /// Takes a finished attempt. Settles it, unless it may be part of a streak.
    pub fn take(&self, shared: &Shared, finished: Finished) {
        let heard = heard(&finished.attempt);
        let was_accepted = heard == Heard::Accepted;
        let (sender, line) = (finished.job.mail.own_sender.clone(), finished.job.lane.index);
        let (ruling, paused) = {
            let mut streak = self.lock();
            // A single pass goes on behind the mails of one sender: other senders' may follow, and have no later turn.
            let others = || shared.once || others_are_ready(shared, &sender);
            let begun = finished.begun;
            let offered = Offered { item: finished, sender: &sender, queue: line, begun };
            let ruling = streak.take(offered, heard, others, Instant::now(), jitter());
            (ruling, paused_now(shared, &streak))
        };
        if shared.once && was_accepted && shared.health.is_up() {
            shared.progress.clear_relay_trouble();
        }
        shared.ready.stir();
        let Ruling { settled, excused, trips } = ruling;
        settled.into_iter().for_each(|finished| sender::conclude(shared, finished));
        for finished in excused {
            let attempt = retry::excused(&finished.attempt);
            sender::conclude(shared, Finished { attempt, ..finished });
        }
        for trip in trips {
            match trip {
                Trip::Sender { sender, pause, said } => {
                    note_paused(shared, sender.as_ref(), pause, &said);
                    if shared.once && !others_are_ready(shared, &sender) {
                        // Unless a mail of another sender is accepted, the pass ends with this.
                        shared.progress.note_relay_trouble(&in_a_row(&said));
                    }
                }
                Trip::Relay { said } => {
                    sender::relay_trouble(shared, &in_a_row(&said));
                }
            }
        }
        paused.into_iter().for_each(|(job, left, said)| keep_for_later(shared, job, left, &said));
    }

    /// Settles the refused mails to which no further refusal came for a while.
    pub fn flush_ripe(&self, shared: &Shared) {
        let ripe = self.lock().ripe(Instant::now());
        ripe.into_iter().for_each(|finished| sender::conclude(shared, finished));
    }

    /// Settles all refused mails that wait, because nothing else may come for a while. The rows of refusals go on.
    pub fn flush(&self, shared: &Shared) {
        let waiting = self.lock().flush();
        waiting.into_iter().for_each(|finished| sender::conclude(shared, finished));
    }

    fn lock(&self) -> MutexGuard<'_, RefusalStreak<Finished>> {
        self.streak.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn others_are_ready(shared: &Shared, sender: &Sender) -> bool {
    shared.ready.any(|_, job| job.mail.own_sender != *sender)
}

fn in_a_row(said: &str) -> String {
    format!("mails in a row are refused with {said}")
}

/// Takes out the ready mails of senders that are paused.
fn paused_now(shared: &Shared, streak: &RefusalStreak<Finished>) -> Vec<(Job, Duration, String)> {
    let now = Instant::now();
    if streak.is_quiet() || !shared.ready.any(|_, job| streak.paused(&job.mail.own_sender, now).is_some()) {
        return Vec::new();
    }
    let jobs = shared.ready.extract(|job| streak.paused(&job.mail.own_sender, now).is_some());
    let with_pause = |job: Job| {
        let (left, said) = streak.paused(&job.mail.own_sender, now)?;
        let said = said.to_owned();
        Some((job, left, said))
    };
    jobs.into_iter().filter_map(with_pause).collect()
}

fn note_paused(shared: &Shared, sender: Option<&Address>, pause: Duration, said: &str) {
    let redact = |text: &str| (shared.settings.redact)(text);
    let sender = sender.map_or("<>".to_owned(), |sender| redact(sender.as_ref()));
    tracing::warn!(target: events::RELAY, sender, reason = redact(said), seconds = pause.as_secs_f64().round(),
        "sender paused: its mails in a row are refused; they are deferred, and one is tried after the pause");
}

/// Lets a mail wait that is not offered, because its sender is paused for so long yet. No attempt is used.
fn keep_for_later(shared: &Shared, job: Job, left: Duration, said: &str) {
    if shared.once && job.claim.is_new() {
        // This pass has its turn behind it. A row that was deferred before would be found again at once.
        job.release();
    } else {
        defer(job, left, said);
    }
}

/// The mails come back one after the other, in a time as long as the pause, because after it a single one is tried.
fn defer(job: Job, left: Duration, said: &str) {
    let Job { lane, claim, fingerprint, mail, history, .. } = job;
    let next_attempt = Timestamp::now().checked_add(left + left.mul_f64(jitter())).unwrap_or(Timestamp::MAX);
    let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt };
    let last_reply = Some(format!("not offered: mails of its sender are refused with {said}"));
    let message_id = Some(mail.message_id.clone());
    let settlement = Settlement {
        claim,
        fingerprint: Some(fingerprint),
        message_id,
        verdict: Verdict { fate, history, last_reply },
    };
    lane.settle(Done { settlement, notes: Notes::default() });
}
