//! What the service manager is told: ready, how it goes, alive, stopping (sd_notify(3)). Without one, nothing happens.

use std::time::Duration;

use jiff::Timestamp;
use libsystemd::daemon::{self, NotifyState};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::time::interval;

use super::health::{Health, Queue};
use super::relay::{Relay, RelayStatus};
use super::words::grouped;
use crate::telemetry::Observed;
use crate::{failpoint, visible};

/// How often a dispatcher that is starting is looked at.
const WHILE_STARTING: Duration = Duration::from_millis(100);

/// How often status and signs of life are looked at, or more often where the watchdog wants it.
const LOOK: Duration = Duration::from_secs(10);

/// `newsletter 1,204 waiting, 3 failed; relay up`: what `systemctl status` shows, on one line.
pub fn status_text(health: &Health) -> String {
    let mut parts: Vec<String> = health.queues.iter().filter_map(queue_text).collect();
    parts.push(relay_text(&health.relay));
    parts.extend(health.stalled.map(|stalled| format!("stalled ({})", stalled.reason.as_str())));
    parts.join("; ").chars().map(|c| if visible::is_hidden(c) { ' ' } else { c }).collect()
}

/// `None` for a queue that has not been counted yet.
fn queue_text(queue: &Queue) -> Option<String> {
    let Some(rows) = &queue.rows else {
        return queue.error.is_some().then(|| format!("{} out of reach", queue.name));
    };
    let about = if rows.about { "about " } else { "" };
    let mut text = format!("{} {about}{} waiting", queue.name, grouped(rows.waiting));
    for (number, word) in [
        (rows.claimed + rows.sending, "sending"),
        (rows.deferred, "deferred"),
        (rows.failed, "failed"),
        (rows.unreadable, "unreadable"),
        (rows.held, "held"),
        (rows.not_deleted, "not deleted"),
    ] {
        if number > 0 {
            text.push_str(&format!(", {} {word}", grouped(number)));
        }
    }
    if rows.paused {
        text.push_str(", paused");
    }
    Some(text)
}

fn relay_text(relay: &Relay) -> String {
    match (relay.state, relay.until, relay.reason.as_deref()) {
        (RelayStatus::Up, ..) => "relay up".to_owned(),
        (RelayStatus::Paused, ..) => "relay paused by an operator".to_owned(),
        (RelayStatus::Unused, ..) => "relay unused".to_owned(),
        (RelayStatus::Down, None, reason) => format!("relay down: {}", reason.unwrap_or("in trouble")),
        (RelayStatus::Down, Some(until), reason) => {
            format!("relay down until {}: {}", moment(until), reason.unwrap_or("in trouble"))
        }
    }
}

/// To the second, in UTC.
fn moment(at: Timestamp) -> String {
    at.strftime("%H:%M:%SZ").to_string()
}

/// Tells the service manager until it is dropped. `health` is the newest picture.
pub async fn run(dispatcher: impl Observed, health: watch::Receiver<Health>) {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        tell_all(dispatcher, health, daemon::watchdog_enabled(false), tell).await;
    }
}

/// The same with everything from outside as an argument: READY once every lane has been seen to, STATUS whenever it
/// changes, WATCHDOG while all loops make progress and the service manager wants to know at all.
pub async fn tell_all(
    dispatcher: impl Observed,
    mut health: watch::Receiver<Health>,
    watchdog: Option<Duration>,
    mut tell: impl FnMut(&[NotifyState]),
) {
    let mut starting = interval(WHILE_STARTING);
    while !dispatcher.sample().started() {
        starting.tick().await;
    }
    tell(&[NotifyState::Ready]);
    let mut looks = interval(watchdog.map_or(LOOK, |watchdog| (watchdog / 3).min(LOOK)).max(Duration::from_millis(1)));
    let mut told = String::new();
    let mut fed = true;
    let mut was_started = true;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            Ok(()) = health.changed() => {}
        }
        failpoint::hit("in-systemd");
        let sample = dispatcher.sample();
        let is_started = sample.started();
        if is_started && !was_started {
            // A reload brought a queue that has been looked at now.
            tell(&[NotifyState::Ready]);
        }
        was_started = is_started;
        let counted = health.borrow_and_update().clone();
        let text = status_text(&Health { relay: Relay::of(&sample), ..counted });
        if text != told {
            tell(&[NotifyState::Status(text.clone())]);
            told = text;
        }
        if watchdog.is_some() {
            let alive = sample.alive();
            if alive {
                tell(&[NotifyState::Watchdog]);
            } else if fed {
                let troubles = sample.troubles().join("; ");
                tracing::error!(target: "mailqueue::systemd", troubles, "no progress: the watchdog is not fed");
            }
            fed = alive;
        }
    }
}

/// A SIGHUP is being obeyed. Afterwards, [`ready`].
pub fn reloading() {
    // Type=notify-reload wants the time beside it.
    let now = clock_gettime(ClockId::Monotonic);
    let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    tell(&[NotifyState::Reloading, NotifyState::Other(format!("MONOTONIC_USEC={microseconds}"))]);
}

pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// SIGTERM: what is on the wire is finished.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing what is on the wire".to_owned())]);
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = daemon::notify(false, states) {
        tracing::debug!(target: "mailqueue::systemd", %error, "the service manager does not listen");
    }
}
