//! Bodies: passed on where they are what they say, repaired where they are not, refused where neither can be.

use mailqueue::mail::{Capabilities, ColumnLimits, Mail};
use mailqueue::outcome::Reason;
use mailqueue::translate::{Unreadable, translate};

use crate::rows::{columns, render, settings, stamp};

const MIXED: &str = "multipart/mixed; boundary=b";

fn sent(kind: &str, body: &[u8]) -> Result<Mail, Unreadable> {
    let headers = format!("From: a@example.org\nMIME-Version: 1.0\nContent-Type: {kind}\n");
    render(&columns(b"lea@example.org", b"x", headers.as_bytes(), body))
}

fn body(mail: &Mail) -> &[u8] {
    let start = mail.content.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    &mail.content[start + 4..]
}

fn texts(mail: &Mail) -> Vec<&str> {
    mail.repairs.iter().map(|repair| repair.text.as_str()).collect()
}

fn with_crlf(text: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(text).replace("\r\n", "\n").replace('\n', "\r\n").into_bytes()
}

#[test]
fn a_multipart_that_is_what_it_says_passes_byte_for_byte() {
    let text = b"preamble\n--b\nContent-Type: text/plain;\n\tcharset=\"utf-8\"\nX-Odd :  spaces \nContent-Transfer-Encoding: 7bit\n\nnothing to mend\n\n--b  \nContent-Type: application/pdf; name=x.pdf\nContent-Transfer-Encoding: base64\n\nQUJD\nREVG\n--b--\nepilogue\n";
    let mail = sent(MIXED, text).unwrap();
    let expected = with_crlf(text).as_slice().to_vec();
    let expected = String::from_utf8(expected).unwrap().replace("--b  \r\n", "--b\r\n");
    assert_eq!(String::from_utf8_lossy(body(&mail)), expected);
    assert_eq!(texts(&mail), [""; 0]);
    assert!(!mail.eight_bit);
}

#[test]
fn only_the_part_at_fault_is_encoded_anew_and_the_repair_is_named() {
    let good = "--b\nContent-Type: text/plain; charset=utf-8\n\neins\n";
    let bad = "--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 7bit\n\nzw\u{f6}i\n";
    let mail = sent(MIXED, format!("{good}{bad}--b--\n").as_bytes()).unwrap();
    let expected = with_crlf(
        format!("{good}{}--b--\n", bad.replace("7bit", "quoted-printable").replace('\u{f6}', "=C3=B6")).as_bytes(),
    );
    assert_eq!(String::from_utf8_lossy(body(&mail)), String::from_utf8_lossy(&expected));
    assert_eq!(texts(&mail), ["part 2 said 7bit and held 8-bit text: sent as quoted-printable"]);
}

#[test]
fn honest_8bit_parts_go_as_they_are_only_where_the_smarthost_takes_them() {
    let part = "--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nzw\u{f6}i\n--b--\n";
    let mail = sent(MIXED, part.as_bytes()).unwrap();
    assert!(mail.eight_bit);
    assert_eq!(body(&mail), with_crlf(part.as_bytes()));
    assert!(String::from_utf8_lossy(&mail.content).contains("\r\nContent-Transfer-Encoding: 8bit\r\n"));
    let headers = format!("From: a@example.org\nContent-Type: {MIXED}\n");
    let columns = columns(b"lea@example.org", b"x", headers.as_bytes(), part.as_bytes());
    let wire = Capabilities { eight_bit: false, ..Capabilities::default() };
    let mail = translate(&columns, &ColumnLimits::default(), &stamp(), wire, &settings()).unwrap();
    assert!(!mail.eight_bit && mail.content.is_ascii());
}

#[test]
fn a_lost_last_character_and_a_lost_closing_delimiter_are_put_back() {
    let text = "--b\n\neins\n--b--";
    for lost in 1..=text.len() - "--b\n\neins".len() {
        let mail = sent(MIXED, &text.as_bytes()[..text.len() - lost]).unwrap();
        assert!(body(&mail).ends_with(b"\r\n--b--\r\n"), "{lost}: {:?}", String::from_utf8_lossy(body(&mail)));
        if !matches!(lost, 3 | 4) {
            assert_eq!(body(&mail), b"--b\r\n\r\neins\r\n--b--\r\n", "{lost}");
        }
        assert_eq!(mail.repairs.len(), 1, "{lost}: {:?}", mail.repairs);
    }
}

#[test]
fn a_boundary_at_the_top_of_the_body_is_put_where_it_belongs() {
    let mail =
        sent("multipart/alternative;", b"\n boundary=\"----=_Part_10\"\n\n------=_Part_10\n\neins\n------=_Part_10-")
            .unwrap();
    assert!(String::from_utf8_lossy(&mail.content).contains("multipart/alternative; boundary=\"----=_Part_10\"\r\n"));
    assert!(body(&mail).ends_with(b"------=_Part_10\r\n\r\neins\r\n------=_Part_10--\r\n"));
}

const SIGNED: &str = "multipart/signed; micalg=pgp-sha256; protocol=\"application/pgp-signature\"; boundary=b";

#[test]
fn signed_and_encrypted_parts_are_never_touched() {
    let text = "--b\nContent-Type: text/plain; charset=us-ascii\nContent-Transfer-Encoding: 7bit\nX-Name: \u{f6}\n\nlies \u{f6} \u{1}\n--b\nContent-Type: application/pgp-signature; name=s\n\n-----\n--b--\n";
    let mail = sent(SIGNED, text.as_bytes()).unwrap();
    assert_eq!(body(&mail), with_crlf(text.as_bytes()));
    assert!(mail.eight_bit);
    let nested = format!(
        "--c\n\nfrei \u{f6}\n--c\nContent-Type: {SIGNED}\n\n{text}\n--c\nContent-Type: application/pkcs7-mime\nContent-Transfer-Encoding: base64\n\nQUJD\n--c--\n"
    );
    let mail = sent("multipart/mixed; boundary=c", nested.as_bytes()).unwrap();
    let inside = with_crlf(text.trim_end().as_bytes());
    assert!(body(&mail).windows(inside.len()).any(|window| window == inside));
}

#[test]
fn what_is_signed_and_cannot_travel_sets_the_row_aside() {
    let long = "x".repeat(999);
    for inside in [long.as_str(), "bare \r CR", "NUL \0"] {
        let text = format!(
            "--b\nContent-Type: text/plain\n\n{inside}\n--b\nContent-Type: application/pgp-signature\n\n-\n--b--\n"
        );
        let refusal = sent(SIGNED, text.as_bytes()).unwrap_err();
        assert_eq!(refusal.reason, Reason::NotTransportable, "{refusal}");
        assert!(refusal.detail.contains("mbody") && refusal.detail.contains("part 1"), "{refusal}");
    }
}

#[test]
fn smuggled_ends_of_data_become_harmless_lines() {
    for end in ["\n.\r\n", "\r.\r\n", "\r\n.\r", "\n.\n", "\r\n.\n", "\r.\r", "\r\n.\r\n"] {
        let text = format!("eins{end}MAIL FROM:<x@example.net>{end}");
        let mail = sent("text/plain; charset=utf-8", text.as_bytes()).unwrap();
        assert!(String::from_utf8_lossy(body(&mail)).starts_with("eins\r\n.\r\nMAIL FROM"), "{:?}", body(&mail));
    }
}

#[test]
fn lines_of_up_to_998_bytes_stay_and_longer_ones_are_encoded() {
    for (length, stays) in [(997, true), (998, true), (999, false), (1000, false), (100_000, false)] {
        let line = "x".repeat(length);
        let mail = sent("text/plain; charset=utf-8", line.as_bytes()).unwrap();
        assert_eq!(String::from_utf8_lossy(body(&mail)).contains(&line), stays, "{length}");
        let part = format!("--b\nContent-Type: text/plain; charset=utf-8\n\n{line}\n--b--\n");
        let mail = sent(MIXED, part.as_bytes()).unwrap();
        assert_eq!(String::from_utf8_lossy(body(&mail)).contains(&line), stays, "{length} in a part");
    }
}

#[test]
fn single_bytes_that_a_charset_cannot_hold_are_read_as_windows_1252_and_the_rest_is_not_re_read() {
    let mail = sent("text/plain; charset=utf-8", b"\xc3\xbc und \xfc und \x80\n").unwrap();
    assert_eq!(body(&mail), b"=C3=BC und =C3=BC und =E2=82=AC\r\n");
    assert_eq!(texts(&mail), ["bytes that are not UTF-8 were read as Windows-1252"]);
}

#[test]
fn multiparts_nested_without_end_are_no_stack_overflow() {
    let deep: String =
        (0..5000).map(|at| format!("--b{at}\nContent-Type: multipart/mixed; boundary=b{}\n\n", at + 1)).collect();
    let mail = sent("multipart/mixed; boundary=b0", deep.as_bytes()).unwrap();
    assert!(mail.content.is_ascii());
}

#[test]
fn mails_nested_without_end_are_no_stack_overflow_and_nothing_is_lost() {
    let deep = "Content-Type: message/rfc822\n\n".repeat(5_000) + "Subject: innen\n\nzw\u{f6}lf\n";
    for kind in ["message/rfc822", "multipart/mixed; boundary=b"] {
        let body = if kind.starts_with("message") { deep.clone() } else { format!("--b\n{deep}\n--b--\n") };
        let mail = sent(kind, body.as_bytes()).unwrap();
        assert!(mail.content.is_ascii() && mail.content.len() > 5_000 * 30, "{} bytes", mail.content.len());
    }
}

#[test]
fn a_boundary_that_is_found_in_the_body_can_stand_in_a_header() {
    let nul = b"--x\0y\n\neins\n--x\0y\n\nzwei\n--x\0y--\n";
    let mail = sent("multipart/mixed;", nul).unwrap();
    assert!(!mail.content.contains(&0));
    assert!(mail.repairs.iter().any(|repair| repair.text.contains("no parts: sent as text")), "{:?}", mail.repairs);
}

#[test]
fn an_inner_mail_that_is_encoded_anew_says_that_it_is_mime() {
    let inner = "Subject: innen\nFrom: b@example.org\n\nzw\u{f6}i\n";
    let body = format!("--b\nContent-Type: message/rfc822\n\n{inner}\n--b--\n");
    let mail = sent(MIXED, body.as_bytes()).unwrap();
    let text = String::from_utf8(mail.content.to_vec()).unwrap();
    let (_, inner) = text.split_once("Subject: innen\r\n").unwrap();
    assert!(inner.starts_with("From: b@example.org\r\n"), "{inner}");
    assert!(inner.contains("MIME-Version: 1.0\r\n") && inner.contains("zw=C3=B6i"), "{inner}");
}
