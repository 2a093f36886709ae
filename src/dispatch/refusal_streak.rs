//! Refusals of whole mails in a row: they are about rights or a quota, and not about the mails. Pure: time and chance
//! are arguments.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::pause;
use crate::mail::Address;
use crate::outcome::{Attempt, Cause, RecipientOutcome, Reply, Stage, Trouble};

/// This many same refusals in a row are not about the mails: fewer come by chance, and each costs an attempt.
const LIMIT: usize = 10;

/// If no further refusal of the sender arrives within this time, those that wait are taken as they are.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// A mail that tries whether a pause is over is answered within this time by most smarthosts. Until then the sender's other
/// mails stay ready, so that they follow at once. A longer trial (a final dot may take 10 minutes) is a pause for them:
/// they would fill the memory and the ready queue, and other senders' mails would wait for it too.
const TRIAL: Duration = Duration::from_secs(2);

/// The longest time for which mails are put off because of a trial.
const LONGEST_TRIAL_PAUSE: Duration = Duration::from_secs(60);

/// A sender of whom nothing was refused for this time is no longer remembered: what was true then says little now. The
/// longest pause is five minutes.
const MEMORY: Duration = Duration::from_secs(3600);

/// Senders that are remembered at the same time, which bounds the memory for them.
const SENDERS: usize = 1000;

/// The sender that the row itself names; `None` is the null sender.
pub type Sender = Option<Address>;

/// The meaning of an attempt for the sender's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody was accepted.
    Accepted,
    /// The whole mail was refused. Two mails with the same `essence` were refused for the same reason; `said` is what a
    /// log shows.
    Refused { essence: String, said: String },
    /// Neither.
    Other,
}

/// The consequence of refusals in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// Every mail would be refused so.
    Relay { said: String },
    /// Mails of this sender would be refused so, for the length of `pause`.
    Sender { sender: Sender, pause: Duration, said: String },
}

/// The decision about finished attempts.
#[derive(Debug, PartialEq, Eq)]
pub struct Ruling<T> {
    /// They stand as they are.
    pub settled: Vec<T>,
    /// Their refusals are not about the mails: they count as deferrals.
    pub excused: Vec<T>,
    pub consequences: Vec<Consequence>,
}

/// The refusals of each sender, and of all together.
///
/// A refused mail waits until it is clear whether its refusal stands alone. Ten same refusals of one sender in a row,
/// whatever happens to others meanwhile, pause this sender; ten in a row over several senders, or of the only one that
/// has mails, take the relay down. After a pause one mail is tried: a success ends it, the same refusal doubles it.
#[derive(Debug)]
pub struct RefusalStreak<T> {
    /// Over all senders, since the last mail that was accepted.
    run: Option<Run>,
    senders: HashMap<Sender, One<T>>,
}

#[derive(Debug)]
struct Run {
    essence: String,
    length: usize,
    /// The time of the last offer among the refused mails.
    begun: Instant,
    last: Sender,
    several: bool,
}

/// One sender's refusals.
#[derive(Debug)]
struct One<T> {
    essence: String,
    said: String,
    /// In a row, those included that did not wait for the others.
    length: usize,
    /// The time of the last offer among the refused mails.
    begun: Instant,
    /// The time of the last refusal.
    newest: Instant,
    /// The time of the last acceptance.
    accepted: Option<Instant>,
    /// Refused mails, and when their refusals were heard.
    waiting: Vec<(Instant, T)>,
    pause: Option<Pause>,
}

/// A finished attempt's mail.
#[derive(Debug)]
pub struct Offered<'a, T> {
    pub item: T,
    pub sender: &'a Sender,
    /// Counts from 0.
    pub queue: usize,
    /// The time of the offer. A mail that was accepted ends only what was refused of those offered before it: several
    /// connections hear their answers in another order.
    pub begun: Instant,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    /// Pauses in a row.
    count: u32,
    /// Since when a mail is under way that tries whether it is over.
    trying: Option<Instant>,
    /// The queue of the mail that was refused last.
    queue: usize,
}

/// A ready mail's turn; lower goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    Now,
    /// Its sender was refused last; this is a mail of another queue.
    AfterOthers,
    Last,
}

impl<T> Default for RefusalStreak<T> {
    fn default() -> Self {
        Self { run: None, senders: HashMap::new() }
    }
}

impl<T> RefusalStreak<T> {
    /// No sender is refused, so that every mail's turn is now.
    pub fn is_quiet(&self) -> bool {
        self.senders.is_empty()
    }

    /// No refused mail waits.
    pub fn is_idle(&self) -> bool {
        self.senders.values().all(|one| one.waiting.is_empty())
    }

    /// Returns the time for which this sender is paused yet, and how it was refused. While a trial takes long, that is as
    /// long again as it has taken: its end is not known.
    pub fn paused(&self, sender: &Sender, now: Instant) -> Option<(Duration, &str)> {
        let one = self.senders.get(sender)?;
        one.pause_left(now).or_else(|| one.long_trial(now)).map(|left| (left, one.said.as_str()))
    }

    /// The turn of a ready mail of this sender and queue; `None`: not now.
    pub fn turn(&self, sender: &Sender, queue: usize, now: Instant) -> Option<Turn> {
        let Some(one) = self.senders.get(sender) else { return Some(Turn::Now) };
        match &one.pause {
            Some(pause) if pause.trying.is_some() || pause.until > now => None,
            Some(pause) if pause.queue == queue => Some(Turn::Last),
            Some(_) => Some(Turn::AfterOthers),
            // The relay was down for them: another sender's mail tells whether it was for their sender.
            None if self.run.as_ref().is_some_and(|run| run.length >= LIMIT) => Some(Turn::AfterOthers),
            None => Some(Turn::Now),
        }
    }

    /// A mail of this sender goes out. After a pause no other follows until it is known what became of this one.
    pub fn goes_out(&mut self, sender: &Sender, now: Instant) {
        if let Some(pause) = self.senders.get_mut(sender).and_then(|one| one.pause.as_mut()) {
            pause.trying = Some(now);
        }
    }

    /// A mail that went out was not offered.
    pub fn came_back(&mut self, sender: &Sender) {
        if let Some(pause) = self.senders.get_mut(sender).and_then(|one| one.pause.as_mut()) {
            pause.trying = None;
        }
    }

    /// Takes a finished attempt. `others` says whether mails of other senders are ready.
    pub fn take(
        &mut self,
        offered: Offered<'_, T>,
        heard: Heard,
        others: impl FnOnce() -> bool,
        now: Instant,
        jitter: f64,
    ) -> Ruling<T> {
        let Offered { item, sender, queue, begun } = offered;
        let mut ruling = Ruling { settled: self.ripe(now), excused: Vec::new(), consequences: Vec::new() };
        let (essence, said) = match heard {
            Heard::Refused { essence, said } => (essence, said),
            Heard::Accepted => {
                self.accepted(sender, begun, now);
                ruling.settled.push(item);
                return ruling;
            }
            Heard::Other => {
                self.came_back(sender);
                ruling.settled.push(item);
                return ruling;
            }
        };
        self.lengthen_run(sender, &essence, begun);
        if let Some(one) = self.senders.get_mut(sender).filter(|one| one.essence != essence) {
            ruling.settled.extend(one.take_waiting());
            *one = One::new(essence.clone(), now);
        }
        self.make_room(sender, &mut ruling, now);
        let one = self.senders.entry(sender.clone()).or_insert_with(|| One::new(essence.clone(), now));
        one.length = one.length.saturating_add(1);
        one.newest = now;
        one.begun = one.begun.max(begun);
        one.said = said.clone();
        one.waiting.push((now, item));

        // Mails that were under way when the sender was paused change nothing.
        let late = one.pause_left(now).is_some();
        let run = self.run.as_ref().filter(|run| run.length >= LIMIT);
        let all = run.is_some_and(|run| run.several || !late && !others());
        if one.length >= LIMIT {
            ruling.excused.extend(one.take_waiting());
            if !late {
                let pause = one.pause(queue, all, now, jitter);
                ruling.consequences.push(Consequence::Sender { sender: sender.clone(), pause, said: said.clone() });
            }
        }
        if all {
            let same = self.senders.values_mut().filter(|one| one.essence == essence);
            same.for_each(|one| ruling.excused.extend(one.take_waiting()));
            ruling.consequences.push(Consequence::Relay { said });
        }
        ruling
    }

    /// Refused mails whose refusals stand alone: nothing more of the sender was refused for a while, or a mail of it was
    /// accepted and a while has passed.
    pub fn ripe(&mut self, now: Instant) -> Vec<T> {
        let age = |then: Instant| now.saturating_duration_since(then);
        let mut ripe = Vec::new();
        self.senders.retain(|_, one| {
            let ended = |heard: Instant| one.accepted.is_some_and(|accepted| heard <= accepted);
            let is_ripe = |heard: Instant| age(one.newest) >= PATIENCE || ended(heard) && age(heard) >= PATIENCE;
            ripe.extend(one.waiting.extract_if(.., |(heard, _)| is_ripe(*heard)).map(|(_, item)| item));
            let is_over = one.length == 0 && one.waiting.is_empty();
            !is_over && age(one.newest) < MEMORY
        });
        ripe
    }

    /// All refused mails that wait, because nothing more may come that makes a row longer. The rows go on.
    pub fn flush(&mut self) -> Vec<T> {
        self.senders.values_mut().flat_map(One::take_waiting).collect()
    }

    /// A mail of this sender that was offered at `begun` was accepted. What was refused of mails offered before ends here.
    fn accepted(&mut self, sender: &Sender, begun: Instant, now: Instant) {
        self.run.take_if(|run| run.begun <= begun);
        if let Some(one) = self.senders.get_mut(sender).filter(|one| one.begun <= begun) {
            (one.length, one.pause, one.accepted) = (0, None, Some(now));
        }
        self.senders.retain(|_, one| one.length > 0 || !one.waiting.is_empty());
    }

    fn lengthen_run(&mut self, sender: &Sender, essence: &str, begun: Instant) {
        match self.run.as_mut().filter(|run| run.essence == essence) {
            Some(run) => {
                run.length = run.length.saturating_add(1);
                run.several |= run.last != *sender;
                run.begun = run.begun.max(begun);
                run.last = sender.clone();
            }
            None => {
                let (essence, last) = (essence.to_owned(), sender.clone());
                self.run = Some(Run { essence, length: 1, begun, last, several: false });
            }
        }
    }

    /// Forgets a sender where one more would be too many: the one whose last refusal is oldest.
    fn make_room(&mut self, sender: &Sender, ruling: &mut Ruling<T>, now: Instant) {
        if self.senders.len() < SENDERS || self.senders.contains_key(sender) {
            return;
        }
        let age = |one: &One<T>| now.saturating_duration_since(one.newest);
        let oldest = self.senders.iter().max_by_key(|(_, one)| age(one)).map(|(sender, _)| sender.clone());
        let gone = oldest.and_then(|sender| self.senders.remove(&sender));
        ruling.settled.extend(gone.into_iter().flat_map(|mut one| one.take_waiting()));
    }
}

impl<T> One<T> {
    fn new(essence: String, now: Instant) -> Self {
        let (said, waiting) = (String::new(), Vec::new());
        Self { essence, said, length: 0, begun: now, newest: now, accepted: None, waiting, pause: None }
    }

    fn take_waiting(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_iter().map(|(_, item)| item).collect()
    }

    fn pause_left(&self, now: Instant) -> Option<Duration> {
        let until = self.pause.as_ref()?.until;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    fn long_trial(&self, now: Instant) -> Option<Duration> {
        let lasts = now.saturating_duration_since(self.pause.as_ref()?.trying?);
        (lasts >= TRIAL).then(|| lasts.min(LONGEST_TRIAL_PAUSE))
    }

    /// Begins a pause, or a longer one where the mail that tried whether it is over was refused. Returns its length.
    ///
    /// `all`: the relay goes down with the sender. Then its pause outlasts the relay's, so that mails of other senders
    /// are found in the table behind this one's, and go first.
    fn pause(&mut self, queue: usize, all: bool, now: Instant, jitter: f64) -> Duration {
        let count = self.pause.as_ref().map_or(0, |pause| pause.count);
        let mut length = pause(count, jitter);
        if all {
            length = length * 2 + Duration::from_secs(1);
        }
        self.pause = Some(Pause { until: now + length, count: count.saturating_add(1), trying: None, queue });
        length
    }
}

/// Returns the meaning of an attempt for the rights of its sender.
pub fn heard(attempt: &Attempt) -> Heard {
    let accepted = |(_, outcome): &(Address, RecipientOutcome)| matches!(outcome, RecipientOutcome::Accepted(_));
    if attempt.outcomes.iter().any(accepted) {
        return Heard::Accepted;
    }
    match (refusal(attempt), attempt.outcomes.last()) {
        (Some(essence), Some((_, RecipientOutcome::Refused(trouble) | RecipientOutcome::Deferred(trouble)))) => {
            Heard::Refused { essence, said: trouble.to_string() }
        }
        _ => Heard::Other,
    }
}

/// The essence of the refusal, where the whole mail was refused in one and the same way, which can be about rights.
pub fn refusal(attempt: &Attempt) -> Option<String> {
    let essence = |(_, outcome): &(Address, RecipientOutcome)| match outcome {
        // Deferred: a 530 or the like to one mail, on a session that had just logged in.
        RecipientOutcome::Refused(Trouble { cause: Cause::Reply(reply), stage, .. })
        | RecipientOutcome::Deferred(Trouble { cause: Cause::Reply(reply), stage, .. })
            if reply.is_permanent() && can_be_about_rights(*stage, reply) =>
        {
            Some(reply.essence())
        }
        _ => None,
    };
    let first = essence(attempt.outcomes.first()?)?;
    attempt.outcomes.iter().all(|outcome| essence(outcome).as_ref() == Some(&first)).then_some(first)
}

/// At MAIL, DATA and the final dot any refusal can be about the sender or the account. At RCPT most are about the
/// recipient: ten dead addresses in a row are ten dead addresses (RFC 3463 §3.2 and §3.3).
fn can_be_about_rights(stage: Stage, reply: &Reply) -> bool {
    if stage != Stage::Rcpt {
        return stage >= Stage::Mail;
    }
    match (reply.code, reply.enhanced) {
        (_, Some((5, 7, _) | (5, 4, 5) | (5, 2, 0) | (5, 1, 7 | 8))) => true,
        (504, Some((5, 5, 2))) => true,
        // "Over quota", of the account or of a mailbox; of a mailbox it says 5.2.2. Behind accepted recipients it would
        // mean "enough", and then the mail would not have been refused as a whole.
        (552, enhanced) => !matches!(enhanced, Some((5, 1 | 2, _))),
        _ => false,
    }
}
