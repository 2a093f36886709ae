//! Stored bytes to text: base64 of the columns, and character sets.

mod label;

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use encoding_rs::{DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};
pub use label::{charset, is_foreign, is_meaningless};

use crate::outcome::Reason;

/// A column's value is damaged, and what it held is not to be guessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// [`Reason::Base64Invalid`] or [`Reason::Truncated`].
    pub reason: Reason,
    /// Which column, and what is wrong with it. Names positions and single bytes, never the content.
    pub detail: String,
}

/// Unused bits in the last character may be set: no producer does it, but nothing is lost by it either.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// What a column holds behind its base64 (RFC 4648 §4). NULL is empty. Line breaks inside are fine.
///
/// `limit` is how many bytes the column can hold: a value of just that length was cut off by the database. It may still
/// be good base64, since 256 is a multiple of 4, and the address at its end would be a stranger's.
pub fn column(name: &str, stored: Option<&[u8]>, limit: u64) -> Result<Vec<u8>, Damage> {
    let Some(stored) = stored else { return Ok(Vec::new()) };
    if stored.len() as u64 == limit {
        let detail = format!("{name} is exactly {limit} bytes long, all that the column can hold: it was cut off");
        return Err(Damage { reason: Reason::Truncated, detail });
    }
    // Hardly any producer breaks the lines: line ends are looked for where this is no base64 as it stands.
    let quick = |text: &[u8]| base64_simd::STANDARD.decode_to_vec(text);
    if let Ok(bytes) = quick(stored) {
        return Ok(bytes);
    }
    let text = without_line_ends(stored);
    // The quick decoder takes less than the careful one, which therefore has the last word.
    quick(&text)
        .or_else(|_| BASE64.decode(&text))
        .map_err(|_| Damage { reason: Reason::Base64Invalid, detail: format!("{name}: {}", what_is_wrong(&text)) })
}

fn without_line_ends(stored: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(stored.len());
    stored.split(|byte| matches!(byte, b'\r' | b'\n')).for_each(|line| text.extend_from_slice(line));
    text
}

/// Why this is no base64, for a person.
fn what_is_wrong(text: &[u8]) -> String {
    if let Some(place) = text.iter().position(|byte| !is_base64(*byte)) {
        let byte = text[place];
        return format!("byte {} (0x{byte:02x}) does not belong into base64", place + 1);
    }
    if !text.len().is_multiple_of(4) {
        let length = text.len();
        return format!("{length} characters of base64 are no multiple of 4: it was cut off or padded wrongly");
    }
    "the padding of the base64 stands at a wrong place".to_owned()
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// Base64 as it comes in mail (RFC 2045 §6.8, RFC 2047 §4.1): characters outside the alphabet are skipped, missing padding
/// is no error, and a last character that stands alone is dropped. Padding ends a piece, and a further piece may follow it:
/// some producers encode a footer on its own and append it.
pub fn loose_base64(text: &[u8]) -> Vec<u8> {
    if let Ok(bytes) = base64_simd::STANDARD.decode_to_vec(text) {
        return bytes;
    }
    let engine = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut digits = Vec::with_capacity(text.len());
    let mut decode = |digits: &mut Vec<u8>| {
        if digits.len() % 4 == 1 {
            digits.pop();
        }
        // Nothing is left in it that the engine could refuse.
        let _ = engine.decode_vec(&*digits, &mut bytes);
        digits.clear();
    };
    let mut pads = 0;
    for byte in text.iter().copied().filter(|byte| is_base64(*byte)) {
        if byte == b'=' {
            pads += 1;
            continue;
        }
        if pads > 0 && ends_piece(digits.len(), pads) {
            decode(&mut digits);
        }
        pads = 0;
        digits.push(byte);
    }
    decode(&mut digits);
    bytes
}

/// The padding is what this number of digits needs. Other `=` belong to nothing.
fn ends_piece(digits: usize, pads: usize) -> bool {
    matches!((digits % 4, pads), (2, 2..) | (3, 1..))
}

/// The text holds padding that more base64 follows: readers stop there, or go on with the bits of both pieces mixed.
pub fn is_base64_in_pieces(text: &[u8]) -> bool {
    let Some(first) = memchr::memchr(b'=', text) else { return false };
    let is_digit = |byte: &u8| *byte != b'=' && is_base64(*byte);
    if !text[first..].iter().any(is_digit) {
        return false;
    }
    let mut digits = text[..first].iter().filter(|byte| is_digit(byte)).count();
    let mut pads = 0;
    for byte in text[first..].iter().filter(|byte| is_base64(**byte)) {
        if *byte == b'=' {
            pads += 1;
        } else if ends_piece(digits, pads) {
            return true;
        } else {
            pads = 0;
            digits += 1;
        }
    }
    false
}

/// Text in which hardly a byte is foreign to base64: it is that, and not text that was never encoded.
pub fn is_mostly_base64(text: &[u8]) -> bool {
    let foreign = text.iter().filter(|byte| !is_base64(**byte) && !byte.is_ascii_whitespace()).count();
    foreign == 0 || foreign.saturating_mul(50) <= text.len()
}

/// Text of a charset that nobody has named, or not truly: UTF-8 if it is that, else Windows-1252.
pub fn utf8_or_windows_1252(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => WINDOWS_1252.decode_without_bom_handling(bytes).0,
    }
}

/// The bytes as text of this charset, if every one of them is. In UTF-16 a mark of the byte order is believed.
pub fn strictly<'a>(bytes: &'a [u8], charset: &'static Encoding) -> Option<Cow<'a, str>> {
    match Encoding::for_bom(bytes) {
        Some((marked, mark)) if charset == UTF_16BE || charset == UTF_16LE => {
            marked.decode_without_bom_handling_and_without_replacement(&bytes[mark..])
        }
        _ => charset.decode_without_bom_handling_and_without_replacement(bytes),
    }
}

/// Every one of the bytes is text of this charset, as [`strictly`] has it. Needs no room for the text.
pub fn is_text(bytes: &[u8], charset: &'static Encoding) -> bool {
    if charset == UTF_8 {
        return std::str::from_utf8(bytes).is_ok();
    }
    let (charset, mut rest) = match Encoding::for_bom(bytes) {
        Some((marked, mark)) if charset == UTF_16BE || charset == UTF_16LE => (marked, &bytes[mark..]),
        _ => (charset, bytes),
    };
    let mut decoder = charset.new_decoder_without_bom_handling();
    let mut text = [0; 4096];
    loop {
        let (result, read, _) = decoder.decode_to_utf8_without_replacement(rest, &mut text, true);
        rest = &rest[read..];
        match result {
            DecoderResult::InputEmpty => return true,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(..) => return false,
        }
    }
}

/// The bytes as text of this charset, where single bytes that it cannot hold are read as Windows-1252.
pub fn mostly(bytes: &[u8], charset: &'static Encoding) -> String {
    let mut text = String::new();
    if charset == UTF_8 {
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.push_str(&WINDOWS_1252.decode_without_bom_handling(chunk.invalid()).0);
        }
        return text;
    }
    let mut decoder = charset.new_decoder_without_bom_handling();
    let mut rest = bytes;
    let mut taken = 0;
    loop {
        let room =
            decoder.max_utf8_buffer_length_without_replacement(rest.len()).unwrap_or(rest.len().saturating_mul(4));
        text.reserve(room.max(16));
        let (result, read) = decoder.decode_to_string_without_replacement(rest, &mut text, true);
        taken += read;
        rest = &rest[read..];
        match result {
            DecoderResult::InputEmpty => return text,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(bad, behind) => {
                let end = taken.saturating_sub(usize::from(behind));
                let start = end.saturating_sub(usize::from(bad));
                text.push_str(&WINDOWS_1252.decode_without_bom_handling(&bytes[start..end]).0);
                if rest.is_empty() && read == 0 {
                    return text;
                }
            }
        }
    }
}
