//! Content-Transfer-Encoding (RFC 2045 §6): what a part calls itself, and the encodings that make it fit the wire.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::lines::lines;
use super::mime::is_token;
use super::out::Out;
use super::words::{hex_pair, lower_case};

/// What the Content-Transfer-Encoding header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Also where there is no such header.
    SevenBit,
    /// `8bit` or `binary`.
    EightBit,
    QuotedPrintable,
    Base64,
    /// A private token (RFC 2045 §6.3) such as `x-uuencode`, or `uuencode` itself, which some readers know. The body
    /// stays as it is, and so does the label.
    Token,
    /// None of RFC 2045's names, so that readers take the body as it stands.
    Unknown,
}

/// The label without what producers write around it.
pub fn token(label: &str) -> &str {
    label.split(['(', ';', ' ']).next().unwrap_or_default().trim_matches('"')
}

impl Encoding {
    pub fn named(label: Option<&str>) -> Self {
        match lower_case(token(label.unwrap_or_default())).as_ref() {
            "" | "7bit" => Self::SevenBit,
            "8bit" | "binary" => Self::EightBit,
            "quoted-printable" => Self::QuotedPrintable,
            "base64" => Self::Base64,
            "uuencode" | "uue" => Self::Token,
            label
                if label.len() > 2 && label.len() <= LINE && label.starts_with("x-") && label.bytes().all(is_token) =>
            {
                Self::Token
            }
            _ => Self::Unknown,
        }
    }

    /// The body is the content itself.
    pub fn is_identity(self) -> bool {
        matches!(self, Self::SevenBit | Self::EightBit | Self::Unknown)
    }

    /// The name of an encoding that is to be undone by RFC 2045.
    pub fn known(self) -> Option<&'static str> {
        match self {
            Self::QuotedPrintable => Some("quoted-printable"),
            Self::Base64 => Some("base64"),
            _ => None,
        }
    }
}

/// Longest line of an encoded body, without its CRLF.
const LINE: usize = 76;
/// From this size on, in bytes, the room for what is encoded is counted beforehand. Smaller texts fit into the room
/// that there is.
const LARGE: usize = 65_536;
const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Appends text as quoted-printable (RFC 2045 §6.7). Every line end of any kind is a line end.
pub fn write_quoted_printable(out: &mut Out, text: &[u8]) {
    if text.len() >= LARGE {
        let plain = |byte: &u8| matches!(byte, b'\t' | b' '..=b'<' | b'>'..=b'~');
        // Never more than what is written: a line end of any kind is counted later, and a blank before one as one byte.
        let ends = memchr::memchr2_iter(b'\r', b'\n', text).count();
        let encoded = text.iter().filter(|byte| !plain(byte)).count() - ends;
        let columns = text.len() - ends + 2 * encoded;
        out.reserve(columns, columns + columns / (LINE - 4) * 3 + 2 * lines(text).count());
    }
    quote(out, text, false);
}

/// Mends what already is quoted-printable: 8-bit bytes and controls are encoded, stray `=` too, and long lines are broken.
/// What was encoded stays as it is.
pub fn write_repaired_quoted_printable(out: &mut Out, text: &[u8]) {
    quote(out, text, true);
}

fn quote(out: &mut Out, text: &[u8], encoded_already: bool) {
    for line in lines(text) {
        let has_end = line.start + line.content.len() < line.next;
        let trimmed = line.content.trim_ascii_end();
        let content = if encoded_already && trimmed.ends_with(b"=") { trimmed } else { line.content };
        let mut column = 0;
        let mut at = 0;
        while at < content.len() {
            // A soft line break must not make a delimiter of what was none.
            let delimits = column == 0 && at > 0 && content[at] == b'-';
            if !delimits {
                // Most of it is letters, which go out together. One column is kept for the `=` of a soft line break.
                let end = (at + LINE - 1 - column).min(content.len() - 1);
                let letters = letters(&content[at..end]);
                out.extend_from_slice(letters);
                at += letters.len();
                column += letters.len();
            }
            let byte = content[at];
            let last = at + 1 == content.len();
            let triple = encoded_already && byte == b'=' && hex_pair(&content[at + 1..]).is_some();
            if encoded_already && byte == b'=' && last {
                // A soft line break of its own.
                out.push(b'=');
                break;
            }
            let plain = match byte {
                b'=' => triple,
                b' ' | b'\t' => !last,
                b'-' => !delimits,
                _ => byte.is_ascii_graphic(),
            };
            let width = if triple || !plain { 3 } else { 1 };
            if column + width > LINE - usize::from(!last) {
                out.extend_from_slice(b"=\r\n");
                column = 0;
                continue;
            }
            match (triple, plain) {
                (true, _) => out.extend_from_slice(&content[at..at + 3]),
                (false, true) => out.push(byte),
                (false, false) => {
                    out.extend_from_slice(&[b'=', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                }
            }
            at += if triple { 3 } else { 1 };
            column += width;
        }
        if has_end {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// The bytes at the start that stand for themselves, unless they end a line.
fn letters(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| !matches!(byte, b'\t' | b' '..=b'<' | b'>'..=b'~'));
    &bytes[..end.unwrap_or(bytes.len())]
}

/// What quoted-printable text means. Errors in it stand for themselves.
pub fn unquote_printable(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for line in lines(text) {
        let ending = &text[line.start + line.content.len()..line.next];
        let trimmed = line.content.trim_ascii_end();
        let soft = trimmed.ends_with(b"=");
        let mut rest = if soft { &trimmed[..trimmed.len() - 1] } else { line.content };
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            match (byte, hex_pair(tail)) {
                (b'=', Some(value)) => {
                    bytes.push(value);
                    rest = &tail[2..];
                }
                _ => bytes.push(byte),
            }
        }
        if !soft {
            bytes.extend_from_slice(ending);
        }
    }
    bytes
}

/// Appends base64 (RFC 2045 §6.8) in lines of 76 characters. The last line has no line end.
pub fn write_base64(out: &mut Out, bytes: &[u8]) {
    if bytes.len() >= LARGE {
        let lines = bytes.len().div_ceil(LINE / 4 * 3);
        out.reserve(bytes.len() / 3 * 4, lines * (LINE + 2));
    }
    let mut buffer = [0; LINE];
    for (at, chunk) in bytes.chunks(LINE / 4 * 3).enumerate() {
        if at > 0 {
            out.extend_from_slice(b"\r\n");
        }
        // The buffer holds just what a chunk of this size becomes, so this cannot fail.
        let length = STANDARD.encode_slice(chunk, &mut buffer).unwrap_or_default();
        out.extend_from_slice(&buffer[..length]);
    }
}

/// Breaks base64 into lines of 76 characters anew, leaving out bytes that belong to none.
pub fn write_rewrapped_base64(out: &mut Out, text: &[u8]) {
    let mut column = 0;
    for byte in text.iter().filter(|byte| byte.is_ascii_graphic()) {
        if column == LINE {
            out.extend_from_slice(b"\r\n");
            column = 0;
        }
        out.push(*byte);
        column += 1;
    }
}
