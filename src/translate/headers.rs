//! A stored header block, taken apart without believing anything about it.

use super::Mendings;
use super::lines::{is_blank, lines};
use crate::decode;

/// A header: its name as written, its value unfolded, as text, without blanks at its ends. Controls have become blanks;
/// encoded words are still encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: String,
}

impl Field {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The headers of a block in their order. Blank lines before the first are passed over; what follows an inner blank line
/// is no header, nor is a line that has no colon.
pub fn parse(block: &[u8], mendings: &mut Mendings) -> Vec<Field> {
    let mut unfolded: Vec<Vec<u8>> = Vec::new();
    let mut rest = lines(block).skip_while(|line| is_blank(line.content));
    for line in rest.by_ref() {
        if is_blank(line.content) {
            break;
        }
        match unfolded.last_mut() {
            Some(last) if matches!(line.content[0], b' ' | b'\t') => last.extend_from_slice(line.content),
            _ => unfolded.push(line.content.to_vec()),
        }
    }
    if rest.any(|line| !is_blank(line.content)) {
        mendings.add("mheaders held a blank line and more behind it: what follows the blank line was left out");
    }
    let mut fields = Vec::with_capacity(unfolded.len());
    for line in unfolded {
        match split(&line) {
            Some(field) => {
                if !line.is_ascii() {
                    let read = if std::str::from_utf8(&line).is_ok() { "UTF-8" } else { "Windows-1252" };
                    let name = super::for_people(&field.name);
                    mendings.add(format!("{name} held raw 8-bit text: it was read as {read} and encoded"));
                }
                fields.push(field);
            }
            None => mendings.add(format!(
                "mheaders held a line that is no header: `{}` was left out",
                super::for_people(&decode::utf8_or_windows_1252(&line))
            )),
        }
    }
    fields
}

/// Takes a header apart at its colon (RFC 5322 §2.2; blanks before the colon are the obsolete form of §4.5.3).
pub fn split(line: &[u8]) -> Option<Field> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = line[..colon].trim_ascii_end();
    if name.is_empty() || !name.iter().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let value = decode::utf8_or_windows_1252(&line[colon + 1..]);
    let value = value.replace(|c: char| c < ' ' || c == '\x7f', " ");
    Some(Field { name: String::from_utf8_lossy(name).into_owned(), value: value.trim_matches(' ').to_owned() })
}
