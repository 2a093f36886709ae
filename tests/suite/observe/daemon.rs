//! The daemon as systemd, Prometheus, Checkmk and the operators' mailbox meet it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use tokio::net::UnixDatagram;

use super::http::get;
use crate::support::binary::Running;
use crate::support::catcher::{Catcher, Step};
use crate::support::database;
use crate::support::house::{House, mail, row, said};
use crate::support::{DEADLINE, eventually};

pub const MONITOR: &str = "\n[monitor]\nlisten = \"127.0.0.1:0\"\n";

/// Where a daemon that was started with [`MONITOR`] listens.
pub async fn port(running: &Running) -> u16 {
    let line = running.wait_for_line("serves /metrics").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    line["address"]
        .as_str()
        .and_then(|address| address.rsplit_once(':'))
        .and_then(|(_, port)| port.parse().ok())
        .unwrap()
}

/// Waits until a page has what is looked for, and returns it.
pub async fn page_with(port: u16, path: &str, what: &str) -> String {
    let search = async {
        loop {
            let (head, body) = get(port, path).await;
            if head.contains(what) || body.contains(what) {
                return body;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("{path} never has {what}"))
}

/// Plays the service manager.
fn service_manager(directory: &Path) -> (String, Arc<Mutex<Vec<String>>>) {
    let path = directory.join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    let words = Arc::<Mutex<Vec<String>>>::default();
    let heard = words.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            heard.lock().unwrap().extend(text.lines().map(str::to_owned));
        }
    });
    (path.to_str().expect("UTF-8").to_owned(), words)
}

#[tokio::test]
async fn metrics_health_and_the_service_manager_follow_the_mails() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Rcpt { recipient: "no@example.org" } => Some("550 5.1.1 no such user".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), "", MONITOR).await;
    for to in ["a@example.org", "b@example.org", "no@example.org"] {
        house.newsletter.insert(&mail(to, "Neuigkeiten")).await.expect("INSERT");
    }
    let (socket, words) = service_manager(house.installation.path());
    let mut command = house.installation.command();
    command.arg("run").env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "300000");
    let running = Running::spawn(command);
    let port = port(&running).await;

    let metrics =
        page_with(port, "/metrics", "mailqueue_rows_settled_total{fate=\"failed\",queue=\"newsletter\"} 1").await;
    for line in [
        "mailqueue_recipients_total{outcome=\"accepted\",queue=\"newsletter\"} 2",
        "mailqueue_recipients_total{outcome=\"refused\",queue=\"newsletter\"} 1",
        "mailqueue_recipients_total{outcome=\"accepted\",queue=\"admidio\"} 0",
        "mailqueue_rows_settled_total{fate=\"delivered\",queue=\"newsletter\"} 2",
        "mailqueue_transactions_total{reply_class=\"2xx\",stage=\"final-dot\"} 2",
        "mailqueue_transactions_total{reply_class=\"5xx\",stage=\"rcpt\"} 1",
        "mailqueue_attempt_duration_seconds_count{queue=\"newsletter\"} 3",
        "mailqueue_relay_up 1",
        "mailqueue_relay_connections_cap 4",
        "mailqueue_database_up{queue=\"admidio\"} 1",
    ] {
        assert!(metrics.lines().any(|known| known == line), "no `{line}` in\n{metrics}");
    }
    assert!(!metrics.contains("mailqueue_last_poll_timestamp_seconds 0\n"));
    assert!(page_with(port, "/healthz", "200 OK").await.contains("\"status\":\"ok\""));

    let pipelining = async {
        loop {
            let status = house.run(&["status", "--json"]).await;
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
            if let Some(mode) = status["relay"]["pipelining"].as_str() {
                assert!(status["relay"]["pipelining_reason"].is_string(), "{status}");
                return mode.to_owned();
            }
        }
    };
    assert_eq!(tokio::time::timeout(DEADLINE, pipelining).await.expect("the mode is shown"), "commands");

    let heard = |word: &str| words.lock().unwrap().iter().any(|known| known.starts_with(word));
    for word in ["READY=1", "WATCHDOG=1", "STATUS=newsletter "] {
        eventually(word, || heard(word).then_some(())).await;
    }
    running.signal(Signal::TERM);
    let (status, lines) = running.wait().await;
    assert_eq!(status.code(), Some(0), "{}", lines.join("\n"));
    eventually("STOPPING", || heard("STOPPING=1").then_some(())).await;
    let first = words.lock().unwrap().first().cloned();
    assert_eq!(first.as_deref(), Some("READY=1"));
}

#[tokio::test]
async fn a_smarthost_that_is_away_shows_in_health_metrics_and_status() {
    let mut catcher = Catcher::start().await;
    catcher.stop().await;
    let house = House::build(database::sqlite(), catcher.port(), "", MONITOR).await;
    house.newsletter.insert(&mail("a@example.org", "Neuigkeiten")).await.expect("INSERT");
    let running = house.start();
    let port = port(&running).await;
    let health = page_with(port, "/healthz", "503 ").await;
    assert!(health.contains("\"status\":\"trouble\"") && health.contains("relay down: "), "{health}");
    page_with(port, "/metrics", "mailqueue_relay_up 0").await;
    page_with(port, "/metrics", "mailqueue_transactions_total{reply_class=\"closed\",stage=\"connect\"}").await;

    let shown = async {
        loop {
            let output = house.run(&["status", "--json"]).await;
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            if status["relay"]["state"] == "down" {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(DEADLINE, shown).await.expect("status shows the pause");
    assert!(status["relay"]["reason"].is_string() && status["relay"]["until"].is_string(), "{status}");
    assert_eq!(status["queues"][0]["waiting"], 1);

    let stopped = house.run(&["pause", "relay"]).await;
    assert!(stopped.status.success(), "{}", said(&stopped));
    page_with(port, "/metrics", "mailqueue_relay_paused 1").await;
}

#[tokio::test]
async fn checkmk_is_told_whether_the_dispatcher_runs_was_stopped_or_died() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    house.admidio.insert(&row("a@example.org", "!", "", "From: broken\r\n")).await.expect("INSERT");
    let checkmk = async || {
        let output = house.run(&["status", "--checkmk"]).await;
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let never = checkmk().await;
    assert!(never.starts_with("2 \"mailqueue daemon\" - not running on this host; "), "{never}");
    assert!(
        never.contains("0 \"mailqueue newsletter\" oldest_due=0;900;3600|failed=0;1;10|unreadable=0;1;10|waiting=0|")
    );

    let running = house.start();
    let until = async |what: &str| {
        let look = async {
            loop {
                let lines = checkmk().await;
                if lines.contains(what) {
                    return lines;
                }
            }
        };
        tokio::time::timeout(DEADLINE, look).await.unwrap_or_else(|_| panic!("never: {what}"))
    };
    let alive = until("running as process").await;
    assert!(alive.starts_with("0 \"mailqueue daemon\" "), "{alive}");
    until("1 \"mailqueue admidio\" oldest_due=0;900;3600|failed=0;1;10|unreadable=1;1;10|").await;
    running.signal(Signal::TERM);
    running.wait().await;
    let stopped = checkmk().await;
    assert!(stopped.starts_with("2 \"mailqueue daemon\" ") && stopped.contains("not running, stopped "), "{stopped}");

    let running = house.start();
    until("running as process").await;
    running.signal(Signal::KILL);
    running.wait().await;
    let died = checkmk().await;
    assert!(died.starts_with("2 \"mailqueue daemon\" ") && died.contains("not running, died without a word"), "{died}");
    assert!(died.contains("3 \"mailqueue relay\" ") && died.contains("1 \"mailqueue admidio\" "), "{died}");
}

#[tokio::test]
async fn the_local_check_for_checkmk_prints_lines_whatever_happens() {
    let house = House::build(database::sqlite(), 1, "", "").await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/config/checkmk/mailqueue");
    let run = async |configuration: &Path| {
        let mut command = tokio::process::Command::new(script);
        command.env("MAILQUEUE", env!("CARGO_BIN_EXE_mailqueue")).env("MAILQUEUE_CONFIG", configuration);
        let output = command.output().await.expect("script");
        assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let lines = run(&house.installation.configuration()).await;
    let heads: Vec<_> = lines.lines().map(|line| line.split('"').nth(1).unwrap_or_default()).collect();
    assert_eq!(heads, ["mailqueue daemon", "mailqueue relay", "mailqueue newsletter", "mailqueue admidio"]);

    let lines = run(Path::new("/nowhere/mailqueue.toml")).await;
    assert!(lines.starts_with("3 \"mailqueue daemon\" - cannot be told: /nowhere/mailqueue.toml"), "{lines}");
    assert_eq!(lines.lines().count(), 1, "{lines}");
}

#[tokio::test]
async fn a_digest_of_what_failed_reaches_the_operators_by_the_same_smarthost() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Rcpt { recipient: "no@example.org" } => Some("550 5.1.1 <no@example.org>: no such user".to_owned()),
        _ => None,
    })
    .await;
    let notify = "\n[notify]\nto = \"technik@example.org\"\n\n[message]\ndefault_from = \"noreply@example.org\"\n";
    let house = House::build(database::sqlite(), catcher.port(), "", notify).await;
    let mid = house.newsletter.insert(&mail("no@example.org", "Geheim")).await.expect("INSERT");
    let running = house.start();
    let [digest] = catcher.wait_for(1).await.try_into().unwrap();
    assert_eq!(
        (digest.sender.as_str(), digest.recipients.as_slice()),
        ("noreply@example.org", &["technik@example.org".to_owned()][..])
    );
    let text = String::from_utf8(digest.content).expect("ASCII");
    assert!(text.contains("Subject: mailqueue on test.example: 1 mail was not sent\r\n"), "{text}");
    assert!(text.contains(&format!("newsletter/{mid}  refused")) && text.contains("5.1.1"), "{text}");
    assert!(!text.contains("Geheim") && !text.contains("Grüße"), "nothing of the mail itself: {text}");
    running.signal(Signal::TERM);
    let (status, lines) = running.wait().await;
    assert_eq!(status.code(), Some(0), "{}", lines.join("\n"));
}
