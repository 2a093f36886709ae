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
/// because producers split them inside of characters. A word in a charset that cannot be converted stays as it is.
pub fn decode(text: &str) -> Cow<'_, str> {
    decode_noting(text, &mut None)
}

/// The same; `guessed` gets the label of a word that is not in the charset that it names, so that it had to be guessed.
pub fn decode_noting<'a>(text: &'a str, guessed: &mut Option<&'a str>) -> Cow<'a, str> {
    if !may_be_encoded(text) {
        return text.into();
    }
    let mut decoded = String::with_capacity(text.len());
    let mut pending: Option<(&str, Vec<u8>)> = None;
    // The text up to here is in `decoded`, or is a word before and nothing but blanks.
    let mut rest = text;
    let mut ahead = text;
    // Most words name the charset of the one before.
    let mut last = ("", false);
    while let Some((word, after)) = next_word(ahead) {
        ahead = after;
        if last.0 != word.charset {
            last = (word.charset, decode::is_foreign(word.charset));
        }
        if last.1 {
            continue;
        }
        let before = &rest[..rest.len() - ahead.len() - word.length];
        let adjacent = pending.is_some() && before.trim().is_empty();
        if !adjacent {
            flush(&mut pending, &mut decoded, guessed);
            decoded.push_str(before);
        }
        match &mut pending {
            Some((charset, bytes))
                if charset.eq_ignore_ascii_case(word.charset) && !shifts_anew(bytes, &word.bytes) =>
            {
                bytes.extend(word.bytes);
            }
            _ => {
                flush(&mut pending, &mut decoded, guessed);
                pending = Some((word.charset, word.bytes));
            }
        }
        rest = after;
    }
    if rest.len() == text.len() {
        return text.into();
    }
    flush(&mut pending, &mut decoded, guessed);
    decoded.push_str(rest);
    decoded.into()
}

/// The word returns to ASCII at its end and the next leaves it again, as words in ISO-2022-JP have to (RFC 1468, RFC
/// 2047 §3). Joined, two escape sequences would follow each other, which is an error to the decoder.
fn shifts_anew(before: &[u8], next: &[u8]) -> bool {
    next.first() == Some(&0x1b) && (before.ends_with(b"\x1b(B") || before.ends_with(b"\x1b(J"))
}

fn flush<'a>(pending: &mut Option<(&'a str, Vec<u8>)>, decoded: &mut String, guessed: &mut Option<&'a str>) {
    if let Some((label, bytes)) = pending.take() {
        match decode::charset(label).and_then(|charset| decode::strictly(&bytes, charset)) {
            Some(text) => decoded.push_str(&text),
            None => {
                if !bytes.is_ascii() {
                    *guessed = Some(label);
                }
                decoded.push_str(&decode::utf8_or_windows_1252(&bytes));
            }
        }
    }
}

struct Word<'a> {
    charset: &'a str,
    bytes: Vec<u8>,
    /// Bytes of the whole word as it is written.
    length: usize,
}

/// The next encoded word, with the text after it. Longer than RFC 2047 allows and with blanks inside is fine.
fn next_word(text: &str) -> Option<(Word<'_>, &str)> {
    memchr::memchr_iter(b'=', text.as_bytes()).find_map(|start| word_at(&text[start..]))
}

/// The text holds an encoded word.
pub fn holds_word(text: &str) -> bool {
    may_be_encoded(text) && next_word(text).is_some()
}

/// One encoded word, and nothing else, in a charset that cannot be converted here. It can go out as it is.
pub fn is_foreign_word(text: &str) -> bool {
    /// In bytes. RFC 2047 §2 allows 75, libraries write some more, and readers take any length that fits a line.
    const LONGEST: usize = 500;
    text.len() <= LONGEST
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && word_at(text).is_some_and(|(word, after)| after.is_empty() && decode::is_foreign(word.charset))
}

fn word_at(text: &str) -> Option<(Word<'_>, &str)> {
    let rest = text.strip_prefix("=?")?;
    let end = rest.find('?')?;
    let charset = &rest[..end];
    if charset.is_empty() || !charset.bytes().all(is_label) {
        return None;
    }
    let rest = &rest[end + 1..];
    let coding = *rest.as_bytes().first()?;
    let rest = rest.get(1..)?.strip_prefix('?')?;
    let (inner, after) = match coding {
        b'b' | b'B' => {
            let (inner, after) = rest.split_at(rest.find('?')?);
            (inner, after.strip_prefix("?=")?)
        }
        b'q' | b'Q' => q_text(rest)?,
        _ => return None,
    };
    let bytes = match coding {
        b'b' | b'B' => decode::loose_base64(inner.as_bytes()),
        _ => unquote(inner.as_bytes()),
    };
    Some((Word { charset, bytes, length: text.len() - after.len() }, after))
}

/// The text of a Q word up to its `?=`, and what follows. Producers forget to encode question marks: one that an escape
/// follows (`?=C3`) looks like the end, and is none if the real one comes before the next word begins. No word reaches into
/// another, so that each byte is looked at once however many words have no end.
fn q_text(text: &str) -> Option<(&str, &str)> {
    let bytes = text.as_bytes();
    let mut end = None;
    for mark in memchr::memchr_iter(b'?', bytes) {
        if mark > 0 && bytes[mark - 1] == b'=' && begins_word(&bytes[mark + 1..]) {
            break;
        }
        if bytes.get(mark + 1) == Some(&b'=') {
            if !is_escape(&bytes[mark + 2..]) {
                end = Some(mark);
                break;
            }
            end = end.or(Some(mark));
        }
    }
    end.map(|end| (&text[..end], &text[end + 2..]))
}

/// Two digits of an escape. Producers write them in upper case, and a word is rarely followed by such.
fn is_escape(text: &[u8]) -> bool {
    let digit = |at: usize| text.get(at).is_some_and(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    digit(0) && digit(1)
}

/// A label, a question mark, the letter of an encoding, and another question mark: what follows `=?` in a word.
fn begins_word(text: &[u8]) -> bool {
    let label = text.iter().take_while(|byte| is_label(**byte)).count();
    label > 0 && matches!(text.get(label..label + 3), Some([b'?', b'q' | b'Q' | b'b' | b'B', b'?']))
}

/// It may stand in the label of a charset. RFC 2047 §2 allows more, and no charset is named so.
fn is_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:+*".contains(&byte)
}

/// The Q encoding (RFC 2047 §4.2). An `=` that no two digits follow stands for itself, and one at the end of a line is
/// a soft line break: some producers use a quoted-printable encoder.
fn unquote(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'_' => bytes.push(b' '),
            b'=' => match (hex_pair(tail), tail) {
                (Some(value), _) => {
                    bytes.push(value);
                    rest = &tail[2..];
                }
                (None, [b'\r', b'\n', behind @ ..] | [b'\n' | b'\r', behind @ ..]) => rest = behind,
                _ => bytes.push(b'='),
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
/// encoded; the other words stay readable. Words longer than `longest` are encoded too, and encoded words in a charset that
/// cannot be converted go out as they are.
pub fn write_text(out: &mut String, name: &str, text: &str, longest: usize) {
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    let mut line = Line::new(out, name);
    if !may_be_encoded(text) || !words.iter().any(|word| is_foreign_word(word)) {
        write_run(&mut line, &words, longest, [false; 2]);
        return line.end();
    }
    let mut rest = &words[..];
    let mut behind_word = false;
    while !rest.is_empty() {
        let end = rest.iter().position(|word| is_foreign_word(word)).unwrap_or(rest.len());
        write_run(&mut line, &rest[..end], longest, [behind_word, end < rest.len()]);
        rest = &rest[end..];
        while let Some((word, more)) = rest.split_first().filter(|(word, _)| is_foreign_word(word)) {
            line.word(word);
            rest = more;
            behind_word = true;
        }
    }
    line.end();
}

/// `beside` says whether an encoded word stands before and behind: a reader leaves out the blanks between two of them (RFC
/// 2047 §6.2), so they are encoded too.
fn write_run(line: &mut Line<'_>, words: &[&str], longest: usize, beside: [bool; 2]) {
    let plain =
        |word: &str| word.bytes().all(|byte| byte.is_ascii_graphic()) && !may_be_encoded(word) && word.len() <= longest;
    // Beside an encoded word a quotation mark would seem to quote it.
    let needs = |word: &&str| !plain(word) || word.contains('"');
    let range = match (words.iter().position(needs), words.iter().rposition(needs)) {
        (Some(first), Some(last)) if !words[first..=last].iter().all(|word| plain(word)) => first..last + 1,
        _ => 0..0,
    };
    for word in &words[..range.start] {
        line.word(word);
    }
    if !range.is_empty() {
        let mut text = words[range.clone()].join(" ");
        if beside[0] && range.start == 0 {
            text.insert(0, ' ');
        }
        if beside[1] && range.end == words.len() {
            text.push(' ');
        }
        line.encoded(&text);
    }
    for word in &words[range.end..] {
        line.word(word);
    }
}

/// Writes text that needs no encoding and must not get any, folded at its blanks.
pub fn write_as_it_is(out: &mut String, name: &str, text: &str) {
    let mut line = Line::new(out, name);
    text.split(' ').filter(|word| !word.is_empty()).for_each(|word| line.word(word));
    line.end();
}
