//! Looks mails up in the ledger, also beside a dispatcher that is writing and weeks after their rows are gone.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::address::hash_address;
use super::daybook::Entry;
use super::entry::{EntryId, Error, FILE, OpenEntry, time};
use super::schema;
use crate::mail::{Fingerprint, MailId};

/// What is known of the mail that is looked for.
#[derive(Clone, Debug)]
pub enum Query {
    Id(MailId),
    /// With or without its angle brackets.
    MessageId(String),
    Recipient(String),
}

/// One transaction of a mail.
#[derive(Clone, Debug)]
pub struct Traced {
    pub id: MailId,
    pub record: String,
    pub fingerprint: Option<Fingerprint>,
    pub message_id: String,
    /// `transmitting`, `accepted` or `settled`.
    pub state: String,
    /// Addresses; keyed hashes once settled.
    pub recipients: Vec<String>,
    /// The row waited for nobody else.
    pub complete: bool,
    pub reply: Option<String>,
    /// Labels of what was repaired on the way from the row.
    pub repairs: Vec<String>,
    pub begun: Timestamp,
    pub accepted: Option<Timestamp>,
}

/// A ledger that is opened to look only.
#[derive(Debug)]
pub struct Tracer {
    state_dir: PathBuf,
    settled: Connection,
    key: [u8; 32],
}

impl Tracer {
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let settled = schema::open_read_only(&state_dir.join(FILE))?;
        let key = schema::existing_key(state_dir)?.unwrap_or_default();
        Ok(Self { state_dir: state_dir.to_owned(), settled, key })
    }

    /// The transactions of all mails that match, oldest first, at most `limit`.
    pub fn find(&self, query: &Query, limit: u32) -> Result<Vec<Traced>, Error> {
        // First what is open: it may be posted while we look, and is found among the settled then.
        let open = schema::still_open(&self.state_dir, &self.settled)?;
        let mut found = self.find_settled(query, limit).map_err(|error| self.failed(&error))?;
        found.extend(open.values().filter(|entry| query.matches(entry)).map(|entry| still_open(entry)));
        found.truncate(limit as usize);
        Ok(found)
    }

    /// Returns the entries of all queues that are not settled, oldest first. Only while no dispatcher writes them.
    pub fn open_entries(&self) -> Result<Vec<OpenEntry>, Error> {
        let open = schema::still_open(&self.state_dir, &self.settled)?;
        let entries = open.iter().map(|(id, entry)| OpenEntry {
            entry: EntryId(*id),
            transmission: entry.transmission.clone(),
            accepted: entry.accepted.clone(),
        });
        Ok(entries.collect())
    }

    /// As [`Ledger::knows`](super::Ledger::knows).
    pub fn knows(&self, queue: &str) -> Result<bool, Error> {
        schema::knows(&self.settled, queue).map_err(|error| self.failed(&error))
    }

    fn find_settled(&self, query: &Query, limit: u32) -> rusqlite::Result<Vec<Traced>> {
        const BY_ID: &str = "queue = ?1 AND mid = CAST(?2 AS INTEGER)";
        const BY_MESSAGE_ID: &str = "message_id IN (?1, ?2)";
        // A hash, as a log may show it, stands for itself.
        const BY_RECIPIENT: &str = "EXISTS (SELECT 1 FROM json_each(recipients) WHERE value IN (?1, ?2))";
        let (which, first, second) = match query {
            Query::Id(id) => (BY_ID, id.queue.to_string(), id.mid.to_string()),
            Query::MessageId(id) => (BY_MESSAGE_ID, id.clone(), format!("<{id}>")),
            Query::Recipient(address) => (BY_RECIPIENT, address.to_lowercase(), hash_address(&self.key, address)),
        };
        let sql = format!("SELECT * FROM settled_entry WHERE {which} ORDER BY id LIMIT ?3");
        self.settled.prepare(&sql)?.query_map(params![first, second, limit], settled)?.collect()
    }

    fn failed(&self, error: &rusqlite::Error) -> Error {
        schema::damaged(&self.state_dir.join(FILE), error)
    }

    /// Settled mails from before this moment are not found by their recipients, because `ledger.key` was lost then.
    pub fn blind_before(&self) -> Option<Timestamp> {
        schema::blind_before(&self.settled)
    }

    /// Entries that are not settled yet, over all queues, and when the smarthost last accepted a mail.
    pub fn summary(&self) -> Result<(u64, Option<Timestamp>), Error> {
        let open = schema::still_open(&self.state_dir, &self.settled)?;
        let sql = "SELECT max(accepted) FROM (SELECT accepted FROM settled_entry ORDER BY id DESC LIMIT 1000)";
        let last = self.settled.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
        let last = last.map_err(|error| self.failed(&error))?;
        let accepted = open.values().filter_map(|entry| entry.accepted.as_ref()).map(|(_, at)| *at).max();
        Ok((open.len() as u64, accepted.max(last.map(time))))
    }
}

impl Query {
    fn matches(&self, entry: &Entry) -> bool {
        let transmission = &entry.transmission;
        match self {
            Self::Id(id) => transmission.id == *id,
            Self::MessageId(id) => transmission.message_id.trim_matches(['<', '>']) == id.trim_matches(['<', '>']),
            Self::Recipient(address) => {
                transmission.recipients.iter().any(|known| known.to_lowercase() == address.to_lowercase())
            }
        }
    }
}

fn still_open(entry: &Entry) -> Traced {
    let Entry { transmission, accepted } = entry.clone();
    let (reply, accepted) = accepted.unzip();
    Traced {
        id: transmission.id,
        record: transmission.record.to_string(),
        fingerprint: Some(transmission.fingerprint),
        message_id: transmission.message_id,
        state: if accepted.is_some() { "accepted" } else { "transmitting" }.to_owned(),
        recipients: transmission.recipients,
        complete: transmission.complete,
        reply,
        repairs: transmission.repairs,
        begun: transmission.begun,
        accepted,
    }
}

fn settled(row: &Row<'_>) -> rusqlite::Result<Traced> {
    let text = |name: &str| row.get::<_, String>(name);
    Ok(Traced {
        id: MailId::new(text("queue")?, row.get("mid")?),
        record: text("record")?,
        fingerprint: Fingerprint::from_hex(&text("fingerprint")?),
        message_id: text("message_id")?,
        state: "settled".to_owned(),
        recipients: serde_json::from_str(&text("recipients")?).unwrap_or_default(),
        complete: row.get("complete")?,
        reply: row.get("reply")?,
        // A file of an earlier version has no such column before a dispatcher opens it.
        repairs: text("repairs").ok().and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        begun: time(row.get("begun")?),
        accepted: row.get::<_, Option<i64>>("accepted")?.map(time),
    })
}
