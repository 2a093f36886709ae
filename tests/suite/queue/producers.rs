//! An INSERT that is blocked or fails is a lost mail: whatever dispatchers do, producers do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mailqueue::queue::{Filter, Queue};

use super::on_each_database;
use super::place::*;

/// How long an INSERT may take while others are at work, a busy machine included. One that waits for a lock fails after
/// half of that.
pub const UNBLOCKED: Duration = Duration::from_secs(2);

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
            slowest = slowest.max(begin.elapsed());
            let begin = Instant::now();
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
        // SQLite has one writer at a time and no queue of those who wait: on a busy machine chance makes one wait longer.
        let bound = if matches!(before, Session::Sqlite(_)) { 3 * UNBLOCKED } else { UNBLOCKED };
        assert!(slowest < bound, "{slowest:?}");
    }

    async fn the_gap_of_a_row_that_is_gone_stays_open_for_producers(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let mut producer = place.producer().await;
        producer.run(&format!("DELETE FROM {TABLE} WHERE mid = {}", mids[1])).await.unwrap();
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        let settle = queue.settle(&group, RETRY);
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

async fn deliver_all(queue: Queue, stop: Arc<AtomicBool>) -> usize {
    let mut delivered_rows = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        let mids = find(&queue, i64::MIN, 40).await;
        let claims = claim(&queue, &mids, at(0)).await.unwrap();
        let rows = queue.load(claims).await.unwrap();
        // A look at the head that took long is not made again at once: the table says whether all is done.
        if last && mids.is_empty() && queue.list(&Filter::default(), i64::MIN, 1).await.unwrap().is_empty() {
            return delivered_rows;
        }
        assert!(send(&queue, &rows).await.into_iter().all(|ours| ours));
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        for (_, settled) in queue.settle(&group, RETRY).await.unwrap() {
            assert_eq!(settled, mailqueue::queue::Settled::Done);
            delivered_rows += 1;
        }
        queue.sweep().await.unwrap();
    }
}

impl Place {
    /// A producer's connection: the database's own defaults, REPEATABLE READ on MariaDB, and no patience.
    pub async fn producer(&self) -> Session {
        let mut session = self.session().await;
        match session {
            Session::MariaDb(_) => session.run("SET SESSION innodb_lock_wait_timeout = 1").await.unwrap(),
            Session::Postgres(_) => session.run("SET lock_timeout = '1s'").await.unwrap(),
            Session::Sqlite(_) => {}
        }
        session
    }
}
