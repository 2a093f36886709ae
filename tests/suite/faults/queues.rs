//! Very many queues, and a database of which the dispatcher's own tests know nothing else.

use std::fmt::Write as _;
use std::time::Instant;

use super::{OFTEN, stop, until_empty};
use crate::support::DEADLINE;
use crate::support::catcher::Catcher;
use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, mail};
use crate::support::session::Session;

/// The connections to one server that queues have together, as README says, and some that have said goodbye and that a
/// busy server still counts.
const MOST: i64 = 16 + 4;

on_every_server!(a_daemon_of_sixty_queues_uses_a_fixed_number_of_connections);

async fn a_daemon_of_sixty_queues_uses_a_fixed_number_of_connections(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let mut top = OFTEN.to_owned();
    for number in 0..60 {
        let (name, url) = (format!("queue_{number}"), &database.url);
        write!(top, "\n[[queue]]\nname = \"{name}\"\ndatabase = \"{url}\"\ntable = \"{name}\"").expect("text");
    }
    let house = House::build(database, catcher.port(), &top, "\n[monitor]\nlisten = \"127.0.0.1:0\"").await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.expect("insert");
    let mut session = Session::on(&house.database.url).await;
    for number in 0..60 {
        let sql = format!(
            "INSERT INTO queue_{number} (mto, msubject, mbody, mheaders) SELECT mto, msubject, mbody, mheaders FROM mail_queue"
        );
        session.run(&sql).await.expect("INSERT");
    }
    let name = house.database.url.path().trim_start_matches('/').to_owned();
    let count = match session {
        Session::MariaDb(_) => format!("SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{name}'"),
        _ => format!(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend'"
        ),
    };
    // Those of the test.
    let before = session.number(&count).await.expect("count");
    let daemon = house.start();
    let mut most = 0;
    let begun = Instant::now();
    while catcher.received().len() < 61 {
        most = most.max(session.number(&count).await.expect("count") - before);
        assert!(begun.elapsed() < 2 * DEADLINE, "{}", daemon.lines().join("\n"));
    }
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    println!("{most} connections");
    assert!((2..=MOST).contains(&most), "{most} connections");
}

mod mysql {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn mails_are_delivered_and_commands_work() {
        let catcher = Catcher::start().await;
        let house = House::build(database::mysql().await, catcher.port(), "", "").await;
        for local in ["a", "b", "c"] {
            house.newsletter.insert(&mail(&format!("{local}@example.org"), "x")).await.expect("insert");
        }
        let check = house.run(&["check"]).await;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains("database: MySQL 9."), "{said}");
        assert!(house.run(&["hold", "newsletter/2"]).await.status.success());
        assert_eq!(house.once().await, 0);
        assert_eq!(catcher.received().len(), 2);
        assert!(house.run(&["release", "newsletter/2"]).await.status.success());
        assert_eq!(house.once().await, 0);
        assert_eq!(catcher.received().len(), 3);
        assert!(house.rows(&house.newsletter).await.is_empty());
    }
}
