//! Header blocks: nobody in them is dropped silently, and nothing in a value becomes a header.

use std::collections::BTreeSet;

use mailqueue::mail::{Columns, Mail};
use mailqueue::outcome::Reason;
use mailqueue::translate::Unreadable;
use proptest::prelude::*;

use crate::rows::{columns, config, render};

fn row(block: &str, body: &str) -> Columns {
    columns(b"a@e.org", b"S", block.as_bytes(), body.as_bytes())
}

fn sent(block: &str) -> Result<Mail, Unreadable> {
    render(&row(block, "B\n"))
}

fn recipients(mail: &Mail) -> BTreeSet<String> {
    mail.envelope.recipients.iter().map(ToString::to_string).collect()
}

fn set(addresses: &[&str]) -> BTreeSet<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn labels(mail: &Mail) -> Vec<String> {
    mail.repairs.iter().map(|repair| repair.label()).collect()
}

fn text(mail: &Mail) -> String {
    String::from_utf8_lossy(&mail.content).into_owned()
}

#[test]
fn a_line_of_blanks_is_a_fold_and_only_an_empty_line_ends_the_block() {
    let mail = sent("From: n@e.at\r\nBcc: b1@e.org,\r\n \r\n\tb2@e.org\r\nCc: cc@e.org\r\nX-A: 1\r\n").unwrap();
    assert_eq!(recipients(&mail), set(&["a@e.org", "b1@e.org", "b2@e.org", "cc@e.org"]));
    let block = "From: n@e.at\r\nX-Note: a\r\n \r\nBcc: second@e.org\r\nContent-Type: text/html; charset=utf-8\r\n";
    let mail = sent(block).unwrap();
    assert_eq!(recipients(&mail), set(&["a@e.org", "second@e.org"]));
    assert!(text(&mail).contains("\r\nContent-Type: text/html; charset=utf-8\r\n"), "{}", text(&mail));
}

#[test]
fn lines_may_end_in_a_doubled_cr() {
    let parts = "--b\r\r\nContent-Type: text/plain; charset=utf-8\r\r\nContent-Transfer-Encoding: base64\r\r\n\r\r\nSGFsbG8=\r\r\n--b--\r\r\n";
    let block = "From: n@e.at\r\r\nCc: cc@e.org\r\r\nBcc: bcc@e.org\r\r\nContent-Type: multipart/mixed;\r\r\n\tboundary=b\r\r\n";
    let mail = render(&row(block, parts)).unwrap();
    assert_eq!(recipients(&mail), set(&["a@e.org", "cc@e.org", "bcc@e.org"]));
    let text = text(&mail);
    assert!(text.contains("\r\nCc: cc@e.org\r\n") && text.contains("multipart/mixed; boundary=b\r\n"), "{text}");
    assert!(text.ends_with("Content-Transfer-Encoding: base64\r\n\r\nSGFsbG8=\r\n--b--\r\n"), "{text}");
    let mail = render(&row("From: n@e.at\r\r\nContent-Type: text/plain; charset=utf-8\r\r\n", "eins\r\r\nzwei\r\r\n"))
        .unwrap();
    assert!(mail.content.ends_with(b"\r\n\r\neins\r\nzwei\r\n"), "{:?}", mail.content);
}

#[test]
fn a_cr_alone_in_a_block_with_lfs_adds_no_header() {
    let bad = sent("From: n@e.at\rBcc: evil@e.org\r\nX-A: b").unwrap_err();
    assert_eq!(bad.reason, Reason::NoSender, "{bad}");
    let mail = sent("From: n@e.at\r\nX-Note: x\rBcc: evil@e.org\r\nX-A: b").unwrap();
    assert_eq!(recipients(&mail), set(&["a@e.org"]));
    assert!(text(&mail).contains("\r\nX-Note: x Bcc: evil@e.org\r\n"), "{}", text(&mail));
}

#[test]
fn a_cr_before_a_name_makes_no_header_of_it() {
    for block in ["From: n@e.at\r\n\rBcc: evil@e.org\r\nX-A: b\r\n", "From: n@e.at\n\rBcc: evil@e.org\nX-A: b\n"] {
        let refusal = sent(block).unwrap_err();
        assert_eq!(refusal.reason, Reason::HeaderInvalid, "{block:?}: {refusal}");
    }
}

#[test]
fn raw_eight_bit_text_in_a_header_is_encoded_and_said_with_its_charset() {
    for (bytes, charset) in [("Gr\u{fc}n".as_bytes(), "UTF-8"), (b"Gr\xfcn", "Windows-1252")] {
        let block = [b"From: n@e.at\nX-Note: ".as_slice(), bytes, b"\n"].concat();
        let mail = render(&columns(b"a@e.org", b"S", &block, b"B\n")).unwrap();
        assert!(text(&mail).contains("\r\nX-Note: =?utf-8?b?R3LDvG4=?=\r\n"), "{}", text(&mail));
        assert_eq!(labels(&mail)[0], "header-encoded (X-Note)");
        assert!(mail.repairs[0].text.contains(charset), "{:?}", mail.repairs);
    }
}

#[test]
fn a_list_goes_on_in_lines_without_a_blank_before_them() {
    let mail = sent("From: n@e.at\nBcc: a@e.org,\nb@e.org,\nc@e.org\nReply-To: r@e.at\n").unwrap();
    assert_eq!(recipients(&mail), set(&["a@e.org", "b@e.org", "c@e.org"]));
    assert!(labels(&mail).contains(&"line-end (Bcc)".to_owned()), "{:?}", labels(&mail));
    let mail = sent("From: n@e.at\nContent-Type: text/html;\ncharset=utf-8\n").unwrap();
    assert!(text(&mail).contains("\r\nContent-Type: text/html; charset=utf-8\r\n"), "{}", text(&mail));
}

#[test]
fn a_line_that_is_no_header_is_left_out_with_a_repair_unless_it_could_name_a_recipient() {
    let mail = sent("From n@e.at Mon Jan  1 10:00:00 2018\nFrom: n@e.at\nkein Doppelpunkt hier\nX-A : b\n").unwrap();
    assert_eq!(labels(&mail).iter().filter(|label| *label == "header-dropped (mheaders)").count(), 2);
    assert!(text(&mail).contains("\r\nX-A: b\r\n"));
    for line in ["b@e.org", "B\u{fc}cc: b@e.org", "Cc b@e.org"] {
        let refusal = sent(&format!("From: n@e.at\n{line}\nX-A: b\n")).unwrap_err();
        assert_eq!(refusal.reason, Reason::HeaderInvalid, "{line}");
        assert!(refusal.detail.contains("mheaders") && refusal.detail.contains("b@e.org"), "{refusal}");
    }
}

#[test]
fn the_first_header_may_stand_behind_a_mark_or_blanks() {
    for start in ["\u{feff}", " ", "\r\n \r\n"] {
        let mail = sent(&format!("{start}Bcc: b@e.org\r\nFrom: n@e.at\r\n")).unwrap();
        assert_eq!(recipients(&mail), set(&["a@e.org", "b@e.org"]), "{start:?}");
    }
}

#[test]
fn a_body_behind_the_headers_is_sent_where_mbody_is_empty_and_sets_the_row_aside_where_it_is_not() {
    let block = "From: n@e.at\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nGr\u{fc}\u{df}e\r\n";
    for body in ["", "\r\n \n"] {
        let mail = render(&row(block, body)).unwrap();
        assert!(mail.content.ends_with(b"\r\n\r\nGr=C3=BC=C3=9Fe\r\n"), "{}", text(&mail));
        assert!(labels(&mail).contains(&"content-type (mheaders)".to_owned()), "{:?}", labels(&mail));
    }
    let refusal = render(&row(block, "Text\n")).unwrap_err();
    assert_eq!(refusal.reason, Reason::HeaderInvalid);
    assert!(refusal.detail.contains("empty line") && refusal.detail.contains("Gr\u{fc}\u{df}e"), "{refusal}");
}

/// A block by RFC 5322 with its obsolete folds, in one of the line ends that producers write, and those whom it names.
fn block() -> impl Strategy<Value = (String, BTreeSet<String>)> {
    let fold = prop::sample::select(&[" ", "#\t", "#  ", "# # ", " #\t# "][..]);
    let people = prop::collection::vec(("[a-z]{1,6}", fold), 1..5);
    let field = prop_oneof![
        4 => (prop::sample::select(&["Bcc", "Cc", "bcc", "BCC ", "To", "cC"][..]), people).prop_map(|(name, people)| {
            let list: Vec<String> = people.iter().map(|(local, fold)| format!("{fold}{local}@e.org")).collect();
            (format!("{name}:{}", list.join(",")), people.iter().map(|(local, _)| format!("{local}@e.org")).collect())
        }),
        1 => Just(("X-Mailer: PHP#\tBcc: nobody@e.org".to_owned(), vec![])),
        1 => Just(("Content-Type: text/plain;#\tcharset=utf-8".to_owned(), vec![])),
        1 => Just(("X-Empty:".to_owned(), vec![])),
        1 => Just(("no colon here".to_owned(), vec![])),
    ];
    let end = prop::sample::select(&["\r\n", "\n", "\r", "\r\r\n", "\n\r"][..]);
    (prop::collection::vec(field, 0..7), end, 0..4_usize).prop_map(|(mut fields, end, last)| {
        fields.insert(0, ("From: n@e.at".to_owned(), vec![]));
        let lines: Vec<&str> = fields.iter().map(|(line, _)| line.as_str()).collect();
        let named = fields.iter().flat_map(|(_, people)| people.clone()).chain(["a@e.org".to_owned()]).collect();
        (format!("{}{}", lines.join("#"), "#".repeat(last)).replace('#', end), named)
    })
}

proptest! {
    #![proptest_config(config(1_000))]

    #[test]
    fn generated_blocks_reach_exactly_those_whom_they_name((block, named) in block()) {
        let mail = sent(&block);
        prop_assert!(mail.is_ok(), "{:?}: {:?}", mail, block);
        prop_assert_eq!(recipients(&mail.unwrap()), named, "{:?}", block);
    }
}
