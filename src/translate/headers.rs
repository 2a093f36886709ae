//! A stored header block, taken apart without believing anything about it.

use std::borrow::Cow;

use super::lines::{is_blank, lines, unfold};
use super::{Repairs, words};
use crate::decode;
use crate::mail::RepairCode;

/// A header: its name as written, its value unfolded, as text, without blanks at its ends. Controls have become blanks;
/// encoded words are still encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: Cow<'a, str>,
    pub value: Cow<'a, str>,
}

impl Field<'_> {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    pub fn is_one_of(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.is(name))
    }

    fn into_owned(self) -> Field<'static> {
        Field { name: self.name.into_owned().into(), value: self.value.into_owned().into() }
    }
}

/// The headers of a block in their order. Blank lines before the first are passed over; what follows an inner blank line
/// is no header, nor is a line that has no colon.
pub fn parse<'a>(block: &'a [u8], repairs: &mut Repairs) -> Vec<Field<'a>> {
    let mut rest = lines(block).skip_while(|line| is_blank(line.content));
    let unfolded = unfold(rest.by_ref().take_while(|line| !is_blank(line.content)));
    if rest.any(|line| !is_blank(line.content)) {
        repairs.add(
            RepairCode::TextDropped,
            "mheaders",
            "mheaders held a blank line and more behind it: what follows the blank line was left out",
        );
    }
    let mut fields = Vec::with_capacity(unfolded.len());
    for line in unfolded {
        match split_unfolded(&line) {
            Some(field) => {
                if !line.is_ascii() {
                    let read = if std::str::from_utf8(&line).is_ok() { "UTF-8" } else { "Windows-1252" };
                    let name = super::for_people(&field.name);
                    repairs.add(
                        RepairCode::HeaderEncoded,
                        &field.name,
                        format!("{name} held raw 8-bit text: it was read as {read} and encoded"),
                    );
                }
                fields.push(field);
            }
            None => repairs.add(
                RepairCode::HeaderDropped,
                "mheaders",
                format!(
                    "mheaders held a line that is no header: `{}` was left out",
                    super::for_people(&decode::utf8_or_windows_1252(&line))
                ),
            ),
        }
    }
    fields
}

/// Takes a header apart at its colon (RFC 5322 §2.2; blanks before the colon are the obsolete form of §4.5.3).
pub fn split(line: &[u8]) -> Option<Field<'_>> {
    let (name, value) = line.split_at(memchr::memchr(b':', line)?);
    let name = std::str::from_utf8(name.trim_ascii_end()).ok()?;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let value = match words::without_controls(decode::utf8_or_windows_1252(&value[1..])) {
        Cow::Borrowed(value) => value.trim_matches(' ').into(),
        Cow::Owned(value) => value.trim_matches(' ').to_owned().into(),
    };
    Some(Field { name: name.into(), value })
}

/// The same for lines that [`unfold`] has put together.
pub fn split_unfolded<'a>(line: &Cow<'a, [u8]>) -> Option<Field<'a>> {
    match line {
        Cow::Borrowed(line) => split(line),
        Cow::Owned(line) => split(line).map(Field::into_owned),
    }
}
