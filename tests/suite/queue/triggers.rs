//! Triggers that pass an error of another server on.

use mailqueue::queue::{Queue, Settled};

use super::on_each_database;
use super::place::*;

/// Errors that a trigger passes on from another server: SQLSTATE on PostgreSQL, an error number on MariaDB and MySQL. Said
/// by the server itself, each would mean that it is away or read-only.
const FROM_ANOTHER_SERVER: [(&str, u16); 3] = [("08006", 1290), ("25006", 1792), ("57P01", 1836)];

const WORDS: &str = "the archive is away";

/// Lets a trigger refuse to delete these rows, each with another error. `when`: `BEFORE`, or `AFTER` for one that
/// PostgreSQL calls at COMMIT.
async fn archive(place: &Place, mids: [i64; 3], when: &str) {
    let mut session = place.session().await;
    let errors = mids.into_iter().zip(FROM_ANOTHER_SERVER);
    let sql = match session {
        Session::MariaDb(_) => {
            let signal = |(mid, (_, number))| {
                format!(
                    "IF OLD.mid = {mid} THEN SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{WORDS}'; END IF;"
                )
            };
            let signals: String = errors.map(signal).collect();
            format!("CREATE TRIGGER archive {when} DELETE ON {TABLE} FOR EACH ROW BEGIN {signals} END")
        }
        Session::Postgres(_) => {
            let raise = |(mid, (code, _))| {
                format!("IF OLD.mid = {mid} THEN RAISE EXCEPTION '{WORDS}' USING ERRCODE = '{code}'; END IF;")
            };
            let raises: String = errors.map(raise).collect();
            let (constraint, deferred) = match when {
                "AFTER" => ("CONSTRAINT", "DEFERRABLE INITIALLY DEFERRED"),
                _ => ("", ""),
            };
            format!(
                "CREATE FUNCTION archive() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raises} RETURN OLD; END $$; \
                 CREATE {constraint} TRIGGER archive {when} DELETE ON {TABLE} {deferred} FOR EACH ROW \
                 EXECUTE FUNCTION archive()"
            )
        }
        Session::Sqlite(_) => {
            let [a, b, c] = mids;
            format!(
                "CREATE TRIGGER archive {when} DELETE ON {TABLE} WHEN OLD.mid IN ({a}, {b}, {c}) \
                 BEGIN SELECT RAISE(ABORT, '{WORDS}'); END"
            )
        }
    };
    session.run(&sql).await.unwrap();
}

/// Delivers everything; those of the numbers are set aside.
async fn only_these_are_set_aside(place: &Place, queue: &Queue, mids: [i64; 3]) {
    let rows = take_all(queue).await;
    send(queue, &rows).await;
    let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
    let settled = queue.settle(&group, RETRY).await.unwrap();
    assert_eq!(settled.len(), 12);
    for (id, settled) in settled {
        match settled {
            Settled::NotDeleted { detail, .. } => assert!(mids.contains(&id.mid) && detail == WORDS, "{id}: {detail}"),
            settled => assert!(!mids.contains(&id.mid) && settled == Settled::Done, "{id}: {settled:?}"),
        }
    }
    assert_eq!(place.records().await, 3);
    // The connections are of use as before.
    queue.beat().await.unwrap();
    assert!(find(queue, i64::MIN, 10).await.is_empty());
}

on_each_database! {
    async fn an_error_that_a_trigger_has_from_another_server_keeps_one_row_only(place: Place) {
        let mids = place.mails(12).await;
        let kept = [mids[2], mids[5], mids[9]];
        archive(&place, kept, "BEFORE").await;
        only_these_are_set_aside(&place, &place.dispatcher("a"), kept).await;
    }
}

mod at_commit {
    use super::*;

    mod postgres {
        use super::*;

        #[tokio::test]
        async fn an_error_that_a_trigger_has_from_another_server_keeps_one_row_only() {
            let place = Place::postgres().await;
            let mids = place.mails(12).await;
            let kept = [mids[2], mids[5], mids[9]];
            archive(&place, kept, "AFTER").await;
            only_these_are_set_aside(&place, &place.dispatcher("a"), kept).await;
        }
    }
}
