//! Several dispatchers on the same tables, of which one stalls, dies, or is merely slow.

use std::time::Duration;

use rustix::process::Signal;

use super::{OFTEN, SOON, kill, stop, story, until_empty};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::House;
use crate::support::mails::Mails;
use crate::support::session::Session;

const CONNECTIONS: usize = 2;

/// What ages fast: a lease of three seconds.
fn short() -> String {
    format!("{OFTEN}\nlease = \"3s\"")
}

on_every_database!(
    a_stalled_dispatcher_is_taken_over_from_and_sends_nothing_when_it_wakes_up,
    a_killed_dispatcher_is_taken_over_from,
    a_slow_dispatcher_that_shows_signs_of_life_keeps_its_claims,
);

async fn a_stalled_dispatcher_is_taken_over_from_and_sends_nothing_when_it_wakes_up(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let settings = format!("connections = {CONNECTIONS}{SOON}");
    let house = House::build(database, catcher.port(), &short(), &settings).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 40).await;
    catcher.close_gate();
    let stalled = house.start();
    catcher.wait_at_gate(CONNECTIONS).await;
    stall(&stalled, &mut session).await;
    catcher.open_gate();

    let neighbour = house.neighbour();
    let other = neighbour.start(&["run"]);
    other.wait_for_line("took over").await;
    until_empty(&house.newsletter).await;
    stalled.signal(Signal::CONT);
    mails.fill(&mut session, "later", 10).await;
    until_empty(&house.newsletter).await;
    let mut lines = stop(stalled).await;
    lines.extend(stop(other).await);
    let repeated = mails.audit(&catcher.received(), &lines);
    // Two were on the wire, and their connections had each one more behind it.
    assert!(repeated <= CONNECTIONS, "{repeated} came twice:\n{}", story(&lines, &["unknown", "took over", "lost"]));
    assert_eq!(house.ledger_open(), 0);
}

/// Stops the process. On SQLite not while it holds the lock on the file, with which nobody else could write either: a
/// server ends a transaction that is left open, a file cannot.
async fn stall(running: &Running, session: &mut Session) {
    running.signal(Signal::STOP);
    if !matches!(session, Session::Sqlite(_)) {
        return;
    }
    session.run("PRAGMA busy_timeout = 300").await.expect("PRAGMA");
    while session.run("BEGIN IMMEDIATE; ROLLBACK").await.is_err() {
        running.signal(Signal::CONT);
        tokio::time::sleep(Duration::from_millis(20)).await;
        running.signal(Signal::STOP);
    }
    session.run("PRAGMA busy_timeout = 5000").await.expect("PRAGMA");
}

async fn a_killed_dispatcher_is_taken_over_from(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let settings = format!("connections = {CONNECTIONS}{SOON}");
    let house = House::build(database, catcher.port(), &short(), &settings).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 40).await;
    catcher.close_gate();
    let killed = house.start();
    catcher.wait_at_gate(CONNECTIONS).await;
    let mut lines = kill(killed).await;
    catcher.open_gate();
    let neighbour = house.neighbour();
    let other = neighbour.start(&["run"]);
    other.wait_for_line("took over").await;
    until_empty(&house.newsletter).await;

    // Its ledger knows nothing that would be sent or deleted now.
    let mid = mails.mids().next().expect("a mail");
    mails.insert(&mut session, "anew", 1, Some(mid)).await;
    let again = house.start();
    until_empty(&house.newsletter).await;
    lines.extend(stop(other).await);
    lines.extend(stop(again).await);
    let repeated = mails.audit(&catcher.received(), &lines);
    assert!(repeated <= CONNECTIONS, "{repeated} came twice");
    assert_eq!(house.ledger_open(), 0);
}

async fn a_slow_dispatcher_that_shows_signs_of_life_keeps_its_claims(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), &short(), "rate = \"10/s\"").await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    for n in 0..60 {
        mails.insert(&mut session, &format!("n-{n}"), 1, None).await;
    }
    let slow = house.start();
    catcher.wait_for(1).await;
    let neighbour = house.neighbour();
    let other = neighbour.start(&["run"]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    until_empty(&house.newsletter).await;
    let mut lines = stop(slow).await;
    lines.extend(stop(other).await);
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert!(!lines.iter().any(|line| line.contains("took over")), "{}", lines.join("\n"));
}
