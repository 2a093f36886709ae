//! The meaning of replies and of trouble.
use mailqueue::outcome::{Cause, Reply, Scope, Stage, Trouble};

fn reply(code: u16, enhanced: Option<(u8, u16, u16)>, text: &str) -> Reply {
    Reply { code, enhanced, text: text.to_owned() }
}

#[test]
fn the_same_refusal_of_two_mails_has_one_essence() {
    let quota = Some((5, 4, 5));
    let essence = |text: &str| reply(550, quota, text).essence();
    let expected = "550 5.4.5 daily user sending limit exceeded";
    for text in [
        "Daily user sending limit exceeded.",
        "<a@x.test>: Daily user sending limit exceeded (id 4Kx2Yz) q12-2024.77 - gsmtp-1",
        "daily User sending limit exceeded https://support.example.org/help?id=a [192.0.2.1]",
    ] {
        assert!(essence(text).starts_with(expected), "{text}: {}", essence(text));
    }
    let of = |name: &str| essence(&format!("<{name}@x.test>: mail from {name}@x.test via mx.{name}.test refused"));
    assert_eq!(of("a"), of("b"));
    assert_ne!(essence("over quota"), essence("over size"));
    assert_ne!(reply(550, None, "no").essence(), reply(551, None, "no").essence());
    assert_ne!(reply(550, quota, "no").essence(), reply(550, None, "no").essence());
}

#[test]
fn a_limit_of_connections_shows_before_mail_and_is_no_login() {
    let at = |stage, cause| Trouble { stage, scope: Scope::Relay, cause };
    let said = |code| Cause::Reply(reply(code, None, "no"));
    let closed = || Cause::Closed("closed".into());
    for (trouble, limit) in [
        (at(Stage::Connect, closed()), true),
        (at(Stage::Connect, Cause::Timeout), true),
        (at(Stage::Greeting, said(421)), true),
        (at(Stage::Greeting, said(450)), true),
        (at(Stage::Greeting, said(554)), false),
        (at(Stage::Greeting, closed()), true),
        (at(Stage::Greeting, Cause::Timeout), true),
        (at(Stage::Ehlo, said(421)), true),
        (at(Stage::Ehlo, said(450)), false),
        (at(Stage::Ehlo, Cause::Timeout), false),
        (at(Stage::Tls, closed()), true),
        (at(Stage::Tls, said(454)), false),
        (at(Stage::Tls, Cause::Protocol("certificate".into())), false),
        (at(Stage::Auth, said(421)), true),
        (at(Stage::Auth, closed()), true),
        (at(Stage::Auth, said(454)), false),
        (at(Stage::Auth, Cause::Timeout), false),
        (at(Stage::Mail, said(421)), false),
    ] {
        assert_eq!(trouble.is_connection_limit(), limit, "{trouble}");
    }
}

#[test]
fn a_refused_login_is_recognised_at_every_stage() {
    let at = |stage, reply| Trouble { stage, scope: Scope::Relay, cause: Cause::Reply(reply) };
    assert!(at(Stage::Auth, reply(454, None, "")).is_login());
    assert!(!at(Stage::Auth, reply(421, None, "")).is_login());
    for code in [530, 534, 535, 538] {
        assert!(at(Stage::Rcpt, reply(code, None, "")).is_login(), "{code}");
    }
    assert!(at(Stage::Mail, reply(454, Some((4, 7, 0)), "")).is_login());
    assert!(!at(Stage::Mail, reply(454, Some((4, 7, 1)), "")).is_login());
    assert!(!at(Stage::Rcpt, reply(550, None, "")).is_login());
}
