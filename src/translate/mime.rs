//! Content-Type and Content-Disposition (RFC 2045 §5.1, RFC 2183), read with patience and written with care.

use std::borrow::Cow;

use super::words::{self, Line};

/// A media type or disposition with its parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Value<'a> {
    /// In lower case; empty if it was missing, or could be none.
    pub main: Cow<'a, str>,
    pub params: Vec<Param<'a>>,
    /// A parameter holds quotation marks that nobody escaped, or is quoted nowhere and should be.
    pub sloppy: bool,
    /// No semicolon stands before the first parameter, so that readers take the type for none.
    pub unseparated: bool,
    /// There were more parameters than [`MOST_PARAMS`], and the last were left out.
    pub shortened: bool,
}

/// A parameter: its name in lower case, and its value without quotes, encoded words not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    pub name: Cow<'a, str>,
    pub value: Cow<'a, str>,
}

impl Param<'_> {
    pub fn into_owned(self) -> Param<'static> {
        Param { name: self.name.into_owned().into(), value: self.value.into_owned().into() }
    }
}

/// More parameters than anybody writes: the name of a file may stand in a hundred short pieces (RFC 2231 §3).
const MOST_PARAMS: usize = 300;
/// No type, disposition or parameter has a longer name.
const LONGEST_NAME: usize = 120;
/// Longer values go out in pieces.
const LONGEST_VALUE: usize = 500;

impl<'a> Value<'a> {
    pub fn parse(text: &'a str) -> Self {
        let (main, mut rest) = text.split_at(text.find(';').unwrap_or(text.len()));
        let mut main = main.split('(').next().unwrap_or_default().trim();
        let possible =
            |main: &str| main.len() <= LONGEST_NAME && main.bytes().all(|byte| is_token(byte) || byte == b'/');
        let mut value = Self::default();
        if !possible(main)
            && let Some((first, behind)) = unseparated(text).filter(|(first, _)| possible(first))
        {
            (main, rest) = (first, behind);
            value.unseparated = true;
        }
        value.main = words::lower_case(if possible(main) { main } else { "" });
        // The first parameter of `text/html charset=utf-8` begins at once.
        let mut next = if value.unseparated { Some(rest) } else { None };
        while let Some(start) = next.take().or_else(|| rest.find(';').map(|start| &rest[start + 1..])) {
            rest = start;
            let Some((name, after)) = param_name(rest) else { continue };
            if value.params.len() >= MOST_PARAMS {
                value.shortened = true;
                break;
            }
            let (param, sloppy, after) = match after.strip_prefix('"') {
                Some(inner) => quoted(inner),
                None => unquoted(&name, after),
            };
            value.sloppy |= sloppy;
            if !value.params.iter().any(|param| param.name == name) {
                value.params.push(Param { name, value: param });
            }
            rest = after;
        }
        value
    }

    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|param| param.name == name).map(|param| param.value.as_ref())
    }

    /// The boundary of a multipart, also where it stands in pieces (RFC 2231 §3) or with a charset before it (§4).
    pub fn boundary(&self) -> Option<Cow<'_, str>> {
        if let Some(whole) = self.param("boundary") {
            return Some(whole.into());
        }
        let extended = |text: &str, first: bool| {
            let text = if first { text.splitn(3, '\'').nth(2).unwrap_or(text) } else { text };
            percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
        };
        if let Some(text) = self.param("boundary*") {
            return Some(extended(text, true).into());
        }
        let mut joined = None::<String>;
        for number in 0..MOST_PARAMS {
            let piece = match self.param(&format!("boundary*{number}")) {
                Some(piece) => piece.to_owned(),
                None => match self.param(&format!("boundary*{number}*")) {
                    Some(piece) => extended(piece, number == 0),
                    None => break,
                },
            };
            joined.get_or_insert_default().push_str(&piece);
        }
        joined.map(Cow::from)
    }

    /// Names this boundary in place of any other.
    pub fn set_boundary(&mut self, boundary: String) {
        self.params.retain(|param| !param.name.starts_with("boundary*"));
        self.set("boundary", boundary);
    }

    /// Puts `value` in place of the parameter's, or behind the others.
    pub fn set(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) {
        let (name, value) = (name.into(), value.into());
        match self.params.iter_mut().find(|param| param.name == name) {
            Some(param) => param.value = value,
            None => self.params.push(Param { name, value }),
        }
    }

    pub fn is_multipart(&self) -> bool {
        self.main.starts_with("multipart/")
    }

    /// Text, or nothing that can be told apart from it.
    pub fn is_text(&self) -> bool {
        self.main.starts_with("text/") || !self.main.contains('/')
    }

    /// Signed or encrypted: not one byte may be changed (RFC 1847, RFC 3156, RFC 8551).
    pub fn is_sealed(&self) -> bool {
        let main = self.main.as_ref();
        matches!(main, "multipart/signed" | "multipart/encrypted")
            || ["application/pkcs7-", "application/x-pkcs7-", "application/pgp-"]
                .iter()
                .any(|kind| main.starts_with(kind))
    }

    /// It names a file, in whatever spelling.
    pub fn names_a_file(&self) -> bool {
        self.params.iter().any(|param| is_file_name(&param.name) && !param.value.is_empty())
    }

    /// Writes the header anew. Values outside ASCII, and such with quotes or encoded words inside, go out by RFC 2231.
    pub fn write(&self, out: &mut String, header: &str) {
        let mut line = Line::new(out, header);
        line.word(match self.main.as_ref() {
            "" if header.eq_ignore_ascii_case("Content-Disposition") => "attachment",
            "" => "text/plain",
            main => main,
        });
        for param in &self.params {
            let value = &param.value;
            // Names of files are the only text among them.
            let decoded = if is_file_name(&param.name) { words::decode(value) } else { value.as_ref().into() };
            let extended = param.name.contains('*');
            let decoded = match extended {
                // Of raw text in what should be percent-encoded nothing is lost.
                true => percent_encoding::utf8_percent_encode(&decoded, percent_encoding::CONTROLS).into(),
                false => decoded,
            };
            line.stick(";");
            if decoded.len() > LONGEST_VALUE && !extended {
                write_extended(&mut line, &param.name, &decoded);
            } else if decoded.bytes().all(is_token) && !decoded.is_empty() {
                line.joined(&[&param.name, "=", &decoded]);
            } else if extended
                || decoded.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
            {
                let ascii: String =
                    decoded.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).collect();
                line.joined(&[&param.name, "=\"", &ascii, "\""]);
            } else {
                write_extended(&mut line, &param.name, &decoded);
            }
        }
        line.end();
    }
}

fn is_file_name(name: &str) -> bool {
    matches!(name.split('*').next(), Some("name" | "filename"))
}

/// The type and what follows it, where a blank or a comma stands in place of the semicolon and a parameter behind it.
fn unseparated(text: &str) -> Option<(&str, &str)> {
    let (first, rest) = text.split_at(text.find([' ', ','])?);
    let rest = rest.trim_start_matches([' ', ',']);
    param_name(rest).map(|_| (first, rest))
}

/// RFC 2231 §3 and §4, always with numbered pieces, which every reader of one piece knows as well.
fn write_extended(line: &mut Line<'_>, name: &str, value: &str) {
    let mut pieces = vec![String::from("utf-8''")];
    for c in value.chars() {
        let mut buffer = [0; 4];
        let encoded: String = match c {
            c if c.is_ascii_alphanumeric() || "-._".contains(c) => c.to_string(),
            c => c.encode_utf8(&mut buffer).bytes().map(|byte| format!("%{byte:02X}")).collect(),
        };
        let last = pieces.len() - 1;
        if pieces[last].len() + encoded.len() > 50 {
            pieces.push(encoded);
        } else {
            pieces[last].push_str(&encoded);
        }
    }
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            line.stick(";");
        }
        line.word(&format!("{name}*{number}*={piece}"));
    }
}

/// RFC 2045 §5.1.
pub fn is_token(byte: u8) -> bool {
    let special = matches!(byte, b'"' | b'(' | b')' | b',' | b'/' | b':'..=b'@' | b'['..=b']');
    byte.is_ascii_graphic() && !special
}

/// `name =`, and what follows.
fn param_name(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '*')?;
    let after = text[end..].trim_start().strip_prefix('=')?.trim_start();
    (1..=LONGEST_NAME).contains(&end).then(|| (words::lower_case(&text[..end]), after))
}

/// The value behind an opening quotation mark. If what follows the closing one is no end, the marks inside were not
/// escaped, and the value ends at the mark that an end follows.
fn quoted(inner: &str) -> (Cow<'_, str>, bool, &str) {
    let ends = |after: &str| {
        let after = after.trim_start();
        after.is_empty() || after.starts_with([';', '('])
    };
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if ends(&inner[at + 1..]) => {
                return (words::without_backslashes(&inner[..at]), false, &inner[at + 1..]);
            }
            '"' => break,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    let mut marks = inner.match_indices('"').map(|(at, _)| at);
    let end = marks.clone().find(|at| ends(&inner[at + 1..])).or(marks.next_back()).unwrap_or(inner.len());
    (inner[..end].into(), true, inner.get(end + 1..).unwrap_or_default())
}

/// A value without quotation marks: to the next blank, but for names of files, which go on to the end.
fn unquoted<'a>(name: &str, text: &'a str) -> (Cow<'a, str>, bool, &'a str) {
    let end = text.find(';').unwrap_or(text.len());
    let whole = text[..end].trim();
    let value = if is_file_name(name) { whole } else { whole.split(' ').next().unwrap_or_default() };
    let sloppy = !value.bytes().all(|byte| is_token(byte) || !byte.is_ascii()) && !name.contains('*');
    (value.into(), sloppy, &text[end..])
}
