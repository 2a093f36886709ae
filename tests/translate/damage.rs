//! Damaged columns: the row is set aside with a reason that names the column and what is wrong with it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::mail::{Capabilities, ColumnLimits, Columns};
use mailqueue::outcome::Reason;
use mailqueue::translate::{Settings, translate};

use crate::rows::{columns, corpus_limits, render, settings, stamp};

const FROM: &[u8] = b"From: anna@example.org\n";

fn good() -> Columns {
    columns(b"lea@example.org", b"Hallo", FROM, b"Text\n")
}

/// The reason and the words for it, for a row with this in place of its body.
fn refusal_of_body(stored: &[u8]) -> (Reason, String) {
    let refusal = render(&Columns { mbody: Some(stored.to_vec()), ..good() }).unwrap_err();
    (refusal.reason, refusal.detail)
}

#[test]
fn line_breaks_inside_base64_are_fine() {
    let body = STANDARD.encode(b"zweiundsiebzig Zeichen und ein paar mehr, in Zeilen, wie es manche schreiben");
    for ending in ["\n", "\r\n", "\r"] {
        let broken = body.as_bytes().chunks(10).map(|line| String::from_utf8_lossy(line).into_owned() + ending);
        let broken: String = broken.collect();
        let mail = render(&Columns { mbody: Some(broken.into_bytes()), ..good() }).unwrap();
        assert!(mail.content.ends_with("wie es manche schreiben\r\n".as_bytes()), "{:?}", mail.content);
    }
}

#[test]
fn a_foreign_character_in_base64_is_named_with_its_place() {
    for (stored, place) in
        [("SGFs-G8=", "byte 5 (0x2d)"), ("SGFsbG8 ", "byte 8 (0x20)"), ("Hall\u{f6}___", "byte 5 (0xc3)")]
    {
        let (reason, detail) = refusal_of_body(stored.as_bytes());
        assert_eq!(reason, Reason::Base64Invalid);
        assert!(detail.contains("mbody") && detail.contains(place), "{detail}");
    }
}

#[test]
fn base64_that_is_cut_or_padded_wrongly_is_never_mailed() {
    for stored in ["SGFsbG8", "SGFsbG8==", "SGFs=G8=", "====", "SGFsbA=", "=SGFsbG8", "A==="] {
        let (reason, detail) = refusal_of_body(stored.as_bytes());
        assert_eq!(reason, Reason::Base64Invalid, "{stored}");
        assert!(detail.contains("mbody"), "{detail}");
    }
}

#[test]
fn a_value_that_fills_its_column_was_cut_off() {
    let columns = good();
    let length = columns.mto.as_ref().unwrap().len() as u64;
    let limits = ColumnLimits { mto: length, ..ColumnLimits::default() };
    let refusal = translate(&columns, &limits, &stamp(), Capabilities::default(), &settings()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Truncated);
    assert!(refusal.detail.contains("mto") && refusal.detail.contains(&length.to_string()), "{refusal}");
    for mto in [length - 1, length + 1, u64::MAX] {
        let limits = ColumnLimits { mto, ..limits };
        assert!(translate(&columns, &limits, &stamp(), Capabilities::default(), &settings()).is_ok());
    }
}

#[test]
fn nulls_are_empty() {
    let columns = Columns { mto: None, mparams: None, msubject: None, mbody: None, ..good() };
    assert_eq!(render(&columns).unwrap_err().reason, Reason::NoRecipient);
    let columns = Columns { mto: good().mto, ..columns };
    let mail = render(&columns).unwrap();
    assert!(mail.content.ends_with(b"\r\n\r\n"));
    assert_eq!(render(&Columns { mheaders: None, ..good() }).unwrap_err().reason, Reason::NoSender);
    let columns = Columns { mto: None, ..self::columns(b"", b"x", b"From: a@example.org\nBcc: b@example.org", b"y") };
    assert_eq!(render(&columns).unwrap().envelope.recipients.len(), 1);
}

#[test]
fn a_row_without_a_usable_from_takes_the_configured_one() {
    let settings = Settings { default_from: Some("noreply@example.org".parse().unwrap()), ..settings() };
    let columns = Columns { mheaders: Some(STANDARD.encode("From: kaputt\n").into_bytes()), ..good() };
    let mail = translate(&columns, &ColumnLimits::default(), &stamp(), Capabilities::default(), &settings).unwrap();
    let text = String::from_utf8_lossy(&mail.content);
    assert!(text.contains("\r\nFrom: noreply@example.org\r\n"), "{text}");
    assert_eq!(mail.envelope.sender.unwrap().to_string(), "noreply@example.org");
    assert!(mail.repairs.iter().any(|repair| repair.text.contains("default_from")));
}

#[test]
fn the_rendered_mail_is_what_counts_against_max_size() {
    let letters = "Gr\u{fc}\u{df}e an alle\n".repeat(10_000);
    let umlauts = "\u{fc}\u{f6}\u{e4}\n".repeat(20_000);
    let file: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let zip = [FROM, b"Content-Type: application/zip\nContent-Transfer-Encoding: binary\n"].concat();
    let mixed = [FROM, b"Content-Type: multipart/mixed; boundary=b\n"].concat();
    let part = |headers: &str, content: &[u8]| {
        let body = [b"--b\n", headers.as_bytes(), b"\n\n", content, b"\n--b--\n"].concat();
        columns(b"lea@example.org", b"Hallo", &mixed, &body)
    };
    for columns in [
        good(),
        part("Content-Type: text/plain; charset=utf-8", letters.as_bytes()),
        part("Content-Type: text/plain; charset=utf-8", format!("\u{fc}{}", "\r\n".repeat(50_000)).as_bytes()),
        part("Content-Type: application/zip", &file),
        columns(b"lea@example.org", b"Hallo", FROM, letters.as_bytes()),
        columns(b"lea@example.org", b"Hallo", FROM, umlauts.as_bytes()),
        columns(b"lea@example.org", b"Hallo", &zip, &file),
    ] {
        let wire = Capabilities { eight_bit: false, ..Capabilities::default() };
        let fits = |max_size| {
            let settings = Settings { max_size, ..settings() };
            translate(&columns, &ColumnLimits { mbody: u64::MAX, ..corpus_limits() }, &stamp(), wire, &settings)
        };
        let size = fits(40_000_000).unwrap().content.len() as u64;
        assert_eq!(fits(size).map(|mail| mail.content.len() as u64), Ok(size));
        for max_size in [size - 1, size / 2, 1] {
            let refusal = fits(max_size).unwrap_err();
            assert_eq!(refusal.reason, Reason::TooLarge);
            let bytes: u64 = refusal.detail.split(' ').find_map(|word| word.parse().ok()).unwrap();
            assert!(max_size < bytes && bytes <= size, "{max_size} of {size}: {refusal}");
        }
    }
}
