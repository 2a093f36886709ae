//! SIGKILL at any moment.

use std::time::Duration;

use mailqueue::outcome::Reason;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{OFTEN, SOON, kill, stop, until_empty, until_released_and_left};
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::House;
use crate::support::mails::Mails;
use crate::support::second::Second;
use crate::support::session::Session;
use crate::support::undeletable::Keeper;
use crate::support::{long, seed};

const CONNECTIONS: usize = 4;

on_every_database!(killed_again_and_again_the_program_loses_nothing_and_repeats_only_what_it_calls_unknown);

async fn killed_again_and_again_the_program_loses_nothing_and_repeats_only_what_it_calls_unknown(
    database: TestDatabase,
) {
    let (rows, kills) = if long() { (5_000, 60) } else { (400, 7) };
    let mut random = StdRng::seed_from_u64(seed());
    let catcher = Catcher::start().await;
    let mut second = Second::new();
    let top = format!("{OFTEN}\n{}", second.section());
    let house = House::build(database, catcher.port(), &top, &format!("connections = {CONNECTIONS}{SOON}")).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let kept = mails.insert(&mut session, "kept", 1, None).await;
    Keeper::Refusal.keep(&mut session, kept).await;
    let pause = Duration::from_millis(10);
    let producers = (Mails::all_the_while(&house.database.url, "during", pause), second.all_the_while(10 * pause));
    let mut lines = Vec::new();
    for life in 0..kills {
        mails.fill(&mut session, &format!("life{life}"), rows / kills).await;
        let daemon = house.start();
        let received = catcher.received().len();
        if random.random_bool(0.8) {
            catcher.wait_for(received + 1).await;
        }
        if random.random_bool(0.3) {
            second.goes_on(&catcher, &format!("life{life}")).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        lines.extend(kill(daemon).await);
    }
    mails.add(producers.0.stop().await);
    second.add(producers.1.stop().await);

    let daemon = house.start();
    until_released_and_left(&house.newsletter, &[kept]).await;
    second.until_empty("in the end").await;
    let row = house.row(&house.newsletter, kept).await.expect("the row that cannot be deleted");
    assert_eq!(row.reason.map(Reason::as_str), Some("not-deleted"), "{row:?}");
    lines.extend(stop(daemon).await);
    let repeated = mails.audit(&catcher.received(), &lines) + second.audit(&catcher.received(), &lines);
    assert!(repeated <= kills * CONNECTIONS, "{repeated} mails came twice in {kills} kills");
    Keeper::Refusal.let_go(&mut session).await;
    let daemon = house.start();
    until_empty(&house.newsletter).await;
    stop(daemon).await;
    assert_eq!(house.ledger_open(), 0);
    assert_eq!(mails.audit(&catcher.received(), &lines) + second.audit(&catcher.received(), &lines), repeated);
    println!("{} rows, {kills} kills, {repeated} mails came twice", mails.len());
}
