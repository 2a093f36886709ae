//! Rows that were delivered and that the database does not let us delete.

use mailqueue::outcome::{Fate, Reason, RecipientState, State};
use mailqueue::queue::{Action, DeleteRetry, Filter, Level, Listed, Outcome, Queue, Settled};

use super::place::*;
use super::{on_each_database, on_each_mysql};

const WORDS: &str = "kept for the archive";

/// Lets a foreign key keep these rows.
async fn tie(place: &Place, mids: &[i64]) {
    let mut session = place.session().await;
    session
        .run(&format!(
            "CREATE TABLE IF NOT EXISTS letter (mid BIGINT NOT NULL, FOREIGN KEY (mid) REFERENCES {TABLE} (mid))"
        ))
        .await
        .unwrap();
    for mid in mids {
        session.run(&format!("INSERT INTO letter VALUES ({mid})")).await.unwrap();
    }
}

async fn untie(place: &Place) {
    place.session().await.run("DELETE FROM letter").await.unwrap();
}

/// Lets a trigger refuse every DELETE, or with `quietly` leave each row in the table without an error.
async fn guard(place: &Place, quietly: bool) {
    let mut session = place.session().await;
    let sql = match (&mut session, quietly) {
        (Session::Postgres(_), _) => format!(
            "CREATE SEQUENCE tries; CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM nextval('tries'); {} END $$; \
             CREATE TRIGGER guard BEFORE DELETE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION guard()",
            if quietly { "RETURN NULL;".to_owned() } else { format!("RAISE EXCEPTION '{WORDS}';") }
        ),
        (Session::Sqlite(_), true) => {
            format!("CREATE TRIGGER guard BEFORE DELETE ON {TABLE} BEGIN SELECT RAISE(IGNORE); END")
        }
        (Session::Sqlite(_), false) => {
            format!("CREATE TRIGGER guard BEFORE DELETE ON {TABLE} BEGIN SELECT RAISE(ABORT, '{WORDS}'); END")
        }
        // What a table without transactions counts is not rolled back. MySQL has no such table beside others.
        (Session::MariaDb(_), _) => {
            let counts = session.number("SELECT VERSION() LIKE '%MariaDB%'").await == 1;
            let count = if counts { "UPDATE tries SET n = n + 1;" } else { "" };
            format!(
                "CREATE TABLE tries (n BIGINT NOT NULL) ENGINE = MyISAM; INSERT INTO tries VALUES (0); \
                 CREATE TRIGGER guard BEFORE DELETE ON {TABLE} FOR EACH ROW BEGIN {count} \
                 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{WORDS}'; END"
            )
        }
    };
    session.run(&sql).await.unwrap();
}

async fn unguard(place: &Place) {
    let mut session = place.session().await;
    let sql = match session {
        Session::Postgres(_) => format!("DROP TRIGGER guard ON {TABLE}"),
        _ => "DROP TRIGGER guard".to_owned(),
    };
    session.run(&sql).await.unwrap();
}

/// Finds, claims, loads and marks everything that waits, and settles it as delivered to one recipient.
async fn deliver(place: &Place, queue: &Queue) -> Vec<Settled> {
    let rows = take_all(queue).await;
    assert!(send(queue, &rows).await.iter().all(|ours| *ours), "{}", place.database.url);
    let accepted = [recipient("a@example.org", RecipientState::Accepted)];
    let group: Vec<_> = rows.into_iter().map(|row| settlement(row, verdict(Fate::Delivered, &accepted))).collect();
    queue.settle(&group, RETRY).await.unwrap().into_iter().map(|(_, settled)| settled).collect()
}

fn detail(settled: &Settled) -> &str {
    let Settled::NotDeleted { detail, next_attempt } = settled else { panic!("{settled:?}") };
    assert_eq!(*next_attempt, RETRY.next);
    detail
}

async fn assert_set_aside(place: &Place, mid: i64, words: &str) -> Listed {
    let listed = place.listed(mid).await.unwrap();
    assert_eq!((listed.state, listed.reason), (State::Held, Some(Reason::NotDeleted)), "{listed:?}");
    let detail = listed.detail.clone().unwrap();
    assert!(detail.to_lowercase().contains(words), "{detail}");
    assert_eq!((listed.owner.as_deref(), listed.history.recipients.len()), (None, 1));
    assert_eq!(listed.history.recipients[0].state, RecipientState::Accepted);
    listed
}

/// No dispatcher finds anything to send, now or ever.
async fn assert_nothing_to_send(place: &Place) {
    for name in ["a", "b"] {
        let queue = place.dispatcher(name);
        queue.sweep().await.unwrap();
        assert_eq!(queue.recover_own().await.unwrap().unknown.len(), 0);
        assert!(find(&queue, i64::MIN, 1000).await.is_empty());
        assert!(queue.claim_due(at(1_000_000_000), 1000).await.unwrap().is_empty());
    }
}

on_each_database! {
    async fn a_row_that_the_database_refuses_to_delete_is_set_aside_and_the_others_go(place: Place) {
        let mids = place.mails(10).await;
        let queue = place.dispatcher("a");
        tie(&place, &[mids[3]]).await;
        let settled = deliver(&place, &queue).await;
        for (at, settled) in settled.iter().enumerate() {
            match at {
                3 => assert!(detail(settled).to_lowercase().contains("foreign key"), "{settled:?}"),
                _ => assert_eq!(*settled, Settled::Done, "{at}"),
            }
        }
        let listed = assert_set_aside(&place, mids[3], "foreign key").await;
        assert_eq!((listed.next_attempt, listed.history.first_deferred), (Some(RETRY.next), Some(RETRY.now)));
        assert_eq!((place.records().await, place.session().await.number(&format!("SELECT COUNT(*) FROM {TABLE}")).await), (1, 1));
        let counts = queue.counts(at(0)).await.unwrap();
        assert_eq!((counts.records, counts.not_deleted), (vec![(State::Held, 1)], 1));
        let findings = place.dispatcher("").check().await;
        let finding = findings.iter().find(|finding| finding.what == "not deleted").expect("a finding");
        assert!(finding.level == Level::Warning && finding.found.starts_with("1 delivered"), "{finding:?}");
        assert_nothing_to_send(&place).await;
    }

    async fn verdicts_of_other_rows_are_carried_out_beside_one_that_is_not_deleted(place: Place) {
        let mids = place.mails(4).await;
        let queue = place.dispatcher("a");
        tie(&place, &[mids[0], mids[2]]).await;
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let accepted = [recipient("a@example.org", RecipientState::Accepted)];
        let verdicts = [verdict(Fate::Delivered, &accepted), deferred(at(60)), verdict(Fate::Delivered, &accepted), failed()];
        let group: Vec<_> = rows.into_iter().zip(verdicts).map(|(row, verdict)| settlement(row, verdict)).collect();
        let settled: Vec<_> = queue.settle(&group, RETRY).await.unwrap().into_iter().map(|(_, settled)| settled).collect();
        assert!(!detail(&settled[0]).is_empty() && !detail(&settled[2]).is_empty());
        assert_eq!((&settled[1], &settled[3]), (&Settled::Done, &Settled::Done));
        assert_eq!((place.state(mids[1]).await.as_str(), place.state(mids[3]).await.as_str()), ("deferred", "failed"));
    }

    async fn a_row_that_is_not_deleted_is_never_sent_again_whatever_is_done_to_it(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        guard(&place, false).await;
        for settled in deliver(&place, &queue).await {
            assert!(detail(&settled).contains(WORDS), "{settled:?}");
        }
        let operator = place.dispatcher("");
        for action in [Action::Retry, Action::Release, Action::Hold, Action::Release, Action::Delete, Action::Retry] {
            let filter = Filter { reason: Some(Reason::NotDeleted), ..Filter::default() };
            let rows = operator.select(&operator.list(&filter, i64::MIN, 10).await.unwrap()).await.unwrap();
            assert_eq!(rows.len(), 2, "{action:?}");
            for (mid, outcome) in operator.apply(&action, &rows, at(5)).await.unwrap() {
                match (&action, &outcome) {
                    (Action::Hold, Outcome::Done) => {}
                    (_, Outcome::Rejected(why)) => assert!(why.contains(WORDS) && why.contains("it is delivered"), "{why}"),
                    _ => panic!("{action:?} {mid}: {outcome:?}"),
                }
                let listed = assert_set_aside(&place, mid, WORDS).await;
                assert_eq!(listed.next_attempt, Some(RETRY.next), "an operator's try does not put the next one off");
            }
            assert_nothing_to_send(&place).await;
        }
        unguard(&place).await;
        let outcomes = operator.apply(&Action::Retry, &[mids[0].into()], at(5)).await.unwrap();
        assert_eq!(outcomes, [(mids[0], Outcome::Deleted)]);
        let outcomes = operator.apply(&Action::Release, &[mids[1].into()], at(5)).await.unwrap();
        assert_eq!(outcomes, [(mids[1], Outcome::Deleted)]);
        assert_eq!((place.records().await, place.session().await.number("SELECT COUNT(*) FROM mailqueue_recipient").await), (0, 0));
    }

    async fn a_delete_that_is_due_is_tried_again_and_put_off_again(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        tie(&place, &mids[1..]).await;
        deliver(&place, &queue).await;
        assert!(queue.undeleted(at(59), 10).await.unwrap().is_empty());
        let due = queue.undeleted(at(60), 10).await.unwrap();
        assert_eq!(due.iter().map(|row| row.since).collect::<Vec<_>>(), [RETRY.now; 2]);
        place.session().await.run(&format!("DELETE FROM letter WHERE mid = {}", mids[1])).await.unwrap();
        let retry = DeleteRetry { now: at(60), next: at(180) };
        let rows: Vec<_> = due.into_iter().map(|row| (row, retry)).collect();
        let settled = place.dispatcher("b").delete_again(&rows).await.unwrap();
        assert_eq!((settled[0].0.mid, &settled[0].1), (mids[1], &Settled::Done));
        assert!(matches!(&settled[1].1, Settled::NotDeleted { next_attempt, .. } if *next_attempt == at(180)));
        let listed = assert_set_aside(&place, mids[2], "foreign key").await;
        assert_eq!((listed.next_attempt, listed.history.first_deferred), (Some(at(180)), Some(RETRY.now)));
        assert_eq!(place.records().await, 1);
    }

    async fn a_row_with_other_content_that_a_guard_would_keep_is_a_new_mail(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        guard(&place, false).await;
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        place.session().await.run(&format!("UPDATE {TABLE} SET mbody = 'TmV3' WHERE mid = {}", mids[1])).await.unwrap();
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        let settled = queue.settle(&group, RETRY).await.unwrap();
        assert_eq!(settled[1].1, Settled::RowGone);
        assert!(detail(&settled[0].1).contains(WORDS) && detail(&settled[2].1).contains(WORDS));
        assert_eq!(find(&queue, i64::MIN, 10).await, [mids[1]]);
    }

    async fn a_delete_that_leaves_a_row_alone_is_not_taken_for_a_deletion(place: Place) {
        let mids = place.mails(4).await;
        let queue = place.dispatcher("a");
        if matches!(place.session().await, Session::MariaDb(_)) {
            // No trigger can do it there. A number is written with leading zeros, which is no reason to keep the row.
            let sql = format!("ALTER TABLE {TABLE} MODIFY mid BIGINT(20) UNSIGNED ZEROFILL NOT NULL AUTO_INCREMENT");
            place.session().await.run(&sql).await.unwrap();
            assert_eq!(deliver(&place, &queue).await, vec![Settled::Done; 4]);
            assert_eq!(place.records().await, 0);
            return;
        }
        guard(&place, true).await;
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let mut session = place.session().await;
        session.run(&format!("UPDATE {TABLE} SET mbody = 'TmV3' WHERE mid = {}", mids[2])).await.unwrap();
        let accepted = [recipient("a@example.org", RecipientState::Accepted)];
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, verdict(Fate::Delivered, &accepted))).collect();
        let settled = queue.settle(&group, RETRY).await.unwrap();
        assert_eq!(settled[2].1, Settled::RowGone);
        for at in [0, 1, 3] {
            assert!(detail(&settled[at].1).contains("trigger"), "{settled:?}");
            assert_set_aside(&place, mids[at], "trigger").await;
        }
        assert_eq!(find(&queue, i64::MIN, 10).await, [mids[2]]);
        let outcome = place.dispatcher("").apply(&Action::Delete, &[mids[0].into()], at(5)).await.unwrap().remove(0).1;
        assert!(matches!(&outcome, Outcome::Rejected(why) if why.contains("trigger")), "{outcome:?}");
        assert_set_aside(&place, mids[0], "trigger").await;
    }

    async fn an_operators_delete_that_the_database_refuses_keeps_no_other_row(place: Place) {
        let mids = place.mails(4).await;
        let queue = place.dispatcher("a");
        let mut rows = take_all(&queue).await;
        let waiting = rows.pop().unwrap();
        for row in rows {
            settle(&queue, row, failed()).await;
        }
        queue.settle(&[settlement(waiting, mailqueue::outcome::Verdict::released())], RETRY).await.unwrap();
        tie(&place, &[mids[1], mids[3]]).await;
        let selected: Vec<_> = mids.iter().map(|&mid| mid.into()).collect();
        let outcomes = place.dispatcher("").apply(&Action::Delete, &selected, at(5)).await.unwrap();
        for (mid, outcome) in outcomes {
            match mid == mids[1] || mid == mids[3] {
                true => assert!(matches!(&outcome, Outcome::Rejected(why) if why.to_lowercase().contains("foreign key")), "{outcome:?}"),
                false => assert_eq!(outcome, Outcome::Done),
            }
        }
        assert_eq!((place.state(mids[1]).await.as_str(), place.state(mids[3]).await.as_str()), ("failed", "waiting"));
        untie(&place).await;
        let outcomes = place.dispatcher("").apply(&Action::Delete, &selected, at(5)).await.unwrap();
        assert_eq!(outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Done).count(), 2);
    }

    async fn an_acceptance_that_only_the_ledger_knows_sets_the_row_aside(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        tie(&place, &mids[..1]).await;
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let accepted = [recipient("a@example.org", RecipientState::Accepted)];
        // Another dispatcher has the claim by now.
        place.dispatcher("b").take_over(&"a".to_owned(), 0).await.unwrap();
        for row in &rows {
            let (record, content) = (row.claim.record(), row.fingerprint);
            for _ in 0..2 {
                let replayed = queue.replay(row.claim.id().mid, record, content, &accepted, Some(RETRY)).await.unwrap();
                match row.claim.id().mid == mids[0] {
                    true => assert!(detail(&replayed.unwrap()).to_lowercase().contains("foreign key")),
                    false => assert!(matches!(replayed, Some(Settled::Done) | None)),
                }
            }
        }
        assert_set_aside(&place, mids[0], "foreign key").await;
        // Whatever the other makes of its claim.
        assert!(!send(&place.dispatcher("b"), &rows).await.contains(&true));
        assert_nothing_to_send(&place).await;
    }

    async fn a_constraint_that_is_checked_at_the_end_sets_its_row_aside(place: Place) {
        if matches!(place.session().await, Session::MariaDb(_)) {
            // There is no such constraint.
            return;
        }
        let mids = place.mails(5).await;
        let queue = place.dispatcher("a");
        let sql = format!(
            "CREATE TABLE letter (mid BIGINT NOT NULL REFERENCES {TABLE} (mid) DEFERRABLE INITIALLY DEFERRED); \
             INSERT INTO letter VALUES ({})",
            mids[2]
        );
        place.session().await.run(&sql).await.unwrap();
        let settled = deliver(&place, &queue).await;
        assert!(detail(&settled[2]).to_lowercase().contains("foreign key"));
        assert_eq!(settled.iter().filter(|settled| **settled == Settled::Done).count(), 4);
        assert_set_aside(&place, mids[2], "foreign key").await;
        let outcome = place.dispatcher("").apply(&Action::Release, &[mids[2].into()], at(5)).await.unwrap().remove(0).1;
        assert!(matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
        assert_nothing_to_send(&place).await;
    }

    async fn a_trigger_that_uses_what_is_not_there_sets_its_rows_aside(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        let mut session = place.session().await;
        let sql = match session {
            Session::Postgres(_) => format!(
                "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO no_log VALUES (1); \
                 RETURN OLD; END $$; CREATE TRIGGER log BEFORE DELETE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION log()"
            ),
            Session::Sqlite(_) => {
                format!("CREATE TRIGGER log BEFORE DELETE ON {TABLE} BEGIN INSERT INTO no_log VALUES (1); END")
            }
            Session::MariaDb(_) => format!(
                "CREATE TRIGGER log BEFORE DELETE ON {TABLE} FOR EACH ROW BEGIN INSERT INTO no_log VALUES (1); END"
            ),
        };
        session.run(&sql).await.unwrap();
        for settled in deliver(&place, &queue).await {
            assert!(detail(&settled).contains("no_log"), "{settled:?}");
        }
        assert_set_aside(&place, mids[1], "no_log").await;
    }

    async fn a_table_that_refuses_every_delete_costs_few_statements(place: Place) {
        super::claims::bulk(&place, 768).await;
        let queue = place.dispatcher("a");
        guard(&place, false).await;
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let mut rows = rows.into_iter();
        let mut before = 0;
        for most in [100, 40, 40] {
            let group: Vec<_> = rows.by_ref().take(256).map(|row| settlement(row, delivered())).collect();
            for (_, settled) in queue.settle(&group, RETRY).await.unwrap() {
                assert!(detail(&settled).contains(WORDS), "{settled:?}");
            }
            let tries = match place.session().await {
                Session::Sqlite(_) => 0,
                Session::Postgres(_) => place.session().await.number("SELECT last_value FROM tries").await,
                Session::MariaDb(_) => place.session().await.number("SELECT n FROM tries").await,
            };
            assert!(tries - before <= most, "{} DELETEs for 256 rows", tries - before);
            before = tries;
        }
        assert_eq!(queue.counts(at(0)).await.unwrap().not_deleted, 768);
        assert_nothing_to_send(&place).await;

        // As soon as the database deletes again, all of them go.
        unguard(&place).await;
        let due = queue.undeleted(at(60), 1000).await.unwrap();
        let rows: Vec<_> = due.into_iter().map(|row| (row, RETRY)).collect();
        assert!(queue.delete_again(&rows).await.unwrap().iter().all(|(_, settled)| *settled == Settled::Done));
        assert_eq!(place.records().await, 0);
    }
}

mod myisam {
    use super::*;

    on_each_mysql! {
        async fn a_row_that_an_engine_without_transactions_has_lost_before_a_crash_is_deleted_and_no_more(place: Place) {
            let mids = place.mails(3).await;
            let queue = place.dispatcher("a");
            place.session().await.run(&format!("ALTER TABLE {TABLE} ENGINE = MyISAM")).await.unwrap();
            let rows = take_all(&queue).await;
            send(&queue, &rows).await;
            let content: Vec<_> = rows.iter().map(|row| row.fingerprint).collect();
            drop(rows);
            // The process died between the row's DELETE and the record's.
            place.session().await.run(&format!("DELETE FROM {TABLE} WHERE mid = {}", mids[0])).await.unwrap();
            place.session().await.run(&format!("UPDATE {TABLE} SET mbody = 'TmV3' WHERE mid = {}", mids[1])).await.unwrap();
            let unknown = place.dispatcher("a").recover_own().await.unwrap().unknown;
            let settlement = |(claim, content)| mailqueue::queue::Settlement {
                claim,
                fingerprint: Some(content),
                message_id: None,
                verdict: delivered(),
            };
            let group: Vec<_> = unknown.into_iter().zip(content).map(settlement).collect();
            let settled: Vec<_> = queue.settle(&group, RETRY).await.unwrap().into_iter().map(|(_, settled)| settled).collect();
            assert_eq!(settled, [Settled::Done, Settled::RowGone, Settled::Done]);
            assert_eq!(find(&queue, i64::MIN, 10).await, [mids[1]]);
        }
    }
}
