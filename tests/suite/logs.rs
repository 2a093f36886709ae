//! What a log may show of a mail address.

use mailqueue::observe::logs::{Addresses, Redactor, check_level};

const REPLY: &str =
    "550 5.1.1 <Anna.Berger@example.org>: user unknown, see \"bea@example.net\" (or mailto:c@example.com)";

fn redactor(addresses: Addresses) -> Redactor {
    Redactor::new(addresses, [7; 32])
}

#[test]
fn with_domain_no_local_part_is_left_in_a_reply() {
    assert_eq!(
        redactor(Addresses::Domain).text(REPLY),
        "550 5.1.1 <…@example.org>: user unknown, see \"…@example.net\" (or mailto:…@example.com)"
    );
    assert_eq!(redactor(Addresses::Domain).address("\"Anna Berger\"@example.org"), "…@example.org");
}

#[test]
fn a_quoted_local_part_is_no_hole() {
    let line = "RCPT TO:<\"Anna \\\"x\\\" Berger\"@example.org> and \"said\" <bea@example.org>";
    assert_eq!(redactor(Addresses::Domain).text(line), "RCPT TO:<…@example.org> and \"said\" <…@example.org>");
}

#[test]
fn with_full_a_reply_stays_as_it_is() {
    assert_eq!(redactor(Addresses::Full).text(REPLY), REPLY);
}

#[test]
fn with_hash_one_address_has_one_hash_whatever_its_case_and_another_key_another() {
    let hash = redactor(Addresses::Hash);
    let shown = hash.text(REPLY);
    assert!(!shown.contains('@') && !shown.to_lowercase().contains("anna"), "{shown}");
    assert!(shown.contains(&hash.address("anna.berger@EXAMPLE.org")), "{shown}");
    assert_ne!(hash.address("a@example.org"), hash.address("b@example.org"));
    assert_ne!(hash.address("a@example.org"), Redactor::new(Addresses::Hash, [8; 32]).address("a@example.org"));
    assert!(!format!("{hash:?}").contains('7'), "no key in Debug");
}

#[test]
fn a_misspelled_level_is_refused_and_one_by_module_is_taken() {
    for good in ["info", "WARN", "off", "info,mailqueue::relay=debug", "mailqueue=trace,sqlx=error"] {
        assert_eq!(check_level(good), Ok(()), "{good}");
    }
    for bad in ["", "inof", "info,debgu", "mailqueue::relay=loud"] {
        assert!(check_level(bad).is_err(), "{bad}");
    }
}
