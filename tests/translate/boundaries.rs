//! Boundaries: good ones stay, bad ones are replaced in header and delimiters alike.

use mailqueue::outcome::Reason;

use crate::mails::{body_text, head, header, labels, send, text, try_send};

/// A body of two texts between delimiters with this boundary.
fn two(boundary: &[u8]) -> Vec<u8> {
    let part = |text: &str| {
        [b"--", boundary, b"\nContent-Type: text/plain; charset=utf-8\n\n", text.as_bytes(), b"\n"].concat()
    };
    [part("eins").as_slice(), &part("zwei"), b"--", boundary, b"--\n"].concat()
}

#[test]
fn a_good_boundary_is_not_touched() {
    let longest = "b".repeat(70);
    for boundary in ["b", "'()+_,-./:=?", "----=_Part_10", "a b", "=_abc", "#b#", "=?x", &longest] {
        let mail =
            send("S", &format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\n"), &two(boundary.as_bytes()));
        assert!(body_text(&mail).starts_with(&format!("--{boundary}\r\n")), "{boundary}");
        assert!(body_text(&mail).ends_with(&format!("--{boundary}--\r\n")), "{boundary}");
        let kind = header(&mail, "Content-Type").unwrap();
        assert!(
            kind == format!("multipart/mixed; boundary=\"{boundary}\"")
                || kind == format!("multipart/mixed; boundary={boundary}"),
            "{kind}"
        );
        assert_eq!(labels(&mail), [""; 0], "{boundary}");
    }
}

const LATIN_1: &[u8] = b"gr\xfcn";

fn bad() -> Vec<Vec<u8>> {
    let long = |length| "x".repeat(length).into_bytes();
    vec![
        b"=?utf-8?q?abc?=".to_vec(),
        "gr\u{fc}n".into(),
        LATIN_1.to_vec(),
        long(71),
        long(600),
        long(1200),
        b"b ".to_vec(),
        b"a\x01b".to_vec(),
    ]
}

#[test]
fn a_bad_boundary_is_replaced_in_header_and_delimiters_alike() {
    for boundary in bad() {
        let headers =
            [b"From: a@example.org\nContent-Type: multipart/mixed; boundary=\"".as_slice(), &boundary, b"\"\n"]
                .concat();
        let row = crate::rows::columns(b"lea@example.org", b"S", &headers, &two(&boundary));
        let mail = crate::fitness::try_everywhere(&row).unwrap();
        assert_eq!((text(&mail, 0), text(&mail, 1)), ("eins".to_owned(), "zwei".to_owned()), "{}", head(&mail));
        assert!(labels(&mail).contains(&"boundary (the body)".to_owned()), "{:?}", mail.repairs);
        let nested = [
            b"--outer\nContent-Type: multipart/alternative; boundary=\"".as_slice(),
            &boundary,
            b"\"\n\n",
            &two(&boundary),
            b"--outer--\n",
        ]
        .concat();
        let mail = send("S", "Content-Type: multipart/mixed; boundary=outer\n", &nested);
        assert_eq!((text(&mail, 0), text(&mail, 1)), ("eins".to_owned(), "zwei".to_owned()), "{}", body_text(&mail));
        assert!(labels(&mail).contains(&"boundary (part 1)".to_owned()), "{:?}", mail.repairs);
        assert!(mail.content.is_ascii());
        let fresh = body_text(&mail).split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(fresh.ends_with("_0_1") && !fresh.contains(' '), "{fresh}");
    }
}

#[test]
fn the_boundary_in_place_of_a_bad_one_occurs_nowhere_in_the_body() {
    let of = |body: &[u8]| {
        let kind =
            header(&send("S", "Content-Type: multipart/mixed; boundary=\"=?utf-8?q?abc?=\"\n", body), "Content-Type")
                .unwrap();
        kind.split('"').nth(1).unwrap().to_owned()
    };
    let body = two(b"=?utf-8?q?abc?=");
    assert_eq!(of(&body), of(&body), "the same at every attempt");
    let other = String::from_utf8(body.clone()).unwrap().replace("eins", &format!("--{}", of(&body)));
    assert!(!other.contains(&of(other.as_bytes())));
}

#[test]
fn what_is_signed_keeps_its_boundary_or_is_set_aside() {
    let kind = |boundary: &str| {
        format!("Content-Type: multipart/signed; protocol=\"application/pgp-signature\"; boundary=\"{boundary}\"\n")
    };
    for boundary in ["=?utf-8?q?abc?=", &"x".repeat(71)] {
        let mail = send("S", &kind(boundary), &two(boundary.as_bytes()));
        assert!(body_text(&mail).starts_with(&format!("--{boundary}\r\n")));
        let quote = if boundary.starts_with('=') { "\"" } else { "" };
        assert!(
            header(&mail, "Content-Type").unwrap().contains(&format!("boundary={quote}{boundary}{quote}")),
            "{}",
            head(&mail)
        );
    }
    let longest = "x".repeat(500);
    assert!(body_text(&send("S", &kind(&longest), &two(longest.as_bytes()))).starts_with(&format!("--{longest}\r\n")));
    for boundary in ["gr\u{fc}n", &"x".repeat(501), &"x".repeat(1200), "b "] {
        let refusal = try_send("S", &kind(boundary), &two(boundary.as_bytes())).unwrap_err();
        assert_eq!(refusal.reason, Reason::NotTransportable, "{refusal}");
    }
    let inside = [
        b"--o\nContent-Type: multipart/mixed; boundary=\"gr\xfcn\"\n\n".as_slice(),
        &two(LATIN_1),
        b"--o\n\nsig\n--o--\n",
    ]
    .concat();
    let mail = send("S", &kind("o"), &inside);
    let expected = inside.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(b"\r\n".as_slice());
    assert_eq!(crate::mails::body(&mail), expected);
}

#[test]
fn a_boundary_in_pieces_is_one() {
    for named in
        ["boundary*0=\"a\"; boundary*1=\"bc\"", "boundary*=utf-8''ab%63", "boundary*0*=utf-8''a; boundary*1=bc"]
    {
        let mail = send("S", &format!("Content-Type: multipart/mixed; {named}\n"), &two(b"abc"));
        assert!(body_text(&mail).starts_with("--abc\r\n"), "{named}");
        assert_eq!(labels(&mail), [""; 0], "{named}");
        let nested =
            [b"--o\nContent-Type: multipart/mixed; ".as_slice(), named.as_bytes(), b"\n\n", &two(b"abc"), b"--o--\n"]
                .concat();
        let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", &nested);
        assert_eq!(labels(&mail), [""; 0], "{named}");
    }
}

#[test]
fn parameters_are_taken_from_the_top_of_a_body_only_with_a_boundary_among_them() {
    let top = "    total = 100;\n    rest = 5;\n\nDear all\n";
    for kind in ["text/plain; charset=utf-8;", "text/plain;", "text/plain"] {
        let mail = send("S", &format!("Content-Type: {kind}\n"), top.as_bytes());
        assert!(
            body_text(&mail).starts_with("    total = 100;\r\n    rest = 5;\r\n\r\nDear all"),
            "{kind}: {}",
            body_text(&mail)
        );
        assert_eq!(labels(&mail), [""; 0]);
    }
    let mail = send("S", "Content-Type: multipart/mixed;\n", top.as_bytes());
    assert!(body_text(&mail).starts_with("    total = 100;\r\n    rest = 5;\r\n\r\nDear all"));
    // A header there that names a recipient is not passed over.
    let refusal =
        try_send("S", "Content-Type: multipart/mixed;\n", b" boundary=b\nBcc: x@example.org\n\n--b\n\nx\n--b--\n")
            .unwrap_err();
    assert_eq!(refusal.reason, Reason::HeaderInvalid);
    let mail = send("S", "Content-Type: multipart/mixed;\n", b" boundary=b\nX-Foo: 1\n 2\n\n--b\n\nx\n--b--\n");
    assert_eq!(labels(&mail), ["content-type (Content-Type)", "header-dropped (X-Foo)"]);
}

#[test]
fn the_transfer_encoding_of_a_multipart_is_undone() {
    use base64::Engine;
    let whole = String::from_utf8(two(b"b")).unwrap().replace("zwei", "zw\u{f6}i = 2");
    let base64 = base64::engine::general_purpose::STANDARD.encode(&whole);
    let quoted = whole.replace('=', "=3D").replace('\u{f6}', "=C3=B6");
    for (label, encoded) in [("base64", &base64), ("quoted-printable", &quoted)] {
        let headers = format!("Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: {label}\n");
        let mail = send("S", &headers, encoded.as_bytes());
        assert_eq!(
            (text(&mail, 0), text(&mail, 1)),
            ("eins".to_owned(), "zw\u{f6}i = 2".to_owned()),
            "{}",
            body_text(&mail)
        );
        assert_eq!(header(&mail, "Content-Transfer-Encoding"), None);
        assert!(labels(&mail).contains(&"encoding (Content-Transfer-Encoding)".to_owned()), "{:?}", mail.repairs);
        let nested = format!("--o\n{headers}\n{encoded}\n--o--\n");
        let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.as_bytes());
        assert_eq!(
            (text(&mail, 0), text(&mail, 1)),
            ("eins".to_owned(), "zw\u{f6}i = 2".to_owned()),
            "{}",
            body_text(&mail)
        );
        // The label is untrue: nothing is decoded.
        let mail = send("S", &headers, whole.as_bytes());
        assert_eq!(
            (text(&mail, 0), text(&mail, 1)),
            ("eins".to_owned(), "zw\u{f6}i = 2".to_owned()),
            "{}",
            body_text(&mail)
        );
        assert!(labels(&mail).contains(&"encoding (Content-Transfer-Encoding)".to_owned()), "{:?}", mail.repairs);
    }
}

#[test]
fn an_untrue_label_around_parts_in_quoted_printable_changes_nothing_in_them() {
    let inner = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nzw=C3=B6i =3D3D 2\r\n";
    let parts = format!("--b\r\n{inner}--b--\r\n");
    for label in ["quoted-printable", "base64"] {
        let headers = format!("Content-Type: multipart/mixed; boundary=b\r\nContent-Transfer-Encoding: {label}\r\n");
        let mail = send("S", &headers, parts.as_bytes());
        assert_eq!((body_text(&mail), text(&mail, 0).as_str()), (parts.as_str(), "zw\u{f6}i =3D 2"));
        let nested = format!("--o\r\n{headers}\r\n{parts}--o--\r\n");
        let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.as_bytes());
        assert_eq!(body_text(&mail), nested.replacen(label, "7bit", 1));
    }
    // A line of a header may be divided as any other line.
    let quoted = "--b\nContent-Type: text/plain;=\n charset=3Dutf-8\n\nzw=C3=B6i =3D 2\n--b--\n";
    let headers = "Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: quoted-printable\n";
    assert_eq!(text(&send("S", headers, quoted.as_bytes()), 0), "zw\u{f6}i = 2");
}

#[test]
fn parts_inside_of_parts_pass_byte_for_byte() {
    let inner = "Content-Type: multipart/alternative; boundary=i\r\n\r\n--i\r\n\r\neins\r\n--i\r\n\r\nzwei\r\n--i--";
    for (before, behind) in [("", ""), ("vorher\r\n", "\r\nnachher")] {
        let nested = format!("{before}--o\r\n{inner}{behind}\r\n--o--\r\n");
        let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.as_bytes());
        assert_eq!((body_text(&mail), labels(&mail)), (nested.as_str(), vec![]));
        let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.replace("\r\n", "\r").as_bytes());
        assert_eq!(body_text(&mail), nested);
    }
}

#[test]
fn what_is_signed_or_encrypted_and_would_change_on_its_way_is_set_aside() {
    let binary = "Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: binary\r\n";
    for (content, what) in [("0\n1\r\n", "bare LF"), ("0\r1\r\n", "bare CR"), ("0\0x\r\n", "NULs")] {
        let part = format!("--o\r\n{binary}\r\n{content}\r\n--o--\r\n");
        for (headers, body) in [(binary, content), ("Content-Type: multipart/mixed; boundary=o\r\n", &part)] {
            let refusal = try_send("S", headers, body.as_bytes()).unwrap_err();
            assert_eq!(refusal.reason, Reason::NotTransportable);
            assert!(refusal.detail.contains(what), "{refusal}");
        }
    }
    assert_eq!(body_text(&send("S", binary, b"0\r\n1\r\n")), "0\r\n1\r\n");
    let text = "Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: base64\r\n";
    assert_eq!(body_text(&send("S", text, b"QUJD\nQUJD\n")), "QUJD\r\nQUJD\r\n");
}

#[test]
fn a_first_line_that_is_no_delimiter_names_no_boundary() {
    for body in ["--\nx\n--\n----\n", "xxb\n--b\n\neins\nxxb\n--b--\n", "--b\neins\n"] {
        let mail = send("S", "Content-Type: multipart/mixed;\n", body.as_bytes());
        assert_eq!(header(&mail, "Content-Type").unwrap(), "text/plain; charset=utf-8");
        assert_eq!(body_text(&mail), body.replace('\n', "\r\n"));
    }
}

#[test]
fn a_mail_inside_in_an_encoding_that_nobody_can_undo_stays_as_it_is() {
    let headers = "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: x-uuencode\r\n";
    let content = "begin 644 x.eml\r\n#86)C\r\n`\r\nend\r\n";
    let mail = send("S", headers, content.as_bytes());
    assert_eq!((body_text(&mail), labels(&mail)), (content, vec![]));
    let nested = format!("--o\r\n{headers}\r\n{content}--o--\r\n");
    let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.as_bytes());
    assert_eq!((body_text(&mail), labels(&mail)), (nested.as_str(), vec![]));
}

#[test]
fn a_mail_inside_whose_headers_are_not_quoted_is_not_unquoted() {
    let headers = "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable\r\n";
    let inner = "Subject: innen\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nzw=C3=B6i =3D3D 2\r\n";
    let mail = send("S", headers, inner.as_bytes());
    assert_eq!((body_text(&mail), labels(&mail)), (inner, vec![]));
}

#[test]
fn a_mail_inside_that_says_base64_and_is_none_goes_out_as_the_mail_that_it_is() {
    let headers = "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n";
    let inner = "Subject: innen\r\nContent-Type: text/plain; charset=utf-8\r\n\r\neins\r\n";
    let mail = send("S", headers, inner.as_bytes());
    assert_eq!((body_text(&mail), header(&mail, "Content-Transfer-Encoding")), (inner, None));
    assert_eq!(labels(&mail), ["encoding (Content-Transfer-Encoding)"]);
    let nested = format!("--o\r\n{headers}\r\n{inner}--o--\r\n");
    let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.as_bytes());
    assert_eq!(body_text(&mail), nested.replace("base64", "7bit"));
    assert_eq!(labels(&mail), ["encoding (part 1)"]);
}

#[test]
fn the_transfer_encoding_of_a_mail_inside_is_undone() {
    use base64::Engine;
    let inner = "From: b@example.org\nSubject: innen\nContent-Type: text/plain; charset=utf-8\n\nzw\u{f6}i\n";
    let base64 = base64::engine::general_purpose::STANDARD.encode(inner);
    let nested = format!("--o\nContent-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n{base64}\n--o--\n");
    let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.as_bytes());
    let sent = body_text(&mail);
    assert!(sent.contains("\r\nSubject: innen\r\n") && sent.contains("\r\nzw=C3=B6i"), "{sent}");
    assert!(sent.contains("Content-Transfer-Encoding: 7bit\r\n\r\nFrom: b@example.org"), "{sent}");
    let mail = send("S", "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n", base64.as_bytes());
    assert!(body_text(&mail).contains("\r\nSubject: innen\r\n"), "{}", body_text(&mail));
}

#[test]
fn addresses_in_the_headers_of_a_mail_inside_stay_addresses() {
    let inner = "From: J\u{f6}rg <j@example.org>\nTo: J\u{f6}rg <j@example.org>, K\u{e4}the <k@example.org>\nContent-ID: <\u{f6}@example.org>\n\nx\n";
    let nested = format!("--o\nContent-Type: message/rfc822\n\n{inner}\n--o--\n");
    let mail = send("S", "Content-Type: multipart/mixed; boundary=o\n", nested.as_bytes());
    let sent = body_text(&mail);
    assert!(sent.contains("<j@example.org>, ") && sent.contains("<k@example.org>"), "{sent}");
    assert!(!sent.contains("Content-ID"), "{sent}");
    assert!(labels(&mail).contains(&"header-dropped (part 1.1)".to_owned()), "{:?}", mail.repairs);
}
