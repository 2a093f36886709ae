//! Nothing of a row is dropped silently: what is neither sent nor invalid sets the row aside or is a repair.

use mailqueue::mail::Mail;
use mailqueue::outcome::Reason;
use mailqueue::translate::Unreadable;

use crate::mails::{body_text, files, head, header, labels, send, text, try_send};
use crate::rows::{columns, render};

fn row(mto: &str, block: &str, body: &str) -> Result<Mail, Unreadable> {
    render(&columns(mto.as_bytes(), b"S", format!("From: n@e.at\r\n{block}").as_bytes(), body.as_bytes()))
}

fn recipients(mail: &Mail) -> Vec<&str> {
    mail.envelope.recipients.iter().map(AsRef::as_ref).collect()
}

fn invalid(mail: &Mail) -> Vec<&str> {
    mail.invalid.iter().map(|invalid| invalid.written.as_str()).collect()
}

#[test]
fn an_address_in_quotation_marks_or_an_encoded_word_is_invalid_and_no_part_of_the_next_name() {
    for (written, shown) in [("\"anna@e.org\"", "\"anna@e.org\""), ("=?utf-8?q?anna=40e.org?=", "anna@e.org")] {
        let mail = row(&format!("{written}, Carl <c@e.org>"), "", "B\n").unwrap();
        assert_eq!((recipients(&mail), invalid(&mail)), (vec!["c@e.org"], vec![shown]));
        assert_eq!(header(&mail, "To").unwrap(), "Carl <c@e.org>");
    }
    let mail = row("\"Moser\", Max <m@e.org>, x@@y", "", "B\n").unwrap();
    assert_eq!((recipients(&mail), invalid(&mail)), (vec!["m@e.org"], vec!["x@@y"]));
}

#[test]
fn a_comment_behind_a_bracket_is_neither_a_recipient_nor_a_fault() {
    let mail = row("Max <a@e.org> (or b@e.org), <c@e.org> (>) <d@e.org>, x@@y", "", "B\n").unwrap();
    assert_eq!((recipients(&mail), invalid(&mail)), (vec!["a@e.org", "c@e.org", "d@e.org"], vec!["x@@y"]));
}

#[test]
fn a_colon_in_a_name_makes_no_header_of_a_recipient() {
    let mail =
        row("a@e.org", "Bcc: b1@e.org,\r\n\"Bezirk: Wien\" <b2@e.org>,\r\nb3@e.org\r\nX-A: 1\r\n", "B\n").unwrap();
    assert_eq!(recipients(&mail), ["a@e.org", "b1@e.org", "b2@e.org", "b3@e.org"]);
    assert!(!head(&mail).contains("Bezirk"), "{}", head(&mail));
    for line in ["\"Bezirk: Wien\" <b2@e.org>", "anna@e.org: hello", "<b@e.org>:"] {
        let refused = row("a@e.org", &format!("X-A: 1\r\n{line}\r\n"), "B\n").unwrap_err();
        assert_eq!(refused.reason, Reason::HeaderInvalid, "{line}");
    }
}

#[test]
fn lines_that_may_be_the_text_of_the_mail_are_not_left_out_of_an_empty_one() {
    for block in ["Hello everybody\r\nwe meet at 8\r\n", "Hello everybody\r\n\r\nwe meet at 8\r\n"] {
        let refused = row("a@e.org", block, " \r\n").unwrap_err();
        assert_eq!(refused.reason, Reason::HeaderInvalid);
        assert!(refused.detail.contains("Hello everybody"), "{refused}");
    }
    let mail = row("a@e.org", "noise\r\n", "B\n").unwrap();
    assert!(labels(&mail).contains(&"header-dropped (mheaders)".to_owned()));
}

#[test]
fn further_encodings_and_types_that_are_none_are_said() {
    let mail = send("S", "Content-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n", b"R3LDvMOfZQ==\n");
    assert_eq!(labels(&mail), ["header-dropped (Content-Transfer-Encoding)"]);
    for kind in ["text/html:charset=utf-8", "<text/html>", "; charset=utf-8"] {
        let mail = send("S", &format!("Content-Type: {kind}\n"), b"<p>x</p>\n");
        assert_eq!(labels(&mail), ["content-type (Content-Type)"], "{kind}");
    }
    let sealed = "Content-Type: application/pkcs7-mime\nContent-Transfer-Encoding: base-64\n";
    assert_eq!(labels(&send("S", sealed, b"AAAA\n")), ["encoding (Content-Transfer-Encoding)"]);
}

#[test]
fn all_pieces_of_a_name_are_kept_and_parameters_beyond_reason_are_said_to_be_left_out() {
    let pieces = |count| (0..count).map(|number| format!("; filename*{number}=ab")).collect::<String>();
    let headers = |count| {
        format!(
            "Content-Type: application/pdf\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment{}\n",
            pieces(count)
        )
    };
    let mail = send("S", &headers(120), b"AAAA\n");
    assert_eq!(labels(&mail), [""; 0]);
    assert_eq!(header(&mail, "Content-Disposition").unwrap(), format!("attachment{}", pieces(120)));
    assert_eq!(labels(&send("S", &headers(301), b"AAAA\n")), ["header-rewritten (Content-Disposition)"]);
    let headers = format!("Content-Type: text/plain{}\n", pieces(301).replace("filename", "x"));
    assert_eq!(labels(&send("S", &headers, b"A\n")), ["content-type (Content-Type)"]);
}

#[test]
fn raw_letters_in_an_extended_name_are_encoded() {
    let headers = "Content-Type: application/pdf\nContent-Transfer-Encoding: base64\n\
        Content-Disposition: attachment; filename*=utf-8''Gr\u{f6}\u{df}e.pdf\n";
    assert_eq!(files(&send("S", headers, b"AAAA\n"))[0].0, "Gr\u{f6}\u{df}e.pdf");
}

#[test]
fn a_hundred_repairs_hide_no_other_kind_of_repair() {
    let raw: String = (0..120).map(|number| format!("X-{number}: \u{fc}\n")).collect();
    let mail = send("S", &format!("{raw}Reply-To: broken@@\nnoise\n"), b"B\n");
    for label in ["address-dropped (Reply-To)", "header-dropped (mheaders)"] {
        assert!(labels(&mail).contains(&label.to_owned()), "{label}");
    }
    let last = &mail.repairs.last().unwrap().text;
    assert!(last.ends_with("; further repairs are not listed"), "{last}");
    let few = send("S", "X-1: \u{fc}\n", b"B\n");
    assert!(few.repairs.iter().all(|repair| !repair.text.contains("further repairs")));
}

const MULTIPART: &str = "Content-Type: multipart/mixed; boundary=b1\n";

#[test]
fn lines_that_end_in_lf_cr_are_lines_in_every_part() {
    let body = "--b1\nContent-Type: text/plain;\n\tcharset=utf-8\n\none\n\ntwo\n--b1\nContent-Type: text/html\n\n<p>x</p>\n--b1--\n";
    let mail = send("S", MULTIPART, body.replace('\n', "\n\r").as_bytes());
    assert_eq!(text(&mail, 0), "one\n\ntwo");
    assert_eq!(mail.content, send("S", MULTIPART, body.as_bytes()).content);
    let file = "Content-Type: application/x\nContent-Disposition: attachment; filename=x.bin\n";
    assert_eq!(files(&send("S", file, b"a\n\rb\n\r"))[0].1, b"a\n\rb\n\r");
}

#[test]
fn a_cr_in_the_header_of_a_part_adds_no_header_and_ends_none() {
    let body =
        "--b1\r\nContent-Type: application/x; name=\"a\rX-Evil: 1\r\r<script>\"\r\nX-B: 1\r\n\r\nHello\r\n--b1--\r\n";
    let mail = send("S", MULTIPART, body.as_bytes());
    let part = body_text(&mail).split("\r\n\r\n").next().unwrap();
    assert!(part.ends_with("X-B: 1") && !part.contains("\r\nX-Evil"), "{part}");
    assert!(labels(&mail).contains(&"header-rewritten (part 1)".to_owned()));
}

#[test]
fn a_body_without_an_empty_line_is_not_taken_for_the_rest_of_a_content_type() {
    let mail =
        try_send("S", "Content-Type: multipart/mixed;\n", b"\tboundary=\"b\"\nTodo: milk\nNote: eggs\n").unwrap();
    assert!(body_text(&mail).contains("Todo: milk\r\nNote: eggs"), "{}", body_text(&mail));
}
