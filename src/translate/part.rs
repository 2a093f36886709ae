//! The inside of a multipart body: passed on byte for byte, but for the parts that do not fit the wire.

use super::headers::{self, Field};
use super::leaf;
use super::lines::{Shape, is_blank, write_crlf};
use super::mime::Value;
use super::split::Split;
use super::transfer::Encoding;
use super::words;
use super::{Repairs, Unreadable};
use crate::mail::RepairCode;
use crate::outcome::Reason;

/// Multiparts in multiparts in multiparts: nobody means more than a few.
const DEEPEST: usize = 30;

/// Where a part stands.
#[derive(Clone, Debug)]
pub struct Place {
    /// What people call it: `part 2.1`; empty for the whole body.
    pub name: String,
    /// What stands around it can carry 8-bit bytes.
    pub eight_bit: bool,
    /// It is a mail inside of a mail (message/rfc822), with headers of its own.
    pub mail: bool,
    pub depth: usize,
}

impl Place {
    fn child(&self, number: usize) -> Self {
        let name = match self.name.as_str() {
            "" => format!("part {number}"),
            name => format!("{name}.{number}"),
        };
        Self { name, mail: false, depth: self.depth + 1, ..*self }
    }

    fn name(&self) -> &str {
        if self.name.is_empty() { "the body" } else { &self.name }
    }
}

/// Appends a multipart body: what stands before the first delimiter, the parts, and what follows the last. `false` if there
/// is no delimiter at all, with nothing written.
pub fn write_multipart(
    out: &mut Vec<u8>,
    body: &[u8],
    kind: &Value<'_>,
    place: &Place,
    repairs: &mut Repairs,
) -> Result<bool, Unreadable> {
    let Some(split) = Split::at(body, kind.param("boundary").unwrap_or_default()) else { return Ok(false) };
    let sealed = kind.is_sealed();
    let delimiter = [b"--", split.boundary.as_bytes()].concat();
    write_aside(out, split.preamble, "before the first part", sealed, place, repairs)?;
    for (at, part) in split.parts.iter().enumerate() {
        out.extend_from_slice(&delimiter);
        out.extend_from_slice(b"\r\n");
        let place = place.child(at + 1);
        if sealed {
            write_sealed(out, part, false, &place)?;
        } else {
            write_part(out, part, &place, repairs)?;
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(&delimiter);
    out.extend_from_slice(b"--\r\n");
    if let Some(what) = split.mended {
        repairs.add(RepairCode::Boundary, place.name(), format!("{}: {what}", place.name()));
    }
    write_aside(out, split.epilogue, "behind the last part", sealed, place, repairs)?;
    Ok(true)
}

/// Text outside of the parts, which no reader shows: it must not cost the mail its way.
fn write_aside(
    out: &mut Vec<u8>,
    text: &[u8],
    where_: &str,
    sealed: bool,
    place: &Place,
    repairs: &mut Repairs,
) -> Result<(), Unreadable> {
    let shape = Shape::of(text);
    match (shape.travels() && !shape.eight_bit, sealed) {
        (true, _) => {
            write_crlf(out, text);
            if !text.is_empty() && !out.ends_with(b"\r\n") {
                out.extend_from_slice(b"\r\n");
            }
        }
        (false, true) => return Err(not_transportable(place, "text outside of its parts")),
        (false, false) => {
            repairs.add(
                RepairCode::TextDropped,
                place.name(),
                format!(
                    "{}: text {where_}, which no reader shows, did not fit the wire and was left out",
                    place.name()
                ),
            );
        }
    }
    Ok(())
}

fn not_transportable(place: &Place, what: &str) -> Unreadable {
    let detail =
        format!("mbody: {} is signed or encrypted and holds {what}, which cannot travel unchanged", place.name());
    Unreadable::new(Reason::NotTransportable, detail)
}

/// Appends what is signed or encrypted, or refuses to: only its line ends may become CRLF, as they do for a signature.
pub fn write_sealed(out: &mut Vec<u8>, part: &[u8], binary: bool, place: &Place) -> Result<(), Unreadable> {
    let shape = Shape::of(part);
    let hindrance = match shape {
        Shape { nul: true, .. } => Some("NULs"),
        Shape { bare_cr: true, .. } => Some("a bare CR"),
        Shape { bare_lf: true, .. } if binary => Some("binary data with a bare LF"),
        Shape { eight_bit: true, .. } if !place.eight_bit => Some("8-bit bytes, which the smarthost does not take"),
        _ if !shape.travels() => Some("a line of more than 998 bytes"),
        _ => None,
    };
    match hindrance {
        Some(what) => Err(not_transportable(place, what)),
        None => {
            write_crlf(out, part);
            Ok(())
        }
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
pub fn write_part(out: &mut Vec<u8>, part: &[u8], place: &Place, repairs: &mut Repairs) -> Result<(), Unreadable> {
    let (headers, body) = open(part);
    let field = |name: &str| {
        let mut fields = headers.iter().filter_map(|line| line.field.as_ref());
        fields.find(|field| field.is(name)).map(|field| field.value.as_ref())
    };
    let kind = Value::parse(field("Content-Type").unwrap_or("text/plain"));
    let disposition = Value::parse(field("Content-Disposition").unwrap_or_default());
    let label = field("Content-Transfer-Encoding");
    let encoding = Encoding::named(label);
    if kind.is_sealed() && !kind.is_multipart() {
        write_headers(out, &headers, &Changes::default(), place, repairs)?;
        let binary = label.is_some_and(|label| label.eq_ignore_ascii_case("binary"));
        return write_sealed(out, body, binary, place);
    }
    let inside = Place { eight_bit: place.eight_bit && encoding == Encoding::EightBit, ..place.clone() };
    if place.depth < DEEPEST && (kind.is_multipart() || (kind.main == "message/rfc822" && encoding.is_identity())) {
        let start = out.len();
        let encoded = matches!(encoding, Encoding::QuotedPrintable | Encoding::Base64 | Encoding::Unknown);
        let changes = Changes { encoding: encoded.then_some("7bit"), ..Changes::default() };
        if kind.is_sealed() {
            // Nothing may be changed inside, so the label around it has to fit.
            let eight_bit = place.eight_bit && !body.is_ascii();
            let changes = Changes { encoding: eight_bit.then_some("8bit").or(changes.encoding), ..changes };
            write_headers(out, &headers, &changes, place, repairs)?;
            if write_multipart(out, body, &kind, place, repairs)? {
                trim_line_end(out);
                return Ok(());
            }
        } else {
            write_headers(out, &headers, &changes, place, repairs)?;
            if kind.main == "message/rfc822" {
                return write_part(out, body, &Place { mail: true, ..inside.child(1) }, repairs);
            }
            if write_multipart(out, body, &kind, &inside, repairs)? {
                trim_line_end(out);
                return Ok(());
            }
        }
        out.truncate(start);
    }
    write_leaf(out, &headers, kind, &disposition, label, body, place, repairs)
}

/// The line end before a delimiter belongs to the delimiter.
fn trim_line_end(out: &mut Vec<u8>) {
    if out.ends_with(b"\r\n") {
        out.truncate(out.len() - 2);
    }
}

#[expect(clippy::too_many_arguments, reason = "they are what `write_part` has found out")]
fn write_leaf(
    out: &mut Vec<u8>,
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
        repairs.add(
            RepairCode::ContentType,
            place.name(),
            format!("{} called itself multipart and had no parts: sent as text", place.name()),
        );
        kind = Value::parse("text/plain");
        changes.kind = Some(kind.clone());
    }
    let attached = disposition.main == "attachment" || disposition.names_a_file();
    let plan = leaf::plan(&kind, attached, label, body, place.eight_bit);
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

/// Headers of a part that cannot stay.
#[derive(Default)]
struct Changes<'a> {
    kind: Option<Value<'a>>,
    encoding: Option<&'static str>,
}

/// Appends a part's headers and the blank line. Those that are fit to travel go out as they stand.
fn write_headers(
    out: &mut Vec<u8>,
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

fn write_header(out: &mut Vec<u8>, line: &Line<'_>, place: &Place, repairs: &mut Repairs) -> Result<(), Unreadable> {
    let shape = Shape::of(line.raw);
    let parameters = line.field.as_ref().filter(|field| field.is("Content-Type") || field.is("Content-Disposition"));
    let parameters = parameters.map(|field| (field, Value::parse(&field.value)));
    let sloppy = parameters.as_ref().is_some_and(|(_, value)| value.sloppy && value.names_a_file());
    if !shape.eight_bit && shape.travels() && !sloppy {
        write_crlf(out, line.raw);
        out.extend_from_slice(b"\r\n");
        return Ok(());
    }
    let mut text = String::new();
    match (&parameters, &line.field) {
        (Some((field, value)), _) => value.write(&mut text, &field.name),
        (None, Some(field)) => {
            let value = words::one_line(words::decode(&field.value));
            words::write_text(&mut text, &field.name, &value, super::lines::LONGEST_LINE);
        }
        (None, None) => {}
    }
    if text.lines().any(|line| line.len() > super::lines::LONGEST_LINE) {
        let detail = format!("mbody: {} has a header that cannot be folded under 998 bytes", place.name());
        return Err(Unreadable::new(Reason::HeaderInvalid, detail));
    }
    let name = line.field.as_ref().map_or("a line of its header", |field| field.name.as_ref());
    repairs.add(
        RepairCode::HeaderRewritten,
        place.name(),
        format!("{}: {} was written anew, as it held what no header may", place.name(), super::for_people(name)),
    );
    out.extend_from_slice(text.as_bytes());
    Ok(())
}
