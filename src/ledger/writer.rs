//! One connection, one task: whatever has piled up meanwhile is written in one transaction.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::json;
use sha2::Sha256;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::sync::{mpsc, oneshot};

use super::{Error, Transmission};

/// The most operations of one transaction: a group this large is written in a few milliseconds.
const GROUP: usize = 256;

/// The most rows of one statement. Few different lengths occur, so that SQLite's prepared statements are used again.
const ROWS: usize = 100;

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

#[derive(Debug)]
enum Request {
    Write(Op, oneshot::Sender<Result<(), Error>>),
    /// The SQL, and what its places take: a queue, then numbers.
    Read(String, String, Vec<i64>, oneshot::Sender<Result<Vec<SqliteRow>, Error>>),
    Shut(oneshot::Sender<()>),
}

/// The way to the writing task, which ends when it is told to, or when the last of these is dropped.
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

    pub async fn shut(&self) {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Shut(answer));
        // Where the task is gone already there is nothing left to close.
        let _ = answered.await;
    }

    pub async fn read(&self, sql: String, queue: String, mids: Vec<i64>) -> Result<Vec<SqliteRow>, Error> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Read(sql, queue, mids, answer));
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> Error {
    Error::Write("its writer has stopped".to_owned())
}

async fn work(mut connection: SqliteConnection, key: [u8; 32], mut inbox: mpsc::UnboundedReceiver<Request>) {
    let mut pending = Vec::with_capacity(GROUP);
    let mut shut = None;
    while shut.is_none() && inbox.recv_many(&mut pending, GROUP).await > 0 {
        let mut group = Group::default();
        let mut answers = Vec::new();
        for request in pending.drain(..) {
            match request {
                Request::Write(op, answer) => {
                    group.add(op);
                    answers.push(answer);
                }
                Request::Read(sql, queue, mids, answer) => {
                    // What was asked to be written before is on file before anybody reads.
                    finish(&mut connection, &key, &mut group, &mut answers).await;
                    let query = sqlx::query(AssertSqlSafe(sql)).bind(queue);
                    let query = mids.iter().fold(query, |query, mid| query.bind(mid));
                    let rows = query.fetch_all(&mut connection).await;
                    let _ = answer.send(rows.map_err(|error| Error::Write(error.to_string())));
                }
                Request::Shut(answer) => shut = Some(answer),
            }
        }
        finish(&mut connection, &key, &mut group, &mut answers).await;
    }
    // Checkpoints and removes the write-ahead log; what cannot be done now is done at the next open.
    let _ = connection.close().await;
    if let Some(shut) = shut {
        let _ = shut.send(());
    }
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
    transmitting: Vec<(i64, Transmission)>,
    accepted: Vec<(i64, String, Timestamp)>,
    settled: Vec<i64>,
    forget: Vec<i64>,
    expire: Option<Timestamp>,
    know: Vec<String>,
    try_out: bool,
}

impl Group {
    fn add(&mut self, op: Op) {
        match op {
            Op::Transmitting(id, transmission) => self.transmitting.push((id, transmission)),
            Op::Accepted(id, reply, at) => self.accepted.push((id, reply, at)),
            Op::Settled(ids) => self.settled.extend(ids),
            Op::Forget(ids) => self.forget.extend(ids),
            Op::Expire(before) => self.expire = Some(before),
            Op::Know(queue) => self.know.push(queue),
            Op::Try => self.try_out = true,
        }
    }

    async fn write(self, connection: &mut SqliteConnection, key: &[u8; 32]) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        for rows in self.transmitting.chunks(ROWS) {
            begin_entries(&mut transaction, rows).await?;
        }
        for rows in self.accepted.chunks(ROWS) {
            accept_entries(&mut transaction, rows).await?;
        }
        for ids in self.settled.chunks(ROWS) {
            settle_entries(&mut transaction, ids, key).await?;
        }
        for ids in self.forget.chunks(ROWS) {
            let sql = format!("DELETE FROM entry WHERE state <> 'settled' AND id IN ({})", places(ids.len(), "?"));
            bind_all(sql, ids).execute(&mut *transaction).await?;
        }
        if let Some(before) = self.expire {
            sqlx::query("DELETE FROM entry WHERE state = 'settled' AND begun < ?")
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
        if self.try_out {
            // Takes a page or two of the write-ahead log, as an entry does.
            sqlx::raw_sql("INSERT OR IGNORE INTO known_queue VALUES (''); DELETE FROM known_queue WHERE name = ''")
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }
}

async fn begin_entries(connection: &mut SqliteConnection, rows: &[(i64, Transmission)]) -> Result<(), sqlx::Error> {
    let sql = format!(
        "INSERT INTO entry (id, queue, mid, record, fingerprint, message_id, recipients, complete, state, begun)
         VALUES {}",
        places(rows.len(), "(?, ?, ?, ?, ?, ?, ?, ?, 'transmitting', ?)")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (id, t) in rows {
        query = query.bind(id).bind(&*t.id.queue).bind(t.id.mid).bind(t.record.as_str()).bind(t.fingerprint.to_hex());
        query = query.bind(&t.message_id).bind(json!(t.recipients).to_string());
        query = query.bind(t.complete).bind(t.begun.as_millisecond());
    }
    query.execute(connection).await.map(drop)
}

async fn accept_entries(
    connection: &mut SqliteConnection,
    rows: &[(i64, String, Timestamp)],
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "UPDATE entry SET state = 'accepted', reply = new.column2, accepted = new.column3
         FROM (VALUES {}) AS new WHERE entry.id = new.column1 AND entry.state = 'transmitting'",
        places(rows.len(), "(?, ?, ?)")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (id, reply, at) in rows {
        query = query.bind(id).bind(reply).bind(at.as_millisecond());
    }
    query.execute(connection).await.map(drop)
}

/// Hashes the recipients, and takes addresses out of the reply.
async fn settle_entries(connection: &mut SqliteConnection, ids: &[i64], key: &[u8; 32]) -> Result<(), sqlx::Error> {
    let sql = format!(
        "SELECT id, recipients, reply FROM entry WHERE state = 'accepted' AND id IN ({})",
        places(ids.len(), "?")
    );
    let rows = bind_all(sql, ids).fetch_all(&mut *connection).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE entry SET state = 'settled', recipients = new.column2, reply = new.column3
         FROM (VALUES {}) AS new WHERE entry.id = new.column1",
        places(rows.len(), "(?, ?, ?)")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for row in &rows {
        let recipients: Vec<String> = serde_json::from_str(row.try_get("recipients")?)
            .map_err(|_| sqlx::Error::Protocol("recipients are no JSON array".to_owned()))?;
        let hashed: Vec<String> = recipients.iter().map(|address| hash_address(key, address)).collect();
        let reply = row.try_get::<Option<&str>, _>("reply")?.map(without_addresses);
        query = query.bind(row.try_get::<i64, _>("id")?).bind(json!(hashed).to_string()).bind(reply);
    }
    query.execute(connection).await.map(drop)
}

type Query<'a> = sqlx::query::Query<'a, Sqlite, SqliteArguments>;

fn bind_all(sql: String, ids: &[i64]) -> Query<'_> {
    ids.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, id| query.bind(id))
}

/// `count` times `one`, with commas between.
fn places(count: usize, one: &str) -> String {
    vec![one; count].join(", ")
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
