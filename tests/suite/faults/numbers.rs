//! Numbers that no record of ours can name.

use std::time::Duration;

use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::house::{House, said};
use crate::support::mails::Mails;
use crate::support::session::Session;

use super::{OFTEN, SOON, stop, until_empty};

mod mariadb {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_number_that_is_too_high_is_reported_and_the_row_left_alone() {
        let catcher = Catcher::start().await;
        let house = House::build(database::mariadb().await, catcher.port(), OFTEN, SOON).await;
        let mut session = Session::on(&house.database.url).await;
        session.run("ALTER TABLE mail_queue MODIFY mid BIGINT UNSIGNED NOT NULL AUTO_INCREMENT").await.unwrap();
        let mut mails = Mails::default();
        mails.fill(&mut session, "n", 5).await;
        mails.insert(&mut session, "high", 1, None).await;
        session.run("UPDATE mail_queue SET mid = 9223372036854775808 WHERE mid = 6").await.unwrap();
        let check = house.run(&["check"]).await;
        assert_eq!(check.status.code(), Some(1));
        assert!(said(&check).contains("1 row(s) have a mid over 9223372036854775807"), "{}", said(&check));
        let daemon = house.start();
        catcher.wait_for(5).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let claimed = daemon.lines().iter().filter(|line| line.contains("\"claimed\"")).count();
        assert_eq!(claimed, 5, "{}", daemon.lines().join("\n"));
        // Nothing waits that could be sent: a queue with such a row is not stalled. `check` names it.
        let status = said(&house.run(&["status", "--json"]).await);
        assert!(status.contains("\"waiting\":0"), "{status}");
        session.run("UPDATE mail_queue SET mid = 6 WHERE mid = 9223372036854775808").await.unwrap();
        until_empty(&house.newsletter).await;
        let lines = stop(daemon).await;
        mails.audit(&catcher.received(), &lines);
    }
}
