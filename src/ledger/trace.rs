//! Looks mails up in the ledger, also beside a dispatcher that is writing and weeks after their rows are gone.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::{Error, FILE, ops, schema, writer};
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
    pub begun: Timestamp,
    pub accepted: Option<Timestamp>,
}

/// A ledger that is opened to look only.
#[derive(Debug)]
pub struct Tracer {
    connection: Connection,
    key: [u8; 32],
}

impl Tracer {
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let connection = schema::open_read_only(&state_dir.join(FILE))?;
        let key = schema::existing_key(state_dir)?.unwrap_or_default();
        Ok(Self { connection, key })
    }

    /// The transactions of all mails that match, oldest first, at most `limit`.
    pub fn find(&self, query: &Query, limit: u32) -> Result<Vec<Traced>, Error> {
        const BY_ID: &str = "SELECT * FROM entry WHERE queue = ?1 AND mid = CAST(?2 AS INTEGER) ORDER BY id LIMIT ?3";
        const BY_MESSAGE_ID: &str = "SELECT * FROM entry WHERE message_id IN (?1, ?2) ORDER BY id LIMIT ?3";
        const BY_RECIPIENT: &str = "SELECT * FROM entry WHERE EXISTS (
                SELECT 1 FROM json_each(recipients) WHERE lower(value) IN (?1, ?2)) ORDER BY id LIMIT ?3";
        let (sql, first, second) = match query {
            Query::Id(id) => (BY_ID, id.queue.to_string(), id.mid.to_string()),
            Query::MessageId(id) => (BY_MESSAGE_ID, id.clone(), format!("<{id}>")),
            Query::Recipient(address) => (BY_RECIPIENT, address.to_lowercase(), ops::hash_address(&self.key, address)),
        };
        let look = || -> rusqlite::Result<Vec<Traced>> {
            self.connection.prepare(sql)?.query_map(params![first, second, limit], traced)?.collect()
        };
        look().map_err(writer::failed)
    }

    /// Settled mails from before this moment are not found by their recipients, because `ledger.key` was lost then.
    pub fn blind_before(&self) -> Option<Timestamp> {
        schema::blind_before(&self.connection)
    }

    /// Entries that are not settled yet, over all queues, and when the smarthost last accepted a mail.
    pub fn summary(&self) -> Result<(u64, Option<Timestamp>), Error> {
        let sql = "SELECT (SELECT count(*) FROM open_entry),
                          (SELECT max(accepted) FROM (SELECT accepted FROM open_entry UNION ALL
                            SELECT * FROM (SELECT accepted FROM settled_entry ORDER BY id DESC LIMIT 1000)))";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, Option<i64>>(1)?));
        let (open, last) = self.connection.query_row(sql, [], read).map_err(writer::failed)?;
        Ok((open, last.and_then(|millis| Timestamp::from_millisecond(millis).ok())))
    }
}

fn traced(row: &Row<'_>) -> rusqlite::Result<Traced> {
    let time = |millis| Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
    let text = |name: &str| row.get::<_, String>(name);
    Ok(Traced {
        id: MailId::new(text("queue")?, row.get("mid")?),
        record: text("record")?,
        fingerprint: Fingerprint::from_hex(&text("fingerprint")?),
        message_id: text("message_id")?,
        state: text("state")?,
        recipients: serde_json::from_str(&text("recipients")?).unwrap_or_default(),
        complete: row.get("complete")?,
        reply: row.get("reply")?,
        begun: time(row.get("begun")?),
        accepted: row.get::<_, Option<i64>>("accepted")?.map(time),
    })
}
