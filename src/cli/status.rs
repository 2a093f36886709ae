//! `mailqueue status`: is mail flowing, and what is stuck?

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;

use super::ending::Ending;
use super::output::{Colour, Out, ago, count, or_dash, safe, span};
use super::select;
use crate::config::Config;
use crate::observe::checkmk::{self, Levels};
use crate::observe::daemon::{self, Daemon};
use crate::observe::health::{Health, Queue, Rows};
use crate::observe::relay::{Relay, RelayStatus};
use crate::observe::status_file::Pace;

#[derive(Debug, clap::Args)]
#[command(after_help = "Works while the daemon runs and while it does not.\n\
    Exit status: 0 all databases have answered; 69 one is out of reach. With --checkmk always 0, because the lines say it.\n\
    Examples:\n  mailqueue status\n  mailqueue status --json")]
pub struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Local check lines for Checkmk, with levels and metrics
    #[arg(long, conflicts_with = "json")]
    checkmk: bool,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let now = Timestamp::now();
    let queues = select::all(config)?;
    let (health, daemon) = daemon::health(&queues, &config.state_dir, now).await;
    if args.checkmk {
        write!(out, "{}", checkmk::lines(&health, &daemon, &Levels::new(config.poll_interval), now))?;
        return Ok(Ending::Done);
    }
    if args.json {
        out.json(&health)?;
    } else {
        tell(&health, &daemon, now, out)?;
    }
    let all_there = health.queues.iter().all(|queue| queue.rows.is_some());
    Ok(if all_there { Ending::Done } else { Ending::OutOfReach })
}

fn tell(health: &Health, daemon: &Daemon, now: Timestamp, out: &mut Out) -> anyhow::Result<()> {
    let head = ["QUEUE", "WAITING", "SENDING", "DEFERRED", "FAILED", "UNREADABLE", "HELD", "OLDEST DUE", ""];
    out.table(Some(head), health.queues.iter().map(cells).collect())?;
    for Queue { name, error, .. } in &health.queues {
        if let Some(error) = error {
            writeln!(out, "\n{}: {}", safe(name), safe(error))?;
        }
    }
    writeln!(out, "\nrelay          {}", relay(&health.relay, daemon, now, out))?;
    let when = |at: Option<Timestamp>| at.map_or_else(|| "not known".to_owned(), |at| ago(at, now));
    writeln!(out, "dispatcher     {}", safe(&daemon.sentence(now)))?;
    if let Some(stalled) = &health.stalled {
        writeln!(out, "stalled        {}", out.coloured(Colour::Red, &stalled.sentence(now)))?;
    }
    writeln!(out, "last poll      {}", when(health.last_poll))?;
    writeln!(out, "last accepted  {}", when(health.last_accepted))?;
    writeln!(out, "ledger         {} open", or_dash(health.ledger_open))?;
    Ok(())
}

/// The state, why and until when, and how busy it is.
fn relay(relay: &Relay, daemon: &Daemon, now: Timestamp, out: &Out) -> String {
    let colour = if relay.state == RelayStatus::Up { Colour::Green } else { Colour::Red };
    let mut text = out.coloured(colour, relay.state.as_str());
    if let Some(reason) = &relay.reason {
        text += &format!(" ({})", safe(reason));
    }
    text += &match relay.until {
        Some(at) if at > now => format!(", next try {}", ago(at, now)),
        Some(_) => ", being tried again now".to_owned(),
        None => String::new(),
    };
    if let Some(mode) = &relay.pipelining {
        text += &format!(", pipelining {}", safe(mode));
        // Where it is all that it can be, the reason is of no use to anyone.
        let why = relay.pipelining_reason.as_deref().filter(|_| mode != "full");
        text += &why.map_or_else(String::new, |why| format!(" ({})", safe(why)));
    }
    if let Daemon::Running { pace: Some(Pace { connections, mails_per_minute }), .. } = daemon {
        text += &format!(
            ", {}, {} in the last minute",
            count(*connections, "connection"),
            count(usize::try_from(*mails_per_minute).unwrap_or(usize::MAX), "mail")
        );
    }
    if let Some(reason) = &relay.connections_reason {
        text += &format!("; fewer connections: {}", safe(reason));
    }
    text
}

fn cells(queue: &Queue) -> [String; 9] {
    let Some(rows) = &queue.rows else {
        let unknown = || "?".to_owned();
        let dashes = [unknown(), unknown(), unknown(), unknown(), unknown(), unknown(), unknown()];
        let [waiting, sending, deferred, failed, unreadable, held, due] = dashes;
        let why = "out of reach".to_owned();
        return [queue.name.clone(), waiting, sending, deferred, failed, unreadable, held, due, why];
    };
    let Rows {
        waiting,
        claimed,
        sending,
        deferred,
        failed,
        unreadable,
        held,
        not_deleted,
        paused,
        oldest_due_seconds,
        about,
        ..
    } = rows;
    let mut notes = Vec::new();
    if *paused {
        notes.push("paused".to_owned());
    }
    if *not_deleted > 0 {
        notes.push(format!("{not_deleted} delivered and not deleted"));
    }
    [
        queue.name.clone(),
        format!("{}{waiting}", if *about { "about " } else { "" }),
        (claimed + sending).to_string(),
        deferred.to_string(),
        failed.to_string(),
        unreadable.to_string(),
        held.to_string(),
        or_dash(oldest_due_seconds.map(|seconds| span(Duration::from_secs(seconds)))),
        notes.join(", "),
    ]
}
