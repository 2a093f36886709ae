//! From the replies to one envelope to what becomes of each recipient and what comes next. No I/O.
//!
//! The replies of one flight are read as a whole, because a reply in its middle can be the consequence of one before.

use super::classify::{LoginWanted, Meaning, as_recipients_own, meaning};
use crate::outcome::{Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};

/// The replies to MAIL, the RCPTs and DATA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    pub mail: Option<Reply>,
    pub rcpt: Vec<Reply>,
    pub data: Option<Reply>,
    /// The step and the reason, where nothing more could be read. A reply of which [`Before::is_over`] is true also ends
    /// the reading, and is no loss.
    pub lost: Option<(Stage, Cause)>,
    /// The commands went out together.
    pub pipelined: bool,
    /// They went out behind the content of the mail before.
    pub ahead: bool,
    /// The reading of a reply to RCPT that wants a login.
    pub login: LoginWanted,
}

/// The next step for one recipient of the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The content may go to this recipient.
    Taken,
    Settled(RecipientOutcome),
    /// To be offered in a further transaction at once.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Someone was accepted: content and final dot.
    Content,
    /// The smarthost waits for a content that nobody is to get: the final dot alone.
    DotAlone,
    /// RSET before the next MAIL.
    Reset,
    /// The connection cannot be used any more.
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// One for each recipient of the transaction.
    pub fates: Vec<Fate>,
    pub next: Next,
    /// Concerns the mail's other recipients too, which were not in this transaction.
    pub message: Option<RecipientOutcome>,
    pub relay: Option<Trouble>,
    /// The number of recipients that the smarthost seems to take in one message. The first recipient of the next
    /// transaction shows whether it does.
    pub limit: Option<usize>,
    /// The smarthost announces PIPELINING and does not keep it: the reply that shows it.
    pub breaks_pipelining: Option<String>,
    /// The mail is to be offered again at once over a new connection, for this reason.
    pub anew: Option<Anew>,
}

/// Why this connection is of no more use, although no mail is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anew {
    /// The smarthost ended it behind as many recipients as it takes.
    Limit,
    /// Its login has ended.
    Login,
    /// The smarthost does not keep PIPELINING.
    Pipelining,
}

/// The replies of a flight so far, as far as they explain those that follow.
#[derive(Debug, Default)]
pub(super) struct Before {
    login: LoginWanted,
    accepted: bool,
    /// A recipient was refused or deferred for a reason of its own.
    own: bool,
    /// Something was refused, which explains a 503.
    refused: bool,
}

impl Before {
    pub fn new(login: LoginWanted) -> Self {
        Self { login, ..Self::default() }
    }

    /// The meaning of the next reply, in the light of those before it.
    pub fn read(&mut self, stage: Stage, reply: &Reply) -> Meaning {
        let meaning = match meaning(stage, reply) {
            Meaning::NotLoggedIn(trouble) if stage == Stage::Rcpt && self.login == LoginWanted::Recipients => {
                Meaning::No(as_recipients_own(trouble))
            }
            // Without others before it, it cannot speak of a number. So each transaction takes or settles at least one
            // recipient, and there is an end to transactions.
            Meaning::Enough { otherwise, explicit } if !(self.accepted || explicit && self.own) => {
                self.refused = true;
                return Meaning::No(otherwise);
            }
            Meaning::EnoughAndEnding(trouble) if !self.accepted => Meaning::Ending(trouble),
            meaning => meaning,
        };
        match &meaning {
            Meaning::Yes => self.accepted |= stage == Stage::Rcpt,
            Meaning::No(_) => {
                self.own |= stage == Stage::Rcpt;
                self.refused = true;
            }
            _ => {}
        }
        meaning
    }

    /// Returns true where nothing that follows in this flight could count.
    pub fn is_over(&self, meaning: &Meaning) -> bool {
        match meaning {
            Meaning::Ending(_) | Meaning::EnoughAndEnding(_) | Meaning::NotLoggedIn(_) | Meaning::Nonsense(_) => true,
            Meaning::OutOfTurn(_) => !self.refused,
            Meaning::Yes | Meaning::No(_) | Meaning::Enough { .. } => false,
        }
    }
}

pub(super) fn judge(answers: &Answers, recipients: usize) -> Judgement {
    let mut judge = Judge {
        fates: vec![None; recipients],
        next: Next::Reset,
        message: None,
        relay: None,
        limit: None,
        breaks_pipelining: None,
        anew: None,
        before: Before::new(answers.login),
        pipelined: answers.pipelined,
    };
    judge.read(answers);
    judge.finish()
}

struct Judge {
    fates: Vec<Option<Fate>>,
    next: Next,
    message: Option<RecipientOutcome>,
    relay: Option<Trouble>,
    limit: Option<usize>,
    breaks_pipelining: Option<String>,
    anew: Option<Anew>,
    before: Before,
    pipelined: bool,
}

impl Judge {
    fn read(&mut self, answers: &Answers) {
        if let Some(reply) = &answers.mail {
            match self.before.read(Stage::Mail, reply) {
                Meaning::Yes => {}
                Meaning::No(outcome) => {
                    self.rest(Fate::Settled(outcome.clone()));
                    self.message = Some(outcome);
                }
                other => return self.stop(other, reply),
            }
        }
        for (index, reply) in answers.rcpt.iter().enumerate() {
            let meaning = self.before.read(Stage::Rcpt, reply);
            if self.message.is_some() && !self.before.is_over(&meaning) {
                continue;
            }
            match meaning {
                Meaning::Yes => self.fates[index] = Some(Fate::Taken),
                Meaning::No(outcome) => self.fates[index] = Some(Fate::Settled(outcome)),
                Meaning::Enough { .. } => {
                    self.fates[index] = Some(Fate::Again);
                    self.limit.get_or_insert(index);
                }
                Meaning::EnoughAndEnding(_) => {
                    self.limit.get_or_insert(index);
                    return self.over_a_new_connection(Anew::Limit);
                }
                Meaning::NotLoggedIn(_) if answers.login == LoginWanted::Again => {
                    return self.over_a_new_connection(Anew::Login);
                }
                Meaning::OutOfTurn(_) if self.before.refused => self.fates[index] = Some(Fate::Again),
                other => return self.stop(other, reply),
            }
        }
        if let Some(reply) = &answers.data {
            self.read_data(reply);
        }
        if let Some((stage, cause)) = &answers.lost {
            let trouble = Trouble { stage: *stage, scope: Scope::Message, cause: cause.clone() };
            self.put_off(trouble);
            if self.pipelined && matches!(cause, Cause::Protocol(_)) {
                self.breaks_pipelining = Some(cause.to_string());
            }
            self.next = Next::Drop;
        } else if self.pipelined && answers.data.is_none() {
            // Replies are due that nobody reads.
            self.next = Next::Drop;
        }
    }

    fn read_data(&mut self, reply: &Reply) {
        let taken = self.fates.contains(&Some(Fate::Taken));
        match self.before.read(Stage::Data, reply) {
            Meaning::Yes => self.next = if taken { Next::Content } else { Next::DotAlone },
            Meaning::No(outcome) => self.taken(Fate::Settled(outcome)),
            Meaning::OutOfTurn(_) if self.before.refused => self.taken(Fate::Again),
            other => self.stop(other, reply),
        }
    }

    /// This connection is of no more use, and neither mail nor smarthost is to blame for that.
    fn over_a_new_connection(&mut self, why: Anew) {
        self.taken(Fate::Again);
        self.rest(Fate::Again);
        self.next = Next::Drop;
        self.anew = Some(why);
    }

    /// The conversation cannot go on.
    fn stop(&mut self, meaning: Meaning, reply: &Reply) {
        self.next = Next::Drop;
        match meaning {
            Meaning::Ending(trouble) => {
                self.relay = Some(trouble.clone());
                self.put_off(trouble);
            }
            Meaning::NotLoggedIn(trouble) => {
                self.relay = Some(trouble);
                self.taken(Fate::Settled(RecipientOutcome::Untried));
                self.rest(Fate::Settled(RecipientOutcome::Untried));
            }
            // In a flight this shows a peer that cannot keep up, and the mail is offered again one command at a time.
            Meaning::OutOfTurn(_) if self.pipelined => {
                self.breaks_pipelining = Some(reply.to_string());
                self.over_a_new_connection(Anew::Pipelining);
            }
            Meaning::OutOfTurn(trouble) => self.put_off(trouble),
            Meaning::Nonsense(trouble) => {
                self.breaks_pipelining = self.pipelined.then(|| reply.to_string());
                self.put_off(trouble);
            }
            Meaning::Yes | Meaning::No(_) | Meaning::Enough { .. } | Meaning::EnoughAndEnding(_) => {}
        }
    }

    /// Defers every recipient that has no outcome of its own yet.
    fn put_off(&mut self, trouble: Trouble) {
        self.taken(Fate::Settled(RecipientOutcome::Deferred(trouble.clone())));
        self.rest(Fate::Settled(RecipientOutcome::Deferred(trouble)));
    }

    fn taken(&mut self, fate: Fate) {
        self.fates.iter_mut().flatten().filter(|known| **known == Fate::Taken).for_each(|known| *known = fate.clone());
    }

    fn rest(&mut self, fate: Fate) {
        self.fates.iter_mut().filter(|known| known.is_none()).for_each(|known| *known = Some(fate.clone()));
    }

    fn finish(self) -> Judgement {
        // Nothing is left open by `read`, but for replies that a peer owes us without having lost the connection.
        let fates = self.fates.into_iter().map(|fate| fate.unwrap_or(Fate::Again)).collect();
        Judgement {
            fates,
            next: self.next,
            message: self.message,
            relay: self.relay,
            limit: self.limit,
            breaks_pipelining: self.breaks_pipelining,
            anew: self.anew,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies to MAIL, two RCPTs and DATA of one flight; where they are fewer, the connection was closed.
    fn flight(replies: &[&str]) -> (Judgement, Vec<String>) {
        let mut read = replies.iter().map(|text| super::super::reply::parse(format!("{text}\r\n").as_bytes()));
        let mut answers = Answers { mail: read.next(), pipelined: true, ..Answers::default() };
        answers.rcpt = read.by_ref().take(2).collect();
        answers.data = read.next();
        let stage = [Stage::Mail, Stage::Rcpt, Stage::Rcpt, Stage::Data].get(replies.len()).copied();
        let ended = replies.last().is_some_and(|last| last.starts_with("421"));
        answers.lost = stage.filter(|_| !ended).map(|stage| (stage, Cause::Closed("closed".into())));
        let judgement = judge(&answers, 2);
        let fates = judgement.fates.iter().map(|fate| match fate {
            Fate::Taken => "taken".to_owned(),
            Fate::Again => "again".to_owned(),
            Fate::Settled(RecipientOutcome::Deferred(trouble)) => format!("deferred {}", trouble.stage.as_str()),
            Fate::Settled(RecipientOutcome::Refused(trouble)) => format!("refused {}", trouble.stage.as_str()),
            Fate::Settled(outcome) => format!("{outcome:?}"),
        });
        let fates = fates.collect();
        (judgement, fates)
    }

    #[test]
    fn a_flight_is_judged_as_a_whole() {
        for (replies, first, second, next) in [
            (["250", "250", "250", "354"].as_slice(), "taken", "taken", Next::Content),
            (&["250", "550", "250", "354"], "refused rcpt", "taken", Next::Content),
            (&["250", "250", "452", "354"], "taken", "again", Next::Content),
            (&["250", "550", "552 5.5.3", "503"], "refused rcpt", "again", Next::Reset),
            (&["250", "550", "550", "354"], "refused rcpt", "refused rcpt", Next::DotAlone),
            (&["250", "550", "550", "503"], "refused rcpt", "refused rcpt", Next::Reset),
            (&["250", "550", "250", "503"], "refused rcpt", "again", Next::Reset),
            (&["250", "550", "503", "503"], "refused rcpt", "again", Next::Reset),
            (&["250", "250", "550", "451"], "deferred data", "refused rcpt", Next::Reset),
            (&["451", "503", "503", "503"], "deferred mail", "deferred mail", Next::Reset),
            (&["550", "503", "503", "354"], "refused mail", "refused mail", Next::DotAlone),
            (&["550", "250", "250", "354"], "refused mail", "refused mail", Next::DotAlone),
            (&["550", "550", "421", "503"], "refused mail", "refused mail", Next::Drop),
            (&["250", "250", "421", "503"], "deferred rcpt", "deferred rcpt", Next::Drop),
            (&["250", "550", "250", "421"], "refused rcpt", "deferred data", Next::Drop),
            (&["250", "250", "250", "250"], "deferred data", "deferred data", Next::Drop),
            (&["250", "250", "530", "503"], "Untried", "Untried", Next::Drop),
            (&["250", "503", "503", "503"], "again", "again", Next::Drop),
            (&["250", "250", "250", "503"], "again", "again", Next::Drop),
            (&["503", "503", "503", "503"], "again", "again", Next::Drop),
            (&[], "deferred mail", "deferred mail", Next::Drop),
            (&["550"], "refused mail", "refused mail", Next::Drop),
            (&["250", "550"], "refused rcpt", "deferred rcpt", Next::Drop),
            (&["250", "250", "552", "354"], "taken", "again", Next::Content),
            (&["250", "250", "550 5.5.3", "354"], "taken", "again", Next::Content),
            (&["250", "250", "451 4.5.3", "354"], "taken", "again", Next::Content),
            (&["250", "250", "421 4.5.3"], "again", "again", Next::Drop),
            (&["250", "550", "421 4.5.3"], "refused rcpt", "deferred rcpt", Next::Drop),
            (&["250", "421 4.5.3"], "deferred rcpt", "deferred rcpt", Next::Drop),
            (&["250", "552", "552", "503"], "refused rcpt", "refused rcpt", Next::Reset),
            (&["250", "550", "552", "503"], "refused rcpt", "refused rcpt", Next::Reset),
            (&["250", "452 4.5.3", "452 4.5.3", "503"], "deferred rcpt", "deferred rcpt", Next::Reset),
            (&["250", "250", "550"], "deferred data", "refused rcpt", Next::Drop),
        ] {
            let (judgement, fates) = flight(replies);
            assert_eq!((fates, judgement.next), (vec![first.to_owned(), second.to_owned()], next), "{replies:?}");
        }
    }

    #[test]
    fn only_a_reply_that_nothing_explains_breaks_pipelining() {
        for (replies, breaks) in [
            (["250", "250", "250", "354"].as_slice(), false),
            (&["550", "503", "503", "503"], false),
            (&["250", "550", "503", "503"], false),
            (&["250", "250", "250", "503"], true),
            (&["250", "250", "503", "503"], true),
            (&["250", "250", "250", "250"], true),
            (&["250", "250", "421", "503"], false),
        ] {
            assert_eq!(flight(replies).0.breaks_pipelining.is_some(), breaks, "{replies:?}");
        }
        let protocol = || Cause::Protocol("a reply too many".into());
        for (pipelined, cause, breaks) in
            [(true, protocol(), true), (false, protocol(), false), (true, Cause::Timeout, false)]
        {
            let lost = Some((Stage::Mail, cause));
            let judgement = judge(&Answers { lost, pipelined, ..Answers::default() }, 1);
            assert_eq!(judgement.breaks_pipelining.is_some(), breaks, "{pipelined} {judgement:?}");
        }
    }

    #[test]
    fn a_login_that_is_wanted_at_rcpt_is_the_relays_then_made_again_then_the_recipients() {
        let read = |login| {
            let reply = |text: &str| super::super::reply::parse(format!("{text}\r\n").as_bytes());
            let rcpt = ["250 ok", "530 5.7.0 log in"].map(reply).to_vec();
            let (mail, data) = (Some(reply("250 ok")), Some(reply("354 go")));
            let judgement = judge(&Answers { mail, rcpt, data, login, pipelined: true, ..Answers::default() }, 2);
            (judgement.fates, judgement.next, judgement.anew.is_some(), judgement.relay.is_some())
        };
        let untried = || Fate::Settled(RecipientOutcome::Untried);
        assert_eq!(read(LoginWanted::Relays), (vec![untried(), untried()], Next::Drop, false, true));
        assert_eq!(read(LoginWanted::Again), (vec![Fate::Again, Fate::Again], Next::Drop, true, false));
        let (fates, next, anew, relay) = read(LoginWanted::Recipients);
        assert!(matches!(
            fates.as_slice(),
            [Fate::Taken, Fate::Settled(RecipientOutcome::Deferred(Trouble { scope: Scope::Recipient, .. }))]
        ));
        assert_eq!((next, anew, relay), (Next::Content, false, false));
    }
}
