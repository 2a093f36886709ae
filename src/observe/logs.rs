//! Logs: one event for each thing that happens to a mail, on standard error or in the journal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anyhow::Context as _;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::Layered;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, Registry, reload};

use super::journald::Journal;
use super::log_writer::{Entry, LOG, LogWriter};
use crate::{ledger, visible};

/// The target of the report of a panic. It is logged at every level.
pub const PANICS: &str = "mailqueue::panic";

/// `[log]` of the configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub format: Format,
    /// `info`, or by module: `info,mailqueue::relay=debug`.
    pub level: String,
    pub addresses: Addresses,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Json, level: "info".to_owned(), addresses: Addresses::Domain }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
    /// The systemd journal's own protocol, with fields.
    Journald,
}

pub const FORMATS: [(&str, Format); 3] =
    [("json", Format::Json), ("text", Format::Text), ("journald", Format::Journald)];

/// How much of a mail address a log may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    Full,
    /// `…@example.org`
    Domain,
    /// The keyed hash that `mailqueue trace` shows too, so that two mentions of one address can be seen to be the same,
    /// and no more.
    Hash,
}

pub const ADDRESSES: [(&str, Addresses); 3] =
    [("full", Addresses::Full), ("domain", Addresses::Domain), ("hash", Addresses::Hash)];

/// Whether `level` is one that [`start`] takes.
pub fn check_level(level: &str) -> Result<(), String> {
    let known = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"].iter().any(|level| level.eq_ignore_ascii_case(word.trim()))
    };
    // The filter takes any single word for a module's name, which hides a typing error such as `inof`.
    let word = |part: &str| part.contains(['=', ':', '[']) || known(part);
    if level.is_empty() || !level.split(',').all(word) {
        return Err(format!("{level} is no log level"));
    }
    EnvFilter::try_new(level).map(drop).map_err(|error| error.to_string())
}

/// What is logged, and how: both can change while the process runs.
#[derive(Clone)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    form: reload::Handle<Form, Filtered>,
    writer: LogWriter,
}

/// Settings that can be put in force.
pub struct Prepared {
    filter: EnvFilter,
    form: Form,
}

type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;
type Form = Box<dyn Layer<Filtered> + Send + Sync>;

/// Starts logging for the whole process, by way of `writer`. The first call counts.
pub fn start(settings: &Settings, writer: &LogWriter) -> anyhow::Result<Logs> {
    let (filter, filter_handle) = reload::Layer::new(filter(&settings.level)?);
    let (form, form_handle) = reload::Layer::new(form(settings.format, writer)?);
    // A second start (a test in the same process) changes nothing, and is no failure.
    let _ = tracing_subscriber::registry().with(filter).with(form).try_init();
    Ok(Logs { filter: filter_handle, form: form_handle, writer: writer.clone() })
}

impl Logs {
    /// Prepares other settings. Fails where they cannot be used; nothing has changed before [`Logs::change`].
    pub fn prepare(&self, settings: &Settings) -> anyhow::Result<Prepared> {
        Ok(Prepared { filter: filter(&settings.level)?, form: form(settings.format, &self.writer)? })
    }

    /// Goes on with other settings.
    pub fn change(&self, prepared: Prepared) -> anyhow::Result<()> {
        self.filter.reload(prepared.filter)?;
        Ok(self.form.reload(prepared.form)?)
    }
}

/// Changes by operators, lost lines and panics are logged at every level, unless they are named themselves.
fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    Ok(EnvFilter::try_new(format!("{}=info,{LOG}=warn,{PANICS}=error,{level}", super::audit::AUDIT))?)
}

fn form(format: Format, writer: &LogWriter) -> anyhow::Result<Form> {
    // By default the layer reports an error of its own with `eprintln!`, which panics where standard error is closed.
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false);
    let log = writer.clone();
    Ok(match format {
        Format::Json => {
            let lines = lines.with_writer(move || Lines { escape: visible::escaped_json, log: log.clone() });
            lines.json().flatten_event(true).with_current_span(false).boxed()
        }
        Format::Text => {
            let ansi = io::stderr().is_terminal() && colours_wanted();
            lines.with_writer(move || Lines { escape: escaped_text, log: log.clone() }).with_ansi(ansi).boxed()
        }
        Format::Journald => Journal::new(log)
            .context("[log] format = \"journald\": there is no journal here; write \"text\" or \"json\" instead")?
            .boxed(),
    })
}

/// False where the environment asks for text without colours (<https://no-color.org>), or the terminal has none.
pub fn colours_wanted() -> bool {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    wanted && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// The writer to which the layer gives one line at a time. Characters that a reader would not see are escaped,
/// wherever in the line they come from.
struct Lines {
    escape: fn(&str) -> Cow<'_, str>,
    log: LogWriter,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let escaped = match std::str::from_utf8(line) {
            Ok(text) => (self.escape)(text).into_owned().into_bytes(),
            Err(_) => line.to_vec(),
        };
        self.log.push(Entry::Line(escaped));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escape characters stay: those in values are escaped by the layer, and the others are its colours.
fn escaped_text(line: &str) -> Cow<'_, str> {
    let hidden = |c| !matches!(c, '\n' | '\x1b') && visible::is_hidden(c);
    visible::replaced(line, hidden, |c, out| out.extend(c.escape_default()))
}

/// Takes out of addresses what a log may not show.
#[derive(Clone)]
pub struct Redactor {
    addresses: Addresses,
    key: [u8; 32],
}

impl Redactor {
    /// `key` matters for [`Addresses::Hash`] only: that of the ledger, whose hashes are then the log's.
    pub fn new(addresses: Addresses, key: [u8; 32]) -> Self {
        Self { addresses, key }
    }

    /// The address as a log may show it.
    pub fn address(&self, address: &str) -> String {
        match self.addresses {
            Addresses::Full => address.to_owned(),
            Addresses::Domain => match address.rsplit_once('@') {
                Some((_, domain)) => format!("…@{domain}"),
                None => "…".to_owned(),
            },
            Addresses::Hash => ledger::hash_address(&self.key, address),
        }
    }

    /// A text of the smarthost's or ours, with each mail address in it shown as a log may show it.
    pub fn text(&self, text: &str) -> String {
        if self.addresses == Addresses::Full || !text.contains('@') {
            return text.to_owned();
        }
        let (mut shown, mut rest) = (String::new(), text);
        while let Some((begin, end)) = quoted(rest) {
            shown += &self.words(&rest[..begin]);
            shown += &self.address(&rest[begin..end]);
            rest = &rest[end..];
        }
        shown + &self.words(rest)
    }

    fn words(&self, text: &str) -> String {
        let parts =
            text.split_inclusive(|c: char| c.is_whitespace() || c.is_control() || "<>()[]{},;:\"'`".contains(c));
        parts
            .map(|part| match part.char_indices().next_back() {
                Some((at, end)) if !end.is_alphanumeric() && end != '@' => self.word(&part[..at]) + &part[at..],
                _ => self.word(part),
            })
            .collect()
    }

    fn word(&self, word: &str) -> String {
        if word.contains('@') { self.address(word) } else { word.to_owned() }
    }
}

/// Where the first address with a quoted local part stands: `"Anna Berger"@example.org` (RFC 5321 §4.1.2).
fn quoted(text: &str) -> Option<(usize, usize)> {
    let close = text.find("\"@")?;
    let escaped = |at: usize| text[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
    let begin = text[..close].rmatch_indices('"').map(|(at, _)| at).find(|at| !escaped(*at))?;
    let domain = |c: char| c.is_alphanumeric() || "-.:[]".contains(c);
    let end = text[close + 2..].find(|c| !domain(c)).map_or(text.len(), |length| close + 2 + length);
    Some((begin, end))
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({:?})", self.addresses)
    }
}
