//! Rows that were delivered and that the database does not delete, as the whole program sees them.

use std::os::unix::process::ExitStatusExt;

use mailqueue::outcome::{Reason, State};

use super::{OFTEN, SOON, stop, until_empty, until_left};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::house::{House, mail, said};
use crate::support::session::Session;

on_every_database!(
    one_row_under_a_foreign_key_holds_up_no_other_and_is_reported,
    a_row_that_was_not_deleted_before_a_kill_does_not_keep_the_queue_from_starting,
    a_row_is_deleted_as_soon_as_the_database_allows_it,
);

/// Goes behind `[relay]`: no DELETE is tried again by itself within a test.
const LATE: &str = "\n[retry]\ninitial = \"1h\"";

/// Lets a foreign key keep the row.
async fn tie(house: &House, mid: i64) {
    let mut session = Session::on(&house.database.url).await;
    let sql = "CREATE TABLE letter (mid BIGINT NOT NULL, FOREIGN KEY (mid) REFERENCES mail_queue (mid))";
    session.run(sql).await.unwrap();
    session.run(&format!("INSERT INTO letter VALUES ({mid})")).await.unwrap();
}

async fn untie(house: &House) {
    Session::on(&house.database.url).await.run("DELETE FROM letter").await.unwrap();
}

async fn mails(house: &House, count: usize) -> Vec<i64> {
    let mut mids = Vec::new();
    for number in 0..count {
        mids.push(house.newsletter.insert(&mail(&format!("a{number}@example.org"), "x")).await.unwrap());
    }
    mids
}

async fn one_row_under_a_foreign_key_holds_up_no_other_and_is_reported(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, LATE).await;
    let mids = mails(&house, 10).await;
    tie(&house, mids[4]).await;
    let id = format!("newsletter/{}", mids[4]);

    let output = house.run(&["--log-level", "info", "once"]).await;
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("9 delivered") && told.contains("1 delivered and not deleted"), "{told}");
    let of_row: Vec<&str> = told.lines().filter(|line| line.contains(&format!("\"{id}\""))).collect();
    assert!(of_row.iter().any(|line| line.contains("\"held\"") && line.contains("not-deleted")), "{told}");
    assert!(!of_row.iter().any(|line| line.contains("\"message\":\"deleted\"")), "{told}");
    assert_eq!((catcher.received().len(), house.ledger_open()), (10, 0));

    // Reports tell it from what an operator holds.
    let status = said(&house.run(&["status", "--json"]).await);
    assert!(status.contains("\"held\":0,\"not_deleted\":1"), "{status}");
    assert!(said(&house.run(&["status"]).await).contains("1 delivered and not deleted"));
    let checkmk = said(&house.run(&["status", "--checkmk"]).await);
    assert!(checkmk.contains("1 \"mailqueue newsletter\"") && checkmk.contains("not_deleted=1"), "{checkmk}");
    let listed = said(&house.run(&["list", "--reason", "not-deleted", "--json"]).await);
    assert!(listed.contains(&id) && listed.contains("\"next_attempt\":\"2"), "{listed}");
    let shown = said(&house.run(&["show", &id]).await).to_lowercase();
    assert!(shown.contains("foreign key") && shown.contains("next delete"), "{shown}");
    assert!(!shown.contains("next attempt"), "{shown}");
    for query in [&[id.as_str()][..], &["--to", "a4@example.org"]] {
        let traced = said(&house.run(&[&["trace"], query].concat()).await);
        assert!(traced.contains("delivered; the database does not delete its row"), "{traced}");
        assert!(traced.contains("held (not-deleted), next DELETE "), "{traced}");
        assert!(!traced.contains("the row was deleted") && !traced.contains("tried again"), "{traced}");
    }

    // Nothing sends it again: no further pass, no other dispatcher, no command.
    for command in
        [&["retry", &id][..], &["release", &id], &["hold", &id], &["release", &id], &["delete", "--yes", &id]]
    {
        house.run(command).await;
        assert_eq!(house.once().await, 0, "{command:?}");
        let neighbour = house.neighbour().run(&["once"]).await;
        assert_eq!(neighbour.status.code(), Some(0), "{}", said(&neighbour));
    }
    let refused = house.run(&["retry", &id]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("it is delivered, and the database does not delete it"), "{}", said(&refused));
    let row = house.row(&house.newsletter, mids[4]).await.unwrap();
    assert_eq!((row.state, row.reason), (State::Held, Some(Reason::NotDeleted)));

    untie(&house).await;
    let deleted = house.run(&["retry", &id]).await;
    assert_eq!(deleted.status.code(), Some(0), "{}", said(&deleted));
    assert!(said(&deleted).contains("deleted: it was delivered before"), "{}", said(&deleted));
    assert!(house.rows(&house.newsletter).await.is_empty());
    assert_eq!(catcher.received().len(), 10);
}

async fn a_row_that_was_not_deleted_before_a_kill_does_not_keep_the_queue_from_starting(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    let mids = mails(&house, 5).await;
    tie(&house, mids[1]).await;
    let mut command = house.installation.command();
    command.arg("run").env("MAILQUEUE_FAIL_AT", "after-ledger:1");
    let (status, lines) = Running::spawn(command).wait().await;
    assert_eq!(status.signal(), Some(9), "{}", lines.join("\n"));

    let daemon = house.start();
    until_left(&house.newsletter, 1).await;
    // The queue goes on: what comes later is sent.
    house.newsletter.insert(&mail("later@example.org", "x")).await.unwrap();
    until_left(&house.newsletter, 1).await;
    let row = house.rows(&house.newsletter).await.remove(0);
    assert_eq!((row.id.mid, row.state, row.reason), (mids[1], State::Held, Some(Reason::NotDeleted)));
    let lines = stop(daemon).await;
    let id = format!("\"newsletter/{}\"", mids[1]);
    assert!(
        !lines.iter().any(|line| line.contains(&id) && line.contains("\"message\":\"deleted\"")),
        "{}",
        lines.join("\n")
    );
    // A mail that was on the wire when the process died may be sent twice; this one was accepted, and is not.
    // Where the DELETE is due, it is refused again.
    let status = house.once().await;
    assert!([0, 1].contains(&status), "{status}");
    let times = catcher.received().iter().filter(|mail| mail.recipients.contains(&"a1@example.org".to_owned())).count();
    assert_eq!(times, 1);
    untie(&house).await;
    let deleted = house.run(&["release", &format!("newsletter/{}", mids[1])]).await;
    assert_eq!(deleted.status.code(), Some(0), "{}", said(&deleted));
    assert!(house.rows(&house.newsletter).await.is_empty());
}

async fn a_row_is_deleted_as_soon_as_the_database_allows_it(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    let mids = mails(&house, 2).await;
    tie(&house, mids[0]).await;
    let daemon = house.start();
    daemon.wait_for_line("not-deleted").await;
    until_left(&house.newsletter, 1).await;
    untie(&house).await;
    until_empty(&house.newsletter).await;
    let id = format!("\"newsletter/{}\"", mids[0]);
    // The row is gone a moment before the log says so.
    let is_deleted = |line: &String| line.contains(&id) && line.contains("\"message\":\"deleted\"");
    eventually("the row is logged as deleted", || daemon.lines().iter().any(is_deleted).then_some(())).await;
    let lines = stop(daemon).await;
    let of_row = |word: &str| lines.iter().filter(|line| line.contains(&id) && line.contains(word)).count();
    assert_eq!((of_row("\"held\""), of_row("\"message\":\"deleted\"")), (1, 1), "{}", lines.join("\n"));
    assert_eq!(catcher.received().len(), 2);
}

/// A trigger that marks a row in place of deleting it.
async fn a_row_that_its_deletion_changes_is_not_sent_again(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, LATE).await;
    let mids = mails(&house, 3).await;
    let mut session = Session::on(&house.database.url).await;
    let change = "UPDATE mail_queue SET mbody = '' WHERE mid = OLD.mid";
    let trigger = match &session {
        Session::Postgres(_) => format!(
            "CREATE FUNCTION soft() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change}; RETURN NULL; END $$; \
             CREATE TRIGGER soft BEFORE DELETE ON mail_queue FOR EACH ROW EXECUTE FUNCTION soft()"
        ),
        _ => format!("CREATE TRIGGER soft BEFORE DELETE ON mail_queue BEGIN {change}; SELECT RAISE(IGNORE); END"),
    };
    session.run(&trigger).await.unwrap();
    assert_eq!(house.once().await, 1);
    for mid in mids {
        let row = house.row(&house.newsletter, mid).await.unwrap();
        assert_eq!((row.state, row.reason), (State::Held, Some(Reason::NotDeleted)), "{:?}", row.detail);
    }
    assert_eq!(house.once().await, 0);
    assert_eq!(catcher.received().len(), 3);
}

mod sqlite_alone {
    use super::*;
    use crate::support::database::sqlite;

    #[tokio::test]
    async fn a_row_that_its_deletion_changes_is_not_sent_again() {
        super::a_row_that_its_deletion_changes_is_not_sent_again(sqlite()).await;
    }

    #[tokio::test]
    async fn a_trigger_that_ends_the_transaction_sets_its_row_aside() {
        let catcher = Catcher::start().await;
        let house = House::build(sqlite(), catcher.port(), OFTEN, LATE).await;
        let mids = mails(&house, 3).await;
        let trigger = format!(
            "CREATE TRIGGER no BEFORE DELETE ON mail_queue WHEN OLD.mid = {} BEGIN SELECT RAISE(ROLLBACK, 'it stays'); END",
            mids[1]
        );
        Session::on(&house.database.url).await.run(&trigger).await.unwrap();
        assert_eq!(house.once().await, 1);
        let rows = house.rows(&house.newsletter).await;
        assert_eq!(rows.iter().map(|row| row.id.mid).collect::<Vec<_>>(), [mids[1]]);
        assert_eq!((rows[0].state, rows[0].detail.as_deref()), (State::Held, Some("it stays")));
    }
}

mod postgres_alone {
    mod postgres {
        #[tokio::test]
        async fn a_row_that_its_deletion_changes_is_not_sent_again() {
            let database = crate::support::database::postgres().await;
            super::super::a_row_that_its_deletion_changes_is_not_sent_again(database).await;
        }
    }
}
