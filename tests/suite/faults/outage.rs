//! The relay's outages: expiry does not run meanwhile, whoever sees them, and for however many processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mailqueue::outcome::{Reason, State};
use mailqueue::queue::Listed;

use super::{OFTEN, kill, stop};
use crate::support::catcher::{Catcher, Step};
use crate::support::database;
use crate::support::eventually;
use crate::support::house::{House, mail};

/// A mail that is put off for longer has failed.
const EXPIRE: Duration = Duration::from_secs(5);

fn retry(expire: Duration) -> String {
    format!("\n[retry]\ninitial = \"200ms\"\nmaximum = \"400ms\"\nexpire = \"{}s\"", expire.as_secs())
}

/// Puts everybody off until it is told otherwise.
async fn put_off() -> (Catcher, Arc<AtomicBool>) {
    let relents = Arc::new(AtomicBool::new(false));
    let relenting = relents.clone();
    let script = move |step: Step<'_>| match step {
        Step::Rcpt { .. } if !relenting.load(Ordering::SeqCst) => Some("450 4.2.1 mailbox busy".to_owned()),
        _ => None,
    };
    (Catcher::with_script(script).await, relents)
}

async fn only_row(house: &House) -> Listed {
    house.rows(&house.newsletter).await.pop().expect("a row")
}

/// Time itself passes: more than a mail may be put off.
async fn longer_than_expiry() {
    tokio::time::sleep(EXPIRE + Duration::from_millis(500)).await;
}

#[tokio::test]
async fn an_outage_that_no_process_sees_from_end_to_end_does_not_count_either() {
    let (mut catcher, _) = put_off().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &retry(EXPIRE)).await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    assert_eq!(house.once().await, 1);
    catcher.stop().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(house.once().await, 69);
    longer_than_expiry().await;
    assert_eq!(house.once().await, 69, "it is still away");
    catcher.start_again().await;
    assert_eq!(house.once().await, 1);
    let row = only_row(&house).await;
    assert_eq!((row.state, row.reason), (State::Deferred, Some(Reason::Refused)), "{row:?}");
    assert!(!house.installation.path().join("state/relay-down").exists());

    longer_than_expiry().await;
    assert_eq!(house.once().await, 1);
    let row = only_row(&house).await;
    assert_eq!((row.state, row.reason), (State::Failed, Some(Reason::Expired)), "the relay was there: {row:?}");
}

#[tokio::test]
async fn an_outage_in_which_the_daemon_dies_does_not_count() {
    let (mut catcher, relents) = put_off().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &retry(EXPIRE)).await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let daemon = house.start();
    daemon.wait_for_line("\"deferred\"").await;
    catcher.stop().await;
    daemon.wait_for_line("relay down").await;
    kill(daemon).await;
    longer_than_expiry().await;
    let daemon = house.start();
    daemon.wait_for_line("relay down").await;
    catcher.start_again().await;
    daemon.wait_for_line("relay up again").await;
    daemon.wait_for_line("\"deferred\"").await;
    relents.store(true, Ordering::SeqCst);
    catcher.wait_for(1).await;
    let lines = stop(daemon).await;
    assert!(!lines.iter().any(|line| line.contains("expired")), "{}", lines.join("\n"));
}

#[tokio::test]
async fn an_outage_that_two_dispatchers_see_is_excused_once() {
    let (mut catcher, _) = put_off().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &retry(Duration::from_secs(3600))).await;
    for n in 0..20 {
        house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.unwrap();
    }
    let neighbour = house.neighbour();
    let daemons = [house.start(), neighbour.start(&["run"])];
    for daemon in &daemons {
        daemon.wait_for_line("\"deferred\"").await;
    }
    let since = |rows: &[Listed]| rows.iter().filter_map(|row| row.history.first_deferred).max();
    let everybody = eventually_deferred(&house).await;
    let before = since(&everybody).unwrap();
    let gone = Instant::now();
    catcher.stop().await;
    for daemon in &daemons {
        daemon.wait_for_line("relay down").await;
    }
    tokio::time::sleep(EXPIRE).await;
    catcher.start_again().await;
    for daemon in &daemons {
        daemon.wait_for_line("relay up again").await;
    }
    let lasted = gone.elapsed();
    for daemon in &daemons {
        // After the claim that follows everything has been accounted for.
        eventually("another try", || {
            daemon
                .lines()
                .iter()
                .rev()
                .take_while(|l| !l.contains("up again"))
                .any(|l| l.contains("\"deferred\""))
                .then_some(())
        })
        .await;
    }
    let after = house.rows(&house.newsletter).await;
    for daemon in daemons {
        stop(daemon).await;
    }
    let moved = Duration::try_from(since(&after).unwrap().duration_since(before)).unwrap();
    assert!(moved >= EXPIRE / 2, "it was excused: {moved:?} of {lasted:?}");
    assert!(moved < lasted + Duration::from_millis(900), "it was excused once: {moved:?} of {lasted:?}");
    assert!(after.iter().all(|row| row.history.first_deferred <= Some(Timestamp::now())));
}

async fn eventually_deferred(house: &House) -> Vec<Listed> {
    loop {
        let rows = house.rows(&house.newsletter).await;
        if rows.iter().all(|row| row.history.first_deferred.is_some()) {
            return rows;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
