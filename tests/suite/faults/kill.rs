//! SIGKILL at any moment.

use std::time::Duration;

use jiff::Timestamp;
use mailqueue::outcome::State;
use mailqueue::queue::Action;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{OFTEN, SOON, kill, stop, until_empty};
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::House;
use crate::support::mails::Mails;
use crate::support::session::Session;
use crate::support::{long, seed};

const CONNECTIONS: usize = 4;

on_every_database!(killed_again_and_again_the_program_loses_nothing_and_repeats_only_what_it_calls_unknown);

async fn killed_again_and_again_the_program_loses_nothing_and_repeats_only_what_it_calls_unknown(
    database: TestDatabase,
) {
    let (rows, kills) = if long() { (5_000, 60) } else { (400, 7) };
    let mut random = StdRng::seed_from_u64(seed());
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, &format!("connections = {CONNECTIONS}{SOON}")).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let producer = Mails::all_the_while(&house.database.url, "during", Duration::from_millis(10));
    let mut lines = Vec::new();
    for life in 0..kills {
        mails.fill(&mut session, &format!("life{life}"), rows / kills).await;
        let daemon = house.start();
        let received = catcher.received().len();
        if random.random_bool(0.8) {
            catcher.wait_for(received + 1).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        lines.extend(kill(daemon).await);
    }
    mails.add(producer.stop().await);

    let daemon = house.start();
    loop {
        // A mail whose outcome was unknown twice waits for an operator.
        let held: Vec<_> = house.rows(&house.newsletter).await.into_iter().collect();
        let Some(_) = held.first() else { break };
        let mids: Vec<_> = held.iter().filter(|row| row.state == State::Held).map(|row| row.id.mid.into()).collect();
        house.newsletter.apply(&Action::Release, &mids, Timestamp::now()).await.expect("release");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until_empty(&house.newsletter).await;
    lines.extend(stop(daemon).await);
    let repeated = mails.audit(&catcher.received(), &lines);
    assert!(repeated <= kills * CONNECTIONS, "{repeated} mails came twice in {kills} kills");
    assert_eq!(house.ledger_open(), 0);
    println!("{} rows, {kills} kills, {repeated} mails came twice", mails.len());
}
