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

    #[tokio::test]
    async fn a_file_of_somebody_else_keeps_its_journal() {
        let place = Place { database: database::sqlite() };
        std::fs::File::create(place.database.url.path()).unwrap();
        place.dispatcher("").migrate(true).await.unwrap();
        assert_eq!(place.session().await.lines("PRAGMA journal_mode").await, ["delete"]);
    }
}

mod mariadb {
    use super::*;

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
        let settled = queue.settle(rows.into_iter().map(|row| settlement(row, delivered())).collect()).await.unwrap();
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
