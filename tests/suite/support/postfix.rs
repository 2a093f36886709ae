//! The Postfix that `tests/run` starts; `tests/servers/postfix.sh` says what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use super::{eventually, variable};

pub fn port() -> u16 {
    variable("MAILQUEUE_TEST_POSTFIX_PORT").parse().expect("port")
}

pub fn implicit_tls_port() -> u16 {
    variable("MAILQUEUE_TEST_POSTFIX_TLS_PORT").parse().expect("port")
}

pub fn plain_port() -> u16 {
    variable("MAILQUEUE_TEST_POSTFIX_PLAIN_PORT").parse().expect("port")
}

pub fn ca_file() -> PathBuf {
    variable("MAILQUEUE_TEST_POSTFIX_CA").into()
}

pub fn user() -> String {
    variable("MAILQUEUE_TEST_POSTFIX_USER")
}

pub fn password_file() -> PathBuf {
    variable("MAILQUEUE_TEST_POSTFIX_PASSWORD_FILE").into()
}

/// One recipient's copy of a mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Empty for the null sender.
    pub sender: String,
    pub recipient: String,
    /// Behind the three lines that tell the envelope: Postfix's `Received`, then the mail, with LF line ends.
    pub content: Vec<u8>,
}

/// Waits until `count` mails for addresses that end with `suffix` have arrived, and returns them in the order of their
/// recipients. As all tests share the Maildir, `suffix` should be a domain of the test's own. To see that nothing more
/// arrives, send a last mail by the same connection and wait for it too.
pub async fn delivered_to(suffix: &str, count: usize) -> Vec<Delivered> {
    let what = format!("{count} mails for {suffix} in Postfix's Maildir");
    eventually(&what, || {
        let mut mails = read_all(suffix);
        mails.sort_by(|a, b| a.recipient.cmp(&b.recipient));
        (mails.len() >= count).then_some(mails)
    })
    .await
}

fn read_all(suffix: &str) -> Vec<Delivered> {
    let directory = Path::new(&variable("MAILQUEUE_TEST_POSTFIX_MAILDIR")).join("new");
    // Postfix makes it with the first mail.
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .map(|entry| parse(&fs::read(entry.expect("Maildir").path()).expect("mail")))
        .filter(|mail| mail.recipient.ends_with(suffix))
        .collect()
}

fn parse(file: &[u8]) -> Delivered {
    let mut lines = file.splitn(4, |byte| *byte == b'\n');
    let mut header = |name: &str| {
        let line = String::from_utf8(lines.next().expect("line").to_vec()).expect("UTF-8");
        line.strip_prefix(name).unwrap_or_else(|| panic!("{line} is not {name}")).to_owned()
    };
    let sender = header("Return-Path: <").trim_end_matches('>').to_owned();
    let recipient = header("X-Original-To: ");
    header("Delivered-To: ");
    Delivered { sender, recipient, content: lines.next().expect("mail").to_vec() }
}
