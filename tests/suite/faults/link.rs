//! A link to the database that breaks, stalls and loses answers, under a daemon that is at work.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;

use super::{OFTEN, SOON, stop, story, until_empty};
use crate::support::binary::Running;
use crate::support::catcher::{Catcher, Step};
use crate::support::database::TestDatabase;
use crate::support::house::{House, mail};
use crate::support::mails::Mails;
use crate::support::proxy::{Fault, Proxy};
use crate::support::session::Session;
use crate::support::{eventually, long};

on_every_server!(
    a_link_that_is_cut_at_any_statement_loses_and_repeats_nothing,
    a_link_that_loses_the_answer_to_any_statement_loses_and_repeats_no_mail,
    a_link_that_stalls_and_breaks_at_any_statement_loses_and_repeats_nothing,
    a_link_that_is_slow_at_any_statement_loses_and_repeats_nothing,
    while_one_database_is_out_of_reach_the_other_queues_go_on,
    a_database_that_restarts_under_load_is_survived,
);

/// A part of each statement of claim, load, sending, settle and beat, in the words of both databases.
const STATEMENTS: [&str; 10] = [
    "IS NULL ORDER BY q.mid",
    "mailqueue_delivery (id, queue_table, mid, fingerprint, state, created, owner, claim)",
    " AS q ",
    "SET state = 'sending'",
    "SELECT d.id, d.owner, d.claim FROM mailqueue_delivery",
    "AND q.claim IN",
    "FROM mailqueue_delivery AS q",
    "COMMIT",
    "mailqueue_dispatcher (kind, id, heartbeat)",
    "q WHERE q.mid IN",
];

fn stall() -> Duration {
    Duration::from_millis(if long() { 5_000 } else { 300 })
}

async fn a_link_that_is_cut_at_any_statement_loses_and_repeats_nothing(database: TestDatabase) {
    at_any_statement(database, Fault::Cut).await;
}

async fn a_link_that_loses_the_answer_to_any_statement_loses_and_repeats_no_mail(database: TestDatabase) {
    at_any_statement(database, Fault::LoseAnswer).await;
}

async fn a_link_that_stalls_and_breaks_at_any_statement_loses_and_repeats_nothing(database: TestDatabase) {
    at_any_statement(database, Fault::Stall(stall())).await;
}

async fn a_link_that_is_slow_at_any_statement_loses_and_repeats_nothing(database: TestDatabase) {
    at_any_statement(database, Fault::Delay(stall())).await;
}

async fn at_any_statement(database: TestDatabase, fault: Fault) {
    // Some mails are put off at first, since rows that are settled in different ways take other statements.
    let put_off = Mutex::new(HashSet::new());
    let script = move |step: Step<'_>| match step {
        Step::Rcpt { recipient }
            if recipient.contains("-2@") && put_off.lock().unwrap().insert(recipient.to_owned()) =>
        {
            Some("450 4.2.1 later".to_owned())
        }
        _ => None,
    };
    let catcher = Catcher::with_script(script).await;
    let proxy = Proxy::to(&database.url).await;
    // The lease makes heartbeats frequent: ten in a second.
    let house = House::build(database, catcher.port(), &format!("{OFTEN}\nlease = \"3s\""), SOON).await;
    // Without prepared statements, so that each statement's text passes each time.
    house.reroute_with(proxy.port(), "statement-cache-capacity=0");
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let daemon = house.start();
    // Before it, the signal that is sent below would end it.
    daemon.wait_for_line("started").await;
    for (place, statement) in STATEMENTS.into_iter().enumerate() {
        proxy.arm(statement, fault);
        let mut tries = 0;
        while !proxy.has_fired() {
            // A group of five with one that was put off is settled by other statements than five delivered ones.
            assert!(tries < 60, "`{statement}` is not said: {}", daemon.lines().join("\n"));
            mails.fill(&mut session, &format!("statement{place}-{tries}"), 5).await;
            daemon.signal(Signal::USR1);
            tries += 1;
            let fired = async {
                while !proxy.has_fired() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(500), fired).await;
        }
    }
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    let repeated = mails.audit(&catcher.received(), &lines);
    assert_eq!(repeated, 0, "the link to the smarthost was sound:\n{}", story(&lines, &["unknown", "out of reach"]));
    assert_eq!(house.ledger_open(), 0);
}

async fn while_one_database_is_out_of_reach_the_other_queues_go_on(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let proxy = Proxy::to(&database.url).await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    house.reroute(proxy.port());
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let daemon = house.start();
    mails.fill(&mut session, "before", 5).await;
    until_empty(&house.newsletter).await;

    proxy.stall();
    mails.fill(&mut session, "stalled", 5).await;
    other_queue_goes_on(&house, &catcher, "while-stalled").await;
    proxy.close();
    other_queue_goes_on(&house, &catcher, "while-closed").await;
    daemon.wait_for_line("nothing of this queue is sent").await;
    proxy.open();
    daemon.wait_for_line("the database is back").await;
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    let said = lines.iter().filter(|line| line.contains("nothing of this queue")).count();
    assert!(said <= 3, "said once, not at each try: {}", lines.join("\n"));
}

async fn other_queue_goes_on(house: &House, catcher: &Catcher, name: &str) {
    let to = format!("{name}@example.org");
    house.admidio.insert(&mail(&to, "Passwort")).await.expect("INSERT");
    eventually(name, || catcher.received().iter().any(|mail| mail.recipients[0] == to).then_some(())).await;
    until_empty(&house.admidio).await;
}

async fn a_database_that_restarts_under_load_is_survived(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let proxy = Proxy::to(&database.url).await;
    let house = House::build(database, catcher.port(), OFTEN, SOON).await;
    house.reroute(proxy.port());
    let daemon: Running = house.start();
    let producer = Mails::all_the_while(&house.database.url, "during", Duration::from_millis(5));
    for _ in 0..if long() { 50 } else { 4 } {
        let received = catcher.received().len();
        catcher.wait_for(received + 20).await;
        proxy.close();
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.open();
    }
    let mails = producer.stop().await;
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert_eq!(house.ledger_open(), 0);
}
