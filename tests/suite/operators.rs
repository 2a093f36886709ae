//! Operators in their shell: which rows a filter means, what a terminal shows, secrets that are not at hand, and tables
//! that are too long to be held in memory.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Output, Stdio};

use jiff::Timestamp;
use mailqueue::mail::Columns;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::support::catcher::{Catcher, Step};
use crate::support::database;
use crate::support::house::{House, mail, said};

fn ids(output: &Output) -> Vec<String> {
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    let id = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(object) => object["id"].as_str().expect("an id").to_owned(),
        Err(_) => line.split_once(": would be ").unwrap_or_else(|| panic!("{text}")).0.to_owned(),
    };
    text.lines().filter(|line| *line != "no row fits").map(id).collect()
}

/// Rows in five states: 1 failed, 2 deferred, 3 unreadable, 4 held, and a waiting one in the other queue.
async fn rows_in_all_states() -> (House, Catcher) {
    let catcher = Catcher::with_script(|step| match step {
        Step::Rcpt { recipient } if recipient.starts_with("no@") => Some("550 5.1.1 no such user".to_owned()),
        Step::Rcpt { recipient } if recipient.starts_with("busy@") => Some("450 4.2.1 mailbox busy".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let undecodable = Columns { mbody: Some(b"no base64!".to_vec()), ..mail("x@example.org", "x") };
    let held = mail("held@example.net", "Einladung");
    for columns in [mail("no@example.org", "Einladung"), mail("busy@example.org", "Passwort"), undecodable, held] {
        house.newsletter.insert(&columns).await.expect("INSERT");
    }
    assert!(house.run(&["hold", "newsletter/4"]).await.status.success());
    assert_eq!(house.once().await, 1);
    house.admidio.insert(&mail("new@example.org", "Einladung")).await.expect("INSERT");
    (house, catcher)
}

#[tokio::test]
async fn a_filter_means_the_same_rows_in_every_command_and_a_dry_run_changes_none() {
    let (house, _catcher) = rows_in_all_states().await;
    let before = house.run(&["list", "--json"]).await.stdout;
    let all = ["newsletter/1", "newsletter/2", "newsletter/3", "newsletter/4", "admidio/1"];
    for (filter, expected) in [
        (&["--queue", "newsletter"][..], &all[..4]),
        (&["--queue", "newsletter", "--queue", "admidio"], &all),
        (&["--state", "failed,unreadable"], &["newsletter/1", "newsletter/3"]),
        (&["--state", "waiting"], &["admidio/1"]),
        (&["--reason", "refused"], &["newsletter/1", "newsletter/2"]),
        (&["--reason", "operator"], &["newsletter/4"]),
        (&["--reason", "refused", "--state", "deferred"], &["newsletter/2"]),
        (&["--to", "@example.net"], &["newsletter/4"]),
        (&["--to", "no@example.org"], &["newsletter/1"]),
        (&["--subject", "einlad"], &["newsletter/1", "newsletter/4", "admidio/1"]),
        (&["--subject", "einlad", "--queue", "newsletter", "--state", "held"], &["newsletter/4"]),
        (&["--older-than", "0s"], &all[..4]),
        (&["--older-than", "1h"], &[]),
        (&["--older-than", "0s", "--to", "@example.org"], &["newsletter/1", "newsletter/2"]),
    ] {
        let listed = house.run(&[&["list", "--json"], filter].concat()).await;
        assert_eq!(ids(&listed), expected, "list {filter:?}");
        for command in ["hold", "release", "retry", "delete"] {
            let output = house.run(&[&[command, "--dry-run"], filter].concat()).await;
            assert_eq!(ids(&output), expected, "{command} {filter:?}: {}", said(&output));
        }
    }
    assert_eq!(house.run(&["list", "--json"]).await.stdout, before);
    let unknown = house.run(&["list", "--queue", "press"]).await;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(said(&unknown).contains("there is newsletter, admidio"), "{}", said(&unknown));
}

#[tokio::test]
async fn a_dry_run_says_of_each_row_what_would_become_of_it() {
    let (house, _catcher) = rows_in_all_states().await;
    let found = house.admidio.find(i64::MIN, 1).await.expect("find");
    let _claims = house.admidio.claim(&found, Timestamp::now()).await.expect("claim");
    let before = house.run(&["list", "--json"]).await.stdout;
    let at_work = "would be left alone: a dispatcher is at work on it (claimed)";
    for (arguments, status, told) in [
        (&["delete", "newsletter/1"][..], 0, "newsletter/1: would be deleted".to_owned()),
        (&["delete", "newsletter/99"], 1, "newsletter/99: there is no such row".to_owned()),
        (&["delete", "admidio/1"], 1, format!("admidio/1: {at_work}")),
        (&["hold", "--state", "claimed"], 1, format!("admidio/1: {at_work}")),
        (&["retry", "newsletter/4"], 1, "newsletter/4: would be left alone: it is held; `release` it".to_owned()),
        (&["release", "newsletter/1"], 1, "newsletter/1: would be left alone: it is failed, not held".to_owned()),
    ] {
        let output = house.run(&[arguments, &["--dry-run"]].concat()).await;
        assert_eq!((said(&output).trim(), output.status.code()), (told.as_str(), Some(status)), "{arguments:?}");
    }
    assert_eq!(house.run(&["list", "--json"]).await.stdout, before);
}

#[tokio::test]
async fn trace_does_not_say_of_a_row_that_stands_in_its_table_that_it_was_deleted() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    house.newsletter.insert(&mail("a@example.org", "first")).await.expect("INSERT");
    assert_eq!(house.once().await, 0);
    let told = said(&house.run(&["trace", "newsletter/1"]).await);
    assert!(told.contains("the row was deleted"), "{told}");
    house.insert_as(&mut house.connect().await, 1, &mail("b@example.org", "second")).await;
    let told = said(&house.run(&["trace", "newsletter/1"]).await);
    assert!(told.contains("delivered; under its number stands another mail now"), "{told}");
    assert!(told.contains("the row stands in its table: waiting") && !told.contains("the row was deleted"), "{told}");
}

#[tokio::test]
async fn a_recipient_in_an_international_domain_is_found_in_either_form() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    house.newsletter.insert(&mail("anna@müller.example.at", "x")).await.expect("INSERT");
    let forms = ["anna@müller.example.at", "anna@xn--mller-kva.example.at"];
    for to in [forms[0], forms[1], "ANNA@MÜLLER.example.at", "@müller.example.at", "@xn--mller-kva.example.at"] {
        assert_eq!(ids(&house.run(&["list", "--json", "--to", to]).await), ["newsletter/1"], "{to}");
    }
    assert_eq!(ids(&house.run(&["list", "--json", "--to", "@example.at"]).await), [""; 0]);
    assert_eq!(house.once().await, 0);
    for to in forms {
        let told = house.run(&["trace", "--to", to]).await;
        assert!(told.status.success() && said(&told).contains("newsletter/1"), "{to}: {}", said(&told));
    }
}

#[tokio::test]
async fn trace_knows_a_mail_that_was_never_accepted_by_id_message_id_and_recipient() {
    let (house, _catcher) = rows_in_all_states().await;
    let failed = house.run(&["trace", "newsletter/1", "--json"]).await;
    let failed: Value = serde_json::from_slice(&failed.stdout).expect("one object");
    assert_eq!((&failed["state"], &failed["recipients"][0]["address"]), (&"failed".into(), &"no@example.org".into()));
    let listed = house.row(&house.newsletter, 2).await.expect("row");
    let message_id = listed.message_id.expect("a Message-ID");
    for query in [&["newsletter/2"][..], &["--to", "Busy@example.org"], &[message_id.as_str()]] {
        let told = said(&house.run(&[&["trace"], query].concat()).await);
        assert!(told.contains("busy@example.org deferred: 450 4.2.1 mailbox busy"), "{query:?}: {told}");
        assert!(told.contains("the row stands in its table: deferred (refused), 1 attempt, tried again "), "{told}");
    }
    let waiting = said(&house.run(&["trace", "admidio/1"]).await);
    assert!(waiting.contains("the row stands in its table: waiting, 0 attempts"), "{waiting}");
    let nothing = house.run(&["trace", "newsletter/99"]).await;
    assert_eq!((said(&nothing).trim(), nothing.status.code()), ("nothing is known of it", Some(1)));
}

#[tokio::test]
async fn changes_are_told_to_programs_as_an_object_a_line() {
    let (house, _catcher) = rows_in_all_states().await;
    let lines = async |arguments: &[&str]| -> Vec<Value> {
        let output = house.run(&[arguments, &["--json"]].concat()).await;
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{text}"))).collect()
    };
    let held = lines(&["hold", "newsletter/1", "newsletter/99"]).await;
    let told = json!([{"id": "newsletter/1", "outcome": "done"}, {"id": "newsletter/99", "outcome": "no-such-row"}]);
    assert_eq!(Value::from(held), told);
    let alone = lines(&["retry", "newsletter/1"]).await;
    let told = json!([{"id": "newsletter/1", "outcome": "left-alone", "why": "it is held; `release` it"}]);
    assert_eq!(Value::from(alone), told);
    let dry = lines(&["delete", "--dry-run", "--state", "held"]).await;
    let id = |line: &Value| (line["id"].clone(), line["outcome"].clone());
    let each = ["newsletter/1", "newsletter/4"].map(|id| (Value::from(id), Value::from("would-be-done")));
    assert_eq!(dry.iter().map(id).collect::<Vec<_>>(), each);
    assert_eq!(lines(&["release", "--state", "claimed"]).await, [Value::Null; 0]);
}

#[tokio::test]
async fn a_mail_on_the_wire_of_another_dispatcher_is_known_by_its_message_id() {
    let house = House::build(database::sqlite(), 1, "", "").await;
    assert_eq!(house.once().await, 0, "it makes a ledger");
    house.newsletter.insert(&mail("new@example.org", "Einladung")).await.expect("INSERT");
    let found = house.newsletter.find(i64::MIN, 1).await.expect("find");
    let claims = house.newsletter.claim(&found, Timestamp::now()).await.expect("claim");
    let rows = house.newsletter.load(claims).await.expect("load");
    assert_eq!(house.newsletter.sending(&[(&rows[0].claim, rows[0].fingerprint)]).await.expect("sending"), [true]);
    let message_id = format!("<{}@partei.example.at>", rows[0].claim.record());
    let told = said(&house.run(&["trace", &message_id]).await);
    assert!(told.contains("the row stands in its table: sending"), "{told}");
    let shown: Value =
        serde_json::from_slice(&house.run(&["show", "newsletter/1", "--json"]).await.stdout).expect("JSON");
    assert_eq!(shown["message_id"], message_id);
    let nothing = house.run(&["trace", "<somebody.else@partei.example.at>"]).await;
    assert_eq!(nothing.status.code(), Some(1));
}

/// Runs a command with its output on a terminal of 160 columns.
async fn on_a_terminal(house: &House, arguments: &[&str], no_color: &str) -> String {
    let (status, text) = on_a_terminal_of(160, house, arguments, no_color).await;
    assert_ne!(status, None, "{arguments:?}: ended by a signal");
    text
}

/// Runs a command with all of its output on a terminal of so many columns; its exit status, and what it wrote.
async fn on_a_terminal_of(columns: u16, house: &House, arguments: &[&str], no_color: &str) -> (Option<i32>, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("grant");
    unlockpt(&terminal).expect("unlock");
    let size = Winsize { ws_row: 50.min(columns), ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).expect("size");
    let name = ptsname(&terminal, Vec::new()).expect("name");
    let name = name.to_str().expect("ASCII").to_owned();
    let end = || OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open(&name).expect("open"));
    let mut command = house.installation.command();
    command.args(arguments).env("TERM", "xterm").env("NO_COLOR", no_color).stdout(end()).stderr(end());
    let mut child = command.spawn().expect("mailqueue");
    drop(command);
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        // When the last one who holds the other end is gone, Linux answers EIO.
        let _ = std::fs::File::from(terminal).read_to_end(&mut bytes);
        String::from_utf8(bytes).expect("UTF-8")
    });
    let status = child.wait().await.expect("it ends").code();
    (status, reading.await.expect("reader"))
}

#[tokio::test]
async fn a_terminal_that_does_not_know_its_width_shows_everything() {
    let (house, _catcher) = rows_in_all_states().await;
    for columns in [0, 1, 160] {
        for (arguments, status, expected) in [
            (&["list"][..], 0, "newsletter/1"),
            (&["status"], 0, "newsletter"),
            (&["show", "newsletter/1"], 0, "no@example.org"),
            (&["check"], 0, "configuration"),
            (&["--help"], 0, "mailqueue"),
            (&["once"], 0, "delivered"),
        ] {
            let (ended, text) = on_a_terminal_of(columns, &house, arguments, "1").await;
            assert_eq!(ended, Some(status), "{arguments:?} with {columns} columns: {text}");
            let text: String = text.split_whitespace().collect();
            assert!(text.contains(expected), "{arguments:?} with {columns} columns: {text:?}");
        }
    }
    let (_, unknown) = on_a_terminal_of(0, &house, &["list"], "1").await;
    let piped = String::from_utf8(house.run(&["list"]).await.stdout).expect("UTF-8");
    let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    assert_eq!(lines(&unknown).len(), lines(&piped).len(), "{unknown}");
}

#[tokio::test]
async fn a_log_on_a_terminal_has_colours_only_for_those_who_want_them() {
    let house = House::build(database::sqlite(), 1, "", "").await;
    let arguments = ["--log-level", "info", "once"];
    let (status, coloured) = on_a_terminal_of(160, &house, &arguments, "").await;
    assert_eq!(status, Some(0), "{coloured}");
    house.newsletter.insert(&mail("a@example.org", "x")).await.expect("INSERT");
    let colour = "\u{1b}[3";
    let (_, coloured) = on_a_terminal_of(160, &house, &arguments, "").await;
    assert!(coloured.contains(colour), "{coloured:?}");
    let (_, plain) = on_a_terminal_of(160, &house, &arguments, "1").await;
    assert!(plain.contains("WARN") && !plain.contains(colour), "{plain:?}");
}

#[tokio::test]
async fn colours_are_for_terminals_and_for_those_who_want_them() {
    let (house, _catcher) = rows_in_all_states().await;
    for arguments in [&["status"][..], &["list"], &["check"], &["--help"]] {
        let coloured = on_a_terminal(&house, arguments, "").await;
        let plain = on_a_terminal(&house, arguments, "1").await;
        let piped = String::from_utf8(house.run(arguments).await.stdout).expect("UTF-8");
        assert!(coloured.contains("\u{1b}["), "{arguments:?}: {coloured:?}");
        assert!(!plain.contains('\u{1b}'), "{arguments:?}: {plain:?}");
        assert!(!piped.contains('\u{1b}'), "{arguments:?}: {piped:?}");
    }
    let list = on_a_terminal(&house, &["list"], "").await;
    let failed = list.lines().find(|line| line.contains("newsletter/1")).expect("the failed row");
    assert!(failed.contains("\u{1b}[38;5;9mfailed"), "{failed:?}");
}

#[tokio::test]
async fn a_password_that_is_not_at_hand_ends_every_command_alike_and_says_how_to_come_by_it() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    let url = house.database.url.to_string();
    let elsewhere = "mysql://mailqueue@127.0.0.1:1/news\"\npassword_file = \"${CREDENTIALS_DIRECTORY}/news-db";
    std::fs::write(&file, text.replacen(&url, elsewhere, 1)).expect("configuration");
    for arguments in [
        &["list"][..],
        &["status"],
        &["show", "newsletter/1"],
        &["hold", "newsletter/1"],
        &["pause", "newsletter"],
        &["once"],
    ] {
        let mut command = house.installation.command();
        let output = command.args(arguments).env_remove("CREDENTIALS_DIRECTORY").output().await.expect("mailqueue");
        assert_eq!(output.status.code(), Some(69), "{arguments:?}: {}", said(&output));
        let remedy = "in a shell name the folder of the password files, as in `sudo CREDENTIALS_DIRECTORY=";
        assert!(said(&output).contains(remedy), "{arguments:?}: {}", said(&output));
    }
    let mut command = house.installation.command();
    let other = command.args(["list", "--queue", "admidio"]).env_remove("CREDENTIALS_DIRECTORY");
    assert!(other.output().await.expect("mailqueue").status.success(), "what needs no password goes on");
}

#[tokio::test]
async fn enqueue_takes_an_envelope_sender_where_the_table_has_a_place_for_it() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let enqueue = async |queue: &str, sender: &str| {
        house
            .run(&["enqueue", "--queue", queue, "--to=a@example.org", "--from=b@example.org", "--sender", sender])
            .await
    };
    let output = enqueue("admidio", "bounces@example.org").await;
    assert!(output.status.success(), "{}", said(&output));
    let refused = enqueue("newsletter", "bounces@example.org").await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said(&refused).contains("the table mail_queue of queue newsletter has no column mparams"),
        "{}",
        said(&refused)
    );
    assert_eq!(house.once().await, 0);
    let [caught] = catcher.received().try_into().expect("one mail");
    assert_eq!(caught.sender, "bounces@example.org");
}

/// The most memory that a command had, in bytes, as far as one can see until just before its end.
async fn peak(house: &House, arguments: &[&str]) -> u64 {
    let mut command = house.installation.command();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().expect("mailqueue");
    let status = format!("/proc/{}/status", child.id().expect("runs"));
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kilobytes.unwrap_or(0) * 1024);
        tokio::select! {
            ended = child.wait() => {
                assert!(ended.expect("wait").success(), "{arguments:?}");
                return peak;
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
        }
    }
}

#[tokio::test]
async fn no_command_holds_a_table_of_200_000_rows_in_memory() {
    const MEGABYTE: u64 = 1_000_000;
    let house = House::build(database::sqlite(), 1, "", "").await;
    let mut session = crate::support::session::Session::on(&house.database.url).await;
    let text = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) \
        INSERT INTO mail_queue (mto, msubject, mbody, mheaders) \
        SELECT 'YUBleGFtcGxlLm9yZw==', 'SGFsbG8=', 'SGFsbG8=', 'RnJvbTogYkBleGFtcGxlLm9yZw==' FROM n";
    session.run(text).await.expect("INSERT");
    for (arguments, bound) in [
        (&["list"][..], 45 * MEGABYTE),
        (&["list", "--json"], 45 * MEGABYTE),
        (&["status"], 45 * MEGABYTE),
        // The numbers of the rows and how each stood, and nothing else of them.
        (&["hold", "--queue", "newsletter", "--dry-run"], 65 * MEGABYTE),
    ] {
        let peak = peak(&house, arguments).await;
        assert!(peak > MEGABYTE, "the memory is seen");
        assert!(peak < bound, "{arguments:?}: {} MB", peak / MEGABYTE);
    }
}
