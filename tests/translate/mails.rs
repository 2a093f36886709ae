//! A mail that was made of a row, looked at: for tests of single headers and bodies.

use mail_parser::{Message, MessageParser};
use mailqueue::mail::Mail;
use mailqueue::translate::Unreadable;

use crate::rows::{columns, render};

/// The mail of a row to lea@example.org, with this behind its From.
pub fn try_send(subject: &str, headers: &str, body: &[u8]) -> Result<Mail, Unreadable> {
    let headers = format!("From: a@example.org\nMIME-Version: 1.0\n{headers}");
    render(&columns(b"lea@example.org", subject.as_bytes(), headers.as_bytes(), body))
}

pub fn send(subject: &str, headers: &str, body: &[u8]) -> Mail {
    try_send(subject, headers, body).unwrap()
}

fn end_of_head(mail: &Mail) -> usize {
    mail.content.windows(4).position(|window| window == b"\r\n\r\n").unwrap()
}

/// The header block, unfolded, without its last line end.
pub fn head(mail: &Mail) -> String {
    let head = std::str::from_utf8(&mail.content[..end_of_head(mail)]).unwrap();
    head.replace("\r\n ", " ")
}

/// The value of a header on one line, as it is written. Panics if there is more than one.
pub fn header(mail: &Mail, name: &str) -> Option<String> {
    let head = head(mail);
    let mut values = head.split("\r\n").filter_map(|line| line.split_once(": ")).filter(|(found, _)| *found == name);
    let value = values.next().map(|(_, value)| value.to_owned());
    assert!(values.next().is_none(), "{name}: {head}");
    value
}

pub fn body(mail: &Mail) -> &[u8] {
    &mail.content[end_of_head(mail) + 4..]
}

pub fn body_text(mail: &Mail) -> &str {
    std::str::from_utf8(body(mail)).unwrap()
}

/// The repairs as the log has them.
pub fn labels(mail: &Mail) -> Vec<String> {
    mail.repairs.iter().map(|repair| repair.label()).collect()
}

/// Returns what a second reader sees.
pub fn read(mail: &Mail) -> Message<'_> {
    MessageParser::new().parse(&mail.content[..]).unwrap()
}

/// A text of a mail as a second reader sees it, with LF for line ends and none at its end.
pub fn text(mail: &Mail, number: usize) -> String {
    read(mail).body_text(number).unwrap_or_default().replace("\r\n", "\n").trim_end().to_owned()
}

/// The files of a mail, by a second reader: name and content.
pub fn files(mail: &Mail) -> Vec<(String, Vec<u8>)> {
    use mail_parser::MimeHeaders;
    let message = read(mail);
    let file = |part: &mail_parser::MessagePart| {
        (part.attachment_name().unwrap_or_default().to_owned(), part.contents().to_vec())
    };
    message.attachments().map(file).collect()
}
