//! `mailqueue list`: the rows, a line each.

use jiff::Timestamp;
use serde::Serialize;

use super::ending::{Ending, QueueErrors};
use super::output::{Out, ago, or_dash};
use super::select::Filters;
use crate::config::Config;
use crate::queue::Listed;

/// Rows that share the width of their columns; more are not held in memory.
const ALIGNED: usize = 1_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 done; 69 a database is out of reach (the rows of others are listed).\n\
    Examples:\n  mailqueue list --state failed,unreadable\n  \
    mailqueue list --queue newsletter --to anna@example.org --json")]
pub struct Args {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filters: Filters,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let now = Timestamp::now();
    let mut head = Some(["ID", "STATE", "REASON", "TRIES", "FIRST SEEN", "NEXT", "WHAT WAS SAID"]);
    let mut rows = Vec::new();
    let mut errors = QueueErrors::default();
    for queue in args.filters.queues(config)? {
        let mut walk = args.filters.walk(config, queue, now);
        while let Some(page) = errors.pass(walk.next().await).flatten() {
            if args.json {
                for listed in &page {
                    out.json(&Object::of(listed))?;
                }
            } else {
                rows.extend(page.iter().map(|listed| cells(listed, now)));
            }
            if rows.len() >= ALIGNED {
                out.table(head.take(), std::mem::take(&mut rows))?;
            }
        }
    }
    if !rows.is_empty() {
        out.table(head.take(), rows)?;
    }
    Ok(errors.ending(Ending::Done))
}

fn cells(listed: &Listed, now: Timestamp) -> [String; 7] {
    [
        listed.id.to_string(),
        listed.state.to_string(),
        or_dash(listed.reason),
        if listed.record.is_some() { listed.history.attempts.to_string() } else { "-".to_owned() },
        or_dash(listed.first_seen.map(|at| ago(at, now))),
        or_dash(listed.next_attempt.map(|at| if at <= now { "now".to_owned() } else { ago(at, now) })),
        listed.detail.clone().or_else(|| listed.last_reply.clone()).unwrap_or_default(),
    ]
}

/// A row as programs read it: a contract.
#[derive(Serialize)]
pub struct Object<'a> {
    #[serde(flatten)]
    row: Summary<'a>,
    /// Those that have an outcome of their own; `show --json` names the others too.
    recipients: Vec<Recipient<'a>>,
}

/// The part that `list` and `show` have in common.
#[derive(Serialize)]
pub struct Summary<'a> {
    id: String,
    state: &'static str,
    reason: Option<&'static str>,
    attempts: u32,
    first_seen: Option<Timestamp>,
    next_attempt: Option<Timestamp>,
    last_reply: Option<&'a str>,
    /// The reason in words for which the row cannot become a mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

#[derive(Serialize)]
struct Recipient<'a> {
    address: &'a str,
    state: &'static str,
}

impl<'a> Object<'a> {
    pub fn of(listed: &'a Listed) -> Self {
        let recipients = listed.history.recipients.iter();
        Self {
            row: Summary::of(listed),
            recipients: recipients.map(|r| Recipient { address: &r.address, state: r.state.as_str() }).collect(),
        }
    }
}

impl<'a> Summary<'a> {
    pub fn of(listed: &'a Listed) -> Self {
        Self {
            id: listed.id.to_string(),
            state: listed.state.as_str(),
            reason: listed.reason.map(|reason| reason.as_str()),
            attempts: listed.history.attempts,
            first_seen: listed.first_seen,
            next_attempt: listed.next_attempt,
            last_reply: listed.last_reply.as_deref(),
            detail: listed.detail.as_deref(),
        }
    }
}
