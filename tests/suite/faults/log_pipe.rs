//! A log that is not read.

use std::io::{PipeReader, PipeWriter};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::OFTEN;
use crate::support::DEADLINE;
use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::house::{House, mail};
use crate::support::mails::Mails;
use crate::support::session::Session;

/// Each mail has four lines of 300 bytes, so that these fill a pipe of 64 KiB several times over.
const MAILS: usize = 400;

#[tokio::test]
async fn a_log_that_is_not_read_holds_up_neither_mails_nor_the_end() {
    let (catcher, house) = house(MAILS).await;
    let mut daemon = unread(&house, &["run"]);
    catcher.wait_for(MAILS).await;
    super::until_empty(&house.newsletter).await;
    signal(&daemon, Signal::TERM);
    assert_eq!(ended(&mut daemon).await.code(), Some(0));
}

#[tokio::test]
async fn once_ends_although_its_log_is_not_read() {
    let (catcher, house) = house(MAILS).await;
    let mut once = unread(&house, &["--log-level", "info", "once"]);
    assert_eq!(ended(&mut once).await.code(), Some(0));
    assert_eq!(catcher.received().len(), MAILS);
}

#[tokio::test]
async fn a_configuration_error_at_a_log_that_is_not_read_ends_the_daemon() {
    let (_catcher, house) = house(0).await;
    let other = house.start();
    other.wait_for_line("\"started\"").await;
    let (reader, writer) = full_pipe();
    let mut command = house.installation.command();
    let mut second = command.arg("run").stderr(writer).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    drop(command);
    assert_eq!(ended(&mut second).await.code(), Some(75), "state_dir is in use");
    drop(reader);
    super::stop(other).await;
}

#[tokio::test]
async fn lines_for_which_there_was_no_room_are_counted_once_the_log_is_read_again() {
    // More than the pipe and the buffer hold.
    let many = 5 * MAILS;
    let (catcher, house) = house(many).await;
    let mut daemon = unread(&house, &["--log-level", "trace", "run"]);
    catcher.wait_for(many).await;
    super::until_empty(&house.newsletter).await;

    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let told = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("log lines were dropped") {
                return line;
            }
        }
        panic!("the log ends without the number of dropped lines");
    };
    let told = timeout(DEADLINE, told).await.expect("the number of dropped lines");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON as all lines");
    assert_eq!((told["level"].as_str(), told["target"].as_str()), (Some("WARN"), Some("mailqueue::log")));
    assert!(told["lines"].as_u64() > Some(0), "{told}");

    // What is logged from then on is complete.
    let mid = house.newsletter.insert(&mail("late@example.org", "late")).await.unwrap();
    let id = format!("newsletter/{mid}\"");
    let said = async {
        let mut said = String::new();
        while !(said.contains("recipient accepted\"") && said.contains("\"deleted\"")) {
            let line = lines.next_line().await.unwrap().expect("a line");
            serde_json::from_str::<serde_json::Value>(&line).expect("a whole line");
            if line.contains(&id) {
                said += &line;
            }
        }
    };
    timeout(DEADLINE, said).await.expect("the lines of the next mail");
    signal(&daemon, Signal::TERM);
    while lines.next_line().await.unwrap().is_some() {}
    assert_eq!(ended(&mut daemon).await.code(), Some(0));
}

#[tokio::test]
async fn lines_that_wait_at_the_end_are_written_when_their_reader_goes_on() {
    let (catcher, house) = house(MAILS).await;
    let mut once = unread(&house, &["--log-level", "info", "once"]);
    catcher.wait_for(MAILS).await;
    let mut lines = BufReader::new(once.stderr.take().unwrap()).lines();
    let mut deleted = 0;
    while let Some(line) = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap() {
        deleted += usize::from(line.contains("\"deleted\""));
    }
    assert_eq!(deleted, MAILS);
    assert_eq!(ended(&mut once).await.code(), Some(0));
}

#[tokio::test]
async fn once_ends_at_a_signal_although_its_result_is_not_read() {
    let (catcher, house) = house(1).await;
    let (_reader, writer) = full_pipe();
    let mut command = house.installation.command();
    let mut once = command.arg("once").stdout(writer).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    drop(command);
    catcher.wait_for(1).await;
    super::until_empty(&house.newsletter).await;
    // The first signals may come while the pass ends.
    let mut again = tokio::time::interval(Duration::from_millis(100));
    let until_ended = async {
        loop {
            tokio::select! {
                status = once.wait() => return status.expect("wait"),
                _ = again.tick() => {}
            }
            signal(&once, Signal::TERM);
        }
    };
    timeout(DEADLINE / 2, until_ended).await.expect("it ends");
}

/// A pipe that takes nothing more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

async fn house(mails: usize) -> (Catcher, House) {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, "").await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().flood(&mut session, "mail_queue", "n", mails).await;
    (catcher, house)
}

/// Starts the program with a standard error that is open and not read.
fn unread(house: &House, arguments: &[&str]) -> Child {
    let mut command: Command = house.installation.command();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("mailqueue")
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("still running");
    kill_process(pid, signal).expect("kill");
}

async fn ended(child: &mut Child) -> ExitStatus {
    // Well above the limit for the last lines, and below what anybody would call a hang.
    timeout(DEADLINE / 2, child.wait()).await.expect("it ends").expect("wait")
}
