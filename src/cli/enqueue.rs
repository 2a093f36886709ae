//! `mailqueue enqueue`: inserts a mail as a producer would, each column in base64.

use std::io::{self, IsTerminal, Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::ending::{Ending, Usage};
use super::operator::{self, Verb};
use super::output::{self, Out, count};
use super::{migrate, select};
use crate::config::Config;
use crate::mail::{Address, ColumnLimits, Columns, MailId};
use crate::{queue, translate};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --to, --subject and --body a whole mail (RFC 5322) is read from standard input. The id of the new row is \
    printed. What could not be sent, or not to all of its recipients, is refused with the reason.\n\
    Examples:\n  mailqueue enqueue --queue newsletter < mail.eml\n  \
    mailqueue enqueue --from a@example.org --to b@example.org --subject Test --body 'Does it arrive?'\n  \
    mailqueue enqueue --queue admidio --sender bounces@example.org < mail.eml"
)]
pub struct Args {
    /// To whom; several times, or with commas
    #[arg(long, value_name = "ADDRESS")]
    to: Vec<String>,
    /// The From header
    #[arg(long, value_name = "ADDRESS", requires = "to")]
    from: Option<String>,
    /// The Subject header, in any letters
    #[arg(long, value_name = "TEXT", requires = "to")]
    subject: Option<String>,
    /// The envelope sender, for tables with a column `mparams`
    #[arg(long, value_name = "ADDRESS", value_parser = sender)]
    sender: Option<Address>,
    /// The text; `-` reads it from standard input
    #[arg(long, value_name = "TEXT", requires = "to")]
    body: Option<String>,
    #[command(flatten)]
    target: migrate::Target,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let settings = target(args, config)?;
    let message = if args.to.is_empty() { from_stdin()? } else { from_options(args, config)? };
    let queue = select::open(&settings)?;
    if args.sender.is_some() && !queue.has_params().await? {
        return Err(Usage(format!(
            "the table {} of queue {} has no column mparams, in which --sender would stand: leave it out, and write a header \
             Return-Path or Sender",
            settings.table, settings.name
        ))
        .into());
    }
    let columns = message.columns(args.sender.as_ref());
    fits(&queue, &columns).await?;
    can_be_sent(args, config, &queue, &columns).await?;
    let mid = queue.insert(&columns).await?;
    operator::audit(config, Verb::INSERT, &settings.name, vec![mid]);
    writeln!(out, "{}", MailId::new(settings.name, mid))?;
    Ok(Ending::Done)
}

fn target(args: &Args, config: &Config) -> anyhow::Result<queue::Settings> {
    let mut candidates = args.target.settings(config)?;
    match candidates.len() {
        1 => Ok(candidates.remove(0)),
        _ => {
            let names: Vec<&str> = candidates.iter().map(|settings| &*settings.name).collect();
            Err(Usage(format!("into which queue? add --queue with one of {}", names.join(", "))).into())
        }
    }
}

/// A mail as PHP's `mail()` takes it.
struct Message {
    to: Vec<u8>,
    subject: Vec<u8>,
    body: Vec<u8>,
    headers: Vec<u8>,
}

impl Message {
    /// `sender` as sendmail's option, which is how Admidio gives it to PHP's `mail()`.
    fn columns(&self, sender: Option<&Address>) -> Columns {
        let encode = |bytes: &[u8]| Some(BASE64_STANDARD.encode(bytes).into_bytes());
        Columns {
            mto: encode(&self.to),
            msubject: encode(&self.subject),
            mbody: encode(&self.body),
            mheaders: encode(&self.headers),
            mparams: sender.and_then(|sender| encode(format!("-f{sender}").as_bytes())),
        }
    }
}

fn from_options(args: &Args, config: &Config) -> anyhow::Result<Message> {
    let mut headers = String::new();
    match &args.from {
        Some(from) => headers += &format!("From: {}\r\n", one_line(from)?),
        None if config.message.default_from.is_some() => {}
        None => {
            let text = "a mail needs a sender: add --from ADDRESS, or set message.default_from in the configuration";
            return Err(Usage(text.to_owned()).into());
        }
    }
    headers += "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\n";
    let body = match args.body.as_deref() {
        Some("-") => stdin()?,
        Some(text) => text.as_bytes().to_vec(),
        None => Vec::new(),
    };
    let subject = one_line(args.subject.as_deref().unwrap_or_default())?;
    let subject = match subject.is_ascii() {
        true => subject.to_owned(),
        false => format!("=?UTF-8?B?{}?=", BASE64_STANDARD.encode(subject)),
    };
    Ok(Message { to: one_line(&args.to.join(", "))?.into(), subject: subject.into(), body, headers: headers.into() })
}

fn sender(text: &str) -> Result<Address, String> {
    translate::address(text)
}

fn one_line(text: &str) -> Result<&str, Usage> {
    if text.contains(char::is_control) {
        return Err(Usage("an address or a subject must stand on one line, without control characters".to_owned()));
    }
    Ok(text)
}

fn stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn from_stdin() -> anyhow::Result<Message> {
    if io::stdin().is_terminal() {
        output::tell("Type the mail, header first, then an empty line and the text; end with Ctrl-D.");
    }
    Ok(split(&stdin()?)?)
}

/// Takes a mail apart as PHP's `mail()` has it: To and Subject for themselves, the other headers, the body.
fn split(mail: &[u8]) -> Result<Message, Usage> {
    let mut message = Message { to: Vec::new(), subject: Vec::new(), body: Vec::new(), headers: Vec::new() };
    let mut rest = mail;
    let mut number = 0;
    let mut fields: Vec<Vec<u8>> = Vec::new();
    while !rest.is_empty() {
        let (line, behind) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        rest = behind;
        number += 1;
        match fields.last_mut() {
            _ if line.is_empty() => break,
            Some(field) if line.starts_with(b" ") || line.starts_with(b"\t") => {
                field.extend_from_slice(b"\r\n");
                field.extend_from_slice(line);
            }
            _ if is_field(line) => fields.push(line.to_vec()),
            _ => {
                return Err(Usage(format!(
                    "line {number} of the mail is no header; write headers as NAME: VALUE, then an empty line, then the text"
                )));
            }
        }
    }
    if fields.is_empty() {
        return Err(Usage("there is no mail on standard input; its headers come first".to_owned()));
    }
    message.body = rest.to_vec();
    for field in fields {
        let colon = field.iter().position(|byte| *byte == b':').unwrap_or(field.len());
        let value = field.get(colon + 1..).unwrap_or_default().trim_ascii();
        match field[..colon].trim_ascii().to_ascii_lowercase().as_slice() {
            b"to" => {
                if !message.to.is_empty() {
                    message.to.extend_from_slice(b", ");
                }
                message.to.extend_from_slice(value);
            }
            b"subject" if message.subject.is_empty() => message.subject = value.to_vec(),
            _ => {
                message.headers.extend_from_slice(&field);
                message.headers.extend_from_slice(b"\r\n");
            }
        }
    }
    Ok(message)
}

/// A field's name and a colon (RFC 5322 §2.2).
fn is_field(line: &[u8]) -> bool {
    match line.iter().position(|byte| *byte == b':') {
        Some(colon) => colon > 0 && line[..colon].trim_ascii_end().iter().all(|byte| matches!(byte, b'!'..=b'~')),
        None => false,
    }
}

/// Makes a mail of the columns as the dispatcher does, and refuses those of which it makes none, or one that does not
/// go to everybody. A smarthost of which nothing is known is taken for one that can do everything.
async fn can_be_sent(args: &Args, config: &Config, queue: &queue::Queue, columns: &Columns) -> anyhow::Result<()> {
    /// Recipients that a message names.
    const NAMED: usize = 5;
    let wire = select::announced_wire(config).unwrap_or_default();
    let mail = select::drafted(config, queue, columns, wire).await?;
    let mail = mail.map_err(|unreadable| Usage(format!("the mail could not be sent: {unreadable}")))?;
    if !mail.invalid.is_empty() {
        let named = mail.invalid.iter().take(NAMED).map(|invalid| format!("{} ({})", invalid.written, invalid.why));
        let more = mail.invalid.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        return Err(Usage(format!(
            "{} could not get the mail: {}{more}; correct each address, or leave it out",
            count(mail.invalid.len(), "recipient"),
            named.collect::<Vec<_>>().join(", ")
        ))
        .into());
    }
    if let Some(sender) = args.sender.as_ref().filter(|_| config.message.envelope_from.is_none())
        && mail.envelope.sender.as_ref() != Some(sender)
    {
        let text = format!("{sender} would not become the envelope sender: write --sender as in bounces@example.org");
        return Err(Usage(text).into());
    }
    Ok(())
}

/// Refuses a value that is longer than its column, and one of a length at which the column would have cut it: such a row is
/// taken for damaged.
async fn fits(queue: &queue::Queue, columns: &Columns) -> anyhow::Result<()> {
    let each = |limits: ColumnLimits| [limits.mto, limits.msubject, limits.mbody, limits.mheaders, limits.mparams];
    let (sizes, cut_at) = (each(queue.column_sizes().await?), each(queue.limits().await?));
    for ((column, value), (size, cut_at)) in columns.each().into_iter().zip(sizes.into_iter().zip(cut_at)) {
        let length = value.map_or(0, <[u8]>::len) as u64;
        if length > size || length == cut_at {
            return Err(Usage(format!(
                "{column} would be {length} bytes in base64, and its column holds {size}: shorten the mail{}, or widen the column",
                if column == "mto" { ", or move recipients into a Bcc header" } else { "" }
            ))
            .into());
        }
    }
    Ok(())
}
