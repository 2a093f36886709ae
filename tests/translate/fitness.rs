//! What every mail has to be that goes out, whatever row it comes from. Shared with the fuzz targets.

use jiff::Timestamp;
use mailqueue::mail::{Capabilities, ColumnLimits, Columns, Mail, RecordId};
use mailqueue::translate::{Settings, Stamp, translate};

/// Everything that the wire and the readers behind it rely on.
pub fn assert_fit_for_the_wire(mail: &Mail, wire: Capabilities) {
    let content = &mail.content[..];
    assert!(content.ends_with(b"\r\n"), "the last line has no end");
    assert!(!content.contains(&0), "NUL");
    for (at, byte) in content.iter().enumerate() {
        match byte {
            b'\r' => assert_eq!(content.get(at + 1), Some(&b'\n'), "bare CR at {at}"),
            b'\n' => assert_eq!(at.checked_sub(1).map(|at| content[at]), Some(b'\r'), "bare LF at {at}"),
            _ => {}
        }
    }
    assert!(content.split(|byte| *byte == b'\n').all(|line| line.len() <= 999), "a line of more than 998 bytes");
    assert!(mail.eight_bit <= wire.eight_bit && mail.smtputf8 <= wire.smtputf8);
    let end = content.windows(4).position(|window| window == b"\r\n\r\n").expect("no end of the header");
    let head = std::str::from_utf8(&content[..end + 2]).expect("a header that is no UTF-8");
    assert_eq!(mail.eight_bit, !content[end..].is_ascii());
    assert!(mail.smtputf8 || head.is_ascii(), "8-bit header: {head}");
    let mut names: Vec<String> = Vec::new();
    for line in head.lines() {
        assert!(!line.trim().is_empty() && !line.contains('\0'), "{line:?}");
        if !line.starts_with(' ') && !line.starts_with('\t') {
            let name = line.split(':').next().unwrap();
            assert!(line.contains(':') && name.bytes().all(|byte| byte.is_ascii_graphic()), "no header: {line:?}");
            names.push(name.to_ascii_lowercase());
        }
    }
    for once in
        ["from", "to", "cc", "subject", "date", "message-id", "mime-version", "content-type", "sender", "reply-to"]
    {
        assert!(names.iter().filter(|name| *name == once).count() <= 1, "two headers {once}: {head}");
    }
    for needed in ["from", "date", "message-id", "mime-version", "content-type"] {
        assert!(names.iter().any(|name| name == needed), "no {needed}: {head}");
    }
    for hidden in ["bcc", "resent-bcc", "return-path"] {
        assert!(!names.iter().any(|name| name == hidden), "{hidden}: {head}");
    }
    assert!(!mail.envelope.recipients.is_empty());
    for address in mail.envelope.recipients.iter().chain(&mail.envelope.sender) {
        let text = address.to_string();
        assert!(!text.chars().any(|c| c.is_control() || c == '<' || c == '>'), "{text:?}");
        assert!(text.is_ascii() || wire.smtputf8, "{text}");
    }
    for text in mail
        .repairs
        .iter()
        .map(|repair| &repair.text)
        .chain(mail.invalid.iter().map(|invalid| &invalid.written))
        .chain([&mail.subject])
    {
        assert!(!text.chars().any(|c| c < ' ' || c == '\x7f'), "{text:?}");
    }
}

/// Translates for every kind of smarthost. Gives back the mail for the best of them.
pub fn try_everywhere(columns: &Columns) -> Option<Mail> {
    let settings = Settings {
        envelope_from: None,
        default_from: Some("noreply@example.org".parse().unwrap()),
        max_size: u64::MAX,
    };
    let limits =
        ColumnLimits { mto: u64::MAX, msubject: u64::MAX, mbody: u64::MAX, mheaders: u64::MAX, mparams: u64::MAX };
    let stamp = Stamp { record: RecordId::new([0xab; 16]), created: Timestamp::UNIX_EPOCH };
    let mut best = None;
    for (eight_bit, smtputf8) in [(false, false), (true, true)] {
        let wire = Capabilities { eight_bit, smtputf8 };
        best = translate(columns, &limits, &stamp, wire, &settings).ok();
        best.iter().for_each(|mail| assert_fit_for_the_wire(mail, wire));
    }
    best
}
