//! The whole body: what it is, by a Content-Type that may be missing, cut off or untrue, and how it goes out.

use std::borrow::Cow;

use super::leaf::{self, Plan};
use super::lines::{LONGEST_LINE, Shape, is_blank, lines, write_crlf};
use super::mime::{Param, Value};
use super::part::{self, Place};
use super::transfer::{self, Encoding};
use super::{Repairs, Unreadable, headers};
use crate::decode;
use crate::mail::RepairCode;

/// A body for the wire, and the headers that say what it is.
pub struct Body<'a> {
    pub kind: Value<'a>,
    pub encoding: Option<&'static str>,
    pub content: Vec<u8>,
}

/// Makes a body fit for the wire. `kind` and `label` are the values of Content-Type and Content-Transfer-Encoding, if there
/// are such headers.
pub fn render<'a>(
    body: &[u8],
    kind: Option<&'a str>,
    label: Option<&str>,
    attached: bool,
    eight_bit: bool,
    repairs: &mut Repairs,
) -> Result<Body<'a>, Unreadable> {
    let mut body = body;
    let mut value = Value::parse(kind.unwrap_or("text/plain"));
    let cut_off = kind.is_some_and(|kind| kind.ends_with(';'));
    let lost = if cut_off || (value.is_multipart() && value.param("boundary").is_none()) {
        lost_from_content_type(body)
            .filter(|lost| !value.is_multipart() || lost.params.iter().any(|param| param.name == "boundary"))
    } else {
        None
    };
    if let Some(lost) = &lost {
        body = lost.body;
        lost.params.iter().cloned().for_each(|param| value.set(param.name, param.value));
        repairs.add(
            RepairCode::ContentType,
            "Content-Type",
            "Content-Type was cut off behind its first line: the rest was found at the top of the body",
        );
    }
    let label = lost.as_ref().and_then(|lost| lost.label.as_deref()).or(label);
    // Room for what encoding a part or two adds, and for the headers that will stand in front.
    let mut content = Vec::with_capacity(body.len() + body.len() / 8 + 2048);
    let place = Place { name: String::new(), eight_bit, mail: value.main == "message/rfc822", depth: 0 };
    if value.is_multipart() {
        if part::write_multipart(&mut content, body, &value, &place, repairs)? {
            return Ok(Body { kind: value, encoding: None, content });
        }
        if let Some(boundary) = guess_boundary(body).map(str::to_owned) {
            value.set("boundary", boundary);
            if part::write_multipart(&mut content, body, &value, &place, repairs)? {
                repairs.add(
                    RepairCode::Boundary,
                    "Content-Type",
                    "Content-Type did not name the boundary of the body: it was found there",
                );
                return Ok(Body { kind: value, encoding: None, content });
            }
        }
        repairs.add(
            RepairCode::ContentType,
            "Content-Type",
            "Content-Type said multipart, and the body has no parts: sent as text",
        );
        value = Value::parse("text/plain");
    }
    if value.is_sealed() {
        let binary = label.is_some_and(|label| label.eq_ignore_ascii_case("binary"));
        part::write_sealed(&mut content, body, binary, &place)?;
        return Ok(Body { kind: value, encoding: known(label), content });
    }
    if value.main == "message/rfc822" && Encoding::named(label).is_identity() {
        part::write_part(&mut content, body, &place, repairs)?;
        return Ok(Body { kind: value, encoding: None, content });
    }
    if value.is_text() && !attached && !value.names_a_file() {
        return Ok(text(body, value, label, content, repairs));
    }
    let mut plan = leaf::plan(&value, attached, label, body, eight_bit);
    if matches!(plan.body, leaf::Body::AsItIs) && Encoding::named(label).is_identity() && !body.ends_with(b"\r\n") {
        // A message ends in a line end, which this file does not.
        plan = Plan { body: leaf::Body::Base64(None), encoding: Some("base64"), charset: None, repair: None };
    }
    Ok(planned(plan, body, value, label, content, repairs))
}

/// The encoding's own name, if it has one.
fn known(label: Option<&str>) -> Option<&'static str> {
    match Encoding::named(label) {
        Encoding::QuotedPrintable => Some("quoted-printable"),
        Encoding::Base64 => Some("base64"),
        _ => None,
    }
}

/// Text goes out as UTF-8, as it is where it is ASCII in lines that fit, else as quoted-printable.
fn text<'a>(
    body: &[u8],
    mut kind: Value<'a>,
    label: Option<&str>,
    mut content: Vec<u8>,
    repairs: &mut Repairs,
) -> Body<'a> {
    if !kind.main.contains('/') {
        if !kind.main.is_empty() {
            repairs.add(RepairCode::ContentType, "Content-Type", "Content-Type was none: sent as text/plain");
        }
        kind.main = "text/plain".into();
    }
    let decoded = match Encoding::named(label) {
        Encoding::QuotedPrintable => return encoded_text(body, kind, label, content, repairs),
        Encoding::Base64 => {
            let digits = body.iter().filter(|byte| !byte.is_ascii_whitespace());
            let good = digits.clone().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte));
            if good {
                let text = decode::loose_base64(body);
                let charset = kind.param("charset").and_then(decode::charset);
                if charset.is_some_and(|charset| decode::strictly(&text, charset).is_none()) {
                    return encoded_text(body, kind, label, content, repairs);
                }
                Some(text)
            } else {
                repairs.add(
                    RepairCode::Encoding,
                    "Content-Transfer-Encoding",
                    "Content-Transfer-Encoding said base64 and the body is none: sent as the text that it is",
                );
                None
            }
        }
        Encoding::Unknown => {
            let label = super::for_people(label.unwrap_or_default());
            repairs.add(
                RepairCode::Encoding,
                "Content-Transfer-Encoding",
                format!("Content-Transfer-Encoding said `{label}`, which is no encoding: the body was taken as it is"),
            );
            None
        }
        Encoding::SevenBit | Encoding::EightBit => None,
    };
    let body = decoded.as_deref().unwrap_or(body);
    if is_latin_1_with_more(&kind, body) {
        // Most readers take these bytes for Windows-1252, some for controls: the label stays, and so do the bytes.
        transfer::write_quoted_printable(&mut content, body);
        return Body { kind, encoding: Some("quoted-printable"), content };
    }
    let charset = kind.param("charset");
    let ascii =
        body.is_ascii() && charset.and_then(decode::charset).is_none_or(|charset| charset.is_ascii_compatible());
    let (text, why) = if ascii { (body.into(), None) } else { leaf::text(body, charset) };
    why.into_iter().for_each(|why| repairs.add(RepairCode::Charset, "mbody", why));
    // Most text may stay as it is, and is written while its lines are measured.
    let plain = (ascii || text.is_ascii()) && memchr::memchr(0, &text).is_none();
    let longest = if plain { write_crlf(&mut content, &text) } else { Shape::of(&text).longest };
    let encoding = if plain && longest <= LONGEST_LINE {
        "7bit"
    } else {
        content.clear();
        transfer::write_quoted_printable(&mut content, &text);
        "quoted-printable"
    };
    if longest > LONGEST_LINE {
        repairs.add(
            RepairCode::Encoding,
            "mbody",
            format!("a line of {longest} bytes was too long for the wire: sent as quoted-printable"),
        );
    }
    kind.set("charset", "utf-8");
    Body { kind, encoding: Some(encoding), content }
}

/// Text that is encoded already stays so, and keeps its charset.
fn encoded_text<'a>(
    body: &[u8],
    kind: Value<'a>,
    label: Option<&str>,
    content: Vec<u8>,
    repairs: &mut Repairs,
) -> Body<'a> {
    planned(leaf::plan(&kind, false, label, body, false), body, kind, label, content, repairs)
}

fn planned<'a>(
    plan: Plan,
    body: &[u8],
    mut kind: Value<'a>,
    label: Option<&str>,
    mut content: Vec<u8>,
    repairs: &mut Repairs,
) -> Body<'a> {
    plan.repair.iter().for_each(|repair| repairs.add(plan.code(), "mbody", format!("the body {repair}")));
    plan.charset.into_iter().for_each(|charset| kind.set("charset", charset));
    plan.write(&mut content, body);
    Body { kind, encoding: plan.encoding.or(known(label)), content }
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

/// Where a producer wrote only the first line of a folded Content-Type into the headers, the rest of it stands at the top of
/// the body, with the headers that followed it.
fn lost_from_content_type(body: &[u8]) -> Option<Lost<'_>> {
    let mut rest = String::from(";");
    let mut label = None;
    let mut end = 0;
    for line in lines(body).skip_while(|line| is_blank(line.content)) {
        if is_blank(line.content) {
            end = line.next;
            break;
        }
        let text = decode::utf8_or_windows_1252(line.content);
        let begins = end == 0 && text.to_ascii_lowercase().starts_with("boundary");
        if text.starts_with([' ', '\t']) || begins {
            rest.push_str(&text);
        } else {
            let field = headers::split(line.content).filter(|_| end > 0)?;
            label = label.or(field.is("Content-Transfer-Encoding").then_some(field.value));
        }
        end = line.next;
    }
    let params: Vec<_> = Value::parse(&rest).params.into_iter().map(Param::into_owned).collect();
    let body = &body[end..];
    (!params.is_empty()).then_some(Lost { params, label, body })
}

/// The boundary of a multipart body that nobody names: the first line that looks like a delimiter and comes again.
fn guess_boundary(body: &[u8]) -> Option<&str> {
    let delimiter = |line: &[u8]| line.len() > 2 && line.starts_with(b"--") && line.iter().all(u8::is_ascii_graphic);
    let first = lines(body).map(|line| line.content.trim_ascii_end()).find(|line| !line.is_empty())?;
    if !delimiter(first) {
        return None;
    }
    let again =
        |line: &[u8]| line.strip_prefix(first).is_some_and(|tail| matches!(tail.trim_ascii_end(), b"" | b"-" | b"--"));
    lines(body).filter(|line| again(line.content)).nth(1)?;
    std::str::from_utf8(&first[2..]).ok()
}
