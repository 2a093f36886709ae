//! Who goes next, how many at once, and how fast.

use std::time::Duration;

use mailqueue::dispatch::Rate;
use mailqueue::dispatch::health::{Health, Opened, State};
use mailqueue::dispatch::rate::Bucket;
use mailqueue::dispatch::share::Share;
use tokio::time::Instant;

/// No jitter: pauses are exactly as long as they are meant to be.
const MIDDLE: f64 = 0.5;

fn drain(share: &Share<&'static str>, count: usize) -> Vec<&'static str> {
    (0..count).map(|_| share.try_next().unwrap()).collect()
}

#[test]
fn queues_with_work_share_the_relay_by_weight() {
    let share = Share::new([1, 4]);
    for _ in 0..100 {
        share.push(0, "newsletter");
        share.push(1, "admidio");
    }
    let first = drain(&share, 50);
    assert_eq!(first.iter().filter(|&&queue| queue == "admidio").count(), 40);
}

#[test]
fn a_queue_that_was_idle_overtakes_and_does_not_make_up_for_lost_time() {
    let share = Share::new([1, 1]);
    for _ in 0..1000 {
        share.push(0, "newsletter");
    }
    drain(&share, 500);
    for _ in 0..3 {
        share.push(1, "password");
    }
    let next = drain(&share, 6);
    assert_eq!(next.iter().filter(|&&queue| queue == "password").count(), 3);
    assert!(next[..2].contains(&"password"));
}

#[test]
fn within_a_queue_it_is_first_come_first_served() {
    let share = Share::new([1]);
    for word in ["one", "two", "three"] {
        share.push(0, word);
    }
    assert_eq!(drain(&share, 3), ["one", "two", "three"]);
    assert!(share.try_next().is_none());
}

#[tokio::test(start_paused = true)]
async fn everybody_who_waits_for_mails_gets_one_when_there_are_enough() {
    let share = std::sync::Arc::new(Share::new([1]));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let share = share.clone();
        waiting.spawn(async move { share.next().await });
    }
    tokio::task::yield_now().await;
    for _ in 0..4 {
        share.push(0, "mail");
    }
    let all = tokio::time::timeout(Duration::from_secs(1), waiting.join_all()).await.unwrap();
    assert_eq!(all.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept_over_time_and_lets_a_second_of_it_go_at_once() {
    let bucket = Bucket::new(Some(Rate { mails: 600, per: Duration::from_secs(60) }));
    let start = Instant::now();
    for _ in 0..10 {
        bucket.take().await;
    }
    assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());
    for _ in 0..50 {
        bucket.take().await;
    }
    let took = start.elapsed();
    assert!((Duration::from_millis(4900)..Duration::from_millis(5200)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_rate_nobody_waits() {
    let bucket = Bucket::new(None);
    let start = Instant::now();
    for _ in 0..10_000 {
        bucket.take().await;
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_relay_in_trouble_is_left_alone_for_longer_and_longer() {
    let health = Health::new(4);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let Opened::Now(pause) = health.trouble("connect refused", Instant::now(), MIDDLE) else {
            panic!("open already")
        };
        assert_eq!(health.trouble("another worker's word", Instant::now(), MIDDLE), Opened::Before);
        pauses.push(pause.as_secs());
        tokio::time::advance(pause).await;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    assert!(!health.is_up());
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_back_gets_one_connection_first_and_more_as_mails_get_through() {
    let health = Health::new(4);
    let Opened::Now(pause) = health.trouble("connect refused", Instant::now(), MIDDLE) else { panic!("open already") };
    tokio::time::advance(pause * 3).await;
    assert_eq!(health.reachable(Instant::now()), pause * 3);
    let cap = || health.watch().borrow().cap;
    assert_eq!(cap(), 1);
    let mut transactions = 0;
    while cap() < 4 {
        health.clean();
        transactions += 1;
    }
    assert!((4..=20).contains(&transactions), "{transactions}");
    let Opened::Now(again) = health.trouble("connect refused", Instant::now(), MIDDLE) else { panic!("open already") };
    assert_eq!(again, pause, "a clean transaction ends the series");
}

#[tokio::test(start_paused = true)]
async fn throttling_halves_the_connections_once_for_what_was_under_way_together() {
    let health = Health::new(8);
    let cap = || health.watch().borrow().cap;
    assert_eq!(health.throttled(Instant::now()), Some(4));
    assert_eq!(health.throttled(Instant::now()), None);
    assert_eq!(cap(), 4);
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(2)).await;
        health.throttled(Instant::now());
    }
    assert_eq!(cap(), 1, "one connection always remains");
}

#[test]
fn the_operators_stop_stands_above_the_breaker_and_is_lifted_by_every_queue_that_set_it() {
    let health = Health::new(1);
    assert!(health.stop(0, true));
    assert!(health.stop(1, true));
    assert!(!health.stop(1, true), "no change");
    assert!(health.stop(0, false));
    assert_eq!(health.watch().borrow().state, State::Stopped);
    health.stop(1, false);
    assert!(health.is_up());
}
