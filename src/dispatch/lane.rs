//! A queue's lane through the dispatcher: its lease, and the forms that a claimed row takes on its way.
//!
//! A [`Claim`] becomes a [`Prepared`] mail, which marking `sending` turns into a [`Job`], which an attempt turns into a
//! [`Finished`]. [`Lane::settle`] and its kin end each of them. Nothing else of a row is passed on, so that no row is in
//! two places.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::large::LargeRows;
use super::lease::Lease;
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
    /// The order to end, for this lane or for all. Its mails on the wire are finished.
    pub stop: CancellationToken,
    /// The lane is there since the start of the process.
    pub is_first: bool,
    /// Lanes before this one that may still hold claims of ours.
    predecessors: Mutex<Vec<Predecessor>>,
    /// A lane before this one has left claims behind that this one has not recovered yet.
    owes_recovery: AtomicBool,
    /// Cancelled when the fetcher has ended.
    pub fetched: CancellationToken,
    /// Cancelled when the lane has ended: its claims are settled or given up, and it makes none any more.
    pub ended: CancellationToken,
    /// Verdicts were not carried out before the lane's end. Their rows are still claimed.
    gave_up: AtomicBool,
    lease: Mutex<Lease>,
    throughput: Mutex<Throughput>,
    /// Rows that wait for the slot for large mails.
    pub large: LargeRows,
    /// The result of marking mails `sending`, or the error of claiming large rows, until the fetcher has taken it.
    marking: Mutex<Option<Result<(), queue::Error>>>,
    pub calls: Calls,
    settler: Mutex<Option<mpsc::UnboundedSender<Done>>>,
}

/// A lane that ends, because its queue has other settings now or is gone.
#[derive(Debug)]
pub struct Predecessor {
    pub lane: Arc<Lane>,
    /// It has the same table, as far as the settings tell.
    pub has_same_table: bool,
}

/// Wakes the lane's tasks when what they wait for may have come.
#[derive(Debug, Default)]
pub struct Calls {
    pub fetcher: Notify,
    pub marker: Notify,
    pub heartbeat: Notify,
    /// The fetcher of large rows.
    pub large: Notify,
}

/// A claim with its verdict, for the settler.
#[derive(Debug)]
pub struct Done {
    pub settlement: Settlement,
    /// Entries of the ledger that can be closed once the row's record says what became of it.
    pub closing: Closing,
    /// The memory of the settlement itself. A queue whose database does not settle thus comes to an end with its part.
    pub memory: Option<Reserved>,
}

/// A claimed row that became a mail.
#[derive(Debug)]
pub struct Prepared {
    pub lane: Arc<Lane>,
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

/// The shortest interval of heartbeats: 20 fit into the shortest lease, which is 1 s.
const SHORTEST_BEAT: Duration = Duration::from_millis(50);

/// The longest interval of heartbeats: a fifth of [`STALLED`](crate::telemetry::STALLED).
const LONGEST_BEAT: Duration = Duration::from_secs(60);

impl Lane {
    /// Returns the lane, and the verdicts that are to be carried out.
    pub fn new(
        index: usize,
        queue: Queue,
        lease: Duration,
        stop: CancellationToken,
        is_first: bool,
        predecessors: Vec<Predecessor>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Done>) {
        let (settler, inbox) = mpsc::unbounded_channel();
        let lane = Self {
            index,
            queue,
            paused: AtomicBool::new(false),
            waiting_for_memory: AtomicUsize::new(0),
            recovered: AtomicBool::new(false),
            stop,
            is_first,
            predecessors: Mutex::new(predecessors),
            owes_recovery: AtomicBool::new(false),
            fetched: CancellationToken::new(),
            ended: CancellationToken::new(),
            gave_up: AtomicBool::new(false),
            lease: Mutex::new(Lease::new(lease, Instant::now())),
            throughput: Mutex::new(Throughput::new(Instant::now())),
            large: LargeRows::default(),
            marking: Mutex::default(),
            calls: Calls::default(),
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
        self.owes_recovery.store(false, Ordering::Relaxed);
    }

    /// Returns true if the lane may begin beside lanes of the same table that finish their mails: their claims are in use
    /// and need no recovery, and none of them makes claims any more. To be asked behind [`Lane::predecessors_fetched`].
    pub fn may_take_up(&self) -> bool {
        let predecessors = self.predecessors();
        let mut living = predecessors.iter().filter(|before| !before.lane.ended.is_cancelled()).peekable();
        let is_finishing = |Predecessor { lane, has_same_table }: &Predecessor| {
            *has_same_table && lane.was_recovered() && !lane.gave_up.load(Ordering::Relaxed)
        };
        // A lane that has begun before begins again because of an error, and has claims of its own to recover.
        let needs_recovery = self.was_recovered() || self.owes_recovery.load(Ordering::Relaxed);
        !needs_recovery && living.peek().is_some() && living.all(is_finishing)
    }

    /// Waits until the lanes before this one make no claims any more. Their mails may be on the wire.
    pub async fn predecessors_fetched(&self) {
        let before: Vec<_> = self.predecessors().iter().map(|before| before.lane.clone()).collect();
        for lane in before {
            lane.fetched.cancelled().await;
        }
    }

    /// Waits until the lanes before this one have ended: none holds a claim, and none is about to make one.
    pub async fn predecessors_settled(&self) {
        let before: Vec<_> = self.predecessors().iter().map(|before| before.lane.clone()).collect();
        for lane in before {
            lane.ended.cancelled().await;
        }
    }

    /// Forgets the lanes before this one that have ended. Returns true if one of them has left claims behind, which are to
    /// be recovered.
    pub fn take_left_claims(&self) -> bool {
        let mut left = false;
        self.predecessors().retain(|before| {
            let ended = before.lane.ended.is_cancelled();
            left |= ended && before.lane.gave_up.load(Ordering::Relaxed);
            !ended
        });
        if left {
            self.owes_recovery.store(true, Ordering::Relaxed);
        }
        left
    }

    /// Verdicts could not be carried out before the lane's end.
    pub fn note_given_up(&self) {
        self.gave_up.store(true, Ordering::Relaxed);
    }

    fn predecessors(&self) -> MutexGuard<'_, Vec<Predecessor>> {
        self.predecessors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes another length over. The heartbeats follow it at once.
    pub fn set_lease(&self, length: Duration) {
        let before = std::mem::replace(&mut self.lease().length, length);
        if before != length {
            self.calls.heartbeat.notify_waiters();
        }
    }

    /// Returns the length of the lease. A lane that ends keeps the one that it had, and its heartbeats with it.
    pub fn lease_length(&self) -> Duration {
        self.lease().length
    }

    /// Returns the interval of heartbeats: 30 fit into a lease, so that a few may fail. At most a minute, because they are
    /// signs of life too.
    pub fn beat_interval(&self) -> Duration {
        (self.lease_length() / 30).clamp(SHORTEST_BEAT, LONGEST_BEAT)
    }

    /// Writes a heartbeat, which renews the lease.
    pub async fn renew_lease(&self) -> Result<(), queue::Error> {
        let sent_off = Instant::now();
        let beaten = self.queue.beat().await;
        match &beaten {
            Ok(()) => self.lease().renewed(sent_off, Instant::now()),
            Err(_) => self.lease().failed = Some(Instant::now()),
        }
        beaten?;
        self.calls.fetcher.notify_waiters();
        Ok(())
    }

    /// Returns the time of the last heartbeat that could not be written.
    pub fn renewal_failed_at(&self) -> Option<Instant> {
        self.lease().failed
    }

    /// Returns true if a row that is claimed now could be offered now, on a connection on which the reply to a final dot
    /// may take `final_dot`.
    pub fn is_covered(&self, final_dot: Duration, now: Instant) -> bool {
        self.lease().covers_final_dot(final_dot, now, now)
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of mails that are marked `sending` ahead of the senders.
    pub fn mark_ahead(&self, now: Instant) -> usize {
        self.throughput().mark_ahead(now)
    }

    /// A mail of this lane was offered.
    fn offered(&self) {
        self.throughput().count(Instant::now());
    }

    fn throughput(&self) -> MutexGuard<'_, Throughput> {
        self.throughput.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks mails `sending`. Returns those that are still ours, and the ids of the others, which are lost.
    pub async fn mark_sending(
        &self,
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
                jobs.push(mail.marked(marked));
            } else {
                lost.push(mail.claim.id().clone());
            }
        }
        Ok((jobs, lost))
    }

    /// Keeps the result of marking mails, or the error of claiming large rows, for the fetcher. An error stays until it
    /// is taken.
    pub fn note_marking(&self, result: Result<(), queue::Error>) {
        let mut noted = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*noted, Some(Err(_))) {
            *noted = Some(result);
        }
    }

    /// Takes the result of marking mails; `None` if none were marked since the last call.
    pub fn take_marking(&self) -> Option<Result<(), queue::Error>> {
        self.marking.lock().unwrap_or_else(PoisonError::into_inner).take()
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

    /// Has a verdict carried out, and entries of the ledger closed then.
    pub fn send(&self, done: Done) {
        let settler = self.settler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settler) = settler.as_ref() {
            // The settler outlives every claim; if it panics, the process ends.
            let _ = settler.send(done);
        } else {
            self.note_given_up();
        }
    }

    /// Ends the settler once it has carried out the verdicts that it has.
    pub fn close(&self) {
        self.settler.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Prepared {
    /// Returns the sender that the row itself names; `None` is the null sender.
    pub fn sender(&self) -> &Option<Address> {
        &self.mail.own_sender
    }

    /// Returns the row to its state before the claim.
    pub fn release(self) {
        self.lane.release(self.claim);
    }

    /// Has a verdict carried out on a mail that is not offered.
    pub fn settle(self, verdict: Verdict) {
        self.lane.settle(self.claim, Some(self.fingerprint), Some(self.mail.message_id.clone()), verdict);
    }

    /// Turns the mail into one that may be offered.
    pub fn marked(self, marked: Marked) -> Job {
        Job { prepared: self, marked }
    }
}

impl Job {
    pub fn id(&self) -> &MailId {
        self.prepared.claim.id()
    }

    pub fn mail(&self) -> &Mail {
        &self.prepared.mail
    }

    pub fn lane(&self) -> &Arc<Lane> {
        &self.prepared.lane
    }

    pub fn sender(&self) -> &Option<Address> {
        self.prepared.sender()
    }

    /// Takes the job apart, so that its mail can be made again.
    pub fn into_parts(self) -> (Prepared, Marked) {
        (self.prepared, self.marked)
    }

    /// Returns true if a final dot may go out now whose reply may take `final_dot`: no other dispatcher can have taken the
    /// row over, and none can before the reply is due.
    pub fn is_covered(&self, final_dot: Duration, now: Instant) -> bool {
        self.lane().lease().covers_final_dot(final_dot, self.marked.at, now)
    }

    /// Returns the row to its state before the claim.
    pub fn release(self) {
        self.prepared.release();
    }
}

impl Finished {
    /// Has the verdict on the attempt carried out.
    pub fn settle(self, verdict: Verdict) {
        let Self { job: Job { prepared, .. }, closing, .. } = self;
        let Prepared { lane, claim, fingerprint, mail, mut memory, .. } = prepared;
        lane.offered();
        // The ledger has the acceptance, and nothing offers the content again.
        if memory.is_large() && lane.queue.reads_to_settle() {
            memory.keep_to_read();
        } else {
            memory.shrink_to(&verdict.history);
        }
        let message_id = Some(mail.message_id.clone());
        let settlement = Settlement { claim, fingerprint: Some(fingerprint), message_id, verdict };
        lane.send(Done { settlement, closing, memory: Some(memory) });
    }
}

/// The time for which marked mails should last: long enough that the senders never wait for the database, and short
/// enough that few outcomes are unknown if this machine dies.
const AHEAD: Duration = Duration::from_secs(2);

/// The number of [`Throughput`]'s slots, each of `AHEAD / SLOTS`.
const SLOTS: usize = 8;

/// Mails marked ahead at least: at the start, and where a mail takes seconds. More than the refusals that make a streak, so
/// that a database that is slow to mark does not tear a streak apart.
const LEAST_AHEAD: usize = 16;

/// Mails marked ahead at most. One statement marks them; a batch has half as many.
const MOST_AHEAD: usize = 512;

/// The mails that were offered in the last [`AHEAD`]. Pure: time is an argument.
#[derive(Clone, Copy, Debug)]
struct Throughput {
    start: Instant,
    /// The number of the newest slot since the start.
    newest: u128,
    /// The slot with the number n is at n modulo [`SLOTS`].
    slots: [usize; SLOTS],
}

impl Throughput {
    fn new(now: Instant) -> Self {
        Self { start: now, newest: 0, slots: [0; SLOTS] }
    }

    fn count(&mut self, now: Instant) {
        self.advance(now);
        self.slots[(self.newest % SLOTS as u128) as usize] += 1;
    }

    fn mark_ahead(&mut self, now: Instant) -> usize {
        self.advance(now);
        self.slots.iter().sum::<usize>().clamp(LEAST_AHEAD, MOST_AHEAD)
    }

    fn advance(&mut self, now: Instant) {
        let newest = now.saturating_duration_since(self.start).as_millis() / (AHEAD.as_millis() / SLOTS as u128);
        let passed = newest.saturating_sub(self.newest).min(SLOTS as u128);
        self.newest = self.newest.max(newest);
        for back in 0..passed {
            self.slots[((self.newest - back) % SLOTS as u128) as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Arc<Lane> {
        let database = queue::Database { url: "sqlite:/nowhere".parse().expect("URL"), password: None };
        let settings =
            queue::Settings { name: "newsletter".into(), database, table: "mail_queue".to_owned(), max_size: 1 };
        let queue = Queue::new(settings, String::new()).expect("queue");
        Lane::new(0, queue, Duration::from_secs(900), CancellationToken::new(), true, Vec::new()).0
    }

    #[test]
    fn a_pause_is_a_change_once() {
        let lane = lane();
        assert!(!lane.set_paused(false));
        assert!(lane.set_paused(true) && lane.is_paused());
        assert!(!lane.set_paused(true));
        assert!(lane.set_paused(false) && !lane.is_paused());
    }

    #[test]
    fn heartbeats_are_signs_of_life_however_long_the_lease_is() {
        let lane = lane();
        assert_eq!(lane.beat_interval(), Duration::from_secs(30));
        lane.set_lease(Duration::from_secs(24 * 3600));
        assert_eq!(lane.beat_interval(), Duration::from_secs(60));
        lane.set_lease(Duration::from_secs(1));
        assert_eq!(lane.beat_interval(), Duration::from_millis(50));
    }

    #[test]
    fn a_table_is_the_same_by_whatever_name_its_server_goes() {
        let queue = |url: &str| {
            let database = queue::Database { url: url.parse().expect("URL"), password: None };
            let table = "mail_queue".to_owned();
            let settings = queue::Settings { name: "newsletter".into(), database, table, max_size: 1 };
            Queue::new(settings, String::new()).expect("queue")
        };
        let here = queue("mysql://a@localhost/web");
        assert!(here.has_same_table_as(&queue("mariadb://b@127.0.0.1:3306/web")));
        assert!(!here.has_same_table_as(&queue("mysql://a@localhost/other")));
        assert!(!here.has_same_table_as(&queue("mysql://a@localhost/web?socket=/run/other.sock")));
    }

    #[test]
    fn an_error_of_marking_stays_until_it_is_taken() {
        let lane = lane();
        assert!(lane.take_marking().is_none());
        lane.note_marking(Err(queue::Error::Refused { queue: "newsletter".into(), what: "no".to_owned() }));
        lane.note_marking(Ok(()));
        assert!(matches!(lane.take_marking(), Some(Err(_))));
        lane.note_marking(Ok(()));
        assert!(matches!(lane.take_marking(), Some(Ok(()))));
        assert!(lane.take_marking().is_none());
    }

    #[test]
    fn the_mails_of_two_seconds_are_marked_ahead() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut throughput = Throughput::new(start);
        assert_eq!(throughput.mark_ahead(at(0)), LEAST_AHEAD);
        // 50 mails/s.
        (0..500).for_each(|mail| throughput.count(at(mail * 20)));
        let ahead = throughput.mark_ahead(at(9_999));
        assert!((88..=100).contains(&ahead), "{ahead}");
        let half = throughput.mark_ahead(at(11_000));
        assert!((25..=50).contains(&half), "half of the window has no mails: {half}");
        assert_eq!(throughput.mark_ahead(at(12_000)), LEAST_AHEAD);
        (0..5000).for_each(|_| throughput.count(at(20_000)));
        assert_eq!(throughput.mark_ahead(at(20_000)), MOST_AHEAD);
        assert_eq!(throughput.mark_ahead(at(60_000)), LEAST_AHEAD);
    }
}
