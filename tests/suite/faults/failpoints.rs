//! The process is killed at each failpoint on a mail's way that a promise depends on.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::{OFTEN, SOON, stop, until_empty};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::{House, mail};
use crate::support::mails::Mails;
use crate::support::session::Session;

/// With so many connections so many mails can be between dot and ledger at the kill.
const CONNECTIONS: usize = 2;

on_every_database!(
    before_the_dot_nothing_is_sent_twice_that_was_not_on_the_wire,
    after_the_dot_the_mail_is_sent_again_as_of_unknown_outcome,
    after_the_250_and_before_the_ledger_the_mail_is_sent_again_as_of_unknown_outcome,
    after_the_ledger_the_acceptance_is_settled_and_not_sent,
    in_the_middle_of_settling_the_acceptance_is_settled_and_not_sent,
    after_the_deletion_the_ledger_does_not_take_a_new_mail_for_the_old_one,
    a_queue_that_is_renamed_after_a_kill_sends_nothing_again_that_was_accepted,
);

async fn before_the_dot_nothing_is_sent_twice_that_was_not_on_the_wire(database: TestDatabase) {
    assert!(dies_at("before-dot:20", database).await < CONNECTIONS);
}

async fn after_the_dot_the_mail_is_sent_again_as_of_unknown_outcome(database: TestDatabase) {
    assert!((1..=CONNECTIONS).contains(&dies_at("after-dot:20", database).await));
}

async fn after_the_250_and_before_the_ledger_the_mail_is_sent_again_as_of_unknown_outcome(database: TestDatabase) {
    assert!((1..=CONNECTIONS).contains(&dies_at("after-250:20", database).await));
}

async fn after_the_ledger_the_acceptance_is_settled_and_not_sent(database: TestDatabase) {
    assert!(dies_at("after-ledger:2", database).await <= CONNECTIONS);
}

async fn in_the_middle_of_settling_the_acceptance_is_settled_and_not_sent(database: TestDatabase) {
    assert!(dies_at("in-settle:2", database).await <= CONNECTIONS);
}

async fn after_the_deletion_the_ledger_does_not_take_a_new_mail_for_the_old_one(database: TestDatabase) {
    assert!(dies_at("after-delete:2", database).await <= CONNECTIONS);
}

/// Fills the table, lets the program die at the point, gives the numbers of rows that are gone to new mails, starts the
/// program again, and compares. Answers how many mails came twice.
async fn dies_at(point: &str, database: TestDatabase) -> usize {
    let catcher = Catcher::start().await;
    let settings = format!("connections = {CONNECTIONS}{SOON}");
    let house = House::build(database, catcher.port(), OFTEN, &settings).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 50).await;
    let producer = Mails::all_the_while(&house.database.url, "during", Duration::from_millis(10));

    let mut command = house.installation.command();
    command.arg("run").env("MAILQUEUE_FAIL_AT", point);
    let (status, mut lines) = Running::spawn(command).wait().await;
    assert_eq!(status.signal(), Some(9), "{point}: {}", lines.join("\n"));

    let mut anew = 0;
    for mid in mails.mids().collect::<Vec<_>>() {
        let sql = format!("SELECT COUNT(*) FROM mail_queue WHERE mid = {mid}");
        if session.number(&sql).await.expect("SELECT") == 0 {
            mails.insert(&mut session, &format!("anew-{mid}"), 1, Some(mid)).await;
            anew += 1;
        }
    }
    assert!(anew > 0 || !point.starts_with("after-delete"), "rows were deleted before");

    let daemon = house.start();
    mails.add(producer.stop().await);
    until_empty(&house.newsletter).await;
    lines.extend(stop(daemon).await);
    let repeated = mails.audit(&catcher.received(), &lines);
    assert_eq!(house.ledger_open(), 0, "{point}");
    repeated
}

async fn a_queue_that_is_renamed_after_a_kill_sends_nothing_again_that_was_accepted(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let mut command = house.installation.command();
    command.arg("run").env("MAILQUEUE_FAIL_AT", "after-ledger:1");
    let (status, lines) = Running::spawn(command).wait().await;
    assert_eq!(status.signal(), Some(9), "{}", lines.join("\n"));

    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, text.replace("name = \"newsletter\"", "name = \"letters\"")).unwrap();
    assert_eq!(house.once().await, 0);
    assert_eq!((catcher.received().len(), house.rows(&house.newsletter).await.len(), house.ledger_open()), (1, 0, 0));
}
