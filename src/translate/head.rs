//! The header block of the mail that goes out.

use std::borrow::Cow;
use std::fmt::Write;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::tz::TimeZone;
use lettre::message::Mailbox;

use super::body::Body;
use super::envelope::Parties;
use super::headers::Field;
use super::lines::{self, LONGEST_LINE};
use super::mime::Value;
use super::repairs::{Repairs, for_people};
use super::settings::Stamp;
use super::structured::{self, Written};
use super::unreadable::Unreadable;
use super::{address, address_list, words};
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

/// Never on the wire: hidden recipients, the envelope's own (RFC 5321 §4.4), and a length that no longer holds. Nor does To
/// stay at its place: it is the first header.
const LEFT_OUT: [&str; 5] = ["Bcc", "Resent-Bcc", "Return-Path", "Content-Length", "To"];

/// Headers of which there is one (RFC 5322 §3.6), and that hold nothing but ASCII.
const SINGLE: [&str; 4] = ["Date", "Message-ID", "In-Reply-To", "References"];

/// Signatures over the mail as the producer wrote it (RFC 6376, RFC 8617, RFC 4870). They hold for no mail that goes
/// out: To and Subject are always written here, the other headers are folded again, and text gets another encoding.
fn is_signature(name: &str) -> bool {
    let name = words::lower_case(name);
    name.ends_with("dkim-signature") || name == "domainkey-signature" || name.starts_with("arc-")
}

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
    if holds_line_end(msubject) {
        repairs.add(
            RepairCode::LineEnd,
            "msubject",
            "msubject held a line end: it became a blank, and what follows it part of the subject",
        );
    }
    let mut subject = decoded("msubject", msubject, repairs);
    if subject.is_empty() {
        let in_block = fields.iter().find(|field| field.is("Subject"));
        subject = in_block.map_or(subject, |field| decoded("Subject", &field.value, repairs));
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
        let name = for_people(line.split(':').next().unwrap_or_default());
        let detail = format!("mheaders: a header line cannot be folded under 998 bytes; it begins with `{name}`");
        return Err(Unreadable::new(Reason::HeaderInvalid, detail));
    }
    out.push_str("\r\n");
    Ok(Head { text: out, message_id, subject: subject.into_owned() })
}

/// It holds a line end that is no fold, nor a soft line break of an encoded word.
fn holds_line_end(subject: &str) -> bool {
    let mut lines = lines::lines(subject.trim().as_bytes());
    let mut before = lines.next();
    lines.any(|line| {
        let soft = before.is_some_and(|before| before.content.ends_with(b"="));
        before = Some(line);
        !soft && !line.content.starts_with(b" ") && !line.content.starts_with(b"\t")
    })
}

/// Unstructured text on one line.
fn decoded<'a>(place: &str, text: &'a str, repairs: &mut Repairs) -> Cow<'a, str> {
    let mut guessed = None;
    let decoded = words::one_line(words::decode_noting(text, &mut guessed));
    if let Some(label) = guessed {
        let label = for_people(label);
        let text = format!("{}: an encoded word is not in the charset `{label}` that it names", for_people(place));
        repairs.add(RepairCode::Charset, place, format!("{text}: it was read as UTF-8 or Windows-1252"));
    }
    decoded
}

/// The Date is one that readers understand (RFC 5322 §3.3, with the obsolete forms of §4.3). A day of the week that
/// does not fit is no error.
fn is_date(value: &str) -> bool {
    static PARSER: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
    PARSER.parse_timestamp(value).is_ok()
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
        if field.is("Content-Transfer-Encoding") {
            // It goes out behind the Content-Type.
            if !self.once("Content-Transfer-Encoding", |_| {}) {
                let what = "a further Content-Transfer-Encoding header was left out";
                repairs.add(RepairCode::HeaderDropped, "Content-Transfer-Encoding", what);
            }
        } else if field.is_one_of(&LEFT_OUT) {
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
        } else if is_signature(&field.name) {
            let name = for_people(&field.name);
            let text = format!("{name}: it signs the mail as the row has it, and was left out");
            repairs.add(RepairCode::SignatureDropped, &field.name, text);
        } else if field.is_one_of(&SINGLE) {
            self.single(field, repairs);
        } else if field.value.is_empty() {
            repairs.add(
                RepairCode::HeaderDropped,
                &field.name,
                format!("{}: it was empty and was left out", for_people(&field.name)),
            );
        } else if field.is("Content-Disposition") {
            self.disposition(field, repairs);
        } else if let Some(kind) = structured::Kind::of(&field.name) {
            self.structured(kind, field, repairs);
        } else {
            self.other(field, repairs);
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
            if let Some(encoding) = &body.encoding {
                out.extend(["Content-Transfer-Encoding: ", encoding, "\r\n"]);
            }
        })
    }

    /// One of [`SINGLE`].
    fn single(&mut self, field: &'a Field<'_>, repairs: &mut Repairs) {
        let name = field.name.as_ref();
        let is_date = field.is("Date");
        let good = match field.is("Message-ID") {
            true => is_message_id(&field.value),
            false => {
                !field.value.is_empty()
                    && field.value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
                    && (!is_date || self::is_date(&field.value))
            }
        };
        if !good {
            let became = match is_date {
                true => "is no date: the time at which the row was found takes its place",
                false => "cannot be one and was left out",
            };
            let text = format!("{name}: `{}` {became}", for_people(&field.value));
            repairs.add(RepairCode::HeaderDropped, name, text);
            return;
        }
        let mut written = Written::AsItWas;
        let kind = structured::Kind::of(name).unwrap_or(structured::Kind::Ids);
        let first = self.once(name, |out| written = kind.write(out, name, &field.value));
        if !first {
            repairs.add(RepairCode::HeaderDropped, name, format!("a further {name} header was left out"));
        } else if field.is("Message-ID") {
            self.message_id = field.value.clone().into_owned();
        }
        tell(name, written, repairs);
    }

    fn disposition(&mut self, field: &'a Field<'_>, repairs: &mut Repairs) {
        let value = Value::parse(&field.value);
        if value.shortened {
            let text = "Content-Disposition had too many parameters: the last were left out";
            repairs.add(RepairCode::HeaderRewritten, "Content-Disposition", text);
        }
        let first = self.once(&field.name, |out| value.write(out, &field.name));
        if !first {
            let text = "a further Content-Disposition header was left out";
            repairs.add(RepairCode::HeaderDropped, "Content-Disposition", text);
        }
    }

    fn structured(&mut self, kind: structured::Kind, field: &Field<'_>, repairs: &mut Repairs) {
        let written = kind.write(&mut self.out, &field.name, &field.value);
        tell(&field.name, written, repairs);
    }

    fn other(&mut self, field: &Field<'_>, repairs: &mut Repairs) {
        let plain = field.value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if plain && !words::holds_word(&field.value) {
            return words::write_as_it_is(&mut self.out, &field.name, &field.value);
        }
        if field.is_one_of(&OTHER_ADDRESSES)
            && let Some(mailboxes) = address_list::plain_mailboxes(&field.value)
        {
            return address::write(&mut self.out, &field.name, &mailboxes);
        }
        let value = decoded(&field.name, &field.value, repairs);
        words::write_text(&mut self.out, &field.name, &value, LONGEST_LINE);
    }
}

/// Says what became of a structured header.
fn tell(name: &str, written: Written, repairs: &mut Repairs) {
    let (code, what) = match written {
        Written::AsItWas => return,
        Written::Changed(what) => (RepairCode::HeaderRewritten, what),
        Written::LeftOut => (RepairCode::HeaderDropped, "held what cannot stand there, and was left out"),
    };
    repairs.add(code, name, format!("{} {what}", for_people(name)));
}

fn is_message_id(value: &str) -> bool {
    let inner = value.strip_prefix('<').and_then(|value| value.strip_suffix('>')).unwrap_or_default();
    let sides = inner.split_once('@');
    sides.is_some_and(|(left, right)| !left.is_empty() && !right.is_empty())
        && value.len() <= 900
        && inner.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>'))
}
