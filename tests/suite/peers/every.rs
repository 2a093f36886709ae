//! Promises that hold with each smarthost: every mail once, whatever is refused, too large or killed.

use std::collections::HashSet;
use std::time::Instant;

use super::*;
use crate::support::smarthost::{DOVECOT, EXIM_LIMITED};
use crate::support::{DEADLINE, long};

/// For the test's record: how many mails a second.
fn note_rate(town: &Town, count: usize, begun: Instant) {
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    println!("{}: {count} mails, {rate:.0} a second", town.smarthost.name());
}

fn how_many() -> usize {
    if long() { 500 } else { 50 }
}

async fn mails_over_four_connections_arrive_once_each(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    for local in numbered("n", how_many()) {
        town.insert(&local, "x").await;
    }
    let begun = Instant::now();
    town.once(0).await;
    note_rate(&town, how_many(), begun);
    assert!(town.is_empty().await);
    town.assert_once_each(numbered("n", how_many())).await;
}

async fn of_fifty_in_bcc_one_is_refused_one_is_deferred_and_the_others_have_it_once(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    // chasquid knows no way to defer a recipient.
    let odd: &[&str] = if smarthost == CHASQUID { &["refused1"] } else { &["refused1", "deferred1"] };
    let good = 50 - odd.len();
    let (before, after) = (numbered("b", 20), numbered("c", good - 20));
    let odd = odd.iter().map(|local| local.to_string());
    let mid = town.insert_bcc(before.chain(odd).chain(after)).await;
    town.once(1).await;
    let row = town.row(mid).await;
    let states = recipient_states(&row);
    assert_eq!(states[&RecipientState::Accepted], good, "{row:?}");
    assert_eq!(states[&RecipientState::Refused], 1, "{row:?}");
    assert_eq!(states.get(&RecipientState::Deferred), (good == 48).then_some(&1), "{row:?}");
    let expected = if good == 48 { State::Deferred } else { State::Failed };
    assert_eq!((row.state, row.reason), (expected, Some(Reason::Refused)));
    town.let_time_pass().await;
    town.once(if good == 48 { 1 } else { 0 }).await;
    town.assert_once_each(numbered("b", 20).chain(numbered("c", good - 20))).await;
}

/// A recipient who has a mail twice is named in the log with an unknown outcome.
async fn killed_and_started_again_it_loses_nothing_and_repeats_only_what_it_says(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    let count = how_many();
    let mut mids = HashMap::new();
    for local in numbered("n", count) {
        mids.insert(town.address(&local), town.insert(&local, "x").await);
    }
    let daemon = town.house.start();
    town.smarthost.delivered_to(&town.domain, count / 5).await;
    daemon.signal(Signal::KILL);
    let mut lines = daemon.wait().await.1;
    let daemon = town.house.start();
    // Before that a signal would end it.
    daemon.wait_for_line("started").await;
    if long() {
        town.smarthost.delivered_to(&town.domain, count / 2).await;
        daemon.signal(Signal::STOP);
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        daemon.signal(Signal::CONT);
    }
    let deadline = Instant::now() + 2 * DEADLINE;
    while count_of(&town).await > 0 {
        let lines = || daemon.lines().join("\n");
        assert!(Instant::now() < deadline, "{:?}\n{}", town.house.rows(&town.house.newsletter).await, lines());
        town.house.let_time_pass(&town.house.newsletter).await;
        daemon.signal(Signal::USR1);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    daemon.signal(Signal::TERM);
    lines.extend(daemon.wait().await.1);

    let delivered = town.delivered(count).await;
    let recipients: HashSet<_> = delivered.iter().map(|mail| mail.recipient.clone()).collect();
    assert_eq!(recipients.len(), count, "none is lost");
    for recipient in &recipients {
        let copies: Vec<_> = delivered.iter().filter(|mail| mail.recipient == *recipient).collect();
        let id = format!("\"newsletter/{}\"", mids[recipient]);
        let unknown = lines.iter().filter(|line| line.contains("unknown: ") && line.contains(&id)).count();
        assert!(copies.len() <= 1 + unknown, "{recipient} has it {} times: {}", copies.len(), lines.join("\n"));
        let ids: HashSet<_> = copies.iter().map(|mail| header(mail, "Message-ID: ")).collect();
        assert_eq!(ids.len(), 1, "one mail");
    }
}

async fn count_of(town: &Town) -> usize {
    count(&town.house.newsletter).await
}

/// 300 mails with a default of four connections, of which the smarthost takes three.
async fn three_connections_of_four_are_enough(town: Town) {
    let count = 300;
    for local in numbered("n", count) {
        town.insert(&local, "x").await;
    }
    let begun = Instant::now();
    let words = town.once(0).await;
    note_rate(&town, count, begun);
    assert!(words.contains("takes no more connections"), "{words}");
    assert!(!words.contains("recipient deferred"), "no attempt is used: {words}");
    town.assert_once_each(numbered("n", count)).await;
}

macro_rules! on_each {
    ($smarthost:ident: $($name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name($smarthost).await })*
    };
}
macro_rules! suite {
    ($module:ident: $smarthost:ident $(, $more:item)* $(,)?) => {
        mod $module {
            use super::*;

            on_each!($smarthost:
                mails_over_four_connections_arrive_once_each,
                of_fifty_in_bcc_one_is_refused_one_is_deferred_and_the_others_have_it_once,
                killed_and_started_again_it_loses_nothing_and_repeats_only_what_it_says,
            );
            $($more)*
        }
    };
}

suite!(
    postfix: POSTFIX,
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn three_connections_of_four_are_enough() {
        let town = Town::build(database::sqlite(), POSTFIX).await;
        town.configure(&Town::in_the_clear(POSTFIX.limited_port()));
        super::three_connections_of_four_are_enough(town).await;
    }
);
suite!(
    exim: EXIM,
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn three_connections_of_four_are_enough() {
        super::three_connections_of_four_are_enough(Town::build(database::sqlite(), EXIM_LIMITED).await).await;
    }
);
suite!(
    dovecot: DOVECOT,
    #[tokio::test]
    async fn a_mail_over_the_announced_size_is_too_large_and_stops_no_other() {
        super::super::a_mail_over_the_announced_size_is_too_large_and_stops_no_other(DOVECOT).await;
    }
);
suite!(
    chasquid: CHASQUID,
    #[tokio::test]
    async fn a_mail_over_the_announced_size_is_too_large_and_stops_no_other() {
        super::super::a_mail_over_the_announced_size_is_too_large_and_stops_no_other(CHASQUID).await;
    },
    #[tokio::test]
    async fn a_mail_that_is_put_off_behind_its_dot_waits() {
        let town = Town::build(database::sqlite(), CHASQUID).await;
        let mid = town.insert("a", "defer this").await;
        town.insert("b", "x").await;
        town.once(1).await;
        assert_eq!(town.row(mid).await.state, State::Deferred);
        town.assert_once_each(["b".to_owned()]).await;
    }
);
suite!(
    opensmtpd: OPENSMTPD,
    #[tokio::test]
    async fn a_mail_over_the_announced_size_is_too_large_and_stops_no_other() {
        super::super::a_mail_over_the_announced_size_is_too_large_and_stops_no_other(OPENSMTPD).await;
    }
);
