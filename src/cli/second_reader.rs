//! The library that reads mails for people, kept from mails that go too deep.

use mail_parser::{Message, MessageParser};

/// Most mails inside of a mail that are read. The library keeps each within the one around it and frees them by recursion:
/// 100,000 of them overflow the stack of a thread. No mail attaches this many.
const MOST_INSIDE: usize = 1_000;

/// Reads a mail. `None` if it is none, or if it may hold more than 1,000 mails inside of each other.
pub fn read(content: &[u8]) -> Option<Message<'_>> {
    (mails_inside(content) <= MOST_INSIDE).then(|| MessageParser::new().parse(content)).flatten()
}

/// The places that make a part a mail: `message/rfc822` and its kin, and `multipart/digest` (RFC 2046 §5.1.5). Counts to
/// one more than [`MOST_INSIDE`].
fn mails_inside(content: &[u8]) -> usize {
    let starts =
        |at: usize, word: &[u8]| content[at..].get(..word.len()).is_some_and(|text| text.eq_ignore_ascii_case(word));
    let messages = memchr::memchr2_iter(b'm', b'M', content).filter(|at| starts(*at, b"message/"));
    let digests = memchr::memchr2_iter(b'd', b'D', content).filter(|at| starts(*at, b"digest"));
    messages.take(MOST_INSIDE + 1).count() + digests.take(MOST_INSIDE + 1).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_in_mails_without_end_is_no_stack_overflow() {
        let nest = |kind: &str, depth: usize| {
            format!("From: a@example.org\r\n{}\r\nText\r\n", format!("Content-Type: {kind}\r\n\r\n").repeat(depth))
        };
        assert!(read(nest("message/rfc822", 20).as_bytes()).is_some());
        assert!(read(nest("Message/RFC822", 500_000).as_bytes()).is_none());
        let digests: String = (0..500_000)
            .map(|at| format!("Content-Type: multipart/digest; boundary=b{at}\r\n\r\n--b{at}\r\n\r\n"))
            .collect();
        assert!(read(digests.as_bytes()).is_none());
        let multiparts: String =
            (0..5_000).map(|at| format!("Content-Type: multipart/mixed; boundary=b{at}\r\n\r\n--b{at}\r\n")).collect();
        assert!(read(multiparts.as_bytes()).is_some());
    }
}
