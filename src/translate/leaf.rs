//! One part without parts inside: is it what it says, does it fit the wire, and if not, how is it encoded anew?

use super::repairs::for_people;
use std::borrow::Cow;

use super::lines::{Shape, write_crlf};
use super::mime::Value;
use super::out::Out;
use super::transfer::{self, Encoding};
use crate::decode;
use crate::mail::RepairCode;

/// What is to be done with a leaf.
pub struct Plan<'a> {
    pub body: Body<'a>,
    /// The Content-Transfer-Encoding that the part needs, where its own no longer holds.
    pub encoding: Option<&'static str>,
    /// The charset that the part needs, where its own is missing or untrue.
    pub charset: Option<&'static str>,
    /// What was wrong and what was done, for people; follows the name of the part.
    pub repair: Option<String>,
}

/// How the body is written.
pub enum Body<'a> {
    /// As it is, with line ends made CRLF.
    AsItIs,
    /// This text as quoted-printable; `None` is the body itself.
    QuotedPrintable(Option<Cow<'a, [u8]>>),
    RepairedQuotedPrintable,
    /// These bytes as base64; `None` is the body itself.
    Base64(Option<Vec<u8>>),
    RewrappedBase64,
}

impl Plan<'_> {
    /// The kind of repair that [`Plan::repair`] tells of.
    pub fn code(&self) -> RepairCode {
        match (&self.body, self.charset) {
            (Body::AsItIs, Some(_)) => RepairCode::Charset,
            _ => RepairCode::Encoding,
        }
    }

    fn keep() -> Self {
        Self { body: Body::AsItIs, encoding: None, charset: None, repair: None }
    }

    /// Appends the body to `out`.
    pub fn write(&self, out: &mut Out, body: &[u8]) {
        match &self.body {
            Body::AsItIs => {
                write_crlf(out, body);
            }
            Body::QuotedPrintable(text) => transfer::write_quoted_printable(out, text.as_deref().unwrap_or(body)),
            Body::RepairedQuotedPrintable => transfer::write_repaired_quoted_printable(out, body),
            Body::Base64(bytes) => transfer::write_base64(out, bytes.as_deref().unwrap_or(body)),
            Body::RewrappedBase64 => transfer::write_rewrapped_base64(out, body),
        }
    }
}

/// Plans one leaf of a multipart. `label` is its Content-Transfer-Encoding as written, `eight_bit` says that what stands
/// around it can carry 8-bit bytes. The error is what hinders the leaf on its way, where nothing can be done about it.
pub fn plan<'a>(
    kind: &Value<'_>,
    attached: bool,
    label: Option<&str>,
    body: &'a [u8],
    eight_bit: bool,
) -> Result<Plan<'a>, &'static str> {
    let encoding = Encoding::named(label);
    let said = label.map_or("nothing of its encoding".to_owned(), for_people);
    let shape = Shape::of(body);
    let file = attached || kind.names_a_file() || !kind.is_text();
    Ok(match encoding {
        // Of a file whose label is untrue every reader takes the base64 that there is, unless it is plainly none.
        Encoding::Base64 if (file && !shape.eight_bit) || is_honest_base64(body) => base64(kind, file, shape, body),
        Encoding::Base64 if file => plain_file(Encoding::Unknown, &said, shape, eight_bit),
        Encoding::Base64 => plain_text(kind, Encoding::Unknown, &said, shape, body, eight_bit),
        Encoding::QuotedPrintable if file => quoted_file(shape, body),
        Encoding::QuotedPrintable => quoted_text(kind, shape, body),
        Encoding::Token => return token(shape),
        _ if file => plain_file(encoding, &said, shape, eight_bit),
        _ => plain_text(kind, encoding, &said, shape, body, eight_bit),
    })
}

/// The body is base64, or such with a few bytes that do not belong there.
fn is_honest_base64(body: &[u8]) -> bool {
    // Most base64 shows at its first line, and need not be read to its end.
    const FIRST: usize = 60;
    let start = body.trim_ascii_start();
    let first = &start[..start.len().min(FIRST)];
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    (first.len() == FIRST && first.iter().all(is_digit)) || decode::is_mostly_base64(body)
}

/// A private encoding cannot be undone here, so its content goes as it is.
fn token(shape: Shape) -> Result<Plan<'static>, &'static str> {
    match shape {
        Shape { eight_bit: true, .. } => Err("8-bit bytes"),
        Shape { nul: true, .. } => Err("NULs"),
        _ if !shape.travels() => Err("lines of more than 998 bytes"),
        _ => Ok(Plan::keep()),
    }
}

fn base64(kind: &Value<'_>, file: bool, shape: Shape, body: &[u8]) -> Plan<'static> {
    let mut plan = Plan::keep();
    if decode::is_base64_in_pieces(body) {
        plan.body = Body::Base64(Some(decode::loose_base64(body)));
        plan.repair = Some("held base64 in pieces that end in padding each: put together".into());
    } else if shape.eight_bit || !shape.travels() {
        plan.body = Body::RewrappedBase64;
        plan.repair = Some(
            "held base64 in lines that are too long, or bytes that do not belong there: broken into lines anew".into(),
        );
    }
    if !file && needs_charset(kind) {
        name_charset(&mut plan, kind, &decode::loose_base64(body));
    }
    plan
}

/// The line ends of a file are its content, so a file goes out in a form that keeps them.
fn quoted_file(shape: Shape, body: &[u8]) -> Plan<'static> {
    if !shape.eight_bit && shape.travels() && !shape.bare_lf && !shape.bare_cr {
        return Plan::keep();
    }
    Plan {
        body: Body::Base64(Some(transfer::unquote_printable(body))),
        encoding: Some("base64"),
        charset: None,
        repair: Some(
            "is a file in quoted-printable that would not have kept its bytes on its way: sent as base64".into(),
        ),
    }
}

fn quoted_text(kind: &Value<'_>, shape: Shape, body: &[u8]) -> Plan<'static> {
    let mut plan = Plan::keep();
    if shape.eight_bit || !shape.travels() {
        let what = if shape.eight_bit { "8-bit text that was not encoded" } else { "lines that are too long" };
        plan.body = Body::RepairedQuotedPrintable;
        plan.repair = Some(format!("said quoted-printable and held {what}: the rest of it was encoded too"));
    }
    if needs_charset(kind) {
        name_charset(&mut plan, kind, &transfer::unquote_printable(body));
    }
    plan
}

fn needs_charset(kind: &Value<'_>) -> bool {
    let label = kind.param("charset").unwrap_or_default();
    decode::charset(label).is_none() && !decode::is_foreign(label)
}

/// Names the charset of text that is encoded already.
fn name_charset(plan: &mut Plan<'_>, kind: &Value<'_>, text: &[u8]) {
    if text.is_ascii() {
        return;
    }
    let charset = if std::str::from_utf8(text).is_ok() { "utf-8" } else { "windows-1252" };
    plan.charset = Some(charset);
    let more = plan.repair.take().map_or(String::new(), |repair| format!("; it {repair}"));
    let said =
        kind.param("charset").map_or("no charset".to_owned(), |label| format!("charset `{}`", for_people(label)));
    plan.repair = Some(format!("said {said} and held 8-bit text: marked as {charset}{more}"));
}

fn plain_file(encoding: Encoding, said: &str, shape: Shape, eight_bit: bool) -> Plan<'static> {
    let honest = !shape.eight_bit || (encoding == Encoding::EightBit && eight_bit);
    if honest && encoding != Encoding::Unknown && shape.travels() && !shape.bare_lf && !shape.bare_cr {
        return Plan::keep();
    }
    let what = match shape {
        Shape { eight_bit: true, .. } => "8-bit bytes",
        _ if !shape.travels() => "lines that are too long for the wire",
        Shape { bare_lf: false, bare_cr: false, .. } => "content that is not encoded so",
        _ => "line ends that it would have lost on its way",
    };
    Plan {
        body: Body::Base64(None),
        encoding: Some("base64"),
        charset: None,
        repair: Some(format!("said {said} and held a file with {what}: sent as base64")),
    }
}

fn plain_text<'a>(
    kind: &Value<'_>,
    encoding: Encoding,
    said: &str,
    shape: Shape,
    body: &'a [u8],
    eight_bit: bool,
) -> Plan<'a> {
    let honest = !shape.eight_bit || (encoding == Encoding::EightBit && eight_bit);
    let fits = honest && encoding != Encoding::Unknown && shape.travels();
    let charset = kind.param("charset").and_then(decode::charset);
    let foreign = charset.is_none() && kind.param("charset").is_some_and(decode::is_foreign);
    let held = foreign || charset.is_some_and(|charset| !shape.eight_bit || decode::is_text(body, charset));
    if fits && (held || !shape.eight_bit) {
        return Plan::keep();
    }
    if foreign && (shape.nul || shape.bare_cr) {
        let repair = Some(format!("said {said} and held text that may not be made of lines: sent as base64"));
        return Plan { body: Body::Base64(None), encoding: Some("base64"), charset: None, repair };
    }
    if charset.is_some_and(|charset| !charset.is_ascii_compatible()) {
        let repair = Some(format!("said {said} and held text that is not made of lines: sent as base64"));
        return Plan { body: Body::Base64(None), encoding: Some("base64"), charset: None, repair };
    }
    if !shape.eight_bit && shape.travels() {
        let repair = Some(format!("said {said}, which it is not: sent as 7bit"));
        return Plan { body: Body::AsItIs, encoding: Some("7bit"), charset: None, repair };
    }
    let what = match shape {
        Shape { eight_bit: true, .. } => "8-bit text",
        Shape { nul: true, .. } => "NULs",
        _ => "lines that are too long for the wire",
    };
    let repair = format!("said {said} and held {what}: sent as quoted-printable");
    if held || !shape.eight_bit {
        let body = Body::QuotedPrintable(None);
        return Plan { body, encoding: Some("quoted-printable"), charset: None, repair: Some(repair) };
    }
    let (text, why) = text(body, kind.param("charset"));
    Plan {
        body: Body::QuotedPrintable(Some(text)),
        encoding: Some("quoted-printable"),
        charset: Some("utf-8"),
        repair: Some(why.map_or(repair.clone(), |why| format!("{repair}, and {why}"))),
    }
}

/// Text outside of ASCII by its declared charset (§3 of RFC 2046 for those without): UTF-8 or else Windows-1252 where none
/// is declared or the label means nothing; where single bytes do not belong to the declared one, they alone are read as
/// Windows-1252. It comes as UTF-8, and with it what had to be guessed.
pub fn text<'a>(body: &'a [u8], label: Option<&str>) -> (Cow<'a, [u8]>, Option<String>) {
    let Some(charset) = label.and_then(decode::charset) else {
        let guess = if std::str::from_utf8(body).is_ok() { "UTF-8" } else { "Windows-1252" };
        let said = label.map_or("no charset".to_owned(), |label| format!("the charset `{}`", for_people(label)));
        let why = format!("the text named {said} and was read as {guess}");
        return (bytes_of(decode::utf8_or_windows_1252(body)), Some(why));
    };
    match decode::strictly(body, charset) {
        Some(text) => (bytes_of(text), None),
        None => {
            let why = format!("bytes that are not {} were read as Windows-1252", charset.name());
            (decode::mostly(body, charset).into_bytes().into(), Some(why))
        }
    }
}

fn bytes_of(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => text.as_bytes().into(),
        Cow::Owned(text) => text.into_bytes().into(),
    }
}
