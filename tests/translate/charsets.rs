//! Text keeps its meaning: it is converted from the charset that it names, or keeps that name and its bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::mails::{body, body_text, header, labels, send, text};

fn kind(charset: &str) -> String {
    format!("Content-Type: text/plain; charset={charset}\n")
}

#[test]
fn seven_bit_text_in_a_charset_that_cannot_be_converted_is_unchanged() {
    for (charset, bytes) in [
        ("UTF-7", b"Gr+APw-n\r\n".as_slice()),
        ("ISO-2022-KR", b"\x1b$)C\x0e0!3*4Y\x0f\r\n"),
        ("HZ-GB-2312", b"~{<:Ky2;S{~}\r\n"),
        ("ISO-2022-CN", b"\x1b$)A\x0e=;;;\x0f\r\n"),
    ] {
        let mail = send("S", &kind(charset), bytes);
        assert_eq!(body(&mail), bytes, "{charset}");
        assert_eq!(header(&mail, "Content-Type").unwrap(), format!("text/plain; charset={charset}"));
        assert_eq!(header(&mail, "Content-Transfer-Encoding").as_deref(), None);
        assert_eq!(labels(&mail), [""; 0]);
        let part = [
            b"--b\r\nContent-Type: text/plain; charset=".as_slice(),
            charset.as_bytes(),
            b"\r\n\r\n",
            bytes,
            b"--b--\r\n",
        ]
        .concat();
        let mail = send("S", "Content-Type: multipart/mixed; boundary=b\n", &part);
        assert_eq!(body(&mail), part, "{charset}");
    }
}

#[test]
fn eight_bit_text_in_a_charset_that_cannot_be_converted_keeps_label_and_bytes() {
    // U umlaut is 0x81 in code page 850.
    let mail = send("S", &kind("cp850"), b"\x81ber\n");
    assert_eq!(body(&mail), b"=81ber\r\n");
    assert_eq!(header(&mail, "Content-Type").unwrap(), "text/plain; charset=cp850");
    assert_eq!(header(&mail, "Content-Transfer-Encoding").unwrap(), "quoted-printable");
    let part = b"--b\nContent-Type: text/plain; charset=cp850\n\n\x81ber\n--b--\n";
    let mail = send("S", "Content-Type: multipart/mixed; boundary=b\n", part);
    let text = body_text(&mail);
    assert!(text.contains("charset=cp850\r\n") && text.contains("=81ber"), "{text}");
    // It is not made of lines, so that line ends are bytes like others.
    let utf_32 = b"\0\0\0a\0\0\0\n\0\0\0\xfc";
    let mail = send("S", &kind("utf-32"), utf_32);
    assert_eq!(STANDARD.decode(body(&mail).trim_ascii_end()).unwrap(), utf_32);
    assert_eq!(header(&mail, "Content-Type").unwrap(), "text/plain; charset=utf-32");
    assert_eq!(header(&mail, "Content-Transfer-Encoding").unwrap(), "base64");
    // What is encoded already stays so.
    let headers = kind("cp850") + "Content-Transfer-Encoding: base64\n";
    assert_eq!(body(&send("S", &headers, b"gWJlcg==\n")), b"gWJlcg==\r\n");
}

#[test]
fn text_is_converted_from_the_charset_that_it_names() {
    for (charset, bytes, meant) in [
        ("iso-8859-15", b"\xa4 \xfc\n".as_slice(), "\u{20ac} \u{fc}"),
        ("koi8-r", b"\xc1\n", "\u{430}"),
        ("cp932", b"\x83\x65\n", "\u{30c6}"),
        ("utf-16", b"\0a\0\xfc\0\n", "a\u{fc}"),
        ("utf-16", b"\xff\xfea\0\xfc\0\n\0", "a\u{fc}"),
        ("utf-16le", b"a\0\xfc\0\n\0", "a\u{fc}"),
        ("iso-2022-jp", b"\x1b$B%F\x1b(B\n", "\u{30c6}"),
    ] {
        let mail = send("S", &kind(charset), bytes);
        assert_eq!(text(&mail, 0), meant, "{charset}");
        assert_eq!(header(&mail, "Content-Type").unwrap(), "text/plain; charset=utf-8");
        assert_eq!(labels(&mail), [""; 0], "{charset}");
    }
}

#[test]
fn a_label_that_means_nothing_is_replaced_and_said() {
    for (charset, bytes) in
        [("x-foo", "J\u{f6}rg\n".as_bytes()), ("x-foo", b"J\xf6rg\n"), ("x-user-defined", b"J\xf6rg\n")]
    {
        let mail = send("S", &kind(charset), bytes);
        assert_eq!(text(&mail, 0), "J\u{f6}rg");
        assert_eq!(labels(&mail), ["charset (mbody)"]);
        let part = [
            b"--b\nContent-Type: text/plain; charset=".as_slice(),
            charset.as_bytes(),
            b"\nContent-Transfer-Encoding: base64\n\n",
            STANDARD.encode(bytes).as_bytes(),
            b"\n--b--\n",
        ]
        .concat();
        let mail = send("S", "Content-Type: multipart/mixed; boundary=b\n", &part);
        assert_eq!(text(&mail, 0), "J\u{f6}rg");
        assert_eq!(labels(&mail), ["charset (part 1)"]);
    }
    assert_eq!(labels(&send("S", &kind("x-foo"), b"ascii\n")), ["charset (mbody)"]);
    assert_eq!(labels(&send("S", &kind("us-ascii"), b"ascii\n")), [""; 0]);
}

#[test]
fn a_type_without_a_semicolon_has_its_charset_all_the_same() {
    for written in
        ["text/html charset=iso-8859-1", "text/html, charset=iso-8859-1", "text/html  charset=\"iso-8859-1\";"]
    {
        let mail = send("S", &format!("Content-Type: {written}\n"), b"<p>\xfc</p>\n");
        assert_eq!(header(&mail, "Content-Type").unwrap(), "text/html; charset=utf-8");
        assert_eq!(body(&mail), b"<p>=C3=BC</p>\r\n");
    }
    let part = b"--b\nContent-Type: text/html charset=utf-8\n\n<p>x</p>\n--b--\n";
    let mail = send("S", "Content-Type: multipart/mixed; boundary=b\n", part);
    assert!(body_text(&mail).contains("Content-Type: text/html; charset=utf-8\r\n"), "{}", body_text(&mail));
    assert_eq!(labels(&mail), ["header-rewritten (part 1)"]);
}
