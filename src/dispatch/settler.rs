//! Settling: carries verdicts out, in groups, and does not give up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::context::Context;
use super::events;
use super::lane::{Done, Lane};
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

/// The queue, and the last error because of which verdicts were given up at the end.
pub type Ended = (Arc<str>, Option<String>);

pub struct Settler {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
    pub ledger: Ledger,
}

impl Settler {
    /// Runs until no more verdicts can come, and all are carried out or given up.
    pub async fn run(self, inbox: mpsc::UnboundedReceiver<Done>) -> Ended {
        let (closing, closed) = mpsc::unbounded_channel();
        let (unsettled, ()) = tokio::join!(self.settle_all(inbox, closing), self.close_entries(closed));
        (self.lane.name().clone(), unsettled)
    }

    /// Returns the last error because of which verdicts were given up.
    async fn settle_all(
        &self,
        mut inbox: mpsc::UnboundedReceiver<Done>,
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
            match self.settle(group.drain(..)).await {
                // Its other end is open as long as this one.
                Ok(entries) => drop(closing.send(entries)),
                Err(error) => unsettled = Some(error.to_string()),
            }
        }
        unsettled
    }

    async fn settle(&self, group: impl Iterator<Item = Done>) -> Result<Closing, queue::Error> {
        let mut settlements = Vec::new();
        let mut entries = Closing::default();
        let mut reserved = Vec::new();
        for Done { settlement, closing, memory } in group {
            settlements.push(settlement);
            entries.append(closing);
            reserved.extend(memory);
        }
        if let Err(error) = self.ledger.flush() {
            // The rows are deleted all the same: the database then is what remembers the acceptances.
            tracing::error!(target: events::MAIL, queue = %self.lane.name(), %error, "acceptances are not in the ledger");
        }
        failpoint::hit("after-ledger");
        let events = &self.context.events;
        let stories: Vec<_> = settlements.iter().map(|settlement| events.story(settlement)).collect();
        let begun = Instant::now();
        let results = self.settle_until_done(settlements).await?;
        failpoint::hit("after-delete");
        events.database_works(self.lane.name(), Work::Settling);
        events.progress.counters.settling_took(self.lane.name(), begun.elapsed());
        for (story, (_, settled)) in stories.into_iter().zip(&results) {
            events.settled(story, settled);
        }
        Ok(entries)
    }

    /// Tries again until the database takes the group. Gives up some time after the order to end.
    async fn settle_until_done(
        &self,
        mut settlements: Vec<Settlement>,
    ) -> Result<Vec<(MailId, Settled)>, queue::Error> {
        let mut pause = Duration::from_millis(200);
        let mut give_up = None;
        loop {
            let error = match self.lane.queue.settle(settlements, self.context.delete_retry()).await {
                Ok(results) => return Ok(results),
                Err((error, back)) => {
                    settlements = back;
                    error
                }
            };
            if matches!(error, queue::Error::Refused { .. }) {
                // Words of the smarthost's that this database cannot hold must not keep a row from being settled.
                settlements.iter_mut().for_each(plain);
            }
            self.context.events.database_failed(self.lane.name(), Work::Settling, &error);
            let now = Instant::now();
            let ending = self.context.once || self.lane.stop.is_cancelled();
            if ending && now >= *give_up.get_or_insert(now + LAST_TRIES) {
                tracing::error!(target: events::MAIL, queue = %self.lane.name(), rows = settlements.len(), %error,
                    "not settled before the end; the next start settles from the ledger");
                self.lane.note_given_up();
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
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
