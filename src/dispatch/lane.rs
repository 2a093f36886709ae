//! A queue's lane through the dispatcher, and what travels on it.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::Shared;
use crate::ledger::EntryId;
use crate::mail::{Address, Fingerprint, Mail, MailId};
use crate::outcome::{Attempt, History, Verdict};
use crate::queue::{Claim, Queue, Settlement};

#[derive(Debug)]
pub struct Lane {
    pub index: usize,
    pub queue: Queue,
    /// The operators' stop of this queue.
    paused: AtomicBool,
    recovered: AtomicBool,
    beats: Mutex<Beats>,
    lease: Duration,
    /// How old the newest heartbeat may be when a dot goes out: the lease less the time the dot's answer may take.
    dot_allowance: Duration,
    settler: Mutex<Option<mpsc::UnboundedSender<Done>>>,
}

/// Our signs of life, as the database has them.
#[derive(Clone, Copy, Debug)]
struct Beats {
    /// When the newest heartbeat that reached the database was sent off.
    newest: Option<Instant>,
    /// Since when nobody can have taken us for dead. Claims that were ours before need not be ours now.
    unbroken_since: Instant,
}

/// A claimed row that became a mail and waits for a connection.
#[derive(Debug)]
pub struct Job {
    pub lane: Arc<Lane>,
    pub claim: Claim,
    pub fingerprint: Fingerprint,
    pub mail: Arc<Mail>,
    /// Who is to be reached in this attempt.
    pub recipients: Vec<Address>,
    /// When the database was last asked whether the claim is ours.
    pub confirmed: Instant,
    /// What was known before this attempt, recipients that cannot be an address included.
    pub history: History,
    /// Its share of the memory.
    pub memory: OwnedSemaphorePermit,
}

/// A claim with its verdict, for the settler.
pub struct Done {
    pub settlement: Settlement,
    pub notes: Notes,
}

/// What the ledger knows of an attempt.
#[derive(Default)]
pub struct Notes {
    pub accepted: Vec<EntryId>,
    /// Refused, or of unknown outcome: forgotten once the row's record says so.
    pub other: Vec<EntryId>,
    /// The row's share of the memory: where the database cannot compare contents, settling reads the row once more.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// A finished attempt.
pub struct Finished {
    pub job: Job,
    pub attempt: Attempt,
    /// The time at which the mail was offered.
    pub begun: Instant,
    pub notes: Notes,
}

impl Lane {
    pub fn new(index: usize, queue: Queue, shared: &Shared) -> (Arc<Self>, mpsc::UnboundedReceiver<Done>) {
        let (settler, inbox) = mpsc::unbounded_channel();
        let lease = shared.settings.lease;
        let lane = Self {
            index,
            queue,
            paused: AtomicBool::new(false),
            recovered: AtomicBool::new(false),
            beats: Mutex::new(Beats { newest: None, unbroken_since: Instant::now() }),
            lease,
            dot_allowance: lease.saturating_sub(shared.relay.settings().timeouts.final_dot),
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

    /// True where that is a change.
    pub fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::Relaxed) != paused
    }

    /// What an earlier process left behind has been settled once.
    pub fn was_recovered(&self) -> bool {
        self.recovered.load(Ordering::Relaxed)
    }

    pub fn set_recovered(&self) {
        self.recovered.store(true, Ordering::Relaxed);
    }

    /// A heartbeat that was sent off at `sent_off` has reached the database by `now`.
    pub fn has_beaten(&self, sent_off: Instant, now: Instant) {
        let mut beats = self.beats.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if beats.newest.is_none_or(|newest| now.duration_since(newest) >= self.lease) {
            beats.unbroken_since = now;
        }
        beats.newest = Some(sent_off);
    }

    /// Whether a final dot may go out for a row whose claim was confirmed at `confirmed`: nobody can have taken it over
    /// since, and nobody can before the dot's answer is due.
    pub fn dot_allowed(&self, confirmed: Instant, now: Instant) -> bool {
        let beats = *self.beats.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fresh = beats.newest.is_some_and(|newest| now.duration_since(newest) < self.dot_allowance);
        fresh && confirmed >= beats.unbroken_since
    }

    pub fn settle(&self, done: Done) {
        let settler = self.settler.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(settler) = settler.as_ref() {
            // The settler outlives every claim; where it panicked, the whole process ends.
            let _ = settler.send(done);
        }
    }

    /// Gives a claim back untouched.
    pub fn release(&self, claim: Claim) {
        let settlement = Settlement { claim, fingerprint: None, message_id: None, verdict: Verdict::released() };
        self.settle(Done { settlement, notes: Notes::default() });
    }

    /// No more verdicts come: the settler ends when it has carried out those that it has.
    pub fn close(&self) {
        self.settler.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

impl Job {
    pub fn id(&self) -> &MailId {
        self.claim.id()
    }

    /// Back to where it was before the claim.
    pub fn release(self) {
        let Self { lane, claim, .. } = self;
        lane.release(claim);
    }
}
