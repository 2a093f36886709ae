//! `hold` and `delete` on rows whose dispatcher on this host is dead: what the ledger knows is settled first, and nothing
//! is ever sent twice for it.

use std::collections::HashMap;

use mailqueue::outcome::{Reason, State};

use super::{OFTEN, kill, stop};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::{House, mail, said};

on_every_database!(
    hold_sets_aside_what_a_dead_dispatcher_was_sending_and_had_claimed,
    delete_takes_what_a_dead_dispatcher_was_at_work_on,
    what_was_accepted_before_the_dispatcher_died_is_deleted_and_not_held,
    the_rows_of_a_dispatcher_that_runs_are_left_alone,
    a_row_that_was_being_sent_is_held_as_of_unknown_outcome_under_another_name_of_its_queue_too,
    a_row_that_was_being_sent_is_left_alone_where_the_ledger_is_a_new_one,
);

const ROWS: usize = 5;

/// A daemon with one mail on the wire, whose final dot is not answered, and the others ready behind it.
async fn at_work(database: TestDatabase) -> (Catcher, House, Running, Vec<i64>) {
    let catcher = Catcher::start().await;
    catcher.close_gate();
    let house = House::build(database, catcher.port(), OFTEN, "connections = 1\npipelining = \"off\"").await;
    let mut mids = Vec::new();
    for n in 0..ROWS {
        mids.push(house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.unwrap());
    }
    let daemon = house.start();
    catcher.wait_at_gate(1).await;
    (catcher, house, daemon, mids)
}

/// The rows by state and reason.
async fn rows(house: &House) -> HashMap<(State, Option<Reason>), usize> {
    let mut rows = HashMap::new();
    for row in house.rows(&house.newsletter).await {
        *rows.entry((row.state, row.reason)).or_default() += 1;
    }
    rows
}

/// A further daemon has nothing to send but what comes in after it. The smarthost has taken the mail that was on the wire.
async fn assert_nothing_more_is_sent(house: &House, catcher: &Catcher) {
    assert_only_the_later_is_sent(house, catcher).await;
    assert_eq!(house.ledger_open(), 0);
}

async fn assert_only_the_later_is_sent(house: &House, catcher: &Catcher) {
    catcher.open_gate();
    let before = catcher.wait_for(1).await.len();
    let daemon = house.start();
    house.admidio.insert(&mail("later@example.org", "x")).await.unwrap();
    let received = catcher.wait_for(before + 1).await;
    stop(daemon).await;
    assert_eq!(received[before].recipients, ["later@example.org"]);
    assert_eq!(catcher.received().len(), before + 1);
}

async fn hold_sets_aside_what_a_dead_dispatcher_was_sending_and_had_claimed(database: TestDatabase) {
    let (catcher, house, daemon, mids) = at_work(database).await;
    kill(daemon).await;
    let held = house.run(&["hold", "--queue", "newsletter"]).await;
    assert_eq!(held.status.code(), Some(0), "{}", said(&held));
    assert_eq!(said(&held).matches(": held").count(), ROWS, "{}", said(&held));
    let unknown = (State::Held, Some(Reason::OutcomeUnknown));
    let by_operator = (State::Held, Some(Reason::Operator));
    assert_eq!(rows(&house).await, HashMap::from([(unknown, 1), (by_operator, ROWS - 1)]));
    assert_nothing_more_is_sent(&house, &catcher).await;

    // What was never at its dot goes out once it is released.
    let released = house.run(&["release", "--reason", "operator"]).await;
    assert_eq!(released.status.code(), Some(0), "{}", said(&released));
    let daemon = house.start();
    // The mail on the wire, the later one, and these.
    catcher.wait_for(2 + ROWS - 1).await;
    stop(daemon).await;
    assert_eq!(rows(&house).await, HashMap::from([(unknown, 1)]));
    assert_eq!(mids.len(), ROWS);
}

async fn delete_takes_what_a_dead_dispatcher_was_at_work_on(database: TestDatabase) {
    let (catcher, house, daemon, mids) = at_work(database).await;
    kill(daemon).await;
    let id = |mid: i64| format!("newsletter/{mid}");
    let deleted = house.run(&["delete", "--yes", &id(mids[0]), &id(mids[1])]).await;
    assert_eq!(deleted.status.code(), Some(0), "{}", said(&deleted));
    let left: Vec<_> = house.rows(&house.newsletter).await.iter().map(|row| row.id.mid).collect();
    assert_eq!(left, mids[2..], "those that were not named are as they were");
    let deleted = house.run(&["delete", "--yes", "--queue", "newsletter"]).await;
    assert_eq!(deleted.status.code(), Some(0), "{}", said(&deleted));
    assert_eq!(rows(&house).await, HashMap::new());
    assert_nothing_more_is_sent(&house, &catcher).await;
}

async fn what_was_accepted_before_the_dispatcher_died_is_deleted_and_not_held(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, "").await;
    let mid = house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    let mut command = house.installation.command();
    command.arg("run").env("MAILQUEUE_FAIL_AT", "after-ledger");
    Running::spawn(command).wait().await;
    catcher.wait_for(1).await;
    assert_eq!(house.row(&house.newsletter, mid).await.unwrap().state, State::Sending);
    let held = house.run(&["hold", &format!("newsletter/{mid}")]).await;
    assert_eq!(held.status.code(), Some(0), "{}", said(&held));
    assert!(said(&held).contains(&format!("newsletter/{mid}: deleted: it was delivered before")), "{}", said(&held));
    let traced = said(&house.run(&["trace", &format!("newsletter/{mid}")]).await);
    assert!(traced.contains("deleted by ") && !traced.contains("held by "), "{traced}");
    assert!(house.row(&house.newsletter, mid).await.is_none());
    assert_nothing_more_is_sent(&house, &catcher).await;
}

async fn the_rows_of_a_dispatcher_that_runs_are_left_alone(database: TestDatabase) {
    let (catcher, house, daemon, _) = at_work(database).await;
    for command in [&["hold", "--queue", "newsletter"][..], &["delete", "--yes", "--queue", "newsletter"]] {
        let output = house.run(command).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert_eq!(said(&output).matches("a dispatcher is at work on it").count(), ROWS, "{}", said(&output));
    }
    catcher.open_gate();
    assert_eq!(catcher.wait_for(ROWS).await.len(), ROWS);
    stop(daemon).await;
    assert_eq!(rows(&house).await, HashMap::new());
}

async fn a_row_that_was_being_sent_is_held_as_of_unknown_outcome_under_another_name_of_its_queue_too(
    database: TestDatabase,
) {
    let (catcher, house, daemon, _) = at_work(database).await;
    kill(daemon).await;
    let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
    std::fs::write(house.installation.configuration(), text.replace("\"newsletter\"", "\"rundbrief\"")).unwrap();
    let held = house.run(&["hold", "--queue", "rundbrief"]).await;
    assert_eq!(held.status.code(), Some(0), "{}", said(&held));
    let rows = rows(&house).await;
    assert_eq!(rows.get(&(State::Held, Some(Reason::OutcomeUnknown))), Some(&1), "{rows:?}");
    assert_only_the_later_is_sent(&house, &catcher).await;
}

async fn a_row_that_was_being_sent_is_left_alone_where_the_ledger_is_a_new_one(database: TestDatabase) {
    let (_catcher, house, daemon, _) = at_work(database).await;
    kill(daemon).await;
    let state = house.installation.path().join("state");
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("ledger") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    // Its first start makes a ledger, and refuses to send.
    let refused = house.run(&["run"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    for command in [&["hold", "--queue", "newsletter"][..], &["delete", "--yes", "--queue", "newsletter"]] {
        let output = house.run(command).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("is missing"), "{}", said(&output));
        let rows = rows(&house).await;
        let sending: usize = rows.iter().filter(|((state, _), _)| *state == State::Sending).map(|(_, n)| n).sum();
        assert!(sending >= 1, "{rows:?}");
    }
}
