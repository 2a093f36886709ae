//! Encoded words (RFC 2047) and header lines of at most 76 characters.

use std::borrow::Cow;
use std::fmt::Write;

use email_encoding::headers::rfc2047;
use email_encoding::headers::writer::EmailWriter;

use crate::decode;

/// Header lines are folded here where they can be (RFC 2047 §2, RFC 5322 §2.1.1).
const FOLD: usize = 76;

/// Each control becomes a blank. A NUL must not end an address early: as a blank it is one that no address has inside.
pub fn without_controls(text: Cow<'_, str>) -> Cow<'_, str> {
    // Short as it is, the text is looked through to its end, without a branch for each byte.
    match text.bytes().fold(false, |held, byte| held | byte.is_ascii_control()) {
        true => text.replace(|c: char| c.is_ascii_control(), " ").into(),
        false => text,
    }
}

/// Controls and blanks in a row become one blank, and none is left at the ends.
pub fn one_line(text: Cow<'_, str>) -> Cow<'_, str> {
    let text = without_controls(text);
    if !text.starts_with(' ') && !text.ends_with(' ') && !has_pair(&text, b"  ") {
        return text;
    }
    let mut line = String::with_capacity(text.len());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line.into()
}

/// Each backslash left out, and what follows it taken as it stands (RFC 5322 §3.2.1).
pub fn without_backslashes(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(chars.next().unwrap_or('\\')),
            _ => plain.push(c),
        }
    }
    plain.into()
}

pub fn lower_case(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => text.to_ascii_lowercase().into(),
        false => text.into(),
    }
}

/// It holds what begins an encoded word.
pub fn may_be_encoded(text: &str) -> bool {
    has_pair(text, b"=?")
}

/// For the short texts of a header this is quicker than what searches for text of any length.
pub fn has_pair(text: &str, pair: &[u8; 2]) -> bool {
    text.as_bytes().windows(2).any(|two| two == pair)
}

/// Decodes encoded words wherever they stand, in quotes too. Neighbours of one charset are joined before they are decoded,
/// because producers split them inside of characters.
pub fn decode(text: &str) -> Cow<'_, str> {
    if !may_be_encoded(text) {
        return text.into();
    }
    let mut decoded = String::with_capacity(text.len());
    let mut pending: Option<(&str, Vec<u8>)> = None;
    let mut rest = text;
    while let Some((before, word, after)) = next_word(rest) {
        let adjacent = pending.is_some() && before.trim().is_empty();
        if !adjacent {
            flush(&mut pending, &mut decoded);
            decoded.push_str(before);
        }
        match &mut pending {
            Some((charset, bytes)) if charset.eq_ignore_ascii_case(word.charset) => bytes.extend(word.bytes),
            _ => {
                flush(&mut pending, &mut decoded);
                pending = Some((word.charset, word.bytes));
            }
        }
        rest = after;
    }
    flush(&mut pending, &mut decoded);
    decoded.push_str(rest);
    decoded.into()
}

fn flush(pending: &mut Option<(&str, Vec<u8>)>, decoded: &mut String) {
    if let Some((label, bytes)) = pending.take() {
        match decode::charset(label).and_then(|charset| decode::strictly(&bytes, charset)) {
            Some(text) => decoded.push_str(&text),
            None => decoded.push_str(&decode::utf8_or_windows_1252(&bytes)),
        }
    }
}

struct Word<'a> {
    charset: &'a str,
    bytes: Vec<u8>,
}

/// The next encoded word, with the text before and after it. Longer than RFC 2047 allows and with blanks inside is fine.
fn next_word(text: &str) -> Option<(&str, Word<'_>, &str)> {
    memchr::memchr_iter(b'=', text.as_bytes()).find_map(|start| {
        let (word, after) = word_at(text[start + 1..].strip_prefix('?')?)?;
        Some((&text[..start], word, after))
    })
}

fn word_at(text: &str) -> Option<(Word<'_>, &str)> {
    let end = text.find(|c: char| c == '?' || c.is_whitespace())?;
    let charset = &text[..end];
    let rest = text[end..].strip_prefix('?')?;
    let coding = rest.chars().next()?;
    let rest = rest[coding.len_utf8()..].strip_prefix('?')?;
    let (inner, after) = rest.split_at(rest.find('?')?);
    let after = after.strip_prefix("?=")?;
    let bytes = match coding {
        'b' | 'B' => decode::loose_base64(inner.as_bytes()),
        'q' | 'Q' => unquote(inner.as_bytes()),
        _ => return None,
    };
    Some((Word { charset, bytes }, after))
}

/// The Q encoding (RFC 2047 §4.2); an `=` that no two digits follow stands for itself.
fn unquote(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'_' => bytes.push(b' '),
            b'=' => match hex_pair(tail) {
                Some(value) => {
                    bytes.push(value);
                    rest = &tail[2..];
                }
                None => bytes.push(b'='),
            },
            _ => bytes.push(byte),
        }
    }
    bytes
}

/// The byte that two hexadecimal digits at the start of `text` mean.
pub fn hex_pair(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| (*text.get(at)? as char).to_digit(16);
    Some((digit(0)? * 16 + digit(1)?) as u8)
}

/// One header line that is being written: `Name:`, then words that are folded as they come.
pub struct Line<'a> {
    writer: EmailWriter<'a>,
    fresh: bool,
    /// There is a quotation mark on this line: a careless reader would take an encoded word behind it for quoted.
    quoted: bool,
}

impl<'a> Line<'a> {
    /// `out` must end in a line end, or be empty.
    pub fn new(out: &'a mut String, name: &str) -> Self {
        out.push_str(name);
        out.push(':');
        Self { writer: EmailWriter::new(out, name.len() + 1, 1, false), fresh: true, quoted: false }
    }

    /// A word that is never taken apart, behind a blank.
    pub fn word(&mut self, word: &str) {
        self.joined(&[word]);
    }

    /// The same, of pieces that make one word.
    pub fn joined(&mut self, pieces: &[&str]) {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if !self.fresh {
            self.writer.space();
            if self.writer.projected_line_len() + length > FOLD {
                // Writing into a String cannot fail, here and below.
                let _ = self.writer.new_line();
                self.quoted = false;
            }
        }
        for piece in pieces {
            let _ = self.writer.write_str(piece);
            self.quoted |= piece.contains('"');
        }
        self.fresh = false;
    }

    /// Text as encoded words, behind a blank. What fits into one word is not divided.
    pub fn encoded(&mut self, text: &str) {
        if !self.fresh {
            self.writer.space();
            let one_word = "=?utf-8?b??=".len() + text.len().div_ceil(3) * 4;
            let fits = |column: usize| column + one_word < FOLD;
            if self.quoted || (fits(1) && !fits(self.writer.projected_line_len())) {
                let _ = self.writer.new_line();
                self.quoted = false;
            }
        }
        let _ = rfc2047::encode(text, &mut self.writer);
        self.fresh = false;
    }

    /// Something short that belongs to the word before it: a comma, a semicolon.
    pub fn stick(&mut self, mark: &str) {
        let _ = self.writer.write_str(mark);
    }

    pub fn end(mut self) {
        let _ = self.writer.write_str("\r\n");
    }
}

/// Writes unstructured text (RFC 5322 §2.2.1) as a header. What lies between the first and the last word that needs it is
/// encoded; the other words stay readable. Words longer than `longest` are encoded too.
pub fn write_text(out: &mut String, name: &str, text: &str, longest: usize) {
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    let plain =
        |word: &str| word.bytes().all(|byte| byte.is_ascii_graphic()) && !may_be_encoded(word) && word.len() <= longest;
    // Beside an encoded word a quotation mark would seem to quote it.
    let needs = |word: &&str| !plain(word) || word.contains('"');
    let range = match (words.iter().position(needs), words.iter().rposition(needs)) {
        (Some(first), Some(last)) if !words[first..=last].iter().all(|word| plain(word)) => first..last + 1,
        _ => 0..0,
    };
    let mut line = Line::new(out, name);
    for word in &words[..range.start] {
        line.word(word);
    }
    if !range.is_empty() {
        line.encoded(&words[range.clone()].join(" "));
    }
    for word in &words[range.end..] {
        line.word(word);
    }
    line.end();
}
