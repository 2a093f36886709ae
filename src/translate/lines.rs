//! Lines of bytes that end in CRLF, LF or CR, all of which the producers write, often mixed, and in CR CR LF.

use std::borrow::Cow;

use memchr::memchr2;

use super::out::Out;

/// One line: its content without the line end, and where the next one begins.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub content: &'a [u8],
    /// Offset of `content` in the whole.
    pub start: usize,
    /// Offset behind the line end.
    pub next: usize,
}

/// The lines of `bytes`. What follows the last line end is a line only if it is not empty.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= bytes.len() {
            return None;
        }
        let rest = &bytes[start..];
        let length = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
        let ending = match &rest[length..] {
            [b'\r', b'\n', ..] => 2,
            [] => 0,
            [b'\r', b'\r', b'\n', ..] => 3,
            _ => 1,
        };
        let line = Line { content: &rest[..length], start, next: start + length + ending };
        start = line.next;
        Some(line)
    })
}

/// Returns true if every line ends in LF CR. The last may end in LF alone.
pub fn end_in_lf_cr(bytes: &[u8]) -> bool {
    let followed = |at: usize| bytes.get(at + 1).is_none_or(|byte| *byte == b'\r');
    memchr2(b'\r', b'\n', bytes).is_some_and(|first| bytes[first] == b'\n')
        && memchr::memchr_iter(b'\n', bytes).all(followed)
}

/// Makes CRLF of LF CR, in place. A last LF alone is left as it is.
pub fn swap_lf_cr(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\n', &bytes[at..]).filter(|found| at + found + 1 < bytes.len()) {
        bytes.swap(at + found, at + found + 1);
        at += found + 2;
    }
}

/// No more than blanks.
pub fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\x0b' | b'\x0c'))
}

/// The lines, each with those behind it that continue it: they begin with a blank (RFC 5322 §2.2.3), or are empty.
pub fn unfold<'a>(lines: impl Iterator<Item = Line<'a>>) -> Vec<Cow<'a, [u8]>> {
    let mut unfolded: Vec<Cow<'a, [u8]>> = Vec::new();
    for line in lines {
        match unfolded.last_mut() {
            Some(last) if matches!(line.content.first(), None | Some(b' ' | b'\t')) => {
                last.to_mut().extend_from_slice(line.content);
            }
            _ => unfolded.push(line.content.into()),
        }
    }
    unfolded
}

/// Appends `bytes` with every line end made CRLF. Adds none at the end. Gives the length of the longest line, without its
/// end.
pub fn write_crlf(out: &mut Out, bytes: &[u8]) -> usize {
    let mut longest = 0;
    let mut written = 0;
    for line in lines(bytes) {
        longest = longest.max(line.content.len());
        let end = line.start + line.content.len();
        if !matches!(&bytes[end..line.next], b"\r\n" | b"") {
            out.extend_from_slice(&bytes[written..end]);
            out.extend_from_slice(b"\r\n");
            written = line.next;
        }
    }
    out.extend_from_slice(&bytes[written..]);
    longest
}

/// What the wire wants to know of a piece of mail (RFC 5321 §2.3.8 and §4.5.3.1.6).
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub eight_bit: bool,
    pub nul: bool,
    /// Bytes of the longest line, without its end.
    pub longest: usize,
    /// A line ends in LF alone.
    pub bare_lf: bool,
    /// A CR that no LF follows.
    pub bare_cr: bool,
}

/// Longest line that may travel, without its CRLF.
pub const LONGEST_LINE: usize = 998;

impl Shape {
    pub fn of(bytes: &[u8]) -> Self {
        let mut shape =
            Self { eight_bit: !bytes.is_ascii(), nul: memchr::memchr(0, bytes).is_some(), ..Self::default() };
        for line in lines(bytes) {
            shape.longest = shape.longest.max(line.content.len());
            match &bytes[line.start + line.content.len()..line.next] {
                b"\n" => shape.bare_lf = true,
                b"\r\n" | b"" => {}
                _ => shape.bare_cr = true,
            }
        }
        shape
    }

    /// Nothing but its 8-bit bytes can hinder it on its way.
    pub fn travels(&self) -> bool {
        !self.nul && self.longest <= LONGEST_LINE
    }
}
