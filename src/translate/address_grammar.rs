//! The grammar of address lists: RFC 5322 §3.4 with the obsolete forms of §4.4, and the letters of RFC 6532.
//!
//! This reader accepts what is valid and nothing else. What it does not accept, `address_list` reads with patience.
//! Both use the functions at the end of this file, so that a quotation, a comment and an encoded word are the same to
//! both.

use std::borrow::Cow;
use std::ops::Range;

use super::words;

/// A mailbox as it is written, not yet checked for use in an envelope.
#[derive(Debug, PartialEq, Eq)]
pub struct Written<'a> {
    /// The display name as it stands before the bracket, with its quotation marks and comments; else the last comment,
    /// without its brackets. Empty where there is neither.
    pub name: &'a str,
    pub spec: Spec<'a>,
}

/// An addr-spec (RFC 5322 §3.4.1) without its comments and folds.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec<'a> {
    /// A dot-atom, or a quoted string where it has to be one.
    pub local: Cow<'a, str>,
    pub domain: Cow<'a, str>,
}

/// The text is not what the grammar says.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

type Parsed<T> = Result<T, Malformed>;

/// Reads a whole list, groups flattened, and hands each mailbox to `found` until that breaks off with an error of its own.
///
/// `text` is unfolded and free of controls. A list that is malformed anywhere gives `Ok(Err(Malformed))`, possibly after
/// some mailboxes were found.
pub fn list<'a, E>(text: &'a str, found: &mut impl FnMut(Written<'a>) -> Result<(), E>) -> Result<Parsed<()>, E> {
    let mut reader = Reader { text, at: 0, words: Vec::new(), comment: None };
    reader.list(false, found)
}

/// Reads one mailbox that is the whole text.
pub fn mailbox(text: &str) -> Parsed<Written<'_>> {
    let mut only = None;
    let mut found = |written| if only.replace(written).is_some() { Err(Malformed) } else { Ok(()) };
    list(text, &mut found)??;
    only.ok_or(Malformed)
}

/// Reads one addr-spec that is the whole text.
pub fn spec(text: &str) -> Parsed<Spec<'_>> {
    let mut reader = Reader { text, at: 0, words: Vec::new(), comment: None };
    let spec = reader.addr_spec()?;
    if reader.at == text.len() { Ok(spec) } else { Err(Malformed) }
}

/// A piece of a phrase or of a local part.
#[derive(Clone, Debug)]
struct Word {
    kind: Kind,
    at: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Atom,
    /// With its quotation marks.
    Quoted,
    /// An encoded word (RFC 2047), which is no part of an address.
    Encoded,
    Dot,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Words of the mailbox that is being read.
    words: Vec<Word>,
    /// The content of the last comment of the mailbox that is being read.
    comment: Option<Range<usize>>,
}

impl<'a> Reader<'a> {
    /// `address-list`, or the members of a group up to its semicolon. Empty members are an obsolete form.
    fn list<E>(
        &mut self,
        in_group: bool,
        found: &mut impl FnMut(Written<'a>) -> Result<(), E>,
    ) -> Result<Parsed<()>, E> {
        loop {
            self.comment = None;
            let member = match self.cfws().map(|()| self.peek()) {
                Err(Malformed) => return Ok(Err(Malformed)),
                Ok(member) => member,
            };
            match member {
                None => return Ok(if in_group { Err(Malformed) } else { Ok(()) }),
                Some(b';') if in_group => {
                    self.at += 1;
                    return Ok(self.cfws());
                }
                Some(b',') => {
                    self.at += 1;
                    continue;
                }
                Some(_) => {}
            }
            match self.address(in_group) {
                Ok(Some(written)) => found(written)?,
                Ok(None) => {
                    if let Err(malformed) = self.list(true, found)? {
                        return Ok(Err(malformed));
                    }
                }
                Err(malformed) => return Ok(Err(malformed)),
            }
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b';') if in_group => {}
                None if !in_group => return Ok(Ok(())),
                _ => return Ok(Err(Malformed)),
            }
        }
    }

    /// A mailbox with the blanks behind it, or the name of a group with its colon: `None`.
    fn address(&mut self, in_group: bool) -> Parsed<Option<Written<'a>>> {
        self.phrase()?;
        match self.peek() {
            Some(b'@') => {
                let spec = self.behind_local()?;
                Ok(Some(Written { name: self.comment(), spec }))
            }
            Some(b'<') => {
                let name = self.words.first().map(|first| self.text[first.at.start..self.at].trim_matches(' '));
                self.at += 1;
                let spec = self.angle()?;
                Ok(Some(Written { name: name.unwrap_or_else(|| self.comment()), spec }))
            }
            Some(b':') if !in_group && !self.words.is_empty() => {
                self.at += 1;
                Ok(None)
            }
            _ => Err(Malformed),
        }
    }

    /// Words, dots, comments and blanks, as far as they go.
    fn phrase(&mut self) -> Parsed<()> {
        self.words.clear();
        loop {
            self.cfws()?;
            let start = self.at;
            let kind = match self.peek() {
                Some(b'"') => {
                    self.at = quotation_end(self.text.as_bytes(), start).ok_or(Malformed)?;
                    Kind::Quoted
                }
                Some(b'.') => {
                    self.at += 1;
                    Kind::Dot
                }
                Some(byte) if is_atext(byte) => self.atom()?,
                _ => return Ok(()),
            };
            self.words.push(Word { kind, at: start..self.at });
        }
    }

    /// An atom without the blanks around it, or an encoded word.
    fn atom(&mut self) -> Parsed<Kind> {
        if begins_encoded_word(&self.text[self.at..]) {
            self.at = encoded_word_end(self.text, self.at).ok_or(Malformed)?;
            return Ok(Kind::Encoded);
        }
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().position(|byte| !is_atext(*byte)).unwrap_or(rest.len());
        Ok(Kind::Atom)
    }

    /// `<` is behind us: the obsolete route, the address, `>` and what follows it.
    fn angle(&mut self) -> Parsed<Spec<'a>> {
        self.cfws()?;
        if matches!(self.peek(), Some(b'@' | b',')) {
            self.route()?;
        }
        let spec = self.addr_spec()?;
        if self.peek() != Some(b'>') {
            return Err(Malformed);
        }
        self.at += 1;
        self.cfws()?;
        Ok(spec)
    }

    /// `@a.example,@b.example:` (RFC 5322 §4.4), which receivers ignore.
    fn route(&mut self) -> Parsed<()> {
        loop {
            self.cfws()?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'@') => {
                    self.at += 1;
                    self.domain()?;
                }
                Some(b':') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(Malformed),
            }
        }
    }

    fn addr_spec(&mut self) -> Parsed<Spec<'a>> {
        self.phrase()?;
        if self.peek() == Some(b'@') { self.behind_local() } else { Err(Malformed) }
    }

    /// The local part is in `words`, and `@` is next.
    fn behind_local(&mut self) -> Parsed<Spec<'a>> {
        let local = self.local_part()?;
        self.at += 1;
        Ok(Spec { local, domain: self.domain()? })
    }

    /// The local part that `words` are: words with a dot between each two.
    fn local_part(&self) -> Parsed<Cow<'a, str>> {
        let words = &self.words;
        let kind = |word: &Word| match word.kind {
            Kind::Dot => Some(true),
            Kind::Atom | Kind::Quoted => Some(false),
            Kind::Encoded => None,
        };
        let alternate = words.iter().enumerate().all(|(at, word)| kind(word) == Some(at % 2 == 1));
        let Some(last) = words.last() else { return Err(Malformed) };
        if !alternate || last.kind == Kind::Dot {
            return Err(Malformed);
        }
        if words.iter().all(|word| word.kind != Kind::Quoted) {
            return Ok(self.joined(words));
        }
        let mut plain = String::new();
        for Word { kind, at } in words {
            match kind {
                Kind::Quoted => plain.push_str(&words::without_backslashes(&self.text[at.start + 1..at.end - 1])),
                _ => plain.push_str(&self.text[at.clone()]),
            }
        }
        Ok(quoted_where_needed(plain).into())
    }

    /// A domain and the blanks behind it.
    fn domain(&mut self) -> Parsed<Cow<'a, str>> {
        self.cfws()?;
        let start = self.at;
        if self.peek() == Some(b'[') {
            let end = self.text[start..].find([']', '\\']).map(|end| start + end).ok_or(Malformed)?;
            self.at = end + 1;
            let literal = &self.text[start..self.at];
            self.cfws()?;
            return if literal.ends_with(']') { Ok(literal.into()) } else { Err(Malformed) };
        }
        let mut labels: Vec<Word> = Vec::new();
        loop {
            self.cfws()?;
            let start = self.at;
            if !self.peek().is_some_and(is_atext) || self.atom()? == Kind::Encoded {
                return Err(Malformed);
            }
            labels.push(Word { kind: Kind::Atom, at: start..self.at });
            self.cfws()?;
            if self.peek() != Some(b'.') {
                return Ok(self.joined(&labels));
            }
            labels.push(Word { kind: Kind::Dot, at: self.at..self.at + 1 });
            self.at += 1;
        }
    }

    /// The words behind each other, without the blanks and comments between them. `words` is not empty.
    fn joined(&self, words: &[Word]) -> Cow<'a, str> {
        let whole = words[0].at.start..words[words.len() - 1].at.end;
        let length: usize = words.iter().map(|word| word.at.len()).sum();
        match whole.len() == length {
            true => self.text[whole].into(),
            false => words.iter().map(|word| &self.text[word.at.clone()]).collect::<String>().into(),
        }
    }

    fn comment(&self) -> &'a str {
        self.comment.clone().map_or("", |comment| &self.text[comment])
    }

    /// Blanks and comments (RFC 5322 §3.2.2).
    fn cfws(&mut self) -> Parsed<()> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t') => self.at += 1,
                Some(b'(') => {
                    let end = comment_end(self.text.as_bytes(), self.at).ok_or(Malformed)?;
                    self.comment = Some(self.at + 1..end - 1);
                    self.at = end;
                }
                _ => return Ok(()),
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

/// The content of a local part as RFC 5321 §4.1.2 wants it: in quotation marks only where it is no dot-atom.
fn quoted_where_needed(plain: String) -> String {
    let atoms = plain.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext));
    if atoms {
        return plain;
    }
    let mut quoted = String::with_capacity(plain.len() + 2);
    quoted.push('"');
    for c in plain.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// RFC 5322 §3.2.3, with the letters of RFC 6532 §3.2.
pub fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || !byte.is_ascii()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'/' | b'=' | b'?' | b'^'..=b'`' | b'{'..=b'~')
}

/// Returns the offset behind the quotation (RFC 5322 §3.2.4) whose mark is at `open`; `None` if it does not close.
pub fn quotation_end(bytes: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    while *bytes.get(at)? != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some(at + 1)
}

/// Returns the offset behind the comment (RFC 5322 §3.2.2) that begins at `open`, nested ones included; `None` if it
/// does not close.
pub fn comment_end(bytes: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = open;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 1,
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Returns the offset behind the encoded word (RFC 2047 §2) at `start`; `None` if a letter or digit follows its `?=`.
/// Such a word is none by RFC 2047 §5, and its author may have meant the `?=` as text: [`loose_word_end`].
pub fn encoded_word_end(text: &str, start: usize) -> Option<usize> {
    let rest = text.get(start..)?;
    let content = content_of_word(rest)?;
    let end = content.find(['?', ' ', '\t'])?;
    let behind = content[end..].strip_prefix("?=")?;
    let is_end = behind.bytes().next().is_none_or(|byte| byte == b'=' || !is_atext(byte));
    is_end.then(|| text.len() - behind.len())
}

/// As [`encoded_word_end`] for words as programs write them that do not know the rules: with blanks, commas and
/// question marks inside. A `?=` with text behind it is no end, since such programs write `=3D` for an `=` of the text.
/// A word ends before the next one begins.
pub fn loose_word_end(text: &str, start: usize) -> Option<usize> {
    let content = content_of_word(text.get(start..)?)?;
    let offset = text.len() - content.len();
    let bytes = content.as_bytes();
    let ends = |at: usize| matches!(bytes.get(at), None | Some(b' ' | b'\t' | b'<' | b',' | b';' | b'"' | b')' | b'='));
    for (at, pair) in bytes.windows(2).enumerate() {
        match pair {
            b"?=" if ends(at + 2) => return Some(offset + at + 2),
            b"=?" if begins_encoded_word(&content[at..]) => return None,
            _ => {}
        }
    }
    None
}

/// Returns true if the text begins as an encoded word does, ended or not.
pub fn begins_encoded_word(text: &str) -> bool {
    content_of_word(text).is_some()
}

/// Behind `=?charset?q?`.
fn content_of_word(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("=?")?;
    let charset = rest.find(['?', ' ', '\t', '@', ',']).filter(|end| *end > 0)?;
    let mut rest = rest[charset..].strip_prefix('?')?.chars();
    matches!(rest.next()?, 'q' | 'Q' | 'b' | 'B').then_some(())?;
    rest.as_str().strip_prefix('?')
}
