//! The main job, by the program itself: rows become mails at a smarthost, and are deleted when it has taken them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mailqueue::mail::Columns;
use mailqueue::outcome::{Reason, RecipientState, State};
use mailqueue::queue::Queue;
use rustix::process::Signal;

use crate::support::binary::Running;
use crate::support::catcher::{Catcher, Received, Step};
use crate::support::database::{self, TestDatabase};
use crate::support::eventually;
use crate::support::house::{House, mail, row, said};

/// Each test below, on each database.
macro_rules! on_every_database {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::$name(crate::support::database::sqlite()).await })* }
        mod mariadb { $(#[tokio::test] async fn $name() { super::$name(crate::support::database::mariadb().await).await })* }
        mod postgres { $(#[tokio::test] async fn $name() { super::$name(crate::support::database::postgres().await).await })* }
    };
}

on_every_database!(
    one_pass_sends_what_is_due_in_both_tables_and_deletes_it,
    twenty_bcc_of_which_one_is_refused_and_one_put_off_get_the_mail_once_each,
    bad_rows_at_the_head_do_not_delay_good_ones_behind_them,
    a_smarthost_that_is_down_uses_up_no_attempt_and_gets_everything_when_it_is_back,
    two_dispatchers_on_the_same_tables_send_each_mail_once,
    pausing_a_queue_stops_it_before_its_next_mail_and_resuming_loses_nothing,
    a_row_that_is_inserted_while_the_daemon_sleeps_goes_out_at_its_next_poll,
);

async fn fill(queue: &Queue, rows: impl IntoIterator<Item = Columns>) -> Vec<i64> {
    let mut mids = Vec::new();
    for columns in rows {
        mids.push(queue.insert(&columns).await.expect("INSERT"));
    }
    mids
}

/// How often each recipient got a mail.
fn tally(received: &[Received]) -> HashMap<String, usize> {
    let mut tally = HashMap::new();
    for recipient in received.iter().flat_map(|mail| &mail.recipients) {
        *tally.entry(recipient.clone()).or_default() += 1;
    }
    tally
}

fn assert_once_each(received: &[Received], count: usize) {
    let twice: Vec<_> = tally(received).into_iter().filter(|(_, times)| *times != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(tally(received).len(), count);
}

async fn until_empty(queue: &Queue) {
    let deadline = tokio::time::Instant::now() + crate::support::DEADLINE;
    while !queue.list(&Default::default(), i64::MIN, 1).await.expect("list").is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "rows are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn stop(running: Running) -> Vec<String> {
    running.signal(Signal::TERM);
    let (status, lines) = running.wait().await;
    assert_eq!(status.code(), Some(0), "{}", lines.join("\n"));
    lines
}

async fn one_pass_sends_what_is_due_in_both_tables_and_deletes_it(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), "", "").await;
    fill(&house.newsletter, (0..150).map(|n| mail(&format!("n{n}@example.org"), "Neuigkeiten"))).await;
    fill(&house.admidio, (0..50).map(|n| mail(&format!("a{n}@example.org"), "Passwort"))).await;
    assert_eq!(house.once().await, 0);
    assert_once_each(&catcher.received(), 200);
    assert!(house.rows(&house.newsletter).await.is_empty());
    assert!(house.rows(&house.admidio).await.is_empty());
    let mail = &catcher.received()[0];
    assert_eq!(mail.sender, "newsletter@partei.example.at");
    assert!(String::from_utf8_lossy(&mail.content).contains("\r\nSubject: "));
    assert!(catcher.connections() <= 4, "connections are kept: {}", catcher.connections());
    assert_eq!(house.once().await, 0, "an empty queue is no trouble");
}

async fn twenty_bcc_of_which_one_is_refused_and_one_put_off_get_the_mail_once_each(database: TestDatabase) {
    let relents = Arc::new(AtomicBool::new(false));
    let relented = relents.clone();
    let catcher = Catcher::with_script(move |step| match step {
        Step::Rcpt { recipient: "b7@example.org" } if !relented.load(Ordering::SeqCst) => {
            Some("550 5.1.1 <b7@example.org>: no such user".to_owned())
        }
        Step::Rcpt { recipient: "b12@example.org" } if !relented.load(Ordering::SeqCst) => {
            Some("450 4.2.1 <b12@example.org>: come back".to_owned())
        }
        _ => None,
    })
    .await;
    let house = House::build(database, catcher.port(), "", "").await;
    let bcc = (0..20).map(|n| format!("b{n}@example.org")).collect::<Vec<_>>().join(", ");
    let headers = format!("From: a@partei.example.at\nBcc: {bcc}\n");
    let mid = fill(&house.newsletter, [row("", "Rundschreiben", "Text\n", &headers)]).await[0];
    for _ in 0..5 {
        house.let_time_pass(&house.newsletter).await;
        assert_eq!(house.once().await, 1);
    }
    assert_once_each(&catcher.received(), 18);
    let listed = house.row(&house.newsletter, mid).await.expect("the row stands");
    let state = |address: &str| listed.history.recipients.iter().find(|known| known.address == address).unwrap();
    assert_eq!(state("b3@example.org").state, RecipientState::Accepted);
    assert!(state("b12@example.org").reply.as_deref().unwrap().contains("4.2.1"));
    let shown = house.run(&["show", &format!("newsletter/{mid}")]).await;
    let shown = said(&shown);
    assert!(shown.contains("b7@example.org") && shown.contains("b12@example.org"), "{shown}");

    relents.store(true, Ordering::SeqCst);
    let retried = house.run(&["retry", &format!("newsletter/{mid}")]).await;
    assert!(retried.status.success(), "{}", said(&retried));
    assert_eq!(house.once().await, 0);
    assert_once_each(&catcher.received(), 20);
    assert!(house.rows(&house.newsletter).await.is_empty());
}

async fn bad_rows_at_the_head_do_not_delay_good_ones_behind_them(database: TestDatabase) {
    let catcher = Catcher::with_script(|step| match step {
        Step::Rcpt { recipient } if recipient.starts_with("refused") => Some("550 5.1.1 no such user".to_owned()),
        Step::Rcpt { recipient } if recipient.starts_with("deferred") => Some("450 4.2.1 mailbox busy".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database, catcher.port(), "", "").await;
    let undecodable = || Columns { mbody: Some(b"no base64!".to_vec()), ..mail("x@example.org", "x") };
    let bad = (0..60).map(|n| match n % 3 {
        0 => undecodable(),
        1 => mail(&format!("refused{n}@example.org"), "x"),
        _ => mail(&format!("deferred{n}@example.org"), "x"),
    });
    fill(&house.newsletter, bad).await;
    fill(&house.newsletter, (0..20).map(|n| mail(&format!("good{n}@example.org"), "x"))).await;
    assert_eq!(house.once().await, 1);
    assert_once_each(&catcher.received(), 20);
    let rows = house.rows(&house.newsletter).await;
    let count = |state, reason| rows.iter().filter(|row| row.state == state && row.reason == Some(reason)).count();
    assert_eq!(count(State::Unreadable, Reason::Base64Invalid), 20);
    assert_eq!(count(State::Failed, Reason::Refused), 20);
    assert_eq!(count(State::Deferred, Reason::Refused), 20);
    let (_, untouched) = house.newsletter.look(rows[0].id.mid).await.unwrap().unwrap();
    assert_eq!(untouched.into_columns(), Some(undecodable()), "byte for byte as it was");
}

async fn a_smarthost_that_is_down_uses_up_no_attempt_and_gets_everything_when_it_is_back(database: TestDatabase) {
    let mut catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), "", "").await;
    catcher.stop().await;
    fill(&house.newsletter, (0..30).map(|n| mail(&format!("n{n}@example.org"), "x"))).await;
    let output = house.run(&["once"]).await;
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("127.0.0.1"), "{}", said(&output));
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.iter().all(|row| row.state == State::Waiting && row.history.attempts == 0), "{rows:?}");

    let daemon = house.start();
    daemon.wait_for_line("relay down").await;
    catcher.start_again().await;
    catcher.wait_for(30).await;
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_once_each(&catcher.received(), 30);
}

async fn two_dispatchers_on_the_same_tables_send_each_mail_once(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), "", "").await;
    fill(&house.newsletter, (0..2_000).map(|n| mail(&format!("n{n}@example.org"), "x"))).await;
    let neighbour = house.neighbour();
    let (first, second) = (house.start(), neighbour.start(&["run"]));
    catcher.wait_for(2_000).await;
    until_empty(&house.newsletter).await;
    stop(first).await;
    stop(second).await;
    assert_once_each(&catcher.received(), 2_000);
}

async fn pausing_a_queue_stops_it_before_its_next_mail_and_resuming_loses_nothing(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), "", "rate = \"100/s\"").await;
    fill(&house.newsletter, (0..400).map(|n| mail(&format!("n{n}@example.org"), "x"))).await;
    let daemon = house.start();
    catcher.wait_for(20).await;
    assert!(house.run(&["pause", "newsletter"]).await.status.success());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopped = catcher.received().len();
    assert!(stopped < 300, "{stopped} mails");
    fill(&house.admidio, [mail("password@example.org", "Passwort")]).await;
    daemon.signal(Signal::USR1);
    eventually("the other queue's mail", || {
        Some(()).filter(|()| tally(&catcher.received()).contains_key("password@example.org"))
    })
    .await;
    assert_eq!(catcher.received().len(), stopped + 1, "nothing of the paused queue");
    let listed = house.rows(&house.newsletter).await;
    assert!(listed.iter().all(|row| row.state == State::Waiting), "what was ready was given back");
    assert!(house.run(&["resume", "newsletter"]).await.status.success());
    catcher.wait_for(401).await;
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_once_each(&catcher.received(), 401);
}

async fn a_row_that_is_inserted_while_the_daemon_sleeps_goes_out_at_its_next_poll(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), "poll_interval = \"300ms\"", "").await;
    let daemon = house.start();
    fill(&house.newsletter, [mail("first@example.org", "x")]).await;
    catcher.wait_for(1).await;
    fill(&house.admidio, [mail("second@example.org", "x")]).await;
    catcher.wait_for(2).await;
    until_empty(&house.admidio).await;
    let lines = stop(daemon).await;
    for word in ["claimed", "accepted", "deleted"] {
        assert!(lines.iter().any(|line| line.contains("newsletter/1") && line.contains(word)), "{}", lines.join("\n"));
    }
}

#[tokio::test]
async fn a_second_process_with_the_same_state_dir_ends_with_75_and_names_the_first() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let daemon = house.start();
    daemon.wait_for_line("started").await;
    let output = house.run(&["once"]).await;
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert!(said(&output).contains("process "), "{}", said(&output));
    assert!(house.run(&["list"]).await.status.success(), "other commands work beside it");
    stop(daemon).await;
}

#[tokio::test]
async fn a_mail_whose_answer_is_lost_is_sent_again_once_with_the_same_message_id_and_then_held() {
    let catcher = Catcher::with_script(|step| match step {
        // Taken, and not a word about it.
        Step::FinalDot { .. } => Some(String::new()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let mid = fill(&house.newsletter, [mail("a@example.org", "x")]).await[0];
    assert_eq!(house.once().await, 1);
    let first = house.row(&house.newsletter, mid).await.unwrap();
    assert_eq!((first.state, first.reason), (State::Deferred, Some(Reason::OutcomeUnknown)));
    house.let_time_pass(&house.newsletter).await;
    assert_eq!(house.once().await, 1);
    let second = house.row(&house.newsletter, mid).await.unwrap();
    assert_eq!((second.state, second.reason), (State::Held, Some(Reason::OutcomeUnknown)));
    assert!(first.message_id.is_some());
    assert_eq!(first.message_id, second.message_id);
    assert_eq!(house.once().await, 0, "what is held is left alone");
}

#[tokio::test]
async fn lost_rights_pause_the_relay_and_fail_no_mail() {
    let catcher = Catcher::with_script(|step| match step {
        Step::FinalDot { .. } => Some("554 5.7.1 you may not send here".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    fill(&house.newsletter, (0..200).map(|n| mail(&format!("n{n}@example.org"), "x"))).await;
    let output = house.run(&["once"]).await;
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    let rows = house.rows(&house.newsletter).await;
    let count = |state| rows.iter().filter(|row| row.state == state).count();
    assert_eq!(count(State::Failed), 0);
    // Those that were on the wire beside the tenth are refused too, and wait with the ten.
    assert!((10..=14).contains(&count(State::Deferred)), "{} deferred", count(State::Deferred));
    assert_eq!(count(State::Waiting), 200 - count(State::Deferred));
}

#[tokio::test]
async fn a_few_policy_refusals_are_the_mails_own() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Rcpt { recipient } if recipient.starts_with("spam") => Some("554 5.7.1 no".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let to = |n| if n % 5 == 0 { format!("spam{n}@example.org") } else { format!("good{n}@example.org") };
    fill(&house.newsletter, (0..50).map(|n| mail(&to(n), "x"))).await;
    assert_eq!(house.once().await, 1);
    assert_once_each(&catcher.received(), 40);
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.len() == 10 && rows.iter().all(|row| row.state == State::Failed), "{rows:?}");
}

#[tokio::test]
async fn a_restored_dump_is_recognised_and_held() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let mids = fill(&house.newsletter, [mail("a@example.org", "x")]).await;
    assert_eq!(house.once().await, 0);
    let mut connection = house.connect().await;
    house.insert_as(&mut connection, mids[0], &mail("a@example.org", "x")).await;
    house.insert_as(&mut connection, mids[0] + 1, &mail("a@example.org", "x")).await;
    assert_eq!(house.once().await, 1);
    assert_eq!(tally(&catcher.received())["a@example.org"], 2, "the same content under another number is a new mail");
    let rows = house.rows(&house.newsletter).await;
    let left: HashSet<_> = rows.iter().map(|row| (row.id.mid, row.state, row.reason)).collect();
    assert_eq!(left, HashSet::from([(mids[0], State::Held, Some(Reason::AlreadyAccepted))]));
}
