//! Steady load and a fault every few seconds: memory, descriptors and connections stay flat, and a second queue on a
//! database of its own goes on while the first database is locked or away.
//!
//! By default for some seconds; `MAILQUEUE_TEST_SOAK=60` goes on for an hour.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use super::{OFTEN, SOON, stop, until_released_and_empty};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::House;
use crate::support::mails::Mails;
use crate::support::proxy::Proxy;
use crate::support::second::Second;
use crate::support::seed;
use crate::support::session::Session;

on_every_server!(faults_under_steady_load_leave_memory_descriptors_and_connections_as_they_were);

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Usage {
    memory: u64,
    descriptors: usize,
}

async fn faults_under_steady_load_leave_memory_descriptors_and_connections_as_they_were(database: TestDatabase) {
    let minutes = std::env::var("MAILQUEUE_TEST_SOAK").ok().and_then(|text| text.parse::<u64>().ok());
    let lasts = minutes.map_or(Duration::from_secs(12), |minutes| Duration::from_secs(minutes * 60));
    let mut random = StdRng::seed_from_u64(seed());
    let mut catcher = Catcher::start().await;
    let proxy = Proxy::to(&database.url).await;
    let mut second = Second::new();
    let house = House::build(database, catcher.port(), &format!("{OFTEN}\n{}", second.section()), SOON).await;
    house.reroute(proxy.port());
    let mut foreign = Session::on(&house.database.url).await;
    let daemon = house.start();
    let producer = Mails::all_the_while(&house.database.url, "n", Duration::from_millis(20));
    let started = Instant::now();
    let mut early = None;
    while started.elapsed() < lasts {
        tokio::time::sleep(Duration::from_millis(random.random_range(500..2_000))).await;
        match random.random_range(0..6) {
            0 => proxy.cut(),
            1 => {
                proxy.stall();
                second.goes_on(&catcher, "while-stalled").await;
                proxy.open();
            }
            5 => {
                lock(&mut foreign).await;
                second.goes_on(&catcher, "while-locked").await;
                unlock(&mut foreign).await;
            }
            2 => {
                catcher.stop().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                catcher.start_again().await;
            }
            3 => {
                daemon.signal(Signal::STOP);
                tokio::time::sleep(Duration::from_millis(300)).await;
                daemon.signal(Signal::CONT);
            }
            _ => daemon.signal(Signal::USR1),
        }
        if early.is_none() && started.elapsed() > lasts / 3 {
            early = Some(usage(&daemon));
        }
    }
    let mails = producer.stop().await;
    until_released_and_empty(&house.newsletter).await;
    second.until_empty("in the end").await;
    let (early, late) = (early.expect("a third has passed"), usage(&daemon));
    let lines = stop(daemon).await;
    let repeated = mails.audit(&catcher.received(), &lines) + second.audit(&catcher.received(), &lines);
    println!("{} mails in {lasts:?}, {repeated} came twice: {early:?}, then {late:?}", mails.len());
    assert!(late.descriptors <= early.descriptors + 10, "{early:?}, then {late:?}");
    assert!(late.memory < early.memory + early.memory / 4 + 8_000_000, "{early:?}, then {late:?}");
    assert_eq!(house.ledger_open(), 0);
}

/// Locks a table of ours, so that producers go on.
async fn lock(session: &mut Session) {
    let sql = match session {
        Session::MariaDb(_) => "LOCK TABLES mailqueue_delivery WRITE",
        _ => "BEGIN; LOCK TABLE mailqueue_delivery",
    };
    session.run(sql).await.expect("LOCK");
}

async fn unlock(session: &mut Session) {
    let sql = if matches!(session, Session::MariaDb(_)) { "UNLOCK TABLES" } else { "COMMIT" };
    session.run(sql).await.expect("unlock");
}

fn usage(running: &Running) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let memory = line.trim().trim_end_matches(" kB").parse::<u64>().expect("number") * 1024;
    // Connections are descriptors too.
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", running.id())).expect("descriptors").count();
    Usage { memory, descriptors }
}
