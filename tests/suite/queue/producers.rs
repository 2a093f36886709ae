//! An INSERT that is blocked or fails is a lost mail: whatever dispatchers do, producers do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mailqueue::queue::Queue;

use super::on_each_database;
use super::place::*;

/// How long an INSERT may take while others are at work.
const UNBLOCKED: Duration = Duration::from_secs(1);

on_each_database! {
    async fn inserts_are_never_blocked_while_claims_and_settles_run(place: Place) {
        // Rows with gaps between their numbers.
        let mut before = place.session().await;
        let rows: Vec<_> = (1..=600).map(|n| format!("({}, 'b2xk', '', '')", n * 10)).collect();
        let sql = format!("INSERT INTO {TABLE} (mid, mto, msubject, mbody) VALUES {}", rows.join(", "));
        before.run(&sql).await.unwrap();
        if let Session::Postgres(_) = before {
            before.run(&format!("SELECT setval(pg_get_serial_sequence('{TABLE}', 'mid'), 6000)")).await.unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = ["a", "b"].map(|name| tokio::spawn(deliver_all(place.dispatcher(name), Arc::clone(&stop)))).into();
        // One that takes the next number, one that fills the gaps.
        let (mut numbered, mut filling) = (place.producer().await, place.producer().await);
        let mut slowest = Duration::ZERO;
        for n in 0..300 {
            let begin = Instant::now();
            numbered.run(&format!("INSERT INTO {TABLE} (mto, msubject, mbody) VALUES ('bmV3{n:04}', '', '')")).await.unwrap();
            let gap = 5 + (n * 7919) % 300 * 10;
            filling.run(&format!("INSERT INTO {TABLE} (mid, mto) VALUES ({gap}, 'Z2Fw{n:04}')")).await.unwrap();
            slowest = slowest.max(begin.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        let mut delivered = 0;
        for worker in workers {
            delivered += worker.await.unwrap();
        }
        assert_eq!(delivered, 1200);
        assert_eq!(place.session().await.number(&format!("SELECT COUNT(*) FROM {TABLE}")).await, 0);
        assert!(slowest < UNBLOCKED, "{slowest:?}");
    }

    async fn the_gap_of_a_row_that_is_gone_stays_open_for_producers(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let mut producer = place.producer().await;
        producer.run(&format!("DELETE FROM {TABLE} WHERE mid = {}", mids[1])).await.unwrap();
        let settle = queue.settle(rows.into_iter().map(|row| settlement(row, delivered())).collect());
        let inserts = async {
            for _ in 0..20 {
                let begin = Instant::now();
                let sql = format!("INSERT INTO {TABLE} (mid, mto) VALUES ({}, 'bmV3')", mids[1]);
                producer.run(&sql).await.unwrap();
                producer.run(&format!("DELETE FROM {TABLE} WHERE mid = {} AND mto = 'bmV3'", mids[1])).await.unwrap();
                assert!(begin.elapsed() < UNBLOCKED);
            }
        };
        let (settled, ()) = tokio::join!(settle, inserts);
        assert_eq!(settled.unwrap().len(), 3);
    }

}

/// SQLite has one writer at a time, so that these concern servers only.
macro_rules! on_each_server {
    ($(async fn $name:ident($place:ident: Place) $body:block)+) => {
        $(async fn $name($place: Place) $body)+
        mod server {
            mod mariadb {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::super::$name(crate::queue::place::Place::mariadb().await).await;
                })+
            }
            mod postgres {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::super::$name(crate::queue::place::Place::postgres().await).await;
                })+
            }
        }
    };
}

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
        queue.settle(rows.into_iter().map(|row| settlement(row, delivered())).collect()).await.unwrap();
        queue.sweep().await.unwrap();
        let mut other = place.producer().await;
        other.run(&format!("INSERT INTO {TABLE} (mid, mto) VALUES (1001, 'b3RoZXI=')")).await.unwrap();
        assert!(begin.elapsed() < UNBLOCKED, "{:?}", begin.elapsed());
        assert_eq!(queue.find(1001, 10).await.unwrap().len(), 0);
        open.run("COMMIT").await.unwrap();
        // What was committed late and stands before the others is found at the next pass.
        assert_eq!(queue.find(i64::MIN, 10).await.unwrap(), [1000, 1001, 1002]);
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
        assert_eq!(queue.find(i64::MIN, 10).await.unwrap(), [400, 500, 600]);
        assert_eq!(place.dispatcher("b").claim(&[400, 500, 600], at(0)).await.unwrap().len(), 3);
        assert!(begin.elapsed() < UNBLOCKED, "{:?}", begin.elapsed());
    }

    async fn a_locked_table_is_an_error_within_seconds_and_then_forgotten(place: Place) {
        place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        send(&queue, std::slice::from_ref(&row)).await;
        let mut foreign = place.session().await;
        let (lock, unlock) = match foreign {
            Session::MariaDb(_) => (format!("LOCK TABLES {TABLE} WRITE"), "UNLOCK TABLES"),
            _ => (format!("BEGIN; LOCK TABLE {TABLE}"), "COMMIT"),
        };
        foreign.run(&lock).await.unwrap();
        let begin = Instant::now();
        let (error, group) = queue.settle(vec![settlement(row, delivered())]).await.unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(25), "{:?}: {error}", begin.elapsed());
        foreign.run(unlock).await.unwrap();
        assert_eq!(queue.settle(group).await.unwrap()[0].1, mailqueue::queue::Settled::Done);
    }
}

async fn deliver_all(queue: Queue, stop: Arc<AtomicBool>) -> usize {
    let mut delivered_rows = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        let mids = queue.find(i64::MIN, 40).await.unwrap();
        let claims = queue.claim(&mids, at(0)).await.unwrap();
        let rows = queue.load(claims).await.unwrap();
        if rows.is_empty() && mids.is_empty() && last {
            return delivered_rows;
        }
        assert!(send(&queue, &rows).await.into_iter().all(|ours| ours));
        let group = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        for (_, settled) in queue.settle(group).await.unwrap() {
            assert_eq!(settled, mailqueue::queue::Settled::Done);
            delivered_rows += 1;
        }
        queue.sweep().await.unwrap();
    }
}

impl Place {
    /// A producer's connection: the database's own defaults, REPEATABLE READ on MariaDB, and no patience.
    async fn producer(&self) -> Session {
        let mut session = self.session().await;
        match session {
            Session::MariaDb(_) => session.run("SET SESSION innodb_lock_wait_timeout = 2").await.unwrap(),
            Session::Postgres(_) => session.run("SET lock_timeout = '2s'").await.unwrap(),
            Session::Sqlite(_) => {}
        }
        session
    }
}
