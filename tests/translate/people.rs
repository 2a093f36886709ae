//! Who sends, who receives, and what nobody may smuggle in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::mail::{Capabilities, ColumnLimits, Columns, Mail};
use mailqueue::outcome::Reason;
use mailqueue::translate::{Settings, translate};

use crate::rows::{columns, render, settings, stamp};

fn head(mail: &Mail) -> String {
    let text = String::from_utf8_lossy(&mail.content).into_owned();
    text.split("\r\n\r\n").next().unwrap().to_owned() + "\r\n"
}

fn recipients(mail: &Mail) -> Vec<&str> {
    mail.envelope.recipients.iter().map(AsRef::as_ref).collect()
}

#[test]
fn each_address_is_a_recipient_once_and_bcc_is_not_shown() {
    let headers = b"From: a@example.org\nCc: lea@EXAMPLE.org, b@example.org\nBcc: b@example.org, c@example.org\nBcc: d@example.org\n";
    let mail = render(&columns(b"\"Lea\" <lea@example.org>", b"x", headers, b"y")).unwrap();
    assert_eq!(recipients(&mail), ["lea@example.org", "b@example.org", "c@example.org", "d@example.org"]);
    assert!(!head(&mail).to_lowercase().contains("bcc") && !head(&mail).contains("c@example.org"));
}

#[test]
fn an_address_that_cannot_be_one_is_named_and_the_others_get_the_mail() {
    let list = b"a@example.org, a..b@example.org, c@example.org., \"Leer\" <>, kein, x@localhost, y@[127.0.0.1]";
    let mail = render(&columns(list, b"x", b"From: a@example.org\n", b"y")).unwrap();
    assert_eq!(recipients(&mail), ["a@example.org"]);
    let written: Vec<&str> = mail.invalid.iter().map(|invalid| invalid.written.as_str()).collect();
    assert_eq!(written, ["a..b@example.org", "c@example.org.", "\"Leer\" <>", "kein", "x@localhost", "y@[127.0.0.1]"]);
    let quoted = render(&columns(
        b"\"a <b@example.org>\"@example.org, \"a b\"@example.org",
        b"x",
        b"From: a@example.org\n",
        b"y",
    ));
    assert_eq!(recipients(&quoted.unwrap()), ["\"a b\"@example.org"]);
    let refusal = render(&columns(b"kein, noch@@keiner", b"x", b"From: a@example.org\n", b"y")).unwrap_err();
    assert_eq!(refusal.reason, Reason::AddressInvalid);
    assert!(refusal.detail.contains("noch@@keiner"), "{refusal}");
}

#[test]
fn a_line_end_in_mto_adds_no_header_and_no_recipient() {
    for end in ["\r\n", "\n", "\r"] {
        let mto = format!("lea@example.org{end}Bcc: opfer@example.net");
        let mail = render(&columns(mto.as_bytes(), b"x", b"From: a@example.org\n", b"y")).unwrap();
        assert_eq!(recipients(&mail), ["lea@example.org"]);
        assert!(!head(&mail).contains("opfer"), "{}", head(&mail));
        assert_eq!(mail.invalid.len(), 1, "so that the row is not taken for delivered");
        let fold = format!("lea@example.org,{end} \"Zwei\"{end}\t<b@example.org>{end}");
        let mail = render(&columns(fold.as_bytes(), b"x", b"From: a@example.org\n", b"y")).unwrap();
        assert_eq!(recipients(&mail), ["lea@example.org", "b@example.org"]);
        assert!(mail.invalid.is_empty());
    }
}

#[test]
fn a_line_end_in_a_subject_or_name_stays_in_it() {
    for subject in [
        "Hallo\r\nBcc: opfer@example.net",
        "=?UTF-8?Q?Hallo=0D=0ABcc:_opfer=40example.net?=",
        "Hallo\0\rBcc: opfer@example.net",
    ] {
        let headers = b"From: \"=?UTF-8?Q?A=0D=0AX-Evil:_1?=\" <a@example.org>\n";
        let mail = render(&columns(b"lea@example.org", subject.as_bytes(), headers, b"y")).unwrap();
        assert_eq!(mail.subject, "Hallo Bcc: opfer@example.net");
        assert_eq!(recipients(&mail), ["lea@example.org"]);
        let names: Vec<String> = head(&mail)
            .lines()
            .filter(|line| !line.starts_with(' '))
            .map(|line| line.split(':').next().unwrap().to_lowercase())
            .collect();
        assert!(!names.contains(&"bcc".to_owned()) && !names.contains(&"x-evil".to_owned()), "{names:?}");
    }
}

fn sender(headers: &str, params: Option<&str>, configured: Option<&str>) -> Option<String> {
    let mut columns = columns(b"lea@example.org", b"x", headers.as_bytes(), b"y");
    columns.mparams = params.map(|params| STANDARD.encode(params).into_bytes());
    let settings = Settings { envelope_from: configured.map(|address| address.parse().unwrap()), ..settings() };
    let mail = translate(&columns, &ColumnLimits::default(), &stamp(), Capabilities::default(), &settings).unwrap();
    if configured.is_some() {
        // The row's own sender is found in the same order, whatever is configured.
        assert_eq!(mail.own_sender.map(|address| address.to_string()), sender(headers, params, None));
    }
    mail.envelope.sender.map(|address| address.to_string())
}

#[test]
fn the_envelope_sender_is_found_in_its_order() {
    let all = "Return-Path: <r@example.org>\nSender: s@example.org\nFrom: \"F\" <f@example.org>\n";
    let is = |address: &str| Some(address.to_owned());
    assert_eq!(sender(all, Some("-f p@example.org"), Some("c@example.org")), is("c@example.org"));
    assert_eq!(sender(all, Some("-f p@example.org"), None), is("p@example.org"));
    assert_eq!(sender(all, Some("-oi -fp@example.org -bd"), None), is("p@example.org"));
    assert_eq!(sender(all, Some("-f kaputt"), None), is("r@example.org"));
    assert_eq!(sender(all, None, None), is("r@example.org"));
    assert_eq!(sender(&all.replace("Return-Path", "X-Path"), None, None), is("s@example.org"));
    assert_eq!(sender("From: f@example.org\n", Some(""), None), is("f@example.org"));
}

#[test]
fn nothing_stands_in_for_the_null_sender() {
    assert_eq!(sender("Return-Path: <>\nFrom: f@example.org\n", None, Some("c@example.org")), None);
    assert_eq!(sender("Return-Path: r@example.org\nFrom: f@example.org\n", Some("-f <>"), Some("c@example.org")), None);
    assert_eq!(sender("From: f@example.org\n", Some("-f ''"), None), None);
}

#[test]
fn shell_characters_in_mparams_are_harmless() {
    for params in [
        "-fp@example.org; touch /tmp/x",
        "-f 'p@example.org' | sh",
        "-f p@example.org&&id",
        "-f\"p@example.org\" `id`",
        "-f p@example.org$(id)",
    ] {
        assert_eq!(sender("From: f@example.org\n", Some(params), None).unwrap(), "p@example.org", "{params}");
    }
    assert_eq!(
        sender("From: f@example.org\n", Some("-f p@exa\r\nRCPT TO:<x@example.net>"), None).unwrap(),
        "f@example.org"
    );
}

#[test]
fn a_non_ascii_domain_goes_out_in_punycode() {
    let mail = render(&columns("\"Ö\" <lea@exämple.at>".as_bytes(), b"x", b"From: a@example.org\n", b"y")).unwrap();
    assert_eq!(recipients(&mail), ["lea@xn--exmple-cua.at"]);
    assert!(!mail.smtputf8 && mail.content.is_ascii());
}

#[test]
fn a_non_ascii_local_part_asks_for_smtputf8_or_is_that_recipients_failure() {
    let columns = columns("jörg@example.org, lea@example.org".as_bytes(), b"x", b"From: a@example.org\n", b"y");
    let mail = render(&columns).unwrap();
    assert!(mail.smtputf8 && !mail.narrowed && mail.made_for == Capabilities::default());
    assert_eq!(recipients(&mail), ["jörg@example.org", "lea@example.org"]);
    let without = Capabilities { smtputf8: false, ..Capabilities::default() };
    let plain = |columns: &Columns| translate(columns, &ColumnLimits::default(), &stamp(), without, &settings());
    let mail = plain(&columns).unwrap();
    assert!(!mail.smtputf8 && mail.content.is_ascii());
    assert_eq!(recipients(&mail), ["lea@example.org"]);
    assert_eq!(mail.invalid[0].written, "jörg@example.org");
    assert!(mail.narrowed && mail.made_for == without);
    let headers = "Return-Path: jörg@example.org\nFrom: a@example.org\n";
    let columns = crate::rows::columns(b"lea@example.org", b"x", headers.as_bytes(), b"y");
    assert_eq!(plain(&columns).unwrap().envelope.sender.unwrap().to_string(), "a@example.org");
    let alone = crate::rows::columns("jörg@example.org".as_bytes(), b"x", b"From: a@example.org\n", b"y");
    assert_eq!(plain(&alone).unwrap_err().reason, Reason::Smtputf8Unsupported);
}

#[test]
fn a_return_path_is_taken_where_the_smarthost_can_be_told_it() {
    let sender = |path: &str, smtputf8: bool| {
        let headers = format!("Return-Path: <{path}>\nFrom: a@example.org\n");
        let columns = columns(b"lea@example.org", b"x", headers.as_bytes(), b"y");
        let wire = Capabilities { smtputf8, ..Capabilities::default() };
        let mail = translate(&columns, &ColumnLimits::default(), &stamp(), wire, &settings()).unwrap();
        mail.envelope.sender.unwrap().to_string()
    };
    assert_eq!(sender("r@example.org", true), "r@example.org");
    assert_eq!(sender("r@example.org", false), "r@example.org");
    assert_eq!(sender("j\u{f6}rg@example.org", true), "j\u{f6}rg@example.org");
    assert_eq!(sender("j\u{f6}rg@example.org", false), "a@example.org");
}

#[test]
fn several_authors_get_a_sender() {
    let mail = render(&columns(b"lea@example.org", b"x", b"From: a@example.org, b@example.org\n", b"y")).unwrap();
    assert!(head(&mail).contains("\r\nFrom: a@example.org, b@example.org\r\n"), "{}", head(&mail));
    assert!(head(&mail).contains("\r\nSender: a@example.org\r\n"), "{}", head(&mail));
    assert!(mail.repairs.iter().any(|repair| repair.label() == "header-added (Sender)"), "{:?}", mail.repairs);
    let mail = render(&columns(b"lea@example.org", b"x", b"From: a@example.org\n", b"y")).unwrap();
    assert!(!head(&mail).contains("\r\nSender:"), "{}", head(&mail));
}

#[test]
fn date_and_message_id_are_the_records_and_stay_the_same() {
    let columns = columns(b"lea@example.org", b"x", b"From: \"A\" <a@example.org>\n", b"y");
    let mail = render(&columns).unwrap();
    assert_eq!(mail.message_id, "<abababababababababababababababab@example.org>");
    assert!(head(&mail).contains("\r\nDate: Sun, 01 Mar 2026 12:00:00 +0000\r\n"));
    assert_eq!(mail.content, render(&columns).unwrap().content);
    let own = b"From: a@example.org\nMessage-ID: <own@example.org>\nDate: Mon, 1 Jan 2018 00:00:00 +0100\n";
    let mail = render(&crate::rows::columns(b"lea@example.org", b"x", own, b"y")).unwrap();
    assert_eq!(mail.message_id, "<own@example.org>");
    assert!(head(&mail).contains("Date: Mon, 1 Jan 2018 00:00:00 +0100\r\n"));
    let bad = b"From: a@example.org\nMessage-ID: <a b>\n";
    let mail = render(&crate::rows::columns(b"lea@example.org", b"x", bad, b"y")).unwrap();
    assert_eq!(mail.message_id, "<abababababababababababababababab@example.org>");
}

#[test]
fn a_header_that_cannot_be_folded_sets_the_row_aside() {
    let headers = format!("From: a@example.org\nX-Long: {}\n", "x".repeat(1000));
    let refusal = render(&columns(b"lea@example.org", b"x", headers.as_bytes(), b"y")).unwrap_err();
    assert_eq!(refusal.reason, Reason::HeaderInvalid);
}

#[test]
fn lists_of_any_length_and_shape_are_read_in_one_go() {
    for piece in [
        "a@example.org, ",
        "\"A\" <a@example.org>, ",
        "x:, ",
        "<a>(",
        "\"x <a@example.org>, ",
        "=?a?q?x",
        "\"",
        "<",
        "g: a@b.org;",
    ] {
        let list = piece.repeat(10_000) + "Lea <lea@example.org>";
        let limits = ColumnLimits { mto: u64::MAX, ..ColumnLimits::default() };
        let columns = columns(list.as_bytes(), b"x", b"From: a@example.org\n", b"y");
        let _sent_or_not = translate(&columns, &limits, &stamp(), Capabilities::default(), &settings());
    }
}
