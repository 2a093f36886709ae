//! Local check lines for Checkmk: state, service, metrics with their levels, text.
//!
//! The form is that of <https://docs.checkmk.com/latest/en/localchecks.html>: `STATE "SERVICE" METRICS TEXT`, the state
//! 0 (OK), 1 (WARN), 2 (CRIT) or 3 (UNKNOWN), metrics `name=value;warn;crit` joined by `|`, or `-`.

use std::time::Duration;

use jiff::Timestamp;

use super::daemon::Daemon;
use super::health::{Health, Queue, Rows};
use super::relay::RelayStatus;
use super::words::{grouped, span};
use crate::visible;

/// From where on a number is WARN and CRIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub warn: u64,
    pub crit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Seconds.
    pub oldest_due: Level,
    pub failed: Level,
    pub unreadable: Level,
    /// Seconds since a running dispatcher last looked at a table.
    pub last_poll: Level,
}

impl Levels {
    /// `poll_interval` is that of the configuration.
    pub fn new(poll_interval: Duration) -> Self {
        let poll = poll_interval.as_secs();
        Self {
            oldest_due: Level { warn: 900, crit: 3600 },
            failed: Level { warn: 1, crit: 10 },
            unreadable: Level { warn: 1, crit: 10 },
            last_poll: Level { warn: poll * 3 + 300, crit: poll * 10 + 900 },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok = 0,
    Warn = 1,
    Crit = 2,
    Unknown = 3,
}

impl Level {
    fn judge(self, value: u64) -> Verdict {
        match value {
            value if value >= self.crit => Verdict::Crit,
            value if value >= self.warn => Verdict::Warn,
            _ => Verdict::Ok,
        }
    }
}

/// All lines, each with its line end: the dispatcher, the relay, then queue by queue.
pub fn lines(health: &Health, daemon: &Daemon, levels: &Levels, now: Timestamp) -> String {
    let mut lines = daemon_line(health, daemon, levels, now);
    lines.push_str(&relay_line(health, daemon, now));
    health.queues.iter().for_each(|queue| lines.push_str(&queue_line(queue, levels)));
    lines
}

fn daemon_line(health: &Health, daemon: &Daemon, levels: &Levels, now: Timestamp) -> String {
    let poll_age = health.last_poll.map(|at| age(at, now));
    let polled = poll_age.map_or("no table looked at yet".to_owned(), |age| format!("last poll {} ago", span(age)));
    let verdict = match (daemon, health.relay.state) {
        (Daemon::Running { .. }, RelayStatus::Up) => poll_age.map_or(Verdict::Ok, |age| levels.last_poll.judge(age)),
        // The relay's line reports a relay that is down or paused; meanwhile no table is polled.
        (Daemon::Running { .. }, _) => Verdict::Ok,
        (Daemon::Silent { .. } | Daemon::Stopped { .. } | Daemon::Died { .. }, _) => Verdict::Crit,
        (Daemon::Unknown { .. }, _) => Verdict::Unknown,
    };
    let mut text = daemon.sentence(now);
    text.push_str(", ");
    text.push_str(&polled);
    let stalled = health.stalled.filter(|_| matches!(daemon, Daemon::Running { .. }));
    let verdict = if stalled.is_some() { Verdict::Crit } else { verdict };
    if let Some(stalled) = stalled {
        text.push_str("; ");
        text.push_str(&stalled.sentence(now));
    }
    let metrics = [
        poll_age.map(|age| metric("last_poll_age", age, Some(levels.last_poll))),
        health.ledger_open.map(|open| metric("ledger_open", open, None)),
    ];
    line(verdict, "mailqueue daemon", &metrics, &text)
}

fn relay_line(health: &Health, daemon: &Daemon, now: Timestamp) -> String {
    let accepted = health.last_accepted.map(|at| age(at, now));
    let last =
        accepted.map_or("no mail accepted yet".to_owned(), |age| format!("last mail accepted {} ago", span(age)));
    let reason = health.relay.reason.as_deref().unwrap_or("in trouble");
    let (verdict, text) = match (health.relay.state, daemon) {
        (RelayStatus::Up, Daemon::Running { .. }) => (Verdict::Ok, format!("up, {last}")),
        (RelayStatus::Down, Daemon::Running { .. }) => (Verdict::Crit, format!("down: {reason}; {last}")),
        (RelayStatus::Paused, _) => {
            (Verdict::Warn, format!("paused by an operator, `mailqueue resume relay` lets it go on; {last}"))
        }
        // One trouble, one alarm: the dispatcher's line has it.
        _ => (Verdict::Unknown, format!("no dispatcher that could tell; {last}")),
    };
    line(verdict, "mailqueue relay", &[accepted.map(|age| metric("last_accepted_age", age, None))], &text)
}

fn queue_line(queue: &Queue, levels: &Levels) -> String {
    let service = format!("mailqueue {}", queue.name);
    let Some(rows) = &queue.rows else {
        let why = queue.error.as_deref().unwrap_or("the database is out of reach");
        return line(Verdict::Crit, &service, &[], why);
    };
    let due = rows.oldest_due_seconds.unwrap_or(0);
    let mut verdict = levels.failed.judge(rows.failed).max(levels.unreadable.judge(rows.unreadable));
    verdict = verdict.max(if rows.not_deleted > 0 { Verdict::Warn } else { Verdict::Ok });
    // A queue that an operator paused grows old by wish.
    verdict = verdict.max(if rows.paused { Verdict::Warn } else { levels.oldest_due.judge(due) });
    verdict = verdict.max(if queue.error.is_some() { Verdict::Warn } else { Verdict::Ok });
    let metrics = [
        Some(metric("oldest_due", due, Some(levels.oldest_due))),
        Some(metric("failed", rows.failed, Some(levels.failed))),
        Some(metric("unreadable", rows.unreadable, Some(levels.unreadable))),
        Some(metric("waiting", rows.waiting, None)),
        Some(metric("sending", rows.claimed + rows.sending, None)),
        Some(metric("deferred", rows.deferred, None)),
        Some(metric("held", rows.held, None)),
        Some(metric("not_deleted", rows.not_deleted, None)),
    ];
    let trouble = queue.error.iter().map(|error| format!("; {error}"));
    line(verdict, &service, &metrics, &(queue_text(rows) + &trouble.collect::<String>()))
}

fn queue_text(rows: &Rows) -> String {
    let mut parts = Vec::new();
    if rows.paused {
        parts.push("paused by an operator".to_owned());
    }
    let about = if rows.about { "about " } else { "" };
    parts.push(format!("{about}{} waiting", grouped(rows.waiting)));
    for (number, word) in [
        (rows.deferred, "deferred"),
        (rows.failed, "failed"),
        (rows.unreadable, "unreadable"),
        (rows.held, "held"),
        (rows.not_deleted, "delivered and not deleted"),
    ] {
        if number > 0 {
            parts.push(format!("{} {word}", grouped(number)));
        }
    }
    if let Some(due) = rows.oldest_due_seconds {
        parts.push(format!("oldest due for {}", span(due)));
    }
    parts.join(", ")
}

fn metric(name: &str, value: u64, level: Option<Level>) -> String {
    match level {
        Some(Level { warn, crit }) => format!("{name}={value};{warn};{crit}"),
        None => format!("{name}={value}"),
    }
}

fn line(verdict: Verdict, service: &str, metrics: &[Option<String>], text: &str) -> String {
    let metrics: Vec<&str> = metrics.iter().flatten().map(String::as_str).collect();
    let metrics = if metrics.is_empty() { "-".to_owned() } else { metrics.join("|") };
    // A line end would begin the next service. A backslash and an n are read as a line end too.
    let text: String = text.chars().map(|c| if visible::is_hidden(c) { ' ' } else { c }).collect();
    format!("{} \"{service}\" {metrics} {}\n", verdict as u8, text.replace('\\', "/"))
}

/// Whole seconds; 0 where clocks disagree.
fn age(at: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0)
}
