//! What operators change: it comes into the service's log, whatever the level, and into the story of a mail.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use mailqueue::observe::audit::{self, Change, FILE};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::eventually;
use crate::support::house::{House, mail, said};

/// The events of a daemon's log that are about operators.
fn audited(lines: &[String]) -> Vec<Value> {
    let lines = lines.iter().filter(|line| line.contains("\"mailqueue::audit\""));
    lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn brief(event: &Value) -> String {
    let word = |key: &str| event[key].as_str().unwrap_or("-").to_owned();
    format!("{} {} {}", word("queue"), word("id"), word("message"))
}

async fn house() -> House {
    let catcher = Catcher::start().await;
    House::build(database::sqlite(), catcher.port(), "poll_interval = \"1h\"", "").await
}

async fn run_as(house: &House, user: &str, arguments: &[&str]) {
    let output = house.installation.command().args(arguments).env("SUDO_USER", user).output().await.expect("mailqueue");
    assert!(output.status.success(), "{}", said(&output));
    assert!(output.stderr.is_empty(), "{}", said(&output));
}

#[tokio::test]
async fn each_change_by_an_operator_is_in_the_daemons_log_with_who_what_and_which_row_at_every_level() {
    let house = house().await;
    let daemon = house.installation.start(&["--log-level", "error", "run"]);
    let state = house.installation.path().join("state").join(mailqueue::observe::status_file::FILE);
    eventually("the daemon runs", || state.exists().then_some(())).await;
    run_as(&house, "lukas", &["pause", "newsletter"]).await;
    run_as(&house, "lukas", &["pause", "relay"]).await;
    daemon.wait_for_line("\"relay\"").await;
    for to in ["a@example.org", "b@example.org"] {
        house.newsletter.insert(&mail(to, "Einladung")).await.expect("INSERT");
    }
    run_as(&house, "lukas", &["hold", "--queue", "newsletter", "--subject", "Einladung"]).await;
    run_as(&house, "anna", &["release", "newsletter/1"]).await;
    run_as(&house, "anna", &["retry", "newsletter/1"]).await;
    run_as(&house, "anna", &["delete", "--yes", "newsletter/2"]).await;
    run_as(&house, "anna", &["hold", "newsletter/1", "--dry-run"]).await;
    run_as(&house, "anna", &["enqueue", "--queue=admidio", "--to=a@example.org", "--from=b@example.org"]).await;
    run_as(&house, "anna", &["resume", "relay"]).await;
    daemon.wait_for_line("resumed by an operator").await;
    daemon.signal(Signal::TERM);
    let (_, lines) = daemon.wait().await;
    let events = audited(&lines);
    assert_eq!(
        events.iter().map(brief).collect::<Vec<_>>(),
        [
            "newsletter - paused by an operator",
            "relay - paused by an operator",
            "newsletter newsletter/1 held by an operator",
            "newsletter newsletter/2 held by an operator",
            "newsletter newsletter/1 released by an operator",
            "newsletter newsletter/1 retried by an operator",
            "newsletter newsletter/2 deleted by an operator",
            "admidio admidio/1 inserted by an operator",
            "relay - resumed by an operator",
        ],
        "{lines:#?}"
    );
    assert_eq!((&events[2]["user"], &events[4]["user"]), (&"lukas".into(), &"anna".into()));
    assert_eq!(events[4]["uid"], rustix::process::getuid().as_raw());
    assert!(events[4]["at"].as_str().is_some_and(|at| at.parse::<Timestamp>().is_ok()));
}

#[tokio::test]
async fn what_was_changed_while_no_daemon_ran_is_logged_once_when_one_starts() {
    let house = house().await;
    assert_eq!(house.once().await, 0, "state_dir is there");
    run_as(&house, "lukas", &["pause", "newsletter"]).await;
    for expected in [1, 0] {
        let daemon = house.start();
        daemon.wait_for_line("queue paused").await;
        if expected == 1 {
            daemon.wait_for_line("\"mailqueue::audit\"").await;
        }
        daemon.signal(Signal::TERM);
        let (_, lines) = daemon.wait().await;
        assert_eq!(audited(&lines).len(), expected, "{lines:#?}");
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_left_in_state_dir_is_told_all_the_same() {
    let house = house().await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.expect("INSERT");
    let hold = async || {
        let mut command = house.installation.command();
        command.args(["--log-level", "error", "hold", "newsletter/1"]).env("SUDO_USER", "lukas");
        command.output().await.expect("mailqueue")
    };
    let told = |stderr: &[u8]| {
        let text = String::from_utf8_lossy(stderr).into_owned();
        // On a host with a journal it stands there.
        if Path::new("/run/systemd/journal/socket").exists() {
            assert_eq!(text, "");
        } else {
            let words = ["held by an operator", "newsletter/1", "lukas"];
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    };
    // No daemon has ever run here, and an operator's command does not make its folder.
    let output = hold().await;
    told(&output.stderr);
    let state = house.installation.path().join("state");
    assert!(!state.exists());

    std::fs::create_dir(&state).expect("folder");
    let elsewhere = house.installation.path().join("elsewhere");
    std::fs::write(&elsewhere, "untouched").expect("file");
    std::os::unix::fs::symlink(&elsewhere, state.join(FILE)).expect("link");
    assert!(house.run(&["release", "newsletter/1"]).await.status.success());
    let output = hold().await;
    told(&output.stderr);
    assert_eq!(std::fs::read_to_string(&elsewhere).expect("file"), "untouched", "a link is not followed");
}

#[tokio::test]
async fn trace_tells_what_operators_did_to_a_mail_also_when_its_row_is_gone() {
    let house = house().await;
    assert_eq!(house.once().await, 0, "state_dir is there");
    for _ in 0..2 {
        house.newsletter.insert(&mail("a@example.org", "x")).await.expect("INSERT");
    }
    run_as(&house, "lukas", &["hold", "--queue", "newsletter"]).await;
    let standing = said(&house.run(&["trace", "newsletter/1"]).await);
    assert!(standing.contains("the row stands in its table: held (operator), 0 attempts"), "{standing}");
    run_as(&house, "anna", &["delete", "--yes", "newsletter/2"]).await;
    let traced = house.run(&["trace", "newsletter/2"]).await;
    assert!(traced.status.success(), "{}", said(&traced));
    let text = said(&traced);
    assert!(text.contains("held by lukas (uid ") && text.contains("deleted by anna (uid "), "{text}");
    let objects = house.run(&["trace", "newsletter/2", "--json"]).await;
    let objects: Vec<Value> = String::from_utf8_lossy(&objects.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect();
    assert_eq!((objects.len(), &objects[1]["change"], &objects[1]["user"]), (2, &"deleted".into(), &"anna".into()));
}

#[tokio::test]
async fn what_operators_did_is_forgotten_when_the_ledger_would_forget_it() {
    let folder = tempfile::tempdir().expect("folder");
    let change = |hours: i64, what: &str| Change {
        at: Timestamp::now() - jiff::SignedDuration::from_hours(hours),
        user: "lukas".to_owned(),
        uid: 0,
        what: what.to_owned(),
        target: "newsletter".to_owned(),
        mids: vec![1],
    };
    for (hours, what) in [(50, "held"), (1, "released")] {
        audit::record(folder.path(), &change(hours, what));
    }
    assert_eq!(audit::changes(folder.path()).expect("file").len(), 2);
    let following = tokio::spawn(audit::follow(folder.path().to_owned(), Duration::from_secs(86_400)));
    let left = eventually("the older one is gone", || {
        let left = audit::changes(folder.path()).expect("file");
        (left.len() == 1).then_some(left)
    })
    .await;
    assert_eq!(left[0].what, "released");
    following.abort();
}
