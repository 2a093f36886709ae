//! The way of one mail through transactions and connections.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use super::announced::Announced;
use super::classify::LoginWanted;
use super::commands::{Envelope, obstacle, outdated, unreachable};
use super::judge::{Anew, Answers, Fate, Judgement, Next, judge};
use super::pipelining::PipeliningMode;
use super::session::Session;
use super::smarthost::Relay;
use super::transaction_hook::TransactionHook;
use crate::mail::{Address, Capabilities, Mail};
use crate::outcome::{Attempt, Cause, RecipientOutcome, Trouble};

/// One connection's worth of sending. Dropping it drops the connection.
#[derive(Debug)]
pub struct Worker {
    relay: Arc<Relay>,
    /// Absent while a mail is being sent, so that a cancelled send leaves no connection behind whose state is unknown.
    session: Option<Session>,
}

/// A mail and those of its recipients that are to get it.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    pub mail: &'a Mail,
    pub recipients: &'a [Address],
}

impl Relay {
    pub fn worker(self: &Arc<Self>) -> Worker {
        Worker::new(self.clone())
    }
}

impl Worker {
    pub(super) fn new(relay: Arc<Relay>) -> Self {
        Self { relay, session: None }
    }

    /// Makes sure that there is a connection, greeted and logged in, that can take a mail.
    pub async fn ready(&mut self) -> Result<(), Trouble> {
        let session = self.take().await?;
        self.keep(session);
        Ok(())
    }

    /// Offers `mail` to `recipients`, in as many transactions as the limits want.
    ///
    /// Dropping the future drops the connection. What became of the mail then is what the hook knows: nothing has
    /// happened before [`TransactionHook::before_final_dot`], and the outcome is unknown between it and
    /// [`TransactionHook::after_final_dot`].
    pub async fn send(&mut self, mail: &Mail, recipients: &[Address], hook: &mut impl TransactionHook) -> Attempt {
        self.send_ahead(Offer { mail, recipients }, None, hook).await
    }

    /// As [`Worker::send`], and lets the commands of the `next` mail travel with the content of this one where the
    /// smarthost offers PIPELINING, so that a mail costs one round trip.
    ///
    /// The next call should be for that mail and those recipients: its replies are then on their way already. Any other
    /// mail is right too, and costs a new connection. Nothing of `next` is at stake before it is sent itself: if the
    /// connection ends before, its envelope is offered anew over another.
    ///
    /// ```ignore
    /// let mut current = ready.recv().await;
    /// while let Some(job) = current {
    ///     let next = ready.try_recv().ok();
    ///     let attempt = worker.send_ahead(job.offer(), next.as_ref().map(Job::offer), &mut hook).await;
    ///     job.settle(attempt);
    ///     current = match next { None => ready.recv().await, next => next };
    /// }
    /// ```
    pub async fn send_ahead(
        &mut self,
        offer: Offer<'_>,
        next: Option<Offer<'_>>,
        hook: &mut impl TransactionHook,
    ) -> Attempt {
        let mut task = Task::new(&self.relay, offer);
        while !task.pending.is_empty() && task.relay.is_none() && task.remake.is_none() {
            let mut session = match self.take().await {
                Ok(session) => session,
                Err(trouble) => {
                    task.relay = Some(trouble);
                    break;
                }
            };
            match task.transaction(&self.relay, &mut session, next, hook).await {
                Step::Keep => self.keep(session),
                Step::Anew => {}
                Step::Stop => break,
            }
        }
        task.into_attempt()
    }

    /// Returns true while there is a connection, which the peer may have closed without our knowledge.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// QUIT, if there is a connection; waits for the reply a short time only.
    pub async fn quit(&mut self) {
        if let Some(session) = self.session.take() {
            session.quit().await;
        }
    }

    /// The connection that was kept, if it is still good, or a new one.
    async fn take(&mut self) -> Result<Session, Trouble> {
        if let Some(mut session) = self.session.take() {
            if session.flight().is_some() {
                return Ok(session);
            }
            if !session.has_stirred() {
                if session.has_budget_left() {
                    return Ok(session);
                }
                session.quit().await;
            }
        }
        Session::connect(&self.relay).await
    }

    fn keep(&mut self, mut session: Session) {
        session.kept = true;
        self.session = Some(session);
    }
}

/// The way to go on after a transaction.
enum Step {
    /// The connection is good for more.
    Keep,
    /// Over a new connection.
    Anew,
    /// Not with this mail.
    Stop,
}

/// A mail under way.
struct Task<'a> {
    offer: Offer<'a>,
    outcomes: Vec<Option<RecipientOutcome>>,
    /// Indices of the recipients that are still to be offered.
    pending: VecDeque<usize>,
    relay: Option<Trouble>,
    remake: Option<Capabilities>,
    /// The recipients that the smarthost seemed to take in one message. The next transaction shows whether it does.
    suspected: Option<usize>,
    /// The reading of a reply to RCPT that wants a login, at the next transaction.
    login: LoginWanted,
}

impl<'a> Task<'a> {
    fn new(relay: &Relay, offer: Offer<'a>) -> Self {
        let count = offer.recipients.len();
        Self {
            offer,
            outcomes: vec![None; count],
            pending: (0..count).collect(),
            relay: None,
            remake: None,
            suspected: None,
            login: if relay.settings.login.is_some() { LoginWanted::Again } else { LoginWanted::Relays },
        }
    }

    async fn transaction(
        &mut self,
        relay: &Relay,
        session: &mut Session,
        next: Option<Offer<'_>>,
        hook: &mut impl TransactionHook,
    ) -> Step {
        let pending = self.pending.iter().map(|index| &self.offer.recipients[*index]);
        self.remake = outdated(self.offer.mail, pending, &session.announced);
        let size = match session.flight() {
            Some(flight) => flight.recipients,
            None => most_recipients(relay, session, self.suspected),
        };
        if self.remake.is_none() {
            self.leave_out_unreachable(&session.announced, size);
        }
        if self.remake.is_some() || self.pending.is_empty() {
            return if session.flight().is_none() { Step::Keep } else { Step::Stop };
        }
        let size = size.min(self.pending.len());
        let chunk = self.pending.iter().take(size).map(|index| &self.offer.recipients[*index]);
        let envelope = Envelope::new(self.offer.mail, chunk, &session.announced);
        // The flight was another mail's.
        if session.flight().is_some_and(|flight| *flight != envelope) {
            return Step::Anew;
        }
        let pipelined = relay.pipelining.mode(&session.announced, Instant::now()).0 != PipeliningMode::Off;
        let answers = session.offer(&envelope, pipelined, self.login).await;
        if is_replaceable(&answers, session) {
            note_lost_ahead(relay, &answers);
            return Step::Anew;
        }
        let judgement = judge(&answers, size);
        note_pipelining(relay, &answers, &judgement);
        self.learn_limit(relay, &judgement);
        if judgement.anew == Some(Anew::Login) {
            self.login = LoginWanted::Recipients;
        }
        let taken = self.apply(&judgement);
        self.relay = judgement.relay.map(|trouble| session.explain(trouble));
        match judgement.next {
            Next::Content => self.content(relay, session, taken, next, hook).await,
            Next::DotAlone => {
                let dot = session.dot_alone().await;
                self.relay = dot.relay;
                if dot.usable { Step::Keep } else { Step::Anew }
            }
            Next::Reset => {
                session.reset();
                Step::Keep
            }
            Next::Drop if judgement.anew.is_some() => Step::Anew,
            // The rest is offered one command at a time.
            Next::Drop if judgement.breaks_pipelining.is_some() && answers.lost.is_none() => Step::Anew,
            Next::Drop => Step::Stop,
        }
    }

    /// From here on the hook knows of the transaction, and hears how it ended.
    async fn content(
        &mut self,
        relay: &Relay,
        session: &mut Session,
        taken: Vec<usize>,
        next: Option<Offer<'_>>,
        hook: &mut impl TransactionHook,
    ) -> Step {
        let addresses = taken.iter().map(|index| self.offer.recipients[*index].clone()).collect::<Vec<_>>();
        if let Err(trouble) = hook.before_final_dot(&addresses).await {
            self.relay = Some(trouble);
            return Step::Stop;
        }
        let ahead = self.envelope_ahead(relay, session, next);
        let dot = session.content(&self.offer.mail.content, ahead).await;
        hook.after_final_dot(dot.answer.as_ref()).await;
        for index in taken {
            self.outcomes[index] = Some(dot.outcome.clone());
        }
        self.relay = dot.relay.map(|trouble| session.explain(trouble));
        let rest_is_ahead = session.flight().is_some() && !self.pending.is_empty();
        if matches!(dot.outcome, RecipientOutcome::Refused(_)) {
            // The same content for other recipients would be refused too.
            for index in self.pending.drain(..) {
                self.outcomes[index] = Some(dot.outcome.clone());
            }
        }
        if dot.usable {
            let of_no_use = rest_is_ahead && self.pending.is_empty();
            return if of_no_use { Step::Stop } else { Step::Keep };
        }
        let answered = matches!(&dot.answer, Ok(_) | Err(Trouble { cause: Cause::Reply(_), .. }));
        if session.flight().is_some() && !answered {
            relay.pipelining.ahead.lost(Instant::now());
        }
        Step::Stop
    }

    /// The first recipient of a transaction shows what "enough" meant in the one before: a number, if it is taken now.
    fn learn_limit(&mut self, relay: &Relay, judgement: &Judgement) {
        if let Some(suspected) = self.suspected {
            match judgement.fates.first() {
                Some(Fate::Taken) => relay.recipient_limit.learn(suspected, Instant::now()),
                Some(Fate::Settled(_)) => self.suspected = None,
                Some(Fate::Again) | None => {}
            }
        }
        if let Some(limit) = judgement.limit {
            self.suspected = Some(self.suspected.map_or(limit, |suspected| suspected.min(limit)));
        }
    }

    /// The commands that may travel with the content: of this mail's next transaction, or of the next mail.
    fn envelope_ahead(&self, relay: &Relay, session: &Session, next: Option<Offer<'_>>) -> Option<Envelope> {
        let announced = &session.announced;
        let mode = relay.pipelining.mode(announced, Instant::now()).0;
        if mode != PipeliningMode::Full || !session.has_budget_left() {
            return None;
        }
        if !self.pending.is_empty() {
            let size = most_recipients(relay, session, self.suspected);
            let pending = self.pending.iter().map(|index| &self.offer.recipients[*index]);
            let chunk = pending.filter(|recipient| unreachable(recipient, announced).is_none()).take(size);
            return Some(Envelope::new(self.offer.mail, chunk, announced));
        }
        let next = next.filter(|next| obstacle(next.mail, announced).is_none())?;
        if outdated(next.mail, next.recipients.iter(), announced).is_some() {
            return None;
        }
        let size = most_recipients(relay, session, None);
        let chunk = next.recipients.iter().filter(|recipient| unreachable(recipient, announced).is_none()).take(size);
        let envelope = Envelope::new(next.mail, chunk, announced);
        (envelope.recipients > 0).then_some(envelope)
    }

    /// Gives those an outcome that cannot be offered to this smarthost. Looks no further than the transaction's `size`
    /// recipients, or a row with very many would be looked through for each transaction.
    fn leave_out_unreachable(&mut self, announced: &Announced, size: usize) {
        let Self { offer, outcomes, pending, .. } = self;
        if let Some(refusal) = obstacle(offer.mail, announced).map(RecipientOutcome::Refused) {
            pending.drain(..).for_each(|index| outcomes[index] = Some(refusal.clone()));
        }
        let mut reachable = Vec::with_capacity(size.min(pending.len()));
        while reachable.len() < size
            && let Some(index) = pending.pop_front()
        {
            match unreachable(&offer.recipients[index], announced) {
                Some(outcome) => outcomes[index] = Some(outcome),
                None => reachable.push(index),
            }
        }
        reachable.into_iter().rev().for_each(|index| pending.push_front(index));
    }

    /// Notes what became of the first recipients in `pending`, and returns those that the content may go to.
    fn apply(&mut self, judgement: &Judgement) -> Vec<usize> {
        let chunk = self.pending.drain(..judgement.fates.len()).collect::<Vec<_>>();
        let mut taken = Vec::new();
        for (index, fate) in chunk.into_iter().zip(&judgement.fates).rev() {
            match fate {
                Fate::Taken => taken.push(index),
                Fate::Settled(outcome) => self.outcomes[index] = Some(outcome.clone()),
                Fate::Again => self.pending.push_front(index),
            }
        }
        taken.reverse();
        if let Some(outcome) = &judgement.message {
            for index in self.pending.drain(..) {
                self.outcomes[index] = Some(outcome.clone());
            }
        }
        taken
    }

    fn into_attempt(self) -> Attempt {
        let outcomes = self.outcomes.into_iter().map(|outcome| outcome.unwrap_or(RecipientOutcome::Untried));
        let outcomes = self.offer.recipients.iter().cloned().zip(outcomes).collect();
        Attempt { outcomes, relay: self.relay, remake: self.remake }
    }
}

/// The number of recipients that the next transaction may have.
fn most_recipients(relay: &Relay, session: &Session, suspected: Option<usize>) -> usize {
    let known = relay.recipient_limit.at(Instant::now());
    known.into_iter().chain(suspected).fold(session.recipients, usize::min)
}

/// Returns true where the connection was at its end before MAIL, and no mail is to blame: the peer closed a kept
/// connection, answered nothing of a flight, or said 421 to MAIL on a connection that has carried mail, as servers do
/// that limit the mails of one connection. The mail is offered over a new connection, of which none of this can be true.
fn is_replaceable(answers: &Answers, session: &Session) -> bool {
    let gone = matches!(answers.lost, Some((_, Cause::Closed(_))));
    match &answers.mail {
        Some(reply) => reply.code == 421 && session.is_used(),
        None => answers.lost.is_some() && (answers.ahead || session.kept && gone),
    }
}

/// Commands behind the final dot to which there was no reply at all.
fn note_lost_ahead(relay: &Relay, answers: &Answers) {
    let now = Instant::now();
    match &answers.lost {
        Some((_, Cause::Timeout)) if answers.ahead => relay.pipelining.ahead.broken(now, "they are not answered"),
        Some(_) if answers.ahead => relay.pipelining.ahead.lost(now),
        _ => {}
    }
}

fn note_pipelining(relay: &Relay, answers: &Answers, judgement: &Judgement) {
    let (trust, now) = (&relay.pipelining, Instant::now());
    if !answers.ahead {
        trust.ahead.rested();
    }
    if !answers.pipelined {
        return trust.commands.rested();
    }
    let ability = if answers.ahead { &trust.ahead } else { &trust.commands };
    if let Some(why) = &judgement.breaks_pipelining {
        ability.broken(now, &(relay.shown)(why));
    } else if answers.lost.is_some() {
        ability.lost(now);
    } else if answers.data.is_some() {
        ability.kept();
    }
}
