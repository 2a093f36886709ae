//! Transfer encodings: what is encoded again still is what it was.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::outcome::Reason;
use proptest::prelude::*;

use crate::mails::{body, body_text, files, header, labels, send, text, try_send};
use crate::rows::config;

fn part(headers: &str, content: &[u8]) -> Vec<u8> {
    [b"--b\r\n", headers.as_bytes(), b"\r\n", content, b"\r\n--b--\r\n"].concat()
}

const MIXED: &str = "Content-Type: multipart/mixed; boundary=b\n";

#[test]
fn base64_in_pieces_with_padding_each_is_put_together() {
    let pieces = b"R3L832UgYW4gYWxsZQo=\r\nLS0gCkltcHJlc3N1bTogU3RyYd9lIDEK\r\n";
    let headers = "Content-Type: text/plain; charset=ISO-8859-1\r\nContent-Transfer-Encoding: base64\r\n";
    let mail = send("S", headers, pieces);
    assert_eq!(text(&mail, 0), "Gr\u{fc}\u{df}e an alle\n-- \nImpressum: Stra\u{df}e 1");
    let mail = send("S", MIXED, &part(headers, pieces));
    assert_eq!(text(&mail, 0), "Gr\u{fc}\u{df}e an alle\n-- \nImpressum: Stra\u{df}e 1");
    assert_eq!(labels(&mail), ["encoding (part 1)"]);
    // Each line on its own, as some scripts encode a file.
    let file: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let lines: String = file.chunks(10).map(|chunk| STANDARD.encode(chunk) + "\r\n").collect();
    let headers = "Content-Type: application/zip; name=x.zip\r\nContent-Transfer-Encoding: base64\r\n";
    for mail in [send("S", MIXED, &part(headers, lines.as_bytes())), send("S", headers, lines.as_bytes())] {
        assert_eq!(files(&mail), [("x.zip".to_owned(), file.clone())]);
    }
}

#[test]
fn base64_in_long_lines_or_with_foreign_bytes_keeps_every_byte() {
    let file: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let headers = "Content-Type: application/zip; name=x.zip\r\nContent-Transfer-Encoding: base64\r\n";
    let one_line = STANDARD.encode(&file);
    let foreign = one_line.replacen('A', "\u{fc}A", 1);
    for text in [&one_line, &foreign] {
        for mail in [send("S", MIXED, &part(headers, text.as_bytes())), send("S", headers, text.as_bytes())] {
            assert_eq!(files(&mail), [("x.zip".to_owned(), file.clone())]);
            assert!(body_text(&mail).lines().all(|line| line.len() <= 76));
            assert_eq!(body_text(&mail).lines().filter(|line| line.len() == 76).count(), one_line.len() / 76);
        }
    }
}

#[test]
fn base64_is_written_in_full_lines_with_padding_only_at_its_end() {
    let file: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let headers = "Content-Type: application/zip; name=x.zip\r\nContent-Transfer-Encoding: 8bit\r\n";
    for length in [1, 2, 3, 56, 57, 58, 114, 3000] {
        let mail = send("S", headers, &file[..length]);
        let lines: Vec<&str> = body_text(&mail).lines().collect();
        assert!(lines[..lines.len() - 1].iter().all(|line| line.len() == 76), "{lines:?}");
        // This decoder takes padding nowhere else.
        assert_eq!(STANDARD.decode(lines.concat()).unwrap(), &file[..length]);
    }
}

#[test]
fn what_calls_itself_base64_and_is_none_is_sent_as_what_it_is() {
    let said = "Das ist kein Base64, sondern Text mit \u{dc}mlauten!";
    let headers = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n";
    for mail in [send("S", MIXED, &part(headers, said.as_bytes())), send("S", headers, said.as_bytes())] {
        assert_eq!(text(&mail, 0), said, "{}", body_text(&mail));
        assert_eq!(mail.repairs.len(), 1, "{:?}", mail.repairs);
    }
    let headers = "Content-Type: application/octet-stream; name=x.bin\r\nContent-Transfer-Encoding: base64\r\n";
    let mail = send("S", MIXED, &part(headers, said.as_bytes()));
    assert_eq!(files(&mail), [("x.bin".to_owned(), said.as_bytes().to_vec())]);
}

#[test]
fn a_file_in_quoted_printable_that_does_not_fit_the_wire_keeps_every_byte() {
    let headers = "Content-Type: application/zip; name=x.zip\r\nContent-Transfer-Encoding: quoted-printable\r\n";
    for (written, meant) in [
        (b"a=3Db=\n c=FC\xfc".as_slice(), b"a=b c\xfc\xfc".as_slice()),
        (b"a\nb=0D=0Ac", b"a\nb\r\nc"),
        (b"a=\r\nb=  \r\nc=zz", b"abc=zz"),
        (b"a = b\r\n\0", b"a = b\r\n\0"),
    ] {
        // With LF, 8-bit bytes or NULs it cannot stay, without it may: its content is the same.
        let mail = send("S", MIXED, &part(headers, written));
        assert_eq!(files(&mail), [("x.zip".to_owned(), meant.to_vec())], "{}", body_text(&mail));
    }
}

#[test]
fn a_file_without_a_line_end_at_its_end_gains_none() {
    let name = "Content-Disposition: attachment; filename=x.csv\r\n";
    for (encoding, content) in
        [("quoted-printable", "a=3Db;c"), ("7bit", "a=b;c"), ("8bit", "a=b;c"), ("base64", "YT1iO2M=")]
    {
        let headers = format!("Content-Type: text/csv\r\n{name}Content-Transfer-Encoding: {encoding}\r\n");
        for mail in [send("S", &headers, content.as_bytes()), send("S", MIXED, &part(&headers, content.as_bytes()))] {
            assert_eq!(files(&mail), [("x.csv".to_owned(), b"a=b;c".to_vec())], "{}", body_text(&mail));
        }
        let mail = send("S", &headers, content.as_bytes());
        assert_eq!(body_text(&mail), "YT1iO2M=\r\n");
        assert_eq!(labels(&mail).len(), usize::from(encoding != "base64"), "{:?}", mail.repairs);
        let whole = format!("{content}\r\n");
        if encoding != "base64" {
            assert_eq!(body(&send("S", &headers, whole.as_bytes())), whole.as_bytes(), "what ends in one stays");
        }
    }
}

#[test]
fn a_private_encoding_is_left_alone_or_set_aside() {
    let headers = "Content-Type: application/octet-stream; name=a.bin\r\nContent-Transfer-Encoding: x-uuencode\r\nContent-Disposition: attachment; filename=a.bin\r\n";
    let content = b"begin 644 a.bin\r\n#86)C\r\n`\r\nend";
    let whole = part(headers, content);
    let mail = send("S", MIXED, &whole);
    assert_eq!(body(&mail), whole);
    assert_eq!(labels(&mail), [""; 0]);
    let mail = send("S", headers, content);
    assert_eq!(header(&mail, "Content-Transfer-Encoding").unwrap(), "x-uuencode");
    assert_eq!(body(&mail), [content.as_slice(), b"\r\n"].concat());
    for bad in ["8-bit \u{fc}".to_owned(), "NUL \0".to_owned(), "x".repeat(999)] {
        for (headers, body) in [(MIXED, part(headers, bad.as_bytes())), (headers, bad.into_bytes())] {
            let refusal = try_send("S", headers, &body).unwrap_err();
            assert_eq!(refusal.reason, Reason::NotTransportable);
            assert!(refusal.detail.contains("x-uuencode"), "{refusal}");
        }
    }
    let mail = send("S", "Content-Type: text/plain\nContent-Transfer-Encoding: x-foo (bar)\n", b"abc\n");
    assert_eq!(header(&mail, "Content-Transfer-Encoding").unwrap(), "x-foo");
}

#[test]
fn a_label_that_is_no_private_encoding_is_replaced() {
    let longest = format!("x-{}", "y".repeat(74));
    for (label, stays) in [
        ("uuencode", true),
        ("uue", true),
        (&longest, true),
        (&format!("{longest}y"), false),
        ("x-", false),
        ("x-\u{fc}", false),
    ] {
        let headers = format!("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {label}\r\n");
        let mail = send("S", &headers, b"abc\r\n");
        assert_eq!(header(&mail, "Content-Transfer-Encoding").unwrap(), if stays { label } else { "7bit" });
        assert_eq!((body(&mail), labels(&mail).is_empty()), (b"abc\r\n".as_slice(), stays), "{label}");
        let mail = send("S", MIXED, &part(&headers, b"abc"));
        assert_eq!(
            body_text(&mail).contains(&format!("Encoding: {label}\r\n\r\nabc\r\n")),
            stays,
            "{}",
            body_text(&mail)
        );
    }
}

#[test]
fn a_hyphen_is_encoded_only_behind_a_soft_line_break() {
    let headers = "Content-Type: text/plain; charset=utf-8\n";
    let mail = send("S", headers, "\u{fc} a-b\n- x\n-- \n--b\n".as_bytes());
    assert_eq!(body_text(&mail), "=C3=BC a-b\r\n- x\r\n--=20\r\n--b\r\n");
    let mail = send("S", headers, format!("\u{fc}{}-y\n", "x".repeat(69)).as_bytes());
    assert_eq!(body_text(&mail), format!("=C3=BC{}=\r\n=2Dy\r\n", "x".repeat(69)));
}

/// Returns the meaning of quoted-printable text by a second reader.
fn unquoted(text: &[u8]) -> Vec<u8> {
    mail_parser::decoders::quoted_printable::quoted_printable_decode(text).unwrap()
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn quoted_printable_is_what_was_encoded(text in "[ -~\t\u{e4}\u{20ac}=.-]{0,300}", eol in prop::sample::select(&["\r\n", "\n", "\r"][..])) {
        let lines = format!("\u{fc}{text}{eol}{text}{eol}");
        let mail = send("S", "Content-Type: text/plain; charset=utf-8\n", lines.as_bytes());
        let sent = body(&mail);
        prop_assert_eq!(unquoted(sent), lines.replace(eol, "\r\n").into_bytes(), "{}", body_text(&mail));
        prop_assert!(sent.is_ascii());
        for line in body_text(&mail).lines() {
            prop_assert!(line.len() <= 76, "{}", line);
            prop_assert!(!line.ends_with([' ', '\t']), "{}", line);
        }
        for (line, next) in body_text(&mail).lines().zip(body_text(&mail).lines().skip(1)) {
            // Lines are as long as they may be, and none looks like a delimiter that was none.
            prop_assert!(!line.ends_with('=') || (line.len() >= 74 && !next.starts_with('-')), "{}\n{}", line, next);
        }
    }

    #[test]
    fn quoted_printable_that_is_repaired_means_what_it_meant(pieces in prop::collection::vec(prop::sample::select(
        &["=C3=BC", "\u{fc}", "=", "=\r\n", "= \r\n", "\r\n", "x", "-", " ", "\t", "=3D", "wort wort wort wort ", "\u{1}"][..]), 0..80)
    ) {
        let written = pieces.concat() + "\u{fc}";
        let headers = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n";
        let mail = send("S", MIXED, &part(headers, written.as_bytes()));
        let sent = body_text(&mail);
        let content = sent.split_once("\r\n\r\n").unwrap().1.strip_suffix("\r\n--b--\r\n");
        if let Some(content) = content {
            let (found, meant) = (lenient(content), lenient(&written));
            prop_assert_eq!(found.trim_ascii_end(), meant.trim_ascii_end(), "{}", sent);
            for line in content.lines() {
                prop_assert!(line.len() <= 76 && line.is_ascii(), "{}", line);
            }
        }
    }
}

/// Returns the meaning of quoted-printable, where `=` that is no escape stands for itself: slow, and simple enough to
/// be right.
fn lenient(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.split_inclusive("\r\n") {
        let (content, end) = line.strip_suffix("\r\n").map_or((line, ""), |content| (content, "\r\n"));
        let (content, end) = match content.trim_end().strip_suffix('=') {
            Some(soft) => (soft, ""),
            None => (content, end),
        };
        let mut rest = content;
        while let Some(c) = rest.chars().next() {
            let escape = rest.strip_prefix('=').and_then(|tail| u8::from_str_radix(tail.get(..2)?, 16).ok());
            match escape.filter(|_| !rest[1..].starts_with(['+', '-'])) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &rest[3..];
                }
                None => {
                    bytes.extend_from_slice(&rest.as_bytes()[..c.len_utf8()]);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        bytes.extend_from_slice(end.as_bytes());
    }
    bytes
}
