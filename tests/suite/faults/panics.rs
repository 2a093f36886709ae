//! A panic in any task ends the process at once, and the next start recovers as after a kill.

use std::io::Read;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{OFTEN, SOON, stop, until_empty};
use crate::support::DEADLINE;
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::house::{House, row};
use crate::support::mails::Mails;
use crate::support::session::Session;

macro_rules! panics {
    ($($name:ident: $failpoint:literal),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() { ends_with_70($failpoint).await })*
    };
}

panics!(
    a_panic_of_a_sender: "after-250:20",
    a_panic_of_a_fetcher: "in-fetcher:3",
    a_panic_of_the_fetcher_of_large_rows: "in-large-fetcher:1",
    a_panic_of_a_marker: "in-marker:3",
    a_panic_of_the_heartbeat: "in-heartbeat:2",
    a_panic_of_the_look_at_the_pause_flags: "in-flags:2",
    a_panic_of_the_look_at_other_dispatchers: "in-take-over:1",
    a_panic_of_the_account_of_outages: "in-account:1",
    a_panic_of_the_return_of_mails: "in-return:2",
    a_panic_of_the_expiry_of_the_ledger: "in-expire:1",
    a_panic_of_the_probe: "in-probe:1",
    a_panic_of_the_look_at_stalls: "in-stall:1",
    a_panic_of_a_settler: "after-ledger:2",
    a_panic_within_a_statement: "in-settle:2",
    a_panic_of_the_http_server: "in-http:1",
    a_panic_of_the_status_file: "in-status-file:1",
    a_panic_of_the_digest: "in-digest:1",
    a_panic_of_the_count_of_rows: "in-count:1",
    a_panic_of_the_log_of_operators: "in-audit:2",
    a_panic_of_the_service_managers_task: "in-systemd:1",
    a_panic_of_the_ledgers_thread: "in-ledger:2",
);

/// Lets the task panic while mails are sent. The process ends with 70 and says so in the log; what is on disk is as
/// after a kill, and the next start brings every mail to its end.
async fn ends_with_70(failpoint: &str) {
    let catcher = Catcher::start().await;
    let relay = format!(
        "connections = 2{SOON}\n[monitor]\nlisten = \"127.0.0.1:0\"\n[notify]\nto = \"t@example.org\"\n[message]\ndefault_from = \"n@example.org\""
    );
    // The row of half a megabyte is a large one, and looks at other dispatchers come soon.
    let top = format!("{OFTEN}\nlease = \"15s\"\nmax_in_flight_bytes = \"1MB\"");
    let house = House::build(database::sqlite(), catcher.port(), &top, &relay).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 50).await;
    if failpoint.starts_with("in-large") {
        let large = row("large@example.org", "large", &"text\n".repeat(100_000), "From: n@example.org\r\n");
        house.newsletter.insert(&large).await.expect("INSERT");
    }

    let mut command = house.installation.command();
    // A service manager that listens to nothing.
    let manager = house.installation.path().join("notify");
    let _manager = std::os::unix::net::UnixDatagram::bind(&manager).expect("socket");
    command.arg("run").env("MAILQUEUE_FAIL_AT", format!("{failpoint}:panic")).env("NOTIFY_SOCKET", &manager);
    let daemon = Running::spawn(command);
    if failpoint.starts_with("in-http") {
        ask_for_health(&daemon).await;
    }
    let (status, mut lines) = daemon.wait().await;
    assert_eq!(status.code(), Some(70), "{failpoint}: {}", lines.join("\n"));
    let said = lines.iter().find(|line| line.contains("mailqueue::panic")).expect("the panic is in the log");
    let name = failpoint.split(':').next().unwrap();
    assert!(said.contains("internal error") && said.contains(&format!("failpoint {name}")), "{said}");
    assert!(said.contains("src/failpoint.rs"), "{said}");
    assert!(
        !house.installation.path().join("state/status.json").exists() || !status_says_stopped(&house),
        "as after a kill"
    );

    let daemon = house.start();
    daemon.wait_for_line("\"started\"").await;
    until_empty(&house.newsletter).await;
    lines.extend(stop(daemon).await);
    mails.audit(&catcher.received(), &lines);
    assert_eq!(house.ledger_open(), 0, "{failpoint}");
}

#[tokio::test]
async fn a_panic_of_the_logs_own_thread_is_said_on_standard_error() {
    let house = House::build(database::sqlite(), 9, OFTEN, "").await;
    // On a terminal all lines go through the thread.
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut command = house.installation.command();
    command.arg("run").env("MAILQUEUE_FAIL_AT", "in-log:1:panic").stdout(Stdio::null()).stderr(end);
    let mut child = command.kill_on_drop(true).spawn().expect("mailqueue");
    drop(command);
    let read = tokio::task::spawn_blocking(move || {
        let mut said = Vec::new();
        // Linux ends a terminal whose other end is closed with EIO.
        let _ = std::fs::File::from(terminal).read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let status = tokio::time::timeout(DEADLINE / 2, child.wait()).await.expect("it ends").unwrap();
    let said = read.await.unwrap();
    assert_eq!(status.code(), Some(70), "{said}");
    assert!(said.contains("failpoint in-log") && said.contains("thread log"), "{said}");
}

async fn ask_for_health(daemon: &Running) {
    let line = daemon.wait_for_line("serves /metrics").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let address = line["address"].as_str().expect("address").to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write");
    let mut answer = Vec::new();
    // It ends with the process.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "no answer comes from a task that panicked");
}

fn status_says_stopped(house: &House) -> bool {
    let text = std::fs::read_to_string(house.installation.path().join("state/status.json")).expect("status file");
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["stopped"] == true
}
