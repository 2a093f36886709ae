//! The whole body: what it is, by a Content-Type that may be missing, cut off or untrue, and how it goes out.

use std::borrow::Cow;

use super::leaf::{self, Plan};
use super::lines::{LONGEST_LINE, Shape, is_blank, lines, write_crlf};
use super::mime::{Param, Value};
use super::multipart::{self, Multipart};
use super::out::Out;
use super::part;
use super::place::Place;
use super::repairs::{Repairs, for_people};
use super::transfer::{self, Encoding};
use super::unreadable::Unreadable;
use super::{boundary, headers};
use crate::decode;
use crate::mail::RepairCode;
use crate::outcome::Reason;

/// A body for the wire, and the headers that say what it is.
pub struct Body<'a> {
    pub kind: Value<'a>,
    pub encoding: Option<Cow<'static, str>>,
    pub content: Vec<u8>,
}

/// The Content-Type and Content-Transfer-Encoding of a body that was written.
type Labels<'a> = (Value<'a>, Option<Cow<'static, str>>);

/// Makes a body fit for the wire. `kind` and `label` are the values of Content-Type and Content-Transfer-Encoding, if there
/// are such headers; `max_size` is the most bytes that the mail may have.
pub fn render<'a>(
    body: &[u8],
    kind: Option<&'a str>,
    label: Option<&str>,
    attached: bool,
    eight_bit: bool,
    max_size: u64,
    repairs: &mut Repairs,
) -> Result<Body<'a>, Unreadable> {
    let mut value = Value::parse(kind.unwrap_or("text/plain"));
    let lost = if value.is_multipart() && value.boundary().is_none() { lost_boundary(body, repairs)? } else { None };
    let (body, label) = match &lost {
        Some(lost) => (lost.body, lost.label.as_deref().or(label)),
        None => (body, label),
    };
    if kind.is_some_and(|kind| !kind.is_empty()) && value.main.is_empty() {
        repairs.add(RepairCode::ContentType, "Content-Type", "Content-Type named no type: sent as text/plain");
    }
    if value.shortened {
        repairs.add(
            RepairCode::ContentType,
            "Content-Type",
            "Content-Type had too many parameters: the last were left out",
        );
    }
    for param in lost.iter().flat_map(|lost| &lost.params) {
        value.set(param.name.clone(), param.value.clone());
    }
    // Room for what encoding a part or two adds, and for the headers that will stand in front.
    let mut out = Out::new(body.len() + body.len() / 8 + 2048, max_size);
    let (kind, encoding) = write(&mut out, body, value, label, attached, eight_bit, repairs)?;
    out.check()?;
    Ok(Body { kind, encoding, content: out.into_bytes() })
}

fn write<'a>(
    out: &mut Out,
    body: &[u8],
    mut kind: Value<'a>,
    label: Option<&str>,
    attached: bool,
    eight_bit: bool,
    repairs: &mut Repairs,
) -> Result<Labels<'a>, Unreadable> {
    let place = Place { name: String::new(), eight_bit, mail: kind.main == "message/rfc822", depth: 0 };
    if kind.is_multipart() || kind.main == "message/rfc822" {
        if write_inside(out, body, &mut kind, label, &place, repairs)? {
            return Ok((kind, None));
        }
        if kind.is_multipart() {
            repairs.add(
                RepairCode::ContentType,
                "Content-Type",
                "Content-Type said multipart, and the body has no parts: sent as text",
            );
            kind = Value::parse("text/plain");
        }
    }
    if kind.is_sealed() {
        note_unknown(label, repairs);
        let binary = label.is_some_and(|label| label.eq_ignore_ascii_case("binary"));
        multipart::write_sealed(out, body, binary, &place)?;
        return Ok((kind, as_labelled(label)));
    }
    if kind.is_text() && !attached && !kind.names_a_file() {
        return text(out, body, kind, label, &place, repairs);
    }
    let mut plan = planned(&kind, attached, label, body, &place)?;
    let encoding = Encoding::named(label);
    let loses_its_end = !body.is_empty() && !body.ends_with(b"\r\n") && encoding != Encoding::Token;
    if matches!(plan.body, leaf::Body::AsItIs) && encoding != Encoding::Base64 && loses_its_end {
        let file = match encoding {
            Encoding::QuotedPrintable => Some(transfer::unquote_printable(body)),
            _ => None,
        };
        let repair = Some("is a file that ends in no line end, as a mail has to: sent as base64".to_owned());
        plan = Plan { body: leaf::Body::Base64(file), encoding: Some("base64"), charset: None, repair };
    }
    Ok(carry_out(out, &plan, body, kind, label, repairs))
}

/// Writes a body that has parts, or a mail, inside. `false`, and nothing is written, if it is none.
fn write_inside(
    out: &mut Out,
    body: &[u8],
    kind: &mut Value<'_>,
    label: Option<&str>,
    place: &Place,
    repairs: &mut Repairs,
) -> Result<bool, Unreadable> {
    let encoding = Encoding::named(label);
    let decoded = multipart::without_encoding(body, kind, encoding);
    let inside = decoded.as_deref().unwrap_or(body);
    if kind.is_multipart() {
        let mut found = Multipart::find(inside, kind, place)?;
        if found.is_none()
            && let Some(guess) = boundary::guess(inside)
        {
            kind.set_boundary(guess.to_owned());
            found = Multipart::find(inside, kind, place)?;
            repairs.add(
                RepairCode::Boundary,
                "Content-Type",
                "Content-Type did not name the boundary of the body: it was found there",
            );
        }
        let Some(multipart) = found else { return Ok(false) };
        multipart.write(out, place, repairs)?;
        if let Some(boundary) = multipart.replacement() {
            kind.set_boundary(boundary.to_owned());
        }
    } else if encoding.is_identity() || decoded.is_some() || multipart::is_plain_mail(body, encoding) {
        part::write_part(out, inside, place, repairs)?;
    } else {
        return Ok(false);
    }
    if let Some(label) = label.filter(|_| !matches!(encoding, Encoding::SevenBit | Encoding::EightBit)) {
        repairs.add(
            RepairCode::Encoding,
            "Content-Transfer-Encoding",
            part::of_encoding(place, label, decoded.is_some()),
        );
    }
    Ok(true)
}

/// The encoding's own name, if the body is still encoded by it.
fn as_labelled(label: Option<&str>) -> Option<Cow<'static, str>> {
    match Encoding::named(label) {
        Encoding::Token => label.map(|label| transfer::token(label).to_owned().into()),
        encoding => encoding.known().map(Cow::from),
    }
}

/// Text goes out as UTF-8, as it is where it is ASCII in lines that fit, else as quoted-printable.
fn text<'a>(
    out: &mut Out,
    body: &[u8],
    mut kind: Value<'a>,
    label: Option<&str>,
    place: &Place,
    repairs: &mut Repairs,
) -> Result<Labels<'a>, Unreadable> {
    if !kind.main.contains('/') {
        if !kind.main.is_empty() {
            repairs.add(RepairCode::ContentType, "Content-Type", "Content-Type was none: sent as text/plain");
        }
        kind.main = "text/plain".into();
    }
    let encoding = Encoding::named(label);
    let charset = kind.param("charset").unwrap_or_default();
    if matches!(encoding, Encoding::QuotedPrintable | Encoding::Token) || decode::is_foreign(charset) {
        return kept(out, body, kind, label, place, repairs);
    }
    let mut decoded = None;
    if encoding == Encoding::Base64 {
        if is_base64(body) {
            let text = decode::loose_base64(body);
            if decode::charset(charset).is_some_and(|charset| !decode::is_text(&text, charset)) {
                return kept(out, body, kind, label, place, repairs);
            }
            decoded = Some(text);
        } else {
            repairs.add(
                RepairCode::Encoding,
                "Content-Transfer-Encoding",
                "Content-Transfer-Encoding said base64 and the body is none: sent as the text that it is",
            );
        }
    }
    note_unknown(label, repairs);
    let body = decoded.as_deref().unwrap_or(body);
    if is_latin_1_with_more(&kind, body) {
        // Most readers take these bytes for Windows-1252, some for controls: the label stays, and so do the bytes.
        transfer::write_quoted_printable(out, body);
        return Ok((kind, Some("quoted-printable".into())));
    }
    let encoding = write_as_utf_8(out, body, kind.param("charset"), repairs);
    kind.set("charset", "utf-8");
    Ok((kind, Some(encoding.into())))
}

/// Says that a label which is no encoding was left out.
fn note_unknown(label: Option<&str>, repairs: &mut Repairs) {
    if Encoding::named(label) == Encoding::Unknown {
        let label = for_people(label.unwrap_or_default());
        repairs.add(
            RepairCode::Encoding,
            "Content-Transfer-Encoding",
            format!("Content-Transfer-Encoding said `{label}`, which is no encoding: the body was taken as it is"),
        );
    }
}

/// Writes text as UTF-8. Gives its encoding.
fn write_as_utf_8(out: &mut Out, body: &[u8], label: Option<&str>, repairs: &mut Repairs) -> &'static str {
    let ascii = body.is_ascii() && label.and_then(decode::charset).is_none_or(|charset| charset.is_ascii_compatible());
    let (text, why) = if ascii { (body.into(), None) } else { leaf::text(body, label) };
    why.into_iter().for_each(|why| repairs.add(RepairCode::Charset, "mbody", why));
    if let Some(label) = label.filter(|label| ascii && decode::is_meaningless(label)) {
        let label = for_people(label);
        let text = format!("the text named the charset `{label}`, which is none, and was read as ASCII");
        repairs.add(RepairCode::Charset, "mbody", text);
    }
    // Most text may stay as it is, and is written while its lines are measured.
    let plain = (ascii || text.is_ascii()) && memchr::memchr(0, &text).is_none();
    let longest = if plain { write_crlf(out, &text) } else { Shape::of(&text).longest };
    if longest > LONGEST_LINE {
        repairs.add(
            RepairCode::Encoding,
            "mbody",
            format!("a line of {longest} bytes was too long for the wire: sent as quoted-printable"),
        );
    }
    if plain && longest <= LONGEST_LINE {
        return "7bit";
    }
    out.clear();
    transfer::write_quoted_printable(out, &text);
    "quoted-printable"
}

fn is_base64(body: &[u8]) -> bool {
    let mut digits = body.iter().filter(|byte| !byte.is_ascii_whitespace());
    digits.all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte))
}

/// Text that is encoded already, or that cannot be converted, keeps its charset.
fn kept<'a>(
    out: &mut Out,
    body: &[u8],
    kind: Value<'a>,
    label: Option<&str>,
    place: &Place,
    repairs: &mut Repairs,
) -> Result<Labels<'a>, Unreadable> {
    let plan = planned(&kind, false, label, body, &Place { eight_bit: false, ..place.clone() })?;
    Ok(carry_out(out, &plan, body, kind, label, repairs))
}

fn planned<'a>(
    kind: &Value<'_>,
    attached: bool,
    label: Option<&str>,
    body: &'a [u8],
    place: &Place,
) -> Result<Plan<'a>, Unreadable> {
    leaf::plan(kind, attached, label, body, place.eight_bit)
        .map_err(|what| part::not_transportable(place, label.unwrap_or_default(), what))
}

fn carry_out<'a>(
    out: &mut Out,
    plan: &Plan<'_>,
    body: &[u8],
    mut kind: Value<'a>,
    label: Option<&str>,
    repairs: &mut Repairs,
) -> Labels<'a> {
    plan.repair.iter().for_each(|repair| repairs.add(plan.code(), "mbody", format!("the body {repair}")));
    plan.charset.into_iter().for_each(|charset| kind.set("charset", charset));
    plan.write(out, body);
    (kind, plan.encoding.map(Cow::from).or_else(|| as_labelled(label)))
}

/// ISO 8859-1 has only controls at 0x80 to 0x9f, and text none of them.
fn is_latin_1_with_more(kind: &Value<'_>, body: &[u8]) -> bool {
    let iso = |label: &str| label.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("iso"));
    let latin_1 = |label: &str| iso(label) || label.eq_ignore_ascii_case("latin1");
    kind.param("charset").is_some_and(|label| {
        latin_1(label)
            && decode::charset(label) == Some(encoding_rs::WINDOWS_1252)
            && body.iter().any(|byte| matches!(byte, 0x80..=0x9f))
    })
}

/// What a Content-Type lost that was cut off behind its first line.
struct Lost<'a> {
    params: Vec<Param<'static>>,
    /// A Content-Transfer-Encoding that stood there too.
    label: Option<Cow<'a, str>>,
    /// The body behind it all.
    body: &'a [u8],
}

/// Finds the rest of a Content-Type at the top of the body, with the headers that followed it: some producers write only
/// the first line of a folded one into the headers. Returns `None` unless a boundary is among it: all else is the text
/// of the mail.
fn lost_boundary<'a>(body: &'a [u8], repairs: &mut Repairs) -> Result<Option<Lost<'a>>, Unreadable> {
    let mut rest = String::from(";");
    let mut others = Vec::new();
    let mut end = 0;
    let mut ended = false;
    for line in lines(body).skip_while(|line| is_blank(line.content)) {
        if is_blank(line.content) {
            (end, ended) = (line.next, true);
            break;
        }
        let text = decode::utf8_or_windows_1252(line.content);
        let begins = end == 0 && text.to_ascii_lowercase().starts_with("boundary");
        if begins || (others.is_empty() && text.starts_with([' ', '\t'])) {
            rest.push_str(&text);
        } else if !text.starts_with([' ', '\t']) {
            let Some(field) = headers::split(line.content).filter(|_| end > 0) else { return Ok(None) };
            others.push(field);
        }
        end = line.next;
    }
    let params: Vec<_> = Value::parse(&rest).params.into_iter().map(Param::into_owned).collect();
    if !ended || !params.iter().any(|param| param.name == "boundary") {
        return Ok(None);
    }
    repairs.add(
        RepairCode::ContentType,
        "Content-Type",
        "Content-Type was cut off behind its first line: the rest was found at the top of the body",
    );
    let mut label = None;
    for field in others {
        if field.is_one_of(&["To", "Cc", "Bcc"]) {
            let detail = format!("mbody: it begins with headers, and {} is among them", field.name);
            return Err(Unreadable::new(Reason::HeaderInvalid, detail));
        }
        if field.is("Content-Transfer-Encoding") {
            label.get_or_insert(field.value);
        } else if !field.is("MIME-Version") {
            let name = for_people(&field.name);
            let text = format!("{name} stood at the top of the body, behind the Content-Type: it was left out");
            repairs.add(RepairCode::HeaderDropped, &field.name, text);
        }
    }
    Ok(Some(Lost { params, label, body: &body[end..] }))
}
