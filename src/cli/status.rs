//! `mailqueue status`: is mail flowing, and what is stuck?

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::output::{Out, ago, or_dash, safe, span};
use super::{Ending, select};
use crate::config::Config;
use crate::ledger::Tracer;
use crate::observe::{Picture, RelayPicture};
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

#[derive(Serialize)]
struct Status {
    queues: Vec<Queue>,
    relay: RelayPicture,
    last_poll: Option<Timestamp>,
    last_accepted: Option<Timestamp>,
    /// `null` where there is no ledger, or none that this user may read.
    ledger_open: Option<u64>,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let now = Timestamp::now();
    let status = Status::read(config, now).await?;
    if args.json {
        out.json(&status)?
    } else {
        status.tell(now, out)?
    }
    Ok(Ending::Done)
}

impl Status {
    async fn read(config: &Config, now: Timestamp) -> anyhow::Result<Self> {
        let mut queues = Vec::new();
        let mut stopped = false;
        for settings in config.queues.iter().map(|queue| &queue.settings) {
            let queue = select::open(settings)?;
            let paused = queue.paused().await?;
            stopped |= paused.relay;
            queues.push(Queue::of(&settings.name, &queue.counts(now).await?, paused));
        }
        let ledger = match Tracer::open(&config.state_dir).await {
            Ok(mut tracer) => tracer.summary().await.ok(),
            Err(_) => None,
        };
        let picture = Picture::read(&config.state_dir, now);
        let told = picture.as_ref().and_then(|picture| picture.last_accepted);
        let relay = match &picture {
            _ if stopped => halted("operator"),
            Some(picture) => picture.relay.clone(),
            None => halted("no dispatcher runs here"),
        };
        Ok(Self {
            queues,
            relay,
            last_poll: picture.and_then(|picture| picture.last_poll),
            last_accepted: told.or(ledger.and_then(|(_, last)| last)),
            ledger_open: ledger.map(|(open, _)| open),
        })
    }

    fn tell(&self, now: Timestamp, out: &mut Out) -> anyhow::Result<()> {
        let head = ["QUEUE", "WAITING", "SENDING", "DEFERRED", "FAILED", "UNREADABLE", "HELD", "OLDEST DUE", ""];
        out.table(Some(head), self.queues.iter().map(Queue::cells).collect())?;
        let reason = self.relay.reason.as_ref().map(|reason| format!(" ({})", safe(reason))).unwrap_or_default();
        let until = self.relay.until.map(|at| format!(", next try {}", ago(at, now))).unwrap_or_default();
        writeln!(out, "\nrelay          {}{reason}{until}", safe(&self.relay.state))?;
        let when = |at: Option<Timestamp>| at.map_or_else(|| "not known".to_owned(), |at| ago(at, now));
        writeln!(out, "last poll      {}", when(self.last_poll))?;
        writeln!(out, "last accepted  {}", when(self.last_accepted))?;
        writeln!(out, "ledger         {} open", or_dash(self.ledger_open))?;
        Ok(())
    }
}

fn halted(reason: &str) -> RelayPicture {
    RelayPicture { state: "stopped".to_owned(), until: None, reason: Some(reason.to_owned()) }
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
