//! Our tables, and what `check` says of a database.

use std::sync::Arc;

use mailqueue::queue::{Database, Error, Level, Queue, Settings};

use super::on_each_database;
use super::place::*;

on_each_database! {
    async fn migrating_twice_and_for_two_queues_at_once_is_harmless(place: Place) {
        let urls = [TABLE, "adm_mail_queue", "adm_mail_queue", TABLE];
        let queues = urls.map(|table| place.queue_on(place.database.url.clone(), table, ""));
        let migrations = queues.iter().map(|queue| queue.migrate(true));
        for told in futures_util::future::join_all(migrations).await {
            assert!(!told.unwrap().is_empty());
        }
        for queue in &queues {
            queue.insert(&mail(0)).await.unwrap();
        }
        assert_eq!(find(&queues[0], i64::MIN, 10).await.len(), 2);
        assert_eq!(find(&queues[1], i64::MIN, 10).await.len(), 2);
    }

    async fn a_first_migration_by_several_at_once_succeeds(place: Place) {
        let mut session = place.session().await;
        for table in ["mailqueue_delivery", "mailqueue_recipient", "mailqueue_dispatcher", "mailqueue_migrations"] {
            session.run(&format!("DROP TABLE {table}")).await.unwrap();
        }
        let queue = place.dispatcher("");
        let error = queue.paused().await.unwrap_err();
        assert!(matches!(error, Error::NotMigrated { .. }), "{error}");
        assert!(error.to_string().ends_with("run `mailqueue migrate`"), "{error}");
        let queues: Vec<_> = (0..4).map(|_| place.dispatcher("")).collect();
        for told in futures_util::future::join_all(queues.iter().map(|queue| queue.migrate(false))).await {
            told.unwrap();
        }
        queue.paused().await.unwrap();
    }

    async fn a_migration_that_was_stopped_half_way_can_be_taken_up(place: Place) {
        let mut session = place.session().await;
        session.run("DROP TABLE mailqueue_recipient").await.unwrap();
        session.run("UPDATE mailqueue_migrations SET success = FALSE").await.unwrap();
        place.dispatcher("").migrate(false).await.unwrap();
        assert_eq!(session.number("SELECT COUNT(*) FROM mailqueue_recipient").await, 0);
    }

    async fn a_sound_database_passes_the_check(place: Place) {
        let findings = place.dispatcher("").check().await;
        assert!(findings.iter().all(|finding| finding.level < Level::Failed), "{findings:#?}");
        for what in ["database", "table", "our tables", "rights", "numbers", "column sizes"] {
            assert!(findings.iter().any(|finding| finding.what == what), "{what}: {findings:#?}");
        }
    }

    async fn the_check_names_what_is_missing(place: Place) {
        let gone = place.queue_on(place.database.url.clone(), "no_such_table", "");
        assert_eq!(worst(&gone).await, (Level::Failed, "table".to_owned()));
        place.session().await.run("CREATE TABLE twice (mid INTEGER, mto TEXT, msubject TEXT, mbody TEXT, mheaders TEXT)").await.unwrap();
        let twice = place.queue_on(place.database.url.clone(), "twice", "");
        assert_eq!(worst(&twice).await, (Level::Failed, "numbers".to_owned()));
        place.session().await.run("DROP TABLE mailqueue_recipient").await.unwrap();
        assert_eq!(worst(&place.dispatcher("")).await, (Level::Failed, "our tables".to_owned()));
    }

    async fn a_table_name_that_is_none_is_refused(place: Place) {
        for table in ["a b", "a;--", "", "a.b.c", "ä", "a`", "a\""] {
            let database = Database { url: place.database.url.clone(), password: None };
            let settings = Settings { name: Arc::from("x"), database, table: table.to_owned(), max_size: MAX_SIZE };
            assert!(Queue::new(settings, String::new()).is_err(), "{table}");
        }
    }
}

pub async fn worst(queue: &Queue) -> (Level, String) {
    let findings = queue.check().await;
    let worst = findings.into_iter().max_by_key(|finding| finding.level).unwrap();
    (worst.level, worst.what)
}
