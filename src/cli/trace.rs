//! `mailqueue trace`: what happened to a mail, from the ledger.

use std::io::Write;

use jiff::Timestamp;
use serde::Serialize;

use super::output::{Out, moment, safe};
use super::{Ending, Usage};
use crate::config::Config;
use crate::ledger::{Query, Traced, Tracer};

/// Transactions that one call shows at most.
const LIMIT: u32 = 1_000;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Knows the mails that this machine's dispatcher sent within ledger_keep. Addresses of mails that \
    are done with are kept as hashes; --to finds them all the same."
)]
pub struct Args {
    /// An id, as in newsletter/1234, or a Message-ID
    #[arg(value_name = "ID", required_unless_present = "to", conflicts_with = "to")]
    id: Option<String>,
    /// All mails to this address
    #[arg(long, value_name = "ADDRESS")]
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
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    if !crate::ledger::exists(&config.state_dir) {
        let text =
            format!("there is no ledger in {}; look on the machine whose dispatcher sends", config.state_dir.display());
        return Err(Usage(text).into());
    }
    let tracer = Tracer::open(&config.state_dir)?;
    let found = tracer.find(&query(args), LIMIT)?;
    if args.to.is_some()
        && let Some(before) = tracer.blind_before()
    {
        eprintln!(
            "mailqueue: mails from before {} cannot be found by their recipients: ledger.key was lost then; look them \
             up by id or Message-ID, or put the old file back",
            moment(before)
        );
    }
    for traced in &found {
        if args.json { out.json(&object(traced))? } else { tell(traced, out)? }
    }
    if found.is_empty() && !args.json {
        writeln!(out, "nothing is known of it")?;
    }
    Ok(if found.is_empty() { Ending::LeftOver } else { Ending::Done })
}

fn query(args: &Args) -> Query {
    match (&args.to, args.id.as_deref().unwrap_or_default()) {
        (Some(address), _) => Query::Recipient(address.clone()),
        (None, id) => match id.parse() {
            // A Message-ID can end like one of our ids, but has an @ in it.
            Ok(row) if !id.contains('@') => Query::Id(row),
            _ => Query::MessageId(id.to_owned()),
        },
    }
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
    }
}

fn tell(traced: &Traced, out: &mut Out) -> anyhow::Result<()> {
    writeln!(out, "{}  {}", traced.id, safe(&traced.message_id))?;
    writeln!(out, "  {}  offered to {}", moment(traced.begun), safe(&traced.recipients.join(", ")))?;
    match traced.accepted {
        Some(at) => writeln!(out, "  {}  accepted: {}", moment(at), safe(traced.reply.as_deref().unwrap_or_default()))?,
        None => writeln!(out, "  the answer is not known: the link or the program stopped before it came")?,
    }
    if traced.state == "settled" {
        writeln!(
            out,
            "  {}",
            if traced.complete { "the row was deleted" } else { "the row went on waiting for others" }
        )?;
    }
    Ok(())
}
