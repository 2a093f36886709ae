//! Address lists as people and programs write them, to typed mailboxes and back.
//!
//! RFC 5322 §3.4 is where this starts, not where it ends: quotes stand in the middle of names, commas outside of quotes.
//! What stands before `<…>` is a name, whatever it holds, and only whole addresses are taken out of it.

use std::borrow::Cow;

use lettre::message::Mailbox;
use memchr::{memchr2, memchr3, memrchr};

use super::words::{self, Line};
use crate::mail::{Address, InvalidRecipient};

/// One entry of an address list: a mailbox, or what was meant to be one.
pub type Entry = Result<Mailbox, InvalidRecipient>;

/// The entries of a list in their order. `text` is unfolded and free of controls. Groups are flattened.
pub fn list(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let last_semicolon = memrchr(b';', text.as_bytes()).unwrap_or(0);
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', ',', ';']);
        if rest.is_empty() {
            return entries;
        }
        let group_ends = text.len() - rest.len() < last_semicolon;
        if group_ends && let Some(members) = behind_group_name(rest) {
            rest = members;
            continue;
        }
        let (trusted, angle) = next_angle(rest);
        let Some(angle) = angle else {
            bare_entries(rest, trusted, group_ends, &mut entries);
            return entries;
        };
        let before = addresses_before_name(&rest[..angle.open], trusted);
        bare_entries(&rest[..before], trusted, group_ends, &mut entries);
        let name = rest[before..angle.open].trim_start_matches([' ', ',', ';']);
        let name = if group_ends { behind_group_name(name).unwrap_or(name) } else { name };
        entries.push(match parse(rest[angle.open + 1..angle.close].trim()) {
            Ok(address) => Ok(Mailbox::new(name_of(name), address)),
            Err(why) => Err(invalid(&format!("{name}{}", &rest[angle.open..=angle.close]), why)),
        });
        rest = &rest[angle.next..];
    }
}

/// The entries of a list in which there is no `<…>` that counts.
fn bare_entries(text: &str, trust_quotes: bool, group_ends: bool, entries: &mut Vec<Entry>) {
    let mut start = 0;
    for end in separators(text, trust_quotes).chain([text.len()]) {
        let entry = text[start..end].trim_start();
        entries.extend(bare(if group_ends { behind_group_name(entry).unwrap_or(entry) } else { entry }));
        start = (end + 1).min(text.len());
    }
}

fn invalid(written: &str, why: &str) -> InvalidRecipient {
    InvalidRecipient { written: super::for_people(&words::decode(written)), why: why.to_owned() }
}

/// Behind `phrase:` at the start, which begins a group (RFC 5322 §3.4) if a `;` ends it, and belongs to a name if none does.
fn behind_group_name(text: &str) -> Option<&str> {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            ':' => return Some(&text[at + 1..]),
            ',' | ';' | '<' | '>' | '@' => return None,
            _ => {}
        }
    }
    None
}

/// A `<…>` that ends an entry, as offsets: the brackets, and what follows its comment.
struct Angle {
    open: usize,
    close: usize,
    next: usize,
}

/// A comment that goes on for longer is none.
const LONGEST_COMMENT: usize = 1000;

/// The next `<…>` that a separator or the end follows, and whether quotation marks may be trusted on the way there. Where
/// they pair up badly they are letters like any other.
fn next_angle(text: &str) -> (bool, Option<Angle>) {
    match angle(text, true) {
        Ok(found) => (true, found),
        Err(Unpaired) => (false, angle(text, false).unwrap_or(None)),
    }
}

struct Unpaired;

fn angle(text: &str, trust_quotes: bool) -> Result<Option<Angle>, Unpaired> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = memchr2(b'"', b'<', &bytes[at..]) {
        at += found;
        match bytes[at] {
            b'"' if trust_quotes => at = closing_quote(bytes, at).ok_or(Unpaired)?,
            b'<' => {
                if let Some(found) = angle_at(text, at) {
                    return Ok(Some(found));
                }
            }
            _ => {}
        }
        at += 1;
    }
    Ok(None)
}

fn angle_at(text: &str, open: usize) -> Option<Angle> {
    let inner = &text[open + 1..];
    let close = open + 1 + inner.find(['<', '>']).filter(|at| inner[*at..].starts_with('>'))?;
    let mut behind = text[close + 1..].trim_start_matches(' ');
    if behind.starts_with('(') {
        let end = behind.bytes().take(LONGEST_COMMENT).position(|byte| byte == b')')?;
        behind = behind[end + 1..].trim_start_matches(' ');
    }
    let ends = behind.is_empty() || behind.starts_with([',', ';']);
    ends.then(|| Angle { open, close, next: text.len() - behind.len() })
}

/// Where the quotation that opens at `open` closes: `None` if it does not, or if either mark touches a word.
fn closing_quote(bytes: &[u8], open: usize) -> Option<usize> {
    let before = open.checked_sub(1).map(|at| bytes[at]);
    if !matches!(before, None | Some(b' ' | b',' | b';' | b':' | b'<' | b'(')) {
        return None;
    }
    let mut at = open + 1;
    while *bytes.get(at)? != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    let behind = bytes.get(at + 1);
    matches!(behind, None | Some(b' ' | b',' | b';' | b':' | b'<' | b'@' | b')')).then_some(at)
}

/// Offsets of the commas and semicolons, those within quotation marks left out if the marks can be trusted.
fn separators(text: &str, trust_quotes: bool) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(found) = memchr3(b'"', b',', b';', &bytes[at..]) {
            let here = at + found;
            at = here + 1;
            match bytes[here] {
                b'"' if trust_quotes => at = closing_quote(bytes, here).unwrap_or(here) + 1,
                b'"' => {}
                _ => return Some(here),
            }
        }
        None
    })
}

/// Where the name begins, if whole addresses stand before it: `a@x, b@y, Moser, Max <c@z>`.
fn addresses_before_name(text: &str, trust_quotes: bool) -> usize {
    let mut before = 0;
    let mut start = 0;
    for end in separators(text, trust_quotes) {
        let (entry, _) = without_comments(&text[start..end]);
        if looks_like_address(entry.trim()) || parse(entry.trim()).is_ok() {
            before = end;
        } else if !trust_quotes {
            break;
        }
        start = end + 1;
    }
    before
}

/// One word with an @ inside, which stands for itself even where it is no good address.
fn looks_like_address(text: &str) -> bool {
    let sides = text.split_once('@');
    sides.is_some_and(|(left, right)| !left.is_empty() && !right.is_empty())
        && !text.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>' | '(' | ')'))
}

/// An entry without brackets: an address, perhaps with its owner's name in a comment, as before RFC 822.
fn bare(text: &str) -> Option<Entry> {
    let (address, comment) = without_comments(text);
    let address = address.trim();
    if address.is_empty() {
        return None;
    }
    Some(match parse(address) {
        Ok(address) => Ok(Mailbox::new(name_of(&comment), address)),
        Err(why) => Err(invalid(text.trim(), why)),
    })
}

/// Text without its comments (RFC 5322 §3.2.2), and the first comment. A bracket that is not closed is no comment.
fn without_comments(text: &str) -> (Cow<'_, str>, String) {
    if !text.contains('(') {
        return (text.into(), String::new());
    }
    let (mut outside, mut comment) = (String::new(), String::new());
    let (mut depth, mut quoted) = (0_usize, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' if depth == 0 => quoted = !quoted,
            '(' if !quoted => {
                depth += 1;
                continue;
            }
            ')' if depth > 0 => {
                depth -= 1;
                continue;
            }
            '\\' if depth > 0 => {
                comment.extend(chars.next());
                continue;
            }
            _ => {}
        }
        if depth == 0 { outside.push(c) } else { comment.push(c) }
    }
    if depth > 0 { (text.into(), String::new()) } else { (outside.into(), comment) }
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

/// Checks one address (RFC 5321 §4.1.2) and puts its domain into punycode. Stricter than the grammar where mail between
/// hosts is: a domain has a dot and is no address literal. The error says in words what is wrong.
pub fn parse(text: &str) -> Result<Address, &'static str> {
    let (local, domain) = text.rsplit_once('@').ok_or("it has no @")?;
    if local.is_empty() || domain.is_empty() {
        return Err("nothing stands on one side of the @");
    }
    let quoted = local.len() > 1 && local.starts_with('"') && local.ends_with('"');
    if !quoted {
        if local.starts_with('.') || local.ends_with('.') || words::has_pair(local, b"..") {
            return Err("its local part has a dot at an end, or two in a row");
        }
        if local.contains('@') {
            return Err("it has more than one @");
        }
        if !local.chars().all(|c| c == '.' || is_atom_char(c)) {
            return Err("its local part has a character that must not stand there");
        }
    }
    if local.contains(['<', '>']) {
        return Err("its local part has a bracket, which careless readers take for the end of the address");
    }
    if local.len() > 64 {
        return Err("its local part is longer than 64 bytes");
    }
    let domain = ascii_domain(domain)?;
    Address::try_from([local, "@", &domain].concat()).map_err(|_| "it is no address by RFC 5321")
}

/// RFC 5322 §3.2.3, with the letters of RFC 6531.
fn is_atom_char(c: char) -> bool {
    let mark = matches!(c, '!' | '#'..='\'' | '*' | '+' | '-' | '/' | '=' | '?' | '^'..='`' | '{'..='~');
    mark || c.is_ascii_alphanumeric() || (!c.is_ascii() && !c.is_control() && !c.is_whitespace())
}

fn ascii_domain(domain: &str) -> Result<Cow<'_, str>, &'static str> {
    if domain.starts_with('[') {
        return Err("its domain is the number of a host, which a smarthost does not relay to");
    }
    let ascii = match domain.is_ascii() {
        true => domain.into(),
        false => Cow::Owned(idna::domain_to_ascii(domain).map_err(|_| "its domain cannot be put into punycode")?),
    };
    if ascii.ends_with('.') {
        return Err("its domain ends in a dot");
    }
    let (_, top) = ascii.rsplit_once('.').ok_or("its domain has no dot")?;
    let label_is_good = |label: &[u8]| {
        let ends = label.first().zip(label.last());
        label.len() <= 63
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && ends.is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
    };
    if ascii.len() > 253 || !ascii.as_bytes().split(|byte| *byte == b'.').all(label_is_good) {
        return Err("its domain is none");
    }
    if top.len() < 2 || !top.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err("its domain ends in nothing that is a top-level domain");
    }
    Ok(ascii)
}

/// Writes an address header, folded. Names go out as atoms, in quotes, or, where a naive reader could stumble over a
/// character, as encoded words. `mailboxes` must not be empty.
pub fn write(out: &mut String, header: &str, mailboxes: &[Mailbox]) {
    let mut line = Line::new(out, header);
    for (at, Mailbox { name, email }) in mailboxes.iter().enumerate() {
        let address: &str = email.as_ref();
        let comma = if at + 1 < mailboxes.len() { "," } else { "" };
        name.iter().for_each(|name| write_name(&mut line, name));
        if name.is_some() || address.starts_with('"') {
            line.joined(&["<", address, ">", comma]);
        } else {
            line.joined(&[address, comma]);
        }
    }
    line.end();
}

fn write_name(line: &mut Line<'_>, name: &str) {
    let safe = |c: char, others: &str| c.is_ascii_alphanumeric() || others.contains(c);
    if name.len() > 60 || !name.chars().all(|c| safe(c, " .,'&/+!_-")) {
        line.encoded(name);
    } else if name.chars().all(|c| safe(c, " '_-")) {
        name.split(' ').for_each(|word| line.word(word));
    } else {
        line.joined(&["\"", name, "\""]);
    }
}
