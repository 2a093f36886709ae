//! A smarthost that takes fewer connections than `connections` says: that is a limit, and no outage.

use std::time::{Duration, Instant};

use super::{OFTEN, SOON, stop, until_empty, until_said};
use crate::support::catcher::{Catcher, Step, TurnsAway};
use crate::support::house::{House, said};
use crate::support::mails::Mails;
use crate::support::session::Session;
use crate::support::{database, eventually};

const COUNT: usize = 300;

/// A house with 300 mails, and room for so many connections at its smarthost.
async fn crowded(connections: usize, room: usize, turns_away: TurnsAway) -> (House, Catcher, Mails) {
    let catcher = Catcher::start().await;
    catcher.limit_connections(room, turns_away);
    let settings = format!("connections = {connections}{SOON}");
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &settings).await;
    let mut mails = Mails::default();
    mails.fill(&mut Session::on(&house.database.url).await, "n", COUNT).await;
    (house, catcher, mails)
}

/// Returns the time that one pass takes, and what it wrote.
async fn pass(house: &House) -> (Duration, Vec<String>) {
    let begun = Instant::now();
    let output = house.run(&["--log-level", "info", "once"]).await;
    let took = begun.elapsed();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    (took, said(&output).lines().map(str::to_owned).collect())
}

async fn one_pass_is_as_good_as_with_the_right_number(turns_away: TurnsAway) {
    let (house, _catcher, _) = crowded(3, 3, turns_away).await;
    let (right, _) = pass(&house).await;
    let (house, catcher, mails) = crowded(4, 3, turns_away).await;
    let (took, lines) = pass(&house).await;
    assert!(took < 2 * right + Duration::from_secs(1), "{took:?} and {right:?} with 3 connections");
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert!(lines.iter().any(|line| line.contains("takes no more connections")), "{}", lines.join("\n"));
    assert!((1..10).contains(&catcher.turned_away()), "{} were turned away", catcher.turned_away());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pass_is_as_good_as_with_the_right_number_where_one_more_is_greeted_with_421() {
    one_pass_is_as_good_as_with_the_right_number(TurnsAway::With421).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pass_is_as_good_as_with_the_right_number_where_one_more_is_reset() {
    one_pass_is_as_good_as_with_the_right_number(TurnsAway::WithReset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_is_as_quick_as_with_the_right_number() {
    let mut took = Vec::new();
    for connections in [3, 4] {
        let (house, catcher, mails) = crowded(connections, 3, TurnsAway::With421).await;
        let begun = Instant::now();
        let daemon = house.start();
        until_empty(&house.newsletter).await;
        took.push(begun.elapsed());
        assert_eq!(mails.audit(&catcher.received(), &stop(daemon).await), 0);
    }
    assert!(took[1] < 2 * took[0] + Duration::from_secs(1), "{took:?} with 3 and 4 connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_keeps_to_the_connections_that_it_may_have_and_says_so() {
    let (house, catcher, mails) = crowded(4, 3, TurnsAway::With421).await;
    let daemon = house.start();
    daemon.wait_for_line("takes no more connections").await;
    until_empty(&house.newsletter).await;
    until_said(&house, &["status", "--json"], "\"connections_cap\":3").await;
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert!(!lines.iter().any(|line| line.contains("relay down")), "{}", lines.join("\n"));
    assert!(
        !lines.iter().any(|line| line.contains("recipient deferred")),
        "no mail used an attempt: {}",
        lines.join("\n")
    );
    assert!(catcher.turned_away() < 10, "{} were turned away", catcher.turned_away());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_is_enough_for_forty_workers() {
    let (house, catcher, mails) = crowded(40, 1, TurnsAway::With421).await;
    let (_, lines) = pass(&house).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smarthost_that_takes_no_connection_is_down() {
    let (house, catcher, _) = crowded(4, 0, TurnsAway::With421).await;
    let output = house.run(&["--log-level", "info", "once"]).await;
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("too many connections from you"), "{}", said(&output));
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.len() == COUNT && rows.iter().all(|row| row.history.attempts == 0));
    assert_eq!(catcher.turned_away(), 4, "each worker asked once");
}

/// Ten refusals take the relay down while three connections are open, which is all that the smarthost takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_is_not_refused_because_of_connections_of_our_own_that_are_idle() {
    let catcher = Catcher::with_script(|step| match step {
        Step::FinalDot { .. } => Some("554 5.7.1 not you".to_owned()),
        _ => None,
    })
    .await;
    catcher.limit_connections(3, TurnsAway::With421);
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &format!("connections = 3{SOON}")).await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().flood(&mut session, "mail_queue", "n", 30).await;
    let daemon = house.start();
    daemon.wait_for_line("relay down").await;
    daemon.wait_for_line("relay up again").await;
    let seen = eventually("a second pause", || {
        let lines = daemon.lines();
        (lines.iter().filter(|line| line.contains("relay down")).count() > 1).then_some(lines)
    });
    let lines = seen.await;
    assert_eq!(catcher.turned_away(), 0, "{}", lines.join("\n"));
    stop(daemon).await;
}
