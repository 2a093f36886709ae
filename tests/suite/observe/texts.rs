//! The forms that others read by machine, to the letter.

use jiff::Timestamp;
use mailqueue::observe::checkmk::{self, Levels};
use mailqueue::observe::daemon::{self, Daemon};
use mailqueue::observe::health::{DaemonStatus, Health, Queue, Rows};
use mailqueue::observe::relay::{Relay, RelayStatus};
use mailqueue::observe::stall::Stalled;
use mailqueue::observe::status_file::StatusFile;
use mailqueue::observe::systemd::status_text;
use mailqueue::queue::{Counts, Paused};
use mailqueue::telemetry::Wait;
use std::time::Duration;

fn at(text: &str) -> Timestamp {
    text.parse().expect("timestamp")
}

fn now() -> Timestamp {
    at("2026-03-01T12:00:00Z")
}

fn queue(name: &str, rows: Rows) -> Queue {
    Queue { rows: Some(rows), ..Queue::uncounted(name) }
}

fn health() -> Health {
    let newsletter = Rows { waiting: 1204, failed: 3, sending: 4, oldest_due_seconds: Some(12), ..Rows::default() };
    let admidio = Rows { deferred: 1, paused: true, oldest_due_seconds: Some(7300), ..Rows::default() };
    Health {
        queues: vec![queue("newsletter", newsletter), queue("admidio", admidio)],
        relay: Relay::default(),
        last_poll: Some(at("2026-03-01T11:59:30Z")),
        last_accepted: Some(at("2026-03-01T11:59:58Z")),
        ledger_open: Some(2),
        daemon: Some(DaemonStatus::Running),
        stalled: None,
    }
}

fn stalled() -> Stalled {
    Stalled { since: at("2026-03-01T11:54:00Z"), reason: Wait::Memory }
}

fn down() -> Relay {
    let reason = "454 4.7.0 no\nlogin".to_owned();
    Relay {
        state: RelayStatus::Down,
        until: Some(at("2026-03-01T12:01:30Z")),
        reason: Some(reason),
        ..Relay::default()
    }
}

#[test]
fn the_json_of_status_has_the_fields_that_monitoring_was_written_against() {
    let expected = serde_json::json!({
        "queues": [
            {"name": "newsletter", "waiting": 1204, "claimed": 0, "sending": 4, "deferred": 0, "failed": 3,
             "unreadable": 0, "held": 0, "not_deleted": 0, "paused": false, "oldest_due_seconds": 12},
            {"name": "admidio", "waiting": 0, "claimed": 0, "sending": 0, "deferred": 1, "failed": 0,
             "unreadable": 0, "held": 0, "not_deleted": 0, "paused": true, "oldest_due_seconds": 7300},
        ],
        "relay": {
            "state": "up", "until": null, "reason": null, "connections_cap": null, "connections_reason": null,
            "pipelining": null, "pipelining_reason": null,
        },
        "last_poll": "2026-03-01T11:59:30Z",
        "last_accepted": "2026-03-01T11:59:58Z",
        "ledger_open": 2,
        "daemon": "running",
        "stalled": null,
    });
    let json = serde_json::to_value(health()).unwrap();
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<Health>(json).unwrap(), health());

    let bad = Health { relay: down(), daemon: Some(DaemonStatus::Silent), stalled: Some(stalled()), ..health() };
    let json = serde_json::to_value(&bad).unwrap();
    assert_eq!((&json["relay"]["state"], &json["daemon"]), (&"down".into(), &"silent".into()));
    assert_eq!(json["stalled"], serde_json::json!({"since": "2026-03-01T11:54:00Z", "reason": "memory"}));
    let words = [Relay::paused(), Relay::unused()].map(|relay| serde_json::to_value(relay.state).unwrap());
    assert_eq!(words, ["paused", "unused"]);
    let words = [DaemonStatus::Once, DaemonStatus::Stopped].map(|daemon| serde_json::to_value(daemon).unwrap());
    assert_eq!(words, ["once", "stopped"]);
}

#[test]
fn a_queue_that_cannot_be_counted_has_no_counts_rather_than_noughts() {
    let json = serde_json::to_value(Queue::out_of_reach("admidio", "no route to host")).unwrap();
    assert_eq!(json, serde_json::json!({"name": "admidio", "error": "no route to host"}));
    assert_eq!(serde_json::from_value::<Queue>(json).unwrap(), Queue::out_of_reach("admidio", "no route to host"));
}

#[test]
fn the_line_for_systemd_says_on_one_line_what_waits_and_how_the_relay_is() {
    let one = Health { queues: health().queues[..1].to_vec(), ..health() };
    assert_eq!(status_text(&one), "newsletter 1,204 waiting, 4 sending, 3 failed; relay up");
    let mut kept = one.clone();
    kept.queues[0].rows = Some(Rows { held: 1, not_deleted: 2, ..Rows::default() });
    assert_eq!(status_text(&kept), "newsletter 0 waiting, 1 held, 2 not deleted; relay up");
    let mut bad = Health { relay: down(), ..health() };
    bad.queues[0] = Queue::out_of_reach("newsletter", "no route to host");
    assert_eq!(
        status_text(&bad),
        "newsletter out of reach; admidio 0 waiting, 1 deferred, paused; \
         relay down until 12:01:30Z: 454 4.7.0 no login"
    );
    let paused = Health { queues: vec![], relay: Relay::paused(), ..health() };
    assert_eq!(status_text(&paused), "relay paused by an operator");
    let still = Health { queues: vec![Queue::uncounted("newsletter")], stalled: Some(stalled()), ..health() };
    assert_eq!(status_text(&still), "relay up; stalled (memory)");
}

fn checkmk(health: &Health, daemon: &Daemon) -> Vec<String> {
    let levels = Levels::new(Duration::from_secs(60));
    checkmk::lines(health, daemon, &levels, now()).lines().map(str::to_owned).collect()
}

#[test]
fn checkmk_warns_of_rows_that_are_delivered_and_not_deleted_and_not_of_those_that_an_operator_holds() {
    let newsletter = |rows| {
        let queue = Queue { rows: Some(rows), ..health().queues[0].clone() };
        let health = Health { queues: vec![queue], ..health() };
        checkmk(&health, &Daemon::Running { pid: 77, once: false, pace: None }).pop().unwrap()
    };
    let held = newsletter(Rows { held: 2, ..Rows::default() });
    assert!(held.starts_with("0 ") && held.ends_with("|held=2|not_deleted=0 0 waiting, 2 held"), "{held}");
    let kept = newsletter(Rows { not_deleted: 1, ..Rows::default() });
    assert!(
        kept.starts_with("1 ") && kept.ends_with("|held=0|not_deleted=1 0 waiting, 1 delivered and not deleted"),
        "{kept}"
    );
}

#[test]
fn checkmk_gets_a_line_with_levels_and_metrics_for_each_service() {
    assert_eq!(
        checkmk(&health(), &Daemon::Running { pid: 77, once: false, pace: None }),
        [
            "0 \"mailqueue daemon\" last_poll_age=30;480;1500|ledger_open=2 running as process 77, last poll 30 s ago",
            "0 \"mailqueue relay\" last_accepted_age=2 up, last mail accepted 2 s ago",
            "1 \"mailqueue newsletter\" oldest_due=12;900;3600|failed=3;1;10|unreadable=0;1;10|waiting=1204|sending=4\
             |deferred=0|held=0|not_deleted=0 1,204 waiting, 3 failed, oldest due for 12 s",
            // Old by an operator's wish: that is no more than a warning.
            "1 \"mailqueue admidio\" oldest_due=7300;900;3600|failed=0;1;10|unreadable=0;1;10|waiting=0|sending=0\
             |deferred=1|held=0|not_deleted=0 paused by an operator, 0 waiting, 1 deferred, oldest due for 2 h",
        ]
    );
}

#[test]
fn checkmk_hears_of_a_dead_dispatcher_once_and_of_its_queues_all_the_same() {
    let dead = Health { relay: Relay::unused(), ..health() };
    let lines = checkmk(&dead, &Daemon::Died { since: at("2026-03-01T09:00:00Z") });
    assert_eq!(
        lines[..2],
        [
            "2 \"mailqueue daemon\" last_poll_age=30;480;1500|ledger_open=2 not running, died without a word; \
             last sign of life 3 h ago; nothing is sent, last poll 30 s ago",
            "3 \"mailqueue relay\" last_accepted_age=2 no dispatcher that could tell; last mail accepted 2 s ago",
        ]
    );
    assert!(lines[2].starts_with("1 \"mailqueue newsletter\" oldest_due=12;"), "{}", lines[2]);

    let never = Health { last_poll: None, last_accepted: None, ledger_open: None, ..dead };
    let lines = checkmk(&never, &Daemon::Stopped { since: None });
    assert_eq!(lines[0], "2 \"mailqueue daemon\" - not running on this host; nothing is sent, no table looked at yet");
}

#[test]
fn checkmk_lines_stay_lines_whatever_a_server_says() {
    let mut bad = Health { relay: down(), ..health() };
    bad.queues = vec![Queue::out_of_reach("admidio", "no\n0 \"all well\" - C:\\new")];
    let lines = checkmk(&bad, &Daemon::Running { pid: 77, once: false, pace: None });
    assert_eq!(
        lines[1..],
        [
            "2 \"mailqueue relay\" last_accepted_age=2 down: 454 4.7.0 no login; last mail accepted 2 s ago",
            "2 \"mailqueue admidio\" - no 0 \"all well\" - C:/new",
        ]
    );
    let paused = Health { relay: Relay::paused(), ..health() };
    let line = &checkmk(&paused, &Daemon::Running { pid: 77, once: false, pace: None })[1];
    assert!(line.starts_with("1 \"mailqueue relay\" last_accepted_age=2 paused by an operator"), "{line}");
}

#[test]
fn a_loop_that_does_not_poll_is_seen_unless_the_relay_keeps_it_waiting() {
    let late = Health { last_poll: Some(at("2026-03-01T11:30:00Z")), ..health() };
    let running = Daemon::Running { pid: 77, once: false, pace: None };
    assert!(checkmk(&late, &running)[0].starts_with("2 \"mailqueue daemon\" last_poll_age=1800;480;1500|"));
    let waiting = Health { relay: down(), ..late };
    assert!(checkmk(&waiting, &running)[0].starts_with("0 \"mailqueue daemon\" last_poll_age=1800;480;1500|"));
}

#[test]
fn the_file_of_a_dispatcher_tells_running_silent_stopped_and_dead_apart() {
    let written = at("2026-03-01T11:58:00Z");
    let snapshot = StatusFile {
        pid: 77,
        written,
        every_seconds: 30,
        stopped: false,
        once: false,
        relay: Relay::default(),
        stalled: None,
        databases: [].into(),
        waiting_since: [].into(),
        pace: None,
        capabilities: None,
        last_poll: None,
        last_accepted: None,
    };
    let of = |snapshot: &StatusFile, alive| daemon::daemon(Some(snapshot), now(), |_| alive);
    assert_eq!(of(&snapshot, true), Daemon::Running { pid: 77, once: false, pace: None });
    assert_eq!(of(&snapshot, false), Daemon::Died { since: written });
    let old = StatusFile { written: at("2026-03-01T11:57:00Z"), ..snapshot.clone() };
    assert_eq!(of(&old, true), Daemon::Silent { pid: 77, since: old.written });
    let once = StatusFile { once: true, ..snapshot.clone() };
    assert_eq!(of(&once, true), Daemon::Running { pid: 77, once: true, pace: None });
    // The number may belong to somebody else by now.
    let stopped = StatusFile { stopped: true, ..snapshot };
    assert_eq!(of(&stopped, true), Daemon::Stopped { since: Some(written) });
    assert_eq!(daemon::daemon(None, now(), |_| true), Daemon::Stopped { since: None });

    let directory = tempfile::tempdir().unwrap();
    assert_eq!(StatusFile::read(directory.path()).unwrap(), None);
    stopped.write(directory.path()).unwrap();
    assert_eq!(StatusFile::read(directory.path()).unwrap(), Some(stopped));
}

#[test]
fn a_dispatcher_that_sends_nothing_while_mails_wait_is_critical_and_says_why() {
    let still = Health { stalled: Some(stalled()), ..health() };
    let running = Daemon::Running { pid: 77, once: false, pace: None };
    let line = &checkmk(&still, &running)[0];
    assert!(line.starts_with("2 \"mailqueue daemon\" last_poll_age=30;480;1500|ledger_open=2 running as"), "{line}");
    assert!(line.contains("; nothing sent for 6 min while mails wait: max_in_flight_bytes is used up"), "{line}");
    for reason in Wait::ALL {
        let text = Stalled { reason, ..stalled() }.sentence(now());
        assert!(text.starts_with("nothing sent for 6 min while mails wait: ") && text.is_ascii(), "{text}");
    }
}

#[test]
fn a_pass_that_is_under_way_is_no_dead_dispatcher() {
    let line = &checkmk(&health(), &Daemon::Running { pid: 77, once: true, pace: None })[0];
    assert_eq!(
        line,
        "0 \"mailqueue daemon\" last_poll_age=30;480;1500|ledger_open=2 running one pass (`mailqueue once`) as process 77, \
         last poll 30 s ago"
    );
}

#[test]
fn the_oldest_due_row_is_the_oldest_of_those_that_wait_are_deferred_or_are_at_work() {
    let of = |counts: &Counts, since| {
        let queue = Queue::of("newsletter", counts, Paused::default(), since, now());
        (queue.rows.unwrap().oldest_due_seconds, queue.waiting_since)
    };
    let since = Some(at("2026-03-01T11:40:00Z"));
    let none = Counts::default();
    assert_eq!(of(&none, since), (None, None), "what waited is gone");
    let waiting = Counts { waiting: 1, ..Counts::default() };
    assert_eq!(of(&waiting, since), (Some(1200), since));
    assert_eq!(of(&waiting, None), (Some(0), Some(now())));
    let deferred = Counts { oldest_deferred: Some(at("2026-03-01T11:30:00Z")), ..waiting };
    assert_eq!(of(&deferred, since).0, Some(1800));
    let claimed = Counts { oldest_claimed: Some(at("2026-03-01T11:20:00Z")), ..deferred };
    assert_eq!(of(&claimed, since).0, Some(2400));
}
