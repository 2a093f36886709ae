//! `mailqueue status`: is mail flowing, and what is stuck?

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::output::{Out, or_dash, span};
use super::{Ending, select};
use crate::config::Config;
use crate::outcome::State;
use crate::queue::{Counts, Paused};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// A contract with monitoring.
#[derive(Serialize)]
struct Queue {
    name: String,
    waiting: u64,
    claimed: u64,
    sending: u64,
    deferred: u64,
    failed: u64,
    unreadable: u64,
    held: u64,
    paused: bool,
    oldest_due_seconds: Option<u64>,
    #[serde(skip)]
    about: bool,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let now = Timestamp::now();
    let mut queues = Vec::new();
    let mut relay_paused = false;
    for settings in config.queues.iter().map(|queue| &queue.settings) {
        let queue = select::open(settings)?;
        let paused = queue.paused().await?;
        relay_paused |= paused.relay;
        queues.push(Queue::of(&settings.name, &queue.counts(now).await?, paused));
    }
    if args.json {
        out.json(&serde_json::json!({ "queues": queues, "relay": relay(relay_paused) }))?;
        return Ok(Ending::Done);
    }
    let head = ["QUEUE", "WAITING", "SENDING", "DEFERRED", "FAILED", "UNREADABLE", "HELD", "OLDEST DUE", ""];
    out.table(Some(head), queues.iter().map(Queue::cells).collect())?;
    if relay_paused {
        writeln!(out, "\nThe relay is paused; `mailqueue resume relay` lets it go on.")?;
    }
    Ok(Ending::Done)
}

fn relay(paused: bool) -> serde_json::Value {
    match paused {
        true => serde_json::json!({ "state": "paused", "until": null, "reason": "operator" }),
        false => serde_json::json!({ "state": "up", "until": null, "reason": null }),
    }
}

impl Queue {
    fn of(name: &str, counts: &Counts, paused: Paused) -> Self {
        let of = |state| counts.records.iter().filter(|(s, _)| *s == state).map(|(_, n)| n).sum();
        Self {
            name: name.to_owned(),
            waiting: counts.waiting,
            claimed: of(State::Claimed),
            sending: of(State::Sending),
            deferred: of(State::Deferred),
            failed: of(State::Failed),
            unreadable: of(State::Unreadable),
            held: of(State::Held),
            paused: paused.queue,
            oldest_due_seconds: counts.oldest_due_seconds,
            about: counts.waiting_is_estimate,
        }
    }

    fn cells(&self) -> [String; 9] {
        [
            self.name.clone(),
            format!("{}{}", if self.about { "about " } else { "" }, self.waiting),
            (self.claimed + self.sending).to_string(),
            self.deferred.to_string(),
            self.failed.to_string(),
            self.unreadable.to_string(),
            self.held.to_string(),
            or_dash(self.oldest_due_seconds.map(|seconds| span(Duration::from_secs(seconds)))),
            if self.paused { "paused".to_owned() } else { String::new() },
        ]
    }
}
