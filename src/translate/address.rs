//! One address: checked for use in an envelope (RFC 5321 §4.1.2), and written into a header.

use std::borrow::Cow;

use lettre::message::Mailbox;

use super::address_grammar::{self as grammar, Spec};
use super::words::{self, Line};
use crate::mail::Address;
use crate::visible::is_hidden;

/// The reason why a text is no address, in words for a person.
pub type Why = Cow<'static, str>;

/// Longest address, in bytes: a RCPT command has 512 (RFC 5321 §4.5.3.1.4), 12 of them around the address. The 64 bytes of
/// §4.5.3.1.1 for a local part are for the smarthost to insist on; web services use longer ones.
const LONGEST: usize = 500;

/// Reads one address, and puts its domain into punycode. Invisible characters and blanks around it do not count.
pub fn parse(text: &str) -> Result<Address, Why> {
    parse_noting(text).map(|(address, _)| address)
}

/// As [`parse`], with the invisible character that was taken off, if any.
pub fn parse_noting(text: &str) -> Result<(Address, Option<char>), Why> {
    let trimmed = text.trim_matches(|c| c == ' ' || is_invisible(c));
    let stripped = text.chars().find(|c| is_invisible(*c)).filter(|_| trimmed.len() < text.trim_matches(' ').len());
    match grammar::spec(trimmed) {
        Ok(spec) => check(&spec).map(|(address, within)| (address, stripped.or(within))),
        Err(_) => Err(explain(trimmed)),
    }
}

/// Checks what the grammar found. Stricter than the grammar where mail between hosts is: a domain has a dot and is no
/// address literal. Gives the invisible character too that was taken off an end of the address, if any.
pub fn check(spec: &Spec<'_>) -> Result<(Address, Option<char>), Why> {
    let (local, first) = strip(&spec.local, str::strip_prefix, |text| text.chars().next());
    let (domain, last) = strip(&spec.domain, str::strip_suffix, |text| text.chars().next_back());
    if let Some(c) = local.chars().chain(domain.chars()).find(|c| is_invisible(*c)) {
        return Err(holds_invisible(c));
    }
    if local.contains(['<', '>']) {
        return Err("its local part has a bracket, which careless readers take for the end of the address".into());
    }
    let domain = ascii_domain(domain)?;
    if local.is_empty() || matches!(local, r#""""#) {
        return Err("its local part is empty".into());
    }
    if local.len() + domain.len() >= LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes, and SMTP cannot carry it").into());
    }
    // lettre's own check refuses local parts of more than 64 bytes; the grammar has looked at every character.
    Ok((Address::new_dangerous(local, &domain), first.or(last)))
}

/// The text without the invisible characters at one of its ends, and one of these.
fn strip<'a>(
    text: &'a str,
    strip: impl Fn(&'a str, char) -> Option<&'a str>,
    outermost: impl Fn(&str) -> Option<char>,
) -> (&'a str, Option<char>) {
    let (mut rest, mut stripped) = (text, None);
    while let Some(c) = outermost(rest).filter(|c| is_invisible(*c)) {
        let Some(shorter) = strip(rest, c) else { break };
        (rest, stripped) = (shorter, Some(c));
    }
    (rest, stripped)
}

/// Returns true for characters outside of ASCII that a person does not see, blanks of any width included. They come into
/// addresses with text that was copied from a page.
pub fn is_invisible(c: char) -> bool {
    !c.is_ascii() && (c.is_whitespace() || is_hidden(c))
}

fn holds_invisible(c: char) -> Why {
    format!("it holds the invisible character U+{:04X}", u32::from(c)).into()
}

/// Says what is wrong with a text that the grammar does not take for an address.
fn explain(text: &str) -> Why {
    if grammar::begins_encoded_word(text) {
        return "an encoded word is no part of an address".into();
    }
    let Some((local, domain)) = text.rsplit_once('@') else { return "it has no @".into() };
    if let Some(c) = text.chars().find(|c| is_invisible(*c)) {
        return holds_invisible(c);
    }
    let why = if local.is_empty() || domain.is_empty() {
        "nothing stands on one side of the @"
    } else if local.contains('@') && !local.starts_with('"') {
        "it has more than one @"
    } else if local.starts_with('.') || local.ends_with('.') || words::has_pair(local, b"..") {
        "its local part has a dot at an end, or two in a row"
    } else if !local.bytes().all(|byte| byte == b'.' || grammar::is_atext(byte)) {
        "its local part has a character that must not stand there"
    } else {
        return ascii_domain(domain).err().unwrap_or("it is no address by RFC 5322".into());
    };
    why.into()
}

fn ascii_domain(domain: &str) -> Result<Cow<'_, str>, Why> {
    if domain.starts_with('[') {
        return Err("its domain is the number of a host, which a smarthost does not relay to".into());
    }
    let ascii = match domain.is_ascii() {
        true => domain.into(),
        false => {
            Cow::Owned(idna::domain_to_ascii(domain).map_err(|_| Why::from("its domain cannot be put into punycode"))?)
        }
    };
    if ascii.ends_with('.') {
        return Err("its domain ends in a dot".into());
    }
    let (_, top) = ascii.rsplit_once('.').ok_or(Why::from("its domain has no dot"))?;
    let label_is_good = |label: &[u8]| {
        let ends = label.first().zip(label.last());
        label.len() <= 63
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && ends.is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
    };
    if ascii.len() > 253 || !ascii.as_bytes().split(|byte| *byte == b'.').all(label_is_good) {
        return Err("its domain is none".into());
    }
    if top.len() < 2 || !top.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err("its domain ends in nothing that is a top-level domain".into());
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
    // RFC 2047 §5 (3): what an encoded word beside an address may be made of.
    let travels = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!*+-/=?_".contains(&byte));
    if name.starts_with("=?") && name.split(' ').all(|word| words::is_foreign_word(word) && travels(word)) {
        return name.split(' ').for_each(|word| line.word(word));
    }
    let safe = |c: char, others: &str| c.is_ascii_alphanumeric() || others.contains(c);
    if name.len() > 60 || !name.chars().all(|c| safe(c, " .,'&/+!_-")) {
        line.encoded(name);
    } else if name.chars().all(|c| safe(c, " '_-")) {
        name.split(' ').for_each(|word| line.word(word));
    } else {
        line.joined(&["\"", name, "\""]);
    }
}
