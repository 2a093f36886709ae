//! No loop reads a table from end to end: what each operation reads is bounded by what it was asked for, however many rows
//! wait and however many records there are. The databases count what they read; SQLite says what it is going to read.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use mailqueue::outcome::State;
use mailqueue::queue::{Filter, Queue};

use super::on_each_server;
use super::place::*;
use crate::support::{DEADLINE, long};

/// What the databases have read since they were asked last.
#[derive(Clone, Copy, Debug)]
struct Reads {
    rows: i64,
    records: i64,
    /// MySQL counts each step of a cursor, also one that finds the end.
    counts_steps: bool,
}

/// How many rows wait. Behind them are as many again that are held, and as many that are deferred.
fn many() -> i64 {
    if long() { 1_000_000 } else { 100_000 }
}

/// What one batch is about.
const BATCH: usize = 256;

on_each_server! {
    async fn no_operation_of_a_loop_reads_more_than_it_was_asked_for(place: Place) {
        fill(&place, many()).await;
        let mut counter = Counter::on(&place).await;
        // Statistics are as old as a bulk INSERT leaves them, then fresh.
        walk(&place, &mut counter, false).await;
        place.session().await.run(counter.analyze()).await.unwrap();
        walk(&place, &mut counter, true).await;
    }

    async fn very_many_records_at_the_head_are_not_looked_through_all_the_time(place: Place) {
        let records = 2 * many();
        fill(&place, many()).await;
        place.session().await.run(&format!("DELETE FROM {TABLE} WHERE mid <= {}", many())).await.unwrap();
        let mut counter = Counter::on(&place).await;
        let new = format!("INSERT INTO {TABLE} (mid, mto) VALUES ({}, 'bWVtYmVy')", 4 * many());
        let mut took = Duration::ZERO;
        let reads = counter.reads(&place, async |queue| {
            let begun = Instant::now();
            assert!(find(&queue, i64::MIN, 256).await.is_empty());
            took = begun.elapsed();
            for _ in 0..5 {
                assert!(find(&queue, i64::MIN, 256).await.is_empty());
            }
            place.session().await.run(&new).await.unwrap();
            assert_eq!(find(&queue, i64::MIN, 256).await, [4 * many()]);
        });
        let reads = reads.await;
        // Once, and what is new, on a machine that needs a tenth of a second for that; a quick one looks again each time.
        let looks = if took > Duration::from_millis(200) { 3 } else { 7 };
        // PostgreSQL steps over what is gone.
        reads.within("find", looks * records + many() + 100, looks * records + 10);
    }

    async fn an_idle_table_costs_a_poll_nothing(place: Place) {
        let mut counter = Counter::on(&place).await;
        let reads = counter.reads(&place, async |queue| {
            assert!(find(&queue, i64::MIN, 256).await.is_empty());
            assert!(queue.claim_due(at(0), 128).await.unwrap().is_empty());
            assert_eq!(queue.next_due().await.unwrap(), None);
        });
        let reads = reads.await;
        reads.within("an idle table", 1, 1);
    }
}

/// Everything that the dispatcher does in its loops, and pages of what operators look at.
async fn walk(place: &Place, counter: &mut Counter, analyzed: bool) {
    let batch = BATCH as i64;
    let records = 2 * many();
    let mut found = Vec::new();
    let reads = counter.reads(place, async |queue| found = find(&queue, i64::MIN, BATCH as u32).await).await;
    // PostgreSQL steps over what is gone, here and below, until it is vacuumed.
    reads.within("find", 4 * batch, 4 * batch);
    let behind = many() / 2;
    let reads = counter.reads(place, async |queue| drop(find(&queue, behind, BATCH as u32).await)).await;
    // The numbers, then how long each row is.
    reads.within("find behind a cursor", 2 * batch + 10, 2 * batch + 10);

    // Claims are in somebody's hands: one connection from claim to settlement.
    let reads = counter.reads(place, async |queue| {
        let claims = claim(&queue, &found, at(0)).await.unwrap();
        let rows = queue.load(claims).await.unwrap();
        assert!(send(&queue, &rows).await.into_iter().all(|ours| ours));
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
        assert_eq!(queue.settle(&group, RETRY).await.unwrap().len(), BATCH);
    });
    // The content, and the row as it is deleted.
    reads.await.within("claim, load and settle", 2 * batch + 2, 12 * batch);

    let reads = counter.reads(place, async |queue| {
        let claims = queue.claim_due(Timestamp::now(), 128).await.unwrap();
        assert_eq!(claims.len(), 128);
        let rows = queue.load(claims).await.unwrap();
        let group: Vec<_> = rows.into_iter().map(|row| settlement(row, deferred(Timestamp::now()))).collect();
        queue.settle(&group, RETRY).await.unwrap();
    });
    reads.await.within("due, and put off again", 2 * 128 + 10, 12 * 128);

    let reads = counter.reads(place, async |queue| assert!(queue.next_due().await.unwrap().is_some())).await;
    reads.within("when is the next due", 0, 12 * batch);
    let reads = counter.reads(place, async |queue| {
        queue.beat().await.unwrap();
        queue.paused().await.unwrap();
        queue.recover_own().await.unwrap();
        queue.others().await.unwrap();
    });
    reads.await.within("heartbeat, stop flag, other dispatchers", 0, 12 * batch);

    let page = |states: &[State]| Filter { states: states.to_vec(), ..Filter::default() };
    // Without statistics PostgreSQL takes it that hardly anything is held, and sorts all that is.
    let held = if analyzed { 102 } else { many() };
    for (what, filter, most) in [("list", page(&[]), 102), ("list --state held", page(&[State::Held]), held)] {
        let reads = counter.reads(place, async |queue| {
            assert_eq!(queue.list(&filter, behind, 100).await.unwrap().len(), 100);
        });
        reads.await.within(what, most, most);
    }
    let reads = counter.reads(place, async |queue| {
        assert!(queue.counts(at(0)).await.unwrap().waiting_is_estimate);
    });
    // Records are counted, waiting rows to 10,000; PostgreSQL may have several go ahead.
    reads.await.within("status", 4 * 10_002, 3 * records);

    let reads = counter.reads(place, async |queue| assert_eq!(queue.sweep().await.unwrap(), 0)).await;
    // Each walk goes through the records once at most, and looks for their rows by number. Without statistics PostgreSQL
    // sorts the records for each part of it.
    reads.within("sweep", 2 * records + 2, if analyzed { 3 * records + 12 * batch } else { 100 * records });
}

impl Reads {
    fn within(self, what: &str, rows: i64, records: i64) {
        let [rows, records] = [rows, records].map(|most| if self.counts_steps { 2 * most + 4 } else { most });
        println!("{what}: {self:?}");
        assert!(self.rows <= rows, "{what} reads {} rows, not {rows}", self.rows);
        assert!(self.records <= records, "{what} reads {} records, not {records}", self.records);
    }
}

/// A session that asks the database what others have read.
struct Counter {
    session: Session,
    is_mariadb: bool,
}

impl Counter {
    async fn on(place: &Place) -> Self {
        let mut session = place.session().await;
        let mut is_mariadb = false;
        if let Session::MariaDb(_) = session {
            is_mariadb = session.number("SELECT VERSION() LIKE '%MariaDB%'").await == 1;
        }
        if is_mariadb {
            session.run("SET GLOBAL userstat = ON").await.unwrap();
        }
        Self { session, is_mariadb }
    }

    fn analyze(&self) -> &'static str {
        match self.session {
            Session::MariaDb(_) => "ANALYZE TABLE mail_queue, mailqueue_delivery",
            _ => "ANALYZE",
        }
    }

    /// What a dispatcher of its own reads for this, but for its first look at the schema.
    async fn reads(&mut self, place: &Place, operation: impl AsyncFnOnce(Queue)) -> Reads {
        let before = self.now().await;
        let queue = place.dispatcher("a");
        operation(queue).await;
        let after = self.now().await;
        Reads { rows: after.rows - before.rows, records: after.records - before.records, ..after }
    }

    async fn now(&mut self) -> Reads {
        let of = |table: &str| match self.session {
            Session::MariaDb(_) if !self.is_mariadb => format!(
                "SELECT CAST(COALESCE(SUM(COUNT_FETCH), 0) AS SIGNED) \
                 FROM performance_schema.table_io_waits_summary_by_table \
                 WHERE OBJECT_SCHEMA = DATABASE() AND OBJECT_NAME = '{table}'"
            ),
            Session::MariaDb(_) => format!(
                "SELECT CAST(COALESCE(SUM(ROWS_READ), 0) AS SIGNED) FROM information_schema.TABLE_STATISTICS \
                 WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{table}'"
            ),
            // What an index answers alone counts too.
            _ => format!(
                "SELECT (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = '{table}')::bigint + \
                 (SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = '{table}')::bigint"
            ),
        };
        let (rows, records) = (of("mail_queue"), of("mailqueue_delivery"));
        if let Session::Postgres(_) = self.session {
            // A backend hands its counts over when it ends.
            let others = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() \
                          AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
            let deadline = tokio::time::Instant::now() + DEADLINE;
            while self.session.number(others).await > 0 {
                assert!(tokio::time::Instant::now() < deadline, "a connection stays open");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let counts_steps = matches!(self.session, Session::MariaDb(_)) && !self.is_mariadb;
        Reads { rows: self.session.number(&rows).await, records: self.session.number(&records).await, counts_steps }
    }
}

/// Numbers 1 to n wait; the next n are held, the next n deferred and due.
async fn fill(place: &Place, n: i64) {
    let mut session = place.session().await;
    if let Session::Postgres(_) = session {
        // The statistics are the test's to make, at the moment that it means.
        for table in ["mail_queue", "mailqueue_delivery"] {
            session.run(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)")).await.unwrap();
        }
    }
    let (all, numbers, id) = match session {
        Session::MariaDb(_) => {
            session.run("CREATE TABLE numbers (seq BIGINT PRIMARY KEY) AS SELECT 1 AS seq").await.unwrap();
            while session.number("SELECT MAX(seq) FROM numbers").await < 3 * n {
                let more = "INSERT INTO numbers SELECT n.seq + m.seq FROM numbers n JOIN (SELECT MAX(seq) AS seq FROM numbers) m";
                session.run(more).await.unwrap();
            }
            ("seq", format!("(SELECT seq FROM numbers WHERE seq <= {}) AS numbers", 3 * n), "LEFT(SHA2(seq, 256), 32)")
        }
        _ => ("seq", format!("generate_series(1, {}) AS seq", 3 * n), "md5(seq::text)"),
    };
    let rows = format!("INSERT INTO {TABLE} (mid, mto, mbody) SELECT {all}, 'bWVtYmVy', 'SGVsbG8=' FROM {numbers}");
    session.run(&rows).await.unwrap();
    let records = format!(
        "INSERT INTO mailqueue_delivery (id, queue_table, mid, state, reason, created, next_attempt) \
         SELECT {id}, '{TABLE}', seq, CASE WHEN seq <= {held} THEN 'held' ELSE 'deferred' END, 'operator', seq, \
         CASE WHEN seq > {held} THEN seq END FROM {numbers} WHERE seq > {n}",
        held = 2 * n
    );
    session.run(&records).await.unwrap();
}

mod sqlite {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use crate::support::catcher::{Catcher, Step};
    use crate::support::database;
    use crate::support::house::{House, mail, said};
    use crate::support::session::Session;

    /// The program's own log says which statements it sends, and SQLite how it goes about each. It has no other means:
    /// its plans do not depend on how many rows there are.
    #[tokio::test]
    async fn no_statement_of_a_loop_goes_through_a_table() {
        let catcher = Catcher::with_script(|step| match step {
            Step::Rcpt { recipient } if recipient.starts_with("deferred") => Some("450 4.2.1 Not now".to_owned()),
            Step::Rcpt { recipient } if recipient.starts_with("refused") => Some("550 5.1.1 Nobody".to_owned()),
            _ => None,
        });
        let catcher = catcher.await;
        let house = House::build(database::sqlite(), catcher.port(), "", "").await;
        for local in ["a", "deferred", "refused", "b", "c"] {
            house.newsletter.insert(&mail(&format!("{local}@example.org"), "x")).await.unwrap();
        }
        let mut statements = BTreeSet::new();
        let mut session = Session::on(&house.database.url).await;
        for command in [&["once"][..], &["once"], &["list"], &["list", "--state", "deferred"]] {
            let logged = [&["--log-level", "warn,sqlx::query=trace"], command].concat();
            statements.extend(sent(&said(&house.run(&logged).await)));
            // The second pass has something that is due.
            session.run("UPDATE mailqueue_delivery SET next_attempt = 1 WHERE state = 'deferred'").await.unwrap();
        }
        for word in ["SELECT CAST(q.mid", "INSERT INTO mailqueue_delivery", "next_attempt <= ?", "DELETE FROM"] {
            assert!(statements.iter().any(|sql| sql.contains(word)), "{word} is not among {statements:#?}");
        }
        let mut connection = house.connect().await;
        let mut plans = 0;
        for sql in &statements {
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain)
                .fetch_all(&mut connection)
                .await
                .unwrap_or_else(|error| panic!("{sql}: {error}"));
            for (.., step) in plan {
                plans += 1;
                // Lists of values, and what a part of the statement has found, are gone through too.
                let table = ["q", "d", "mail_queue", "adm_mail_queue", "mailqueue_delivery", "mailqueue_recipient"];
                let scans = table
                    .iter()
                    .any(|table| step == format!("SCAN {table}") || step.starts_with(&format!("SCAN {table} ")));
                assert!(!scans, "{step}: {sql}");
            }
        }
        assert!(plans > 10, "{plans}");
    }

    /// The statements on our tables and the producers' that a log holds.
    fn sent(log: &str) -> BTreeSet<String> {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let statement = |line: Value| {
            let text =
                |name: &str| line.get(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
            text("db.statement").or(text("summary")).map(str::to_owned)
        };
        let mut statements: BTreeSet<String> = lines.filter_map(statement).collect();
        statements.retain(|sql| sql.contains("mail_queue") || sql.contains("mailqueue_"));
        statements.retain(|sql| ["SELECT", "INSERT", "UPDATE", "DELETE"].iter().any(|verb| sql.starts_with(verb)));
        statements
    }
}
