//! The commands that begin a transaction, and what keeps a mail or a recipient from being offered at all.

use std::fmt::Write;

use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt};
use lettre::transport::smtp::extension::{MailBodyParameter, MailParameter};

use super::Announced;
use crate::mail::{Address, Capabilities, Mail};
use crate::outcome::{Cause, Reason, RecipientOutcome, Scope, Stage, Trouble};

/// MAIL, RCPT and DATA of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub commands: String,
    /// How many RCPT there are.
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
