//! Output goes to terminals unharmed, into pipes that are closed, and onto disks that are full.

use std::fs::OpenOptions;
use std::process::Stdio;

use mailqueue::visible::is_hidden;

use super::{MAIL, enqueue, installation, objects, stderr, stdout};
use crate::support::binary::{Installation, output};

#[tokio::test]
async fn nothing_from_a_row_reaches_the_terminal_unescaped() {
    let installation = installation().await;
    let nasty = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\u{200b}\u{e0041}\u{fe0f}x";
    let mail = format!(
        "From: \"{nasty}\" <a@example.org>\nTo: b@example.org\nSubject: {nasty}\nX-Other: {nasty}\n\
         Content-Type: text/plain; charset=utf-8\n\n{nasty}\n"
    );
    enqueue(&installation, "newsletter", &mail).await;
    for arguments in [
        &["show", "newsletter/1"][..],
        &["show", "newsletter/1", "--json"],
        &["list"],
        &["list", "--json", "--subject", "owned"],
        &["render", "--all", "--out", "rendered"],
    ] {
        let output = installation.run(arguments).await;
        let shown = stdout(&output).to_owned() + stderr(&output);
        let bad = shown.chars().find(|c| *c != '\n' && is_hidden(*c));
        assert_eq!(bad, None, "{arguments:?} lets it through: {}", shown.escape_debug());
    }
    let shown = installation.run(&["show", "newsletter/1"]).await;
    let (shown, text) = (stdout(&shown), "\\u{1b}]0;owned\\u{7}\\u{9b}31m\\u{202e}\\u{200b}\\u{e0041}\\u{fe0f}x");
    let visible = text.replace("\\u{1b}", "").replace("\\u{7}", " ");
    assert!(shown.contains(&format!("  X-Other: {visible}\n")), "controls are taken out of a header: {shown}");
    assert!(shown.ends_with(&format!("\n  {text}")), "{shown}");
    let object = &objects(&installation.run(&["show", "newsletter/1", "--json"]).await)[0];
    assert!(object["mail"]["headers"].to_string().contains('\u{200b}'), "a program gets the characters themselves");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let installation = Installation::new("");
    let mut command = installation.command();
    let mut child =
        command.args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    drop(child.stdout.take());
    let output = child.wait_with_output().await.expect("mailqueue");
    assert_eq!((stderr(&output), output.status.code()), ("", Some(0)));
}

#[tokio::test]
async fn help_has_its_lines_where_the_environment_says_that_a_terminal_has_no_columns() {
    let installation = Installation::new("");
    let help = async |columns: &str| {
        let mut command = installation.command();
        command.args(["list", "--help"]).env("COLUMNS", columns);
        stdout(&output(command).await).to_owned()
    };
    assert_eq!(help("0").await, help("100").await);
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()
}

#[tokio::test]
async fn a_command_whose_output_cannot_be_written_says_so_and_ends_with_1() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    for arguments in [
        &["list"][..],
        &["list", "--json"],
        &["show", "newsletter/1"],
        &["show", "newsletter/1", "--raw"],
        &["status", "--json"],
        &["check"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
        &["help", "list"],
        &["--version"],
        &["render", "--all", "--out", "out"],
        &["hold", "newsletter/1"],
        &["once"],
    ] {
        let mut command = installation.command();
        command.args(arguments).stdout(full());
        let output = output_of(command).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("mailqueue: standard output cannot be written: "), "{}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
    assert_eq!(objects(&installation.run(&["list", "--json"]).await)[0]["state"], "held", "the work was done");
}

async fn output_of(mut command: tokio::process::Command) -> std::process::Output {
    command.stderr(Stdio::piped());
    command.spawn().expect("mailqueue").wait_with_output().await.expect("mailqueue")
}

#[tokio::test]
async fn a_standard_error_that_is_full_changes_no_exit_status() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    for (arguments, status) in [
        (&["show", "newsletter/1", "--raw"][..], 0),
        (&["show", "newsletter/9"], 1),
        (&["list", "--subject", ""], 2),
        (&["list", "--queue", "press"], 2),
        (&["no-such-command"], 2),
        (&["trace", "newsletter/1"], 2),
        (&["--log-level=trace", "list"], 0),
        (&["--log-level=trace", "once"], 69),
        (&["--config", "/nonexistent", "list"], 2),
    ] {
        let mut command = installation.command();
        command.args(arguments).stdout(Stdio::null()).stderr(full());
        let ended = command.spawn().expect("mailqueue").wait().await.expect("mailqueue");
        assert_eq!(ended.code(), Some(status), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_command_that_changes_rows_is_not_stopped_halfway_by_a_reader_that_has_seen_enough() {
    let installation = installation().await;
    for _ in 0..2 {
        enqueue(&installation, "newsletter", MAIL).await;
    }
    for arguments in [&["hold", "newsletter/1", "newsletter/2"][..], &["delete", "--yes", "--state", "held"]] {
        let mut command = installation.command();
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
        drop(child.stdout.take());
        let output = child.wait_with_output().await.expect("mailqueue");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    }
    assert_eq!(stdout(&installation.run(&["list", "--json"]).await), "");
    let mut command = installation.command();
    let mut child = command.args(["delete", "--yes", "newsletter/9"]).stdout(Stdio::piped()).spawn().expect("start");
    drop(child.stdout.take());
    assert_eq!(child.wait().await.expect("mailqueue").code(), Some(1), "no such row, whoever reads it");
}

#[tokio::test]
async fn a_log_shows_what_cannot_be_seen_of_a_row() {
    for (format, escape) in [("json", "\\u200b"), ("text", "\\u{200b}")] {
        let installation = installation().await;
        let log = format!("[log]\nformat = \"{format}\"\naddresses = \"full\"\n");
        let configuration = std::fs::read_to_string(installation.configuration()).expect("configuration");
        std::fs::write(installation.configuration(), configuration + &log).expect("write");
        let columns = crate::support::house::row("evil\u{200b}\u{202e}@x", "x", "x", "From: a@example.org\r\n");
        super::queue(&installation, "newsletter").insert(&columns).await.expect("SQLite");
        let mut command = installation.command();
        command.args(["--log-level", "info", "once"]);
        let output = output(command).await;
        assert!(stderr(&output).contains(&format!("evil{escape}")), "{}", stderr(&output));
        assert!(!stderr(&output).contains(|c| c != '\n' && is_hidden(c)), "{}", stderr(&output).escape_debug());
    }
}
