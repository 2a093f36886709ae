//! Every row of the corpus becomes the mail that its expectation describes, or is set aside.

use std::fmt::Write as _;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::rows::{corpus, corpus_directory, render};

#[test]
fn every_row_is_sent_or_set_aside_as_expected() {
    let mut wrong = Vec::new();
    for row in corpus() {
        let result = render(&row.columns);
        let either = row.expect["either"] == true;
        if !either && result.is_ok() != (row.expect["outcome"] == "send") {
            wrong.push(format!("{}: {:?}", row.id, result.map(|_| "sent")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Reads the mails with Python's `email` package, once as patiently as a person and once strictly.
#[test]
fn a_second_reader_finds_in_every_mail_what_the_row_meant() {
    let directory = tempfile::tempdir().unwrap();
    let sent = directory.path().join("sent.jsonl");
    std::fs::write(&sent, sent_mails()).unwrap();
    let script = corpus_directory().join("compare.py");
    let output = match Command::new("python3").arg(&script).arg(&sent).output() {
        Ok(output) => output,
        Err(error) => panic!("the second reader is {}, which wants python3: {error}", script.display()),
    };
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The mails of all rows that are sent, an object a line. Kept where `MAILQUEUE_TEST_SENT` names a file.
fn sent_mails() -> String {
    let mut lines = String::new();
    for row in corpus() {
        let Ok(mail) = render(&row.columns) else { continue };
        let recipients: Vec<&str> = mail.envelope.recipients.iter().map(AsRef::as_ref).collect();
        let sender = mail.envelope.sender.as_ref().map_or(String::new(), ToString::to_string);
        let wire = STANDARD.encode(&mail.content);
        let line = json!({"id": row.id, "mail_from": sender, "rcpt_to": recipients, "wire_b64": wire});
        writeln!(lines, "{line}").unwrap();
    }
    if let Some(file) = std::env::var_os("MAILQUEUE_TEST_SENT") {
        std::fs::write(file, &lines).unwrap();
    }
    lines
}
