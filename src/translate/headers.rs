//! The reader of header blocks: of `mheaders`, and of the parts of a body (RFC 5322 §2.2, with the obsolete folds of §4.2).
//!
//! A block may come from anything that writes headers, so its line ends are of any kind, and nothing in it is dropped
//! silently: a line that is no header and could name a recipient sets the row aside, any other is a repair.

use std::borrow::Cow;

use memchr::memchr2;

use super::lines::is_blank;
use super::repairs::{Repairs, for_people};
use super::unreadable::Unreadable;
use super::words;
use crate::decode;
use crate::mail::RepairCode;
use crate::outcome::Reason;

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

/// A stored header block, taken apart.
#[derive(Debug)]
pub struct Block<'a> {
    /// The headers in their order.
    pub fields: Vec<Field<'a>>,
    /// The text behind the empty line that ends the block. It is no header, and empty for nearly every producer.
    pub behind: &'a [u8],
    /// The first line that is no header and was dropped, for people.
    pub dropped: Option<String>,
}

/// Headers whose value goes on in a line behind a comma, although that line lacks its blank.
const LISTS: [&str; 6] = ["To", "Cc", "Bcc", "From", "Reply-To", "Sender"];

/// Takes `mheaders` apart. Blank lines before the first header are passed over.
///
/// A line that is no header continues the one before where that ends in a comma or semicolon: the producer left out the
/// blank of a fold. Any other such line is dropped, or refused with [`Reason::HeaderInvalid`] if it has an `@`, since it
/// could name a recipient.
pub fn read<'a>(block: &'a [u8], repairs: &mut Repairs) -> Result<Block<'a>, Unreadable> {
    let block = block.strip_prefix("\u{feff}".as_bytes()).unwrap_or(block);
    let mut fields: Vec<Field<'_>> = Vec::new();
    let mut behind: &[u8] = b"";
    let mut dropped = None;
    for line in header_lines(block).skip_while(|line| is_blank(&line.unfolded)) {
        if line.is_end() {
            behind = &block[line.next..];
            break;
        }
        let at_start = fields.is_empty();
        let field = match &line.unfolded {
            Cow::Borrowed(text) if at_start => split(text.trim_ascii_start()),
            text => split_unfolded(text),
        };
        match field.filter(|field| !holds_list(&field.name)) {
            Some(field) => {
                note_raw_text(&field, &line.unfolded, repairs);
                fields.push(field);
            }
            None => {
                let line = stray_line(&line.unfolded, &mut fields, repairs)?;
                dropped = dropped.or(line);
            }
        }
    }
    let behind = if behind.iter().all(u8::is_ascii_whitespace) { b"" } else { behind };
    Ok(Block { fields, behind, dropped })
}

/// The name has a character of address lists, which no header's name has: the colon stands inside of a name or behind an
/// address, as in `"Bezirk: Wien" <b@example.org>`.
fn holds_list(name: &str) -> bool {
    name.contains(['"', '(', ')', ',', ';', '<', '>', '@'])
}

fn note_raw_text(field: &Field<'_>, line: &[u8], repairs: &mut Repairs) {
    if !line.is_ascii() {
        let read = if std::str::from_utf8(line).is_ok() { "UTF-8" } else { "Windows-1252" };
        let text = format!("{} held raw 8-bit text: it was read as {read} and encoded", for_people(&field.name));
        repairs.add(RepairCode::HeaderEncoded, &field.name, text);
    }
}

/// Deals with a line that is no header. Returns its text if it was dropped.
fn stray_line(line: &[u8], fields: &mut [Field<'_>], repairs: &mut Repairs) -> Result<Option<String>, Unreadable> {
    let text = words::without_controls(decode::utf8_or_windows_1252(line));
    let shown = for_people(&text);
    let goes_on =
        |field: &&mut Field<'_>| field.value.ends_with(';') || (field.value.ends_with(',') && field.is_one_of(&LISTS));
    if let Some(field) = fields.last_mut().filter(goes_on) {
        let text = text.trim_matches(' ').to_owned();
        field.value.to_mut().push(' ');
        field.value.to_mut().push_str(&text);
        let what = format!("{} went on in a line without a blank before it: it was put together", field.name);
        repairs.add(RepairCode::LineEnd, &field.name, what);
        return Ok(None);
    }
    // The separator of the mbox format is an address and a date, and no header (RFC 4155).
    let is_mbox_separator = line.starts_with(b"From ");
    if text.contains('@') && !is_mbox_separator {
        let detail = format!("mheaders: a line is no header and could name a recipient: `{shown}`");
        return Err(Unreadable::new(Reason::HeaderInvalid, detail));
    }
    let what = format!("mheaders held a line that is no header: `{shown}` was left out");
    repairs.add(RepairCode::HeaderDropped, "mheaders", what);
    Ok((!is_mbox_separator).then_some(shown))
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

/// The same for lines that [`header_lines`] has put together.
pub fn split_unfolded<'a>(line: &Cow<'a, [u8]>) -> Option<Field<'a>> {
    match line {
        Cow::Borrowed(line) => split(line),
        Cow::Owned(line) => split(line).map(Field::into_owned),
    }
}

/// One line of a block with its folds.
#[derive(Debug)]
pub struct HeaderLine<'a> {
    /// The line without its line ends; the blanks of a fold are in it.
    pub unfolded: Cow<'a, [u8]>,
    /// Offset of the line in the block.
    pub start: usize,
    /// Offset of its last line end.
    pub end: usize,
    /// Offset behind its last line end.
    pub next: usize,
}

impl HeaderLine<'_> {
    /// Returns true for the empty line that ends a block. A line of blanks is a fold (RFC 5322 §4.2).
    pub fn is_end(&self) -> bool {
        self.start == self.end
    }
}

/// Returns the unfolded lines of a block. The caller stops at the line that [ends](HeaderLine::is_end) it.
///
/// A line ends in CRLF, LF or CR CR LF; in LF CR where each LF of the block has its CR; and in a CR alone
/// where the block has no LF, since a CR would else let a value add a header.
pub fn header_lines(block: &[u8]) -> impl Iterator<Item = HeaderLine<'_>> {
    let followed = |at: usize| block.get(at + 1).is_none_or(|byte| *byte == b'\r');
    let ends = match memchr::memchr(b'\n', block) {
        None => Ends::Cr,
        Some(first) if followed(first) && memchr::memchr_iter(b'\n', block).all(followed) => Ends::LfCr,
        Some(_) => Ends::Lf,
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= block.len() {
            return None;
        }
        let (end, next) = line_end(block, at, ends);
        let mut line = HeaderLine { unfolded: block[at..end].into(), start: at, end, next };
        while !line.is_end() && matches!(block.get(line.next), Some(b' ' | b'\t')) {
            let (end, next) = line_end(block, line.next, ends);
            line.unfolded.to_mut().extend_from_slice(&block[line.next..end]);
            (line.end, line.next) = (end, next);
        }
        at = line.next;
        Some(line)
    })
}

/// The line ends of a block, beside CRLF and CR CR LF.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Lf,
    LfCr,
    Cr,
}

/// Returns the end of the line that begins at `start`, and the start of the next.
fn line_end(block: &[u8], start: usize, ends: Ends) -> (usize, usize) {
    let mut at = start;
    while let Some(found) = memchr2(b'\r', b'\n', &block[at..]) {
        let end = at + found;
        if block[end] == b'\n' {
            let joined = ends == Ends::LfCr && block.get(end + 1) == Some(&b'\r');
            return (end, end + 1 + usize::from(joined));
        }
        match &block[end..] {
            [b'\r', b'\n', ..] => return (end, end + 2),
            [b'\r', b'\r', b'\n', ..] => return (end, end + 3),
            _ if ends == Ends::Cr => return (end, end + 1),
            _ => at = end + 1,
        }
    }
    (block.len(), block.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(block: &str) -> Vec<String> {
        header_lines(block.as_bytes()).map(|line| String::from_utf8_lossy(&line.unfolded).into_owned()).collect()
    }

    #[test]
    fn lines_end_in_every_way_that_producers_write_and_a_cr_alone_only_where_there_is_no_lf() {
        for end in ["\r\n", "\n", "\r", "\r\r\n", "\n\r"] {
            let block = ["A: 1", "B: 2", "\tb", " ", " c", "C: 3", "", "text"].join(end);
            assert_eq!(lines(&block), ["A: 1", "B: 2\tb  c", "C: 3", "", "text"], "{end:?}");
        }
        assert_eq!(lines("A: 1\rB: 2\r\nC: 3\r\r"), ["A: 1\rB: 2", "C: 3\r\r"]);
        assert_eq!(lines("A: 1\n\r\nB: 2"), ["A: 1", "", "B: 2"]);
    }
}
