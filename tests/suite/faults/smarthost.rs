//! A smarthost in a bad mood: whom its trouble concerns, and whom it must not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mailqueue::outcome::{Reason, State};

use super::{OFTEN, SOON, stop, until_empty, until_left, until_said};
use crate::support::catcher::{Catcher, Step};
use crate::support::database;
use crate::support::house::{House, mail, row, said};
use crate::support::long;
use crate::support::mails::Mails;
use crate::support::session::Session;

/// The answer to a step of a mail whose recipient begins with `poison`.
fn poison(step: Step<'_>, at_data: Option<&str>, at_dot: Option<&str>, inside: &AtomicBool) -> Option<String> {
    match step {
        // Held for the DATA that follows on the same connection: there is one connection.
        Step::Rcpt { recipient } => {
            inside.store(recipient.starts_with("poison"), Ordering::SeqCst);
            None
        }
        Step::Data if inside.load(Ordering::SeqCst) => at_data.map(str::to_owned),
        Step::FinalDot { mail } if mail.recipients[0].starts_with("poison") => at_dot.map(str::to_owned),
        _ => None,
    }
}

async fn hangs_up_each_time(at_data: Option<&'static str>, at_dot: Option<&'static str>) -> Vec<(State, Reason)> {
    let inside = AtomicBool::new(false);
    let catcher = Catcher::with_script(move |step| poison(step, at_data, at_dot, &inside)).await;
    let settings = format!("connections = 1{SOON}");
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &settings).await;
    let mut session = Session::on(&house.database.url).await;
    let (mut poison, mut good) = (Mails::default(), Mails::default());
    for n in 0..3 {
        poison.insert(&mut session, &format!("poison-{n}"), 1, None).await;
        good.fill(&mut session, &format!("good-{n}"), 30).await;
    }
    let daemon = house.start();
    until_left(&house.newsletter, 3).await;
    let lines = stop(daemon).await;
    assert_eq!(good.audit(&catcher.received(), &lines), 0);
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.iter().all(|row| row.history.attempts > 0), "{rows:?}");
    rows.into_iter().map(|row| (row.state, row.reason.unwrap())).collect()
}

#[tokio::test]
async fn a_mail_on_which_the_smarthost_says_421_each_time_does_not_hold_up_the_others() {
    let rows = hangs_up_each_time(Some("421 4.3.0 I choke on this"), None).await;
    assert_eq!(rows, [(State::Deferred, Reason::RelayUnavailable); 3].map(|(s, _)| (s, rows[0].1)), "{rows:?}");
}

#[tokio::test]
async fn a_mail_on_which_the_smarthost_hangs_up_at_data_each_time_does_not_hold_up_the_others() {
    let rows = hangs_up_each_time(Some(""), None).await;
    assert_eq!(rows, [(State::Deferred, Reason::RelayUnavailable); 3]);
}

#[tokio::test]
async fn a_mail_on_which_the_smarthost_says_421_at_the_dot_each_time_does_not_hold_up_the_others() {
    let rows = hangs_up_each_time(None, Some("421 4.3.0 I choke on this")).await;
    assert!(rows.iter().all(|(state, _)| *state == State::Deferred), "{rows:?}");
}

#[tokio::test]
async fn a_mail_on_which_the_smarthost_hangs_up_at_the_dot_is_resent_once_and_held() {
    let rows = hangs_up_each_time(None, Some("")).await;
    assert!(rows.iter().all(|(_, reason)| *reason == Reason::OutcomeUnknown), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_mails_and_lost_rights_end_with_a_paused_relay_and_come_through_when_rights_are_back() {
    let count = if long() { 10_000 } else { 2_000 };
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = refuses.clone();
    let catcher = Catcher::with_script(move |step| match step {
        Step::FinalDot { .. } if refusing.load(Ordering::SeqCst) => Some("554 5.7.1 not you".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().flood(&mut session, "mail_queue", "n", count).await;
    let daemon = house.start();
    daemon.wait_for_line("relay down").await;
    // Probes succeed, and one more mail each time shows that nothing has changed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let rows = house.rows(&house.newsletter).await;
    let failed = rows.iter().filter(|row| row.state == State::Failed).count();
    assert_eq!((rows.len(), failed), (count, 0));
    let tried = rows.iter().filter(|row| row.history.attempts > 0).count();
    assert!((10..=20).contains(&tried), "{tried} were tried");
    let said = daemon.lines().iter().filter(|line| line.contains("relay down")).count();
    assert!(said <= 5, "{said} pauses");
    refuses.store(false, Ordering::SeqCst);
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), count);
}

#[tokio::test]
async fn throttling_shrinks_the_connections_and_loses_nothing() {
    let dots = AtomicUsize::new(0);
    let catcher = Catcher::with_script(move |step| match step {
        Step::FinalDot { .. } if (20..60).contains(&dots.fetch_add(1, Ordering::SeqCst)) => {
            Some("451 4.7.1 not so fast".to_owned())
        }
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 200).await;
    let daemon = house.start();
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert!(lines.iter().any(|line| line.contains("fewer connections")), "{}", lines.join("\n"));
    assert!(!lines.iter().any(|line| line.contains("\"failed\"")), "{}", lines.join("\n"));
}

#[tokio::test]
async fn a_smarthost_that_goes_away_with_all_connections_keeps_its_name_for_pipelining() {
    let mut catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 60).await;
    catcher.close_gate();
    let daemon = house.start();
    // Each connection has the next mail's commands out behind this one's dot.
    catcher.wait_at_gate(4).await;
    catcher.stop().await;
    catcher.open_gate();
    catcher.start_again().await;
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert!(lines.iter().any(|line| line.contains("before the final dot was answered")), "{}", lines.join("\n"));
    assert!(!lines.iter().any(|line| line.contains("PIPELINING")), "{}", lines.join("\n"));
    assert!(mails.audit(&catcher.received(), &lines) <= 4);
}

#[tokio::test]
async fn a_refused_login_is_the_relays_trouble_and_no_mails() {
    let knows_us = Arc::new(AtomicBool::new(false));
    let known = knows_us.clone();
    let catcher = Catcher::with_script(move |step| match step {
        Step::Ehlo => Some("250-catcher.example\r\n250-PIPELINING\r\n250 AUTH PLAIN".to_owned()),
        Step::Auth if !known.load(Ordering::SeqCst) => Some("535 5.7.8 who are you".to_owned()),
        _ => None,
    })
    .await;
    let settings = format!("username = \"mailqueue\"\npassword_file = \"{{dir}}/password\"{SOON}");
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &settings).await;
    super::state::write_secret(&house.installation.path().join("password"), "secret");
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 100).await;
    let daemon = house.start();
    let line = daemon.wait_for_line("relay down").await;
    assert!(line.contains("535"), "{line}");
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.iter().all(|row| row.history.attempts == 0), "{rows:?}");
    knows_us.store(true, Ordering::SeqCst);
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert!(!lines.iter().any(|line| line.contains("secret")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_mail_overtakes_a_newsletter() {
    let count = if long() { 20_000 } else { 2_000 };
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, "rate = \"100/s\"").await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().flood(&mut session, "mail_queue", "n", count).await;
    let daemon = house.start();
    catcher.wait_for(50).await;
    house.admidio.insert(&mail("password@example.org", "Passwort")).await.expect("INSERT");
    let before = catcher.received().len();
    let is_password = |mail: &crate::support::catcher::Received| mail.recipients[0] == "password@example.org";
    let place = crate::support::eventually("the password", || catcher.received().iter().position(is_password)).await;
    // Found at the next poll, and then before what is ready already.
    assert!(place < before + 300, "{place} mails before it, {before} of them when it was written");
    stop(daemon).await;
}

const WITHOUT_8BITMIME: &str = "250-catcher.example\r\n250 PIPELINING";

/// Mails of which a part is 8-bit, and says so.
async fn eight_bit_mails(house: &House, count: usize) {
    let headers = "From: a@example.org\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n";
    let part = "--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße\n--b--\n";
    for n in 0..count {
        house.newsletter.insert(&row(&format!("n{n}@example.org"), "x", part, headers)).await.expect("INSERT");
    }
}

#[tokio::test]
async fn the_first_mails_reach_a_smarthost_without_8bitmime_too() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Ehlo => Some(WITHOUT_8BITMIME.to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    eight_bit_mails(&house, 3).await;
    assert_eq!(house.once().await, 0);
    let received = catcher.received();
    assert_eq!(received.len(), 3);
    assert!(received.iter().all(|mail| mail.content.is_ascii()));
}

#[tokio::test]
async fn what_show_calls_raw_is_what_this_smarthost_would_get() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Ehlo => Some(WITHOUT_8BITMIME.to_owned()),
        Step::Rcpt { .. } => Some("450 4.2.1 mailbox busy".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, "").await;
    eight_bit_mails(&house, 1).await;
    let raw = async || said(&house.run(&["show", "newsletter/1", "--raw"]).await);
    assert!(raw().await.contains("Grüße"), "nobody has asked the smarthost yet: {}", raw().await);
    let daemon = house.start();
    daemon.wait_for_line("mailbox busy").await;
    until_said(&house, &["show", "newsletter/1", "--raw"], "Gr=C3=BC=C3=9Fe").await;
    stop(daemon).await;
    assert!(raw().await.is_ascii(), "it has no 8BITMIME: {}", raw().await);
}

#[tokio::test]
async fn a_smarthost_that_is_not_there_is_not_asked_once_for_each_mail() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Greeting => Some("421 4.3.2 not now".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    eight_bit_mails(&house, 40).await;
    assert_eq!(house.once().await, 69);
    assert!(catcher.connections() <= 5, "{} connections", catcher.connections());
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.len() == 40 && rows.iter().all(|row| row.history.attempts == 0), "{rows:?}");
}

/// The capabilities for the row's recipients are known only once a connection is there.
#[tokio::test]
async fn a_recipient_that_needs_smtputf8_does_not_keep_the_first_mail_from_another() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Ehlo => Some("250-catcher.example\r\n250-8BITMIME\r\n250 PIPELINING".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    let columns = row("jörg@example.org, anna@example.org", "x", "y\n", "From: a@example.org\r\n");
    let mid = house.newsletter.insert(&columns).await.expect("INSERT");
    assert_eq!(house.once().await, 1);
    let received: Vec<_> = catcher.received().into_iter().flat_map(|mail| mail.recipients).collect();
    assert_eq!(received, ["anna@example.org"]);
    let row = house.row(&house.newsletter, mid).await.expect("it stays for jörg");
    assert_eq!((row.state, row.reason), (State::Failed, Some(Reason::AddressInvalid)), "{row:?}");
    assert_eq!(row.history.attempts, 0, "{row:?}");
}
