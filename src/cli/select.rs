//! The rows that a command means: ids, or a filter over the queues, page by page.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;

use super::ending::Usage;
use crate::config::Config;
use crate::mail::{Capabilities, Columns, Mail, MailId, RecordId};
use crate::observe::status_file::StatusFile;
use crate::outcome::{Reason, State};
use crate::queue::{self, Content, Listed, Pools, Queue};
use crate::translate;

/// Rows a page; a command holds no more than these, and one row's content, at a time.
const PAGE: u32 = 500;

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Which rows")]
pub struct Filters {
    /// Rows of this queue; may be given several times
    #[arg(long, value_name = "QUEUE", value_parser = filled)]
    pub queue: Vec<String>,
    /// Rows in this state; several with commas
    #[arg(long, value_delimiter = ',', value_parser = states())]
    pub state: Vec<State>,
    /// Rows with this reason
    #[arg(long, value_parser = reasons())]
    pub reason: Option<Reason>,
    /// Rows with this recipient, an address; or @DOMAIN for all of a domain
    #[arg(long, value_name = "ADDRESS", value_parser = recipient)]
    pub to: Option<String>,
    /// Rows whose subject has this in it
    #[arg(long, value_name = "TEXT", value_parser = filled)]
    pub subject: Option<String>,
    /// Rows first seen longer ago than this, as in 2h or 3d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub older_than: Option<Duration>,
}

fn states() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::ALL.map(State::as_str)).try_map(|text| State::parse(&text).ok_or("no state"))
}

fn reasons() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)).try_map(|text| Reason::parse(&text).ok_or("no reason"))
}

/// A value with something in it. An empty one comes from a shell's variable that is not set, and as a filter it would let
/// every row through.
pub fn filled(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it is empty, as from a shell's variable that is not set; give a value".to_owned());
    }
    Ok(text.to_owned())
}

fn recipient(text: &str) -> Result<String, String> {
    match text.trim() {
        "@" => Err("it names no domain; write @DOMAIN, as in @example.org".to_owned()),
        _ => filled(text),
    }
}

impl Filters {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
            && self.state.is_empty()
            && self.reason.is_none()
            && self.to.is_none()
            && self.subject.is_none()
            && self.older_than.is_none()
    }

    /// The queues that are meant.
    pub fn queues(&self, config: &Config) -> anyhow::Result<Vec<Queue>> {
        if self.queue.is_empty() {
            return all(config);
        }
        self.queue.iter().map(|name| named(config, name)).collect()
    }

    /// Begins at the first row of `queue`.
    pub fn walk<'a>(&'a self, config: &'a Config, queue: Queue, now: Timestamp) -> Walk<'a> {
        let seen_before = self.older_than.map(|age| now.checked_sub(age).unwrap_or(Timestamp::MIN));
        let filter = queue::Filter { states: self.state.clone(), reason: self.reason, seen_before };
        Walk { filters: self, config, queue, filter, cursor: Some(i64::MIN) }
    }

    /// Returns true where the conditions on decoded content hold.
    fn fits(&self, content: &Decoded) -> bool {
        let subject =
            self.subject.as_ref().is_none_or(|text| content.subject.to_lowercase().contains(&text.to_lowercase()));
        let to =
            self.to.as_ref().is_none_or(|wanted| content.recipients.iter().any(|address| is_meant(wanted, address)));
        subject && to
    }
}

/// An address, or with a leading `@` a domain; case does not matter, and an international domain may be written as
/// people write it or in punycode, as recipients have it.
fn is_meant(wanted: &str, address: &str) -> bool {
    let address = address.to_lowercase();
    [wanted.to_lowercase(), as_recipient(wanted).to_lowercase()]
        .iter()
        .any(|wanted| if wanted.starts_with('@') { address.ends_with(wanted) } else { address == *wanted })
}

/// The address, or `@` and a domain, as an envelope has it; as it is where it is no address.
pub fn as_recipient(wanted: &str) -> String {
    let local = if wanted.starts_with('@') { "x" } else { "" };
    match translate::address(&format!("{local}{wanted}")) {
        Ok(address) => address.to_string()[local.len()..].to_owned(),
        Err(_) => wanted.to_owned(),
    }
}

/// The rows of a queue that a filter lets through, ascending.
pub struct Walk<'a> {
    filters: &'a Filters,
    config: &'a Config,
    pub queue: Queue,
    filter: queue::Filter,
    /// `None` after the last page.
    cursor: Option<i64>,
}

impl Walk<'_> {
    /// The next page; `None` at the end. A page can be empty.
    pub async fn next(&mut self) -> Result<Option<Vec<Listed>>, queue::Error> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let page = self.queue.list(&self.filter, cursor, PAGE).await?;
        self.cursor = page.last().filter(|_| page.len() >= PAGE as usize).map(|last| last.id.mid);
        if self.filters.to.is_none() && self.filters.subject.is_none() {
            return Ok(Some(page));
        }
        let mut fitting = Vec::new();
        for listed in page {
            if let Some((Listed { content: read, .. }, content)) = self.queue.look(listed.id.mid).await? {
                let decoded = Decoded::of(self.config, &self.queue, &listed, &content).await?;
                if self.filters.fits(&decoded) {
                    fitting.push(Listed { content: read, ..listed });
                }
            }
        }
        Ok(Some(fitting))
    }
}

/// Subject and recipients of a row, as far as it can be read.
struct Decoded {
    subject: String,
    recipients: Vec<String>,
}

impl Decoded {
    async fn of(config: &Config, queue: &Queue, listed: &Listed, content: &Content) -> Result<Self, queue::Error> {
        let known = listed.history.recipients.iter().map(|recipient| recipient.address.clone());
        Ok(match translated(config, queue, listed, content, Capabilities::default()).await? {
            Ok(mail) => Self {
                subject: mail.subject,
                recipients: mail
                    .envelope
                    .recipients
                    .iter()
                    .map(ToString::to_string)
                    .chain(mail.invalid.into_iter().map(|invalid| invalid.written))
                    .chain(known)
                    .collect(),
            },
            Err(_) => Self { subject: String::new(), recipients: known.collect() },
        })
    }
}

/// The capabilities that the smarthost announced to this host's dispatcher last; `None` where none has noted them.
pub fn announced_wire(config: &Config) -> Option<Capabilities> {
    StatusFile::read(&config.state_dir).ok()??.capabilities
}

/// The row as it would go out. A row without a record has no Message-ID of ours yet, and gets one that is all zeros.
pub async fn translated(
    config: &Config,
    queue: &Queue,
    listed: &Listed,
    content: &Content,
    wire: Capabilities,
) -> Result<Result<Mail, translate::Unreadable>, queue::Error> {
    let columns = match content {
        Content::Read(columns) => columns,
        Content::TooLarge(oversize) => {
            let unreadable = translate::Unreadable { reason: Reason::TooLarge, detail: oversize.to_string() };
            return Ok(Err(unreadable));
        }
    };
    let stamp = translate::Stamp {
        record: listed.record.unwrap_or_else(no_record),
        created: listed.first_seen.unwrap_or_else(Timestamp::now),
    };
    stamped(config, queue, columns, &stamp, wire).await
}

/// Columns that are no row yet, as the dispatcher would send them.
pub async fn drafted(
    config: &Config,
    queue: &Queue,
    columns: &Columns,
    wire: Capabilities,
) -> Result<Result<Mail, translate::Unreadable>, queue::Error> {
    let stamp = translate::Stamp { record: no_record(), created: Timestamp::now() };
    stamped(config, queue, columns, &stamp, wire).await
}

async fn stamped(
    config: &Config,
    queue: &Queue,
    columns: &Columns,
    stamp: &translate::Stamp,
    wire: Capabilities,
) -> Result<Result<Mail, translate::Unreadable>, queue::Error> {
    let limits = queue.limits().await?;
    Ok(translate::translate(columns, &limits, stamp, wire, &config.message))
}

fn no_record() -> RecordId {
    RecordId::new([0; 16])
}

/// The queue that an id or an option names.
pub fn named(config: &Config, name: &str) -> anyhow::Result<Queue> {
    match config.queues.iter().find(|queue| &*queue.settings.name == name) {
        Some(queue) => open(&queue.settings),
        None => Err(no_such_queue(config, name).into()),
    }
}

pub fn no_such_queue(config: &Config, name: &str) -> Usage {
    let known: Vec<&str> = config.queues.iter().map(|queue| &*queue.settings.name).collect();
    Usage(format!("there is no queue \"{name}\" in {}; there is {}", config.file.display(), known.join(", ")))
}

/// Each id with its queue.
pub fn by_id(config: &Config, ids: &[MailId]) -> anyhow::Result<Vec<(Queue, Vec<i64>)>> {
    let mut groups: Vec<(Queue, Vec<i64>)> = Vec::new();
    for id in ids {
        match groups.iter_mut().find(|(queue, _)| *queue.name() == id.queue) {
            Some((_, mids)) => mids.push(id.mid),
            None => groups.push((named(config, &id.queue)?, vec![id.mid])),
        }
    }
    Ok(groups)
}

/// Every queue; those of one server share its connections.
pub fn all(config: &Config) -> anyhow::Result<Vec<Queue>> {
    let pools = Pools::default();
    let open = |settings: &queue::Settings| Queue::sharing(settings.clone(), String::new(), &pools);
    config.queues.iter().map(|queue| Ok(open(&queue.settings)?)).collect()
}

/// Commands claim nothing, so they need no dispatcher's id.
pub fn open(settings: &queue::Settings) -> anyhow::Result<Queue> {
    Ok(Queue::new(settings.clone(), String::new())?)
}
