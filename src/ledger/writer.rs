//! One connection, one thread: whatever has piled up meanwhile is written in one transaction.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::Sha256;
use tokio::sync::{mpsc, oneshot};

use super::{Error, Transmission};

/// The most requests of one transaction: a group this large is written in a few milliseconds.
const GROUP: usize = 256;

/// Different statements that are kept prepared: more than there are here.
const STATEMENTS: usize = 32;

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

enum Request {
    Write(Op, oneshot::Sender<Result<(), Error>>),
    /// Looks, and answers whoever asked.
    Read(Box<dyn FnOnce(&Connection) + Send>),
    Shut(oneshot::Sender<()>),
}

/// The way to the writing thread, which ends when it is told to, or when the last of these is dropped.
#[derive(Clone)]
pub struct Writer {
    /// Each is a group of its own at least, in order.
    requests: mpsc::UnboundedSender<Vec<Request>>,
    /// What nobody waits for yet: it goes with what comes next, so that the thread is woken once for both.
    held: Arc<Mutex<Vec<Request>>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    pub fn start(connection: Connection, key: [u8; 32]) -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("ledger".to_owned()).spawn(move || work(connection, &key, inbox))?;
        Ok(Self { requests, held: Arc::default() })
    }

    /// Takes its place in the order of writes at once, and is written at once; the future answers when it is on file.
    pub fn write(&self, op: Op) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let answered = self.note(op);
        self.flush();
        answered
    }

    /// Takes its place in the order of writes at once; it is written with the next, or at [`Writer::flush`], or as soon
    /// as the future is asked whether it is on file.
    pub fn note(&self, op: Op) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        self.held().push(Request::Write(op, answer));
        let writer = self.clone();
        async move {
            writer.flush();
            // Where the thread is gone, the answer's end was dropped with the request.
            answered.await.unwrap_or_else(|_| Err(stopped()))
        }
    }

    /// Has everything written that was only noted.
    pub fn flush(&self) {
        let mut held = self.held();
        if !held.is_empty() {
            // Sent while it is locked, so that the order stays. Where the thread is gone, those who wait hear of it.
            let _ = self.requests.send(std::mem::take(&mut held));
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Request>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn shut(&self) {
        let (answer, answered) = oneshot::channel();
        self.held().push(Request::Shut(answer));
        self.flush();
        // Where the thread is gone already there is nothing left to close.
        let _ = answered.await;
    }

    /// Sees everything that was handed to [`Writer::write`] before.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let look = move |connection: &Connection| {
            // Whoever asked may have been cancelled.
            let _ = answer.send(look(connection).map_err(failed));
        };
        self.held().push(Request::Read(Box::new(look)));
        self.flush();
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> Error {
    Error::Write("its writer has stopped".to_owned())
}

pub fn failed(error: rusqlite::Error) -> Error {
    Error::Write(error.to_string())
}

fn work(connection: Connection, key: &[u8; 32], mut inbox: mpsc::UnboundedReceiver<Vec<Request>>) {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let mut pending = Vec::with_capacity(GROUP);
    let mut shut = None;
    while shut.is_none() && inbox.blocking_recv_many(&mut pending, GROUP) > 0 {
        let mut group = Vec::with_capacity(pending.len());
        let mut answers = Vec::with_capacity(pending.len());
        for request in pending.drain(..).flatten() {
            match request {
                Request::Write(op, answer) => {
                    group.push(op);
                    answers.push(answer);
                }
                Request::Read(look) => {
                    // What was asked to be written before is on file before anybody reads.
                    finish(&connection, key, &mut group, &mut answers);
                    look(&connection);
                }
                Request::Shut(answer) => shut = Some(answer),
            }
        }
        finish(&connection, key, &mut group, &mut answers);
    }
    // Checkpoints and removes the write-ahead log; what cannot be done now is done at the next open.
    drop(connection);
    if let Some(shut) = shut {
        let _ = shut.send(());
    }
}

fn finish(
    connection: &Connection,
    key: &[u8; 32],
    group: &mut Vec<Op>,
    answers: &mut Vec<oneshot::Sender<Result<(), Error>>>,
) {
    if group.is_empty() {
        return;
    }
    let result = write(connection, key, std::mem::take(group));
    for answer in answers.drain(..) {
        // Whoever asked may have been cancelled; the write counts all the same.
        let _ = answer.send(result.as_ref().copied().map_err(|error| Error::Write(error.to_string())));
    }
}

fn write(connection: &Connection, key: &[u8; 32], group: Vec<Op>) -> rusqlite::Result<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let written = group
        .into_iter()
        .try_for_each(|op| perform(connection, key, op))
        .and_then(|()| connection.prepare_cached("COMMIT")?.execute([]));
    if written.is_err() && !connection.is_autocommit() {
        // The first error is the one that tells; without a transaction there is nothing to take back.
        let _ = connection.execute_batch("ROLLBACK");
    }
    written.map(drop)
}

fn perform(connection: &Connection, key: &[u8; 32], op: Op) -> rusqlite::Result<()> {
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

/// Hashes the recipients, takes addresses out of the reply, and puts the entry with the settled ones.
fn settle(connection: &Connection, key: &[u8; 32], id: i64) -> rusqlite::Result<()> {
    let mut select =
        connection.prepare_cached("SELECT recipients, reply FROM open_entry WHERE id = ? AND accepted IS NOT NULL")?;
    let texts = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?));
    let Some((recipients, reply)) = select.query_row([id], texts).optional()? else { return Ok(()) };
    let recipients: Vec<String> = serde_json::from_str(&recipients)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))?;
    let hashed: Vec<String> = recipients.iter().map(|address| hash_address(key, address)).collect();
    connection
        .prepare_cached(
            "INSERT INTO settled_entry SELECT id, queue, mid, record, fingerprint, message_id, ?2, complete, begun, ?3,
             accepted FROM open_entry WHERE id = ?1",
        )?
        .execute(params![id, json(&hashed)?, reply.map(|reply| without_addresses(&reply))])?;
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
