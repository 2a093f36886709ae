//! One connection, one task: whatever has piled up meanwhile is written in one transaction.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};
use tokio::sync::{mpsc, oneshot};

use super::{Error, Transmission};

/// The most operations of one transaction: a group this large is written in a few milliseconds.
const GROUP: usize = 256;

#[derive(Debug)]
pub enum Op {
    Transmitting(i64, Transmission),
    Accepted(i64, String, Timestamp),
    Forget(Vec<i64>),
    Settled(Vec<i64>),
    Expire(Timestamp),
    /// A queue.
    Know(String),
}

#[derive(Debug)]
enum Request {
    Write(Op, oneshot::Sender<Result<(), Error>>),
    Read(&'static str, Vec<String>, oneshot::Sender<Result<Vec<SqliteRow>, Error>>),
}

/// The way to the writing task, which ends when the last of these is dropped.
#[derive(Clone, Debug)]
pub struct Writer {
    requests: mpsc::UnboundedSender<Request>,
}

impl Writer {
    pub fn start(connection: SqliteConnection, key: [u8; 32]) -> Self {
        let (requests, inbox) = mpsc::unbounded_channel();
        tokio::spawn(work(connection, key, inbox));
        Self { requests }
    }

    /// Takes its place in the order of writes at once; the future answers when it is on file.
    pub fn write(&self, op: Op) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        // Where the task is gone, the answer's end is dropped with the request, and the future says so.
        let _ = self.requests.send(Request::Write(op, answer));
        async { answered.await.unwrap_or_else(|_| Err(stopped())) }
    }

    pub async fn read(&self, sql: &'static str, arguments: Vec<String>) -> Result<Vec<SqliteRow>, Error> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Read(sql, arguments, answer));
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> Error {
    Error::Write("its writer has stopped".to_owned())
}

async fn work(mut connection: SqliteConnection, key: [u8; 32], mut inbox: mpsc::UnboundedReceiver<Request>) {
    let mut pending = Vec::with_capacity(GROUP);
    while inbox.recv_many(&mut pending, GROUP).await > 0 {
        let mut group = Group::default();
        let mut answers = Vec::new();
        for request in pending.drain(..) {
            match request {
                Request::Write(op, answer) => {
                    group.add(op);
                    answers.push(answer);
                }
                Request::Read(sql, arguments, answer) => {
                    // What was asked to be written before is on file before anybody reads.
                    finish(&mut connection, &key, &mut group, &mut answers).await;
                    let mut query = sqlx::query(sql);
                    for argument in arguments {
                        query = query.bind(argument);
                    }
                    let rows = query.fetch_all(&mut connection).await;
                    let _ = answer.send(rows.map_err(|error| Error::Write(error.to_string())));
                }
            }
        }
        finish(&mut connection, &key, &mut group, &mut answers).await;
    }
    // Checkpoints and removes the write-ahead log; what cannot be done now is done at the next open.
    let _ = connection.close().await;
}

async fn finish(
    connection: &mut SqliteConnection,
    key: &[u8; 32],
    group: &mut Group,
    answers: &mut Vec<oneshot::Sender<Result<(), Error>>>,
) {
    if answers.is_empty() {
        return;
    }
    let result = std::mem::take(group).write(connection, key).await;
    for answer in answers.drain(..) {
        let result = result.as_ref().map_err(|error| Error::Write(error.to_string()));
        // Whoever asked may have been cancelled; the write counts all the same.
        let _ = answer.send(result.copied());
    }
}

/// Operations by kind. An entry's life runs in this order, so that a group keeps it.
#[derive(Default)]
struct Group {
    transmitting: Vec<Value>,
    accepted: Vec<Value>,
    settled: Vec<i64>,
    forget: Vec<i64>,
    expire: Option<Timestamp>,
    know: Vec<String>,
}

impl Group {
    fn add(&mut self, op: Op) {
        match op {
            Op::Transmitting(id, t) => self.transmitting.push(json!([
                id,
                &*t.id.queue,
                t.id.mid,
                t.record.as_str(),
                t.fingerprint.to_hex(),
                t.message_id,
                json!(t.recipients).to_string(),
                i64::from(t.complete),
                t.begun.as_millisecond(),
            ])),
            Op::Accepted(id, reply, at) => self.accepted.push(json!([id, reply, at.as_millisecond()])),
            Op::Settled(ids) => self.settled.extend(ids),
            Op::Forget(ids) => self.forget.extend(ids),
            Op::Expire(before) => self.expire = Some(before),
            Op::Know(queue) => self.know.push(queue),
        }
    }

    async fn write(self, connection: &mut SqliteConnection, key: &[u8; 32]) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        if !self.transmitting.is_empty() {
            sqlx::query(
                "INSERT INTO entry (id, queue, mid, record, fingerprint, message_id, recipients, complete, state, begun)
                 SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
                        value ->> 7, 'transmitting', value ->> 8
                 FROM json_each(?1)",
            )
            .bind(Value::from(self.transmitting).to_string())
            .execute(&mut *transaction)
            .await?;
        }
        if !self.accepted.is_empty() {
            sqlx::query(
                "UPDATE entry SET state = 'accepted', reply = new.value ->> 1, accepted = new.value ->> 2
                 FROM json_each(?1) AS new WHERE entry.id = new.value ->> 0 AND entry.state = 'transmitting'",
            )
            .bind(Value::from(self.accepted).to_string())
            .execute(&mut *transaction)
            .await?;
        }
        if !self.settled.is_empty() {
            let hidden = hide_addresses(&mut transaction, &self.settled, key).await?;
            sqlx::query(
                "UPDATE entry SET state = 'settled', recipients = new.value ->> 1, reply = new.value ->> 2
                 FROM json_each(?1) AS new WHERE entry.id = new.value ->> 0",
            )
            .bind(Value::from(hidden).to_string())
            .execute(&mut *transaction)
            .await?;
        }
        if !self.forget.is_empty() {
            sqlx::query("DELETE FROM entry WHERE id IN (SELECT value FROM json_each(?1)) AND state <> 'settled'")
                .bind(Value::from(self.forget).to_string())
                .execute(&mut *transaction)
                .await?;
        }
        if let Some(before) = self.expire {
            sqlx::query("DELETE FROM entry WHERE state = 'settled' AND begun < ?1")
                .bind(before.as_millisecond())
                .execute(&mut *transaction)
                .await?;
        }
        for queue in self.know {
            sqlx::query("INSERT OR IGNORE INTO known_queue (name) VALUES (?1)")
                .bind(queue)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }
}

/// For each accepted entry among `ids`: id, hashed recipients, and the reply without addresses.
async fn hide_addresses(
    connection: &mut SqliteConnection,
    ids: &[i64],
    key: &[u8; 32],
) -> Result<Vec<Value>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, recipients, reply FROM entry
         WHERE id IN (SELECT value FROM json_each(?1)) AND state = 'accepted'",
    )
    .bind(Value::from(ids).to_string())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let recipients: Vec<String> = serde_json::from_str(row.try_get("recipients")?)
                .map_err(|_| sqlx::Error::Protocol("recipients are no JSON array".to_owned()))?;
            let hashed: Vec<String> = recipients.iter().map(|address| hash_address(key, address)).collect();
            let reply = row.try_get::<Option<&str>, _>("reply")?.map(without_addresses);
            Ok(json!([row.try_get::<i64, _>("id")?, json!(hashed).to_string(), reply]))
        })
        .collect()
}

/// Half an HMAC-SHA256 in hexadecimal. The domain's case does not matter; that of the local part does not either,
/// because whoever asks for a member's mail seldom knows it.
pub fn hash_address(key: &[u8; 32], address: &str) -> String {
    // Every length of key fits an HMAC; the empty digest stands where that ever changed.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(address.to_lowercase().as_bytes());
    mac.finalize().into_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reply, each word that could be an address replaced.
fn without_addresses(reply: &str) -> String {
    let hide = |word| if str::contains(word, '@') { "…" } else { word };
    reply.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}
