//! Single addresses: what makes one invalid, the name beside it, and its place in a list that is not valid.

use mailqueue::outcome::Reason;

use crate::lists::{read, recipients, sent_to};
use crate::mails::{header, labels, send, try_send};

#[test]
fn the_patient_reader_keeps_to_quotations_comments_and_encoded_words() {
    // None of these lists is valid, so that the grammar takes none of them.
    for (list, expected, invalid) in [
        (r#""x, evil@e.org, y" <b@e.org>; c@e.org"#, &["b@e.org", "c@e.org"][..], &[][..]),
        ("Max (x, <evil@e.org>, y) <a@e.org>; b@e.org", &["a@e.org", "b@e.org"], &[]),
        (r"Max (x \) , <evil@e.org> (z), y) <a@e.org>; b@e.org", &["a@e.org", "b@e.org"], &[]),
        (r"Max (x \( , <evil@e.org>, y) <a@e.org>; b@e.org", &["a@e.org", "b@e.org"], &[]),
        ("=?utf-8?q?x =? y, evil@e.org, z?= <b@e.org>; c@e.org", &["b@e.org", "c@e.org"], &[]),
        ("=?utf-8?q?x(?= <a@e.org>, y) <b@e.org>", &["a@e.org", "b@e.org"], &[]),
        // A blank, a comment or a character that is not seen between two entries is neither a name nor an entry.
        ("a@e.org, \u{200b}, b@e.org", &["a@e.org", "b@e.org"], &[]),
        ("<a@e.org>\u{200b} <b@e.org>", &["a@e.org", "b@e.org"], &[]),
        ("<a@e.org> (x@e.org) <b@e.org>", &["a@e.org", "b@e.org"], &[]),
        ("Max <a@e.org> Moser; b@e.org", &["a@e.org", "b@e.org"], &[]),
        // What is protected in a name is left out of the search, and the rest of the name is not.
        (r#"c@e.org; "x" b@e.org Max <a@e.org>"#, &["c@e.org", "a@e.org"], &["b@e.org"]),
        // No encoded word: it has no charset.
        ("=??q?a@e.org", &["=??q?a@e.org"], &[]),
    ] {
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        let invalid: Vec<String> = invalid.iter().map(ToString::to_string).collect();
        assert_eq!(read(list), (expected, invalid), "{list}");
    }
    // A host's number is valid, and so is its list: the name is no part of the address.
    let (sent, invalid) = read("Max (<evil@e.org>) <y@[192.0.2.1]>, b@e.org");
    assert_eq!((sent, invalid), (vec!["b@e.org".to_owned()], vec!["y@[192.0.2.1]".to_owned()]));
}

#[test]
fn an_address_that_is_invalid_says_why() {
    let longest = format!("{}org", "x.".repeat(125));
    assert_eq!(longest.len(), 253);
    let mut cases = vec![
        ("@e.org", "nothing stands on one side of the @"),
        ("a@", "nothing stands on one side of the @"),
        ("kein", "it has no @"),
        ("=?utf-8?q?x?=b@e.org", "an encoded word is no part of an address"),
        ("a@b@e.org", "it has more than one @"),
        ("a b@e.org", "its local part has a character that must not stand there"),
        (r#""a@b" c@e.org"#, "its local part has a character that must not stand there"),
        (".a@e.org", "its local part has a dot at an end, or two in a row"),
        ("a.@e.org", "its local part has a dot at an end, or two in a row"),
        ("a..b@e.org", "its local part has a dot at an end, or two in a row"),
        (r#"""@e.org"#, "its local part is empty"),
        ("\u{200b}@e.org", "its local part is empty"),
        ("a.b@e.org.", "its domain ends in a dot"),
        ("a@localhost", "its domain has no dot"),
        ("a@[192.0.2.1]", "its domain is the number of a host, which a smarthost does not relay to"),
        ("a.b@e..org", "its domain is none"),
        ("a@a_b.org", "its domain is none"),
        ("a@-a.org", "its domain is none"),
        ("a@a-.org", "its domain is none"),
        ("a@a.b", "its domain ends in nothing that is a top-level domain"),
        ("a@a.12", "its domain ends in nothing that is a top-level domain"),
    ];
    let (label, domain) = (format!("a@{}.org", "x".repeat(64)), format!("a@x{longest}"));
    cases.extend([(label.as_str(), "its domain is none"), (domain.as_str(), "its domain is none")]);
    for (address, why) in cases {
        let mail = sent_to(&format!("b@e.org, {address}")).unwrap();
        assert_eq!(recipients(&mail), ["b@e.org"], "{address}");
        let said: Vec<&str> = mail.invalid.iter().map(|invalid| invalid.why.as_str()).collect();
        assert_eq!(said, [why], "{address}");
    }
    // The longest label and the longest domain (RFC 1035 §2.3.4).
    for address in [format!("a@{}.org", "x".repeat(63)), format!("a@{longest}")] {
        assert_eq!(read(&address).0, [address]);
    }
}

#[test]
fn an_invisible_character_is_said_where_one_was_taken_off() {
    for (list, said) in [
        ("Max <\u{200b} a@e.org>; b@e.org", true),
        ("Max <a@e.org (x\u{200b}y)>; b@e.org", false),
        ("Max <a@e.org>; b@e.org", false),
    ] {
        let mail = sent_to(list).unwrap();
        assert_eq!(recipients(&mail), ["a@e.org", "b@e.org"], "{list}");
        assert_eq!(labels(&mail).contains(&"invisible (mto)".to_owned()), said, "{list:?}: {:?}", mail.repairs);
    }
}

#[test]
fn the_name_of_a_group_is_no_part_of_a_name_and_another_colon_is() {
    for (list, shown) in [
        (r#"Vorstand: Max <a@e.org>; Lea 27" <b@e.org>"#, r#"Max <a@e.org>, "#),
        (r#"c@e.org; Lea 27" <b@e.org>, Neu: Max <a@e.org>"#, "?= <a@e.org>"),
        ("Max Moser (Chef) <a@e.org>", "?= <a@e.org>"),
        ("a@e.org (Max Moser)", "Max Moser <a@e.org>"),
    ] {
        let mail = sent_to(list).unwrap();
        let to = header(&mail, "To").unwrap();
        assert!(to.contains(shown), "{list}: {to}");
    }
    let mail = sent_to(r#"c@e.org; Lea 27" <b@e.org>, Neu: Max <a@e.org>"#).unwrap();
    let message = crate::mails::read(&mail);
    let names: Vec<_> = message.to().unwrap().iter().map(|one| one.name()).collect();
    assert_eq!(names, [None, Some("Lea 27\""), Some("Neu: Max")]);
}

#[test]
fn a_name_of_up_to_60_bytes_stays_readable() {
    for (length, readable) in [(59, true), (60, true), (61, false), (90, false)] {
        let name = "x".repeat(length);
        let mail = send("S", &format!("Cc: {name} <b@e.org>\n"), b"x\n");
        assert_eq!(header(&mail, "Cc").unwrap() == format!("{name} <b@e.org>"), readable, "{length}");
        assert_eq!(crate::mails::read(&mail).cc().unwrap().first().unwrap().name(), Some(name.as_str()));
    }
}

#[test]
fn the_limit_of_invalid_entries_holds_for_each_header_and_for_lines_of_mto() {
    let mto = |count: usize| format!("a@e.org{}", "\r\nkein".repeat(count));
    assert_eq!(sent_to(&mto(10_000)).unwrap().invalid.len(), 10_000);
    assert_eq!(sent_to(&mto(10_001)).unwrap_err().reason, Reason::TooLarge);
    let reply_to = |count: usize| format!("Reply-To: {}r@e.org\n", "kein,".repeat(count));
    assert_eq!(header(&send("S", &reply_to(10), b"x\n"), "Reply-To").unwrap(), "r@e.org");
    assert_eq!(try_send("S", &reply_to(10_001), b"x\n").unwrap_err().reason, Reason::TooLarge);
}
