//! Looks mails up in the ledger, also beside a dispatcher that is writing and weeks after their rows are gone.

use std::path::Path;

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{Error, FILE, schema, writer};
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
    connection: SqliteConnection,
    key: [u8; 32],
}

impl Tracer {
    pub async fn open(state_dir: &Path) -> Result<Self, Error> {
        let connection = schema::open_read_only(&state_dir.join(FILE)).await?;
        let key = schema::existing_key(state_dir)?.unwrap_or_default();
        Ok(Self { connection, key })
    }

    /// The transactions of all mails that match, oldest first, at most `limit`.
    pub async fn find(&mut self, query: &Query, limit: u32) -> Result<Vec<Traced>, Error> {
        const BY_ID: &str = "SELECT * FROM entry WHERE queue = ?1 AND mid = CAST(?2 AS INTEGER) ORDER BY id LIMIT ?3";
        const BY_MESSAGE_ID: &str = "SELECT * FROM entry WHERE message_id IN (?1, ?2) ORDER BY id LIMIT ?3";
        const BY_RECIPIENT: &str = "SELECT * FROM entry WHERE EXISTS (
                SELECT 1 FROM json_each(recipients) WHERE lower(value) IN (?1, ?2)) ORDER BY id LIMIT ?3";
        let (sql, first, second) = match query {
            Query::Id(id) => (BY_ID, id.queue.to_string(), id.mid.to_string()),
            Query::MessageId(id) => (BY_MESSAGE_ID, id.clone(), format!("<{id}>")),
            Query::Recipient(address) => {
                (BY_RECIPIENT, address.to_lowercase(), writer::hash_address(&self.key, address))
            }
        };
        let rows = sqlx::query(sql).bind(first).bind(second).bind(limit).fetch_all(&mut self.connection).await;
        rows.and_then(|rows| rows.iter().map(traced).collect()).map_err(schema::unreadable)
    }

    /// Settled mails from before this moment are not found by their recipients, because `ledger.key` was lost then.
    pub async fn blind_before(&mut self) -> Option<Timestamp> {
        schema::blind_before(&mut self.connection).await
    }

    /// Entries that are not settled yet, over all queues, and when the smarthost last accepted a mail.
    pub async fn summary(&mut self) -> Result<(u64, Option<Timestamp>), Error> {
        let row = sqlx::query(
            "SELECT (SELECT count(*) FROM entry WHERE state <> 'settled') AS open,
                    (SELECT max(accepted) FROM (SELECT accepted FROM entry ORDER BY id DESC LIMIT 1000)) AS last",
        )
        .fetch_one(&mut self.connection)
        .await
        .map_err(schema::unreadable)?;
        let open = row.try_get::<i64, _>("open").map_err(schema::unreadable)?.unsigned_abs();
        let last = row.try_get::<Option<i64>, _>("last").map_err(schema::unreadable)?;
        Ok((open, last.and_then(|millis| Timestamp::from_millisecond(millis).ok())))
    }
}

fn traced(row: &SqliteRow) -> Result<Traced, sqlx::Error> {
    let time = |millis| Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(Traced {
        id: MailId::new(row.try_get::<String, _>("queue")?, row.try_get("mid")?),
        record: row.try_get("record")?,
        fingerprint: Fingerprint::from_hex(row.try_get("fingerprint")?),
        message_id: row.try_get("message_id")?,
        state: row.try_get("state")?,
        recipients: serde_json::from_str(row.try_get("recipients")?).unwrap_or_default(),
        complete: row.try_get("complete")?,
        reply: row.try_get("reply")?,
        begun: time(row.try_get("begun")?),
        accepted: row.try_get::<Option<i64>, _>("accepted")?.map(time),
    })
}
