//! The announcements of a smarthost.

use jiff::{SignedDuration, Timestamp};

use crate::mail::Capabilities;

/// The announcements of the smarthost in its greeting and EHLO reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    pub pipelining: bool,
    pub eight_bit: bool,
    pub smtputf8: bool,
    pub starttls: bool,
    /// RFC 1870; `Some(0)` or `None`: no limit is known.
    pub size: Option<u64>,
    /// Names of the mechanisms, in capitals.
    pub auth: Vec<String>,
    /// Its name, if it is one that the tests run against and that keeps commands behind the final dot.
    pub software: Option<&'static str>,
    /// Mails on one connection (MAILMAX, RFC 9422).
    pub mail_max: Option<u32>,
    /// Recipients in one message (RCPTMAX, RFC 9422).
    pub rcpt_max: Option<u32>,
    /// The end of its certificate, whether that was checked or not; `None` without TLS.
    pub certificate_ends: Option<Timestamp>,
    /// The time by which its clock is ahead of ours, where the greeting tells the time.
    pub clock_ahead: Option<SignedDuration>,
}

impl Announced {
    /// The part that decides on the form of a mail.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities { eight_bit: self.eight_bit, smtputf8: self.smtputf8 }
    }
}
