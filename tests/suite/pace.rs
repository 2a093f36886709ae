//! Who goes next, how many at once, and how fast.

use std::time::Duration;

use mailqueue::dispatch::Rate;
use mailqueue::dispatch::breaker::{Breaker, Trip};
use mailqueue::dispatch::connections::Learned;
use mailqueue::dispatch::rate::Bucket;
use mailqueue::dispatch::ready_queue::ReadyQueue;
use mailqueue::telemetry::RelayState;
use tokio::time::Instant;

/// No jitter: pauses are exactly as long as they are meant to be.
const MIDDLE: f64 = 0.5;

fn drain(queue: &ReadyQueue<&'static str>, count: usize) -> Vec<&'static str> {
    (0..count).map(|_| queue.try_next().unwrap()).collect()
}

#[test]
fn queues_with_work_share_the_relay_by_weight() {
    let queue = ReadyQueue::new([1, 4]);
    for _ in 0..100 {
        queue.push(0, "newsletter");
        queue.push(1, "admidio");
    }
    let first = drain(&queue, 50);
    assert_eq!(first.iter().filter(|&&queue| queue == "admidio").count(), 40);
}

#[test]
fn a_queue_that_was_idle_overtakes_and_does_not_make_up_for_lost_time() {
    let queue = ReadyQueue::new([1, 1]);
    for _ in 0..1000 {
        queue.push(0, "newsletter");
    }
    drain(&queue, 500);
    for _ in 0..3 {
        queue.push(1, "password");
    }
    let next = drain(&queue, 6);
    assert_eq!(next.iter().filter(|&&queue| queue == "password").count(), 3);
    assert!(next[..2].contains(&"password"));
}

#[test]
fn within_a_queue_it_is_first_come_first_served() {
    let queue = ReadyQueue::new([1]);
    for word in ["one", "two", "three"] {
        queue.push(0, word);
    }
    assert_eq!(drain(&queue, 3), ["one", "two", "three"]);
    assert!(queue.try_next().is_none());
}

#[tokio::test(start_paused = true)]
async fn everybody_who_waits_for_mails_gets_one_when_there_are_enough() {
    let queue = std::sync::Arc::new(ReadyQueue::new([1]));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let queue = queue.clone();
        waiting.spawn(async move {
            loop {
                queue.wait_nonempty(|| !queue.is_empty()).await;
                if let Some(mail) = queue.try_next() {
                    return mail;
                }
            }
        });
    }
    tokio::task::yield_now().await;
    for _ in 0..4 {
        queue.push(0, "mail");
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
async fn a_token_is_taken_only_with_a_mail_in_hand() {
    let bucket = Bucket::new(Some(Rate { mails: 60, per: Duration::from_secs(60) }));
    let now = Instant::now();
    assert_eq!(bucket.take_for(now, || None::<()>), None);
    assert_eq!(bucket.take_for(now, || Some("mail")), Some("mail"), "the token was still there");
    assert_eq!(bucket.take_for(now, || -> Option<()> { panic!("there is no token") }), None);
    // Forty who wait, as idle connections do, keep nothing for later.
    for _ in 0..40 {
        assert!(tokio::time::timeout(Duration::from_millis(20), bucket.available()).await.is_err());
    }
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(now.elapsed(), Duration::from_secs(1));
    bucket.available().await;
    assert_eq!(now.elapsed(), Duration::from_secs(1), "a second after the first");
    assert!(bucket.take_for(Instant::now(), || Some(())).is_some());
    assert!(bucket.take_for(Instant::now(), || Some(())).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_bucket_holds_the_tokens_of_one_second_and_no_more() {
    let bucket = Bucket::new(Some(Rate { mails: 10, per: Duration::from_secs(1) }));
    tokio::time::advance(Duration::from_secs(100)).await;
    let burst = || (0..100).take_while(|_| bucket.take_for(Instant::now(), || Some(())).is_some()).count();
    assert_eq!(burst(), 10);
    tokio::time::advance(Duration::from_millis(99)).await;
    assert_eq!(burst(), 0);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(burst(), 1);
    tokio::time::advance(Duration::from_millis(350)).await;
    assert_eq!(burst(), 3);
}

#[tokio::test(start_paused = true)]
async fn with_a_rate_one_at_a_time_waits_and_without_one_nobody_does() {
    let bucket = Bucket::new(Some(Rate { mails: 1, per: Duration::from_secs(1) }));
    let turn = bucket.turn().await;
    assert!(tokio::time::timeout(Duration::from_secs(1), bucket.turn()).await.is_err());
    drop(turn);
    assert!(bucket.turn().await.is_some());
    let unlimited = Bucket::new(None);
    assert!(unlimited.turn().await.is_none());
    assert_eq!(unlimited.take_for(Instant::now(), || Some(1)), Some(1));
    assert_eq!(unlimited.take_for(Instant::now(), || None::<u8>), None);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_mail_ends_when_one_is_there() {
    let queue = ReadyQueue::new([1]);
    let waits = async |future: &mut (dyn Future<Output = ()> + Unpin)| {
        tokio::time::timeout(Duration::from_millis(1), future).await.is_err()
    };
    assert!(queue.is_empty());
    let mut arrival = Box::pin(queue.wait_nonempty(|| !queue.is_empty()));
    assert!(waits(&mut arrival).await);
    queue.push(0, "one");
    assert!(!waits(&mut arrival).await);
    assert!(!queue.is_empty());
    queue.push(0, "two");
    assert_eq!(queue.len(0), 2);
    assert_eq!(queue.try_next(), Some("one"));
    assert_eq!(queue.drain(0), ["two"]);
    assert!(queue.is_empty() && queue.len(0) == 0);
}

#[test]
fn a_number_of_mails_is_taken_from_one_queue_those_of_the_lowest_rank_first() {
    let queue = ReadyQueue::new([1, 1]);
    for item in ["b1", "x", "a1", "b2", "a2"] {
        queue.push(0, item);
    }
    queue.push(1, "a3");
    let rank = |item: &&'static str| item.chars().next().filter(|first| *first != 'x');
    assert_eq!(queue.take(0, 3, rank), ["a1", "a2", "b1"]);
    assert_eq!(queue.take(0, 3, rank), ["b2"], "the one without a rank stays");
    assert_eq!((queue.len(0), queue.len(1)), (1, 1));
}

#[test]
fn mails_that_are_not_taken_keep_their_order() {
    let queue = ReadyQueue::new([1]);
    for item in ["b1", "b2", "a1", "b3", "a2", "b4"] {
        queue.push(0, item);
    }
    assert_eq!(queue.take(0, 2, |item| item.chars().next()), ["a1", "a2"]);
    assert_eq!(queue.take(0, 2, |_| Some(())), ["b1", "b2"]);
    assert_eq!(queue.take(0, 0, |_| Some(())), [""; 0]);
    assert_eq!(queue.drain(0), ["b3", "b4"]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_mail_looks_again_when_stirred() {
    let queue = ReadyQueue::new([1]);
    queue.push(0, "later");
    let turn = std::cell::Cell::new(false);
    let mut arrival = Box::pin(queue.wait_nonempty(|| turn.get()));
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut arrival).await.is_err());
    turn.set(true);
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut arrival).await.is_err(), "nobody has said so");
    queue.stir();
    tokio::time::timeout(Duration::from_millis(1), &mut arrival).await.unwrap();
}

#[test]
fn mails_of_the_lowest_rank_go_first_and_those_without_one_stay() {
    let queue = ReadyQueue::new([1, 1]);
    for item in ["c1", "x", "b1", "a1", "a2"] {
        queue.push(0, item);
    }
    queue.push(1, "b2");
    let rank = |_: usize, item: &&'static str| item.chars().next().filter(|first| *first != 'x');
    let next = || queue.try_next_by('a', rank);
    assert_eq!([next(), next()], [Some("a1"), Some("a2")]);
    assert_eq!(next(), Some("b2"), "the other line has had less");
    assert_eq!([next(), next(), next()], [Some("b1"), Some("c1"), None]);
    assert_eq!(queue.try_next(), Some("x"));
}

#[test]
fn a_mail_that_is_put_back_goes_first_and_mails_can_be_taken_out_by_kind() {
    let queue = ReadyQueue::new([1, 1]);
    for (line, item) in [(0, "a1"), (0, "b1"), (1, "a2"), (1, "b2")] {
        queue.push(line, item);
    }
    queue.push_front(0, "b0");
    assert!(queue.any(|line, item| line == 1 && item.starts_with('a')));
    assert_eq!(queue.extract(|item| item.starts_with('a')), ["a1", "a2"]);
    assert!(!queue.any(|_, item| item.starts_with('a')));
    assert_eq!((queue.len(0), queue.len(1)), (2, 1));
    assert_eq!(queue.try_next(), Some("b0"));
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
    let breaker = Breaker::new(4);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let Trip::Opened(pause) = breaker.trip("connect refused", Instant::now(), MIDDLE) else {
            panic!("open already")
        };
        assert_eq!(breaker.trip("another worker's word", Instant::now(), MIDDLE), Trip::AlreadyOpen);
        pauses.push(pause.as_secs());
        tokio::time::advance(pause).await;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    assert!(!breaker.is_up());
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_back_gets_one_connection_first_and_more_as_mails_get_through() {
    let breaker = Breaker::new(4);
    let Trip::Opened(pause) = breaker.trip("connect refused", Instant::now(), MIDDLE) else { panic!("open already") };
    tokio::time::advance(pause * 3).await;
    breaker.close();
    let cap = || breaker.watch().borrow().cap;
    assert_eq!(cap(), 1);
    let mut transactions = 0;
    while cap() < 4 {
        breaker.success();
        transactions += 1;
    }
    assert!((4..=20).contains(&transactions), "{transactions}");
    let Trip::Opened(again) = breaker.trip("connect refused", Instant::now(), MIDDLE) else { panic!("open already") };
    assert_eq!(again, pause, "a clean transaction ends the series");
}

#[tokio::test(start_paused = true)]
async fn throttling_halves_the_connections_once_for_what_was_under_way_together() {
    let breaker = Breaker::new(8);
    let cap = || breaker.watch().borrow().cap;
    assert_eq!(breaker.throttled(Instant::now()), Some(4));
    assert_eq!(breaker.throttled(Instant::now()), None);
    assert_eq!(cap(), 4);
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(2)).await;
        breaker.throttled(Instant::now());
    }
    assert_eq!(cap(), 1, "one connection always remains");
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_admitted_while_the_relay_is_up_and_there_is_a_slot() {
    let breaker = Breaker::new(2);
    let waits =
        async |worker: usize| tokio::time::timeout(Duration::from_millis(1), breaker.admitted(worker)).await.is_err();
    assert!(!waits(0).await && !waits(1).await);
    assert!(breaker.admits(0, Instant::now()));
    assert_eq!(breaker.throttled(Instant::now()), Some(1));
    assert!(breaker.admits(0, Instant::now()) && !breaker.admits(1, Instant::now()));
    assert!(waits(1).await);
    breaker.left(0);
    assert!(!waits(1).await, "it has the only slot now");
    breaker.set_paused(0, true);
    assert!(!breaker.admits(1, Instant::now()) && waits(1).await);
    tokio::time::timeout(Duration::from_millis(1), breaker.down()).await.unwrap();
    breaker.set_paused(0, false);
    assert!(!waits(1).await);
    assert!(tokio::time::timeout(Duration::from_millis(1), breaker.down()).await.is_err());
    breaker.trip("no", Instant::now(), MIDDLE);
    assert!(!breaker.admits(1, Instant::now()) && waits(1).await);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_slot_is_admitted_when_a_learned_limit_is_to_be_tried_again() {
    let breaker = Breaker::new(2);
    for worker in 0..2 {
        breaker.admitted(worker).await;
        breaker.connecting(worker);
    }
    breaker.connected(0, Instant::now());
    assert_eq!(breaker.refused(1, Instant::now()), Some(Learned::Limit(1)));
    assert_eq!(breaker.watch().borrow().cap, 1);
    let refused = Instant::now();
    breaker.admitted(1).await;
    assert_eq!(refused.elapsed().as_secs(), 30);
    // Down, nothing that was learned holds.
    breaker.trip("no", Instant::now(), MIDDLE);
    breaker.close();
    (0..5).for_each(|_| breaker.success());
    assert_eq!(breaker.watch().borrow().cap, 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_waits_until_no_connection_is_in_use() {
    let breaker = Breaker::new(2);
    tokio::time::timeout(Duration::from_millis(1), breaker.all_left()).await.unwrap();
    breaker.admitted(0).await;
    breaker.connecting(0);
    let mut left = Box::pin(breaker.all_left());
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut left).await.is_err());
    breaker.left(0);
    tokio::time::timeout(Duration::from_millis(1), &mut left).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_what_changes_is_seen_by_those_who_watch() {
    let breaker = Breaker::new(2);
    let mut view = breaker.watch();
    breaker.success();
    assert!(!view.has_changed().unwrap());
    breaker.throttled(Instant::now());
    assert!(view.has_changed().unwrap());
    assert_eq!(view.borrow_and_update().cap, 1);
}

#[test]
fn the_operators_stop_stands_above_the_breaker_and_is_lifted_by_every_queue_that_set_it() {
    let breaker = Breaker::new(1);
    assert!(breaker.set_paused(0, true));
    assert!(breaker.set_paused(1, true));
    assert!(!breaker.set_paused(1, true), "no change");
    assert!(breaker.set_paused(0, false));
    assert_eq!(breaker.watch().borrow().state, RelayState::Paused);
    breaker.set_paused(1, false);
    assert!(breaker.is_up());
}
