//! A dispatcher that sends nothing while rows wait is trouble, whatever keeps it from sending; and rows that wait grow
//! old.

use std::process::Output;

use serde_json::Value;

use super::daemon::{MONITOR, page_with, port};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, mail, row, said};
use crate::support::session::Session;
use crate::support::{eventually, within_deadline};

/// Each test below, on each database.
macro_rules! on_every_database {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::$name(crate::support::database::sqlite()).await })* }
        mod mariadb { $(#[tokio::test] async fn $name() { super::$name(crate::support::database::mariadb().await).await })* }
        mod postgres { $(#[tokio::test] async fn $name() { super::$name(crate::support::database::postgres().await).await })* }
    };
}

on_every_database!(
    a_row_that_waits_is_as_old_as_the_first_poll_that_saw_it,
    a_rate_that_lets_nothing_through_is_a_stall,
    a_pass_that_is_under_way_is_shown_as_running,
    memory_that_is_used_up_is_a_stall,
    a_table_that_is_locked_is_a_stall,
);

/// A daemon for which a stall begins after 2 s in place of 5 minutes.
fn start(house: &House) -> Running {
    let mut command = house.installation.command();
    command.arg("run").env("MAILQUEUE_SHORTEN", "stall:2");
    Running::spawn(command)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}

/// Asks for the status until it is as wanted, and returns it.
async fn status_when(house: &House, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let look = async {
        loop {
            let status = json(&house.run(&["status", "--json"]).await);
            if wanted(&status) {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    within_deadline(what, look).await
}

async fn a_row_that_waits_is_as_old_as_the_first_poll_that_saw_it(database: TestDatabase) {
    let mut catcher = Catcher::start().await;
    catcher.stop().await;
    let house = House::build(database, catcher.port(), "poll_interval = \"5s\"\n", "").await;
    let daemon = house.start();
    daemon.wait_for_line("\"started\"").await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let age = |status: &Value| status["queues"][0]["oldest_due_seconds"].as_u64();
    let status = status_when(&house, "the row grows old", |status| age(status) >= Some(7)).await;
    assert_eq!(status["queues"][0]["waiting"], 1, "{status}");
    assert_eq!(status["queues"][1]["oldest_due_seconds"], Value::Null, "{status}");

    catcher.start_again().await;
    catcher.wait_for(1).await;
    status_when(&house, "none is due", |status| status["queues"][0]["oldest_due_seconds"].is_null()).await;
}

async fn a_rate_that_lets_nothing_through_is_a_stall(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house =
        House::build(database, catcher.port(), "poll_interval = \"1s\"\n", &format!("rate = \"1/h\"\n{MONITOR}")).await;
    for to in ["a@example.org", "b@example.org"] {
        house.newsletter.insert(&mail(to, "x")).await.unwrap();
    }
    let daemon = start(&house);
    let port = port(&daemon).await;
    let status = status_when(&house, "a stall", |status| !status["stalled"].is_null()).await;
    assert_eq!(status["stalled"]["reason"], "rate", "{status}");
    assert!(status["stalled"]["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{status}");
    assert_eq!((&status["daemon"], &status["relay"]["state"]), (&"running".into(), &"up".into()));
    let health = page_with(port, "/healthz", "503 ").await;
    assert!(health.contains("while mails wait: relay.rate lets no more through"), "{health}");
    page_with(port, "/metrics", "mailqueue_stalled{reason=\"rate\"} 1").await;
    let checkmk = house.run(&["status", "--checkmk"]).await;
    let checkmk = String::from_utf8_lossy(&checkmk.stdout).into_owned();
    assert!(checkmk.starts_with("2 \"mailqueue daemon\" ") && checkmk.contains("relay.rate"), "{checkmk}");
    let text = house.run(&["status"]).await;
    assert!(said(&text).contains("\nstalled        nothing sent for "), "{}", said(&text));
    daemon.wait_for_line("while mails wait").await;

    // An operator's pause is no trouble.
    assert!(house.run(&["pause", "newsletter"]).await.status.success());
    status_when(&house, "no stall", |status| status["stalled"].is_null()).await;
    page_with(port, "/healthz", "200 OK").await;
}

/// Mails on the wire that get no answer hold all memory of the queue.
async fn memory_that_is_used_up_is_a_stall(database: TestDatabase) {
    let catcher = Catcher::start().await;
    catcher.close_gate();
    let top = "poll_interval = \"1s\"\nmax_in_flight_bytes = \"200KB\"\n";
    let house = House::build(database, catcher.port(), top, MONITOR).await;
    for n in 0..40 {
        let columns = row(&format!("n{n}@example.org"), "x", &"y".repeat(6000), "From: n@example.org\r\n");
        house.newsletter.insert(&columns).await.unwrap();
    }
    let daemon = start(&house);
    let port = port(&daemon).await;
    let status = status_when(&house, "a stall", |status| !status["stalled"].is_null()).await;
    assert_eq!(status["stalled"]["reason"], "memory", "{status}");
    let health = page_with(port, "/healthz", "503 ").await;
    assert!(health.contains("max_in_flight_bytes is used up"), "{health}");
    page_with(port, "/metrics", "mailqueue_stalled{reason=\"memory\"} 1").await;
    catcher.open_gate();
    status_when(&house, "no stall", |status| status["stalled"].is_null()).await;
    page_with(port, "/healthz", "200 OK").await;
}

/// Rows wait, and another session locks the table. SQLite lets others read meanwhile, so that the rows are counted; a
/// server does not, and the rows were counted before.
async fn a_table_that_is_locked_is_a_stall(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let rate = format!("rate = \"1/h\"\n{MONITOR}");
    let house = House::build(database, catcher.port(), "poll_interval = \"1s\"\n", &rate).await;
    for n in 0..3 {
        house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.unwrap();
    }
    let mut session = Session::on(&house.database.url).await;
    let lock = match session {
        Session::MariaDb(_) => "LOCK TABLES mail_queue WRITE, adm_mail_queue WRITE",
        Session::Postgres(_) => "BEGIN; LOCK TABLE mail_queue, adm_mail_queue IN ACCESS EXCLUSIVE MODE",
        Session::Sqlite(_) => "BEGIN EXCLUSIVE",
    };
    if session.is_sqlite() {
        session.run(lock).await.unwrap();
    }
    let daemon = start(&house);
    let port = port(&daemon).await;
    if !session.is_sqlite() {
        page_with(port, "/healthz", "relay.rate lets no more through").await;
        session.run(lock).await.unwrap();
    }
    let health = page_with(port, "/healthz", "a database does not answer, or refuses").await;
    assert!(health.contains("while mails wait"), "{health}");
    page_with(port, "/metrics", "mailqueue_stalled{reason=\"database\"} 1").await;
    let line = daemon.wait_for_line("\"reason\":\"database\"").await;
    assert!(line.contains("while mails wait"), "{line}");
    // `status` takes it from here, and would wait for the counts of a table that is locked.
    let file = house.installation.path().join("state/status.json");
    let said = || std::fs::read_to_string(&file).ok().filter(|text| text.contains("\"reason\":\"database\""));
    eventually("the status file has the reason", said).await;
    if session.is_sqlite() {
        status_when(&house, "the reason", |status| status["stalled"]["reason"] == "database").await;
    }
    let unlock = if matches!(session, Session::MariaDb(_)) { "UNLOCK TABLES" } else { "COMMIT" };
    session.run(unlock).await.unwrap();
    let status =
        status_when(&house, "no trouble of a database", |status| status["stalled"]["reason"] != "database").await;
    assert_eq!(status["daemon"], "running", "{status}");
}

async fn a_pass_that_is_under_way_is_shown_as_running(database: TestDatabase) {
    let catcher = Catcher::start().await;
    catcher.close_gate();
    let house = House::build(database, catcher.port(), "", "").await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let mut command = house.installation.command();
    command.arg("once");
    let once = Running::spawn(command);
    let status = status_when(&house, "the pass is seen", |status| status["daemon"] == "once").await;
    assert_eq!(status["relay"]["state"], "up", "{status}");
    let checkmk = house.run(&["status", "--checkmk"]).await;
    let checkmk = String::from_utf8_lossy(&checkmk.stdout).into_owned();
    assert!(checkmk.starts_with("0 \"mailqueue daemon\" ") && checkmk.contains("running one pass"), "{checkmk}");
    catcher.open_gate();
    assert_eq!(once.wait().await.0.code(), Some(0));
    let status = json(&house.run(&["status", "--json"]).await);
    assert_eq!((&status["daemon"], &status["relay"]["state"]), (&"stopped".into(), &"unused".into()));
}

#[tokio::test]
async fn a_relay_that_is_away_is_a_stall_too() {
    let mut catcher = Catcher::start().await;
    catcher.stop().await;
    let house = House::build(database::sqlite(), catcher.port(), "poll_interval = \"1s\"\n", MONITOR).await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let daemon = start(&house);
    let status = status_when(&house, "a stall", |status| !status["stalled"].is_null()).await;
    assert_eq!(status["stalled"]["reason"], "relay", "{status}");
    catcher.start_again().await;
    catcher.wait_for(1).await;
    status_when(&house, "no stall", |status| status["stalled"].is_null()).await;
    daemon.wait_for_line("mails are sent again").await;
}
