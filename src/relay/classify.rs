//! The meaning of a reply from MAIL on, and the party that it concerns, as a table of `stage × code × enhanced status
//! code`. No I/O.

use crate::outcome::{Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};

/// The meaning of a reply to the transaction that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The step went well.
    Yes,
    /// Put off or refused: this recipient at RCPT, every recipient of the transaction elsewhere.
    No(RecipientOutcome),
    /// Behind accepted recipients: the message has as many as the smarthost takes in one. Elsewhere it is the outcome.
    Enough {
        otherwise: RecipientOutcome,
        /// The enhanced status code says so (x.5.3, RFC 3463 §3.6); without it, a full mailbox may be meant.
        explicit: bool,
    },
    /// The same, and the smarthost ends the connection (421 4.5.3).
    EnoughAndEnding(Trouble),
    /// Commands in a wrong order (503). It follows from a refusal before it, or shows that we and the peer disagree.
    OutOfTurn(Trouble),
    /// The smarthost ends the connection (421). The mail under way is put off, and the relay is in trouble.
    Ending(Trouble),
    /// We are not, or no longer, logged in. No mail is to blame.
    NotLoggedIn(Trouble),
    /// A reply that has no meaning at this step.
    Nonsense(Trouble),
}

/// Whose trouble it is that the smarthost wants a login at RCPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LoginWanted {
    /// We have no login, or none that was made for this mail: the relay's.
    #[default]
    Relays,
    /// The login may have ended: the mail is to be offered again on a session that has just logged in.
    Again,
    /// The session has just logged in, and this mail was answered so before: that recipient's.
    Recipients,
}

/// Reads a reply to MAIL, RCPT, DATA or the final dot.
pub(super) fn meaning(stage: Stage, reply: &Reply) -> Meaning {
    let trouble = |scope| Trouble { stage, scope, cause: Cause::Reply(reply.clone()) };
    let wanted = if stage == Stage::Data { 3 } else { 2 };
    match (reply.code, reply.enhanced) {
        (code, _) if code / 100 == wanted => Meaning::Yes,
        (421, Some((_, 5, 3))) if stage == Stage::Rcpt => Meaning::EnoughAndEnding(trouble(Scope::Relay)),
        (421, _) => Meaning::Ending(trouble(Scope::Relay)),
        _ if reply.wants_login() => Meaning::NotLoggedIn(trouble(Scope::Relay)),
        (400..600, Some((_, 5, 3))) if stage == Stage::Rcpt => {
            Meaning::Enough { otherwise: no(stage, reply), explicit: true }
        }
        (452 | 552, None) if stage == Stage::Rcpt => Meaning::Enough { otherwise: no(stage, reply), explicit: false },
        (503, _) => Meaning::OutOfTurn(trouble(Scope::Message)),
        (400..600, _) => Meaning::No(no(stage, reply)),
        _ => Meaning::Nonsense(Trouble {
            stage,
            scope: Scope::Message,
            cause: Cause::Protocol(format!("the smarthost's reply has no meaning here: {reply}")),
        }),
    }
}

/// A 4yz or 5yz reply as an outcome.
fn no(stage: Stage, reply: &Reply) -> RecipientOutcome {
    let trouble = |scope| Trouble { stage, scope, cause: Cause::Reply(reply.clone()) };
    match (stage, reply.is_permanent()) {
        (Stage::Rcpt, true) => RecipientOutcome::Refused(trouble(Scope::Recipient)),
        (Stage::Rcpt, false) => RecipientOutcome::Deferred(trouble(deferred_recipient(reply))),
        (_, true) => RecipientOutcome::Refused(trouble(Scope::Message)),
        (Stage::Mail, false) if is_pace(reply) => RecipientOutcome::Deferred(trouble(Scope::Relay)),
        (_, false) => RecipientOutcome::Deferred(trouble(Scope::Message)),
    }
}

/// Returns true where a 4yz reply to MAIL speaks of our pace or of a system that is full.
fn is_pace(reply: &Reply) -> bool {
    matches!(reply.enhanced, Some((_, 7, _) | (_, 3, 1 | 2)))
}

/// A wanted login as a recipient's own trouble. The recipient is deferred and not refused, because a right that was
/// lost may come back.
pub(super) fn as_recipients_own(trouble: Trouble) -> RecipientOutcome {
    RecipientOutcome::Deferred(Trouble { scope: Scope::Recipient, ..trouble })
}

/// Whom a 4yz reply to RCPT concerns: the recipient, or the relay's pace.
fn deferred_recipient(reply: &Reply) -> Scope {
    match (reply.code, reply.enhanced) {
        (_, Some((_, 3 | 7, _))) => Scope::Relay,
        (_, Some(_)) | (450, None) => Scope::Recipient,
        (_, None) => Scope::Relay,
    }
}

/// A reply before MAIL: it is the relay's, whatever it says.
pub(super) fn before_mail(stage: Stage, reply: Reply) -> Trouble {
    Trouble { stage, scope: Scope::Relay, cause: Cause::Reply(reply) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Data, FinalDot, Mail, Rcpt};

    fn reply(text: &str) -> Reply {
        super::super::reply::parse(format!("{text}\r\n").as_bytes())
    }

    fn shape(stage: Stage, text: &str) -> String {
        let outcome = |outcome: &RecipientOutcome| match outcome {
            RecipientOutcome::Deferred(trouble) => format!("deferred {:?}", trouble.scope),
            RecipientOutcome::Refused(trouble) => format!("refused {:?}", trouble.scope),
            other => format!("{other:?}"),
        };
        match meaning(stage, &reply(text)) {
            Meaning::Yes => "yes".into(),
            Meaning::No(no) => outcome(&no),
            Meaning::Enough { otherwise, explicit: true } => format!("enough, else {}", outcome(&otherwise)),
            Meaning::Enough { otherwise, explicit: false } => format!("perhaps enough, else {}", outcome(&otherwise)),
            Meaning::EnoughAndEnding(trouble) => format!("enough and ending {:?}", trouble.scope),
            Meaning::OutOfTurn(_) => "out of turn".into(),
            Meaning::Ending(trouble) => format!("ending {:?}", trouble.scope),
            Meaning::NotLoggedIn(trouble) => format!("not logged in {:?}", trouble.scope),
            Meaning::Nonsense(_) => "nonsense".into(),
        }
    }

    const REPLIES: [(Stage, &str, &str); 68] = [
        (Mail, "250 2.1.0 Ok", "yes"),
        (Mail, "354 go on", "nonsense"),
        (Mail, "421 4.3.2 closing", "ending Relay"),
        (Mail, "450 4.7.1 slow down", "deferred Relay"),
        (Mail, "451 4.3.0 error", "deferred Message"),
        (Mail, "452 4.3.1 no space", "deferred Relay"),
        (Mail, "452 4.3.2 not now", "deferred Relay"),
        (Mail, "452 no space", "deferred Message"),
        (Mail, "550 5.5.3 many", "refused Message"),
        (Mail, "452 4.5.3 many", "deferred Message"),
        (Mail, "454 4.7.0 auth", "not logged in Relay"),
        (Mail, "503 5.5.1 nested", "out of turn"),
        (Mail, "530 5.7.0 log in", "not logged in Relay"),
        (Mail, "535 5.7.8 no", "not logged in Relay"),
        (Mail, "550 5.7.1 no", "refused Message"),
        (Mail, "552 5.3.4 large", "refused Message"),
        (Rcpt, "250 ok", "yes"),
        (Rcpt, "251 will forward", "yes"),
        (Rcpt, "252 cannot verify", "yes"),
        (Rcpt, "421 4.7.0 many errors", "ending Relay"),
        (Rcpt, "450 try later", "deferred Recipient"),
        (Rcpt, "450 4.2.1 busy", "deferred Recipient"),
        (Rcpt, "450 4.1.1 unknown", "deferred Recipient"),
        (Rcpt, "450 4.4.1 route", "deferred Recipient"),
        (Rcpt, "450 4.7.1 greylisted", "deferred Relay"),
        (Rcpt, "451 error", "deferred Relay"),
        (Rcpt, "451 4.3.0 error", "deferred Relay"),
        (Rcpt, "451 4.7.500 busy", "deferred Relay"),
        (Rcpt, "452 too many", "perhaps enough, else deferred Relay"),
        (Rcpt, "452 4.5.3 too many", "enough, else deferred Recipient"),
        (Rcpt, "452 4.2.2 full", "deferred Recipient"),
        (Rcpt, "452 4.3.1 no space", "deferred Relay"),
        (Rcpt, "454 4.7.0 auth", "not logged in Relay"),
        (Rcpt, "454 4.7.1 relaying", "deferred Relay"),
        (Rcpt, "503 5.5.1 need MAIL", "out of turn"),
        (Rcpt, "530 5.7.0 log in", "not logged in Relay"),
        (Rcpt, "550 5.1.1 unknown", "refused Recipient"),
        (Rcpt, "550 5.7.1 no", "refused Recipient"),
        (Rcpt, "552 5.2.2 full", "refused Recipient"),
        (Rcpt, "552 5.5.3 too many", "enough, else refused Recipient"),
        (Rcpt, "552 full", "perhaps enough, else refused Recipient"),
        (Rcpt, "550 5.5.3 too many", "enough, else refused Recipient"),
        (Rcpt, "554 5.5.3 too many", "enough, else refused Recipient"),
        (Rcpt, "503 5.5.3 too many", "enough, else refused Recipient"),
        (Rcpt, "450 4.5.3 too many", "enough, else deferred Recipient"),
        (Rcpt, "451 4.5.3 too many", "enough, else deferred Recipient"),
        (Rcpt, "552 4.5.3 too many", "enough, else refused Recipient"),
        (Rcpt, "452 5.5.3 too many", "enough, else deferred Recipient"),
        (Rcpt, "421 4.5.3 too many", "enough and ending Relay"),
        (Rcpt, "534 5.7.9 stronger", "not logged in Relay"),
        (Rcpt, "538 5.7.11 encrypt", "not logged in Relay"),
        (Rcpt, "354 go on", "nonsense"),
        (Data, "354 go on", "yes"),
        (Data, "250 ok", "nonsense"),
        (Data, "421 closing", "ending Relay"),
        (Data, "451 4.3.0 error", "deferred Message"),
        (Data, "452 4.5.3 many", "deferred Message"),
        (Data, "503 5.5.1 no recipients", "out of turn"),
        (Data, "530 5.7.0 log in", "not logged in Relay"),
        (Data, "554 5.5.1 no valid recipients", "refused Message"),
        (FinalDot, "250 2.0.0 queued", "yes"),
        (FinalDot, "354 go on", "nonsense"),
        (FinalDot, "421 4.3.2 closing", "ending Relay"),
        (FinalDot, "451 4.3.0 error", "deferred Message"),
        (FinalDot, "452 4.3.1 no space", "deferred Message"),
        (FinalDot, "530 5.7.0 log in", "not logged in Relay"),
        (FinalDot, "550 5.7.1 spam", "refused Message"),
        (FinalDot, "554 5.7.1 spam", "refused Message"),
    ];

    #[test]
    fn each_reply_is_blamed_at_its_scope() {
        for (stage, text, expected) in REPLIES {
            assert_eq!(shape(stage, text), expected, "{stage:?} {text}");
        }
    }

    #[test]
    fn before_mail_every_reply_is_the_relays() {
        for text in ["421 busy", "454 4.7.0 later", "554 no", "535 5.7.8 no", "250 what"] {
            assert_eq!(before_mail(Stage::Auth, reply(text)).scope, Scope::Relay, "{text}");
        }
    }
}
