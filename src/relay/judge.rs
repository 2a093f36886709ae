//! From the replies to one envelope to what becomes of each recipient and what comes next. No I/O.
//!
//! The replies of one flight are read as a whole, because a reply in its middle can be the consequence of one before.

use super::classify::{Meaning, meaning};
use crate::outcome::{Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};

/// What was read in answer to MAIL, the RCPTs and DATA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    pub mail: Option<Reply>,
    pub rcpt: Vec<Reply>,
    pub data: Option<Reply>,
    /// Where and why nothing more could be read. A reply of which [`is_over`] is true also ends the reading, and is no
    /// loss.
    pub lost: Option<(Stage, Cause)>,
    /// The commands went out together.
    pub pipelined: bool,
    /// They went out behind the content of the mail before.
    pub ahead: bool,
}

/// What becomes of one recipient of the transaction.
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
    /// How many recipients the smarthost takes in one message.
    pub limit: Option<usize>,
    /// The smarthost announces PIPELINING and does not keep it.
    pub breaks_pipelining: bool,
}

/// Whether nothing that follows in this flight could count. `refused`: something before was refused, which explains a 503.
pub(super) fn is_over(meaning: &Meaning, refused: bool) -> bool {
    match meaning {
        Meaning::Ending(_) | Meaning::NotLoggedIn(_) | Meaning::Nonsense(_) => true,
        Meaning::OutOfTurn(_) => !refused,
        Meaning::Yes | Meaning::No(_) | Meaning::Enough(_) => false,
    }
}

pub(super) fn judge(answers: &Answers, recipients: usize) -> Judgement {
    let mut judge = Judge {
        fates: vec![None; recipients],
        next: Next::Reset,
        message: None,
        relay: None,
        limit: None,
        breaks_pipelining: false,
        refused: false,
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
    breaks_pipelining: bool,
    /// Something in this flight was refused, which explains a 503 behind it.
    refused: bool,
    pipelined: bool,
}

impl Judge {
    fn read(&mut self, answers: &Answers) {
        if let Some(reply) = &answers.mail {
            match meaning(Stage::Mail, reply) {
                Meaning::Yes => {}
                Meaning::No(outcome) => {
                    self.rest(Fate::Settled(outcome.clone()));
                    self.message = Some(outcome);
                    self.refused = true;
                }
                other => return self.stop(other),
            }
        }
        for (index, reply) in answers.rcpt.iter().enumerate() {
            let meaning = meaning(Stage::Rcpt, reply);
            if self.message.is_some() && !is_over(&meaning, self.refused) {
                continue;
            }
            match meaning {
                Meaning::Yes => self.fates[index] = Some(Fate::Taken),
                // Each transaction settles or takes its first recipient, so that there is an end to transactions.
                Meaning::Enough(_) if index > 0 => {
                    self.fates[index] = Some(Fate::Again);
                    self.limit.get_or_insert(index);
                }
                Meaning::No(outcome) | Meaning::Enough(outcome) => {
                    self.fates[index] = Some(Fate::Settled(outcome));
                    self.refused = true;
                }
                Meaning::OutOfTurn(_) if self.refused => self.fates[index] = Some(Fate::Again),
                other => return self.stop(other),
            }
        }
        if let Some(reply) = &answers.data {
            self.read_data(reply);
        }
        if let Some((stage, cause)) = &answers.lost {
            let trouble = Trouble { stage: *stage, scope: Scope::Message, cause: cause.clone() };
            self.put_off(trouble);
            self.breaks_pipelining |= self.pipelined && matches!(cause, Cause::Protocol(_));
            self.next = Next::Drop;
        } else if self.pipelined && answers.data.is_none() {
            // Replies are due that nobody reads.
            self.next = Next::Drop;
        }
    }

    fn read_data(&mut self, reply: &Reply) {
        let taken = self.fates.contains(&Some(Fate::Taken));
        match meaning(Stage::Data, reply) {
            Meaning::Yes => self.next = if taken { Next::Content } else { Next::DotAlone },
            Meaning::No(outcome) => self.taken(Fate::Settled(outcome)),
            Meaning::OutOfTurn(_) if self.refused => self.taken(Fate::Again),
            other => self.stop(other),
        }
    }

    /// The conversation cannot go on.
    fn stop(&mut self, meaning: Meaning) {
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
                self.breaks_pipelining = true;
                self.taken(Fate::Again);
                self.rest(Fate::Again);
            }
            Meaning::OutOfTurn(trouble) => self.put_off(trouble),
            Meaning::Nonsense(trouble) => {
                self.breaks_pipelining = self.pipelined;
                self.put_off(trouble);
            }
            Meaning::Yes | Meaning::No(_) | Meaning::Enough(_) => {}
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
        }
    }
}

/// What became of a transaction whose content was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DotJudgement {
    /// For every recipient that RCPT was accepted for.
    pub outcome: RecipientOutcome,
    pub answer: Result<Reply, Trouble>,
    pub relay: Option<Trouble>,
    /// The connection can take another mail.
    pub usable: bool,
}

/// `dot_out`: the final dot may have left. Where it did and no reply is known, nobody knows the outcome.
pub(super) fn judge_dot(dot_out: bool, answer: Result<Reply, Cause>) -> DotJudgement {
    let stage = if dot_out { Stage::FinalDot } else { Stage::Data };
    let reply = match answer {
        Ok(reply) => reply,
        Err(cause) => {
            let trouble = Trouble { stage, scope: Scope::Message, cause };
            let outcome = if dot_out { RecipientOutcome::Unknown } else { RecipientOutcome::Deferred };
            return DotJudgement {
                outcome: outcome(trouble.clone()),
                answer: Err(trouble),
                relay: None,
                usable: false,
            };
        }
    };
    let negative = |outcome: RecipientOutcome, trouble: Trouble, relay: bool, usable: bool| DotJudgement {
        outcome,
        relay: relay.then(|| trouble.clone()),
        answer: Err(trouble),
        usable,
    };
    match meaning(stage, &reply) {
        Meaning::Yes if dot_out => DotJudgement {
            outcome: RecipientOutcome::Accepted(reply.clone()),
            answer: Ok(reply),
            relay: None,
            usable: true,
        },
        // "Go ahead" a second time, in the middle of the content.
        Meaning::Yes => {
            let cause = Cause::Protocol(format!("the smarthost's reply has no meaning here: {reply}"));
            let trouble = Trouble { stage, scope: Scope::Message, cause };
            negative(RecipientOutcome::Deferred(trouble.clone()), trouble, false, false)
        }
        Meaning::No(outcome) | Meaning::Enough(outcome) => {
            let trouble = Trouble { stage, scope: Scope::Message, cause: Cause::Reply(reply) };
            negative(outcome, trouble, false, dot_out)
        }
        Meaning::Ending(trouble) => negative(RecipientOutcome::Deferred(trouble.clone()), trouble, true, false),
        Meaning::NotLoggedIn(trouble) => negative(RecipientOutcome::Untried, trouble, true, false),
        Meaning::OutOfTurn(trouble) => negative(RecipientOutcome::Deferred(trouble.clone()), trouble, false, false),
        Meaning::Nonsense(trouble) if dot_out => {
            negative(RecipientOutcome::Unknown(trouble.clone()), trouble, false, false)
        }
        Meaning::Nonsense(trouble) => negative(RecipientOutcome::Deferred(trouble.clone()), trouble, false, false),
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
        answers.lost = stage.map(|stage| (stage, Cause::Closed("closed".into())));
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
            assert_eq!(flight(replies).0.breaks_pipelining, breaks, "{replies:?}");
        }
    }
}
