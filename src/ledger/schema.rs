//! The ledger's file: how it is opened, what stands in it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};

use super::writer::hash_address;
use super::{EntryId, Error, OpenEntry, Transmission};
use crate::mail::{Fingerprint, MailId, RecordId};

const KEY_FILE: &str = "ledger.key";

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS entry (
    id          INTEGER PRIMARY KEY,
    queue       TEXT    NOT NULL,
    mid         INTEGER NOT NULL,
    record      TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL,
    message_id  TEXT    NOT NULL,
    recipients  TEXT    NOT NULL, -- JSON array: addresses, and keyed hashes of them once settled
    complete    INTEGER NOT NULL, -- 1: with these accepted the row waits for nobody any more
    state       TEXT    NOT NULL CHECK (state IN ('transmitting', 'accepted', 'settled')),
    reply       TEXT,
    begun       INTEGER NOT NULL, -- milliseconds since 1970, like every time here
    accepted    INTEGER
) STRICT;
-- Queues for which this ledger has been there since its dispatcher's first claim.
CREATE TABLE IF NOT EXISTS known_queue (name TEXT PRIMARY KEY) STRICT;
-- Keys that addresses were hashed with, by which each can be told again. lost: it came in place of another.
CREATE TABLE IF NOT EXISTS hash_key (proof TEXT PRIMARY KEY, since INTEGER NOT NULL, lost INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS entry_row ON entry (queue, mid);
CREATE INDEX IF NOT EXISTS entry_open ON entry (queue) WHERE state <> 'settled';
";

pub const OPEN_ENTRIES: &str = "SELECT * FROM entry WHERE queue = ?1 AND state <> 'settled' ORDER BY id";

pub const KNOWN_QUEUE: &str = "SELECT name FROM known_queue WHERE name = ?1";

/// Before and behind as many places as there are numbers. No place has a number of its own: sqlx counts those that have
/// none without those that have one, and the last value would be left out.
pub const RECOGNISE: (&str, &str) = (
    "SELECT mid, fingerprint, accepted FROM entry WHERE queue = ? AND state <> 'transmitting' AND complete = 1 AND mid IN (",
    ") ORDER BY id",
);

/// Opens the file for the dispatcher, makes the tables, and looks whether it is sound.
pub async fn open(path: &Path) -> Result<SqliteConnection, Error> {
    make_private(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .pragma("secure_delete", "on")
        .disable_statement_logging();
    let look = async || {
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await?;
        if verdict != "ok" {
            return Err(sqlx::Error::Protocol(verdict));
        }
        sqlx::raw_sql(TABLES).execute(&mut connection).await?;
        // A ledger that can be read but not written must be noticed now, not at the first dot.
        sqlx::raw_sql("BEGIN IMMEDIATE; PRAGMA user_version = 1; COMMIT").execute(&mut connection).await?;
        Ok(connection)
    };
    look().await.map_err(|error| damaged(path, &error))
}

/// Opens the file to look only, beside a dispatcher that may be writing.
pub async fn open_read_only(path: &Path) -> Result<SqliteConnection, Error> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    SqliteConnection::connect_with(&options).await.map_err(|error| damaged(path, &error))
}

/// The highest id ever given, and the number of open entries.
pub async fn last_and_open(connection: &mut SqliteConnection) -> Result<(i64, u64), sqlx::Error> {
    let row = sqlx::query(
        "SELECT coalesce((SELECT max(id) FROM entry), 0) AS last,
                (SELECT count(*) FROM entry WHERE state <> 'settled') AS open",
    )
    .fetch_one(connection)
    .await?;
    Ok((row.try_get("last")?, row.try_get::<i64, _>("open")?.unsigned_abs()))
}

pub fn open_entry(row: &SqliteRow) -> Result<OpenEntry, sqlx::Error> {
    let bad = |what: &str| sqlx::Error::Protocol(format!("an entry's {what} is not what mailqueue writes"));
    let time = |millis| Timestamp::from_millisecond(millis).map_err(|_| bad("time"));
    let text = |name: &str| row.try_get::<String, _>(name);
    let accepted = match row.try_get::<Option<i64>, _>("accepted")? {
        Some(at) => Some((row.try_get::<Option<String>, _>("reply")?.unwrap_or_default(), time(at)?)),
        None => None,
    };
    Ok(OpenEntry {
        entry: EntryId(row.try_get("id")?),
        transmission: Transmission {
            id: MailId::new(text("queue")?, row.try_get("mid")?),
            record: RecordId::parse(&text("record")?).ok_or_else(|| bad("record id"))?,
            fingerprint: Fingerprint::from_hex(&text("fingerprint")?).ok_or_else(|| bad("fingerprint"))?,
            message_id: text("message_id")?,
            recipients: serde_json::from_str(&text("recipients")?).map_err(|_| bad("recipients"))?,
            complete: row.try_get("complete")?,
            begun: time(row.try_get("begun")?)?,
        },
        accepted,
    })
}

/// Number, fingerprint and time of acceptance.
pub fn settled(row: &SqliteRow) -> Result<(i64, String, Timestamp), sqlx::Error> {
    let at = Timestamp::from_millisecond(row.try_get("accepted")?).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok((row.try_get("mid")?, row.try_get("fingerprint")?, at))
}

/// The key for the hashes of addresses, in a file of its own, so that a copy of the ledger alone gives none away. Makes
/// one where there is none, and says so where that cannot be the first.
pub async fn key(dir: &Path, connection: &mut SqliteConnection) -> Result<[u8; 32], Error> {
    let path = dir.join(KEY_FILE);
    let (key, fresh) = match existing_key(dir)? {
        Some(key) => (key, false),
        None => (new_key(&path)?, true),
    };
    let lost = note_key(connection, &hash_address(&key, ""), fresh).await.map_err(unreadable)?;
    if lost {
        tracing::warn!(target: "mailqueue::ledger", file = %path.display(),
            "the key of the ledger was lost and is a new one now: `trace --to` no longer finds the mails that were \
             settled before (by id and Message-ID it does); to find them, stop mailqueue and put the old file back");
    }
    Ok(key)
}

fn new_key(path: &Path) -> Result<[u8; 32], Error> {
    let key: [u8; 32] = rand::random();
    private(path)
        .and_then(|mut file| file.write_all(&key).and_then(|()| file.sync_all()))
        .map_err(|error| bad_key(path, error.to_string()))?;
    Ok(key)
}

/// Answers whether this key newly stands in place of another.
async fn note_key(connection: &mut SqliteConnection, proof: &str, fresh: bool) -> Result<bool, sqlx::Error> {
    let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM hash_key WHERE proof = ?1)")
        .bind(proof)
        .fetch_one(&mut *connection)
        .await?;
    if known {
        // Put back from a backup, perhaps.
        let sql = "UPDATE hash_key SET lost = 0 WHERE lost <> 0 AND proof <> ?1";
        sqlx::query(sql).bind(proof).execute(connection).await?;
        return Ok(false);
    }
    // A ledger from before keys were noted has its key still, unless that was made just now.
    let sql = "INSERT INTO hash_key (proof, since, lost) VALUES (?1, CAST((julianday('now') - 2440587.5) * 86400000 AS \
               INTEGER), EXISTS (SELECT 1 FROM entry WHERE state = 'settled') AND \
               (?2 OR EXISTS (SELECT 1 FROM hash_key))) RETURNING lost";
    sqlx::query_scalar(sql).bind(proof).bind(fresh).fetch_one(connection).await
}

/// Before when the recipients of settled mails cannot be found any more, because the key was lost then.
pub async fn blind_before(connection: &mut SqliteConnection) -> Option<Timestamp> {
    let sql = "SELECT max(k.since) FROM hash_key k WHERE k.lost <> 0 \
               AND EXISTS (SELECT 1 FROM entry e WHERE e.state = 'settled' AND e.begun < k.since)";
    // Where there is no such table, no key was ever lost that we know of.
    let since: Option<i64> = sqlx::query_scalar(sql).fetch_one(connection).await.ok().flatten();
    since.and_then(|since| Timestamp::from_millisecond(since).ok())
}

/// `None` where there is none yet: nothing was hashed then.
pub fn existing_key(dir: &Path) -> Result<Option<[u8; 32]>, Error> {
    let path = dir.join(KEY_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().map(Some).map_err(|_| bad_key(&path, "is not 32 bytes long".to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(bad_key(&path, error.to_string())),
    }
}

fn bad_key(path: &Path, what: String) -> Error {
    Error::Unusable {
        path: path.display().to_string(),
        what,
        remedy: "Put it back from a backup, or remove it: `trace --to` then no longer finds the older mails",
    }
}

/// SQLite would make the file readable for the group; addresses stand in it.
fn make_private(path: &Path) -> Result<(), Error> {
    match private(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(damaged(path, &sqlx::Error::Io(error))),
    }
}

fn private(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

pub fn damaged(path: &Path, error: &sqlx::Error) -> Error {
    Error::Unusable {
        path: path.display().to_string(),
        what: format!("the ledger cannot be used: {error}"),
        remedy: "Make room or mend the rights; if the file is damaged, put it back from a backup. Moving it away makes \
                 mailqueue forget which mails the smarthost accepted but the database does not know of yet",
    }
}

pub fn unreadable(error: sqlx::Error) -> Error {
    Error::Write(error.to_string())
}
