//! SIGHUP: what is unchanged goes on, what changed begins at once, and an error leaves everything as it was.

use std::time::Duration;

use mailqueue::outcome::State;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixDatagram};
use tokio::time::{Instant, timeout};

use super::{OFTEN, SOON, stop, until_empty, until_said};
use crate::support::DEADLINE;
use crate::support::binary::Running;
use crate::support::catcher::{Catcher, Step};
use crate::support::database;
use crate::support::house::{House, mail, row, said};
use crate::support::mails::Mails;
use crate::support::session::Session;

/// Sending may stand still for this long at a reload. Tests allow a busy machine some more.
const STANDSTILL: Duration = Duration::from_secs(1);
const BUSY_MACHINE: Duration = Duration::from_secs(4);

const AGAIN: &str = "configuration read again";
const AS_BEFORE: &str = "the configuration stays as it was";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_relay_is_used_at_once_while_a_final_dot_takes_its_time() {
    let (slow, quick) = (Catcher::start().await, Catcher::start().await);
    let house = house(&slow, "connections = 1").await;
    let daemon = started(&house).await;
    slow.close_gate();
    let first = insert(&house, "first").await;
    slow.wait_at_gate(1).await;

    change(&house, &format!("port = {}", slow.port()), &format!("port = {}", quick.port()));
    reload(&daemon, AGAIN).await;
    let begun = Instant::now();
    insert(&house, "second").await;
    quick.wait_for(1).await;
    assert!(begun.elapsed() < STANDSTILL + BUSY_MACHINE, "{:?}", begun.elapsed());
    let waiting = house.row(&house.newsletter, first).await.expect("the first row");
    assert_eq!(waiting.state, State::Sending, "it is not recovered");

    slow.open_gate();
    until_empty(&house.newsletter).await;
    assert_eq!((slow.received().len(), quick.received().len()), (1, 1));
    assert!(unknown(&stop(daemon).await).is_empty());
    assert_eq!(house.ledger_open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_relay_goes_on_with_its_connections_while_a_final_dot_takes_its_time() {
    let slow = Catcher::with_hazards(|_| None, stalls_for("slow")).await;
    let house = house(&slow, "connections = 2").await;
    let daemon = started(&house).await;
    insert(&house, "slow").await;
    slow.wait_for(1).await;
    insert(&house, "before").await;
    slow.wait_for(2).await;
    let connections = slow.connections();
    for n in 0..3 {
        change(&house, OFTEN, &format!("{OFTEN} # {n}"));
        change(&house, "[log]", &format!("[message]\nmax_size = \"{}MB\"\n[log]", 30 + n));
        reload(&daemon, AGAIN).await;
        insert(&house, "after").await;
        slow.wait_for(3 + n).await;
        let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
        let text = text.replace(&format!("[message]\nmax_size = \"{}MB\"\n", 30 + n), "");
        std::fs::write(house.installation.configuration(), text).unwrap();
    }
    assert_eq!(slow.connections(), connections, "no connection was made anew");
    daemon.signal(Signal::KILL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_settings_goes_on_at_once_and_takes_no_claim_that_is_in_use() {
    let catcher = Catcher::start().await;
    let house = house(&catcher, "connections = 4").await;
    let daemon = started(&house).await;
    catcher.close_gate();
    let mid = insert(&house, "slow").await;
    catcher.wait_at_gate(1).await;
    // The size is a setting of each queue.
    change(&house, "[log]", "[message]\nmax_size = \"30MB\"\n[log]");
    reload(&daemon, AGAIN).await;
    insert(&house, "after").await;
    let begun = Instant::now();
    catcher.wait_at_gate(2).await;
    assert!(begun.elapsed() < STANDSTILL + BUSY_MACHINE, "{:?}", begun.elapsed());
    assert_eq!(house.row(&house.newsletter, mid).await.expect("the row").state, State::Sending);
    catcher.open_gate();
    until_empty(&house.newsletter).await;
    assert_eq!(catcher.received().len(), 2);
    assert!(unknown(&stop(daemon).await).is_empty());
    assert_eq!(house.ledger_open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_changes_nothing_and_is_said_with_the_file() {
    let catcher = Catcher::start().await;
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = busy.local_addr().unwrap().port();
    let house = house(&catcher, "connections = 1\n[monitor]\nlisten = \"127.0.0.1:0\"").await;
    let daemon = started(&house).await;
    let address = monitor(&daemon).await;
    let good = std::fs::read_to_string(house.installation.configuration()).unwrap();
    let exposed = house.installation.path().join("exposed");
    std::fs::write(&exposed, "geheim").unwrap();
    std::fs::set_permissions(&exposed, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();

    let login = |file: &str| format!("tls = \"none\"\nusername = \"u\"\npassword_file = \"{file}\"");
    let wrong = [
        ("listen = \"127.0.0.1:0\"", format!("listen = \"127.0.0.1:{port}\""), "choose a free port"),
        ("tls = \"none\"", "tls = \"starttls\"\nca_file = \"/nowhere/ca.pem\"".to_owned(), "/nowhere/ca.pem"),
        ("tls = \"none\"", login("/nowhere/password"), "/nowhere/password"),
        ("tls = \"none\"", login(exposed.to_str().unwrap()), "chmod 0600"),
        ("connections = 1", "connections = \"many\"".to_owned(), "mailqueue.toml:"),
        ("/state\"", "/other\"".to_owned(), "state_dir cannot change"),
        ("table = \"mail_queue\"", "table = \"mail_queue; DROP\"".to_owned(), "mail_queue"),
    ];
    for (n, (from, to, words)) in wrong.iter().enumerate() {
        change(&house, from, to);
        let line = reload(&daemon, AS_BEFORE).await;
        assert!(line.contains(words) && line.contains("mailqueue.toml"), "{to}: {line}");
        assert!(line.contains("\"ERROR\""), "{line}");
        std::fs::write(house.installation.configuration(), &good).unwrap();
        insert(&house, "again").await;
        catcher.wait_for(n + 1).await;
        assert!(ask(&address).await.starts_with("HTTP/1.1 200"));
    }
    std::fs::remove_file(house.installation.configuration()).unwrap();
    reload(&daemon, AS_BEFORE).await;
    std::fs::write(house.installation.configuration(), &good).unwrap();
    reload(&daemon, AGAIN).await;
    assert_eq!(catcher.connections(), 1, "the connection is the same all the time");
    stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_listener_answers_and_the_one_before_does_not() {
    let catcher = Catcher::start().await;
    let house = house(&catcher, "[monitor]\nlisten = \"127.0.0.1:0\"").await;
    let daemon = started(&house).await;
    let before = monitor(&daemon).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    insert(&house, "one").await;
    catcher.wait_for(1).await;
    until_empty(&house.newsletter).await;
    change(&house, "listen = \"127.0.0.1:0\"", &format!("listen = \"{free}\""));
    reload(&daemon, AGAIN).await;
    assert!(ask(&free.to_string()).await.starts_with("HTTP/1.1 200"));
    let gone = async { while TcpStream::connect(&before).await.is_ok() {} };
    timeout(DEADLINE, gone).await.expect("the port is given back");
    let metrics = get(&free.to_string(), "/metrics").await;
    assert!(metrics.contains("mailqueue_rows_settled_total{fate=\"delivered\",queue=\"newsletter\"} 1"), "{metrics}");
    stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_are_removed_added_and_renamed_while_a_mail_of_theirs_is_on_the_wire() {
    let catcher = Catcher::start().await;
    let house = house(&catcher, "connections = 4").await;
    let daemon = started(&house).await;
    let good = std::fs::read_to_string(house.installation.configuration()).unwrap();
    catcher.close_gate();
    insert(&house, "slow").await;
    catcher.wait_at_gate(1).await;

    // Renamed: the table is the same, and so is its dispatcher.
    change(&house, "name = \"newsletter\"", "name = \"rundbrief\"");
    reload(&daemon, AGAIN).await;
    insert(&house, "renamed").await;
    catcher.wait_at_gate(2).await;
    // Removed: its rows stay where they are.
    let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
    let (head, rest) = text.split_once("[[queue]]\nname = \"rundbrief\"").unwrap();
    let rest = &rest[rest.find("[[queue]]").unwrap()..];
    std::fs::write(house.installation.configuration(), format!("{head}{rest}")).unwrap();
    reload(&daemon, AGAIN).await;
    insert(&house, "removed").await;
    house.admidio.insert(&mail("other@example.org", "other")).await.unwrap();
    catcher.wait_at_gate(3).await;
    // Added again.
    std::fs::write(house.installation.configuration(), good).unwrap();
    reload(&daemon, AGAIN).await;
    catcher.open_gate();
    until_empty(&house.newsletter).await;
    until_empty(&house.admidio).await;
    let mut subjects: Vec<_> = catcher.received().iter().map(|mail| mail.recipients[0].clone()).collect();
    subjects.sort();
    assert_eq!(subjects, ["other@example.org", "removed@example.org", "renamed@example.org", "slow@example.org"]);
    assert!(unknown(&stop(daemon).await).is_empty());
    assert_eq!(house.ledger_open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_down_stays_down_until_its_own_settings_change() {
    let catcher = Catcher::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let house = House::build(database::sqlite(), nobody, OFTEN, "").await;
    let daemon = started(&house).await;
    insert(&house, "waits").await;
    daemon.wait_for_line("relay down").await;
    until_said(&house, &["status"], "down").await;
    change(&house, OFTEN, "poll_interval = \"300ms\"");
    reload(&daemon, AGAIN).await;
    let status = said(&house.run(&["status", "--json"]).await);
    assert!(status.contains("\"state\":\"down\""), "{status}");
    change(&house, &format!("port = {nobody}"), &format!("port = {}", catcher.port()));
    reload(&daemon, AGAIN).await;
    let begun = Instant::now();
    catcher.wait_for(1).await;
    assert!(begun.elapsed() < STANDSTILL + BUSY_MACHINE, "{:?}", begun.elapsed());
    until_said(&house, &["status"], "up").await;
    stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_may_come_in_the_middle_of_a_reload() {
    let (slow, quick) = (Catcher::start().await, Catcher::start().await);
    let house = house(&slow, "connections = 2").await;
    let daemon = started(&house).await;
    slow.close_gate();
    insert(&house, "slow").await;
    slow.wait_at_gate(1).await;
    change(&house, &format!("port = {}", slow.port()), &format!("port = {}", quick.port()));
    change(&house, "name = \"newsletter\"", "name = \"rundbrief\"");
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::TERM);
    daemon.wait_for_line("finishing what is in flight").await;
    slow.open_gate();
    let (status, lines) = daemon.wait().await;
    assert_eq!(status.code(), Some(0), "{}", lines.join("\n"));
    assert!(unknown(&lines).is_empty());
    assert_eq!(slow.received().len(), 1);
    assert_eq!(house.ledger_open(), 0);
    until_empty(&house.newsletter).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_of_a_reload_and_of_its_end() {
    let catcher = Catcher::start().await;
    let house = house(&catcher, "").await;
    let path = house.installation.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = house.installation.command();
    command.arg("run").env("NOTIFY_SOCKET", &path);
    let daemon = Running::spawn(command);
    told(&manager, "READY=1").await;
    for break_it in [false, true] {
        if break_it {
            change(&house, "connections", "conections");
            change(&house, "[relay]", "[relay]\nconections = 1");
        }
        daemon.signal(Signal::HUP);
        let reloading = told(&manager, "RELOADING=1").await;
        assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        told(&manager, "READY=1").await;
    }
    stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_lease_stops_nothing_until_the_next_heartbeat_of_the_lease_before() {
    let catcher = Catcher::start().await;
    let house = house(&catcher, "").await;
    let daemon = started(&house).await;
    insert(&house, "before").await;
    catcher.wait_for(1).await;
    // Heartbeats were 30 s apart, and are 0.1 s from now on.
    change(&house, OFTEN, &format!("{OFTEN}\nlease = \"3s\""));
    reload(&daemon, AGAIN).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    insert(&house, "after").await;
    let begun = Instant::now();
    catcher.wait_for(2).await;
    assert!(begun.elapsed() < STANDSTILL + BUSY_MACHINE, "{:?}", begun.elapsed());
    until_empty(&house.newsletter).await;
    assert!(unknown(&stop(daemon).await).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trouble_of_a_lane_that_gave_up_ends_with_it() {
    let catcher = Catcher::start().await;
    let house = house(&catcher, "[monitor]\nlisten = \"127.0.0.1:0\"").await;
    let daemon = started(&house).await;
    let address = monitor(&daemon).await;
    catcher.close_gate();
    insert(&house, "slow").await;
    catcher.wait_at_gate(1).await;
    change(&house, "[log]", "[message]\nmax_size = \"30MB\"\n[log]");
    reload(&daemon, AGAIN).await;
    let mut session = Session::on(&house.database.url).await;
    session.run("BEGIN EXCLUSIVE").await.unwrap();
    catcher.open_gate();
    let given_up = async {
        while !daemon.lines().iter().any(|line| line.contains("not settled before the end")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(3 * DEADLINE, given_up).await.expect("the lane before gives up");
    session.run("COMMIT").await.unwrap();
    until_empty(&house.newsletter).await;
    let healthy = async { while !ask(&address).await.starts_with("HTTP/1.1 200") {} };
    timeout(DEADLINE, healthy).await.expect("nothing is wrong any more");
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 1, "once");
}

mod server {
    use super::*;

    on_every_server!(a_take_over_that_has_begun_comes_to_its_end_after_its_queue_is_removed);
}

/// A dispatcher that died leaves a row behind, and another session has locked its record.
async fn a_take_over_that_has_begun_comes_to_its_end_after_its_queue_is_removed(database: database::TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), &format!("{OFTEN}\nlease = \"3s\""), SOON).await;
    insert(&house, "taken").await;
    catcher.close_gate();
    let neighbour = house.neighbour();
    let dead = neighbour.start(&["run"]);
    catcher.wait_at_gate(1).await;
    super::kill(dead).await;
    catcher.open_gate();
    let mut session = Session::on(&house.database.url).await;
    session.run("BEGIN").await.unwrap();
    session.run("UPDATE mailqueue_delivery SET attempts = attempts").await.unwrap();
    let daemon = started(&house).await;
    // The lease of the dead one ends, and the lock is waited for.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
    let (head, rest) = text.split_once("[[queue]]\nname = \"newsletter\"").unwrap();
    configure(&house, &format!("{head}{}", &rest[rest.find("[[queue]]").unwrap()..]));
    reload(&daemon, AGAIN).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    session.run("COMMIT").await.unwrap();
    daemon.wait_for_line("took over").await;
    // Its outcome is unknown, and that is written before the lane ends: nobody's claim is left.
    let at_rest = async {
        while house.rows(&house.newsletter).await[0].owner.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, at_rest).await.expect("it is settled");
    stop(daemon).await;
}

on_every_database!(twenty_reloads_under_load_send_every_mail_once);

async fn twenty_reloads_under_load_send_every_mail_once(database: database::TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), OFTEN, &format!("connections = 3{SOON}")).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let daemon = started(&house).await;
    mails.fill(&mut session, "n", 200).await;
    let producer = Mails::all_the_while(&house.database.url, "during", Duration::from_millis(10));
    let good = std::fs::read_to_string(house.installation.configuration()).unwrap();
    let changes: [(&str, &str); 6] = [
        ("connections = 3", "connections = 5"),
        ("weight = 4", "weight = 2"),
        ("[log]", "[message]\nmax_size = \"30MB\"\n[log]"),
        ("name = \"newsletter\"", "name = \"rundbrief\""),
        ("helo = \"test.example\"", "helo = \"other.example\""),
        ("[log]", "[message]\nmax_size = \"20MB\"\n[log]"),
    ];
    for n in 0..20 {
        let (from, to) = changes[n % changes.len()];
        configure(&house, &good.replacen(from, to, 1));
        daemon.signal(Signal::HUP);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    configure(&house, &good);
    daemon.signal(Signal::HUP);
    mails.add(producer.stop().await);
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert!(unknown(&lines).is_empty(), "{:?}", unknown(&lines));
    assert_eq!(mails.audit(&catcher.received(), &lines), 0, "no mail came twice");
    assert_eq!(house.ledger_open(), 0);
    assert!(!lines.iter().any(|line| line.contains(AS_BEFORE)), "{}", lines.join("\n"));
}

/// Puts a file in the place of the configuration at once: the reload of before may be reading it.
fn configure(house: &House, text: &str) {
    let new = house.installation.path().join("new.toml");
    std::fs::write(&new, text).expect("configuration");
    std::fs::rename(new, house.installation.configuration()).expect("configuration");
}

async fn house(catcher: &Catcher, relay: &str) -> House {
    House::build(database::sqlite(), catcher.port(), OFTEN, relay).await
}

async fn started(house: &House) -> Running {
    let daemon = house.start();
    daemon.wait_for_line("\"started\"").await;
    daemon
}

async fn insert(house: &House, name: &str) -> i64 {
    let columns = row(&format!("{name}@example.org"), name, "text\n", "From: n@example.org\r\n");
    house.newsletter.insert(&columns).await.expect("INSERT")
}

fn change(house: &House, from: &str, to: &str) {
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    configure(house, &text.replacen(from, to, 1));
}

/// Sends SIGHUP, and waits for one more line with these words. Returns it.
async fn reload(daemon: &Running, words: &str) -> String {
    let with = |lines: Vec<String>| lines.into_iter().filter(|line| line.contains(words)).collect::<Vec<_>>();
    let before = with(daemon.lines()).len();
    daemon.signal(Signal::HUP);
    let line = crate::support::eventually(words, || with(daemon.lines()).into_iter().nth(before));
    timeout(DEADLINE / 2, line).await.unwrap_or_else(|_| panic!("no `{words}` in {}", daemon.lines().join("\n")))
}

fn unknown(lines: &[String]) -> Vec<&String> {
    lines.iter().filter(|line| line.contains("unknown: ")).collect()
}

/// The final dot of a mail for `name@` is never answered.
fn stalls_for(name: &'static str) -> impl Fn(Step<'_>) -> crate::support::catcher::Hazard + Send + Sync + 'static {
    use crate::support::catcher::Hazard;
    move |step| match step {
        Step::FinalDot { mail } if mail.recipients[0].starts_with(name) => Hazard::Stall,
        _ => Hazard::None,
    }
}

async fn monitor(daemon: &Running) -> String {
    let line = daemon.wait_for_line("serves /metrics").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    line["address"].as_str().expect("address").to_owned()
}

async fn ask(address: &str) -> String {
    get(address, "/healthz").await
}

async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = String::new();
    let read = timeout(DEADLINE / 2, stream.read_to_string(&mut answer)).await;
    read.expect("an answer").expect("text");
    answer
}

/// Waits for a message to the service manager that has these words.
async fn told(manager: &UnixDatagram, words: &str) -> String {
    let mut buffer = [0; 4096];
    let waiting = async {
        loop {
            let length = manager.recv(&mut buffer).await.expect("receive");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(words) {
                return text;
            }
        }
    };
    timeout(DEADLINE / 2, waiting).await.expect(words)
}
