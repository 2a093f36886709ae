//! Encoded words (RFC 2047) as producers write them, and what only looks like one.

use crate::mails::{head, header, labels, send};

fn subject(written: &str) -> String {
    let mail = send(written, "", b"x\n");
    // What a second reader sees is what the row is listed by.
    assert_eq!(crate::mails::read(&mail).subject().unwrap_or_default(), mail.subject, "{}", head(&mail));
    mail.subject
}

#[test]
fn blanks_and_question_marks_inside_of_a_q_word_belong_to_it() {
    for (written, meant) in [
        ("=?UTF-8?Q?Kommst du zum Sommerfest? J=C3=B6rg fragt?=", "Kommst du zum Sommerfest? J\u{f6}rg fragt"),
        ("=?UTF-8?Q?Wie_geht=27s_J=C3=B6rg??=", "Wie geht's J\u{f6}rg?"),
        ("=?UTF-8?Q?Was?=C3=84h??=", "Was?\u{c4}h?"),
        ("=?UTF-8?Q?Was???= =?UTF-8?Q?_J=C3=B6?=", "Was?? J\u{f6}"),
        ("=?UTF-8?Q?J=C3=B6rg?=ABC =?UTF-8?Q?x?=", "J\u{f6}rgABC x"),
        ("=?UTF-8?Q?a?=, =?UTF-8?Q?b?=", "a, b"),
        ("=?UTF-8?Q?1+1=2?=", "1+1=2"),
        ("=?UTF-8?q?=c3=b6?=", "\u{f6}"),
        // What looks like the beginning of a word, or like an escape behind the end, and is none.
        ("=?UTF-8?Q?1=?x?=", "1=?x"),
        ("=?UTF-8?Q?a?utf-8?q?b?=", "a?utf-8?q?b"),
        ("=?UTF-8?Q?a=??q?b?=", "a=??q?b"),
        ("=?UTF-8?Q?x?=Ab y?= z", "xAb y?= z"),
    ] {
        assert_eq!(subject(written), meant, "{written}");
    }
}

#[test]
fn a_soft_line_break_inside_of_a_q_word_is_nothing() {
    for end in ["\r\n", "\n", "\r"] {
        let written = format!("=?UTF-8?Q?Sommerfest am W=C3=B6rthersee mit ={end}Musik f=C3=BCr alle?=");
        let mail = send(&written, "", b"x\n");
        assert_eq!(mail.subject, "Sommerfest am W\u{f6}rthersee mit Musik f\u{fc}r alle");
        assert_eq!(labels(&mail), [""; 0]);
    }
}

#[test]
fn neighbours_that_return_to_ascii_at_their_ends_are_decoded() {
    let word = "=?ISO-2022-JP?B?GyRCJCIbKEI=?=";
    let mail = send(&format!("{word} {word}\r\n {word} =?iso-2022-jp?q?a?="), "", b"x\n");
    assert_eq!(mail.subject, "\u{3042}\u{3042}\u{3042}a");
}

#[test]
fn neighbours_in_different_charsets_are_decoded_each_by_its_own() {
    assert_eq!(subject("=?iso-8859-1?Q?=E4?= =?utf-8?Q?=C3=B6?= =?koi8-r?B?wQ==?="), "\u{e4}\u{f6}\u{430}");
    // One character in two words is one word's charset twice.
    assert_eq!(subject("=?utf-8?Q?=C3?=\r\n =?UTF-8?Q?=B6?="), "\u{f6}");
}

#[test]
fn base64_of_several_pieces_is_decoded_piece_by_piece() {
    assert_eq!(subject("=?utf-8?B?w7Y=w7w=?="), "\u{f6}\u{fc}");
    assert_eq!(subject("=?utf-8?B?YQ==Yg==?="), "ab");
}

#[test]
fn a_word_in_a_charset_that_cannot_be_converted_stays_as_it_is() {
    let mail = send("=?UTF-7?Q?Gr+APw-n?=", "", b"x\n");
    assert_eq!(header(&mail, "Subject").unwrap(), "=?UTF-7?Q?Gr+APw-n?=");
    let mail = send("Gr\u{fc}n =?UTF-7?Q?Gr+APw-n?= J\u{f6}rg und =?ISO-2022-KR?B?YQ==?=", "", b"x\n");
    let words = header(&mail, "Subject").unwrap();
    assert!(words.contains(" =?UTF-7?Q?Gr+APw-n?= ") && words.ends_with(" und =?ISO-2022-KR?B?YQ==?="), "{words}");
    // A reader leaves out the blanks between encoded words, so that ours hold them.
    assert_eq!(words, "=?utf-8?b?R3LDvG4g?= =?UTF-7?Q?Gr+APw-n?= =?utf-8?b?IErDtnJn?= und =?ISO-2022-KR?B?YQ==?=");
    assert_eq!(labels(&mail), [""; 0]);
    // Python writes words of 79 characters.
    let long = "=?iso-2022-kr?b?GyQpQw5HUTE5Pm5HUTE5Pm5HUTE5Pm5HUTE5Pm5HUTE5Pm5HUTE5Pm5HUQ8=?=";
    assert_eq!(header(&send(long, "", b"x\n"), "Subject").unwrap(), long);
    let name = |name: &str| header(&send("S", &format!("Cc: {name} <c@example.org>\n"), b"x\n"), "Cc").unwrap();
    assert_eq!(
        name("\"=?UTF-7?Q?Gr+APw-n?=\" =?UTF-7?Q?a?="),
        "=?utf-8?b?Ij0/VVRGLTc/UT9HcitBUHctbj89IiA9P1VURi03P1E/YT89?= <c@example.org>"
    );
    assert_eq!(name("=?UTF-7?Q?Gr+APw-n?= =?UTF-7?Q?a?="), "=?UTF-7?Q?Gr+APw-n?= =?UTF-7?Q?a?= <c@example.org>");
    assert!(name("=?UTF-7?Q?<x@e.org>,?=").starts_with("=?utf-8?b?"));
}

#[test]
fn only_a_whole_word_in_a_charset_that_cannot_be_converted_goes_out_as_it_is() {
    let as_it_is = |word: &str| header(&send(word, "", b"x\n"), "Subject").unwrap() == word;
    // Longer than RFC 2047 §2 allows, and as long as readers take without harm.
    let word = |length: usize| format!("=?UTF-7?Q?{}?=", "x".repeat(length - 12));
    assert!(as_it_is(&word(500)) && !as_it_is(&word(501)));
    for text in [word(501).as_str(), "=?UTF-7?Q?\u{fc}?=", "=?UTF-7?Q?x?=,", "x=?UTF-7?Q?x?="] {
        let mail = send(text, "", b"x\n");
        assert!(header(&mail, "Subject").unwrap().starts_with("=?utf-8?b?"), "{}", head(&mail));
        assert_eq!(mail.subject, text);
    }
    // A text about encoded words is none.
    assert_eq!(subject("=?utf-8?Q?=3D=3Futf-8=3FQ=3Fx=3F=3D?="), "=?utf-8?Q?x?=");
    // Only a blank between two words needs encoding, and the text ends without one.
    assert_eq!(
        header(&send("=?UTF-7?Q?a?= J\u{f6}", "", b"x\n"), "Subject").unwrap(),
        "=?UTF-7?Q?a?= =?utf-8?b?IErDtg==?="
    );
    assert_eq!(
        header(&send("J\u{f6} =?UTF-7?Q?a?=", "", b"x\n"), "Subject").unwrap(),
        "=?utf-8?b?SsO2IA==?= =?UTF-7?Q?a?="
    );
}

#[test]
fn lines_are_folded_behind_76_characters_and_long_words_of_a_subject_encoded_from_65_on() {
    for (length, lines) in [(76, 1), (77, 2)] {
        let value = format!("{} {}", "x".repeat(30), "y".repeat(length - "X-Note: ".len() - 31));
        let mail = send("S", &format!("X-Note: {value}\n"), b"x\n");
        assert_eq!(header(&mail, "X-Note").unwrap(), value);
        let content = String::from_utf8_lossy(&mail.content).into_owned();
        assert_eq!(content.contains(&format!("\r\nX-Note: {value}\r\n")), lines == 1, "{content}");
    }
    assert_eq!(header(&send(&"x".repeat(64), "", b"x\n"), "Subject").unwrap(), "x".repeat(64));
    assert!(header(&send(&"x".repeat(65), "", b"x\n"), "Subject").unwrap().starts_with("=?utf-8?b?"));
}

#[test]
fn a_charset_that_is_none_is_guessed_and_said() {
    let mail = send("=?x-foo?Q?J=F6rg?=", "X-Note: =?x-foo?Q?J=F6rg?=\n", b"x\n");
    assert_eq!(mail.subject, "J\u{f6}rg");
    assert_eq!(labels(&mail), ["charset (msubject)", "charset (X-Note)"]);
    let mail = send("=?utf-8?Q?J=F6rg?=", "", b"x\n");
    assert_eq!((mail.subject.as_str(), labels(&mail)), ("J\u{f6}rg", vec!["charset (msubject)".to_owned()]));
    let mail = send("=?x-foo?Q?Jo?=", "", b"x\n");
    assert_eq!((mail.subject.as_str(), labels(&mail)), ("Jo", vec![]));
}

#[test]
fn what_only_looks_like_an_encoded_word_is_left_alone() {
    let url = "https://news.example.at/u/dGVzdA==?c=1&d=?utf-8?x?=";
    let mail = send("S", &format!("X-Link: {url}\nX-Math: a=?b and =?c?d?e?=\n"), b"x\n");
    assert_eq!(header(&mail, "X-Link").unwrap(), url);
    assert_eq!(header(&mail, "X-Math").unwrap(), "a=?b and =?c?d?e?=");
    for written in ["=?utf-8?Q?offen", "=? ?Q?x?=", "=??Q?x?=", "=?utf-8?X?x?=", "=?ut f?Q?x?=", "=?utf-8?B?YQ=="] {
        assert_eq!(send(written, "", b"x\n").subject, written);
    }
    // A word that was cut off takes none that follows with it.
    assert_eq!(send("=?UTF-8?Q?abc =?UTF-8?Q?=C3=B6?=", "", b"x\n").subject, "=?UTF-8?Q?abc \u{f6}");
}

#[test]
fn what_is_written_as_words_fits_its_lines_and_is_divided_only_where_it_must_be() {
    // 45 bytes are 60 in base64, which fit into a line together with a blank, `=?utf-8?b?` and `?=`. 46 bytes do not.
    for length in 1..=120 {
        let text = format!("{}\u{f6}", "x".repeat(length));
        let mail = send(&format!("Neu {text}"), "", b"x\n");
        assert_eq!(mail.subject, format!("Neu {text}"));
        let content = String::from_utf8_lossy(&mail.content).into_owned();
        let head = content.split("\r\n\r\n").next().unwrap();
        assert!(head.lines().all(|line| line.len() <= 76), "{head}");
        assert!(length > 30 || head.contains("\r\nSubject: Neu =?utf-8?b?"), "on one line where it fits: {head}");
        let words = head.matches("=?utf-8?b?").count();
        assert_eq!(words, if length + 2 <= 45 { 1 } else { words.max(2) }, "{length}: {head}");
    }
    // The word stands on a line of its own where it does not fit behind the one before, whatever column that ends at.
    for before in 1..=60 {
        let mail = send(&format!("{} {}\u{f6}", "n".repeat(before), "x".repeat(20)), "", b"x\n");
        assert_eq!(head(&mail).matches("=?utf-8?b?").count(), 1, "{}", head(&mail));
    }
}

#[test]
fn a_word_that_needs_no_encoding_stays_readable() {
    let mail = send("Neu: \"Das\" J\u{f6}rg spricht", "", b"x\n");
    let words = header(&mail, "Subject").unwrap();
    assert!(words.starts_with("Neu: =?utf-8?b?") && words.ends_with("?= spricht"), "{words}");
    assert_eq!(header(&send("Neu: \"Das\" Wort", "", b"x\n"), "Subject").unwrap(), "Neu: \"Das\" Wort");
    let words = header(&send("\"Das\" \u{f6} und \"dies\"", "", b"x\n"), "Subject").unwrap();
    assert!(!words.contains('"'), "no quotation mark beside an encoded word: {words}");
    assert_eq!(send("  a \t b  ", "", b"x\n").subject, "a b");
    assert_eq!(send(" a b", "", b"x\n").subject, "a b");
    assert_eq!(send("a b ", "", b"x\n").subject, "a b");
}

#[test]
fn an_encoded_word_never_stands_on_one_line_with_a_quotation_mark_before_it() {
    let mail = send("S", "Cc: \"A, B\" <a@example.org>, J\u{f6}rg <j@example.org>\n", b"x\n");
    let content = String::from_utf8_lossy(&mail.content).into_owned();
    assert!(content.contains("\r\nCc: \"A, B\" <a@example.org>,\r\n =?utf-8?b?"), "{content}");
}

#[test]
fn words_without_an_end_cost_no_more_than_their_bytes() {
    // A quadratic reader needs minutes for this.
    for piece in ["=?a?q?", "=?a?b?", "=?", "=?a?q?x?=AB", "=?x-foo?q?=FF?= "] {
        let text = piece.repeat(200_000 / piece.len());
        let row = crate::mails::try_send("S", &format!("X-Text: {text}x\n"), b"x\n");
        // It is one word that fits into no line, or words that are said to have been guessed.
        assert!(row.map_or(true, |mail| piece.ends_with(' ') == (labels(&mail) == ["charset (X-Text)"])), "{piece}");
    }
}
