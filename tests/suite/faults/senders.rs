//! Refusals of mail after mail: they are about a sender or the account, and neither mails nor other senders pay for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mailqueue::outcome::{Reason, State};
use mailqueue::queue::Listed;

use super::{OFTEN, SOON, stop, until_empty, until_left};
use crate::support::catcher::{Catcher, Hazard, Received, Step};
use crate::support::database;
use crate::support::house::{House, row, said};

const BAD: &str = "bad@example.org";

/// Refuses mails of one sender at MAIL, as long as `refuses` is true.
fn rights(step: Step<'_>, refuses: &AtomicBool) -> Option<String> {
    match step {
        Step::Mail { sender: BAD } if refuses.load(Ordering::SeqCst) => {
            Some("550 5.7.60 SMTP; Client does not have permissions to send as this sender".to_owned())
        }
        _ => None,
    }
}

async fn house_without_rights(refuses: &Arc<AtomicBool>) -> (House, Catcher) {
    let refuses = refuses.clone();
    let catcher = Catcher::with_script(move |step| rights(step, &refuses)).await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    (house, catcher)
}

/// Rows of this sender, to `prefix0@`, `prefix1@` and so on.
async fn insert(house: &House, sender: &str, prefix: &str, count: usize) {
    for n in 0..count {
        let columns = row(&format!("{prefix}{n}@example.org"), "x", "y\n", &format!("From: {sender}\r\n"));
        house.newsletter.insert(&columns).await.expect("INSERT");
    }
}

fn good(received: &[Received]) -> usize {
    received.iter().filter(|mail| mail.recipients[0].starts_with("good")).count()
}

async fn seconds_until_good(catcher: &Catcher, count: usize) -> Duration {
    let begun = Instant::now();
    while good(&catcher.received()) < count {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} of {count}", good(&catcher.received()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_mails_of_a_sender_without_rights_do_not_hold_up_twenty_behind_them() {
    let refuses = Arc::new(AtomicBool::new(true));
    let (house, catcher) = house_without_rights(&refuses).await;
    insert(&house, BAD, "bad", 60).await;
    insert(&house, "good@example.org", "good", 20).await;
    let daemon = house.start();
    let took = seconds_until_good(&catcher, 20).await;
    assert!(took < Duration::from_secs(5), "{took:?}: {}", daemon.lines().join("\n"));
    daemon.wait_for_line("sender paused").await;
    until_left(&house.newsletter, 60).await;
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.iter().all(|row| row.state != State::Failed), "{rows:?}");
    assert_eq!(rows.len(), 60);
    refuses.store(false, Ordering::SeqCst);
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 80, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pass_sends_what_stands_behind_a_sender_without_rights() {
    let (house, catcher) = house_without_rights(&Arc::new(AtomicBool::new(true))).await;
    insert(&house, BAD, "bad", 60).await;
    insert(&house, "good@example.org", "good", 20).await;
    let output = house.run(&["--log-level", "info", "once"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(good(&catcher.received()), 20);
    let rows = house.rows(&house.newsletter).await;
    let tried = rows.iter().filter(|row| row.history.attempts > 0).count();
    assert!((10..=18).contains(&tried), "{tried} were tried");
    let waits = |row: &&Listed| (row.state, row.history.attempts) == (State::Waiting, 0);
    let (waiting, deferred): (Vec<_>, Vec<_>) = rows.iter().partition(waits);
    assert_eq!((waiting.len() + deferred.len(), deferred.len()), (60, tried), "{rows:?}");
    for row in deferred {
        assert_eq!((row.state, row.reason), (State::Deferred, Some(Reason::Throttled)), "{row:?}");
        assert!(row.last_reply.as_ref().is_some_and(|said| said.contains("550 5.7.60")), "{row:?}");
    }
}

/// The mail that would be next has left the queue before the tenth refusal comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_one_connection_the_tenth_refused_mail_of_a_sender_is_the_last_that_is_offered() {
    let catcher = Catcher::with_script(|step| rights(step, &AtomicBool::new(true))).await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &format!("connections = 1{SOON}")).await;
    insert(&house, BAD, "bad", 12).await;
    insert(&house, "good@example.org", "good", 20).await;
    let output = house.run(&["--log-level", "info", "once"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let rows = house.rows(&house.newsletter).await;
    assert_eq!(rows.iter().filter(|row| row.history.attempts > 0).count(), 10, "{rows:?}");
    assert_eq!((rows.len(), good(&catcher.received())), (12, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_without_rights_fills_no_batch_and_no_queue() {
    let (house, catcher) = house_without_rights(&Arc::new(AtomicBool::new(true))).await;
    insert(&house, BAD, "bad", 1200).await;
    insert(&house, "good@example.org", "good", 20).await;
    let daemon = house.start();
    let took = seconds_until_good(&catcher, 20).await;
    assert!(took < Duration::from_secs(20), "{took:?}: {}", daemon.lines().join("\n"));
    stop(daemon).await;
}

/// The mail that tries whether a pause is over can turn out not to go over this connection. Another one tries then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_whose_trial_was_set_aside_is_tried_with_its_next_mail() {
    let refuses = Arc::new(AtomicBool::new(true));
    let still = refuses.clone();
    let catcher = Catcher::with_script(move |step| match step {
        Step::Ehlo if !still.load(Ordering::SeqCst) => Some("250-catcher.example\r\n250 PIPELINING".to_owned()),
        step => rights(step, &still),
    })
    .await;
    let settings = format!("connections = 1\nmessages_per_connection = 1{SOON}");
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &settings).await;
    // What is signed cannot be encoded again, and needs 8BITMIME.
    let headers = format!(
        "From: {BAD}\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/signed; boundary=b; micalg=pgp-sha256; protocol=\"application/pgp-signature\"\r\n"
    );
    let body = "--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße\n\
                --b\nContent-Type: application/pgp-signature\n\nsigned\n--b--\n";
    for n in 0..12 {
        house.newsletter.insert(&row(&format!("signed{n}@example.org"), "x", body, &headers)).await.expect("INSERT");
    }
    insert(&house, "good@example.org", "good", 20).await;
    let daemon = house.start();
    daemon.wait_for_line("sender paused").await;
    seconds_until_good(&catcher, 20).await;
    refuses.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    let set_aside = |row: &Listed| row.reason == Some(Reason::NotTransportable);
    while !house.rows(&house.newsletter).await.iter().all(set_aside) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", daemon.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    insert(&house, BAD, "plain", 1).await;
    catcher.wait_for(21).await;
    until_left(&house.newsletter, 12).await;
    stop(daemon).await;
}

/// The mail that tries whether a pause is over gets no answer to its final dot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_that_takes_long_holds_up_no_other_sender() {
    let refuses = Arc::new(AtomicBool::new(true));
    let still = refuses.clone();
    let hazard = |step: Step<'_>| match step {
        Step::FinalDot { mail } if mail.sender == BAD => Hazard::Stall,
        _ => Hazard::None,
    };
    let catcher = Catcher::with_hazards(move |step| rights(step, &still), hazard).await;
    let retry = "\n[retry]\ninitial = \"1m\"\nmaximum = \"1m\"";
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, retry).await;
    // With a second sender refused mails are the sender's trouble, and not the relay's.
    insert(&house, BAD, "bad", 60).await;
    insert(&house, "good@example.org", "good", 5).await;
    let daemon = house.start();
    daemon.wait_for_line("sender paused").await;
    seconds_until_good(&catcher, 5).await;
    until_left(&house.newsletter, 60).await;
    assert!(house.run(&["pause", "newsletter"]).await.status.success());
    daemon.wait_for_line("queue paused").await;
    refuses.store(false, Ordering::SeqCst);
    // The sender's pause ends, and then all are due together: several are marked before the first of them goes out.
    tokio::time::sleep(Duration::from_secs(8)).await;
    house.let_time_pass(&house.newsletter).await;
    assert!(house.run(&["resume", "newsletter"]).await.status.success());
    let begun = Instant::now();
    while !catcher.received().iter().any(|mail| mail.sender == BAD) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no trial: {}", daemon.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    insert(&house, "good@example.org", "good-again", 40).await;
    let took = seconds_until_good(&catcher, 45).await;
    assert!(took < Duration::from_secs(10), "{took:?}: {}", daemon.lines().join("\n"));
    assert_eq!(catcher.received().iter().filter(|mail| mail.sender == BAD).count(), 1, "one is tried");
    daemon.signal(rustix::process::Signal::KILL);
}

/// SMTP is told the same for all: only the row's own sender tells them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_is_the_rows_own_where_all_have_one_envelope_sender() {
    let catcher = Catcher::with_script(|step| match step {
        Step::FinalDot { mail } if mail.recipients[0].starts_with("bad") => {
            Some("550 5.7.1 From is not yours".to_owned())
        }
        _ => None,
    })
    .await;
    let settings = format!("{SOON}\n[message]\nenvelope_from = \"bounces@example.org\"");
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, &settings).await;
    insert(&house, BAD, "bad", 60).await;
    insert(&house, "good@example.org", "good", 20).await;
    let daemon = house.start();
    let took = seconds_until_good(&catcher, 20).await;
    assert!(took < Duration::from_secs(5), "{took:?}: {}", daemon.lines().join("\n"));
    let line = daemon.wait_for_line("sender paused").await;
    assert!(line.contains(BAD), "{line}");
    stop(daemon).await;
    assert!(catcher.received().iter().all(|mail| mail.sender == "bounces@example.org"));
}

async fn a_quota_is_the_accounts(refusal: &'static str, senders: &[&str]) {
    let (taken, full) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(true)));
    let is_full = full.clone();
    let catcher = Catcher::with_script(move |step| match step {
        Step::Rcpt { recipient } if is_full.load(Ordering::SeqCst) && taken.fetch_add(1, Ordering::SeqCst) >= 5 => {
            Some(refusal.replace("{}", recipient))
        }
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    for n in 0..60 {
        let columns =
            row(&format!("n{n}@example.org"), "x", "y\n", &format!("From: {}\r\n", senders[n % senders.len()]));
        house.newsletter.insert(&columns).await.expect("INSERT");
    }
    let daemon = house.start();
    let line = daemon.wait_for_line("relay down").await;
    assert!(line.contains("mails in a row are refused with"), "{line}");
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.iter().all(|row| row.state != State::Failed), "{rows:?}");
    assert!(rows.len() >= 50, "{} are left", rows.len());
    full.store(false, Ordering::SeqCst);
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert!(!lines.iter().any(|line| line.contains("\"failed\"")), "{}", lines.join("\n"));
    assert_eq!(catcher.received().len(), 60, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daily_limit_of_one_sender_that_has_all_mails_takes_the_relay_down() {
    a_quota_is_the_accounts("550 5.4.5 <{}>: Daily user sending limit exceeded", &["a@example.org"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exceeded_quota_takes_the_relay_down_whoever_sends() {
    let senders = ["a@example.org", "b@example.org", "c@example.org"];
    a_quota_is_the_accounts("552 you are over your relay quota, see https://e.example/q/{}", &senders).await;
}

async fn dead_addresses_are_dead_addresses(refusal: &'static str) {
    let catcher = Catcher::with_script(move |step| match step {
        Step::Rcpt { recipient } if recipient.starts_with("dead") => Some(refusal.to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), OFTEN, SOON).await;
    insert(&house, "a@example.org", "dead", 30).await;
    insert(&house, "a@example.org", "good", 5).await;
    let output = house.run(&["--log-level", "info", "once"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(good(&catcher.received()), 5, "{}", said(&output));
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.len() == 30 && rows.iter().all(|row| row.state == State::Failed), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_unknown_mailboxes_in_a_row_are_no_streak() {
    dead_addresses_are_dead_addresses("550 5.1.1 User unknown").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_bare_550_at_rcpt_in_a_row_are_no_streak() {
    dead_addresses_are_dead_addresses("550 No such user here").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_full_mailboxes_in_a_row_are_no_streak() {
    dead_addresses_are_dead_addresses("552 5.2.2 Mailbox full").await;
}
