//! From bytes to replies (RFC 5321 §4.2) and from an EHLO reply to what the smarthost announces.
//!
//! smtp-proto parses; this file finds where a reply ends, refuses what is none, and makes the text fit for a log line.

use jiff::Timestamp;
use smtp_proto::response::parser::ResponseReceiver;
use smtp_proto::{EXT_8BIT_MIME, EXT_PIPELINING, EXT_SIZE, EXT_SMTP_UTF8, EXT_START_TLS, EhloResponse};

use super::announced::Announced;
use super::pipelining::KNOWN;
use crate::outcome::Reply;

/// A reply longer than this is none. RFC 5321 §4.5.3.1.5 allows 512 bytes a line and sets no number of lines.
const MAX_REPLY: usize = 64 * 1024;

/// The part of a reply's text that is kept, in bytes.
const MAX_TEXT: usize = 500;

/// The length of the complete reply at the start of `input`, `None` if more must come, or what is wrong with it.
pub(super) fn frame(input: &[u8]) -> Result<Option<usize>, String> {
    let mut start = 0;
    while let Some(length) = memchr::memchr(b'\n', &input[start..]) {
        let line = &input[start..start + length];
        let code_is_one = matches!(line, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', ..]);
        if !code_is_one || !matches!(line.get(3), None | Some(b' ' | b'-' | b'\r')) {
            return Err(format!("this is no SMTP reply: {}", printable(line, 80)));
        }
        if line[..3] != input[..3] {
            return Err(format!("the lines of one reply have different codes: {}", printable(input, 160)));
        }
        start += length + 1;
        if line.get(3) != Some(&b'-') {
            return Ok(Some(start));
        }
        if start > MAX_REPLY {
            break;
        }
    }
    if input.len() > MAX_REPLY {
        return Err(format!("a reply of more than {MAX_REPLY} bytes begins: {}", printable(input, 80)));
    }
    Ok(None)
}

/// Reads a reply that [`frame`] has found to be one.
pub(super) fn parse(frame: &[u8]) -> Reply {
    let code = frame.iter().take(3).fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match ResponseReceiver::default().parse(&mut frame.iter()) {
        Ok(response) => {
            // The parser holds each number in eight bits, and 5.7.509 is in daily use.
            let enhanced = if response.esc[0] == 0 { None } else { enhanced(frame) };
            Reply { code, enhanced, text: printable(response.message.as_bytes(), MAX_TEXT) }
        }
        // Longer than the parser takes.
        Err(_) => Reply { code, enhanced: enhanced(frame), text: printable(&frame[3..], MAX_TEXT) },
    }
}

/// The status code of the first line (RFC 3463 §2).
fn enhanced(frame: &[u8]) -> Option<(u8, u16, u16)> {
    let line = frame.split(|byte| *byte == b'\n').next()?;
    let word = std::str::from_utf8(line.get(4..)?.split(|byte| byte.is_ascii_whitespace()).next()?).ok()?;
    let mut numbers = word.split('.').map(|number| number.parse::<u16>().ok().filter(|n| *n < 1000));
    let status = (u8::try_from(numbers.next()??).ok()?, numbers.next()??, numbers.next()??);
    (numbers.next().is_none() && matches!(status.0, 2 | 4 | 5)).then_some(status)
}

/// The announcements of an EHLO reply (RFC 5321 §4.1.1.1). A line that cannot be understood announces nothing.
pub(super) fn announced(frame: &[u8]) -> Announced {
    let mut announced = Announced::default();
    for line in frame.split(|byte| *byte == b'\n').skip(1).filter_map(|line| line.get(4..)) {
        let line = line.trim_ascii();
        let one = [b"250-peer\r\n250 ", line, b"\r\n"].concat();
        let Ok(parsed) = EhloResponse::parse(&mut one.iter()) else { continue };
        announced.pipelining |= parsed.has_capability(EXT_PIPELINING);
        announced.eight_bit |= parsed.has_capability(EXT_8BIT_MIME);
        announced.smtputf8 |= parsed.has_capability(EXT_SMTP_UTF8);
        announced.starttls |= parsed.has_capability(EXT_START_TLS);
        if parsed.has_capability(EXT_SIZE) {
            announced.size = Some(parsed.size as u64);
        }
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
        match keyword.as_slice() {
            b"AUTH" => mechanisms(words, &mut announced.auth),
            b"LIMITS" => words.for_each(|word| limit(word, &mut announced)),
            // Older clients of one vendor wanted this form; some servers announce no other.
            _ if keyword.starts_with(b"AUTH=") => {
                mechanisms(std::iter::once(&keyword[5..]).chain(words), &mut announced.auth);
            }
            _ => {}
        }
    }
    // The first line names the host, and behind that often the software.
    announced.software = frame.split(|byte| *byte == b'\n').next().and_then(|line| software(line.get(4..)?));
    announced
}

/// Adds names of mechanisms, in capitals, each once.
fn mechanisms<'a>(words: impl Iterator<Item = &'a [u8]>, known: &mut Vec<String>) {
    for name in words.map(|word| printable(word, 40).to_ascii_uppercase()).filter(|name| !name.is_empty()) {
        if !known.contains(&name) {
            known.push(name);
        }
    }
}

/// One limit of RFC 9422 §4, as in `MAILMAX=10`. A limit of 0 would forbid all mail and is taken for none.
fn limit(word: &[u8], announced: &mut Announced) {
    let Some((name, value)) = std::str::from_utf8(word).ok().and_then(|word| word.split_once('=')) else { return };
    let value = value.parse::<u32>().ok().filter(|value| *value > 0);
    match name.to_ascii_uppercase().as_str() {
        "MAILMAX" => announced.mail_max = value.or(announced.mail_max),
        "RCPTMAX" => announced.rcpt_max = value.or(announced.rcpt_max),
        _ => {}
    }
}

/// The software of [`KNOWN`] that a greeting or the first line of an EHLO reply names, behind the host's name.
pub(super) fn software(line: &[u8]) -> Option<&'static str> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).skip(1);
    words.find_map(|word| KNOWN.into_iter().find(|name| word == name.as_bytes()))
}

/// The time of day in a greeting, as Exim and others write it: `220 mx ESMTP Exim Sun, 1 Mar 2026 12:00:00 +0100`.
pub(super) fn clock(greeting: &str) -> Option<Timestamp> {
    let mut words = greeting.char_indices().filter(|(at, _)| *at == 0 || greeting[..*at].ends_with(' '));
    words.find_map(|(at, _)| {
        // What may stand behind it is no part of it: day, date, month, year, time and zone are six words.
        let six = greeting[at..].match_indices(' ').nth(5).map_or(greeting.len(), |(end, _)| at + end);
        jiff::fmt::rfc2822::parse(&greeting[at..six]).ok().map(|zoned| zoned.timestamp())
    })
}

/// Bytes of the peer as one line for people: line ends and blanks become one blank, whatever could steer a terminal or
/// turn the line around is replaced, and the rest is cut off behind `limit` bytes.
pub(super) fn printable(bytes: &[u8], limit: usize) -> String {
    if bytes.len() <= limit && bytes.split(|byte| *byte == b' ').all(is_plain_word) {
        // As nearly all are.
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let bytes = &bytes[..bytes.len().min(4 * limit)];
    let mut text = String::with_capacity(bytes.len().min(limit));
    for word in String::from_utf8_lossy(bytes).split([' ', '\r', '\n', '\t']).filter(|word| !word.is_empty()) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.extend(word.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }));
        if text.len() > limit {
            break;
        }
    }
    text.truncate(text.floor_char_boundary(limit));
    text
}

fn is_plain_word(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(u8::is_ascii_graphic)
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Reply {
        let length = frame(text.as_bytes()).unwrap().expect("a whole reply");
        assert_eq!(length, text.len());
        parse(text.as_bytes())
    }

    #[test]
    fn replies_of_every_shape_are_read() {
        for (text, code, enhanced, words) in [
            ("250 2.1.0 Ok\r\n", 250, Some((2, 1, 0)), "Ok"),
            ("250\r\n", 250, None, ""),
            ("250 \r\n", 250, None, ""),
            ("354 go ahead\n", 354, None, "go ahead"),
            ("550 5.7.509 DMARC\r\n", 550, Some((5, 7, 509)), "DMARC"),
            ("550 5.7.1\r\n", 550, Some((5, 7, 1)), ""),
            ("550-5.1.1 no such\r\n550 5.1.1 user\r\n", 550, Some((5, 1, 1)), "no such user"),
            ("250-\r\n250 done\r\n", 250, None, "done"),
            ("452 2address.org\r\n", 452, None, "2address.org"),
            ("550 a\tb\u{1b}[2J\u{202e}c\r\n", 550, None, "a b\u{fffd}[2J\u{fffd}c"),
        ] {
            assert_eq!(read(text), Reply { code, enhanced, text: words.into() }, "{text:?}");
        }
    }

    #[test]
    fn a_reply_is_whole_only_with_its_last_line_end() {
        let text = b"250-one\r\n250 two\r\n";
        for length in 0..text.len() {
            assert_eq!(frame(&text[..length]), Ok(None), "{length}");
        }
        assert_eq!(frame(b"250 a\r\n354 b\r\n"), Ok(Some(7)));
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for text in
            ["HTTP/1.1 400\r\n", "\r\n", "25 ok\r\n", "150 x\r\n", "2500 x\r\n", "250-a\r\n550 b\r\n", "\u{16}\u{3}\n"]
        {
            assert!(frame(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(frame(&b"250-x\r\n".repeat(20_000)).is_err());
        assert!(frame(&b"2".repeat(70_000)).is_err());
    }

    #[test]
    fn a_reply_may_have_64_kb_and_no_more() {
        let lines = |bytes: usize| {
            let mut text = b"250-0123456789\r\n".repeat(bytes / 16 - 1);
            text.extend(format!("250-{}\r\n", "x".repeat(bytes - text.len() - 6)).bytes());
            assert_eq!(text.len(), bytes);
            text
        };
        // More may come behind the last line that is allowed, and its end with it.
        assert_eq!(frame(&lines(MAX_REPLY)), Ok(None));
        let whole = [lines(MAX_REPLY), b"250 end\r\n".to_vec()].concat();
        assert_eq!(frame(&whole), Ok(Some(MAX_REPLY + 9)));
        assert!(frame(&lines(MAX_REPLY + 1)).is_err());
        assert!(frame(&[lines(MAX_REPLY + 1), b"250 end\r\n".to_vec()].concat()).is_err());
        assert_eq!(frame(&b"2".repeat(MAX_REPLY)), Ok(None));
        assert!(frame(&b"2".repeat(MAX_REPLY + 1)).is_err());
    }

    #[test]
    fn text_of_the_peer_is_cut_and_its_blanks_are_joined() {
        assert_eq!(printable(b"plain words", 11), "plain words");
        assert_eq!(printable(b"plain words", 10), "plain word");
        assert_eq!(printable(b"one  two\r\nthree ", 50), "one two three");
        assert_eq!(printable(format!("{}abc", " ".repeat(30)).as_bytes(), 10), "abc");
        assert_eq!(printable(format!("{}abc", " ".repeat(41)).as_bytes(), 10), "");
        assert_eq!(printable("äöü".as_bytes(), 5), "äö");
    }

    #[test]
    fn only_a_status_code_of_three_numbers_of_a_known_class_is_one() {
        for (text, enhanced) in [
            ("550 5.999.999 x", Some((5, 999, 999))),
            ("550 5.7.1000 x", None),
            ("550 5.7.1.2 x", None),
            ("550 5.7 x", None),
            ("550 3.7.1 x", None),
            ("550 5.7.1x", None),
        ] {
            assert_eq!(read(&format!("{text}\r\n")).enhanced, enhanced, "{text}");
            assert_eq!(super::enhanced(format!("{text}\r\n").as_bytes()), enhanced, "{text}");
        }
    }

    #[test]
    fn a_long_reply_keeps_its_code_and_the_start_of_its_text() {
        let reply = read(&format!("{}550 end\r\n", "550-5.7.1 many words\r\n".repeat(400)));
        assert_eq!((reply.code, reply.enhanced), (550, Some((5, 7, 1))));
        assert!(reply.text.len() <= MAX_TEXT && reply.text.contains("many words"), "{}", reply.text);
        assert_eq!(read(&format!("250 {}\r\n", "ü".repeat(400))).text.len(), MAX_TEXT);
    }

    #[test]
    fn an_ehlo_reply_is_understood_line_by_line() {
        let text = "250-mx PIPELINING\r\n250-PIPELINING\r\n250-size 1000\r\n250-X-ODD \u{7f}=\r\n250-AUTH plain LOGIN\r\n\
                    250-8BITMIME\r\n250 SMTPUTF8\r\n";
        assert_eq!(
            announced(text.as_bytes()),
            Announced {
                pipelining: true,
                eight_bit: true,
                smtputf8: true,
                starttls: false,
                size: Some(1000),
                auth: vec!["PLAIN".into(), "LOGIN".into()],
                ..Announced::default()
            }
        );
        assert_eq!(announced(b"250 PIPELINING\r\n"), Announced::default());
        assert_eq!(announced(b"250-mx\r\n250 SIZE\r\n").size, Some(0));
        let old = announced(b"250-mx\r\n250-AUTH=LOGIN plain\r\n250 AUTH LOGIN XOAUTH2\r\n");
        assert_eq!(old.auth, ["LOGIN", "PLAIN", "XOAUTH2"]);
        let limits = announced(b"250-mx\r\n250 LIMITS mailmax=10 RCPTMAX=0 RCPTDOMAINMAX=1 X\r\n");
        assert_eq!((limits.mail_max, limits.rcpt_max), (Some(10), None));
        assert_eq!(announced(b"250-mx\r\n250 LIMITS RCPTMAX=50\r\n").rcpt_max, Some(50));
    }

    #[test]
    fn software_is_known_by_its_name_behind_the_hosts() {
        for (line, name) in [
            ("mx.example.org ESMTP Postfix (Debian/GNU)", Some("Postfix")),
            ("mx.example.org ESMTP Exim 4.98 Sun, 01 Mar 2026 12:00:00 +0100", Some("Exim")),
            ("Postfix ESMTP", None),
            ("postfix.example.org ESMTP", None),
            ("mx.example.org ESMTP postfix-like", None),
            ("mx.example.org Dovecot ready.", None),
            ("", None),
        ] {
            assert_eq!(software(line.as_bytes()), name, "{line}");
        }
        assert_eq!(announced(b"250-mx Exim at your service\r\n250 Postfix\r\n").software, Some("Exim"));
        assert_eq!(announced(b"250-mx hello\r\n250 Postfix\r\n").software, None);
    }

    #[test]
    fn a_greeting_that_tells_the_time_is_understood_and_any_other_tells_none() {
        let noon = Some("2026-03-01T11:00:00Z".parse().unwrap());
        assert_eq!(clock("mx.example.org ESMTP Exim 4.96 Sun, 01 Mar 2026 12:00:00 +0100"), noon);
        assert_eq!(clock("Sun, 1 Mar 2026 12:00:00 +0100 at your service"), noon);
        assert_eq!(clock("1 Mar 2026 12:00:00 +0100"), noon);
        assert_eq!(clock("mx11 Mar 2026 12:00:00 +0100"), None);
        for silent in ["", "mx.example.org ESMTP Postfix", "Sun, shine and ESMTP", "größe 1 Mar"] {
            assert_eq!(clock(silent), None, "{silent}");
        }
    }
}
