//! The ledger's file: how it is opened, what stands in it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, Row, params};

use super::ops::hash_address;
use super::writer::failed;
use super::{EntryId, Error, OpenEntry, Transmission};
use crate::mail::{Fingerprint, MailId, RecordId};

/// How long a look waits for somebody who is writing.
const BUSY: Duration = Duration::from_secs(5);

const KEY_FILE: &str = "ledger.key";

/// Raised with every change of [`tables`].
const VERSION: i64 = 2;

/// Of an entry, in the same order in both tables: one is copied into the other.
const COLUMNS: &str = "
    id          INTEGER PRIMARY KEY,
    queue       TEXT    NOT NULL,
    mid         INTEGER NOT NULL,
    record      TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL,
    message_id  TEXT    NOT NULL,
    recipients  TEXT    NOT NULL, -- JSON array of addresses, or of keyed hashes of them once settled
    complete    INTEGER NOT NULL, -- 1: with these accepted the row waits for nobody any more
    begun       INTEGER NOT NULL, -- milliseconds since 1970, like every time here
    reply       TEXT,             -- without addresses once settled
    accepted    INTEGER           -- NULL: nobody knows whether the dot was answered
";

/// A commit goes with every mail, so that what is open stands in a table of its own: it is a few pages long, and has no
/// index to keep.
fn tables() -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS open_entry ({COLUMNS}) STRICT;
         CREATE TABLE IF NOT EXISTS settled_entry ({COLUMNS}, CHECK (accepted IS NOT NULL)) STRICT;
         {MORE}"
    )
}

const MORE: &str = "
CREATE INDEX IF NOT EXISTS settled_entry_row ON settled_entry (queue, mid);
CREATE VIEW IF NOT EXISTS entry AS
    SELECT *, 'settled' AS state FROM settled_entry UNION ALL
    SELECT *, iif(accepted IS NULL, 'transmitting', 'accepted') FROM open_entry;
-- Queues for which this ledger has been there since its dispatcher's first claim.
CREATE TABLE IF NOT EXISTS known_queue (name TEXT PRIMARY KEY) STRICT;
-- Keys that addresses were hashed with, by which each can be told again. lost: it came in place of another.
CREATE TABLE IF NOT EXISTS hash_key (proof TEXT PRIMARY KEY, since INTEGER NOT NULL, lost INTEGER NOT NULL) STRICT;
";

pub const OPEN_ENTRIES: &str = "SELECT * FROM open_entry WHERE queue = ? ORDER BY id";

pub const KNOWN_QUEUE: &str = "SELECT EXISTS (SELECT 1 FROM known_queue WHERE name = ?)";

/// Opens the file for the dispatcher, makes the tables, and looks whether it is sound.
pub fn open(path: &Path) -> Result<Connection, Error> {
    make_private(path)?;
    let look = || -> rusqlite::Result<Result<Connection, Error>> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON")?;
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Ok(Err(damaged(path, &verdict)));
        }
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != 0 && version != VERSION {
            return Ok(Err(of_version(path, version)));
        }
        // A ledger that can be read but not written must be noticed now, not at the first dot.
        let tables = tables();
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {tables} PRAGMA user_version = {VERSION}; COMMIT"))?;
        Ok(Ok(connection))
    };
    match look() {
        Ok(answer) => answer,
        Err(error) => Err(damaged(path, &error)),
    }
}

/// Opens the file to look only, beside a dispatcher that may be writing.
pub fn open_read_only(path: &Path) -> Result<Connection, Error> {
    let look = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(BUSY)?;
        // Opening alone reads nothing.
        connection.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
        Ok(connection)
    };
    look().map_err(|error| damaged(path, &error))
}

/// The highest id ever given, and the number of open entries.
pub fn last_and_open(connection: &Connection) -> rusqlite::Result<(i64, u64)> {
    let sql =
        "SELECT max(coalesce((SELECT max(id) FROM open_entry), 0), coalesce((SELECT max(id) FROM settled_entry), 0)),
                      (SELECT count(*) FROM open_entry)";
    connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))
}

pub fn open_entry(row: &Row<'_>) -> rusqlite::Result<OpenEntry> {
    let text = |name: &str| row.get::<_, String>(name);
    let accepted = match row.get::<_, Option<i64>>("accepted")? {
        Some(at) => Some((row.get::<_, Option<String>>("reply")?.unwrap_or_default(), time(at)?)),
        None => None,
    };
    Ok(OpenEntry {
        entry: EntryId(row.get("id")?),
        transmission: Transmission {
            id: MailId::new(text("queue")?, row.get("mid")?),
            record: RecordId::parse(&text("record")?).ok_or_else(|| bad("record id"))?,
            fingerprint: Fingerprint::from_hex(&text("fingerprint")?).ok_or_else(|| bad("fingerprint"))?,
            message_id: text("message_id")?,
            recipients: serde_json::from_str(&text("recipients")?).map_err(|_| bad("recipients"))?,
            complete: row.get("complete")?,
            begun: time(row.get("begun")?)?,
        },
        accepted,
    })
}

fn time(millis: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|_| bad("time"))
}

fn bad(what: &str) -> rusqlite::Error {
    let what = format!("an entry's {what} is not what mailqueue writes");
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, what.into())
}

/// The key for the hashes of addresses, in a file of its own, so that a copy of the ledger alone gives none away. Makes
/// one where there is none, and says so where that cannot be the first.
pub fn key(dir: &Path, connection: &Connection) -> Result<[u8; 32], Error> {
    let path = dir.join(KEY_FILE);
    let (key, fresh) = any_key(dir)?;
    if note_key(connection, &hash_address(&key, ""), fresh).map_err(failed)? {
        tracing::warn!(target: "mailqueue::ledger", file = %path.display(),
            "the key of the ledger was lost and is a new one now: `trace --to` no longer finds the mails that were \
             settled before (by id and Message-ID it does); to find them, stop mailqueue and put the old file back");
    }
    Ok(key)
}

/// The key, and whether it was made just now.
pub fn any_key(dir: &Path) -> Result<([u8; 32], bool), Error> {
    match existing_key(dir)? {
        Some(key) => Ok((key, false)),
        None => Ok((new_key(&dir.join(KEY_FILE))?, true)),
    }
}

fn new_key(path: &Path) -> Result<[u8; 32], Error> {
    let key: [u8; 32] = rand::random();
    private(path)
        .and_then(|mut file| file.write_all(&key).and_then(|()| file.sync_all()))
        .map_err(|error| bad_key(path, error.to_string()))?;
    Ok(key)
}

/// Answers whether this key newly stands in place of another.
fn note_key(connection: &Connection, proof: &str, fresh: bool) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM hash_key WHERE proof = ?1)";
    if connection.query_row(sql, [proof], |row| row.get(0))? {
        // Put back from a backup, perhaps.
        connection.execute("UPDATE hash_key SET lost = 0 WHERE lost <> 0 AND proof <> ?1", [proof])?;
        return Ok(false);
    }
    // A ledger from before keys were noted has its key still, unless that was made just now.
    let sql = "INSERT INTO hash_key (proof, since, lost) VALUES (?1, ?2, EXISTS (SELECT 1 FROM \
               settled_entry) AND (?3 OR EXISTS (SELECT 1 FROM hash_key))) RETURNING lost";
    connection.query_row(sql, params![proof, Timestamp::now().as_millisecond(), fresh], |row| row.get(0))
}

/// Before when the recipients of settled mails cannot be found any more, because the key was lost then.
pub fn blind_before(connection: &Connection) -> Option<Timestamp> {
    let sql = "SELECT max(k.since) FROM hash_key k WHERE k.lost <> 0 \
               AND EXISTS (SELECT 1 FROM settled_entry e WHERE e.begun < k.since)";
    // Where there is no such table, no key was ever lost that we know of.
    let since: Option<i64> = connection.query_row(sql, [], |row| row.get(0)).ok().flatten();
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
        Err(error) => Err(damaged(path, &error)),
    }
}

fn private(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Another program's tables: what is open in them must not be overlooked.
fn of_version(path: &Path, version: i64) -> Error {
    Error::Unusable {
        path: path.display().to_string(),
        what: format!("the ledger is of version {version}, and this mailqueue has version {VERSION}"),
        remedy: "Start the mailqueue that wrote it until its `status` says that nothing is open in the ledger, stop it, \
                 and move the file away",
    }
}

pub fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::Unusable {
        path: path.display().to_string(),
        what: format!("the ledger cannot be used: {what}"),
        remedy: "Make room or mend the rights; if the file is damaged, put it back from a backup. Moving it away makes \
                 mailqueue forget which mails the smarthost accepted but the database does not know of yet",
    }
}
