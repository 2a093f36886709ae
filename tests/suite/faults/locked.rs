//! Rows that another session keeps locked while they are to be deleted. SQLite locks no rows.

use std::os::unix::process::ExitStatusExt;

use super::{OFTEN, SOON, stop, until_empty, until_left};
use crate::support::DEADLINE;
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::{House, mail, said};
use crate::support::session::Session;

on_every_server!(
    a_locked_row_holds_up_no_other_and_is_named,
    a_pass_says_that_a_row_is_locked_and_the_next_one_deletes_it,
    a_locked_row_does_not_keep_a_queue_from_starting_after_a_kill,
);

async fn mails(house: &House, count: usize) -> Vec<i64> {
    let mut mids = Vec::new();
    for number in 0..count {
        mids.push(house.newsletter.insert(&mail(&format!("a{number}@example.org"), "x")).await.unwrap());
    }
    mids
}

/// A session that has changed the row and not committed.
async fn lock(house: &House, mid: i64) -> Session {
    let mut session = Session::on(&house.database.url).await;
    session.run("BEGIN").await.unwrap();
    session.run(&format!("UPDATE mail_queue SET mto = 'YQ==' WHERE mid = {mid}")).await.unwrap();
    session
}

async fn a_locked_row_holds_up_no_other_and_is_named(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    let mids = mails(&house, 50).await;
    let mut foreign = lock(&house, mids[20]).await;
    let daemon = house.start();
    until_left(&house.newsletter, 1).await;
    daemon.wait_for_line(&format!("row newsletter/{} is locked by another session", mids[20])).await;
    // What comes now waits for no lock.
    let begun = std::time::Instant::now();
    mails(&house, 3).await;
    until_left(&house.newsletter, 1).await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
    until_status_says(&house, "is locked by another session").await;

    foreign.run("ROLLBACK").await.unwrap();
    until_empty(&house.newsletter).await;
    daemon.wait_for_line("what became of mails is in the database again").await;
    let lines = stop(daemon).await;
    let id = format!("\"newsletter/{}\"", mids[20]);
    let of_row = |word: &str| lines.iter().filter(|line| line.contains(&id) && line.contains(word)).count();
    assert_eq!((of_row("\"held\""), of_row("\"message\":\"deleted\"")), (0, 1), "{}", lines.join("\n"));
    assert_eq!((catcher.received().len(), house.ledger_open()), (53, 0));
}

async fn a_pass_says_that_a_row_is_locked_and_the_next_one_deletes_it(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    let mids = mails(&house, 3).await;
    let mut foreign = lock(&house, mids[1]).await;
    let output = house.run(&["once"]).await;
    let told = said(&output);
    assert_eq!(output.status.code(), Some(69), "{told}");
    assert!(told.contains("locked by another session"), "{told}");
    until_left(&house.newsletter, 1).await;
    foreign.run("ROLLBACK").await.unwrap();
    assert_eq!(house.once().await, 0);
    assert!(house.rows(&house.newsletter).await.is_empty());
    assert_eq!(catcher.received().len(), 3);
}

async fn a_locked_row_does_not_keep_a_queue_from_starting_after_a_kill(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    let mids = mails(&house, 5).await;
    let mut command = house.installation.command();
    command.arg("run").env("MAILQUEUE_FAIL_AT", "after-ledger:1");
    let (status, lines) = Running::spawn(command).wait().await;
    assert_eq!(status.signal(), Some(9), "{}", lines.join("\n"));
    let accepted = catcher.received().iter().find_map(|mail| mids.get(number(&mail.recipients[0])).copied()).unwrap();

    let mut foreign = lock(&house, accepted).await;
    let daemon = house.start();
    house.newsletter.insert(&mail("later@example.org", "x")).await.unwrap();
    until_left(&house.newsletter, 1).await;
    assert_eq!(house.rows(&house.newsletter).await[0].id.mid, accepted);
    foreign.run("ROLLBACK").await.unwrap();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(house.ledger_open(), 0);
    let recipient = format!("a{}@example.org", mids.iter().position(|mid| *mid == accepted).unwrap());
    let times = catcher.received().iter().filter(|mail| mail.recipients.contains(&recipient)).count();
    assert_eq!(times, 1);
}

async fn until_status_says(house: &House, words: &str) {
    let mut status = String::new();
    let says = async {
        while !status.contains(words) {
            status = said(&house.run(&["status"]).await);
        }
    };
    if tokio::time::timeout(DEADLINE, says).await.is_err() {
        panic!("{status}");
    }
}

/// The number of the mail to this recipient.
fn number(recipient: &str) -> usize {
    recipient.trim_start_matches('a').split('@').next().and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
}
