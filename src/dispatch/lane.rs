//! A queue's lane through the dispatcher: its lease, and the forms that a claimed row takes on its way.
//!
//! A [`Claim`] becomes a [`Prepared`] mail, which marking `sending` turns into a [`Job`], which an attempt turns into a
//! [`Finished`]. [`Lane::settle`] and its kin end each of them. Nothing else of a row is passed on, so that no row is in
//! two places.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::memory::Reserved;
use crate::ledger::Closing;
use crate::mail::{Address, Fingerprint, Mail, MailId};
use crate::outcome::{Attempt, Fate, History, Verdict};
use crate::queue::{self, Claim, Queue, Settlement};

#[derive(Debug)]
pub struct Lane {
    /// Counts the queues from 0.
    pub index: usize,
    pub queue: Queue,
    /// An operator has paused this queue.
    paused: AtomicBool,
    /// Batches of the fetcher that wait for memory.
    waiting_for_memory: AtomicUsize,
    recovered: AtomicBool,
    lease: Mutex<Lease>,
    settler: Mutex<Option<mpsc::UnboundedSender<Done>>>,
}

/// A claim with its verdict, for the settler.
#[derive(Debug)]
pub struct Done {
    pub settlement: Settlement,
    /// Entries of the ledger that can be closed once the row's record says what became of it.
    pub closing: Closing,
    /// The row's memory: where the database cannot compare contents, settling reads the row once more.
    pub memory: Option<Reserved>,
}

/// A claimed row that became a mail.
#[derive(Debug)]
pub struct Prepared {
    pub claim: Claim,
    pub fingerprint: Fingerprint,
    pub mail: Arc<Mail>,
    /// The recipients to be reached in this attempt.
    pub recipients: Vec<Address>,
    /// The state before this attempt, recipients that cannot be an address included.
    pub history: History,
    pub memory: Reserved,
}

/// A mail whose row is marked `sending`, so that it may be offered. [`Lane::mark_sending`] makes it.
#[derive(Debug)]
pub struct Job {
    pub lane: Arc<Lane>,
    pub prepared: Prepared,
    marked: Marked,
}

/// The proof that a row was marked `sending`.
#[derive(Clone, Copy, Debug)]
pub struct Marked {
    /// The time at which the database was asked to; the claim was ours then.
    at: Instant,
}

/// A finished attempt.
#[derive(Debug)]
pub struct Finished {
    pub job: Job,
    pub attempt: Attempt,
    /// The time at which the mail was offered.
    pub begun: Instant,
    pub closing: Closing,
}

impl Lane {
    /// Returns the lane, and the verdicts that are to be carried out. `final_dot` is the time that the reply to a final
    /// dot may take.
    pub fn new(
        index: usize,
        queue: Queue,
        lease: Duration,
        final_dot: Duration,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Done>) {
        let (settler, inbox) = mpsc::unbounded_channel();
        let lane = Self {
            index,
            queue,
            paused: AtomicBool::new(false),
            waiting_for_memory: AtomicUsize::new(0),
            recovered: AtomicBool::new(false),
            lease: Mutex::new(Lease::new(lease, final_dot, Instant::now())),
            settler: Mutex::new(Some(settler)),
        };
        (Arc::new(lane), inbox)
    }

    pub fn name(&self) -> &Arc<str> {
        self.queue.name()
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Returns true while a batch of the fetcher waits for memory.
    pub fn waits_for_memory(&self) -> bool {
        self.waiting_for_memory.load(Ordering::Relaxed) > 0
    }

    /// Lets the lane count as waiting for memory until `reserved` is done.
    pub async fn wait_for_memory<T>(&self, reserved: impl Future<Output = T>) -> T {
        self.waiting_for_memory.fetch_add(1, Ordering::Relaxed);
        let done = reserved.await;
        self.waiting_for_memory.fetch_sub(1, Ordering::Relaxed);
        done
    }

    /// Returns true if that is a change.
    pub fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::Relaxed) != paused
    }

    /// The claims of an earlier process have been settled.
    pub fn was_recovered(&self) -> bool {
        self.recovered.load(Ordering::Relaxed)
    }

    pub fn set_recovered(&self) {
        self.recovered.store(true, Ordering::Relaxed);
    }

    /// Writes a heartbeat, which renews the lease.
    pub async fn renew_lease(&self) -> Result<(), queue::Error> {
        let sent_off = Instant::now();
        self.queue.beat().await?;
        self.lease().renewed(sent_off, Instant::now());
        Ok(())
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks mails `sending`. Returns those that are still ours, and the ids of the others, which are lost.
    pub async fn mark_sending(
        self: &Arc<Self>,
        mails: Vec<Prepared>,
    ) -> Result<(Vec<Job>, Vec<MailId>), (queue::Error, Vec<Prepared>)> {
        let marked = Marked { at: Instant::now() };
        let rows: Vec<_> = mails.iter().map(|mail| (&mail.claim, mail.fingerprint)).collect();
        let ours = match self.queue.sending(&rows).await {
            Ok(ours) => ours,
            Err(error) => return Err((error, mails)),
        };
        let (mut jobs, mut lost) = (Vec::with_capacity(mails.len()), Vec::new());
        for (mail, ours) in mails.into_iter().zip(ours) {
            if ours {
                jobs.push(mail.marked(self.clone(), marked));
            } else {
                lost.push(mail.claim.id().clone());
            }
        }
        Ok((jobs, lost))
    }

    /// Has a verdict carried out. `fingerprint` is that of the content that was loaded, if it was; `message_id` that of
    /// the mail, if one was made.
    pub fn settle(&self, claim: Claim, fingerprint: Option<Fingerprint>, message_id: Option<String>, verdict: Verdict) {
        self.send(Done {
            settlement: Settlement { claim, fingerprint, message_id, verdict },
            closing: Closing::default(),
            memory: None,
        });
    }

    /// Gives a claim back untouched.
    pub fn release(&self, claim: Claim) {
        self.settle(claim, None, None, Verdict::released());
    }

    /// Sets a row aside for a reason of its own; it stays as it is. `said` is for the log.
    pub fn set_aside(&self, claim: Claim, fingerprint: Fingerprint, fate: Fate, said: Option<String>) {
        let verdict = Verdict { fate, history: claim.history().clone(), last_reply: said };
        self.settle(claim, Some(fingerprint), None, verdict);
    }

    fn send(&self, done: Done) {
        let settler = self.settler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settler) = settler.as_ref() {
            // The settler outlives every claim; if it panics, the process ends.
            let _ = settler.send(done);
        }
    }

    /// Ends the settler once it has carried out the verdicts that it has.
    pub fn close(&self) {
        self.settler.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Prepared {
    /// Has a verdict carried out on a mail that is not offered.
    pub fn settle(self, lane: &Lane, verdict: Verdict) {
        lane.settle(self.claim, Some(self.fingerprint), Some(self.mail.message_id.clone()), verdict);
    }

    /// Turns the mail into one that may be offered.
    pub fn marked(self, lane: Arc<Lane>, marked: Marked) -> Job {
        Job { lane, prepared: self, marked }
    }
}

impl Job {
    pub fn id(&self) -> &MailId {
        self.prepared.claim.id()
    }

    pub fn mail(&self) -> &Mail {
        &self.prepared.mail
    }

    /// The sender that the row itself names; `None` is the null sender.
    pub fn sender(&self) -> &Option<Address> {
        &self.prepared.mail.own_sender
    }

    /// Takes the job apart, so that its mail can be made again.
    pub fn into_parts(self) -> (Arc<Lane>, Prepared, Marked) {
        (self.lane, self.prepared, self.marked)
    }

    /// Returns true if a final dot may go out now: no other dispatcher can have taken the row over, and none can before
    /// the reply to the dot is due.
    pub fn is_covered(&self, now: Instant) -> bool {
        self.lane.lease().covers_final_dot(self.marked.at, now)
    }

    /// Returns the row to its state before the claim.
    pub fn release(self) {
        self.lane.release(self.prepared.claim);
    }

    /// Has a verdict carried out on a mail that was not offered.
    pub fn settle(self, verdict: Verdict) {
        self.prepared.settle(&self.lane, verdict);
    }
}

impl Finished {
    /// Has the verdict on the attempt carried out.
    pub fn settle(self, verdict: Verdict) {
        let Self { job: Job { lane, prepared, .. }, closing, .. } = self;
        let Prepared { claim, fingerprint, mail, memory, .. } = prepared;
        let message_id = Some(mail.message_id.clone());
        let settlement = Settlement { claim, fingerprint: Some(fingerprint), message_id, verdict };
        lane.send(Done { settlement, closing, memory: Some(memory) });
    }
}

/// Our heartbeats as the database has them. Pure: time is an argument.
#[derive(Clone, Copy, Debug)]
struct Lease {
    length: Duration,
    /// The greatest age of the newest heartbeat at which a final dot may go out: the lease less the time that the dot's
    /// reply may take.
    dot_allowance: Duration,
    /// The time at which the newest heartbeat that reached the database was sent off.
    newest: Option<Instant>,
    /// The time since which no other dispatcher can have taken us for dead. Earlier claims need not be ours any more.
    unbroken_since: Instant,
}

impl Lease {
    fn new(length: Duration, final_dot: Duration, now: Instant) -> Self {
        Self { length, dot_allowance: length.saturating_sub(final_dot), newest: None, unbroken_since: now }
    }

    /// A heartbeat that was sent off at `sent_off` has reached the database by `now`.
    fn renewed(&mut self, sent_off: Instant, now: Instant) {
        if self.newest.is_none_or(|newest| now.duration_since(newest) >= self.length) {
            self.unbroken_since = now;
        }
        self.newest = Some(sent_off);
    }

    /// Returns true if a final dot may go out for a row that was ours at `confirmed`.
    fn covers_final_dot(&self, confirmed: Instant, now: Instant) -> bool {
        let fresh = self.newest.is_some_and(|newest| now.duration_since(newest) < self.dot_allowance);
        fresh && confirmed >= self.unbroken_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(900);
    const FINAL_DOT: Duration = Duration::from_secs(600);

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_final_dot_needs_a_heartbeat_that_outlasts_its_reply() {
        let at = clock();
        let mut lease = Lease::new(LEASE, FINAL_DOT, at(0));
        assert!(!lease.covers_final_dot(at(0), at(0)), "no heartbeat was written yet");
        lease.renewed(at(10), at(12));
        assert!(!lease.covers_final_dot(at(11), at(12)), "the row was claimed before the first heartbeat");
        assert!(lease.covers_final_dot(at(12), at(12)));
        assert!(lease.covers_final_dot(at(12), at(309)));
        assert!(!lease.covers_final_dot(at(12), at(310)), "900 s less 600 s after the heartbeat was sent off");
    }

    #[test]
    fn a_lease_that_ran_out_covers_no_row_that_was_claimed_before() {
        let at = clock();
        let mut lease = Lease::new(LEASE, FINAL_DOT, at(0));
        lease.renewed(at(0), at(0));
        lease.renewed(at(899), at(899));
        assert!(lease.covers_final_dot(at(0), at(899)), "it was renewed in time");
        lease.renewed(at(1799), at(1799));
        assert!(!lease.covers_final_dot(at(1798), at(1799)), "another dispatcher may have it");
        assert!(lease.covers_final_dot(at(1799), at(1799)));
    }
}
