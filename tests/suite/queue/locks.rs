//! Locks that others hold, and those that we hold. SQLite has one writer at a time, so that these concern servers.

use std::time::{Duration, Instant};

use mailqueue::mail::{Columns, Fingerprint, RecordId};
use mailqueue::outcome::{Fate, Reason, RecipientState, State};
use mailqueue::queue::{Action, Filter, Outcome, Queue, Settled};

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
        queue.settle(&rows.into_iter().map(|row| settlement(row, delivered())).collect::<Vec<_>>(), RETRY).await.unwrap();
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
        stalled.run(begin(&stalled)).await.unwrap();
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

    async fn a_locked_table_leaves_all_rows_for_later(place: Place) {
        place.mails(20).await;
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
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        let settled = queue.settle(&group, RETRY).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
        assert!(settled.iter().all(|(_, settled)| matches!(settled, Settled::Locked { .. })), "{settled:?}");
        foreign.run(unlock).await.unwrap();
        // A lock is no refusal: no row was set aside.
        let counts = queue.counts(at(0)).await.unwrap();
        assert_eq!((counts.records, counts.not_deleted), (vec![(State::Sending, 20)], 0));
        for (_, settled) in queue.settle(&group, RETRY).await.unwrap() {
            assert_eq!(settled, Settled::Done);
        }
    }

    async fn rows_that_another_session_has_locked_hold_up_no_other_of_their_group(place: Place) {
        let mids = place.mails(100).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        // Neighbours, and more than are tried one by one. Of a row that stays, its record counts.
        let (first, last, record) = (mids[40], mids[44], mids[77]);
        let is_locked = |mid: i64| (first..=last).contains(&mid) || mid == record;
        let mut foreign = place.session().await;
        foreign.run(begin(&foreign)).await.unwrap();
        foreign.run(&format!("UPDATE {TABLE} SET mto = mto WHERE mid BETWEEN {first} AND {last}")).await.unwrap();
        foreign.run(&format!("SELECT id FROM mailqueue_delivery WHERE mid = {record} FOR UPDATE")).await.unwrap();
        let verdict_of = |mid: i64| match mid {
            mid if mid == record || mid % 2 == 0 && !is_locked(mid) => deferred(at(10)),
            _ => delivered(),
        };
        let group = rows.into_iter().map(|row| {
            let verdict = verdict_of(row.claim.id().mid);
            settlement(row, verdict)
        });
        let group: Vec<_> = group.collect();
        let begun = Instant::now();
        let settled = queue.settle(&group, RETRY).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
        let locked: Vec<i64> =
            settled.iter().filter(|(_, end)| matches!(end, Settled::Locked { .. })).map(|(id, _)| id.mid).collect();
        assert_eq!(locked, [mids[40], mids[41], mids[42], mids[43], mids[44], record]);
        assert!(settled.iter().all(|(id, end)| is_locked(id.mid) || *end == Settled::Done), "{settled:?}");
        // A row alone is told within a second or two.
        let locked: Vec<_> = group.into_iter().filter(|one| is_locked(one.claim.id().mid)).collect();
        let begun = Instant::now();
        let again = queue.settle_locked(&locked, RETRY).await.unwrap();
        assert!(again.iter().all(|(_, end)| matches!(end, Settled::Locked { .. })), "{again:?}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

        foreign.run("ROLLBACK").await.unwrap();
        assert!(queue.settle(&locked, RETRY).await.unwrap().iter().all(|(_, end)| *end == Settled::Done));
        assert!(place.listed(mids[41]).await.is_none());
        assert_eq!(place.listed(record).await.unwrap().state, State::Deferred);
    }

    async fn an_acceptance_is_not_forgotten_when_its_row_is_locked(place: Place) {
        let queue = place.dispatcher("a");
        let (mid, record, content) = deferred_row(&place, &queue).await;
        let mut foreign = place.session().await;
        foreign.run(begin(&foreign)).await.unwrap();
        foreign.run(&format!("UPDATE {TABLE} SET mto = mto WHERE mid = {mid}")).await.unwrap();
        let accepted = [recipient("a@example.org", RecipientState::Accepted)];
        queue.replay(mid, &record, content, &accepted, Some(RETRY)).await.unwrap_err();
        foreign.run("ROLLBACK").await.unwrap();
        let replayed = queue.replay(mid, &record, content, &accepted, Some(RETRY)).await.unwrap();
        assert_eq!(replayed, Some(Settled::Done));
        assert!(place.listed(mid).await.is_none());
    }

    async fn a_replayed_acceptance_leaves_the_next_attempt_of_a_deferred_row_as_it_is(place: Place) {
        let queue = place.dispatcher("a");
        let (mid, record, content) = deferred_row(&place, &queue).await;
        let accepted = [recipient("a@example.org", RecipientState::Accepted)];
        assert_eq!(queue.replay(mid, &record, content, &accepted, None).await.unwrap(), Some(Settled::Done));
        let listed = place.listed(mid).await.unwrap();
        assert_eq!((listed.state, listed.next_attempt), (State::Deferred, Some(at(600))));
        assert_eq!(listed.history.recipients[0].state, RecipientState::Accepted);
    }
}

/// Defers a row until second 600. Returns its number, its record and the fingerprint of its content.
async fn deferred_row(place: &Place, queue: &Queue) -> (i64, RecordId, Fingerprint) {
    place.mails(1).await;
    let mut rows = take_all(queue).await;
    send(queue, &rows).await;
    let row = rows.remove(0);
    let (mid, record, content) = (row.claim.id().mid, *row.claim.record(), row.fingerprint);
    assert_eq!(settle(queue, row, deferred(at(600))).await, Settled::Done);
    (mid, record, content)
}

/// The words that begin a transaction which locks no more than the rows that it names.
fn begin(session: &Session) -> &'static str {
    match session {
        Session::MariaDb(_) => "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION",
        _ => "BEGIN",
    }
}

mod statements_with_a_limit {
    use super::*;
    use crate::support::database::odd_mariadb;

    #[tokio::test]
    async fn mariadb() {
        a_lock_is_no_refusal(Place::on(odd_mariadb().await).await).await;
    }

    #[tokio::test]
    async fn postgres() {
        let place = Place::postgres().await;
        let limit =
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 500', current_database()); END $$";
        place.session().await.run(limit).await.unwrap();
        a_lock_is_no_refusal(place).await;
    }

    /// A server ends statements that take longer than half a second, those that wait for a lock as well.
    async fn a_lock_is_no_refusal(place: Place) {
        place.mails(2).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let mut foreign = place.session().await;
        foreign.run(begin(&foreign)).await.unwrap();
        let sql = format!("UPDATE {TABLE} SET mto = mto WHERE mid = 1{}", limit(&foreign));
        foreign.run(&sql).await.unwrap();
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        let settled = queue.settle(&group, RETRY).await.unwrap();
        assert!(matches!(settled[0].1, Settled::Locked { .. }), "{settled:?}");
        assert_eq!(settled[1].1, Settled::Done);
    }

    /// The odd MariaDB takes no change without a limit or a key.
    fn limit(session: &Session) -> &'static str {
        if matches!(session, Session::MariaDb(_)) { " LIMIT 1" } else { "" }
    }
}

mod due_records {
    use super::super::on_each_server;
    use super::*;

    on_each_server! {
        async fn that_are_locked_hold_up_no_other(place: Place) {
            let mids = place.mails(20).await;
            let queue = place.dispatcher("a");
            let rows = take_all(&queue).await;
            send(&queue, &rows).await;
            let group: Vec<_> = rows.into_iter().map(|row| settlement(row, deferred(at(10)))).collect();
            queue.settle(&group, RETRY).await.unwrap();
            drop(group);
            let mut foreign = place.session().await;
            foreign.run(begin(&foreign)).await.unwrap();
            // Neighbours, and more than are tried one by one.
            let (first, last) = (mids[7], mids[11]);
            let records = format!("queue_table = '{TABLE}' AND mid BETWEEN {first} AND {last}");
            foreign.run(&format!("UPDATE mailqueue_delivery SET detail = 'x' WHERE {records}")).await.unwrap();
            let claimed = queue.claim_due(at(20), 128).await.unwrap();
            assert_eq!(claimed.len(), 15);
            assert!(claimed.iter().all(|claim| !(first..=last).contains(&claim.id().mid)));
            let error = queue.claim_due(at(20), 128).await.unwrap_err();
            assert!(matches!(error, mailqueue::queue::Error::Busy { .. }), "{error}");
            // Neither the tidying up nor a further claim waits for the lock for long, nor is any of them an error.
            let begun = Instant::now();
            queue.sweep().await.unwrap();
            place.mails(1).await;
            assert_eq!(claim_all(&queue).await.len(), 1);
            assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
            foreign.run("ROLLBACK").await.unwrap();
            let rest = queue.claim_due(at(20), 128).await.unwrap();
            assert_eq!(rest.iter().map(|claim| claim.id().mid).collect::<Vec<_>>(), mids[7..=11]);
        }
    }

    async fn claim_all(queue: &mailqueue::queue::Queue) -> Vec<mailqueue::queue::Claim> {
        let found = queue.find(i64::MIN, 100).await.unwrap();
        queue.claim(&found, at(0)).await.unwrap()
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
