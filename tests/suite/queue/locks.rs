//! Locks that others hold, and those that we hold. SQLite has one writer at a time, so that these concern servers.

use std::time::{Duration, Instant};

use mailqueue::mail::{Columns, Fingerprint};
use mailqueue::outcome::{Fate, Reason, RecipientState};
use mailqueue::queue::{Action, Filter, Outcome};

use super::on_each_server;
use super::place::*;
use super::producers::UNBLOCKED;
use crate::support::DEADLINE;

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

    async fn a_row_that_is_locked_keeps_no_other_from_being_deleted(place: Place) {
        super::claims::bulk(&place, 100).await;
        let operator = place.dispatcher("");
        let rows = operator.list(&Filter::default(), i64::MIN, 1000).await.unwrap();
        let locked = rows[40].id.mid;
        let mut foreign = place.session().await;
        foreign.run("BEGIN").await.unwrap();
        foreign.run(&format!("SELECT mid FROM {TABLE} WHERE mid = {locked} FOR UPDATE")).await.unwrap();
        let selected = operator.select(&rows).await.unwrap();
        let outcomes = operator.apply(&Action::Delete, &selected, at(0)).await.unwrap();
        assert_eq!(outcomes.len(), 100);
        for (mid, outcome) in outcomes {
            match outcome {
                Outcome::Rejected(why) if mid == locked => {
                    assert!(why.starts_with("another transaction keeps it locked ("), "{why}");
                }
                outcome => assert_eq!((mid == locked, outcome), (false, Outcome::Done), "{mid}"),
            }
        }
        foreign.run("COMMIT").await.unwrap();
        assert_eq!(place.session().await.number(&format!("SELECT COUNT(*) FROM {TABLE}")).await, 1);
    }

    async fn a_record_of_a_new_mail_under_an_old_number_is_not_dropped(place: Place) {
        let mid = place.mails(1).await[0];
        let queue = place.dispatcher("a");
        let accepted = [recipient("a@example.org", RecipientState::Accepted)];
        let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt: at(60) };
        settle(&queue, take_all(&queue).await.remove(0), verdict(fate, &accepted)).await;
        let new = Columns { mto: Some(b"bmV3".to_vec()), ..mail(0) };
        let mut foreign = place.session().await;
        foreign.run("BEGIN").await.unwrap();
        foreign.run("SELECT id FROM mailqueue_delivery FOR UPDATE").await.unwrap();
        let operator = place.dispatcher("");
        let row = [mid.into()];
        // It has read the old content, and waits for the record.
        let applied = async { operator.apply(&Action::Delete, &row, at(50)).await.unwrap().remove(0).1 };
        let replaced = async {
            place.until_one_waits_for_a_lock().await;
            foreign.run(&format!("UPDATE {TABLE} SET mto = 'bmV3' WHERE mid = {mid}")).await.unwrap();
            let fingerprint = Fingerprint::of(&new).to_hex();
            foreign.run(&format!("UPDATE mailqueue_delivery SET fingerprint = '{fingerprint}'")).await.unwrap();
            foreign.run("COMMIT").await.unwrap();
        };
        let (outcome, ()) = tokio::join!(applied, replaced);
        let Outcome::Rejected(why) = &outcome else { panic!("{outcome:?}") };
        assert!(why.contains("another mail under its number"), "{why}");
        let listed = place.listed(mid).await.unwrap();
        assert_eq!(listed.state.to_string(), "deferred");
        assert_eq!(listed.history.recipients, accepted);
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

impl Place {
    /// Waits until a statement in this database waits for a lock.
    async fn until_one_waits_for_a_lock(&self) {
        let mut session = self.session().await;
        let sql = match session {
            Session::MariaDb(_) => {
                let processes = session.processes().await;
                format!(
                    "SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN {processes} p \
                     ON p.id = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.db = DATABASE()"
                )
            }
            _ => {
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    .to_owned()
            }
        };
        let waits = async {
            while session.number(&sql).await == 0 {
                // InnoDB shows its transactions as they were at the last look, unless that was more than 100 ms ago.
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waits).await.expect("nothing waits for a lock");
    }
}
