//! A part of a multipart body: passed on byte for byte if it fits the wire.

use super::headers::{self, Field};
use super::leaf;
use super::lines::{LONGEST_LINE, Shape, is_blank, lines, write_crlf};
use super::mime::Value;
use super::multipart::{self, Multipart};
use super::out::Out;
use super::place::Place;
use super::repairs::{Repairs, for_people};
use super::structured;
use super::transfer::Encoding;
use super::unreadable::Unreadable;
use super::words;
use super::{address, address_list};
use crate::mail::RepairCode;
use crate::outcome::Reason;

/// Multiparts in multiparts in multiparts: nobody means more than a few.
const DEEPEST: usize = 30;

impl Multipart<'_> {
    /// Appends what stands before the first delimiter, the parts, and what follows the last.
    pub fn write(&self, out: &mut Out, place: &Place, repairs: &mut Repairs) -> Result<(), Unreadable> {
        if self.replaced {
            let text = format!("{}: its boundary cannot stand in a mail: another took its place", place.name());
            repairs.add(RepairCode::Boundary, place.name(), text);
        }
        let delimiter = [b"--", self.boundary.as_bytes()].concat();
        multipart::write_aside(out, self.split.preamble, "before the first part", self.sealed, place, repairs)?;
        for (at, part) in self.split.parts.iter().enumerate() {
            out.extend_from_slice(&delimiter);
            out.extend_from_slice(b"\r\n");
            let place = place.child(at + 1);
            if self.sealed {
                multipart::write_sealed(out, part, false, &place)?;
            } else {
                write_part(out, part, &place, repairs)?;
            }
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(&delimiter);
        out.extend_from_slice(b"--\r\n");
        if let Some(what) = self.split.repaired {
            repairs.add(RepairCode::Boundary, place.name(), format!("{}: {what}", place.name()));
        }
        multipart::write_aside(out, self.split.epilogue, "behind the last part", self.sealed, place, repairs)
    }
}

/// One header of a part: as it stands, folds and all, and taken apart.
struct Line<'a> {
    raw: &'a [u8],
    field: Option<Field<'a>>,
}

/// A part's headers, and its body. A line that can be no header begins the body (as readers have it), as does a blank one.
fn open(part: &[u8]) -> (Vec<Line<'_>>, &[u8]) {
    let mut headers = Vec::new();
    for line in headers::header_lines(part) {
        let field = headers::split_unfolded(&line.unfolded);
        if field.is_none() && !line.unfolded.starts_with(b"From ") {
            let body = if is_blank(&line.unfolded) { line.next } else { line.start };
            return (headers, &part[body..]);
        }
        headers.push(Line { raw: &part[line.start..line.end], field });
    }
    (headers, b"")
}

/// Appends one part: its headers, a blank line, its body.
pub fn write_part(out: &mut Out, part: &[u8], place: &Place, repairs: &mut Repairs) -> Result<(), Unreadable> {
    out.check()?;
    let (headers, body) = open(part);
    let field = |name: &str| {
        let mut fields = headers.iter().filter_map(|line| line.field.as_ref());
        fields.find(|field| field.is(name)).map(|field| field.value.as_ref())
    };
    let kind = Value::parse(field("Content-Type").unwrap_or("text/plain"));
    let disposition = Value::parse(field("Content-Disposition").unwrap_or_default());
    let label = field("Content-Transfer-Encoding");
    if kind.is_sealed() && !kind.is_multipart() {
        write_headers(out, &headers, &Changes::default(), place, repairs)?;
        let binary = label.is_some_and(|label| label.eq_ignore_ascii_case("binary"));
        return multipart::write_sealed(out, body, binary, place);
    }
    if place.depth < DEEPEST
        && (kind.is_multipart() || kind.main == "message/rfc822")
        && write_inside(out, &headers, &kind, label, body, place, repairs)?
    {
        return Ok(());
    }
    write_leaf(out, &headers, kind, &disposition, label, body, place, repairs)
}

/// Appends a part that has parts, or a mail, inside. `false`, and nothing is appended, if it is none.
fn write_inside(
    out: &mut Out,
    headers: &[Line<'_>],
    kind: &Value<'_>,
    label: Option<&str>,
    body: &[u8],
    place: &Place,
    repairs: &mut Repairs,
) -> Result<bool, Unreadable> {
    let encoding = Encoding::named(label);
    let decoded = multipart::without_encoding(body, kind, encoding);
    let body = decoded.as_deref().unwrap_or(body);
    let is_mail = !kind.is_multipart();
    let is_open = encoding.is_identity() || decoded.is_some() || multipart::is_plain_mail(body, encoding);
    if is_mail && !is_open {
        return Ok(false);
    }
    let multipart = if is_mail { None } else { Multipart::find(body, kind, place)? };
    if !is_mail && multipart.is_none() {
        return Ok(false);
    }
    let mut changes = Changes::default();
    // Nothing may be changed inside of what is signed, so the label around it has to fit.
    if kind.is_sealed() && place.eight_bit && !body.is_ascii() {
        changes.encoding = Some("8bit");
    } else if !matches!(encoding, Encoding::SevenBit | Encoding::EightBit) {
        changes.encoding = Some("7bit");
    }
    if let Some(label) = label.filter(|_| !matches!(encoding, Encoding::SevenBit | Encoding::EightBit)) {
        repairs.add(RepairCode::Encoding, place.name(), of_encoding(place, label, decoded.is_some()));
    }
    if let Some(boundary) = multipart.as_ref().and_then(Multipart::replacement) {
        let mut kind = kind.clone();
        kind.set_boundary(boundary.to_owned());
        changes.kind = Some(kind);
    }
    write_headers(out, headers, &changes, place, repairs)?;
    let eight_bit = place.eight_bit && (encoding == Encoding::EightBit || kind.is_sealed());
    let inside = Place { eight_bit, ..place.clone() };
    match multipart {
        Some(multipart) => {
            multipart.write(out, &inside, repairs)?;
            // The line end before a delimiter belongs to the delimiter.
            out.trim_line_end();
        }
        None => write_part(out, body, &Place { mail: true, ..inside.child(1) }, repairs)?,
    }
    Ok(true)
}

/// Says for people what became of the transfer encoding of a multipart or a mail.
pub fn of_encoding(place: &Place, label: &str, undone: bool) -> String {
    let label = for_people(label);
    let what = if undone { "it was undone" } else { "nothing in it is encoded so, and the label was left out" };
    format!("{} said `{label}`, which no multipart and no mail may be: {what}", place.name())
}

#[expect(clippy::too_many_arguments, reason = "they are what `write_part` has found out")]
fn write_leaf(
    out: &mut Out,
    headers: &[Line<'_>],
    mut kind: Value<'_>,
    disposition: &Value<'_>,
    label: Option<&str>,
    body: &[u8],
    place: &Place,
    repairs: &mut Repairs,
) -> Result<(), Unreadable> {
    let mut changes = Changes::default();
    if kind.is_multipart() {
        let why = match place.depth < DEEPEST {
            true => "called itself multipart and had no parts",
            false => "stood in too many parts inside of each other",
        };
        repairs.add(RepairCode::ContentType, place.name(), format!("{} {why}: sent as text", place.name()));
        kind = Value::parse("text/plain");
        changes.kind = Some(kind.clone());
    }
    let attached = disposition.main == "attachment" || disposition.names_a_file();
    let plan = leaf::plan(&kind, attached, label, body, place.eight_bit)
        .map_err(|what| not_transportable(place, label.unwrap_or_default(), what))?;
    changes.encoding = plan.encoding;
    if let Some(charset) = plan.charset {
        if kind.main.is_empty() || !kind.main.contains('/') {
            kind.main = "text/plain".into();
        }
        kind.set("charset", charset);
        changes.kind = Some(kind);
    }
    if let Some(repair) = &plan.repair {
        repairs.add(plan.code(), place.name(), format!("{} {repair}", place.name()));
    }
    write_headers(out, headers, &changes, place, repairs)?;
    plan.write(out, body);
    Ok(())
}

/// A private transfer encoding cannot be encoded once more, nor can anybody here undo it.
pub fn not_transportable(place: &Place, label: &str, what: &str) -> Unreadable {
    let label = for_people(label);
    let detail = format!("mbody: {} says that it is `{label}` and holds {what}, which cannot travel", place.name());
    Unreadable::new(Reason::NotTransportable, detail)
}

/// Headers of a part that cannot stay.
#[derive(Default)]
struct Changes<'a> {
    kind: Option<Value<'a>>,
    encoding: Option<&'static str>,
}

/// Appends a part's headers and the blank line. Those that are fit to travel go out as they stand.
fn write_headers(
    out: &mut Out,
    headers: &[Line<'_>],
    changes: &Changes<'_>,
    place: &Place,
    repairs: &mut Repairs,
) -> Result<(), Unreadable> {
    let mut kind = changes.kind.as_ref();
    let mut encoding = changes.encoding;
    for line in headers {
        let is = |name: &str| line.field.as_ref().is_some_and(|field| field.is(name));
        let mut text = String::new();
        if changes.kind.is_some() && is("Content-Type") {
            kind.take().iter().for_each(|kind| kind.write(&mut text, "Content-Type"));
        } else if changes.encoding.is_some() && is("Content-Transfer-Encoding") {
            text.extend(encoding.take().map(|name| format!("Content-Transfer-Encoding: {name}\r\n")));
        } else {
            write_header(out, line, place, repairs)?;
        }
        out.extend_from_slice(text.as_bytes());
    }
    let mut text = String::new();
    kind.iter().for_each(|kind| kind.write(&mut text, "Content-Type"));
    text.extend(encoding.map(|name| format!("Content-Transfer-Encoding: {name}\r\n")));
    let changed = changes.kind.is_some() || changes.encoding.is_some();
    let is_version = |line: &Line<'_>| line.field.as_ref().is_some_and(|field| field.is("MIME-Version"));
    if place.mail && changed && !headers.iter().any(is_version) {
        // Without it nobody need decode what was encoded here (RFC 2045 §4).
        text.push_str("MIME-Version: 1.0\r\n");
    }
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn write_header(out: &mut Out, line: &Line<'_>, place: &Place, repairs: &mut Repairs) -> Result<(), Unreadable> {
    let shape = Shape::of(line.raw);
    let parameters = line.field.as_ref().filter(|field| field.is("Content-Type") || field.is("Content-Disposition"));
    let parameters = parameters.map(|field| (field, Value::parse(&field.value)));
    let sloppy =
        parameters.as_ref().is_some_and(|(_, value)| value.unseparated || value.sloppy && value.names_a_file());
    if !shape.eight_bit && shape.travels() && !sloppy && is_one_header(line.raw) {
        write_crlf(out, line.raw);
        out.extend_from_slice(b"\r\n");
        return Ok(());
    }
    let mut text = String::new();
    let mut dropped = false;
    match (&parameters, &line.field) {
        (Some((field, value)), _) => value.write(&mut text, &field.name),
        (None, Some(field)) => match structured::Kind::of(&field.name) {
            Some(kind) => {
                dropped = kind.write(&mut text, &field.name, &field.value) == structured::Written::LeftOut;
            }
            None if place.mail && write_people(&mut text, field) => {}
            None => {
                let value = words::one_line(words::decode(&field.value));
                words::write_text(&mut text, &field.name, &value, LONGEST_LINE);
            }
        },
        (None, None) => dropped = true,
    }
    if text.lines().any(|line| line.len() > LONGEST_LINE) {
        let detail = format!("mbody: {} has a header that cannot be folded under 998 bytes", place.name());
        return Err(Unreadable::new(Reason::HeaderInvalid, detail));
    }
    let name = for_people(line.field.as_ref().map_or("a line of its header", |field| field.name.as_ref()));
    let (code, what) = match dropped {
        true => (RepairCode::HeaderDropped, "was left out"),
        false => (RepairCode::HeaderRewritten, "was written again"),
    };
    repairs.add(code, place.name(), format!("{}: {name} {what}, as it held what no header may", place.name()));
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Every further line is a fold. A CR inside of a line, which the reader of headers takes for a blank, would become a line
/// end, and what follows it a header or the body.
fn is_one_header(raw: &[u8]) -> bool {
    lines(raw).skip(1).all(|line| matches!(line.content.first(), Some(b' ' | b'\t')))
}

/// Headers of an inner mail that hold addresses.
const PEOPLE: [&str; 9] =
    ["From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Resent-From", "Resent-To", "Disposition-Notification-To"];

/// Writes such a header. `false`, and nothing is written, if it is another, or not all of its entries are addresses.
fn write_people(text: &mut String, field: &Field<'_>) -> bool {
    if !field.is_one_of(&PEOPLE) {
        return false;
    }
    let mailboxes = address_list::plain_mailboxes(&field.value);
    if let Some(mailboxes) = &mailboxes {
        address::write(text, &field.name, mailboxes);
    }
    mailboxes.is_some()
}
