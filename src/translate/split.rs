//! A multipart body, taken apart at its delimiters.

use super::lines::lines;

/// A multipart body, split. No line end before a delimiter belongs to a part (RFC 2046 §5.1.1).
pub struct Split<'a> {
    pub boundary: &'a str,
    pub preamble: &'a [u8],
    pub parts: Vec<&'a [u8]>,
    pub epilogue: &'a [u8],
    /// What was wrong with its closing delimiter, and how that is mended.
    pub mended: Option<&'static str>,
}

impl<'a> Split<'a> {
    /// `None` if no line of the body is a delimiter, or the boundary is none (RFC 2046 §5.1.1 allows less still).
    pub fn at(body: &'a [u8], boundary: &'a str) -> Option<Self> {
        if boundary.is_empty() || boundary.contains(char::is_control) {
            return None;
        }
        let mut split = Self { boundary, preamble: b"", parts: Vec::new(), epilogue: b"", mended: None };
        // Start of the part that is open, and the end of the content before the line end that comes last.
        let mut open: Option<usize> = None;
        let mut end = 0;
        let mut found = false;
        for line in lines(body) {
            let Some(tail) = line.content.strip_prefix(b"--").and_then(|rest| rest.strip_prefix(boundary.as_bytes()))
            else {
                end = line.start + line.content.len();
                continue;
            };
            let last = body[line.next..].iter().all(u8::is_ascii_whitespace);
            let closing = match tail.trim_ascii_end() {
                b"--" => true,
                b"-" if last => {
                    split.mended = Some("its closing delimiter had lost its last character, which was put back");
                    true
                }
                b"" if last && found => {
                    split.mended = Some("its closing delimiter had lost its last characters, which were put back");
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
        split.mended = Some("it had no closing delimiter: one was added");
        Some(split)
    }
}
