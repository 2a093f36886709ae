//! A multipart body, taken apart at its delimiters.

use super::boundary;
use super::lines::lines;
use super::words;
use crate::decode;

/// A multipart body, split. No line end before a delimiter belongs to a part (RFC 2046 §5.1.1).
pub struct Split<'a> {
    pub preamble: &'a [u8],
    pub parts: Vec<&'a [u8]>,
    pub epilogue: &'a [u8],
    /// The fault of its closing delimiter, and its repair.
    pub repaired: Option<&'static str>,
    /// The delimiters do not hold the boundary byte for byte as it is named.
    pub another: bool,
}

impl<'a> Split<'a> {
    /// `None` if no line of the body is a delimiter.
    pub fn at(body: &'a [u8], named: &str) -> Option<Self> {
        if boundary::is_good(named) {
            let split = Self::by(body, |line| line.strip_prefix(b"--")?.strip_prefix(named.as_bytes()));
            if split.is_some() {
                return split;
            }
        }
        // A boundary that is none may stand in the body in another form than in the header, and without the blanks at
        // its end.
        let meant = words::decode(named);
        [named, &meant].into_iter().filter(|name| !name.trim_end().is_empty()).find_map(|name| {
            let forms = [name, name.trim_end()];
            Self::by(body, |line| {
                let rest = line.strip_prefix(b"--")?;
                let exact = forms.iter().find_map(|name| rest.strip_prefix(name.as_bytes()));
                exact.or_else(|| forms.iter().find_map(|name| tail_behind(rest, name)))
            })
            .map(|split| {
                let delimiter = [b"--", named.as_bytes()].concat();
                let another = !lines(body).any(|line| line.content.starts_with(&delimiter));
                Self { another, ..split }
            })
        })
    }

    /// `delimiter` gives what follows the boundary in a line that is a delimiter.
    fn by(body: &'a [u8], delimiter: impl Fn(&'a [u8]) -> Option<&'a [u8]>) -> Option<Self> {
        let mut split = Self { preamble: b"", parts: Vec::new(), epilogue: b"", repaired: None, another: false };
        // Start of the part that is open, and the end of the content before the line end that comes last.
        let mut open: Option<usize> = None;
        let mut end = 0;
        let mut found = false;
        for line in lines(body) {
            let Some(tail) = delimiter(line.content) else {
                end = line.start + line.content.len();
                continue;
            };
            let last = body[line.next..].iter().all(u8::is_ascii_whitespace);
            let closing = match tail.trim_ascii_end() {
                b"--" => true,
                b"-" if last => {
                    split.repaired = Some("its closing delimiter had lost its last character, which was put back");
                    true
                }
                b"" if last && found => {
                    split.repaired = Some("its closing delimiter had lost its last characters, which were put back");
                    true
                }
                b"" => false,
                _ => {
                    end = line.start + line.content.len();
                    continue;
                }
            };
            match open {
                Some(start) => split.parts.push(&body[start..end.max(start)]),
                None => split.preamble = &body[..line.start],
            }
            found = true;
            open = Some(line.next);
            end = line.next;
            if closing {
                split.epilogue = &body[line.next..];
                return Some(split);
            }
        }
        let start = open?;
        split.parts.push(&body[start..end.max(start)]);
        split.repaired = Some("it had no closing delimiter: one was added");
        Some(split)
    }
}

/// The text behind a boundary in a line, read as the header was: as UTF-8 or Windows-1252, with blanks for controls.
fn tail_behind<'a>(line: &'a [u8], boundary: &str) -> Option<&'a [u8]> {
    let text = words::without_controls(decode::utf8_or_windows_1252(line));
    let tail = text.strip_prefix(boundary)?.trim_end();
    // Only what closes a delimiter can follow, and that is as long in the line as in the text.
    ["", "-", "--"].contains(&tail).then(|| {
        let line = line.trim_ascii_end();
        &line[line.len().saturating_sub(tail.len())..]
    })
}
