//! Our own limit of open files.

use std::collections::BTreeSet;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{OFTEN, stop, until_empty, until_said};
use crate::support::DEADLINE;
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::house::{House, mail, said};
use crate::support::mails::Mails;
use crate::support::session::Session;

/// Files that connections to the smarthost leave free.
const SPARE: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_files_for_all_connections_fewer_are_used_and_the_relay_is_up() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, "connections = 6").await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let daemon = house.start();
    // The connections to the database exist afterwards.
    mails.flood(&mut session, "mail_queue", "first", 300).await;
    catcher.wait_for(300).await;
    until_empty(&house.newsletter).await;
    stop(daemon).await;

    let daemon = house.start();
    daemon.wait_for_line("\"started\"").await;
    until_said(&house, &["status"], "up").await;
    leave(&daemon, SPARE + 2);
    catcher.close_gate();
    mails.flood(&mut session, "mail_queue", "second", 300).await;
    catcher.wait_at_gate(1).await;
    daemon.wait_for_line("fewer connections: our own limit of open files was reached").await;
    until_said(&house, &["status"], "; fewer connections: no further file").await;
    let status = said(&house.run(&["status", "--json"]).await);
    let status: serde_json::Value = serde_json::from_str(status.trim()).expect("JSON");
    assert_eq!(status["relay"]["state"], "up", "{status}");
    assert!(status["relay"]["connections_cap"].as_u64() < Some(6), "{status}");
    assert!(status["relay"]["connections_reason"].as_str().unwrap().contains("LimitNOFILE="), "{status}");
    catcher.open_gate();
    until_empty(&house.newsletter).await;
    assert_eq!(catcher.received().len(), 600);

    // The limit is raised, and more is sent than the connections that there are can do at once.
    leave(&daemon, 100);
    catcher.close_gate();
    mails.flood(&mut session, "mail_queue", "third", 100).await;
    daemon.wait_for_line("there are files for all connections again").await;
    catcher.open_gate();
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    let times = lines.iter().filter(|line| line.contains("our own limit of open files was reached")).count();
    assert_eq!(times, 1, "said once");
    assert!(!lines.iter().any(|line| line.contains("relay down")), "{}", lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_answered_in_the_place_of_a_connection() {
    let catcher = Catcher::start().await;
    let monitor = "connections = 4\n[monitor]\nlisten = \"127.0.0.1:0\"";
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, monitor).await;
    let daemon = house.start();
    let line = daemon.wait_for_line("serves /metrics").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let address = line["address"].as_str().expect("address").to_owned();
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    catcher.wait_for(1).await;
    until_empty(&house.newsletter).await;

    // The connection to the smarthost is open and idle.
    leave(&daemon, 0);
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write");
    let mut answer = String::new();
    let read = tokio::time::timeout(DEADLINE / 2, stream.read_to_string(&mut answer)).await;
    read.expect("an answer").expect("text");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    daemon.wait_for_line("fewer connections: our own limit of open files was reached").await;
    leave(&daemon, 100);
    house.newsletter.insert(&mail("b@example.org", "x")).await.unwrap();
    catcher.wait_for(2).await;
    stop(daemon).await;
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_for_want_of_files_says_so() {
    let house = House::build(database::sqlite(), 9, "", "").await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let program = env!("CARGO_BIN_EXE_mailqueue");
    let mut told = String::new();
    for limit in 8..32 {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit}; exec {program} --log-level info once")]);
        command.env("MAILQUEUE_CONFIG", house.installation.configuration()).stdin(std::process::Stdio::null());
        let output = crate::support::binary::output(command).await;
        told = said(&output);
        if told.contains("queue newsletter") {
            assert!(told.contains("LimitNOFILE="), "with {limit} files: {told}");
            return;
        }
    }
    panic!("the database can be opened with any limit: {told}");
}

/// Sets the limit so that the process can open this many further files.
fn leave(daemon: &Running, files: usize) {
    let id = daemon.id();
    let open: BTreeSet<u64> = std::fs::read_dir(format!("/proc/{id}/fd"))
        .expect("files of the process")
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free = (0..).filter(|number| !open.contains(number)).nth(files).unwrap();
    let pid = Pid::from_raw(id.try_into().unwrap());
    // The hard limit stays.
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(free), maximum: Some(1000) });
    before.expect("prlimit");
}
