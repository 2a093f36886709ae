//! The ledger's disk, passwords, names: what cannot be used is said with a remedy, waited for, and never lived with in
//! silence.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::{OFTEN, SOON, kill, stop, until_empty, until_said};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, said};
use crate::support::mails::Mails;
use crate::support::session::Session;
use crate::support::variable;

on_every_server!(a_full_disk_under_the_ledger_stops_sending_and_loses_nothing);

/// As a password file must be: nobody else's to read.
pub fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).expect("secret");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("mode");
}

async fn a_full_disk_under_the_ledger_stops_sending_and_loses_nothing(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "before", 10).await;
    // A program that ignores SIGXFSZ is answered as on a full disk: nothing more can be written behind the limit.
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" run"]).arg(house.installation.command().as_std().get_program());
    command.env("MAILQUEUE_CONFIG", house.installation.configuration()).stdin(Stdio::null());
    let daemon = Running::spawn(command);
    until_empty(&house.newsletter).await;

    let pid = Pid::from_raw(daemon.id() as i32);
    // As where there is no room for a second file.
    std::fs::create_dir(house.installation.path().join("state/status.json.new")).expect("in the way");
    let unlimited = prlimit(pid, Resource::Fsize, Rlimit { current: Some(1024), maximum: None }).expect("prlimit");
    mails.fill(&mut session, "full", 100).await;
    let line = daemon.wait_for_line("sending suspended").await;
    for word in ["the ledger cannot be written", "ledger.", "make room on its disk"] {
        assert!(line.contains(word) && !line.contains("final-dot"), "no `{word}` in: {line}");
    }
    until_said(&house, &["status"], "the ledger cannot be written").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let lines = daemon.lines();
    assert!(!lines.iter().any(|line| line.contains("relay down")), "{}", lines.join("\n"));
    let after = lines.iter().rev().take_while(|line| !line.contains("sending suspended")).count();
    assert!(after < 400, "{after} lines: it spins");
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.iter().all(|row| row.history.attempts == 0), "the disk is no mail's trouble: {rows:?}");

    prlimit(pid, Resource::Fsize, unlimited).expect("prlimit");
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
}

#[tokio::test]
async fn settled_entries_that_cannot_be_written_stop_sending_and_are_written_later() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "before", 5).await;
    let daemon = house.start();
    until_empty(&house.newsletter).await;
    while house.ledger_open() > 0 {
        tokio::task::yield_now().await;
    }
    let other = rusqlite::Connection::open(house.installation.path().join("state/ledger.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    mails.fill(&mut session, "locked", 5).await;
    let line = daemon.wait_for_line("sending suspended").await;
    assert!(line.contains("ledger.sqlite: database is locked"), "{line}");
    until_empty(&house.newsletter).await;
    assert!(house.ledger_open() >= 5, "they were sent, and their rows deleted");
    other.execute_batch("ROLLBACK").unwrap();
    mails.fill(&mut session, "later", 5).await;
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert_eq!(house.ledger_open(), 0);
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
}

#[tokio::test]
async fn a_ledger_is_closed_when_the_program_ends() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let state = house.installation.path().join("state");
    let files = || {
        let names = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("ledger.sqlite")).collect::<Vec<_>>()
    };
    mails.fill(&mut session, "once", 5).await;
    assert_eq!(house.once().await, 0);
    assert_eq!(files(), ["ledger.sqlite"]);
    mails.fill(&mut session, "run", 5).await;
    let daemon = house.start();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(files(), ["ledger.sqlite"]);
}

#[tokio::test]
async fn a_key_of_the_ledger_that_is_lost_is_told_with_what_no_longer_works() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().insert(&mut session, "before", 1, None).await;
    let first = house.run(&["--log-level", "info", "once"]).await;
    assert!(first.status.success() && !said(&first).contains("ledger.key"), "{}", said(&first));
    let key = house.installation.path().join("state/ledger.key");
    let kept = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let second = house.run(&["once"]).await;
    for word in ["the key of the ledger was lost", "ledger.key", "trace --to", "put the old file back"] {
        assert!(second.status.success() && said(&second).contains(word), "no `{word}`: {}", said(&second));
    }
    assert!(!said(&house.run(&["once"]).await).contains("ledger.key"), "said once");
    let trace = house.run(&["trace", "--to", "before@example.org"]).await;
    assert!(said(&trace).contains("ledger.key was lost"), "{}", said(&trace));
    std::fs::write(&key, kept).unwrap();
    assert!(house.run(&["once"]).await.status.success());
    let trace = house.run(&["trace", "--to", "before@example.org"]).await;
    assert!(trace.status.success() && !said(&trace).contains("ledger.key"), "{}", said(&trace));
}

/// `run` and `once` do not begin, and say what to do.
async fn is_refused(house: &House, words: &[&str]) {
    for command in ["run", "once"] {
        let output = house.run(&[command]).await;
        let text = said(&output);
        assert!(!output.status.success(), "{text}");
        for word in words {
            assert!(text.contains(word), "no `{word}` in: {text}");
        }
    }
}

#[tokio::test]
async fn a_state_dir_that_cannot_be_made_is_an_error_with_a_remedy() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    std::fs::write(house.installation.path().join("state"), "a file").unwrap();
    is_refused(&house, &["/state", "state_dir must be a directory"]).await;
}

#[tokio::test]
async fn a_damaged_ledger_is_an_error_with_a_remedy() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 20).await;
    assert_eq!(house.once().await, 0);
    let sent = catcher.received().len();
    mails.fill(&mut session, "later", 1).await;
    let ledger = house.installation.path().join("state/ledger.sqlite");
    let mut checkpoint = Session::on(&format!("sqlite:{}", ledger.display()).parse().unwrap()).await;
    checkpoint.run("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    drop(checkpoint);
    let whole = std::fs::read(&ledger).unwrap();
    for damage in [&b"this was a ledger once"[..], &whole[..whole.len() / 2], &[&whole[..5000], &[0xff; 3000]].concat()]
    {
        std::fs::write(&ledger, damage).unwrap();
        is_refused(&house, &["ledger.sqlite", "put it back from a backup"]).await;
    }
    assert_eq!(catcher.received().len(), sent, "nothing was sent");
    std::fs::write(&ledger, whole).unwrap();
    assert_eq!(house.once().await, 0);
}

#[tokio::test]
async fn a_missing_ledger_is_an_error_while_the_database_knows_mails_that_were_being_sent() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 2).await;
    catcher.close_gate();
    let daemon = house.start();
    catcher.wait_at_gate(2).await;
    let mut lines = kill(daemon).await;
    catcher.open_gate();
    catcher.wait_for(2).await;
    let state = house.installation.path().join("state");
    let away = house.installation.path().join("away");
    std::fs::rename(&state, &away).unwrap();
    std::fs::create_dir(&state).unwrap();
    std::fs::copy(away.join("dispatcher"), state.join("dispatcher")).unwrap();
    is_refused(&house, &["ledger", "is missing", "newsletter", "backup"]).await;
    assert_eq!(catcher.received().len(), 2, "nothing was sent");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&away, &state).unwrap();
    let daemon = house.start();
    until_empty(&house.newsletter).await;
    lines.extend(stop(daemon).await);
    assert_eq!(mails.audit(&catcher.received(), &lines), 2);
}

#[tokio::test]
async fn a_smarthost_whose_name_is_not_known_is_waited_for_without_haste() {
    let house = House::build(database::sqlite(), 25, OFTEN, SOON).await;
    let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
    let text = text.replace("host = \"127.0.0.1\"", "host = \"no-such-host.invalid\"");
    std::fs::write(house.installation.configuration(), text).unwrap();
    let mut session = Session::on(&house.database.url).await;
    Mails::default().fill(&mut session, "n", 20).await;
    let daemon = house.start();
    let line = daemon.wait_for_line("relay down").await;
    assert!(line.contains("no-such-host.invalid"), "{line}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.len() == 20 && rows.iter().all(|row| row.history.attempts == 0), "{rows:?}");
    let lines = stop(daemon).await;
    assert!(lines.iter().filter(|line| line.contains("relay down")).count() <= 4, "{}", lines.join("\n"));
    assert!(lines.len() < 100, "{} lines: it spins", lines.len());
}

/// What is said of one database only.
mod single {
    use super::*;

    mod mariadb {
        use super::*;

        #[tokio::test]
        async fn a_password_that_is_changed_under_way_is_read_anew() {
            let catcher = Catcher::start().await;
            let database = database::mariadb().await;
            let mut root = Session::on(&variable("MAILQUEUE_TEST_MARIADB").parse().unwrap()).await;
            let name = database.url.path().trim_start_matches('/').to_owned();
            let user = format!("u{}", &name[5..]);
            root.run(&format!("CREATE USER {user}@'%' IDENTIFIED BY 'first'")).await.unwrap();
            root.run(&format!("GRANT ALL ON {name}.* TO {user}@'%'")).await.unwrap();
            let house = House::build(database, catcher.port(), OFTEN, SOON).await;
            let secret = house.installation.path().join("password");
            write_secret(&secret, "first\n");
            let mut url = house.database.url.clone();
            url.set_password(None).unwrap();
            url.set_username(&user).unwrap();
            let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
            let (old, new) = (format!("\"{}\"", house.database.url), format!("\"{url}\"\npassword_file = {secret:?}"));
            std::fs::write(house.installation.configuration(), text.replace(&old, &new)).unwrap();

            let mut session = Session::on(&house.database.url).await;
            let mut mails = Mails::default();
            mails.fill(&mut session, "before", 10).await;
            let daemon = house.start();
            until_empty(&house.newsletter).await;
            root.run(&format!("ALTER USER {user}@'%' IDENTIFIED BY 'second'")).await.unwrap();
            root.run(&format!("KILL USER {user}")).await.unwrap();
            mails.fill(&mut session, "locked-out", 10).await;
            let line = daemon.wait_for_line("nothing of this queue is sent").await;
            assert!(line.contains("Access denied") && !line.contains("first"), "{line}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            let said = daemon.lines().iter().filter(|line| line.contains("nothing of this queue")).count();
            assert!(said <= 4, "{}", daemon.lines().join("\n"));
            write_secret(&secret, "second\n");
            until_empty(&house.newsletter).await;
            let lines = stop(daemon).await;
            assert_eq!(mails.audit(&catcher.received(), &lines), 0);
        }
    }

    mod postgres {
        use super::*;

        #[tokio::test]
        async fn a_database_that_is_read_only_for_a_while_is_waited_for() {
            let catcher = Catcher::start().await;
            let house = House::build(database::postgres().await, catcher.port(), OFTEN, SOON).await;
            let name = house.database.url.path().trim_start_matches('/').to_owned();
            let mut session = Session::on(&house.database.url).await;
            let mut mails = Mails::default();
            mails.fill(&mut session, "before", 10).await;
            let daemon = house.start();
            until_empty(&house.newsletter).await;
            let others = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
            );
            session.run(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await.unwrap();
            session.run(&others).await.unwrap();
            mails.fill(&mut session, "read-only", 10).await;
            let line = daemon.wait_for_line("trying again").await;
            assert!(line.contains("read-only"), "{line}");
            session.run(&format!("ALTER DATABASE {name} SET default_transaction_read_only = off")).await.unwrap();
            session.run(&others).await.unwrap();
            until_empty(&house.newsletter).await;
            let lines = stop(daemon).await;
            assert_eq!(mails.audit(&catcher.received(), &lines), 0);
        }
    }
}
