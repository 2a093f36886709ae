//! One row, one queue or one database in trouble holds up nothing else: memory is divided between the queues, large mails
//! wait for each other only, and few mails are marked `sending` ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mailqueue::outcome::{Reason, State};
use tokio::time::Instant;

use super::{OFTEN, SOON, kill, stop, until_empty, until_left};
use crate::support::DEADLINE;
use crate::support::binary::Running;
use crate::support::catcher::{Catcher, Hazard, Received, Step};
use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, mail, row};
use crate::support::mails::Mails;
use crate::support::session::Session;

on_every_server!(
    a_locked_table_holds_up_no_other_queue,
    a_take_over_that_waits_for_a_lock_holds_up_neither_pause_nor_heartbeat,
);

/// Rows of `newsletter` that together are many times the budget of 2 MB.
async fn fill_newsletter(house: &House) {
    let body = "x".repeat(20_000);
    for n in 0..100 {
        let columns = row(&format!("n{n}@example.org"), "x", &body, "From: n@example.org\r\n");
        house.newsletter.insert(&columns).await.expect("INSERT");
    }
}

async fn admidio_is_sent(house: &House, catcher: &Catcher, daemon: &Running) {
    for n in 0..5 {
        house.admidio.insert(&mail(&format!("admidio{n}@example.org"), "x")).await.expect("INSERT");
    }
    let deadline = Instant::now() + DEADLINE / 2;
    let arrived = || catcher.received().iter().filter(|mail| mail.recipients[0].starts_with("admidio")).count();
    while arrived() < 5 {
        assert!(Instant::now() < deadline, "{} of 5: {}", arrived(), daemon.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_locked_table_holds_up_no_other_queue(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let top = format!("{OFTEN}\nmax_in_flight_bytes = \"2MB\"");
    let house = House::build(database, catcher.port(), &top, SOON).await;
    fill_newsletter(&house).await;
    let mut session = Session::on(&house.database.url).await;
    catcher.close_gate();
    let daemon = house.start();
    catcher.wait_at_gate(4).await;
    if house.database.url.scheme() == "postgres" {
        session.run("BEGIN").await.unwrap();
        session.run("LOCK TABLE mail_queue IN ACCESS EXCLUSIVE MODE").await.unwrap();
    } else {
        session.run("LOCK TABLES mail_queue WRITE").await.unwrap();
    }
    catcher.open_gate();
    // Long enough that all that is in memory has been sent, and nothing of it can be settled.
    tokio::time::sleep(Duration::from_secs(2)).await;
    admidio_is_sent(&house, &catcher, &daemon).await;
    session.run(if house.database.url.scheme() == "postgres" { "COMMIT" } else { "UNLOCK TABLES" }).await.unwrap();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 105, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_whose_rows_cannot_be_deleted_holds_up_no_other_queue() {
    let catcher = Catcher::start().await;
    let top = format!("{OFTEN}\nmax_in_flight_bytes = \"2MB\"");
    let house = House::build(database::sqlite(), catcher.port(), &top, SOON).await;
    fill_newsletter(&house).await;
    let mut session = Session::on(&house.database.url).await;
    let trigger = "CREATE TRIGGER kept BEFORE DELETE ON mail_queue BEGIN SELECT RAISE(ABORT, 'they are kept'); END";
    session.run(trigger).await.unwrap();
    let daemon = house.start();
    // More than would be in memory at once if each kept its part until it is settled.
    catcher.wait_for(100).await;
    admidio_is_sent(&house, &catcher, &daemon).await;
    session.run("DROP TRIGGER kept").await.unwrap();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 105, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_mail_is_overtaken_and_only_large_ones_wait_for_it() {
    let catcher = Catcher::start().await;
    // Of 8 MB each queue has 4 MB, and a row counts three times.
    let top = format!("{OFTEN}\nmax_in_flight_bytes = \"8MB\"");
    let house = House::build(database::sqlite(), catcher.port(), &top, SOON).await;
    let large = "many words ".repeat(100_000);
    for n in 0..3 {
        let columns = row(&format!("large{n}@example.org"), "x", &large, "From: n@example.org\r\n");
        house.newsletter.insert(&columns).await.expect("INSERT");
    }
    catcher.close_gate();
    let daemon = house.start();
    catcher.wait_at_gate(1).await;
    house.newsletter.insert(&mail("password@example.org", "x")).await.expect("INSERT");
    catcher.wait_at_gate(2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let states = house.rows(&house.newsletter).await;
    let sending = states.iter().filter(|row| row.state == State::Sending).count();
    assert_eq!(sending, 2, "one large mail and the password: {states:?}");
    catcher.open_gate();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_mail_that_waits_is_given_back_when_its_queue_is_paused() {
    let catcher = Catcher::start().await;
    let house =
        House::build(database::sqlite(), catcher.port(), &format!("{OFTEN}\nmax_in_flight_bytes = \"8MB\""), SOON)
            .await;
    let large = "many words ".repeat(100_000);
    for queue in [&house.newsletter, &house.admidio] {
        let columns = row("large@example.org", "x", &large, "From: n@example.org\r\n");
        queue.insert(&columns).await.expect("INSERT");
    }
    catcher.close_gate();
    let daemon = house.start();
    catcher.wait_at_gate(1).await;
    let state = async |queue| house.rows(queue).await[0].state;
    let sent_first = state(&house.newsletter).await == State::Sending;
    let (name, waiting) = if sent_first { ("admidio", &house.admidio) } else { ("newsletter", &house.newsletter) };
    until_state(&house, waiting, State::Claimed).await;
    house.run(&["pause", name]).await;
    until_state(&house, waiting, State::Waiting).await;
    house.run(&["resume", name]).await;
    catcher.open_gate();
    until_empty(waiting).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 2);
}

async fn until_state(house: &House, queue: &mailqueue::queue::Queue, state: State) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let rows = house.rows(queue).await;
        if rows.iter().all(|row| row.state == state) {
            return;
        }
        assert!(Instant::now() < deadline, "{rows:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_mails_are_marked_before_the_smarthost_has_taken_any() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &format!("connections = 2{SOON}")).await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().flood(&mut session, "mail_queue", "n", 900).await;
    catcher.close_gate();
    let daemon = house.start();
    catcher.wait_at_gate(2).await;
    let claimed = async || {
        let rows = house.rows(&house.newsletter).await;
        let count = |state| rows.iter().filter(|row| row.state == state).count();
        (count(State::Claimed), count(State::Sending))
    };
    let deadline = Instant::now() + DEADLINE;
    while claimed().await.0 < 500 {
        assert!(Instant::now() < deadline, "{:?}", claimed().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, sending) = claimed().await;
    assert!((2..=20).contains(&sending), "{sending} are marked");
    catcher.open_gate();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 900);
}

/// The numbers of the rows in the order in which they came.
fn place_of(received: &[Received], recipient: &str) -> Option<usize> {
    received.iter().position(|mail| mail.recipients[0] == recipient)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_was_committed_late_does_not_wait_for_the_end_of_a_long_backlog() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &format!("rate = \"500/s\"{SOON}")).await;
    let mut connection = house.connect().await;
    house.insert_as(&mut connection, 10, &mail("first@example.org", "x")).await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().flood(&mut session, "mail_queue", "n", 5000).await;
    let daemon = house.start();
    catcher.wait_for(100).await;
    house.insert_as(&mut connection, 1, &mail("late@example.org", "x")).await;
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    let place = place_of(&catcher.received(), "late@example.org").expect("it was sent");
    assert!(place < 3000, "it was mail {place} of 5000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_one_row_is_translated_concerns_this_row_only() {
    for body in ["short".to_owned(), "long ".repeat(20_000)] {
        let catcher = Catcher::start().await;
        let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
        for n in 1..=5 {
            let columns = row(&format!("n{n}@example.org"), "x", &body, "From: n@example.org\r\n");
            house.newsletter.insert(&columns).await.expect("INSERT");
        }
        let mut command = house.installation.command();
        command.arg("run").env("MAILQUEUE_FAIL_AT", "in-translate:3:panic");
        let daemon = Running::spawn(command);
        let line = daemon.wait_for_line("internal-error").await;
        assert!(line.contains("\"newsletter/3\"") && line.contains("failpoint in-translate"), "{line}");
        until_left(&house.newsletter, 1).await;
        let rows = house.rows(&house.newsletter).await;
        assert_eq!((rows.len(), rows[0].id.mid), (1, 3), "{rows:?}");
        assert_eq!((rows[0].state, rows[0].reason), (State::Unreadable, Some(Reason::InternalError)));
        let detail = rows[0].detail.as_deref().unwrap_or_default();
        assert!(detail.contains("mailqueue has a fault") && detail.contains("in-translate"), "{detail}");
        assert!(house.run(&["retry", "newsletter/3"]).await.status.success());
        until_empty(&house.newsletter).await;
        stop(daemon).await;
        assert_eq!(catcher.received().len(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_that_cannot_be_written_is_reported_and_nothing_is_claimed() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), &format!("{OFTEN}\nlease = \"3s\""), SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let daemon = house.start();
    daemon.wait_for_line("\"started\"").await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "before", 1).await;
    until_empty(&house.newsletter).await;
    let trigger =
        "CREATE TRIGGER silent BEFORE UPDATE ON mailqueue_dispatcher BEGIN SELECT RAISE(ABORT, 'be silent'); END";
    session.run(trigger).await.unwrap();
    let line = daemon.wait_for_line("the lease of this queue cannot be renewed").await;
    assert!(line.contains("be silent"), "{line}");
    // The lease runs out.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let claimed = |lines: &[String]| lines.iter().filter(|line| line.contains("\"claimed\"")).count();
    let before = claimed(&daemon.lines());
    mails.fill(&mut session, "silent", 5).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lines = daemon.lines();
    assert_eq!(claimed(&lines), before, "rows that cannot be sent are not claimed: {}", lines.join("\n"));
    let said =
        lines.iter().filter(|line| line.contains("cannot be renewed") && line.contains("\"newsletter\"")).count();
    assert_eq!(said, 1, "{}", lines.join("\n"));
    session.run("DROP TRIGGER silent").await.unwrap();
    until_empty(&house.newsletter).await;
    daemon.wait_for_line("the database is back").await;
    let lines = stop(daemon).await;
    mails.audit(&catcher.received(), &lines);
}

/// A dispatcher that died leaves a row behind whose record another session has locked. Its take-over waits for the lock.
async fn a_take_over_that_waits_for_a_lock_holds_up_neither_pause_nor_heartbeat(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), &format!("{OFTEN}\nlease = \"3s\""), SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 1).await;
    catcher.close_gate();
    let neighbour = house.neighbour();
    let dead = neighbour.start(&["run"]);
    catcher.wait_at_gate(1).await;
    let mut lines = kill(dead).await;
    catcher.open_gate();
    session.run("BEGIN").await.unwrap();
    session.run("UPDATE mailqueue_delivery SET attempts = attempts").await.unwrap();

    let daemon = house.start();
    // The lease of the dead one ends, and the lock is waited for.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (command, word) in [("pause", "queue paused"), ("resume", "queue resumed"), ("pause", "queue paused")] {
        let before = daemon.lines().len();
        assert!(house.run(&[command, "newsletter"]).await.status.success());
        let begun = Instant::now();
        while !daemon.lines()[before..].iter().any(|line| line.contains(word)) {
            assert!(begun.elapsed() < Duration::from_secs(2), "{command}: {}", daemon.lines().join("\n"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(!daemon.lines().iter().any(|line| line.contains("took over")), "the record is locked");
    session.run("COMMIT").await.unwrap();
    assert!(house.run(&["resume", "newsletter"]).await.status.success());
    daemon.wait_for_line("took over").await;
    until_empty(&house.newsletter).await;
    lines.extend(stop(daemon).await);
    mails.audit(&catcher.received(), &lines);
}

/// A row of which two do not fit into the queue's part of [`SMALL_BUDGET`].
fn large_row(name: &str) -> mailqueue::mail::Columns {
    row(&format!("{name}@example.org"), "x", &"many words ".repeat(3000), "From: n@example.org\r\n")
}

/// Half for each queue. A row counts three times.
const SMALL_BUDGET: &str = "max_in_flight_bytes = \"200KB\"";

fn count(rows: &[mailqueue::queue::Listed], states: &[State]) -> usize {
    rows.iter().filter(|row| states.contains(&row.state)).count()
}

async fn arrived(catcher: &Catcher, name: &str, daemon: &Running) {
    let begun = Instant::now();
    while !catcher.received().iter().any(|mail| mail.recipients[0].starts_with(name)) {
        assert!(begun.elapsed() < DEADLINE, "{name}: {}", daemon.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The final dot of a mail for `large…@` is not answered while this is true.
fn stalls(large: &Arc<AtomicBool>) -> impl Fn(Step<'_>) -> Hazard + Send + Sync + 'static {
    let large = large.clone();
    move |step| match step {
        Step::FinalDot { mail } if mail.recipients[0].starts_with("large") && large.load(Ordering::SeqCst) => {
            Hazard::Stall
        }
        _ => Hazard::None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_large_rows_few_are_claimed_and_what_stands_behind_them_is_sent() {
    let catcher = Catcher::with_hazards(|_| None, stalls(&Arc::new(AtomicBool::new(true)))).await;
    let house = House::build(database::sqlite(), catcher.port(), &format!("{OFTEN}\n{SMALL_BUDGET}"), SOON).await;
    for n in 0..100 {
        house.newsletter.insert(&large_row(&format!("large{n}"))).await.expect("INSERT");
    }
    house.newsletter.insert(&mail("behind@example.org", "x")).await.expect("INSERT");
    let daemon = house.start();
    arrived(&catcher, "behind", &daemon).await;
    // Looks at the table that find them all again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    house.newsletter.insert(&mail("later@example.org", "x")).await.expect("INSERT");
    arrived(&catcher, "later", &daemon).await;
    let rows = house.rows(&house.newsletter).await;
    let (taken, waiting) = (count(&rows, &[State::Claimed, State::Sending]), count(&rows, &[State::Waiting]));
    assert!(taken <= 17 && waiting >= 83, "{taken} are claimed, {waiting} wait");
    kill(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_many_large_rows_are_sent() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), &format!("{OFTEN}\n{SMALL_BUDGET}"), SOON).await;
    for n in 0..40 {
        house.newsletter.insert(&large_row(&format!("large{n}"))).await.expect("INSERT");
    }
    let output = house.run(&["--log-level", "info", "once"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", crate::support::house::said(&output));
    assert_eq!(catcher.received().len(), 40, "one pass takes them all");
    for n in 0..40 {
        house.newsletter.insert(&large_row(&format!("large{n}"))).await.expect("INSERT");
    }
    let daemon = house.start();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 80, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_large_rows_that_are_due_again_few_are_claimed_and_others_are_sent() {
    let (defers, stalling) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let still = defers.clone();
    let script = move |step: Step<'_>| match step {
        Step::Rcpt { recipient } if recipient.starts_with("large") && still.load(Ordering::SeqCst) => {
            Some("450 4.2.1 mailbox busy".to_owned())
        }
        _ => None,
    };
    let catcher = Catcher::with_hazards(script, stalls(&stalling)).await;
    let retry = "\n[retry]\ninitial = \"5s\"\nmaximum = \"5s\"";
    let house = House::build(database::sqlite(), catcher.port(), &format!("{OFTEN}\n{SMALL_BUDGET}"), retry).await;
    for n in 0..40 {
        house.newsletter.insert(&large_row(&format!("large{n}"))).await.expect("INSERT");
    }
    assert_eq!(house.once().await, 1, "all are deferred");
    defers.store(false, Ordering::SeqCst);
    stalling.store(true, Ordering::SeqCst);
    house.let_time_pass(&house.newsletter).await;
    house.newsletter.insert(&mail("behind@example.org", "x")).await.expect("INSERT");
    let daemon = house.start();
    arrived(&catcher, "large", &daemon).await;
    arrived(&catcher, "behind", &daemon).await;
    let begun = Instant::now();
    loop {
        let rows = house.rows(&house.newsletter).await;
        let (taken, deferred) = (count(&rows, &[State::Claimed, State::Sending]), count(&rows, &[State::Deferred]));
        if taken <= 17 && deferred >= 23 {
            break;
        }
        assert!(begun.elapsed() < DEADLINE / 3, "{taken} are claimed, {deferred} deferred");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    kill(daemon).await;
}
