//! Address lists: exactly the recipients that a list names, whoever wrote it and whatever stands in its names.

use std::collections::BTreeSet;

use mail_parser::MessageParser;
use mailqueue::mail::{Capabilities, ColumnLimits, Mail};
use mailqueue::outcome::Reason;
use mailqueue::translate::{Settings, Unreadable, translate};
use proptest::prelude::*;

use crate::rows::{columns, config, settings, stamp};

const UNLIMITED: ColumnLimits =
    ColumnLimits { mto: u64::MAX, msubject: u64::MAX, mbody: u64::MAX, mheaders: u64::MAX, mparams: u64::MAX };

pub fn sent_to(list: &str) -> Result<Mail, Unreadable> {
    let columns = columns(list.as_bytes(), b"x", b"From: n@example.at\n", b"y");
    translate(&columns, &UNLIMITED, &stamp(), Capabilities::default(), &settings())
}

pub fn recipients(mail: &Mail) -> Vec<String> {
    mail.envelope.recipients.iter().map(ToString::to_string).collect()
}

/// Recipients, and what was said to be invalid.
pub fn read(list: &str) -> (Vec<String>, Vec<String>) {
    let mail = sent_to(list).unwrap_or_else(|unreadable| panic!("{list}: {unreadable}"));
    let invalid = mail.invalid.iter().map(|invalid| invalid.written.clone()).collect();
    (recipients(&mail), invalid)
}

#[test]
fn a_list_that_is_valid_gives_the_recipients_that_it_names() {
    for (list, expected) in [
        (r#""27\" Monitor" <max@e.org>, "Bezirk: Wien; Linz" <wien@e.org>"#, &["max@e.org", "wien@e.org"][..]),
        (r#""x \": <evil@e.org>, \" y;" <b@e.org>"#, &["b@e.org"]),
        ("Max (<evil@e.org>, x) <b@e.org>", &["b@e.org"]),
        (r#""a\"(b)c"@e.org"#, &[r#""a\"(b)c"@e.org"#]),
        ("bert@e.org (Bert, Vorstand), <bob@e.org (work)>, (;) u@e.org", &["bert@e.org", "bob@e.org", "u@e.org"]),
        ("a@e.org (b (c \\) @ d) e), f@e.org", &["a@e.org", "f@e.org"]),
        ("Vorstand: bert@e.org, Anna <anna@e.org>;, carl@e.org", &["bert@e.org", "anna@e.org", "carl@e.org"]),
        ("undisclosed-recipients:;, a@e.org", &["a@e.org"]),
        ("Joe Q. Public <joe@e.org>, <@x.org,@y.org:route@e.org>", &["joe@e.org", "route@e.org"]),
        ("pete (his account) . x @ e (host) . org,, ,b@e.org", &["pete.x@e.org", "b@e.org"]),
        (r#""anna"@e.org, "a b".c@e.org"#, &["anna@e.org", r#""a b.c"@e.org"#]),
        ("j\u{f6}rg@e.org, \"\u{d6}\" <x@m\u{fc}ller.at>", &["j\u{f6}rg@e.org", "x@xn--mller-kva.at"]),
    ] {
        assert_eq!(read(list), (expected.iter().map(ToString::to_string).collect(), Vec::new()), "{list}");
    }
}

#[test]
fn a_list_that_is_not_valid_loses_nobody_and_adds_nobody() {
    for (list, expected, invalid) in [
        (
            "anna@e.org, Vorstand: bert@e.org; Carl <carl@e.org>",
            &["anna@e.org", "bert@e.org", "carl@e.org"][..],
            &[][..],
        ),
        (r#"Max 27" <max@e.org>, "Bezirk: Wien" <w@e.org>; c@e.org"#, &["max@e.org", "w@e.org", "c@e.org"], &[]),
        ("M\u{fc}ller, J\u{f6}rg <a@e.org>", &["a@e.org"], &[]),
        ("Liste: a@e.org, b@e.org", &["a@e.org", "b@e.org"], &[]),
        ("a@e.org; b@e.org;", &["a@e.org", "b@e.org"], &[]),
        ("Max <Moritz> M\u{fc}ller <a@e.org>", &["a@e.org"], &[]),
        ("<a@e.org> <b@e.org>", &["a@e.org", "b@e.org"], &[]),
        ("<a@e.org> b@e.org", &["a@e.org", "b@e.org"], &[]),
        ("Max <x@e.org> Moritz <a@e.org>", &["a@e.org"], &["<x@e.org>"]),
        ("b@e.org Max <a@e.org>", &["a@e.org"], &["b@e.org"]),
        ("a@e.org <a@e.org>", &["a@e.org"], &[]),
        ("b@e.org c@e.org, Max <a@e.org>", &["a@e.org"], &["b@e.org c@e.org"]),
        ("<<a@e.org>>, b@e.org", &["b@e.org"], &["<a@e.org>>"]),
        ("Max (Chef <a@e.org>, b@e.org", &["a@e.org", "b@e.org"], &[]),
        ("a@e.org, Max <kaputt, b@e.org", &["a@e.org", "b@e.org"], &["Max <kaputt"]),
        ("=?utf-8?q?evil@e.org, x?= <b@e.org>", &["b@e.org"], &[]),
        ("=?utf-8?q?x, evil@e.org, y?= <b@e.org>", &["b@e.org"], &[]),
        ("=?utf-8?q?x <evil@e.org>, y?= <b@e.org>", &["b@e.org"], &[]),
        ("=?utf-8?q?x <a@e.org>, b@e.org, =?utf-8?q?y?= <c@e.org>", &["a@e.org", "b@e.org", "c@e.org"], &[]),
        ("a@e.org, =?utf-8?q?J=C3=B6rg?=b@e.org", &["a@e.org"], &["J\u{f6}rgb@e.org"]),
        ("a@e.org, http://b@e.org", &["a@e.org"], &["http://b@e.org"]),
        ("mailto:a@e.org", &["a@e.org"], &[]),
    ] {
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        let invalid: Vec<String> = invalid.iter().map(ToString::to_string).collect();
        assert_eq!(read(list), (expected, invalid), "{list}");
    }
}

#[test]
fn an_encoded_word_is_no_part_of_an_address() {
    let refusal = sent_to("=?utf-8?q?J=C3=B6rg?=b@e.org").unwrap_err();
    assert_eq!(refusal.reason, Reason::AddressInvalid, "{refusal}");
}

#[test]
fn a_from_that_is_an_encoded_word_as_a_whole_names_no_sender() {
    let from = b"From: =?utf-8?q?Graf_L=C3=BCk=C3=A4s_=3Cl=2Egraf=40example=2Eat=3E?=\n";
    let columns = columns(b"a@e.org", b"x", from, b"y");
    let refusal = translate(&columns, &UNLIMITED, &stamp(), Capabilities::default(), &settings()).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoSender, "{refusal}");
    let settings = Settings { default_from: Some("noreply@e.at".parse().unwrap()), ..settings() };
    let mail = translate(&columns, &UNLIMITED, &stamp(), Capabilities::default(), &settings).unwrap();
    assert_eq!(mail.envelope.sender.unwrap().to_string(), "noreply@e.at");
    assert!(mail.repairs.iter().any(|repair| repair.label() == "sender-replaced (From)"), "{:?}", mail.repairs);
}

#[test]
fn invisible_characters_at_the_ends_of_an_address_are_taken_off_and_named_elsewhere() {
    let list = "\u{200b}anna@e.org, \u{feff}bert@e.org, clara\u{200b}@e.org, dora@e.org\u{200e}, emil@e.org\u{a0}, <\u{2060}f@e.org>, g@e\u{ad}.org";
    let mail = sent_to(list).unwrap();
    assert_eq!(recipients(&mail), ["anna@e.org", "bert@e.org", "dora@e.org", "emil@e.org", "f@e.org"]);
    let why: Vec<&str> = mail.invalid.iter().map(|invalid| invalid.why.as_str()).collect();
    assert_eq!(why, ["it holds the invisible character U+200B", "it holds the invisible character U+00AD"]);
    assert!(mail.repairs.iter().any(|repair| repair.label() == "invisible (mto)"), "{:?}", mail.repairs);
}

#[test]
fn the_smarthost_decides_about_long_local_parts() {
    let local = "reply+000c89caea14b0bf53caf17fd0c9c67fce378f51fd1af05492cf000000011292f3d8";
    assert_eq!(read(&format!("{local}@reply.e.org, b@e.org")).0, [&format!("{local}@reply.e.org"), "b@e.org"]);
    let (sent, invalid) = read(&format!("{}@e.org, {}@e.org", "x".repeat(494), "y".repeat(495)));
    assert_eq!((sent.len(), sent[0].len(), invalid.len()), (1, 500, 1), "the longest has 500 bytes");
}

#[test]
fn rows_with_too_many_entries_are_set_aside() {
    let list = |count: usize, entry: &str| (0..count).map(|at| entry.replace('#', &at.to_string())).collect::<String>();
    let reason = |text: &str| sent_to(text).map(|mail| mail.envelope.recipients.len()).map_err(|error| error.reason);
    assert_eq!(reason(&list(100_000, "a#@e.org,")), Ok(100_000));
    assert_eq!(reason(&list(100_001, "a#@e.org,")), Err(Reason::TooLarge));
    assert_eq!(reason(&list(10_000, "kein#,").replace("kein0,", "a@e.org, kein,")), Ok(1));
    assert_eq!(reason(&list(10_002, "kein#,")), Err(Reason::TooLarge));
    assert_eq!(reason(&list(20_000, "\r\nkein#,")), Err(Reason::TooLarge));
}

/// Seconds of this thread on a processor, whatever else the machine does.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[test]
fn lists_are_read_in_time_that_is_linear_in_their_length() {
    for piece in [
        "a@example.org, ",
        "\"A\" <a@example.org>, ",
        "x:, ",
        "x:",
        "a@b:",
        "x: a@",
        "<a>(",
        "\"x <a@example.org>, ",
        "=?a?q?x",
        "=?a?q? ?",
        "\"",
        "\" ",
        "<",
        "(",
        "\\\"",
        "( \"",
        "g: a@b.org;",
        "a ",
        "a@b ",
        "<a@b.org> ",
        "x, ",
        "\u{200b}",
        "(a@b.org",
        "<a@b.org>(>)",
    ] {
        let time = |count: usize| {
            let list = piece.repeat(count) + "Lea <lea@example.org>";
            let begun = cpu_time();
            let _sent_or_not = sent_to(&list);
            cpu_time() - begun
        };
        // A quadratic step would take a hundred times as long for ten times the length.
        let (short, long) = (time(3_000), time(30_000));
        assert!(long < 40.0 * short.max(0.025), "{piece:?}: {short} s and {long} s");
    }
}

// What follows makes lists by the grammar of RFC 5322, with the recipients that they name.

/// Blanks, folds and comments, or nothing.
fn cfws() -> BoxedStrategy<String> {
    let comment = r#"\((?:[ a-z@<>,;:."]|\\[()"\\@])*\)"#;
    let nested = r#"\([a-z ,;<>@"]*\((?:[a-z@<,]|\\\))*\)[a-z ;:]*\)"#;
    prop_oneof![
        6 => Just(String::new()),
        2 => Just(" ".to_owned()),
        1 => Just("\r\n\t".to_owned()),
        1 => proptest::string::string_regex(comment).unwrap(),
        1 => proptest::string::string_regex(nested).unwrap(),
    ]
    .boxed()
}

fn atom() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9!#$%&'*+/=^_`{|}~\u{e4}\u{f6}\u{3b1}-]{1,9}"
}

/// A quoted string as written, and what it means.
fn quoted() -> impl Strategy<Value = (String, String)> {
    let piece = prop_oneof![
        4 => "[a-z ,;:<>@.()\\[\\]\u{fc}=?]".prop_map(|text| (text.clone(), text)),
        1 => r#"["\\a,@]"#.prop_map(|c| (format!("\\{c}"), c)),
    ];
    prop::collection::vec(piece, 1..9).prop_map(|pieces| {
        let (written, meant): (String, String) = pieces.into_iter().unzip();
        (format!("\"{written}\""), meant)
    })
}

/// A local part as written, and what it means.
fn local() -> impl Strategy<Value = (String, String)> {
    let word = prop_oneof![5 => atom().prop_map(|atom| (atom.clone(), atom)), 1 => quoted()];
    (prop::collection::vec((word, cfws(), cfws()), 1..4)).prop_map(|words| {
        let meant = words.iter().map(|((_, meant), ..)| meant.as_str()).collect::<Vec<_>>().join(".");
        let written = words.iter().map(|((written, _), before, behind)| format!("{before}{written}{behind}"));
        (written.collect::<Vec<_>>().join("."), meant)
    })
}

fn domain() -> impl Strategy<Value = (String, String)> {
    (prop::collection::vec(("[a-z0-9]{1,5}", cfws(), cfws()), 1..3), cfws()).prop_map(|(labels, end)| {
        let meant: String = labels.iter().map(|(label, ..)| format!("{label}.")).collect();
        let written: String =
            labels.iter().map(|(label, before, behind)| format!("{before}{label}{behind}.")).collect();
        (format!("{written}org{end}"), format!("{meant}org"))
    })
}

fn phrase() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        4 => atom(),
        3 => quoted().prop_map(|(written, _)| written),
        1 => Just("=?utf-8?Q?J=C3=B6rg?=".to_owned()),
        1 => Just("=?utf-8?Q?a@evil.org,_x?=".to_owned()),
        1 => Just("Q.".to_owned()),
    ];
    prop::collection::vec((word, cfws()), 1..4)
        .prop_map(|words| words.iter().map(|(word, behind)| format!("{word} {behind}")).collect())
}

fn mailbox() -> impl Strategy<Value = Named> {
    let route = prop_oneof![9 => Just(""), 1 => Just("@a.example, @b.example :")];
    (local(), domain(), prop::option::of((phrase(), route, cfws(), cfws())), cfws()).prop_map(
        |(local, domain, named, end)| {
            let meant = vec![format!("{}@{}", local.1, domain.1)];
            let spec = format!("{}@{}", local.0, domain.0);
            match named {
                Some((name, route, before, behind)) => (format!("{name}<{route}{before}{spec}{behind}>{end}"), meant),
                None => (spec, meant),
            }
        },
    )
}

/// A list as written, and the addresses that it names.
type Named = (String, Vec<String>);

fn valid_list() -> impl Strategy<Value = Named> {
    let separator = prop_oneof![8 => Just(","), 2 => Just(", "), 1 => Just(",,"), 1 => Just(", \r\n ,")];
    let joined = |members: Vec<(Named, &'static str)>| {
        let mut text = String::new();
        let mut all = Vec::new();
        let last = members.len().saturating_sub(1);
        for (at, ((written, meant), separator)) in members.into_iter().enumerate() {
            text.push_str(&written);
            text.push_str(if at < last { separator } else { "" });
            all.extend(meant);
        }
        (text, all)
    };
    let group = (phrase(), prop::collection::vec((mailbox(), separator.clone()), 0..3), cfws()).prop_map(
        move |(name, members, end)| {
            let (written, meant) = joined(members);
            (format!("{name}:{written};{end}"), meant)
        },
    );
    let member = prop_oneof![5 => mailbox(), 1 => group];
    prop::collection::vec((member, separator), 1..6).prop_map(joined)
}

/// A recipient with its local part as it is meant, without quotation marks.
fn meant(address: &str) -> String {
    let (local, domain) = address.rsplit_once('@').unwrap();
    let Some(inner) = local.strip_prefix('"') else { return address.to_owned() };
    let mut plain = String::new();
    let mut chars = inner[..inner.len() - 1].chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap() } else { c });
    }
    format!("{plain}@{domain}")
}

/// An address that is valid and that a smarthost would not be told: for these the property says that they are not lost.
fn is_unusable(address: &str) -> bool {
    address.rsplit_once('@').is_some_and(|(local, _)| local.contains(['<', '>']))
}

/// A name that somebody else chose.
fn hostile_name() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(
        &[
            "\"",
            "\\",
            "\\\"",
            "<evil@evil.org>",
            "evil@evil.org",
            ", ",
            "; ",
            ": ",
            "(",
            ")",
            " ",
            "<",
            ">",
            "?=",
            "=?",
            "=?utf-8?q?",
            "x",
            "M\u{fc}ller",
            "\r\nBcc: evil@evil.org",
            "\r\n ",
            "\0",
            "\u{200b}",
            "@",
            "g: evil@evil.org;",
        ][..],
    );
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// The name as careful producers write it: in quotation marks, or as an encoded word of either kind.
fn written_name(name: &str, way: usize) -> String {
    let quoted = name.replace('\\', "\\\\").replace('"', "\\\"").replace(['\r', '\n'], " ");
    match way {
        0 => format!("\"{quoted}\""),
        1 => {
            use base64::Engine;
            format!("=?UTF-8?B?{}?=", base64::engine::general_purpose::STANDARD.encode(name))
        }
        2 => {
            // quoted_printable_encode() of PHP leaves blanks, commas, brackets and question marks as they are.
            let plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && byte != b'=';
            let hex = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("={byte:02X}") };
            format!("=?UTF-8?Q?x{}?=", name.bytes().map(hex).collect::<String>())
        }
        _ => format!("\"=?UTF-8?Q?{}?=\"", name.bytes().map(|byte| format!("={byte:02X}")).collect::<String>()),
    }
}

#[test]
fn an_encoded_word_with_text_behind_its_end_goes_on_to_the_next_end() {
    // quoted_printable_encode() of PHP writes the name `x?= (` so, and `x)` as the second.
    let (sent, invalid) = read("=?UTF-8?Q?x?=3D (?= <b0@e.org>, =?UTF-8?Q?x)?= <b1@e.org>");
    assert_eq!(sent, ["b0@e.org", "b1@e.org"]);
    assert!(invalid.is_empty(), "{invalid:?}");
}

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn generated_valid_lists_reach_exactly_those_whom_they_name((list, named) in valid_list()) {
        prop_assume!(!list.contains("=?utf-8?Q?=?") && !list.contains("??"));
        let (usable, unusable): (Vec<String>, Vec<String>) = named.into_iter().partition(|address| !is_unusable(address));
        let expected: BTreeSet<String> = usable.into_iter().collect();
        match sent_to(&list) {
            Ok(mail) => {
                let sent: BTreeSet<String> = recipients(&mail).iter().map(|address| meant(address)).collect();
                prop_assert_eq!(sent, expected, "{}", list);
                prop_assert_eq!(mail.invalid.len(), unusable.len(), "{:?}: {}", mail.invalid, list);
            }
            Err(_) => prop_assert!(expected.is_empty(), "{}", list),
        }
    }

    #[test]
    fn a_second_reader_sees_the_same_recipients_in_lists_without_obsolete_forms(
        people in prop::collection::vec((prop::option::of(quoted()), "[a-z]{1,8}", cfws()), 1..6),
    ) {
        let mut written = Vec::new();
        for (at, (name, local, comment)) in people.iter().enumerate() {
            written.push(match name {
                Some((name, _)) => format!("{name} {comment}<{local}{at}@e.org>"),
                None => format!("{local}{at}@e.org {comment}"),
            });
        }
        let list = written.join(", ");
        let message = format!("To: {list}\r\n\r\n");
        let message = MessageParser::new().parse(message.as_bytes()).unwrap();
        let second: Vec<String> = message.to().unwrap().iter().filter_map(|one| Some(one.address()?.to_owned())).collect();
        let (sent, invalid) = read(&list);
        prop_assert_eq!(sent, second, "{}", list);
        prop_assert!(invalid.is_empty(), "{:?}: {}", invalid, list);
    }

    #[test]
    fn a_hostile_name_adds_no_recipient_and_hides_none(
        people in prop::collection::vec((hostile_name(), 0..4_usize), 1..5), broken in any::<bool>(),
    ) {
        let person = |(at, (name, way)): (usize, &(String, usize))| format!("{} <b{at}@e.org>", written_name(name, *way));
        let mut list = people.iter().enumerate().map(person).collect::<Vec<_>>().join(", ");
        let mut expected: Vec<String> = (0..people.len()).map(|at| format!("b{at}@e.org")).collect();
        if broken {
            // The grammar does not accept this, so that the patient reader has to find its way.
            list.push_str(", Max 27\" <max@e.org>; c@e.org");
            expected.extend(["max@e.org".to_owned(), "c@e.org".to_owned()]);
        }
        let (sent, invalid) = read(&list);
        prop_assert_eq!(sent, expected, "{}", list);
        prop_assert!(invalid.is_empty(), "{:?}: {}", invalid, list);
    }
}
