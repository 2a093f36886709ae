//! The commands that begin a transaction, and what keeps a mail or a recipient from being offered at all.

use std::fmt::Write;

use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt};
use lettre::transport::smtp::extension::{MailBodyParameter, MailParameter};

use super::announced::Announced;
use crate::mail::{Address, Capabilities, Mail};
use crate::outcome::{Cause, Reason, RecipientOutcome, Scope, Stage, Trouble};

/// MAIL, RCPT and DATA of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub commands: String,
    /// The number of RCPT commands.
    pub recipients: usize,
}

impl Envelope {
    pub fn new<'a>(mail: &Mail, recipients: impl Iterator<Item = &'a Address>, announced: &Announced) -> Self {
        let mut rcpts = String::new();
        let mut count = 0;
        let mut ascii = mail.envelope.sender.as_ref().is_none_or(is_ascii);
        for recipient in recipients {
            ascii &= is_ascii(recipient);
            count += 1;
            push(&mut rcpts, Rcpt::new(recipient.clone(), Vec::new()));
        }
        let mut parameters = Vec::new();
        if announced.size.is_some() {
            parameters.push(MailParameter::Size(mail.content.len()));
        }
        if mail.eight_bit && announced.eight_bit {
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        if (mail.smtputf8 || !ascii) && announced.smtputf8 {
            parameters.push(MailParameter::SmtpUtfEight);
        }
        let mut commands = String::with_capacity(rcpts.len() + 128);
        push(&mut commands, MailFrom::new(mail.envelope.sender.clone(), parameters));
        commands.push_str(&rcpts);
        push(&mut commands, Data);
        Self { commands, recipients: count }
    }

    /// Each command with its line end: MAIL, the RCPTs, DATA.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.commands.split_inclusive('\n')
    }
}

fn push(commands: &mut String, command: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = write!(commands, "{command}");
}

/// The capabilities that the mail is to be made again for, where it was made for others than this connection has and
/// that makes a difference: it needs what is missing, or leaves a recipient out who can be reached.
pub(super) fn outdated<'a>(
    mail: &Mail,
    mut recipients: impl Iterator<Item = &'a Address>,
    announced: &Announced,
) -> Option<Capabilities> {
    let here = announced.capabilities();
    let mut utf8 = || mail.smtputf8 || !mail.envelope.sender.iter().all(is_ascii) || !recipients.all(is_ascii);
    let differs = mail.eight_bit && mail.made_for.eight_bit && !here.eight_bit
        || mail.narrowed && here.smtputf8
        || mail.made_for.smtputf8 && !here.smtputf8 && utf8();
    (mail.made_for != here && differs).then_some(here)
}

/// Why the smarthost cannot be offered this mail for any recipient, although it was made for what is announced.
pub(super) fn obstacle(mail: &Mail, announced: &Announced) -> Option<Trouble> {
    let sender = mail.envelope.sender.as_ref();
    let size = mail.content.len() as u64;
    let (reason, why) = if sender.is_some_and(|sender| !is_clean(sender)) {
        (Reason::AddressInvalid, "the envelope sender holds control characters".to_owned())
    } else if let Some(limit) = announced.size.filter(|limit| *limit > 0 && *limit < size) {
        (Reason::TooLarge, format!("the mail has {size} bytes and the smarthost takes at most {limit}"))
    } else if !announced.smtputf8 && (mail.smtputf8 || !sender.is_none_or(is_ascii)) {
        (Reason::Smtputf8Unsupported, "the mail needs SMTPUTF8, which the smarthost does not offer".to_owned())
    } else if mail.eight_bit && !announced.eight_bit {
        (Reason::NotTransportable, "the mail holds 8-bit text, and the smarthost does not offer 8BITMIME".to_owned())
    } else {
        return None;
    };
    Some(Trouble { stage: Stage::Mail, scope: Scope::Message, cause: Cause::Local(reason, why) })
}

/// Why the smarthost cannot be offered this one recipient.
pub(super) fn unreachable(recipient: &Address, announced: &Announced) -> Option<RecipientOutcome> {
    let (reason, why) = if !is_clean(recipient) {
        (Reason::AddressInvalid, "the address holds control characters")
    } else if !is_ascii(recipient) && !announced.smtputf8 {
        (Reason::Smtputf8Unsupported, "the address needs SMTPUTF8, which the smarthost does not offer")
    } else {
        return None;
    };
    let cause = Cause::Local(reason, why.to_owned());
    Some(RecipientOutcome::Refused(Trouble { stage: Stage::Rcpt, scope: Scope::Recipient, cause }))
}

fn is_ascii(address: &Address) -> bool {
    let text: &str = address.as_ref();
    text.is_ascii()
}

/// No address that lettre has checked holds such characters; a command line must not depend on that.
fn is_clean(address: &Address) -> bool {
    let text: &str = address.as_ref();
    !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(size: usize) -> Mail {
        Mail {
            message_id: String::new(),
            subject: String::new(),
            envelope: crate::mail::Envelope { sender: None, recipients: Vec::new() },
            own_sender: None,
            invalid: Vec::new(),
            made_for: Capabilities::default(),
            narrowed: false,
            content: vec![b'a'; size].into(),
            eight_bit: false,
            smtputf8: false,
            repairs: Vec::new(),
        }
    }

    fn reason(trouble: Option<Trouble>) -> Option<Reason> {
        trouble.map(|trouble| match trouble.cause {
            Cause::Local(reason, _) => reason,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn a_mail_may_be_as_large_as_the_announced_size() {
        for (size, limit, expected) in [
            (1_000, Some(1_000), None),
            (1_001, Some(1_000), Some(Reason::TooLarge)),
            (1_001, Some(0), None),
            (1_001, None, None),
        ] {
            let announced = Announced { size: limit, ..Announced::default() };
            assert_eq!(reason(obstacle(&mail(size), &announced)), expected, "{size} {limit:?}");
        }
    }

    #[test]
    fn no_address_with_control_characters_becomes_a_command() {
        let announced = Announced { smtputf8: true, ..Announced::default() };
        for user in ["a\r\nRCPT TO:<b", "a\0", "a\u{7f}", "a\u{85}"] {
            let odd = Address::new_dangerous(user, "x.test");
            let refused = unreachable(&odd, &announced);
            let Some(RecipientOutcome::Refused(trouble)) = refused else { panic!("{user:?}: {refused:?}") };
            assert_eq!(reason(Some(trouble)), Some(Reason::AddressInvalid), "{user:?}");
            let mut mail = mail(1);
            mail.envelope.sender = Some(odd);
            assert_eq!(reason(obstacle(&mail, &announced)), Some(Reason::AddressInvalid), "{user:?}");
        }
        assert_eq!(unreachable(&Address::new_dangerous("jörg", "x.test"), &announced), None);
    }

    #[test]
    fn a_mail_is_made_again_where_the_capabilities_make_a_difference() {
        let caps = |eight_bit, smtputf8| Capabilities { eight_bit, smtputf8 };
        let ask = |change: fn(&mut Mail), user: &str, here: Capabilities| {
            let mut mail = mail(1);
            change(&mut mail);
            let announced = Announced { eight_bit: here.eight_bit, smtputf8: here.smtputf8, ..Announced::default() };
            outdated(&mail, [Address::new_dangerous(user, "x.test")].iter(), &announced).is_some()
        };
        let none = caps(false, false);
        assert!(!ask(|_| {}, "a", none));
        assert!(ask(|_| {}, "ä", none) && !ask(|_| {}, "ä", caps(false, true)));
        assert!(
            ask(|mail| mail.smtputf8 = true, "a", none) && !ask(|mail| mail.smtputf8 = true, "a", caps(false, true))
        );
        assert!(
            ask(|mail| mail.eight_bit = true, "a", none) && !ask(|mail| mail.eight_bit = true, "a", caps(true, false))
        );
        // Made for just this connection: the obstacle is real.
        let for_none = |mail: &mut Mail| {
            mail.made_for = Capabilities { eight_bit: false, smtputf8: false };
            mail.eight_bit = true;
            mail.smtputf8 = true;
        };
        assert!(!ask(for_none, "ä", none) && !ask(for_none, "ä", caps(true, true)));
        let narrowed = |mail: &mut Mail| {
            mail.made_for = Capabilities { eight_bit: true, smtputf8: false };
            mail.narrowed = true;
        };
        assert!(!ask(narrowed, "a", none) && ask(narrowed, "a", caps(false, true)));
    }
}
