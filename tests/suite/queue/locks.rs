//! Locks that others hold, and those that we hold. SQLite has one writer at a time, so that these concern servers.

use std::time::{Duration, Instant};

use super::on_each_server;
use super::place::*;
use super::producers::UNBLOCKED;

on_each_server! {
    async fn a_producers_open_transaction_holds_nobody_up(place: Place) {
        let mids = place.mails(4).await;
        let mut open = place.producer().await;
        open.run("BEGIN").await.unwrap();
        open.run(&format!("INSERT INTO {TABLE} (mid, mto) VALUES (1000, 'b3Blbg=='), (1002, 'b3Blbg==')")).await.unwrap();
        let queue = place.dispatcher("a");
        let begin = Instant::now();
        let rows = take_all(&queue).await;
        assert_eq!(rows.iter().map(|row| row.claim.id().mid).collect::<Vec<_>>(), mids);
        send(&queue, &rows).await;
        queue.settle(rows.into_iter().map(|row| settlement(row, delivered())).collect(), RETRY).await.unwrap();
        queue.sweep().await.unwrap();
        let mut other = place.producer().await;
        other.run(&format!("INSERT INTO {TABLE} (mid, mto) VALUES (1001, 'b3RoZXI=')")).await.unwrap();
        assert!(begin.elapsed() < UNBLOCKED, "{:?}", begin.elapsed());
        assert_eq!(find(&queue, 1001, 10).await.len(), 0);
        open.run("COMMIT").await.unwrap();
        // What was committed late and stands before the others is found at the next pass.
        assert_eq!(find(&queue, i64::MIN, 10).await, [1000, 1001, 1002]);
    }

    async fn what_a_dispatcher_left_locked_does_not_stop_the_next_insert(place: Place) {
        place.mails(3).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        // A dispatcher that was stopped in the middle of settling: its statements so far, and no COMMIT.
        let mut stalled = place.session().await;
        let begin = if matches!(stalled, Session::MariaDb(_)) {
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION"
        } else {
            "BEGIN"
        };
        stalled.run(begin).await.unwrap();
        stalled.run("SELECT id FROM mailqueue_delivery ORDER BY id FOR UPDATE").await.unwrap();
        stalled.run(&format!("DELETE FROM {TABLE} WHERE mid IN (1, 2, 3, 500)")).await.unwrap();
        let mut producer = place.producer().await;
        let begin = Instant::now();
        for mid in [400, 500, 600] {
            producer.run(&format!("INSERT INTO {TABLE} (mid, mto) VALUES ({mid}, 'bmV3')")).await.unwrap();
        }
        assert_eq!(find(&queue, i64::MIN, 10).await, [400, 500, 600]);
        assert_eq!(claim(&place.dispatcher("b"), &[400, 500, 600], at(0)).await.unwrap().len(), 3);
        assert!(begin.elapsed() < UNBLOCKED, "{:?}", begin.elapsed());
    }

    async fn a_locked_table_is_an_error_within_seconds_and_then_forgotten(place: Place) {
        place.mails(3).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let mut foreign = place.session().await;
        let (lock, unlock) = match foreign {
            Session::MariaDb(_) => (format!("LOCK TABLES {TABLE} WRITE"), "UNLOCK TABLES"),
            _ => (format!("BEGIN; LOCK TABLE {TABLE}"), "COMMIT"),
        };
        foreign.run(&lock).await.unwrap();
        let begin = Instant::now();
        let group = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        let (error, group) = queue.settle(group, RETRY).await.unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(25), "{:?}: {error}", begin.elapsed());
        foreign.run(unlock).await.unwrap();
        // A lock is no refusal: no row was set aside.
        let counts = queue.counts(at(0)).await.unwrap();
        assert_eq!((counts.records, counts.not_deleted), (vec![(mailqueue::outcome::State::Sending, 3)], 0));
        for (_, settled) in queue.settle(group, RETRY).await.unwrap() {
            assert_eq!(settled, mailqueue::queue::Settled::Done);
        }
    }
}
