//! Address lists as people and programs write them.
//!
//! A list that is valid is read by its grammar. Any other is read with patience: quotation marks stand in the middle of
//! names, commas outside of quotations, semicolons between entries. The text before `<…>` is then a name, and an
//! address outside of a quotation, a comment and an encoded word is an entry: sent to where it stands alone, invalid
//! where it does not.

use super::repairs::for_people;
use std::collections::HashMap;
use std::ops::Range;

use lettre::message::Mailbox;
use memchr::{memchr2, memrchr};

use super::address::{self, Why, is_invisible};
use super::address_grammar::{self as grammar, Written};
use super::words;
use crate::mail::InvalidRecipient;

/// One entry of an address list: a mailbox, or what was meant to be one.
pub type Entry = Result<Mailbox, InvalidRecipient>;

/// The most mailboxes of one row. Ten thousand members fit into it ten times.
pub const MOST_RECIPIENTS: usize = 100_000;

/// The most entries of one row that are no address. Each is kept with its reason, for a person to read.
pub const MOST_INVALID: usize = 10_000;

/// A list has more than [`MOST_RECIPIENTS`] mailboxes or [`MOST_INVALID`] invalid entries.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

/// The entries of a list in their order.
#[derive(Debug, Default)]
pub struct List {
    pub entries: Vec<Entry>,
    /// An invisible character that was taken off an end of an address.
    pub stripped: Option<char>,
    invalid: usize,
}

/// Reads a list in time that is linear in its length. `text` is unfolded and free of controls. Groups are flattened.
pub fn list(text: &str) -> Result<List, TooMany> {
    let mut list = List::default();
    if grammar::list(text, &mut |written| list.written(written))?.is_err() {
        list = List::default();
        Patient::new(text, &mut list).read()?;
    }
    Ok(list)
}

/// Returns the mailboxes of a list that holds nothing else and needs no SMTPUTF8; `None` for any other list.
pub fn plain_mailboxes(text: &str) -> Option<Vec<Mailbox>> {
    let plain = |entry: Entry| entry.ok().filter(|mailbox| mailbox.email.user().is_ascii());
    let mailboxes: Vec<Mailbox> = list(text).ok()?.entries.into_iter().map(plain).collect::<Option<_>>()?;
    (!mailboxes.is_empty()).then_some(mailboxes)
}

impl List {
    fn written(&mut self, Written { name, spec }: Written<'_>) -> Result<(), TooMany> {
        match address::check(&spec) {
            Ok((address, stripped)) => {
                self.stripped = self.stripped.or(stripped);
                self.push(Ok(Mailbox::new(name_of(name), address)))
            }
            Err(why) => self.invalid(&[&spec.local, "@", &spec.domain].concat(), &why),
        }
    }

    /// An entry without brackets: an address, perhaps with its owner's name in a comment, or behind the name of a group.
    fn bare(&mut self, text: &str) -> Result<(), TooMany> {
        let text = text.trim_matches(' ');
        let (text, why) = match self.address(text)? {
            None => return Ok(()),
            Some(why) => match behind_group_name(text) {
                None => (text, why),
                Some(behind) => match self.address(behind)? {
                    None => return Ok(()),
                    Some(why) => (behind, why),
                },
            },
        };
        self.invalid(text, &why)
    }

    /// Takes a text that is one address, or nothing that is seen. Gives the reason why it is neither.
    fn address(&mut self, text: &str) -> Result<Option<Why>, TooMany> {
        if text.chars().all(|c| c == ' ' || is_invisible(c)) {
            return Ok(None);
        }
        if let Ok(written) = grammar::mailbox(text) {
            return self.written(written).map(|()| None);
        }
        match address::parse_noting(text) {
            Ok((address, stripped)) => {
                self.stripped = self.stripped.or(stripped);
                self.push(Ok(Mailbox::new(None, address))).map(|()| None)
            }
            Err(why) => Ok(Some(why)),
        }
    }

    fn invalid(&mut self, written: &str, why: &str) -> Result<(), TooMany> {
        self.invalid += 1;
        if self.invalid > MOST_INVALID {
            return Err(TooMany);
        }
        let written = for_people(&words::decode(written));
        self.push(Err(InvalidRecipient { written, why: why.to_owned() }))
    }

    fn push(&mut self, entry: Entry) -> Result<(), TooMany> {
        self.entries.push(entry);
        if self.entries.len() > MOST_RECIPIENTS + MOST_INVALID { Err(TooMany) } else { Ok(()) }
    }
}

/// The text behind `phrase:`, which is the name of a group or a label. An address is no label, and a URL has none.
fn behind_group_name(text: &str) -> Option<&str> {
    let (name, rest) = text.split_once(':')?;
    let is_label = !name.contains(['@', '<', '>', '"', '(']) && !rest.starts_with("//");
    is_label.then(|| rest.trim_matches(' '))
}

/// A quotation or an encoded word that holds an address and nothing else. No recipient is taken out of it, but it is no
/// beginning of the next entry's name either: it was meant as an entry of its own.
fn hides_address(text: &str) -> bool {
    let may_hide = text.starts_with('"') && text.contains('@') || grammar::begins_encoded_word(text);
    may_hide && name_of(text).is_some_and(|name| address::parse(&name).is_ok())
}

/// A stretch between two separators.
#[derive(Debug, Default)]
struct Segment {
    start: usize,
    /// The `<…>` in it, brackets included.
    angles: Vec<Range<usize>>,
    /// An `@` stands outside of quotations, comments, encoded words and brackets.
    plain_at: bool,
}

/// The reader of lists that are not valid.
struct Patient<'a, 'b> {
    text: &'a str,
    list: &'b mut List,
    /// Each `(` that a `)` closes, with the offset behind that.
    comments: HashMap<usize, usize>,
    /// Offset of the last `;`: only a list with one further on has groups.
    last_semicolon: usize,
    /// Segments without an address, which are the beginning of a name if one with brackets follows: `Moser, Max <a@x>`.
    pending: Vec<Range<usize>>,
}

impl<'a, 'b> Patient<'a, 'b> {
    fn new(text: &'a str, list: &'b mut List) -> Self {
        let last_semicolon = memrchr(b';', text.as_bytes()).unwrap_or(0);
        Self { text, list, comments: comments(text.as_bytes()), last_semicolon, pending: Vec::new() }
    }

    fn read(mut self) -> Result<(), TooMany> {
        let bytes = self.text.as_bytes();
        let mut segment = Segment::default();
        let mut at = 0;
        while at < bytes.len() {
            if let Some(end) = self.protected_end(at) {
                at = end;
                continue;
            }
            match bytes[at] {
                b'<' => {
                    if let Some(end) = angle_end(bytes, at) {
                        segment.angles.push(at..end);
                        at = end;
                        continue;
                    }
                }
                b',' | b';' => {
                    self.finish(segment, at)?;
                    segment = Segment { start: at + 1, ..Segment::default() };
                }
                b'@' => segment.plain_at = true,
                _ => {}
            }
            at += 1;
        }
        self.finish(segment, bytes.len())?;
        self.flush()
    }

    /// The offset behind the quotation, comment or encoded word that begins here, if one does.
    fn protected_end(&self, at: usize) -> Option<usize> {
        match self.text.as_bytes()[at] {
            b'"' => fair_quotation_end(self.text.as_bytes(), at),
            b'(' => self.comments.get(&at).copied(),
            b'=' => grammar::loose_word_end(self.text, at),
            _ => None,
        }
    }

    /// The segment that ends at `end`.
    fn finish(&mut self, segment: Segment, end: usize) -> Result<(), TooMany> {
        if !segment.angles.is_empty() {
            return self.bracketed(&segment, end);
        }
        let text = self.text[segment.start..end].trim_matches(' ');
        if segment.plain_at || hides_address(text) {
            self.flush()?;
            return self.list.bare(text);
        }
        if !text.is_empty() {
            self.pending.push(segment.start..end);
        }
        Ok(())
    }

    /// Takes the pending segments as entries of their own: no name follows.
    fn flush(&mut self) -> Result<(), TooMany> {
        std::mem::take(&mut self.pending).into_iter().try_for_each(|range| self.list.bare(&self.text[range]))
    }

    /// A segment with `<…>` in it. The last of these is its address; those before it lack their comma.
    fn bracketed(&mut self, segment: &Segment, end: usize) -> Result<(), TooMany> {
        let mut start = self.pending.first().map_or(segment.start, |first| first.start);
        self.pending.clear();
        for (at, angle) in segment.angles.iter().enumerate() {
            let next = segment.angles.get(at + 1).map(|next| next.start);
            let until = next.unwrap_or(end);
            let behind = self.text[angle.end..until].trim_matches(' ');
            let is_noise = self.is_noise(behind);
            let inner = self.text[angle.start + 1..angle.end - 1].trim_matches(' ');
            if next.is_some() && !inner.contains('@') {
                // A part of the name, as in `Max <Moritz> Müller <a@x>`.
                continue;
            }
            let name = self.text[start..angle.start].trim_matches([' ', ',', ';']);
            if next.is_some() && !is_noise {
                // It stays a part of the name too.
                self.list.invalid(&self.text[angle.clone()], "no comma follows its bracket")?;
                continue;
            }
            if !is_noise && behind.contains('>') {
                self.list.invalid(&self.text[angle.start..until], "it has a bracket too many")?;
                continue;
            }
            self.entry(name, inner, segment.plain_at)?;
            start = angle.end;
            if next.is_none() && !is_noise && behind.contains('@') {
                // The comma between two entries is missing.
                self.list.bare(behind)?;
            }
        }
        Ok(())
    }

    /// Nothing but blanks, comments and characters that are not seen.
    fn is_noise(&self, text: &str) -> bool {
        let mut rest = text;
        while let Some(end) = rest.starts_with('(').then(|| grammar::comment_end(rest.as_bytes(), 0)).flatten() {
            rest = rest[end..].trim_start_matches(' ');
        }
        rest.chars().all(|c| c == ' ' || is_invisible(c))
    }

    /// `name <inner>`. Where the name holds another address, that one lacks its comma.
    fn entry(&mut self, name: &str, inner: &str, plain_at: bool) -> Result<(), TooMany> {
        let place = name.as_ptr() as usize - self.text.as_ptr() as usize;
        let name = match behind_group_name(name).filter(|_| place < self.last_semicolon) {
            Some(behind) => behind,
            None => name,
        };
        let address = address::parse_noting(inner);
        if plain_at {
            let own = address.as_ref().ok().map(|(address, _)| address.to_string());
            self.addresses_in_name(name, own.as_deref())?;
        }
        match address {
            Ok((address, stripped)) => {
                self.list.stripped = self.list.stripped.or(stripped);
                self.list.push(Ok(Mailbox::new(name_of(name), address)))
            }
            Err(why) => self.list.invalid(&format!("{name} <{inner}>"), &why),
        }
    }

    /// Addresses among the words of a name, but for the mailbox's own.
    fn addresses_in_name(&mut self, name: &str, own: Option<&str>) -> Result<(), TooMany> {
        let mut plain = String::with_capacity(name.len());
        let offset = name.as_ptr() as usize - self.text.as_ptr() as usize;
        let mut at = 0;
        for (index, c) in name.char_indices() {
            if index < at {
                continue;
            }
            match self.protected_end(offset + index) {
                Some(end) => {
                    plain.push(' ');
                    at = end - offset;
                }
                None => plain.push(c),
            }
        }
        for word in plain.split([' ', ',', ';']).filter(|word| word.contains('@')) {
            if address::parse(word).is_ok_and(|address| Some(address.to_string().as_str()) != own) {
                self.list.invalid(word, "no comma follows it")?;
            }
        }
        Ok(())
    }
}

/// Returns each `(` that is closed, with the offset behind its `)`.
fn comments(bytes: &[u8]) -> HashMap<usize, usize> {
    let mut closed = HashMap::new();
    let mut open = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'(' => open.push(at),
            b')' => drop(open.pop().map(|start| closed.insert(start, at + 1))),
            _ => {}
        }
        at += 1;
    }
    closed
}

/// Returns the offset behind the quotation that begins at `open`; `None` if either mark touches a word, and so is a
/// letter like any other: `Max 27" <a@x>`.
fn fair_quotation_end(bytes: &[u8], open: usize) -> Option<usize> {
    let before = open.checked_sub(1).map(|at| bytes[at]);
    if !matches!(before, None | Some(b' ' | b',' | b';' | b':' | b'<' | b'(')) {
        return None;
    }
    let end = grammar::quotation_end(bytes, open)?;
    matches!(bytes.get(end), None | Some(b' ' | b',' | b';' | b':' | b'<' | b'@' | b')')).then_some(end)
}

/// Returns the offset behind the `>` of the bracket at `open`; `None` if another bracket opens before it.
fn angle_end(bytes: &[u8], open: usize) -> Option<usize> {
    let close = open + 1 + memchr2(b'<', b'>', &bytes[open + 1..])?;
    (bytes[close] == b'>').then_some(close + 1)
}

/// The name that a person would read, if any: the outer quotes off, backslashes undone, encoded words decoded.
fn name_of(written: &str) -> Option<String> {
    let written = words::one_line(written.trim_matches(' ').into());
    let inner = match written.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(if rest.is_empty() { rest } else { &written }),
        None => &written,
    };
    let inner = words::without_backslashes(inner);
    let name = words::one_line(words::decode(&inner));
    (!name.is_empty()).then(|| name.into_owned())
}
