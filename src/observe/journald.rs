//! Events in the systemd journal: each field of ours as a native field (systemd.journal-fields(7)), and a message that a
//! person can read without the fields, since a plain `journalctl` shows nothing else.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;

use libsystemd::logging::Priority;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::log_writer::{Entry, LogWriter, Record};
use crate::visible;

const SOCKET: &str = "/run/systemd/journal/socket";

/// What the id of a mail says already.
const IN_ID: [&str; 3] = ["id", "queue", "mid"];

/// The layer that sends events to the journal of this host.
#[derive(Debug)]
pub struct Journal {
    log: LogWriter,
}

impl Journal {
    /// Checks that there is a journal. Fails where there is none.
    pub fn new(log: LogWriter) -> io::Result<Self> {
        UnixDatagram::unbound()?.connect(SOCKET)?;
        Ok(Self { log })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.message();
        let own = fields.others.into_iter().map(|(name, value)| {
            // `journalctl MAILQUEUE_ID=newsletter/1234`
            (format!("MAILQUEUE_{}", name.to_ascii_uppercase().replace('.', "_")), value)
        });
        let target = ("TARGET".to_owned(), event.metadata().target().to_owned());
        let program = ("SYSLOG_IDENTIFIER".to_owned(), "mailqueue".to_owned());
        let fields = own.chain([target, program]).collect();
        self.log.push(Entry::Record(Record { priority: priority(event.metadata().level()), message, fields }));
    }
}

fn priority(level: &Level) -> Priority {
    match *level {
        Level::ERROR => Priority::Error,
        Level::WARN => Priority::Warning,
        Level::INFO => Priority::Info,
        _ => Priority::Debug,
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    /// As in `newsletter/1234 recipient deferred: recipient=…@example.org reply="450 4.2.1 later" attempt=1`.
    fn message(&self) -> String {
        let id = self.others.iter().find(|(name, _)| *name == "id").map(|(_, id)| id);
        let mut message = id.map_or_else(String::new, |id| format!("{id} ")) + &self.message;
        let mut between = ": ";
        for (name, value) in &self.others {
            if id.is_some() && IN_ID.contains(name) || *name == "message_id" {
                continue;
            }
            // Writing to a string cannot fail.
            let _ = match value.contains(|c: char| c.is_whitespace() || c == '"' || c.is_control()) {
                true => write!(message, "{between}{name}={value:?}"),
                false => write!(message, "{between}{name}={value}"),
            };
            between = " ";
        }
        let hidden = |c| c != '\n' && visible::is_hidden(c);
        visible::replaced(&message, hidden, |c, out| out.extend(c.escape_default())).into_owned()
    }

    fn add(&mut self, field: &Field, text: String) {
        match field.name() {
            "message" => self.message = text,
            name => self.others.push((name, text)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}
