//! What is written to the ledger, statement by statement.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use rusqlite::types::{ToSqlOutput, Type};
use rusqlite::{Connection, params};
use sha2::Sha256;

use super::Transmission;

#[derive(Debug)]
pub enum Op {
    Transmitting(i64, Transmission),
    Accepted(i64, String, Timestamp),
    Forget(Vec<i64>),
    Settled(Vec<i64>),
    Expire(Timestamp),
    /// A queue.
    Know(String),
    /// Whether anything can be written.
    Try,
}

/// Inside a transaction. `key` is for the hashes of addresses.
pub fn perform(connection: &Connection, key: &[u8; 32], op: Op) -> rusqlite::Result<()> {
    match op {
        Op::Transmitting(id, t) => connection
            .prepare_cached(
                "INSERT INTO open_entry (id, queue, mid, record, fingerprint, message_id, recipients, complete, begun)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id,
                &*t.id.queue,
                t.id.mid,
                t.record.as_str(),
                t.fingerprint.to_hex(),
                t.message_id,
                json(&t.recipients)?,
                t.complete,
                t.begun.as_millisecond()
            ])
            .map(drop),
        Op::Accepted(id, reply, at) => connection
            .prepare_cached("UPDATE open_entry SET reply = ?2, accepted = ?3 WHERE id = ?1 AND accepted IS NULL")?
            .execute(params![id, reply, at.as_millisecond()])
            .map(drop),
        Op::Settled(ids) => ids.into_iter().try_for_each(|id| settle(connection, key, id)),
        Op::Forget(ids) => {
            let mut delete = connection.prepare_cached("DELETE FROM open_entry WHERE id = ?")?;
            ids.into_iter().try_for_each(|id| delete.execute([id]).map(drop))
        }
        Op::Expire(before) => connection
            .prepare_cached("DELETE FROM settled_entry WHERE begun < ?")?
            .execute([before.as_millisecond()])
            .map(drop),
        Op::Know(queue) => {
            connection.prepare_cached("INSERT OR IGNORE INTO known_queue (name) VALUES (?)")?.execute([queue]).map(drop)
        }
        // Takes a page or two of the write-ahead log, as an entry does.
        Op::Try => connection
            .execute_batch("INSERT OR IGNORE INTO known_queue VALUES (''); DELETE FROM known_queue WHERE name = ''"),
    }
}

/// Hashes the recipients, takes addresses out of the reply, and puts the entry with the settled ones. Value by value: for
/// an INSERT … SELECT, SQLite would keep each page that it touches for a way back.
fn settle(connection: &Connection, key: &[u8; 32], id: i64) -> rusqlite::Result<()> {
    let mut open = connection.prepare_cached(
        "SELECT recipients, reply, queue, mid, record, fingerprint, message_id, complete, begun, accepted
         FROM open_entry WHERE id = ? AND accepted IS NOT NULL",
    )?;
    let mut rows = open.query([id])?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let recipients: Vec<String> = serde_json::from_str(row.get_ref(0)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))?;
    let hashed: Vec<String> = recipients.iter().map(|address| hash_address(key, address)).collect();
    let reply = row.get_ref(1)?.as_str_or_null()?.map(without_addresses);
    let as_it_was = |column| row.get_ref(column).map(ToSqlOutput::Borrowed);
    let mut settled = connection.prepare_cached(
        "INSERT INTO settled_entry (id, recipients, reply, queue, mid, record, fingerprint, message_id, complete, begun,
         accepted) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    let [queue, mid, record, fingerprint] = [as_it_was(2)?, as_it_was(3)?, as_it_was(4)?, as_it_was(5)?];
    let [message_id, complete, begun, accepted] = [as_it_was(6)?, as_it_was(7)?, as_it_was(8)?, as_it_was(9)?];
    let recipients = json(&hashed)?;
    settled.execute(params![
        id,
        recipients,
        reply,
        queue,
        mid,
        record,
        fingerprint,
        message_id,
        complete,
        begun,
        accepted
    ])?;
    drop(rows);
    connection.prepare_cached("DELETE FROM open_entry WHERE id = ?")?.execute([id]).map(drop)
}

fn json(texts: &[String]) -> rusqlite::Result<String> {
    serde_json::to_string(texts).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Half an HMAC-SHA256 in hexadecimal. The domain's case does not matter; that of the local part does not either,
/// because whoever asks for a member's mail seldom knows it.
pub fn hash_address(key: &[u8; 32], address: &str) -> String {
    // Every length of key fits an HMAC; the empty digest stands where that ever changed.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(address.to_lowercase().as_bytes());
    crate::mail::hex(&mac.finalize().into_bytes()[..16])
}

/// The reply, each word that could be an address replaced.
fn without_addresses(reply: &str) -> String {
    let hide = |word| if str::contains(word, '@') { "…" } else { word };
    reply.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}
