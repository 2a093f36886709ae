//! The port for monitoring: what it answers, and that nobody can hold it up.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mailqueue::observe::health::{Health, Queue, Rows};
use mailqueue::observe::http::Server;
use mailqueue::observe::metrics::Metrics;
use mailqueue::observe::stall::Stalled;
use mailqueue::telemetry::{RelayState, Wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::fake::{Fake, lane};

/// A whole conversation: everything that came back.
pub async fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    // The server may hang up on what it does not want to hear to the end.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("UTF-8")
}

/// Head and body.
pub async fn get(port: u16, path: &str) -> (String, String) {
    let answer = ask(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.to_owned(), body.to_owned())
}

async fn serve(fake: &Fake) -> (u16, Arc<Metrics>) {
    serve_with(fake, Health::default()).await
}

async fn serve_with(fake: &Fake, health: Health) -> (u16, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new(vec![], Timestamp::UNIX_EPOCH).expect("metrics"));
    let monitor = Server::bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
    let port = monitor.address().expect("address").port();
    tokio::spawn(monitor.serve(fake.clone(), metrics.clone(), watch::channel(health).1));
    (port, metrics)
}

#[tokio::test]
async fn healthz_is_200_while_all_is_well_and_503_with_the_reasons_otherwise() {
    let fake = Fake::default();
    fake.set(|sample| sample.lanes = vec![lane("newsletter"), lane("admidio")]);
    let (port, _) = serve(&fake).await;
    let (head, body) = get(port, "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("content-type: application/json"), "{head}");
    assert_eq!(body, "{\"status\":\"ok\",\"reasons\":[],\"relay\":\"up\",\"last_poll\":null,\"last_accepted\":null}\n");

    fake.set(|sample| {
        sample.lanes[0].liveness.stalled_for = Duration::from_secs(301);
        sample.lanes[1].database = Some("database of queue admidio is out of reach: refused".to_owned());
        sample.relay.state = RelayState::Down { until: Instant::now(), reason: "no route".to_owned() };
    });
    let (head, body) = get(port, "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let reasons = [
        "queue newsletter: no progress for 301 s",
        "database of queue admidio is out of reach: refused",
        "relay down: no route",
    ];
    assert_eq!((&body["status"], &body["reasons"]), (&"trouble".into(), &reasons.as_slice().into()));
}

#[tokio::test]
async fn an_operators_pause_is_no_trouble() {
    let fake = Fake::default();
    fake.set(|sample| sample.relay.state = RelayState::Paused);
    let (port, _) = serve(&fake).await;
    let (head, body) = get(port, "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.contains("\"relay\":\"paused\""), "{head}\n{body}");
}

#[tokio::test]
async fn a_dispatcher_that_sends_nothing_while_mails_wait_is_trouble_with_its_reason() {
    let since = Timestamp::now() - SignedDuration::from_secs(400);
    let health = Health { stalled: Some(Stalled { since, reason: Wait::Files }), ..Health::default() };
    let (port, _) = serve_with(&Fake::default(), health).await;
    let (head, body) = get(port, "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let reason = "nothing sent for 6 min while mails wait: the limit of open files is reached; raise LimitNOFILE";
    assert!(body.contains(&format!("\"reasons\":[\"{reason}\"]")), "{body}");
    let (_, metrics) = get(port, "/metrics").await;
    let shown: Vec<_> = metrics.lines().filter(|line| line.starts_with("mailqueue_stalled{")).collect();
    assert_eq!(
        shown,
        [
            "mailqueue_stalled{reason=\"database\"} 0",
            "mailqueue_stalled{reason=\"files\"} 1",
            "mailqueue_stalled{reason=\"memory\"} 0",
            "mailqueue_stalled{reason=\"rate\"} 0",
            "mailqueue_stalled{reason=\"relay\"} 0",
        ]
    );
}

#[tokio::test]
async fn a_scrape_shows_the_last_counts_and_drops_those_of_a_database_that_went_away() {
    let fake = Fake::default();
    fake.set(|sample| {
        sample.lanes = vec![lane("newsletter")];
        sample.relay.cap = 4;
        sample.last_poll = Some(Timestamp::from_millisecond(1_500).unwrap());
    });
    let (port, metrics) = serve(&fake).await;
    let rows = Rows { waiting: 7, oldest_due_seconds: Some(5), ..Rows::default() };
    metrics.counted(&Queue { rows: Some(rows), ..Queue::uncounted("newsletter") });
    let (head, body) = get(port, "/metrics").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    for line in [
        "# TYPE mailqueue_rows gauge",
        "mailqueue_rows{queue=\"newsletter\",state=\"waiting\"} 7",
        "mailqueue_rows{queue=\"newsletter\",state=\"failed\"} 0",
        "mailqueue_oldest_due_seconds{queue=\"newsletter\"} 5",
        "mailqueue_queue_paused{queue=\"newsletter\"} 0",
        "mailqueue_database_up{queue=\"newsletter\"} 1",
        "mailqueue_stalled{reason=\"memory\"} 0",
        "mailqueue_relay_up 1",
        "mailqueue_relay_connections_cap 4",
        "mailqueue_ledger_open_entries 0",
        "mailqueue_in_flight_bytes 0",
        "mailqueue_last_poll_timestamp_seconds 1.5",
        "mailqueue_last_accepted_timestamp_seconds 0",
        concat!("mailqueue_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(body.lines().any(|known| known == line), "no `{line}` in\n{body}");
    }
    metrics.counted(&Queue::out_of_reach("newsletter", "gone"));
    let (_, body) = get(port, "/metrics").await;
    assert!(!body.contains("mailqueue_rows{") && !body.contains("mailqueue_oldest_due_seconds{"), "{body}");
}

#[tokio::test]
async fn only_what_is_there_can_be_asked_for_and_only_by_reading() {
    let (port, _) = serve(&Fake::default()).await;
    assert!(get(port, "/").await.0.starts_with("HTTP/1.1 404 "));
    let post = ask(port, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"), "{post}");
    let head = ask(port, "HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(ask(port, "\u{1}\u{2}nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let long = ask(port, &format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000))).await;
    assert!(!long.starts_with("HTTP/1.1 2"), "{long}");
}

#[tokio::test]
async fn those_who_connect_and_say_nothing_do_not_keep_others_waiting() {
    let (port, _) = serve(&Fake::default()).await;
    let mut idlers = Vec::new();
    for _ in 0..15 {
        idlers.push(TcpStream::connect(("127.0.0.1", port)).await.expect("connect"));
    }
    assert!(get(port, "/healthz").await.0.starts_with("HTTP/1.1 200 "));
    // With the sixteenth all places are taken, until the idlers' time runs out.
    idlers.push(TcpStream::connect(("127.0.0.1", port)).await.expect("connect"));
    assert!(get(port, "/healthz").await.0.starts_with("HTTP/1.1 200 "));
    let mut rest = Vec::new();
    let _ = idlers[0].read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 2"));
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_a_remedy() {
    let taken = Server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = taken.address().unwrap();
    let error = Server::bind(address).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("[monitor] listen = \"{address}\" cannot be had: choose a free port of an address of this host")
    );
}
