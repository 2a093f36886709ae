//! What can become of a mail: the smarthost's reply, whom a failure concerns, and what follows from it. No I/O.

use std::collections::{HashMap, HashSet};
use std::fmt;

use jiff::Timestamp;

use crate::mail::{Address, Capabilities};

/// A complete reply of the smarthost (RFC 5321 §4.2), fit for a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    /// RFC 3463 status code, where the reply has one.
    pub enhanced: Option<(u8, u16, u16)>,
    /// All lines joined by one blank, without the codes; control characters replaced; at most 500 bytes.
    pub text: String,
}

impl Reply {
    /// 2yz
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 5yz
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// We are not, or no longer, logged in (RFC 4954 §6).
    pub fn wants_login(&self) -> bool {
        matches!((self.code, self.enhanced), (530 | 534 | 535 | 538, _) | (454, Some((4, 7, 0))))
    }

    /// The code and the text in lower case, without the words that differ from mail to mail: those with digits, with
    /// signs inside or with a capital behind a small letter, as addresses, host names, links and ids have them. Two mails
    /// that are refused for the same reason have the same essence.
    pub fn essence(&self) -> String {
        let mut essence = self.code.to_string();
        if let Some((class, subject, detail)) = self.enhanced {
            essence += &format!(" {class}.{subject}.{detail}");
        }
        for word in self.text.split_ascii_whitespace() {
            let word = word.trim_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '<' | '>' | '@'));
            let plain = |c: char| c.is_alphabetic() || matches!(c, '-' | '\'');
            let mixed = word.chars().zip(word.chars().skip(1)).any(|(a, b)| a.is_lowercase() && b.is_uppercase());
            if !word.is_empty() && word.chars().all(plain) && !mixed {
                essence += " ";
                essence += &word.to_lowercase();
            }
        }
        essence
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.code, f)?;
        if let Some((class, subject, detail)) = self.enhanced {
            write!(f, " {class}.{subject}.{detail}")?;
        }
        if !self.text.is_empty() {
            f.write_str(" ")?;
            f.write_str(&self.text)?;
        }
        Ok(())
    }
}

/// The step of the SMTP dialogue at which something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    Connect,
    Greeting,
    Ehlo,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    FinalDot,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Greeting => "greeting",
            Self::Ehlo => "ehlo",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::FinalDot => "final-dot",
        }
    }
}

/// Whom a failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The smarthost as a whole: no mail is to blame.
    Relay,
    /// This mail, with all the recipients that it still has.
    Message,
    /// One recipient of this mail.
    Recipient,
}

/// What went wrong, in the smarthost's words or in ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Reply(Reply),
    /// The step's time ran out.
    Timeout,
    /// The connection could not be made or broke; the text says how.
    Closed(String),
    /// The peer does not speak SMTP as it should; the text says how.
    Protocol(String),
    /// No socket could be opened: our own limit of open files was reached; the text says what to do.
    OpenFiles(String),
    /// We did not go on, for a reason of our own.
    Local(Reason, String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply(reply) => reply.fmt(f),
            Self::Timeout => f.write_str("no reply in time"),
            Self::Closed(how) | Self::Protocol(how) | Self::OpenFiles(how) | Self::Local(_, how) => f.write_str(how),
        }
    }
}

/// A failure with its place and the party that it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub stage: Stage,
    pub scope: Scope,
    pub cause: Cause,
}

impl Trouble {
    /// Returns true where a smarthost says before MAIL that it takes no further connection now: by 421, any 4yz greeting,
    /// or a connection that is refused, reset, closed or not answered. While another connection works, this is a limit.
    pub fn is_connection_limit(&self) -> bool {
        match &self.cause {
            _ if self.stage >= Stage::Mail => false,
            Cause::Reply(reply) => reply.code == 421 || self.stage == Stage::Greeting && reply.code / 100 == 4,
            Cause::Closed(_) => true,
            Cause::Timeout => matches!(self.stage, Stage::Connect | Stage::Greeting),
            Cause::Protocol(_) | Cause::OpenFiles(_) | Cause::Local(..) => false,
        }
    }

    /// Returns true where our own limit of open files kept us from connecting: the smarthost has no part in that.
    pub fn is_open_files(&self) -> bool {
        matches!(self.cause, Cause::OpenFiles(_))
    }

    /// Returns true where the login failed, or the smarthost wants one.
    pub fn is_login(&self) -> bool {
        match &self.cause {
            Cause::Reply(reply) if reply.wants_login() => true,
            _ => self.stage == Stage::Auth && !self.is_connection_limit(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {})", self.cause, self.stage.as_str())
    }
}

/// What one attempt did for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientOutcome {
    /// The smarthost took responsibility: 250 after the final dot.
    Accepted(Reply),
    /// To be tried again later.
    Deferred(Trouble),
    /// Refused for good.
    Refused(Trouble),
    /// The link died between the final dot and our reading of the reply.
    Unknown(Trouble),
    /// Not offered at all, or in a transaction that never came to its dot for a reason that is not this mail's.
    Untried,
}

/// What became of one offer of a mail to the smarthost. Each recipient that was to be reached has an outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    pub outcomes: Vec<(Address, RecipientOutcome)>,
    /// Trouble that concerns the relay and not, or not only, this mail. Where it stands beside outcomes that are all
    /// `Untried` or `Accepted`, no attempt of the mail is used.
    pub relay: Option<Trouble>,
    /// The connection has these capabilities, and the mail was made for others: it is to be made again for these and
    /// offered to those that are `Untried`, over the same connection. No attempt of the mail is used.
    pub remake: Option<Capabilities>,
}

/// Reason codes: a contract with monitoring and scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Base64Invalid,
    Truncated,
    NoRecipient,
    NoSender,
    AddressInvalid,
    HeaderInvalid,
    TooLarge,
    Smtputf8Unsupported,
    Refused,
    Throttled,
    RelayUnavailable,
    Expired,
    OutcomeUnknown,
    AlreadyAccepted,
    NotTransportable,
    Operator,
    InternalError,
    NotDeleted,
}

impl Reason {
    pub const ALL: [Self; 18] = [
        Self::Base64Invalid,
        Self::Truncated,
        Self::NoRecipient,
        Self::NoSender,
        Self::AddressInvalid,
        Self::HeaderInvalid,
        Self::TooLarge,
        Self::Smtputf8Unsupported,
        Self::Refused,
        Self::Throttled,
        Self::RelayUnavailable,
        Self::Expired,
        Self::OutcomeUnknown,
        Self::AlreadyAccepted,
        Self::NotTransportable,
        Self::Operator,
        Self::InternalError,
        Self::NotDeleted,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base64Invalid => "base64-invalid",
            Self::Truncated => "truncated",
            Self::NoRecipient => "no-recipient",
            Self::NoSender => "no-sender",
            Self::AddressInvalid => "address-invalid",
            Self::HeaderInvalid => "header-invalid",
            Self::TooLarge => "too-large",
            Self::Smtputf8Unsupported => "smtputf8-unsupported",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::RelayUnavailable => "relay-unavailable",
            Self::Expired => "expired",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::AlreadyAccepted => "already-accepted",
            Self::NotTransportable => "not-transportable",
            Self::Operator => "operator",
            Self::InternalError => "internal-error",
            Self::NotDeleted => "not-deleted",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// States of a row: a contract. `Waiting` is a row that we hold no record of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    Waiting,
    Claimed,
    Sending,
    Deferred,
    Failed,
    Unreadable,
    Held,
}

impl State {
    pub const ALL: [Self; 7] =
        [Self::Waiting, Self::Claimed, Self::Sending, Self::Deferred, Self::Failed, Self::Unreadable, Self::Held];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Claimed => "claimed",
            Self::Sending => "sending",
            Self::Deferred => "deferred",
            Self::Failed => "failed",
            Self::Unreadable => "unreadable",
            Self::Held => "held",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// States of a recipient: a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecipientState {
    Open,
    Accepted,
    Deferred,
    Refused,
    Invalid,
}

impl RecipientState {
    pub const ALL: [Self; 5] = [Self::Open, Self::Accepted, Self::Deferred, Self::Refused, Self::Invalid];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Accepted => "accepted",
            Self::Deferred => "deferred",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// What is remembered of one recipient over the attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientRecord {
    /// As in the envelope; for `Invalid` as it was written.
    pub address: String,
    pub state: RecipientState,
    /// The last reply or our own words, fit for a log line.
    pub reply: Option<String>,
    pub at: Timestamp,
}

/// What earlier attempts left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Attempts that counted: those in which the mail or a recipient of it was put off or refused.
    pub attempts: u32,
    /// Attempts of which nobody knows the outcome.
    pub unknowns: u32,
    /// When the mail was first put off; expiry counts from here.
    pub first_deferred: Option<Timestamp>,
    /// Recipients that have an outcome of their own. The others are open.
    pub recipients: Vec<RecipientRecord>,
}

impl History {
    /// Notes what became of recipients, in time that is linear in their number and in that of those known. A recipient
    /// that was accepted stays accepted.
    pub fn note(&mut self, news: impl IntoIterator<Item = RecipientRecord>) {
        let mut news = news.into_iter().peekable();
        if news.peek().is_none() {
            return;
        }
        let known = self.recipients.iter().enumerate();
        let mut places: HashMap<String, usize> = known.map(|(at, known)| (known.address.clone(), at)).collect();
        for record in news {
            let at = *places.entry(record.address.clone()).or_insert(self.recipients.len());
            match self.recipients.get_mut(at) {
                Some(known) if known.state == RecipientState::Accepted => {}
                Some(known) => *known = record,
                None => self.recipients.push(record),
            }
        }
    }

    /// Notes recipients that cannot be an address: how each was written, and what is wrong with it. Known ones stay as
    /// they are.
    pub fn note_invalid<'a>(&mut self, invalid: impl IntoIterator<Item = (&'a str, &'a str)>, at: Timestamp) {
        let known = self.in_states(&RecipientState::ALL);
        let new = invalid.into_iter().filter(|(written, _)| !known.contains(written));
        let new: Vec<_> = new
            .map(|(written, why)| RecipientRecord {
                address: written.to_owned(),
                state: RecipientState::Invalid,
                reply: Some(why.to_owned()),
                at,
            })
            .collect();
        self.note(new);
    }

    /// Returns about how many bytes of memory this takes.
    pub fn bytes(&self) -> u64 {
        let record = |recipient: &RecipientRecord| {
            size_of::<RecipientRecord>() + recipient.address.len() + recipient.reply.as_ref().map_or(0, String::len)
        };
        (size_of::<Self>() + self.recipients.iter().map(record).sum::<usize>()) as u64
    }

    /// Returns those of `recipients` that still have to be reached: neither accepted nor refused for good.
    pub fn unfinished(&self, recipients: &[Address]) -> Vec<Address> {
        let done = self.in_states(&[RecipientState::Accepted, RecipientState::Refused]);
        let is_done = |address: &&Address| done.contains(AsRef::<str>::as_ref(*address));
        recipients.iter().filter(|address| !is_done(address)).cloned().collect()
    }

    /// Returns how many of `recipients` were accepted.
    pub fn accepted_of(&self, recipients: &[Address]) -> usize {
        let accepted = self.in_states(&[RecipientState::Accepted]);
        recipients.iter().filter(|address| accepted.contains(AsRef::<str>::as_ref(*address))).count()
    }

    fn in_states(&self, states: &[RecipientState]) -> HashSet<&str> {
        let known = self.recipients.iter().filter(|known| states.contains(&known.state));
        known.map(|known| known.address.as_str()).collect()
    }
}

/// What shall become of a claimed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub fate: Fate,
    /// The history including the attempt that led here.
    pub history: History,
    /// The last reply or trouble, fit for a log line.
    pub last_reply: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Every recipient was accepted: row and record are deleted.
    Delivered,
    Deferred {
        reason: Reason,
        next_attempt: Timestamp,
    },
    Failed {
        reason: Reason,
    },
    Held {
        reason: Reason,
    },
    /// The row cannot become a mail; `detail` says which column and what is wrong with it.
    Unreadable {
        reason: Reason,
        detail: String,
    },
    /// Nothing happened: the row goes back to where it was before the claim, and no attempt was used.
    Released,
}

impl Verdict {
    /// A claim given back untouched.
    pub fn released() -> Self {
        Self { fate: Fate::Released, history: History::default(), last_reply: None }
    }
}
