//! Much at once: memory stays within the budget, and the first mail does not wait for the last.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::outcome::{Reason, State};

use super::{OFTEN, stop, until_empty};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::{self, TestDatabase};
use crate::support::house::House;
use crate::support::long;
use crate::support::mails::Mails;
use crate::support::second::Second;
use crate::support::session::Session;

const MB: u64 = 1_000_000;

/// What the program needs besides the rows: itself, its libraries, its connections.
const FIXED: u64 = 60 * MB;

on_every_database!(
    tens_of_thousands_of_rows_do_not_delay_the_first_mail_or_fill_the_memory,
    a_row_larger_than_any_mail_is_set_aside_with_none_of_it_in_memory,
);

async fn tens_of_thousands_of_rows_do_not_delay_the_first_mail_or_fill_the_memory(database: TestDatabase) {
    let count = if long() { 200_000 } else { 50_000 };
    let catcher = Catcher::start().await;
    let mut second = Second::new();
    let house = House::build(database, catcher.port(), &format!("{OFTEN}\n{}", second.section()), "").await;
    let mut session = Session::on(&house.database.url).await;
    Mails::default().flood(&mut session, "mail_queue", "n", count).await;
    let daemon = house.start();
    daemon.wait_for_line("started").await;
    let started = Instant::now();
    catcher.wait_for(1).await;
    let first = started.elapsed();
    second.goes_on(&catcher, "beside-the-flood").await;
    catcher.wait_for(1_000).await;
    let peak = peak(&daemon);
    stop(daemon).await;
    println!("{count} rows: first mail after {first:?}, peak {} MB", peak / MB);
    // The long version runs alone; the short one beside other tests that keep the processors busy.
    let bound = if long() { 1.0 } else { 5.0 };
    assert!(first.as_secs_f64() < bound, "the first mail left after {first:?}");
    assert!(peak < FIXED, "{} MB", peak / MB);
}

/// Memory that may come on top while such a row is dealt with, in bytes: less than any part of it.
const UNREAD: u64 = 15 * MB;

async fn a_row_larger_than_any_mail_is_set_aside_with_none_of_it_in_memory(database: TestDatabase) {
    let (size, max_size) = if long() { (300 * MB, "40MB") } else { (60 * MB, "10MB") };
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, &format!("[message]\nmax_size = \"{max_size}\"")).await;
    if house.database.url.scheme() == "mysql" {
        Session::on(&house.database.url).await.run("SET GLOBAL max_allowed_packet = 1073741824").await.unwrap();
    }
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "before", 3).await;
    let daemon = house.start();
    until_empty(&house.newsletter).await;
    let before = peak(&daemon);

    let length = size / 3 * 4;
    let body = match house.database.url.scheme() {
        "sqlite" => format!("printf('%.*c', {length}, 'Q')"),
        _ => format!("REPEAT('QUFB', {})", length / 4),
    };
    let [to, headers] = ["large@example.org", "From: a@example.org\r\n"].map(|text| STANDARD.encode(text));
    let sql =
        format!("INSERT INTO mail_queue (mto, mbody, mheaders) VALUES ('{to}', {body}, '{headers}') RETURNING mid");
    let mid = session.number(&sql).await.expect("INSERT");
    daemon.wait_for_line("\"unreadable\"").await;
    // Two more passes, each of which looks whether the row is still what it was.
    for name in ["after", "later"] {
        mails.fill(&mut session, name, 2).await;
        super::until_left(&house.newsletter, 1).await;
    }
    let peak = peak(&daemon);
    stop(daemon).await;
    println!("{} MB in a row, {max_size} allowed: {} MB before, {} MB in the end", size / MB, before / MB, peak / MB);
    let row = house.rows(&house.newsletter).await.remove(0);
    assert_eq!((row.id.mid, row.state, row.reason), (mid, State::Unreadable, Some(Reason::TooLarge)));
    assert!(row.detail.is_some_and(|detail| detail.contains(&format!("mbody holds {size} bytes"))));
    assert!(peak < before + UNREAD, "{} MB before, {} MB in the end", before / MB, peak / MB);
    let gone = house.run(&["delete", "--yes", &format!("newsletter/{mid}")]).await;
    assert_eq!(gone.status.code(), Some(0));
    assert!(house.rows(&house.newsletter).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_rows_travel_within_the_budget() {
    let (count, size) = if long() { (300, 10 * MB) } else { (20, 2 * MB) };
    large_rows(count, size, 16 * MB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_larger_than_the_budget_travels_alone() {
    large_rows(2, 25 * MB, 8 * MB).await;
}

/// Bodies of `size` before their base64.
async fn large_rows(count: u64, size: u64, budget: u64) {
    // A row that is larger than the budget travels alone, and counts three times its columns.
    let bound = budget.max(3 * size * 4 / 3);
    let catcher = Catcher::start().await;
    catcher.keep_whole(MB as usize / 10);
    let top = format!("{OFTEN}\nmax_in_flight_bytes = \"{}MB\"", budget / MB);
    let house = House::build(database::sqlite(), catcher.port(), &top, "").await;
    let mut session = Session::on(&house.database.url).await;
    let line = "Liebe Pirat:innen, dies ist ein langer Text.\n";
    let body = STANDARD.encode(line.repeat(size as usize / line.len()));
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 3).await;
    for n in 0..count {
        let mid = mails.insert(&mut session, &format!("large-{n}"), 1, None).await;
        session.run(&format!("UPDATE mail_queue SET mbody = '{body}' WHERE mid = {mid}")).await.unwrap();
    }
    let daemon = house.start();
    let before = peak(&daemon);
    until_empty(&house.newsletter).await;
    let peak = peak(&daemon);
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    let is_body = |line: &str| line.contains(" bytes ");
    let bodies = catcher.received().into_iter().map(|mail| String::from_utf8_lossy(&mail.content).into_owned());
    let bodies: Vec<_> =
        bodies.filter_map(|text| text.lines().last().filter(|l| is_body(l)).map(str::to_owned)).collect();
    assert_eq!(bodies.len() as u64, count);
    assert!(bodies.iter().all(|body| *body == bodies[0]), "the same bytes for each");
    println!("{count} rows of {} MB, budget {} MB: peak {} MB ({})", size / MB, budget / MB, peak / MB, before / MB);
    assert!(peak < bound + FIXED, "{} MB", peak / MB);
}

/// The most memory that the process ever had.
fn peak(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("number") * 1024
}
