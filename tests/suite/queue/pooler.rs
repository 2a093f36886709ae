//! PostgreSQL by way of PgBouncer, which gives each client, or each transaction of it, a connection of its own pool.

mod pgbouncer {
    use std::collections::BTreeSet;

    use mailqueue::queue::{Error, Level, Settled};

    use crate::queue::place::*;
    use crate::queue::setup::worst;
    use crate::support::database;

    /// All that a daemon does, by several at a time, so that the pooler mixes their transactions.
    async fn several_work_side_by_side(which: &str) {
        let place = Place::on(database::pgbouncer(which).await).await;
        place.mails(60).await;
        let dispatchers = ["a", "b", "c", "d"].map(|name| {
            let queue = place.dispatcher(name);
            tokio::spawn(async move {
                let mut done = Vec::new();
                for round in 0.. {
                    queue.beat().await.unwrap();
                    let found = queue.find(i64::MIN, 8).await.unwrap();
                    let claims = queue.claim(&found, at(round)).await.unwrap();
                    let rows = queue.load(claims).await.unwrap();
                    if found.is_empty() {
                        break;
                    }
                    assert!(send(&queue, &rows).await.iter().all(|ours| *ours));
                    for row in rows {
                        done.push(row.claim.id().mid);
                        assert_eq!(settle(&queue, row, delivered()).await, Settled::Done);
                    }
                }
                done
            })
        });
        let mut done = Vec::new();
        for dispatcher in dispatchers {
            done.extend(dispatcher.await.unwrap());
        }
        assert_eq!((done.len(), done.iter().collect::<BTreeSet<_>>().len()), (60, 60), "each mail once");
        assert_eq!(place.records().await, 0);

        let findings = place.dispatcher("").check().await;
        let pooler = findings.iter().find(|finding| finding.what == "pooler").expect("a finding");
        assert!(pooler.level == Level::Ok && pooler.found.contains("a direct connection is faster"), "{pooler:?}");
        assert!(findings.iter().all(|finding| finding.level != Level::Failed), "{findings:#?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn several_work_side_by_side_where_sessions_are_pooled() {
        several_work_side_by_side("session").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn several_work_side_by_side_where_transactions_are_pooled() {
        several_work_side_by_side("transaction").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn several_work_side_by_side_where_unknown_startup_parameters_are_dropped() {
        several_work_side_by_side("lenient").await;
    }

    #[tokio::test]
    async fn nothing_is_left_on_the_connections_that_others_use_next() {
        let place = Place::on(database::pgbouncer("lenient").await).await;
        place.mails(3).await;
        let queue = place.dispatcher("a");
        for row in take_all(&queue).await {
            settle(&queue, row, delivered()).await;
        }
        // A producer by way of the same pooler.
        let mut other = Session::on(&place.database.url).await;
        let settings = "SELECT current_setting('lock_timeout'), current_setting('plan_cache_mode'), \
                        current_setting('idle_in_transaction_session_timeout'), \
                        (SELECT COUNT(*) FROM pg_prepared_statements)::text, \
                        (SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory')::text";
        assert_eq!(other.lines(settings).await, ["0 auto 0 0 0"]);
    }

    #[tokio::test]
    async fn statement_pooling_is_refused_with_the_remedy() {
        let mut database = database::pgbouncer("transaction").await;
        database = Place::on(database).await.database;
        let statement = database::pgbouncer("statement").await;
        database.url.set_port(statement.url.port()).unwrap();
        let place = Place { database };
        let error = place.dispatcher("a").find(0, 1).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("set `pool_mode` to session or transaction"), "{error}");
        assert_eq!(worst(&place.dispatcher("")).await.0, Level::Failed);
    }
}

mod postgres {
    use mailqueue::queue::Queue;

    use crate::queue::place::*;

    /// Returns true if `check` finds a pooler.
    async fn pooler(queue: &Queue) -> bool {
        queue.check().await.iter().any(|finding| finding.what == "pooler")
    }

    #[tokio::test]
    async fn a_server_is_taken_for_no_pooler_whatever_options_the_url_has() {
        let place = Place::postgres().await;
        assert!(!pooler(&place.dispatcher("")).await);
        let mut url = place.database.url.clone();
        url.set_query(Some("options=-c%20work_mem%3D8MB&application_name=mailqueue"));
        assert!(!pooler(&place.queue_on(url, TABLE, "a")).await);
    }
}
