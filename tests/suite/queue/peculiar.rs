//! What only one database has.

use mailqueue::queue::{Error, Level, Settled};

use super::place::*;
use crate::support::database;

mod sqlite {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_not_there_is_made_by_migrate_only() {
        let database = database::sqlite();
        let place = Place { database };
        let queue = place.dispatcher("a");
        let error = queue.find(0, 1).await.unwrap_err();
        assert!(matches!(error, Error::NotMigrated { .. }) && error.to_string().contains("does not exist"), "{error}");
        assert!(!std::fs::exists(place.database.url.path()).unwrap());
        queue.migrate(true).await.unwrap();
        assert!(find(&queue, 0, 1).await.is_empty());
        assert_eq!(place.session().await.lines("PRAGMA journal_mode").await, ["wal"]);
    }

    /// 100,000 records make a search from the head take long, also on a fast machine.
    #[tokio::test]
    async fn a_head_with_very_many_records_is_not_searched_at_each_look() {
        let place = Place::sqlite().await;
        let mut session = place.session().await;
        let numbers = "WITH RECURSIVE n (mid) AS (SELECT 1 UNION ALL SELECT mid + 1 FROM n WHERE mid < 100000)";
        session.run(&format!("{numbers} INSERT INTO {TABLE} (mid, mto) SELECT mid, 'YQ==' FROM n")).await.unwrap();
        let records = format!(
            "{numbers} INSERT INTO mailqueue_delivery (id, queue_table, mid, state, created) \
             SELECT printf('%032x', mid), '{TABLE}', mid, 'failed', 0 FROM n WHERE mid <> 100000"
        );
        session.run(&records).await.unwrap();
        let queue = place.dispatcher("a");
        let begun = std::time::Instant::now();
        assert_eq!(find(&queue, i64::MIN, 10).await, [100_000]);
        let took = begun.elapsed();
        assert!(took.as_millis() > 100, "{took:?}");
        // A row that comes to the head later is found at the next look there; one at the end is found at once.
        session.run("DELETE FROM mailqueue_delivery WHERE mid = 7").await.unwrap();
        session.run(&format!("INSERT INTO {TABLE} (mid, mto) VALUES (100001, 'YQ==')")).await.unwrap();
        assert_eq!(find(&queue, i64::MIN, 10).await, [100_000, 100_001]);
        assert_eq!(find(&queue, 100_000, 10).await, [100_001]);
        tokio::time::sleep(took * 21).await;
        assert_eq!(find(&queue, i64::MIN, 10).await, [7, 100_000, 100_001]);
        // Where we have dropped a record ourselves, the next look begins at the head.
        session
            .run(&format!("DELETE FROM mailqueue_delivery WHERE mid = 3; DELETE FROM {TABLE} WHERE mid = 9"))
            .await
            .unwrap();
        assert!(queue.sweep().await.unwrap() >= 1);
        assert_eq!(find(&queue, i64::MIN, 2).await, [3, 7]);
    }

    #[tokio::test]
    async fn a_file_of_somebody_else_keeps_its_journal() {
        let place = Place { database: database::sqlite() };
        std::fs::File::create(place.database.url.path()).unwrap();
        place.dispatcher("").migrate(true).await.unwrap();
        assert_eq!(place.session().await.lines("PRAGMA journal_mode").await, ["delete"]);
    }

    #[tokio::test]
    async fn a_file_in_utf_16_fails_the_check() {
        let database = database::sqlite();
        std::fs::File::create(database.url.path()).unwrap();
        Session::on(&database.url).await.run("PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (a)").await.unwrap();
        let findings = Place { database }.dispatcher("").check().await;
        let encoding = findings.iter().find(|finding| finding.what == "encoding").expect("a finding");
        assert!(encoding.level == Level::Failed && encoding.found.contains("encoding = 'UTF-8'"), "{encoding:?}");
    }
}

mod mariadb {
    use super::*;

    #[tokio::test]
    async fn a_login_by_ed25519_is_refused_with_its_name_and_the_remedy() {
        let place = Place::mariadb().await;
        let url = super::super::mysql::login(&place, "VIA ed25519 USING PASSWORD(").await;
        let queue = place.queue_on(url, TABLE, "a");
        let error = queue.find(0, 1).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        let finding = queue.check().await.remove(0);
        assert_eq!((finding.level, finding.what.as_str()), (Level::Failed, "database"));
        for said in ["client_ed25519, which is not supported", "IDENTIFIED VIA mysql_native_password"] {
            assert!(error.to_string().contains(said) && finding.found.contains(said), "{error} {finding:?}");
        }
        assert!(!finding.found.contains("server is up"), "{finding:?}");
    }

    #[tokio::test]
    async fn the_servers_own_defaults_change_nothing() {
        let database = database::odd_mariadb().await;
        let place = Place::on(database).await;
        let mids = place.mails(5).await;
        let queue = place.dispatcher("a");
        queue.beat().await.unwrap();
        let mut rows = take_all(&queue).await;
        assert_eq!(rows.len(), 5);
        assert_eq!(send(&queue, &rows).await, [true; 5]);
        assert_eq!(settle(&queue, rows.remove(0), delivered()).await, Settled::Done);
        assert_eq!(settle(&queue, rows.remove(0), deferred(at(1))).await, Settled::Done);
        assert_eq!(settle(&queue, rows.remove(0), failed()).await, Settled::Done);
        // What was not committed dies with the connections.
        drop(queue);
        let states = async |place: &Place| {
            let listed = place.dispatcher("").list(&Default::default(), 0, 10).await.unwrap();
            listed.iter().map(|row| format!("{} {}", row.id.mid, row.state)).collect::<Vec<_>>()
        };
        let wanted = ["deferred", "failed", "sending", "sending"];
        let wanted: Vec<_> = mids[1..].iter().zip(wanted).map(|(mid, state)| format!("{mid} {state}")).collect();
        assert_eq!(states(&place).await, wanted);
        assert_eq!(place.dispatcher("a").claim_due(at(2), 10).await.unwrap().len(), 1);
        let findings = place.dispatcher("").check().await;
        assert!(findings.iter().all(|finding| finding.level != Level::Failed), "{findings:#?}");
    }

    #[tokio::test]
    async fn a_table_without_transactions_works_and_is_warned_of() {
        let place = Place::mariadb().await;
        place.session().await.run(&format!("ALTER TABLE {TABLE} ENGINE = MyISAM")).await.unwrap();
        let queue = place.dispatcher("a");
        let findings = queue.check().await;
        let engine = findings.iter().find(|finding| finding.what == "engine").unwrap();
        assert!(engine.level == Level::Warning && engine.found.contains("MyISAM"), "{engine:?}");
        place.mails(3).await;
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let settled = queue
            .settle(&rows.into_iter().map(|row| settlement(row, delivered())).collect::<Vec<_>>(), RETRY)
            .await
            .unwrap();
        assert!(settled.iter().all(|(_, settled)| *settled == Settled::Done));
        assert_eq!(place.records().await, 0);
    }

    #[tokio::test]
    async fn columns_that_cut_mails_are_warned_of() {
        let place = Place::mariadb().await;
        place.session().await.run(&format!("ALTER TABLE {TABLE} MODIFY mto VARCHAR(256)")).await.unwrap();
        let findings = place.dispatcher("a").check().await;
        let sizes = findings.iter().find(|finding| finding.what == "column sizes").unwrap();
        assert!(sizes.level == Level::Warning && sizes.found.contains("mto holds 192 bytes"), "{sizes:?}");
    }
}
