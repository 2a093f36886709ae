//! Slow rates, slow refusals, slow greetings: what takes long must not be cut off by what is impatient.

use std::time::Duration;

use mailqueue::outcome::State;

use super::{OFTEN, SOON, stop};
use crate::support::catcher::{Catcher, Step};
use crate::support::database;
use crate::support::eventually;
use crate::support::front::Front;
use crate::support::house::{House, mail};
use crate::support::mails::Mails;
use crate::support::session::Session;

#[tokio::test]
async fn a_rate_of_less_than_one_mail_in_the_time_after_which_connections_are_closed_is_kept() {
    let catcher = Catcher::start().await;
    // 36 seconds apart, and connections close after 30.
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, "connections = 3\nrate = \"100/h\"").await;
    for n in 0..4 {
        house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.unwrap();
    }
    let daemon = house.start();
    catcher.wait_for(1).await;
    let first = tokio::time::Instant::now();
    while catcher.received().len() < 2 {
        assert!(first.elapsed() < Duration::from_secs(50), "{}", daemon.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(first.elapsed() > Duration::from_secs(34), "{:?}", first.elapsed());
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 2);
}

/// Idle workers used to keep a token each, so that forty of them let forty mails out at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_however_many_connections_have_waited_for_a_mail() {
    let catcher = Catcher::start().await;
    // A burst of 20, then 20 a second.
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, "connections = 40\nrate = \"1200/min\"").await;
    let daemon = house.start();
    for n in 0..3 {
        house.newsletter.insert(&mail(&format!("early{n}@example.org"), "x")).await.unwrap();
        catcher.wait_for(n + 1).await;
    }
    // Long enough for 40 tokens and the bucket.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut session = Session::on(&house.database.url).await;
    let first = tokio::time::Instant::now();
    Mails::default().flood(&mut session, "mail_queue", "n", 100).await;
    catcher.wait_for(103).await;
    let took = first.elapsed();
    assert!(took > Duration::from_millis(3900), "100 mails in {took:?}, of which 20 may go at once and 20 a second");
    stop(daemon).await;
}

#[tokio::test]
async fn refusals_that_come_one_by_one_are_a_streak_too() {
    let catcher = Catcher::with_script(|step| match step {
        Step::FinalDot { .. } => Some("554 5.7.1 not you".to_owned()),
        _ => None,
    })
    .await;
    // Slower than verdicts wait for each other.
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &format!("rate = \"80/min\"{SOON}")).await;
    for n in 0..14 {
        house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.unwrap();
    }
    let daemon = house.start();
    let line = daemon.wait_for_line("relay down").await;
    assert!(line.contains("mails in a row are refused with 554 5.7.1"), "{line}");
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.iter().filter(|row| row.state == State::Failed).count() < 10, "{rows:?}");
    assert!(rows.iter().filter(|row| row.history.attempts == 0).count() >= 3, "{rows:?}");
    stop(daemon).await;
}

#[tokio::test]
async fn a_pause_that_comes_during_a_slow_greeting_is_obeyed() {
    let catcher = Catcher::start().await;
    let front = Front::of(catcher.port()).await;
    let house = House::build(database::sqlite(), front.port(), OFTEN, SOON).await;
    front.close();
    let mid = house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let daemon = house.start();
    eventually("a connection", || (front.connections() > 0).then_some(())).await;
    assert!(house.run(&["pause", "newsletter"]).await.status.success());
    daemon.wait_for_line("queue paused by an operator").await;
    front.open();
    let mut state = State::Sending;
    while state != State::Waiting {
        state = house.row(&house.newsletter, mid).await.expect("it stays").state;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(catcher.received().is_empty());
    assert!(house.run(&["resume", "newsletter"]).await.status.success());
    catcher.wait_for(1).await;
    stop(daemon).await;
}
