//! Headers of ids, URLs and tokens, dates, signatures: passed on, replaced, or left out with a repair.

use crate::mails::{header, labels, send};

#[test]
fn urls_and_ids_that_hold_what_begins_an_encoded_word_are_unchanged() {
    let unsubscribe = "<https://news.example.at/u/dGVzdA==?c=1>, <mailto:unsub@example.at?subject=weg>";
    let headers = format!(
        "List-Unsubscribe: {unsubscribe}\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\nReferences: <a=?b@example.at> <c@example.at>\nMessage-ID: <x=?utf-8?q?y?=@example.at>\nContent-ID: <=?utf-8?q?y?=@example.at>\nList-Archive: <https://example.at/=?utf-8?q?y?=>\nIn-Reply-To: =?utf-8?q?y?=@example.at\n"
    );
    let mail = send("S", &headers, b"x\n");
    assert_eq!(header(&mail, "List-Unsubscribe").unwrap(), unsubscribe);
    assert_eq!(header(&mail, "List-Unsubscribe-Post").unwrap(), "List-Unsubscribe=One-Click");
    assert_eq!(header(&mail, "References").unwrap(), "<a=?b@example.at> <c@example.at>");
    assert_eq!(header(&mail, "Message-ID").unwrap(), "<x=?utf-8?q?y?=@example.at>");
    assert_eq!(mail.message_id, "<x=?utf-8?q?y?=@example.at>");
    assert_eq!(header(&mail, "Content-ID").unwrap(), "<=?utf-8?q?y?=@example.at>");
    assert_eq!(header(&mail, "List-Archive").unwrap(), "<https://example.at/=?utf-8?q?y?=>");
    assert_eq!(header(&mail, "In-Reply-To").unwrap(), "=?utf-8?q?y?=@example.at");
    assert_eq!(labels(&mail), [""; 0]);
}

#[test]
fn eight_bit_text_in_a_url_is_percent_encoded_and_elsewhere_the_header_goes() {
    let mail = send(
        "S",
        "List-Archive: <https://example.at/gr\u{fc}n>\nList-ID: Gr\u{fc}n <list.example.at>\nContent-ID: <gr\u{fc}n@example.at>\nIn-Reply-To: <gr\u{fc}n@example.at>\nPrecedence: gr\u{fc}n\nList-Help: =?utf-8?q?=3Chttps=3A//example.at/=3E?=\n",
        b"x\n",
    );
    assert_eq!(header(&mail, "List-Archive").unwrap(), "<https://example.at/gr%C3%BCn>");
    assert_eq!(header(&mail, "List-ID").unwrap(), "<list.example.at>");
    assert_eq!(header(&mail, "List-Help").unwrap(), "<https://example.at/>");
    for gone in ["Content-ID", "In-Reply-To", "Precedence"] {
        assert_eq!(header(&mail, gone), None);
        assert!(labels(&mail).contains(&format!("header-dropped ({gone})")), "{:?}", mail.repairs);
    }
    for changed in ["List-Archive", "List-ID", "List-Help"] {
        assert!(labels(&mail).contains(&format!("header-rewritten ({changed})")), "{:?}", mail.repairs);
    }
    assert!(!String::from_utf8_lossy(&mail.content).contains("=?"));
}

#[test]
fn long_references_fold_between_their_ids() {
    let ids: Vec<String> = (0..60).map(|number| format!("<{number:030}@example.org>")).collect();
    for (blank, repaired) in [(" ", false), ("", true)] {
        let mail = send("S", &format!("References: {}\n", ids.join(blank)), b"x\n");
        assert_eq!(header(&mail, "References").unwrap(), ids.join(" "));
        assert_eq!(labels(&mail).contains(&"header-rewritten (References)".to_owned()), repaired);
    }
    // They are divided where the line would be too long, and not before.
    let joined = |length: usize| format!("<{}@e.org><b@e.org>", "x".repeat(length - 17));
    for (ids, divided) in [(ids[..25].concat(), true), (joined(500), true), (joined(499), false)] {
        let mail = send("S", &format!("References: {ids}\n"), b"x\n");
        let expected = if divided { ids.replace("><", "> <") } else { ids };
        assert_eq!((header(&mail, "References").unwrap(), !labels(&mail).is_empty()), (expected, divided));
    }
    for (length, fits) in [(600, true), (998 - "References: ".len(), true), (999 - "References: ".len(), false)] {
        let id = format!("<{}@e.org>", "x".repeat(length - 8));
        let mail = send("S", &format!("References: {id}\n"), b"x\n");
        assert_eq!((header(&mail, "References"), labels(&mail).is_empty()), (fits.then_some(id), fits), "{length}");
    }
    // An id that fits into no line costs the header, and not the mail.
    let mail = send("S", &format!("References: <{}@example.org>\n", "x".repeat(990)), b"x\n");
    assert_eq!((header(&mail, "References"), labels(&mail)), (None, vec!["header-dropped (References)".to_owned()]));
}

#[test]
fn a_date_that_is_none_is_replaced_by_the_records() {
    for date in
        ["Mo, 2 Mai 2026 10:00:00 +0200", "2026-03-01 12:00:00", "gestern", "31 Feb 2026 10:00:00 +0000", "1772366400"]
    {
        let mail = send("S", &format!("Date: {date}\n"), b"x\n");
        assert_eq!(header(&mail, "Date").unwrap(), "Sun, 01 Mar 2026 12:00:00 +0000", "{date}");
        assert_eq!(labels(&mail), ["header-dropped (Date)"]);
    }
    for date in [
        "Mon, 2 Mar 2026 10:00:00 +0200",
        "2 Mar 2026 10:00 GMT",
        "Mon, 02 Mar 2026 10:00:00 +0100 (CET)",
        "Tue, 02 Mar 2026 10:00:00 -0000",
    ] {
        let mail = send("S", &format!("Date: {date}\nDate: {date}\n"), b"x\n");
        assert_eq!(header(&mail, "Date").unwrap(), date);
        assert_eq!(labels(&mail), ["header-dropped (Date)"], "the second one");
    }
}

#[test]
fn a_signature_over_what_is_written_again_goes() {
    let mail = send(
        "=?UTF-8?B?R3LDvMOfZQ==?=",
        "DKIM-Signature: v=1; d=example.at; s=phpmailer;\r\n\ta=rsa-sha256; q=dns/txt; c=relaxed/simple; h=From:Subject:Content-Type;\r\n\tbh=AAAA=; b=BBBB=\r\nX-Google-DKIM-Signature: v=1\r\nDomainKey-Signature: a=rsa-sha1\r\nARC-Seal: i=1\r\nX-Arc: bleibt\r\nContent-Type: text/plain; charset=UTF-8\r\n",
        "Gr\u{fc}\u{df}e\n".as_bytes(),
    );
    assert!(!String::from_utf8_lossy(&mail.content).to_lowercase().contains("dkim"));
    assert_eq!(
        labels(&mail),
        [
            "signature-dropped (DKIM-Signature)",
            "signature-dropped (X-Google-DKIM-Signature)",
            "signature-dropped (DomainKey-Signature)",
            "signature-dropped (ARC-Seal)"
        ]
    );
    assert_eq!(header(&mail, "X-Arc").unwrap(), "bleibt");
}

#[test]
fn a_message_id_that_is_none_is_replaced() {
    let own = "<abababababababababababababababab@example.org>";
    for id in ["<a@b>", "<a.b+c=?d@example.org>"] {
        assert_eq!(header(&send("S", &format!("Message-ID: {id}\n"), b"x\n"), "Message-ID").unwrap(), id);
    }
    let long = format!("<{}@example.org>", "x".repeat(900));
    for id in ["a@b", "<a@b", "a@b>", "<@b>", "<a@>", "<ab>", "<a b@c>", "<a@b> <c@d>", "<a\u{f6}@b>", &long] {
        let mail = send("S", &format!("Message-ID: {id}\n"), b"x\n");
        assert_eq!(header(&mail, "Message-ID").unwrap(), own, "{id}");
        assert_eq!(mail.message_id, own);
        assert!(labels(&mail).contains(&"header-dropped (Message-ID)".to_owned()), "{id}");
    }
    let longest = format!("<{}@example.org>", "x".repeat(900 - 14));
    assert_eq!(header(&send("S", &format!("Message-ID: {longest}\n"), b"x\n"), "Message-ID").unwrap(), longest);
}

#[test]
fn a_second_subject_is_left_out_and_said_if_it_is_another() {
    for (headers, repairs) in [
        ("Subject: Anders\n", vec!["header-dropped (Subject)"]),
        ("Subject: S\n", vec![]),
        ("Subject: =?utf-8?q?S?=\n", vec![]),
        ("Subject: \n", vec![]),
    ] {
        let mail = send("S", headers, b"x\n");
        assert_eq!(
            (header(&mail, "Subject").as_deref(), labels(&mail)),
            (Some("S"), repairs.iter().map(|text| (*text).to_owned()).collect())
        );
    }
    let mail = send("", "Subject: =?utf-8?q?=C3=B6?=\n", b"x\n");
    assert_eq!((mail.subject.as_str(), labels(&mail)), ("\u{f6}", vec![]));
}

#[test]
fn a_line_end_in_a_subject_is_said_unless_it_is_a_fold() {
    let said = |subject: &str| labels(&send(subject, "", b"x\n"));
    assert_eq!(said("eins\nzwei"), ["line-end (msubject)"]);
    assert_eq!(said("eins\r\nzwei\r\n drei"), ["line-end (msubject)"]);
    for fold in ["eins\r\n zwei", "eins\n\tzwei", "eins\r\n", "\r\neins", "eins"] {
        assert_eq!(said(fold), [""; 0], "{fold:?}");
    }
}

#[test]
fn a_content_disposition_goes_out_once() {
    let mail = send(
        "S",
        "Content-Type: application/pdf\nContent-Disposition: attachment; filename=\"=?utf-8?q?=C3=B6.pdf?=\"\nContent-Disposition: inline\n",
        b"%PDF\r\n",
    );
    assert_eq!(header(&mail, "Content-Disposition").unwrap(), "attachment; filename*0*=utf-8''%C3%B6.pdf");
    assert_eq!(labels(&mail), ["header-dropped (Content-Disposition)"]);
}

#[test]
fn a_header_line_has_998_bytes_at_most() {
    for (length, fits) in [(998 - "X-Long: ".len(), true), (999 - "X-Long: ".len(), false)] {
        let result = crate::mails::try_send("S", &format!("X-Long: {}\n", "x".repeat(length)), b"x\n");
        match result {
            Ok(mail) => assert!(fits && header(&mail, "X-Long").unwrap().len() == length),
            Err(refusal) => {
                assert!(!fits);
                assert_eq!(refusal.reason, mailqueue::outcome::Reason::HeaderInvalid);
                assert!(refusal.detail.contains("X-Long"), "{refusal}");
            }
        }
    }
    assert_eq!(labels(&send("S", "X-Empty: \n", b"x\n")), ["header-dropped (X-Empty)"]);
}
