//! What operators type and what they get to read, with the program itself on an SQLite file.

mod enqueue;
mod filters;
mod output;
mod pause;
mod render;
mod separate;
mod show;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use mailqueue::config::Config;
use mailqueue::queue::Queue;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::binary::Installation;
use crate::support::eventually;

const CONFIGURATION: &str = r#"
state_dir = "{dir}/state"
[[queue]]
name = "newsletter"
database = "sqlite:{dir}/queue.sqlite"
table = "mail_queue"
[[queue]]
name = "admidio"
database = "sqlite:{dir}/queue.sqlite"
table = "adm_mail_queue"
[relay]
host = "127.0.0.1"
port = 1
tls = "none"
"#;

/// The line that `list` and the like end with has no line end behind it here.
fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8").trim_end_matches('\n')
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8").trim_end_matches('\n')
}

fn objects(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

/// With the tables of both producers, all empty.
async fn installation() -> Installation {
    let installation = Installation::new(CONFIGURATION);
    let output = installation.run(&["migrate", "--producers"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    installation
}

async fn enqueue(installation: &Installation, queue: &str, mail: &str) -> Output {
    let mut command = installation.command();
    command.args(["enqueue", "--queue", queue]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("mailqueue");
    let mut stdin = child.stdin.take().expect("pipe");
    stdin.write_all(mail.as_bytes()).await.expect("it reads");
    drop(stdin);
    child.wait_with_output().await.expect("mailqueue")
}

fn queue(installation: &Installation, name: &str) -> Queue {
    let config = Config::load(&installation.configuration()).expect("it can be used");
    let found = config.queues.into_iter().find(|queue| &*queue.settings.name == name).expect("it is configured");
    Queue::new(found.settings, String::new()).expect("queue")
}

const MAIL: &str = "From: \"Jörg\" <joerg@example.org>\nTo: anna@example.org\nCc: bea@example.org\n\
    Subject: Grüße\nMessage-ID: <1@example.org>\nDate: Sat, 3 Mar 2018 10:00:00 +0100\n\n.Hallo\nAnna\n";

#[tokio::test]
async fn migrate_creates_what_is_missing_and_says_so() {
    let installation = Installation::new(CONFIGURATION);
    let first = installation.run(&["migrate", "--producers"]).await;
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    assert!(stdout(&first).contains("newsletter: created the producers' table mail_queue"), "{}", stdout(&first));
    assert!(stdout(&first).contains("admidio: created the producers' table adm_mail_queue"), "{}", stdout(&first));
    let second = installation.run(&["migrate", "--producers"]).await;
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    assert!(!stdout(&second).contains("created"), "{}", stdout(&second));
}

#[tokio::test]
async fn commands_before_migrate_say_what_to_do() {
    let installation = Installation::new(CONFIGURATION);
    let output = installation.run(&["list"]).await;
    assert_eq!(output.status.code(), Some(1));
    let file = installation.path().join("queue.sqlite");
    let told = ["newsletter", "admidio"].map(|queue| {
        format!("mailqueue: queue {queue}: the file {} does not exist; run `mailqueue migrate`", file.display())
    });
    assert_eq!(stderr(&output), told.join("\n"));
}

#[tokio::test]
async fn list_shows_rows_to_people_and_to_programs() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    enqueue(&installation, "admidio", &MAIL.replace("anna@", "clara@")).await;
    let lines = installation.run(&["list"]).await;
    let words: Vec<Vec<&str>> = stdout(&lines).lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0][..4], ["ID", "STATE", "REASON", "TRIES"]);
    assert_eq!(words[1], ["newsletter/1", "waiting", "-", "-", "-", "-"]);
    assert_eq!(words[2], ["admidio/1", "waiting", "-", "-", "-", "-"]);
    assert_eq!(words.len(), 3);

    let waiting = |id: &str| {
        json!({"id": id, "state": "waiting", "reason": null, "attempts": 0, "first_seen": null, "next_attempt": null,
            "last_reply": null, "recipients": []})
    };
    let all = objects(&installation.run(&["list", "--json"]).await);
    assert_eq!(all, [waiting("newsletter/1"), waiting("admidio/1")]);
    for (filter, expected) in [
        (["--queue", "admidio"], &["admidio/1"][..]),
        (["--to", "ANNA@example.org"], &["newsletter/1"]),
        (["--to", "bea@example.org"], &["newsletter/1", "admidio/1"]),
        (["--to", "@example.org"], &["newsletter/1", "admidio/1"]),
        (["--to", "nna@example.org"], &[]),
        (["--subject", "grÜ"], &["newsletter/1", "admidio/1"]),
        (["--subject", "Abschied"], &[]),
        (["--state", "failed,held"], &[]),
        (["--older-than", "1s"], &[]),
    ] {
        let found = objects(&installation.run(&["list", "--json", filter[0], filter[1]]).await);
        let ids: Vec<&str> = found.iter().filter_map(|object| object["id"].as_str()).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn operators_set_rows_aside_give_them_back_and_delete_them() {
    let installation = installation().await;
    for _ in 0..3 {
        enqueue(&installation, "newsletter", MAIL).await;
    }
    let states = async || {
        let rows = objects(&installation.run(&["list", "--json"]).await);
        rows.iter().map(|row| row["state"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let dry = installation.run(&["hold", "--queue", "newsletter", "--subject", "Grüße", "--dry-run"]).await;
    assert_eq!(stdout(&dry), "newsletter/1: would be held\nnewsletter/2: would be held\nnewsletter/3: would be held");
    assert_eq!(states().await, ["waiting", "waiting", "waiting"]);

    let held = installation.run(&["hold", "newsletter/1", "newsletter/2"]).await;
    assert_eq!((stdout(&held), held.status.code()), ("newsletter/1: held\nnewsletter/2: held", Some(0)));
    assert_eq!(states().await, ["held", "held", "waiting"]);
    assert_eq!(
        stdout(&installation.run(&["release", "--state", "held", "--to", "anna@example.org"]).await).lines().count(),
        2
    );
    assert_eq!(states().await, ["deferred", "deferred", "waiting"]);

    let refused = installation.run(&["delete", "newsletter/1"]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(
        stderr(&refused),
        "mailqueue: delete asks first, and there is no terminal to answer on; add --yes, or look with --dry-run"
    );
    let deleted = installation.run(&["delete", "--yes", "newsletter/1", "newsletter/9"]).await;
    assert_eq!(stdout(&deleted), "newsletter/1: deleted\nnewsletter/9: there is no such row");
    assert_eq!(deleted.status.code(), Some(1));
    assert_eq!(states().await, ["deferred", "waiting"]);

    let which = installation.run(&["retry"]).await;
    assert_eq!(stderr(&which), "mailqueue: which rows? name ids, or give a filter such as --state failed");
    assert_eq!(which.status.code(), Some(2));
    assert_eq!(stdout(&installation.run(&["retry", "--state", "failed"]).await), "no row fits");
}

#[tokio::test]
async fn pause_and_resume_are_seen_in_status() {
    let installation = installation().await;
    let status = async || objects(&installation.run(&["status", "--json"]).await).remove(0);
    let paused = installation.run(&["pause", "newsletter", "relay"]).await;
    assert_eq!((stdout(&paused), paused.status.code()), ("newsletter: paused\nrelay: paused", Some(0)));
    let seen = status().await;
    assert_eq!([&seen["queues"][0]["paused"], &seen["queues"][1]["paused"]], [&json!(true), &json!(false)]);
    let relay = &seen["relay"];
    assert_eq!(
        [&relay["state"], &relay["until"], &relay["reason"]],
        [&json!("paused"), &json!(null), &json!("operator")]
    );
    installation.run(&["resume", "newsletter", "relay"]).await;
    let seen = status().await;
    assert_eq!(seen["queues"][0]["paused"], false);
    assert_ne!(seen["relay"]["reason"], "operator");
    let unknown = installation.run(&["pause", "newsletter", "press"]).await;
    assert_eq!(unknown.status.code(), Some(2));
    assert_eq!(status().await["queues"][0]["paused"], false, "nothing is paused when a name is wrong");
}

#[tokio::test]
async fn once_ends_with_69_when_the_smarthost_is_out_of_reach() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    let output = installation.run(&["once"]).await;
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert_eq!(stdout(&output), "0 delivered, 0 deferred, 0 failed, 0 unreadable, 0 held");
    assert!(stderr(&output).contains("mailqueue: relay: "), "{}", stderr(&output));
    assert_eq!(objects(&installation.run(&["list", "--json"]).await)[0]["attempts"], 0);
}

#[tokio::test]
async fn a_second_dispatcher_in_the_same_state_dir_ends_with_75_and_the_first_with_0() {
    let installation = installation().await;
    let first = installation.start(&["run"]);
    first.wait_for_line("\"started\"").await;
    let second = installation.run(&["once"]).await;
    assert_eq!(second.status.code(), Some(75));
    assert!(stderr(&second).contains("is in use by another mailqueue, process "), "{}", stderr(&second));
    first.signal(Signal::TERM);
    let (status, lines) = first.wait().await;
    assert_eq!(status.code(), Some(0), "{lines:?}");
    assert!(lines.last().is_some_and(|line| line.contains("\"stopped\"")), "{lines:?}");
}

#[tokio::test]
async fn a_reload_takes_the_new_configuration_and_survives_a_bad_one() {
    let installation = installation().await;
    let daemon = installation.start(&["run"]);
    daemon.wait_for_line("\"started\"").await;
    let good = std::fs::read_to_string(installation.configuration()).expect("configuration");
    std::fs::write(installation.configuration(), good.replace("port = 1", "prot = 1")).expect("configuration");
    daemon.signal(Signal::HUP);
    let line = daemon.wait_for_line("the configuration stays as it was").await;
    assert!(line.contains("relay.prot: there is no such key; did you mean `port`?"), "{line}");
    std::fs::write(installation.configuration(), good).expect("configuration");
    daemon.signal(Signal::HUP);
    daemon.wait_for_line("configuration read again").await;
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().await.0.code(), Some(0));
}

#[tokio::test]
async fn the_demo_shows_what_became_of_each_mail() {
    let installation = Installation::new("");
    let output = installation.run(&["demo", "--dir", "demo"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let rows: Vec<String> =
        stdout(&output).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "newsletter/1 newsletter, with umlauts delivered, row deleted ",
        "newsletter/2 press list, with an attachment delivered, row deleted ",
        "newsletter/3 a row that was cut unreadable (base64-invalid): mbody: ",
        "admidio/1 member administration, names with umlauts delivered, row deleted ",
        "admidio/2 to 20 members in Bcc, one address is gone failed (refused), 19 of 20 have it; \
         mitglied13@example.org: 550 5.1.1 <mitglied13@example.org>: user unknown",
    ] {
        assert_eq!(rows.iter().filter(|row| row.starts_with(expected)).count(), 1, "{expected}\nin\n{rows:#?}");
    }
    let folder = installation.path().join("demo");
    // 20 members are more than recipients_per_message, so that their mail went out in two.
    assert_eq!(std::fs::read_dir(folder.join("received")).expect("received").count(), 5);
    let delivered = |address: &str| {
        let line = format!("Delivered-To: {address}\r\n");
        let files = std::fs::read_dir(folder.join("received")).expect("received");
        files.filter(|file| read(&file.as_ref().expect("file").path()).contains(&line)).count()
    };
    assert_eq!(delivered("redaktion@zeitung.example.at"), 1);
    assert_eq!(delivered("mitglied12@example.org"), 1);
    assert_eq!(delivered("mitglied13@example.org"), 0);

    let file = folder.join("mailqueue.toml");
    let left = installation.run(&["list", "--json", "--config", file.to_str().expect("UTF-8")]).await;
    let left: Vec<Value> = objects(&left);
    assert_eq!(left.len(), 2);
    assert_eq!((&left[0]["state"], &left[1]["state"]), (&json!("unreadable"), &json!("failed")));
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).expect("it can be read")).into_owned()
}

#[tokio::test]
async fn check_refuses_a_password_file_that_others_can_read() {
    let installation = Installation::new(&format!(
        "{CONFIGURATION}username = \"mailqueue\"\npassword_file = \"${{CREDENTIALS_DIRECTORY}}/smarthost\"\n"
    ));
    let file = installation.path().join("smarthost");
    let check = async |mode: u32, folder: Option<&Path>| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&file, permissions).expect("chmod");
        let mut command = installation.command();
        command.arg("check").env_remove("CREDENTIALS_DIRECTORY");
        if let Some(folder) = folder {
            command.env("CREDENTIALS_DIRECTORY", folder);
        }
        let output = command.output().await.expect("mailqueue");
        assert_eq!(output.status.code(), Some(1), "the port is closed at any rate");
        stdout(&output).lines().find(|line| line.contains("relay: ")).unwrap_or_default().to_owned()
    };
    std::fs::write(&file, "secret\n").expect("write");
    assert_eq!(
        check(0o600, None).await,
        "FAILED   relay: password: the environment variable CREDENTIALS_DIRECTORY is not set: set it, or write out what \
         it stands for. systemd sets it for the service only; in a shell name the folder of the password files, as in \
         `sudo CREDENTIALS_DIRECTORY=/etc/mailqueue mailqueue …`"
    );
    let folder = Some(installation.path());
    assert_eq!(
        check(0o644, folder).await,
        format!(
            "FAILED   relay: password: the password file {} can be read by others (mode 0644): run chmod 0600 on it",
            file.display()
        )
    );
    assert!(check(0o440, folder).await.starts_with("FAILED   relay: 127.0.0.1:1: "), "as systemd hands it over");
    assert!(check(0o600, folder).await.starts_with("FAILED   relay: 127.0.0.1:1: "));
    std::fs::write(&file, "\n").expect("write");
    assert_eq!(
        check(0o600, folder).await,
        format!("FAILED   relay: password: the password file {} is empty: write the password into it", file.display())
    );
}

#[tokio::test]
async fn completions_and_manual_pages_are_there_for_packages() {
    let installation = Installation::new("");
    let script = installation.run(&["completions", "bash"]).await;
    assert!(stdout(&script).contains("complete -F _mailqueue"), "{}", stdout(&script));
    installation.run(&["man", "--out", "man"]).await;
    for page in ["mailqueue.1", "mailqueue-run.1", "mailqueue-list.1"] {
        let text = read(&installation.path().join("man").join(page));
        assert!(text.contains(".SH NAME"), "{page}");
    }
}

#[tokio::test]
async fn status_follows_a_running_dispatcher() {
    let installation = installation().await;
    let daemon = installation.start(&["run"]);
    daemon.wait_for_line("\"started\"").await;
    let shown = installation.path().join("state").join(mailqueue::observe::status_file::FILE);
    eventually("the dispatcher shows its health", || shown.exists().then_some(())).await;
    let seen = objects(&installation.run(&["status", "--json"]).await).remove(0);
    let keys: Vec<&String> = seen.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["daemon", "last_accepted", "last_poll", "ledger_open", "queues", "relay", "stalled"]);
    assert_eq!([&seen["daemon"], &seen["stalled"]], [&json!("running"), &json!(null)]);
    assert_eq!(seen["relay"]["state"], "up");
    assert_eq!(
        seen["queues"][1],
        json!({"name": "admidio", "waiting": 0, "claimed": 0, "sending": 0, "deferred": 0, "failed": 0, "unreadable": 0,
            "held": 0, "not_deleted": 0, "paused": false, "oldest_due_seconds": null})
    );
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().await.0.code(), Some(0));
}

#[tokio::test]
async fn check_warns_when_everybody_can_read_a_password_in_the_configuration() {
    let installation = Installation::new(&CONFIGURATION.replacen(
        "sqlite:{dir}/queue.sqlite",
        "mysql://mailqueue:hunter2@127.0.0.1:1/news",
        1,
    ));
    let file = installation.configuration();
    let warnings = async |mode| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let output = installation.run(&["check"]).await;
        assert!(!(stdout(&output).to_owned() + stderr(&output)).contains("hunter2"));
        let lines = stdout(&output).lines().filter(|line| line.starts_with("warning  configuration: mode: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = format!(
        "warning  configuration: mode: everybody can read the file, and a password stands in a URL: run chmod 0640 {}",
        file.display()
    );
    assert_eq!(warnings(0o644).await, [expected]);
    assert_eq!(warnings(0o640).await, [""; 0]);
}
