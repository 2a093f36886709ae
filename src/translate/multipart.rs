//! Multipart bodies: found by their boundary, written with delimiters that agree with the header.

use super::boundary;
use super::headers;
use super::lines::{Shape, is_blank, lines, write_crlf};
use super::mime::Value;
use super::out::Out;
use super::place::Place;
use super::repairs::Repairs;
use super::split::Split;
use super::transfer::{self, Encoding};
use super::unreadable::Unreadable;
use crate::decode;
use crate::mail::RepairCode;
use crate::outcome::Reason;

/// A multipart body whose delimiters were found.
pub struct Multipart<'a> {
    pub(super) split: Split<'a>,
    pub(super) boundary: String,
    /// The boundary is another than the header names, which has to be changed too.
    pub(super) replaced: bool,
    pub(super) sealed: bool,
}

impl<'a> Multipart<'a> {
    /// `None` if there is no delimiter at all.
    pub fn find(body: &'a [u8], kind: &Value<'_>, place: &Place) -> Result<Option<Self>, Unreadable> {
        let Some(named) = kind.boundary() else { return Ok(None) };
        let Some(split) = Split::at(body, &named) else { return Ok(None) };
        let sealed = kind.is_sealed();
        let (boundary, replaced) = match sealed {
            _ if boundary::is_good(&named) && !split.another => (named.into_owned(), false),
            false => (boundary::fresh(body, &place.name), true),
            true if boundary::is_bearable(&named) && !split.another => (named.into_owned(), false),
            true => return Err(not_transportable(place, "a boundary that no header can name")),
        };
        Ok(Some(Self { split, boundary, replaced, sealed }))
    }

    /// The boundary that has to stand in the header in place of the one that does.
    pub fn replacement(&self) -> Option<&str> {
        self.replaced.then_some(self.boundary.as_str())
    }
}

/// Text outside of the parts, which no reader shows: it must not cost the mail its way.
pub fn write_aside(
    out: &mut Out,
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
            if !text.is_empty() && !text.ends_with(b"\n") && !text.ends_with(b"\r") {
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
pub fn write_sealed(out: &mut Out, part: &[u8], binary: bool, place: &Place) -> Result<(), Unreadable> {
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

/// The content of a multipart or a mail in base64 or quoted-printable, which neither may be (RFC 2045 §6.4, RFC 2046
/// §5.2.1). `None` if it is not encoded: producers often copy the label of a part to what stands around it.
pub fn without_encoding(body: &[u8], kind: &Value<'_>, encoding: Encoding) -> Option<Vec<u8>> {
    let decoded = match encoding {
        Encoding::Base64 if decode::is_mostly_base64(body) => decode::loose_base64(body),
        Encoding::QuotedPrintable => transfer::unquote_printable(body),
        _ => return None,
    };
    if !kind.is_multipart() {
        let encoded = encoding == Encoding::Base64 || has_quoted_headers(&[body]);
        let first = lines(&decoded).next()?;
        return (encoded && headers::split(first.content).is_some()).then_some(decoded);
    }
    let named = kind.boundary()?;
    let encoded = match Split::at(body, &named) {
        Some(split) => encoding == Encoding::QuotedPrintable && has_quoted_headers(&split.parts),
        None => true,
    };
    (encoded && Split::at(&decoded, &named).is_some()).then_some(decoded)
}

/// Returns true for a mail that says base64 and plainly is none: its first line is a header.
pub fn is_plain_mail(body: &[u8], encoding: Encoding) -> bool {
    let first = lines(body).next().map(|line| line.content).unwrap_or_default();
    encoding == Encoding::Base64 && headers::split(first).is_some() && !decode::is_mostly_base64(body)
}

/// The headers of these parts hold `=`, and each of them begins an escape or ends a line, as in `charset=3Dutf-8`.
fn has_quoted_headers(parts: &[&[u8]]) -> bool {
    let is_escape = |line: &[u8], at: usize| match line.get(at + 1..).unwrap_or_default().trim_ascii_end() {
        [] => true,
        [high, low, ..] => [high, low].iter().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F')),
        _ => false,
    };
    let mut some = false;
    let headers = parts.iter().flat_map(|part| lines(part).take_while(|line| !is_blank(line.content)));
    for line in headers {
        for at in memchr::memchr_iter(b'=', line.content) {
            if !is_escape(line.content, at) {
                return false;
            }
            some = true;
        }
    }
    some
}
