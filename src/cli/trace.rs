//! `mailqueue trace`: what happened to a mail, from the ledger, the tables, and what operators did.

use std::io::Write;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::ending::{Ending, QueueErrors, Usage};
use super::output::{self, Out, count, moment, safe};
use super::{list, select};
use crate::config::Config;
use crate::ledger::{Query, Traced, Tracer};
use crate::mail::MailId;
use crate::observe::audit::{self, Change};
use crate::outcome::State;
use crate::queue::{self, Filter, Listed};

/// Transactions that one call shows at most.
const LIMIT: u32 = 1_000;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Knows the mails that this machine's dispatcher sent within ledger_keep, and those that still stand in \
    a table. Addresses of mails that are done with are kept as hashes, the same as in a log with addresses = \"hash\"; \
    --to finds them all the same.\n\
    Exit status: 0 found; 1 nothing is known of such a mail; 69 a database is out of reach (the ledger's part is told).\n\
    Examples:\n  mailqueue trace newsletter/1234\n  mailqueue trace --to anna@example.org"
)]
pub struct Args {
    /// An id, as in newsletter/1234, or a Message-ID
    #[arg(value_name = "ID", required_unless_present = "to", conflicts_with = "to", value_parser = select::filled)]
    id: Option<String>,
    /// All mails to this address
    #[arg(long, value_name = "ADDRESS", value_parser = select::filled)]
    to: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Object<'a> {
    id: String,
    state: &'a str,
    message_id: &'a str,
    recipients: &'a [String],
    begun: Timestamp,
    accepted: Option<Timestamp>,
    reply: Option<&'a str>,
    repairs: &'a [String],
}

/// A change by an operator.
#[derive(Serialize)]
struct Done<'a> {
    id: &'a str,
    at: Timestamp,
    change: &'a str,
    user: &'a str,
    uid: u32,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    if !crate::ledger::exists(&config.state_dir) {
        let text =
            format!("there is no ledger in {}; look on the machine whose dispatcher sends", config.state_dir.display());
        return Err(Usage(text).into());
    }
    let tracer = Tracer::open(&config.state_dir)?;
    let query = query(args);
    let found = tracer.find(&query, LIMIT)?;
    if args.to.is_some()
        && let Some(before) = tracer.blind_before()
    {
        output::tell(&format!(
            "mailqueue: mails from before {} cannot be found by their recipients: ledger.key was lost then; look them \
             up by id or Message-ID, or put the old file back",
            moment(before)
        ));
    }
    let (rows, errors) = rows(&query, config).await?;
    for traced in &found {
        if args.json { out.json(&object(traced))? } else { tell(traced, end(traced, &rows, errors.is_empty()), out)? }
    }
    for listed in &rows {
        if args.json { out.json(&list::Object::of(listed))? } else { stands(listed, out)? }
    }
    let mut changes = 0;
    if let Query::Id(id) = &query {
        changes = operators(args.json, id, config, out)?;
    }
    let nothing = found.is_empty() && rows.is_empty() && changes == 0;
    if nothing && !args.json && errors.is_empty() {
        writeln!(out, "nothing is known of it")?;
    }
    Ok(errors.ending(if nothing { Ending::LeftOver } else { Ending::Done }))
}

fn query(args: &Args) -> Query {
    match (&args.to, args.id.as_deref().unwrap_or_default()) {
        (Some(address), _) => Query::Recipient(select::as_recipient(address)),
        (None, id) => match id.parse() {
            // A Message-ID can end like one of our ids, but has an @ in it.
            Ok(row) if !id.contains('@') => Query::Id(row),
            _ => Query::MessageId(id.to_owned()),
        },
    }
}

/// The rows that still stand in the tables. The ledger's part of the story is told also where a database is out of reach.
async fn rows(query: &Query, config: &Config) -> anyhow::Result<(Vec<Listed>, QueueErrors)> {
    let (mut found, mut errors) = (Vec::new(), QueueErrors::default());
    for settings in config.queues.iter().map(|queue| &queue.settings) {
        if matches!(query, Query::Id(id) if id.queue != settings.name) {
            continue;
        }
        let queue = select::open(settings)?;
        if let Err(error) = matching(query, &queue, &mut found).await {
            errors.note("what stands in the table is not known: ", &error);
        }
    }
    Ok((found, errors))
}

async fn matching(query: &Query, queue: &queue::Queue, found: &mut Vec<Listed>) -> Result<(), queue::Error> {
    const PAGE: u32 = 500;
    if let Query::Id(id) = query {
        found.extend(queue.look(id.mid).await?.map(|(listed, _)| listed));
        return Ok(());
    }
    let fits = |listed: &Listed| match query {
        Query::MessageId(id) => match (&listed.message_id, &listed.record) {
            (Some(known), _) => bare(known) == bare(id),
            // Not written down before the first attempt has ended; but ours name the record.
            (None, Some(record)) => bare(id).split('@').next() == Some(record.as_str()),
            (None, None) => false,
        },
        Query::Recipient(to) => listed.history.recipients.iter().any(|known| known.address.eq_ignore_ascii_case(to)),
        Query::Id(_) => false,
    };
    let states = State::ALL.into_iter().filter(|state| *state != State::Waiting).collect();
    let filter = Filter { states, ..Filter::default() };
    let mut cursor = i64::MIN;
    loop {
        let page = queue.list(&filter, cursor, PAGE).await?;
        let Some(last) = page.last().filter(|_| page.len() == PAGE as usize).map(|last| last.id.mid) else {
            found.extend(page.into_iter().filter(fits));
            return Ok(());
        };
        cursor = last;
        found.extend(page.into_iter().filter(fits));
    }
}

fn bare(message_id: &str) -> &str {
    message_id.trim_start_matches('<').trim_end_matches('>')
}

fn object(traced: &Traced) -> Object<'_> {
    Object {
        id: traced.id.to_string(),
        state: &traced.state,
        message_id: &traced.message_id,
        recipients: &traced.recipients,
        begun: traced.begun,
        accepted: traced.accepted,
        reply: traced.reply.as_deref(),
        repairs: &traced.repairs,
    }
}

/// The end of a transaction, in words: `None` while it is open, and where the line of its row says it.
fn end(traced: &Traced, rows: &[Listed], all_there: bool) -> Option<&'static str> {
    if traced.state != "settled" {
        return None;
    }
    if !traced.complete {
        return Some("the row went on waiting for others");
    }
    let row = rows.iter().find(|row| row.id == traced.id);
    Some(match row {
        Some(row) if row.record.is_some_and(|record| record.as_str() == traced.record) => {
            return row.is_not_deleted().then_some("delivered; the database does not delete its row");
        }
        Some(_) => "delivered; under its number stands another mail now, or its row was changed by somebody else",
        None if all_there => "the row was deleted",
        None => "delivered",
    })
}

fn tell(traced: &Traced, end: Option<&str>, out: &mut Out) -> anyhow::Result<()> {
    writeln!(out, "{}  {}", traced.id, safe(&traced.message_id))?;
    writeln!(out, "  {}  offered to {}", moment(traced.begun), safe(&traced.recipients.join(", ")))?;
    if !traced.repairs.is_empty() {
        writeln!(out, "  repaired on the way: {}", safe(&traced.repairs.join(", ")))?;
    }
    match traced.accepted {
        Some(at) => writeln!(out, "  {}  accepted: {}", moment(at), safe(traced.reply.as_deref().unwrap_or_default()))?,
        None => writeln!(out, "  the answer is not known: the link or the program stopped before it came")?,
    }
    if let Some(end) = end {
        writeln!(out, "  {end}")?;
    }
    Ok(())
}

/// A row that is in its table still.
fn stands(listed: &Listed, out: &mut Out) -> anyhow::Result<()> {
    let message_id = listed.message_id.as_deref().map(|id| format!("  {}", safe(id))).unwrap_or_default();
    writeln!(out, "{}{message_id}", listed.id)?;
    if let Some(at) = listed.first_seen {
        writeln!(out, "  {}  first seen", moment(at))?;
    }
    for known in &listed.history.recipients {
        let reply = known.reply.as_ref().map(|reply| format!(": {}", safe(reply))).unwrap_or_default();
        writeln!(out, "  {}  {} {}{reply}", moment(known.at), safe(&known.address), known.state.as_str())?;
    }
    let reason = listed.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    // Nothing is offered of a row that was delivered, and its record does not count the DELETEs.
    let (attempts, what) = match listed.is_not_deleted() {
        true => (String::new(), "next DELETE"),
        false => (format!(", {}", count(listed.history.attempts as usize, "attempt")), "tried again"),
    };
    let next = listed.next_attempt.map(|at| format!(", {what} {}", moment(at))).unwrap_or_default();
    writeln!(out, "  the row stands in its table: {}{reason}{attempts}{next}", listed.state)?;
    Ok(())
}

/// Says the changes of a row by operators, and returns their number.
fn operators(json: bool, id: &MailId, config: &Config, out: &mut Out) -> anyhow::Result<usize> {
    let known = audit::changes(&config.state_dir).with_context(|| {
        let file = config.state_dir.join(audit::FILE);
        format!("the changes by operators cannot be read from {}; use a user who may read it", file.display())
    })?;
    let changes: Vec<_> = known.into_iter().filter(|change| change.concerns(id)).collect();
    let name = id.to_string();
    if !json && !changes.is_empty() {
        writeln!(out, "{name}  operators")?;
    }
    for Change { at, user, uid, what, .. } in &changes {
        if json {
            out.json(&Done { id: &name, at: *at, change: what, user, uid: *uid })?;
        } else {
            writeln!(out, "  {}  {} by {} (uid {uid})", moment(*at), safe(what), safe(user))?;
        }
    }
    Ok(changes.len())
}
