//! `mailqueue show`: explains one row to a person who has never seen the table.

use std::collections::HashMap;
use std::io::Write;

use jiff::Timestamp;
use mail_parser::MimeHeaders;
use mail_parser::parsers::MessageStream;
use serde::Serialize;

use super::ending::{Ending, Usage};
use super::output::{self, Out, ago, moment, safe, safe_lines};
use super::{list, second_reader, select};
use crate::config::Config;
use crate::mail::{Mail, MailId};
use crate::outcome::RecipientState;
use crate::queue::Listed;
use crate::translate::Unreadable;

/// Lines of a mail's text that a person gets to see without `--raw`.
const LINES: usize = 60;

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 done; 1 there is no such row.\n\
    Examples:\n  mailqueue show newsletter/1234\n  mailqueue show newsletter/1234 --raw > mail.eml")]
pub struct Args {
    /// The row, as in newsletter/1234
    #[arg(value_name = "ID")]
    id: MailId,
    /// The exact bytes that would go on the wire (without the dots that SMTP doubles), to the smarthost as it last was
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let queue = select::named(config, &args.id.queue)?;
    let Some((listed, content)) = queue.look(args.id.mid).await? else {
        return Err(anyhow::anyhow!("there is no row {}; `mailqueue list` shows those that there are", args.id));
    };
    let wire = select::announced_wire(config);
    let mail = select::translated(config, &queue, &listed, &content, wire.unwrap_or_default()).await?;
    if args.raw {
        return raw(&listed, &mail, wire.is_none(), out);
    }
    let now = Timestamp::now();
    if args.json {
        out.json(&Object::of(&listed, &mail, content.bytes()))?;
    } else {
        record(&listed, content.bytes(), now, out)?;
        match &mail {
            Ok(mail) => readable(mail, &listed, out)?,
            Err(unreadable) => obstacle(unreadable, out)?,
        }
    }
    Ok(Ending::Done)
}

fn raw(listed: &Listed, mail: &Result<Mail, Unreadable>, assumed: bool, out: &mut Out) -> anyhow::Result<Ending> {
    let mail =
        mail.as_ref().map_err(|unreadable| Usage(format!("{} cannot become a mail: {unreadable}", listed.id)))?;
    if assumed {
        output::tell(
            "mailqueue: no dispatcher here has met the smarthost yet: 8BITMIME and SMTPUTF8 are taken for offered",
        );
    }
    if out.terminal {
        write!(out, "{}", safe_lines(&String::from_utf8_lossy(&mail.content)))?;
    } else {
        out.write_all(&mail.content)?;
    }
    Ok(Ending::Done)
}

/// The record of the row.
fn record(listed: &Listed, bytes: u64, now: Timestamp, out: &mut Out) -> anyhow::Result<()> {
    let when = |at: Timestamp| format!("{} ({})", moment(at), ago(at, now));
    let mut lines = vec![["state".to_owned(), state(listed)]];
    let mut line = |name: &str, value: Option<String>| lines.extend(value.map(|value| [name.to_owned(), value]));
    line("why", listed.detail.clone());
    line("last said", listed.last_reply.clone().filter(|said| listed.detail.as_ref() != Some(said)));
    line("first seen", listed.first_seen.map(when));
    let next = if listed.is_not_deleted() { "next DELETE" } else { "next attempt" };
    line(next, listed.next_attempt.map(when));
    // The record of a delivered row does not count the DELETEs.
    let counts = listed.record.is_some() && !listed.is_not_deleted();
    line("attempts", counts.then(|| listed.history.attempts.to_string()));
    line(
        "unknown",
        (listed.history.unknowns > 0).then(|| format!("{} times, nobody knows the outcome", listed.history.unknowns)),
    );
    line("put off since", listed.history.first_deferred.map(when));
    line("claimed by", listed.owner.clone());
    line("message id", listed.message_id.clone());
    line("row", Some(format!("{bytes} bytes in the table")));
    writeln!(out, "{}", listed.id)?;
    indented(lines, out)
}

fn state(listed: &Listed) -> String {
    let reason = listed.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let hint = match listed.state {
        crate::outcome::State::Waiting => ": no dispatcher has looked at it yet",
        _ => "",
    };
    format!("{}{reason}{hint}", listed.state)
}

fn obstacle(unreadable: &Unreadable, out: &mut Out) -> anyhow::Result<()> {
    writeln!(out, "\nThis row cannot become a mail and stays as it is:")?;
    writeln!(out, "  {}", safe(&unreadable.detail))?;
    writeln!(out, "  ({})", unreadable.reason)?;
    Ok(())
}

fn readable(mail: &Mail, listed: &Listed, out: &mut Out) -> anyhow::Result<()> {
    let sender = mail.envelope.sender.as_ref().map_or("<> (the null sender)".to_owned(), ToString::to_string);
    writeln!(out, "\nEnvelope")?;
    indented(vec![["sender".to_owned(), sender]], out)?;
    let rows = recipients(mail, listed);
    let cells = rows.iter().map(|r| [format!("  {}", r.state), r.address.clone(), r.said.clone().unwrap_or_default()]);
    out.table(None, cells.collect())?;
    if !mail.repairs.is_empty() {
        writeln!(out, "\nRepaired on the way")?;
        for repair in &mail.repairs {
            writeln!(out, "  {}", safe(&repair.text))?;
        }
    }
    writeln!(out, "\nHeaders")?;
    for (name, value) in headers(mail) {
        writeln!(out, "  {}: {}", safe(&name), safe(&value))?;
    }
    if listed.record.is_none() && mail.message_id.starts_with("<00000000000000000000000000000000@") {
        writeln!(out, "  (this Message-ID and Date stand for those that it gets when a dispatcher claims it)")?;
    }
    body(mail, out)
}

fn body(mail: &Mail, out: &mut Out) -> anyhow::Result<()> {
    writeln!(out, "\nBody (the whole mail has {} bytes)", mail.content.len())?;
    let Some(message) = second_reader::read(&mail.content) else {
        writeln!(out, "  it cannot be taken apart here, as it holds too many mails inside of mails; --raw shows it")?;
        return Ok(());
    };
    if let Some(text) = message.body_text(0) {
        let text = safe_lines(text.trim_end());
        for line in text.lines().take(LINES) {
            writeln!(out, "{}", format!("  {line}").trim_end())?;
        }
        let more = text.lines().count().saturating_sub(LINES);
        if more > 0 {
            writeln!(out, "  … {more} more lines; --raw shows everything")?;
        }
    }
    for part in message.attachments() {
        let kind = part.content_type().map(|kind| match kind.subtype() {
            Some(subtype) => format!("{}/{subtype}", kind.ctype()),
            None => kind.ctype().to_owned(),
        });
        let name = part.attachment_name().unwrap_or("without a name");
        let kind = kind.unwrap_or_else(|| "of unknown type".to_owned());
        writeln!(out, "  attachment: {} ({}, {} bytes)", safe(name), safe(&kind), part.len())?;
    }
    Ok(())
}

/// The header block on one line each, encoded words decoded.
fn headers(mail: &Mail) -> Vec<(String, String)> {
    let content = &*mail.content;
    let end = content.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(content.len(), |at| at + 2);
    let unfolded = String::from_utf8_lossy(&content[..end]).replace("\r\n ", " ").replace("\r\n\t", " ");
    unfolded
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| {
            let line = format!("{}\n", value.trim());
            let decoded = MessageStream::new(line.as_bytes()).parse_unstructured();
            (name.to_owned(), decoded.as_text().unwrap_or_default().to_owned())
        })
        .collect()
}

/// A recipient with what became of it so far.
#[derive(Serialize)]
struct Recipient {
    address: String,
    state: &'static str,
    #[serde(rename = "last_reply")]
    said: Option<String>,
    at: Option<Timestamp>,
}

/// Those that the mail names, in its order, then those that only the record knows.
fn recipients(mail: &Mail, listed: &Listed) -> Vec<Recipient> {
    let mut known: Vec<_> = listed.history.recipients.iter().map(Some).collect();
    // From the last to the first, so that of two records whose addresses differ in case only the first is found first.
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, record) in listed.history.recipients.iter().enumerate().rev() {
        places.entry(record.address.to_ascii_lowercase()).or_default().push(at);
    }
    let mut all = Vec::new();
    let named = mail.envelope.recipients.iter().map(|address| (address.to_string(), RecipientState::Open, None));
    let invalid = mail.invalid.iter().map(|i| (i.written.clone(), RecipientState::Invalid, Some(i.why.clone())));
    for (address, state, why) in named.chain(invalid) {
        let place = places.get_mut(&address.to_ascii_lowercase()).and_then(Vec::pop);
        all.push(match place.and_then(|at| known[at].take()) {
            Some(record) => Recipient::of(record),
            None => Recipient { address, state: state.as_str(), said: why, at: None },
        });
    }
    all.extend(known.into_iter().flatten().map(Recipient::of));
    all
}

impl Recipient {
    fn of(record: &crate::outcome::RecipientRecord) -> Self {
        Self {
            address: record.address.clone(),
            state: record.state.as_str(),
            said: record.reply.clone(),
            at: Some(record.at),
        }
    }
}

/// The object of `list --json`, with the row's content.
#[derive(Serialize)]
struct Object<'a> {
    #[serde(flatten)]
    row: list::Summary<'a>,
    recipients: Vec<Recipient>,
    message_id: Option<&'a str>,
    owner: Option<&'a str>,
    unknown_outcomes: u32,
    stored_bytes: u64,
    mail: Option<Content<'a>>,
    obstacle: Option<Obstacle<'a>>,
}

#[derive(Serialize)]
struct Content<'a> {
    subject: &'a str,
    sender: Option<String>,
    headers: Vec<(String, String)>,
    repairs: Vec<&'a str>,
    bytes: usize,
}

#[derive(Serialize)]
struct Obstacle<'a> {
    reason: &'static str,
    detail: &'a str,
}

impl<'a> Object<'a> {
    fn of(listed: &'a Listed, mail: &'a Result<Mail, Unreadable>, stored_bytes: u64) -> Self {
        let readable = mail.as_ref().ok();
        Self {
            row: list::Summary::of(listed),
            recipients: match readable {
                Some(mail) => recipients(mail, listed),
                None => listed.history.recipients.iter().map(Recipient::of).collect(),
            },
            message_id: listed.message_id.as_deref().or_else(|| {
                // Not written down before the first attempt has ended, but always the same for this record.
                readable.filter(|_| listed.record.is_some()).map(|mail| mail.message_id.as_str())
            }),
            owner: listed.owner.as_deref(),
            unknown_outcomes: listed.history.unknowns,
            stored_bytes,
            mail: readable.map(|mail| Content {
                subject: &mail.subject,
                sender: mail.envelope.sender.as_ref().map(ToString::to_string),
                headers: headers(mail),
                repairs: mail.repairs.iter().map(|repair| repair.text.as_str()).collect(),
                bytes: mail.content.len(),
            }),
            obstacle: mail.as_ref().err().map(|e| Obstacle { reason: e.reason.as_str(), detail: &e.detail }),
        }
    }
}

fn indented(lines: Vec<[String; 2]>, out: &mut Out) -> anyhow::Result<()> {
    for [name, value] in lines {
        writeln!(out, "  {name:<14}{}", safe(&value))?;
    }
    Ok(())
}
