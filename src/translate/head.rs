//! The header block of the mail that goes out.

use std::borrow::Cow;
use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lettre::message::Mailbox;

use super::body::Body;
use super::envelope::Parties;
use super::headers::Field;
use super::lines::{self, LONGEST_LINE};
use super::mime::Value;
use super::{Repairs, Stamp, Unreadable, address, address_list, words};
use crate::mail::RepairCode;
use crate::outcome::Reason;

/// The block, with the blank line behind it.
pub struct Head {
    pub text: String,
    pub message_id: String,
    pub subject: String,
}

/// Headers that hold addresses and go out beside those of the envelope (RFC 5322 §3.6.6, RFC 8098 §2.1).
const OTHER_ADDRESSES: [&str; 7] = [
    "Disposition-Notification-To",
    "Return-Receipt-To",
    "Errors-To",
    "Resent-From",
    "Resent-Sender",
    "Resent-To",
    "Resent-Cc",
];

/// Never on the wire: hidden recipients, the envelope's own (RFC 5321 §4.4), and a length that no longer holds. Nor do To
/// and the encoding stay at their place: the first header is a To, and the encoding stands behind the Content-Type.
const LEFT_OUT: [&str; 6] = ["Bcc", "Resent-Bcc", "Return-Path", "Content-Length", "To", "Content-Transfer-Encoding"];

/// Headers of which there is one (RFC 5322 §3.6), and that hold nothing but ASCII.
const SINGLE: [&str; 4] = ["Date", "Message-ID", "In-Reply-To", "References"];

/// Words of a Subject that are longer than this are encoded, so that every line fits into 76 characters.
const LONGEST_WORD: usize = 64;

/// Puts the block together: To and Subject first, the row's own headers in their order, and behind them what it lacked.
pub fn compose<'a>(
    msubject: &'a str,
    fields: &'a [Field<'_>],
    parties: &Parties,
    body: &Body<'_>,
    stamp: &Stamp,
    repairs: &mut Repairs,
) -> Result<Head, Unreadable> {
    if lines::lines(msubject.trim().as_bytes())
        .skip(1)
        .any(|line| !line.content.starts_with(b" ") && !line.content.starts_with(b"\t"))
    {
        repairs.add(
            RepairCode::LineEnd,
            "msubject",
            "msubject held a line end: it became a blank, and what follows it part of the subject",
        );
    }
    let mut subject = words::one_line(words::decode(msubject));
    if subject.is_empty() {
        let in_block = fields.iter().find(|field| field.is("Subject"));
        subject = in_block.map_or(subject, |field| words::one_line(words::decode(&field.value)));
    }
    let out =
        String::with_capacity(fields.iter().map(|field| field.name.len() + field.value.len()).sum::<usize>() + 512);
    let mut writer = Writer { out, done: Vec::with_capacity(16), message_id: String::new(), subject };
    writer.once("To", |out| write_to(out, parties));
    writer.subject();
    for field in fields {
        writer.field(field, parties, body, repairs);
    }
    for (name, mailboxes) in people(parties) {
        writer.people(name, mailboxes);
    }
    writer.once("Date", |out| write_date(out, stamp.created));
    if writer.message_id.is_empty() {
        let id = ["<", stamp.record.as_str(), "@", parties.from[0].email.domain(), ">"].concat();
        writer.once("Message-ID", |out| out.extend(["Message-ID: ", &id, "\r\n"]));
        writer.message_id = id;
    }
    if writer.mime_version() {
        repairs.add(RepairCode::HeaderAdded, "MIME-Version", "there was no MIME-Version: it was added");
    }
    writer.content(body);
    let Writer { mut out, message_id, subject, .. } = writer;
    // Most heads are shorter than that as a whole.
    if out.len() > LONGEST_LINE
        && let Some(line) = out.lines().find(|line| line.len() > LONGEST_LINE)
    {
        let name = super::for_people(line.split(':').next().unwrap_or_default());
        let detail = format!("mheaders: a header line cannot be folded under 998 bytes; it begins with `{name}`");
        return Err(Unreadable::new(Reason::HeaderInvalid, detail));
    }
    out.push_str("\r\n");
    Ok(Head { text: out, message_id, subject: subject.into_owned() })
}

fn write_to(out: &mut String, parties: &Parties) {
    if !parties.to.is_empty() {
        address::write(out, "To", &parties.to);
    } else if parties.cc.is_empty() {
        out.push_str("To: undisclosed-recipients:;\r\n");
    }
}

/// The headers of the envelope's people behind To.
fn people(parties: &Parties) -> [(&'static str, &[Mailbox]); 4] {
    [
        ("From", &parties.from),
        ("Sender", parties.sender.as_slice()),
        ("Reply-To", &parties.reply_to),
        ("Cc", &parties.cc),
    ]
}

/// RFC 5322 §3.3, in UTC.
fn write_date(out: &mut String, time: Timestamp) {
    let time = time.to_zoned(TimeZone::UTC);
    // Writing into a String cannot fail.
    let _ = write!(out, "Date: {}\r\n", time.strftime("%a, %d %b %Y %T +0000"));
}

struct Writer<'a> {
    out: String,
    /// Names of headers that may stand only once, and do.
    done: Vec<&'a str>,
    message_id: String,
    /// Decoded.
    subject: Cow<'a, str>,
}

impl<'a> Writer<'a> {
    /// Whether this was the first time.
    fn once(&mut self, name: &'a str, write: impl FnOnce(&mut String)) -> bool {
        let first = !self.done.iter().any(|done| done.eq_ignore_ascii_case(name));
        if first {
            write(&mut self.out);
            self.done.push(name);
        }
        first
    }

    fn subject(&mut self) {
        if !self.subject.is_empty() {
            words::write_text(&mut self.out, "Subject", &self.subject, LONGEST_WORD);
        }
    }

    fn field(&mut self, field: &'a Field<'_>, parties: &Parties, body: &Body<'_>, repairs: &mut Repairs) {
        if field.is_one_of(&LEFT_OUT) {
            // It is not for the wire, or goes out elsewhere.
        } else if field.is("Subject") {
            let value = words::one_line(words::decode(&field.value));
            if !value.is_empty() && value != self.subject {
                repairs.add(
                    RepairCode::HeaderDropped,
                    "Subject",
                    "mheaders held another Subject than msubject: it was left out",
                );
            }
        } else if let Some((name, mailboxes)) = people(parties).into_iter().find(|(name, _)| field.is(name)) {
            self.people(name, mailboxes);
        } else if field.is("MIME-Version") {
            self.mime_version();
        } else if field.is("Content-Type") {
            if !self.content(body) {
                repairs.add(RepairCode::HeaderDropped, "Content-Type", "a further Content-Type header was left out");
            }
        } else if field.is_one_of(&SINGLE) {
            self.single(field, repairs);
        } else if field.value.is_empty() {
            repairs.add(
                RepairCode::HeaderDropped,
                &field.name,
                format!("{}: it was empty and was left out", super::for_people(&field.name)),
            );
        } else if field.is("Content-Disposition") {
            self.disposition(field);
        } else {
            self.other(field);
        }
    }

    /// A header of the envelope's people, at the place of the first of its kind.
    fn people(&mut self, name: &'static str, mailboxes: &[Mailbox]) {
        if !mailboxes.is_empty() {
            self.once(name, |out| address::write(out, name, mailboxes));
        }
    }

    fn mime_version(&mut self) -> bool {
        self.once("MIME-Version", |out| out.push_str("MIME-Version: 1.0\r\n"))
    }

    fn content(&mut self, body: &Body<'_>) -> bool {
        self.once("Content-Type", |out| {
            body.kind.write(out, "Content-Type");
            if let Some(encoding) = body.encoding {
                out.extend(["Content-Transfer-Encoding: ", encoding, "\r\n"]);
            }
        })
    }

    /// One of [`SINGLE`].
    fn single(&mut self, field: &'a Field<'_>, repairs: &mut Repairs) {
        let name = field.name.as_ref();
        let good = match field.is("Message-ID") {
            true => is_message_id(&field.value),
            false => !field.value.is_empty() && field.value.bytes().all(|byte| matches!(byte, b' '..=b'~')),
        };
        if !good {
            repairs.add(
                RepairCode::HeaderDropped,
                name,
                format!("{name}: `{}` cannot be one and was left out", super::for_people(&field.value)),
            );
            return;
        }
        let first = self.once(name, |out| write_words(out, name, &field.value));
        if !first {
            repairs.add(RepairCode::HeaderDropped, name, format!("a further {name} header was left out"));
        } else if field.is("Message-ID") {
            self.message_id = field.value.clone().into_owned();
        }
    }

    fn disposition(&mut self, field: &'a Field<'_>) {
        self.once(&field.name, |out| Value::parse(&field.value).write(out, &field.name));
    }

    fn other(&mut self, field: &Field<'_>) {
        let plain = field.value.bytes().all(|byte| matches!(byte, b' '..=b'~')) && !words::may_be_encoded(&field.value);
        if plain {
            return write_words(&mut self.out, &field.name, &field.value);
        }
        if field.is_one_of(&OTHER_ADDRESSES) {
            let list = address_list::list(&field.value).map(|list| list.entries).unwrap_or_default();
            let mailboxes: Vec<Mailbox> = list.into_iter().flatten().collect();
            if !mailboxes.is_empty() && mailboxes.iter().all(|mailbox| mailbox.email.user().is_ascii()) {
                return address::write(&mut self.out, &field.name, &mailboxes);
            }
        }
        let value = words::one_line(words::decode(&field.value));
        words::write_text(&mut self.out, &field.name, &value, LONGEST_LINE);
    }
}

fn write_words(out: &mut String, name: &str, value: &str) {
    words::write_text(out, name, value, usize::MAX);
}

fn is_message_id(value: &str) -> bool {
    let inner = value.strip_prefix('<').and_then(|value| value.strip_suffix('>')).unwrap_or_default();
    let sides = inner.split_once('@');
    sides.is_some_and(|(left, right)| !left.is_empty() && !right.is_empty())
        && value.len() <= 900
        && inner.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>'))
}
