//! From the reply to a content to what becomes of its recipients. No I/O.

use super::classify::{Meaning, meaning};
use crate::outcome::{Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};

/// The outcome of a transaction whose content was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DotJudgement {
    /// For every recipient that RCPT was accepted for.
    pub outcome: RecipientOutcome,
    pub answer: Result<Reply, Trouble>,
    pub relay: Option<Trouble>,
    /// The connection can take another mail.
    pub usable: bool,
}

/// `dot_out`: the final dot may have left. Where it did and no reply is known, the outcome is unknown.
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
        Meaning::No(outcome) | Meaning::Enough { otherwise: outcome, .. } => {
            let trouble = Trouble { stage, scope: Scope::Message, cause: Cause::Reply(reply) };
            negative(outcome, trouble, false, dot_out)
        }
        Meaning::Ending(trouble) | Meaning::EnoughAndEnding(trouble) => {
            negative(RecipientOutcome::Deferred(trouble.clone()), trouble, true, false)
        }
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

    fn shape(dot_out: bool, answer: &str) -> (&'static str, bool, bool) {
        let answer = match answer {
            "" => Err(Cause::Closed("closed".into())),
            text => Ok(super::super::reply::parse(format!("{text}\r\n").as_bytes())),
        };
        let judged = judge_dot(dot_out, answer);
        let outcome = match judged.outcome {
            RecipientOutcome::Accepted(_) => "accepted",
            RecipientOutcome::Deferred(_) => "deferred",
            RecipientOutcome::Refused(_) => "refused",
            RecipientOutcome::Unknown(_) => "unknown",
            RecipientOutcome::Untried => "untried",
        };
        assert_eq!(judged.answer.is_ok(), outcome == "accepted");
        (outcome, judged.usable, judged.relay.is_some())
    }

    #[test]
    fn only_a_250_behind_the_dot_is_an_acceptance() {
        for (dot_out, answer, outcome, usable, relay) in [
            (true, "250 2.0.0 queued", "accepted", true, false),
            (false, "250 2.0.0 queued", "deferred", false, false),
            (false, "354 go ahead", "deferred", false, false),
            (true, "354 go ahead", "unknown", false, false),
            (true, "", "unknown", false, false),
            (false, "", "deferred", false, false),
            (true, "451 later", "deferred", true, false),
            (false, "451 later", "deferred", false, false),
            (true, "554 no", "refused", true, false),
            (false, "552 5.3.4 large", "refused", false, false),
            (true, "421 closing", "deferred", false, true),
            (false, "421 closing", "deferred", false, true),
            (true, "530 log in", "untried", false, true),
            (true, "503 order", "deferred", false, false),
        ] {
            assert_eq!(shape(dot_out, answer), (outcome, usable, relay), "{dot_out} {answer}");
        }
    }
}
