//! Connections: how many there are, which of them are kept free, and when they are closed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mailqueue::queue::{Error, Limits, Pools};

use super::on_each_server;
use super::place::*;
use crate::support::DEADLINE;
use crate::support::proxy::Proxy;

/// The connections to one server that queues have together, as README says.
const MOST: usize = 16;

/// Connections that have said goodbye, and that a busy server still counts.
const ENDING: usize = 4;

on_each_server! {
    async fn sixty_queues_of_one_server_use_a_fixed_number_of_connections(place: Place) {
        // A third in each database: connections go from one database to another.
        let others = [Place::on(place.another().await).await, Place::on(place.another().await).await];
        let places = [&place, &others[0], &others[1]];
        let pools = Pools::default();
        let mut queues = Vec::new();
        for (number, place) in places.into_iter().cycle().take(60).enumerate() {
            let table = format!("queue_{number}");
            let mut session = place.session().await;
            session.run(&place.copy_of_table(&table)).await.unwrap();
            session.run(&format!("INSERT INTO {table} (mid, mto) VALUES (1, 'YUBiLmM=')")).await.unwrap();
            queues.push(place.sharing(&pools, place.database.url.clone(), &table, "a"));
        }
        let mut session = place.session().await;
        while open(&mut session, &places).await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let work = queues.iter().cloned().map(|queue| {
            tokio::spawn(async move {
                queue.beat().await.unwrap();
                queue.paused().await.unwrap();
                for row in take_all(&queue).await {
                    send(&queue, std::slice::from_ref(&row)).await;
                    settle(&queue, row, delivered()).await;
                }
                queue.counts(at(0)).await.unwrap().waiting
            })
        });
        let work: Vec<_> = work.collect();
        let mut peak = 0;
        while !work.iter().all(|work| work.is_finished()) {
            peak = peak.max(open(&mut session, &places).await);
        }
        for work in work {
            assert_eq!(work.await.unwrap(), 0);
        }
        println!("at most {peak}");
        assert!((2..=MOST + ENDING).contains(&peak), "{peak} connections");
    }

    async fn a_locked_table_takes_neither_the_connections_of_other_queues_nor_those_of_heartbeats(place: Place) {
        let other = "other_queue";
        place.session().await.run(&place.copy_of_table(other)).await.unwrap();
        place.session().await.run(&format!("INSERT INTO {other} (mid, mto) VALUES (1, 'YUBiLmM=')")).await.unwrap();
        let pools = Pools::default();
        let [locked, free] = [TABLE, other].map(|table| place.sharing(&pools, place.database.url.clone(), table, "a"));
        find(&locked, 0, 1).await;
        find(&free, 0, 1).await;
        let mut foreign = place.session().await;
        let (lock, unlock) = match foreign {
            Session::MariaDb(_) => (format!("LOCK TABLES {TABLE} WRITE"), "UNLOCK TABLES"),
            _ => (format!("BEGIN; LOCK TABLE {TABLE}"), "COMMIT"),
        };
        foreign.run(&lock).await.unwrap();
        // As many as all connections that there are.
        let stuck: Vec<_> = (0..MOST).map(|_| locked.clone()).map(|queue| tokio::spawn(async move { drop(queue.find(0, 1).await) })).collect();
        let waiting = Instant::now();
        let mut session = place.session().await;
        while waiters(&mut session, &place).await < 2 {
            assert!(waiting.elapsed() < DEADLINE, "nothing waits for the lock");
        }
        let begun = Instant::now();
        for _ in 0..3 {
            locked.beat().await.unwrap();
            locked.paused().await.unwrap();
            free.beat().await.unwrap();
        }
        let row = take_all(&free).await.remove(0);
        send(&free, std::slice::from_ref(&row)).await;
        settle(&free, row, delivered()).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(waiters(&mut session, &place).await > 0, "the table is still locked");
        foreign.run(unlock).await.unwrap();
        for stuck in stuck {
            stuck.await.unwrap();
        }
    }

    async fn a_database_whose_tables_are_locked_delays_no_heartbeat_of_another_one(place: Place) {
        let other = Place::on(place.another().await).await;
        let (as_user, _) = place.account(&[], true).await;
        let pools = Pools::default();
        let free = other.sharing(&pools, other.database.url.clone(), TABLE, "a");
        free.beat().await.unwrap();
        free.paused().await.unwrap();
        let mut foreign = place.session().await;
        let (lock, unlock) = match foreign {
            Session::MariaDb(_) => ("LOCK TABLES mailqueue_dispatcher WRITE", "UNLOCK TABLES"),
            _ => ("BEGIN; LOCK TABLE mailqueue_dispatcher", "COMMIT"),
        };
        foreign.run(lock).await.unwrap();
        let mut stuck = Vec::new();
        for url in [place.database.url.clone(), as_user].iter().cycle().take(6) {
            let locked = place.sharing(&pools, url.clone(), TABLE, "a");
            stuck.push(tokio::spawn(async move { drop(tokio::join!(locked.beat(), locked.paused())) }));
        }
        let mut session = place.session().await;
        let waiting = Instant::now();
        while waiters(&mut session, &place).await < 2 {
            assert!(waiting.elapsed() < DEADLINE, "nothing waits for the lock");
        }
        let begun = Instant::now();
        for _ in 0..3 {
            free.beat().await.unwrap();
            free.paused().await.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(waiters(&mut session, &place).await > 0, "the table is still locked");
        foreign.run(unlock).await.unwrap();
        for stuck in stuck {
            stuck.await.unwrap();
        }
    }

    async fn a_heartbeat_that_waits_for_a_lock_delays_no_pause_flag(place: Place) {
        let pools = Pools::default();
        let queues = [TABLE; 4].map(|table| place.sharing(&pools, place.database.url.clone(), table, "a"));
        queues[0].beat().await.unwrap();
        queues[0].paused().await.unwrap();
        let mut foreign = place.session().await;
        foreign.run("BEGIN").await.unwrap();
        foreign.run("UPDATE mailqueue_dispatcher SET heartbeat = heartbeat + 1").await.unwrap();
        let stuck = queues.clone().map(|queue| tokio::spawn(async move { drop(queue.beat().await) }));
        let mut session = place.session().await;
        let waiting = Instant::now();
        while row_waiters(&mut session, &place).await == 0 {
            assert!(waiting.elapsed() < DEADLINE, "nothing waits for the lock");
        }
        let begun = Instant::now();
        for queue in &queues {
            queue.paused().await.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(row_waiters(&mut session, &place).await > 0, "the row is still locked");
        foreign.run("COMMIT").await.unwrap();
        for stuck in stuck {
            stuck.await.unwrap();
        }
    }

    async fn of_connections_that_died_without_a_word_only_one_is_waited_for(place: Place) {
        let link = Proxy::to(&place.database.url).await;
        let mut url = place.database.url.clone();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(link.port())).unwrap();
        let queue = place.queue_on(url, TABLE, "a");
        find(&queue, 0, 1).await;
        futures_util::future::join_all((0..6).map(|_| find(&queue, 0, 1))).await;
        let open = connections(&mut place.session().await, &place).await.len();
        assert!(open >= 4, "{open} connections");
        // One that was used just now would not be asked whether it is there.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        link.forget();
        let begun = Instant::now();
        find(&queue, 0, 1).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    }

    async fn a_right_that_is_granted_later_is_seen_and_refusals_do_not_reconnect_all_the_time(place: Place) {
        let (url, user) = place.account(&[], true).await;
        let queue = place.queue_on(url, TABLE, "a");
        place.mails(1).await;
        let mut session = place.session().await;
        let (mut refusals, mut ids) = (0, BTreeSet::new());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            let error = queue.find(i64::MIN, 1).await.unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            refusals += 1;
            ids.extend(connections_of(&mut session, &user).await);
        }
        assert!(refusals > 5 && ids.len() <= 2, "{} connections for {refusals} refusals", ids.len());
        // A right on the whole database is looked up when a connection is opened, on MariaDB and MySQL.
        let name = place.database.url.path().trim_start_matches('/');
        let grant = match session {
            Session::MariaDb(_) => format!("GRANT SELECT, DELETE ON {name}.* TO '{user}'@'%'"),
            _ => format!("GRANT SELECT, DELETE ON {TABLE} TO {user}"),
        };
        session.run(&grant).await.unwrap();
        while queue.find(i64::MIN, 1).await.is_err() {
            assert!(begun.elapsed() < DEADLINE, "the new right is not seen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn a_connection_that_is_too_old_is_closed(place: Place) {
        let pools = Pools::new(Limits { age: Duration::from_millis(300), ..Limits::default() });
        let queue = place.sharing(&pools, place.database.url.clone(), TABLE, "a");
        let mut session = place.session().await;
        let mut ids = BTreeSet::new();
        let begun = Instant::now();
        while ids.len() < 3 {
            queue.paused().await.unwrap();
            let open = connections(&mut session, &place).await;
            // One says goodbye while the next is open.
            assert!(open.len() <= 2, "{open:?}");
            ids.extend(open);
            assert!(begun.elapsed() < DEADLINE, "still {ids:?}");
        }
        assert!(begun.elapsed() > Duration::from_millis(400), "three within {:?}", begun.elapsed());
    }
}

mod read_only {
    use super::*;
    use crate::support::database;

    /// `on` and `off` concern connections that are opened afterwards, as a fail-over does.
    async fn is_seen_when_it_ends(place: Place, url: url::Url, [on, off]: [String; 2]) {
        let mut session = place.session().await;
        session.run(&on).await.unwrap();
        let queue = place.queue_on(url, TABLE, "a");
        for _ in 0..2 {
            let error = queue.beat().await.unwrap_err();
            assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
            let said = error.to_string().to_lowercase();
            assert!(said.contains("read-only") || said.contains("read only"), "{error}");
        }
        assert!(find(&queue, 0, 1).await.is_empty(), "it can be read");
        session.run(&off).await.unwrap();
        queue.beat().await.unwrap();
    }

    mod mariadb {
        use super::*;

        #[tokio::test]
        async fn a_server_that_is_read_only_for_a_while_is_written_again() {
            let place = Place::on(database::odd_mariadb().await).await;
            let (url, _) = place.account(&["SELECT, DELETE ON mail_queue"], true).await;
            let on = "SET GLOBAL init_connect = 'SET SESSION tx_read_only = 1'".to_owned();
            is_seen_when_it_ends(place, url, [on, "SET GLOBAL init_connect = ''".to_owned()]).await;
        }
    }

    mod postgres {
        use super::*;

        #[tokio::test]
        async fn a_server_that_is_read_only_for_a_while_is_written_again() {
            let place = Place::postgres().await;
            let url = place.database.url.clone();
            let name = url.path().trim_start_matches('/').to_owned();
            let change =
                ["on", "off"].map(|value| format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}"));
            // This session began before.
            is_seen_when_it_ends(place, url, change).await;
        }
    }
}

/// The number of connections into the databases of these places.
async fn open(session: &mut Session, places: &[&Place]) -> usize {
    let mut open = 0;
    for place in places {
        open += connections(session, place).await.len();
    }
    open
}

/// The connections into the database of a place, but for those of the test itself.
async fn connections(session: &mut Session, place: &Place) -> Vec<String> {
    let name = place.database.url.path().trim_start_matches('/');
    let sql = match session {
        Session::MariaDb(_) => {
            let all = session.processes().await;
            format!("SELECT CAST(p.id AS CHAR) FROM {all} p WHERE p.db = '{name}' AND p.id <> CONNECTION_ID()")
        }
        // Autovacuum works in a database too.
        _ => format!(
            "SELECT pid::text FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend' \
             AND pid <> pg_backend_pid()"
        ),
    };
    session.lines(&sql).await
}

/// The connections of a user.
async fn connections_of(session: &mut Session, user: &str) -> Vec<String> {
    let sql = match session {
        Session::MariaDb(_) => {
            let all = session.processes().await;
            format!("SELECT CAST(p.id AS CHAR) FROM {all} p WHERE p.user = '{user}'")
        }
        _ => format!("SELECT pid::text FROM pg_stat_activity WHERE usename = '{user}'"),
    };
    session.lines(&sql).await
}

/// The number of connections that wait for a lock on the producers' table.
async fn waiters(session: &mut Session, place: &Place) -> i64 {
    let name = place.database.url.path().trim_start_matches('/');
    let sql = match session {
        Session::MariaDb(_) => {
            let all = session.processes().await;
            let waits = "p.state LIKE 'Waiting for table metadata lock%'";
            format!("SELECT COUNT(*) FROM {all} p WHERE p.db = '{name}' AND {waits}")
        }
        _ => format!("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'"),
    };
    session.number(&sql).await
}

/// The number of connections that wait for a lock on a row.
async fn row_waiters(session: &mut Session, place: &Place) -> i64 {
    if !matches!(session, Session::MariaDb(_)) {
        return waiters(session, place).await;
    }
    let (all, name) = (session.processes().await, place.database.url.path().trim_start_matches('/'));
    let sql = format!(
        "SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN {all} p ON p.id = t.trx_mysql_thread_id \
         WHERE p.db = '{name}' AND t.trx_state = 'LOCK WAIT'"
    );
    session.number(&sql).await
}

impl Place {
    /// A further database on the same server.
    async fn another(&self) -> crate::support::database::TestDatabase {
        crate::support::database::beside(&self.database).await
    }

    fn copy_of_table(&self, name: &str) -> String {
        match self.database.url.scheme() {
            "mysql" => format!("CREATE TABLE {name} LIKE {TABLE}"),
            _ => format!("CREATE TABLE {name} (LIKE {TABLE} INCLUDING ALL)"),
        }
    }
}
