//! Settling: carries verdicts out, in groups, and does not give up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::context::Context;
use super::events::{self, Story};
use super::lane::{Done, Lane};
use super::memory::Reserved;
use super::progress::Work;
use crate::failpoint;
use crate::ledger::{Closing, Ledger};
use crate::mail::MailId;
use crate::outcome::Fate;
use crate::queue::{self, Settled, Settlement};

/// The most verdicts of one transaction.
const GROUP: usize = 256;

/// The longest time for which a verdict waits for others, so that one transaction carries several.
const LINGER: Duration = Duration::from_millis(15);

/// After the order to end, a database that is out of reach is tried for this long; the ledger remembers the rest.
const LAST_TRIES: Duration = Duration::from_secs(10);

/// The pause between two tries of rows that another session has locked. Each try waits for locks for seconds.
const LOCKED_PAUSE: Duration = Duration::from_secs(2);

/// Locked rows that come last at the next try, as many as are tried one by one before all are taken to be locked.
const FIRST_TRIED: usize = 3;

/// The queue, and the last error because of which verdicts were given up at the end.
pub type Ended = (Arc<str>, Option<String>);

pub struct Settler {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
    pub ledger: Ledger,
}

/// Verdicts that go to the database together, each with what follows once it is there.
#[derive(Default)]
struct Group {
    settlements: Vec<Settlement>,
    after: Vec<After>,
}

/// The event about a settled row, the entries of the ledger that are closed then, and the memory of the verdict, which is
/// given back: a queue whose database does not settle thus comes to an end with its part.
struct After {
    story: Story,
    closing: Closing,
    _memory: Option<Reserved>,
}

/// The result of the try before.
#[derive(Clone, Copy)]
enum Tried {
    Never,
    Locked,
}

impl Settler {
    /// Runs until no more verdicts can come, and all are carried out or given up.
    pub async fn run(self, inbox: mpsc::UnboundedReceiver<Done>) -> Ended {
        let (closing, closed) = mpsc::unbounded_channel();
        let (locking, locked) = mpsc::unbounded_channel();
        let (unsettled, still_locked, ()) = tokio::join!(
            self.settle_all(inbox, locking, closing.clone()),
            self.settle_locked(locked, closing),
            self.close_entries(closed)
        );
        (self.lane.name().clone(), unsettled.or(still_locked))
    }

    /// Returns the last error because of which verdicts were given up.
    async fn settle_all(
        &self,
        mut inbox: mpsc::UnboundedReceiver<Done>,
        locking: mpsc::UnboundedSender<Group>,
        closing: mpsc::UnboundedSender<Closing>,
    ) -> Option<String> {
        let mut unsettled = None;
        let mut group = Vec::with_capacity(GROUP);
        while inbox.recv_many(&mut group, GROUP).await > 0 {
            if group.len() < GROUP && !inbox.is_closed() {
                // Where all of the queue's claims are in the group, no other can come.
                let full = |group: &Vec<Done>| group.len() >= GROUP.min(self.lane.queue.claims());
                let more = async { while !full(&group) && inbox.recv_many(&mut group, 1).await > 0 {} };
                // Whether the group filled up or the time ran out, it goes now.
                let _ = tokio::time::timeout(LINGER, more).await;
            }
            match self.settle(self.remembered(group.drain(..)), Tried::Never, &closing).await {
                Ok((locked, _)) if locked.settlements.is_empty() => {}
                // The other end of the channel is open as long as this one.
                Ok((locked, _)) => drop(locking.send(locked)),
                Err(error) => unsettled = Some(error.to_string()),
            }
        }
        unsettled
    }

    /// Tries rows again that another session has locked, apart from all others, which thus do not wait for that session.
    /// Returns the database's last words about those that were given up.
    async fn settle_locked(
        &self,
        mut inbox: mpsc::UnboundedReceiver<Group>,
        closing: mpsc::UnboundedSender<Closing>,
    ) -> Option<String> {
        let mut unsettled = None;
        while let Some(mut waiting) = inbox.recv().await {
            let mut deadline = None;
            while let Some(first) = waiting.settlements.iter().map(|one| one.claim.id()).min_by_key(|id| id.mid) {
                self.context.events.rows_locked(&self.lane, first);
                tokio::time::sleep(LOCKED_PAUSE).await;
                while let Ok(more) = inbox.try_recv() {
                    waiting.append(more);
                }
                if self.is_ending() {
                    deadline.get_or_insert(Instant::now() + LAST_TRIES);
                }
                let others = waiting.split_off(GROUP);
                let tried = self.settle(waiting, Tried::Locked, &closing).await;
                waiting = others;
                match tried {
                    Ok((locked, words)) => {
                        // Those that were not tried for longest come first, and others than now are asked first.
                        waiting.append(locked);
                        waiting.rotate();
                        if deadline.is_some_and(|deadline| Instant::now() >= deadline)
                            && !waiting.settlements.is_empty()
                        {
                            self.note_given_up(&waiting.settlements, &words);
                            unsettled = Some(format!("rows are locked by another session: {words}"));
                            waiting = Group::default();
                        }
                    }
                    Err(error) => unsettled = Some(error.to_string()),
                }
            }
            self.context.events.database_works(&self.lane, Work::Locked);
        }
        unsettled
    }

    /// Brings acceptances into the ledger and prepares the events about verdicts.
    fn remembered(&self, dones: impl Iterator<Item = Done>) -> Group {
        let mut group = Group::default();
        for Done { settlement, closing, memory } in dones {
            group.after.push(After { story: self.context.events.story(&settlement), closing, _memory: memory });
            group.settlements.push(settlement);
        }
        if let Err(error) = self.ledger.flush() {
            // The rows are deleted all the same: the database then is what remembers the acceptances.
            tracing::error!(target: events::MAIL, queue = %self.lane.name(), %error, "acceptances are not in the ledger");
        }
        failpoint::hit("after-ledger");
        group
    }

    /// Carries verdicts out. Returns those whose rows are locked, with the database's words about the last of them.
    async fn settle(
        &self,
        mut group: Group,
        tried: Tried,
        closing: &mpsc::UnboundedSender<Closing>,
    ) -> Result<(Group, String), queue::Error> {
        let begun = Instant::now();
        let results = self.settle_until_done(&mut group.settlements, tried).await?;
        failpoint::hit("after-delete");
        let events = &self.context.events;
        events.database_works(&self.lane, Work::Settling);
        events.progress.counters.settling_took(self.lane.name(), begun.elapsed());
        let mut entries = Closing::default();
        let (mut locked, mut words) = (Group::default(), String::new());
        for ((settlement, after), (_, settled)) in group.settlements.into_iter().zip(group.after).zip(results) {
            if let Settled::Locked { detail } = settled {
                locked.settlements.push(settlement);
                locked.after.push(after);
                words = detail;
                continue;
            }
            events.settled(after.story, &settled);
            entries.append(after.closing);
        }
        // Its other end is open as long as this one.
        drop(closing.send(entries));
        Ok((locked, words))
    }

    /// Tries again until the database takes the group. Gives up some time after the order to end.
    async fn settle_until_done(
        &self,
        settlements: &mut [Settlement],
        tried: Tried,
    ) -> Result<Vec<(MailId, Settled)>, queue::Error> {
        let mut pause = Duration::from_millis(200);
        let mut give_up = None;
        loop {
            let retry = self.context.delete_retry();
            let done = match tried {
                Tried::Never => self.lane.queue.settle(settlements, retry).await,
                Tried::Locked => self.lane.queue.settle_locked(settlements, retry).await,
            };
            let error = match done {
                Ok(results) => return Ok(results),
                Err(error) => error,
            };
            if matches!(error, queue::Error::Refused { .. }) {
                // Words of the smarthost's that this database cannot hold must not keep a row from being settled.
                settlements.iter_mut().for_each(plain);
            }
            self.context.events.database_failed(&self.lane, Work::Settling, &error);
            let now = Instant::now();
            if self.is_ending() && now >= *give_up.get_or_insert(now + LAST_TRIES) {
                self.note_given_up(settlements, &error.to_string());
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    fn is_ending(&self) -> bool {
        self.context.once || self.lane.stop.is_cancelled()
    }

    fn note_given_up(&self, settlements: &[Settlement], error: &str) {
        tracing::error!(target: events::MAIL, queue = %self.lane.name(), rows = settlements.len(), error,
            "not settled before the end; the next start settles from the ledger");
        self.lane.note_given_up();
    }

    /// Closes entries while the next group is being settled. What cannot be closed is tried again with what comes next; if
    /// nothing comes, replay at the next start finds that the rows are settled.
    async fn close_entries(&self, mut inbox: mpsc::UnboundedReceiver<Closing>) {
        let mut due = Closing::default();
        while let Some(closing) = inbox.recv().await {
            due.append(closing);
            match self.ledger.close(&due).await {
                Ok(()) => due = Closing::default(),
                Err(error) => self.context.ledger_failed(&error),
            }
        }
    }
}

impl Group {
    fn append(&mut self, mut more: Self) {
        self.settlements.append(&mut more.settlements);
        self.after.append(&mut more.after);
    }

    /// Moves the first verdicts to the end: as many as are tried one by one before all are taken to be locked.
    fn rotate(&mut self) {
        let rows = FIRST_TRIED.min(self.settlements.len());
        self.settlements.rotate_left(rows);
        self.after.rotate_left(rows);
    }

    /// Takes the verdicts behind the first `rows` away.
    fn split_off(&mut self, rows: usize) -> Self {
        let at = rows.min(self.settlements.len());
        Self { settlements: self.settlements.split_off(at), after: self.after.split_off(at) }
    }
}

/// Leaves nothing but ASCII in the texts of a settlement.
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
