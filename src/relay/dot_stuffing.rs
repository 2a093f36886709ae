//! The content of a mail as it goes over the wire: dots stuffed and the final dot behind it (RFC 5321 §4.5.2). No copy
//! of the content is made.

use memchr::memmem;

/// The pieces of a content between which the stuffed dots stand, and these dots.
///
/// A dot is stuffed behind every LF, also one without CR, which should not occur: some servers take it for a line end.
pub(super) struct Stuffed<'a> {
    content: &'a [u8],
    start: usize,
    dot_due: bool,
    line_starts: memmem::FindIter<'a, 'static>,
}

impl<'a> Stuffed<'a> {
    pub fn new(content: &'a [u8]) -> Self {
        let line_starts = memmem::find_iter(content, b"\n.");
        Self { content, start: 0, dot_due: content.starts_with(b"."), line_starts }
    }

    /// The bytes between the content and the next command: the line end, where it is missing, and the final dot.
    pub fn end(content: &[u8]) -> &'static [u8] {
        if content.is_empty() || content.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" }
    }
}

impl<'a> Iterator for Stuffed<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if std::mem::take(&mut self.dot_due) {
            return Some(b".");
        }
        let end = match self.line_starts.next() {
            Some(line_end) => {
                self.dot_due = true;
                line_end + 1
            }
            None => self.content.len(),
        };
        let piece = &self.content[self.start..end];
        self.start = end;
        (!piece.is_empty()).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_the_wire(content: &[u8]) -> String {
        let mut wire = Stuffed::new(content).collect::<Vec<_>>().concat();
        wire.extend_from_slice(Stuffed::end(content));
        String::from_utf8(wire).unwrap()
    }

    #[test]
    fn dots_are_stuffed_and_the_last_line_is_ended() {
        for (content, wire) in [
            ("", ".\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            ("a", "a\r\n.\r\n"),
            ("a\n", "a\n\r\n.\r\n"),
            ("a\r", "a\r\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
            ("..\r\n.\r\n.", "...\r\n..\r\n..\r\n.\r\n"),
            ("a.b\r\n.c\r\nd\r\n", "a.b\r\n..c\r\nd\r\n.\r\n"),
            ("a\n.\r\nMAIL\r\n", "a\n..\r\nMAIL\r\n.\r\n"),
        ] {
            assert_eq!(on_the_wire(content.as_bytes()), wire, "{content:?}");
        }
    }

    #[test]
    fn a_content_without_leading_dots_is_one_piece() {
        assert_eq!(Stuffed::new(b"a\r\nb.\r\n").count(), 1);
    }
}
