//! What is written to the ledger, statement by statement.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use rusqlite::functions::FunctionFlags;
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

/// Inside a transaction, on a connection that [`define`] has seen.
pub fn perform(connection: &Connection, op: Op) -> rusqlite::Result<()> {
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
        Op::Settled(ids) => settle(connection, &ids),
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

/// Puts entries with the settled ones, the recipients hashed and addresses taken out of the reply. `OR FAIL`: whoever
/// meets an error takes the whole transaction back, so that SQLite need not keep a way back of its own.
fn settle(connection: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
    let ids = format!("{ids:?}");
    connection
        .prepare_cached(
            "INSERT OR FAIL INTO settled_entry (id, queue, mid, record, fingerprint, message_id, recipients, complete,
             begun, reply, accepted)
             SELECT id, queue, mid, record, fingerprint, message_id, hashed(recipients), complete, begun,
             without_addresses(reply), accepted
             FROM open_entry WHERE id IN (SELECT value FROM json_each(?)) AND accepted IS NOT NULL",
        )?
        .execute([&ids])?;
    connection
        .prepare_cached("DELETE FROM open_entry WHERE id IN (SELECT value FROM json_each(?)) AND accepted IS NOT NULL")?
        .execute([&ids])
        .map(drop)
}

/// What [`settle`] calls in its statements. `key` is for the hashes of addresses.
pub fn define(connection: &Connection, key: [u8; 32]) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function("hashed", 1, flags, move |call| {
        let recipients: Vec<String> = serde_json::from_str(call.get_raw(0).as_str()?)
            .map_err(|error| rusqlite::Error::UserFunctionError(error.into()))?;
        json(&recipients.iter().map(|address| hash_address(&key, address)).collect::<Vec<_>>())
    })?;
    connection.create_scalar_function("without_addresses", 1, flags, |call| {
        Ok(call.get_raw(0).as_str_or_null()?.map(without_addresses))
    })
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
