//! The settled entries' file: how it is opened, what stands in it.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Error::ToSqlConversionFailure;
use rusqlite::{Connection, OpenFlags, params};

use super::address::{hash_address, without_addresses};
use super::book::failed;
use super::daybook::{self, Entry, Open};
use super::entry::{Error, FILE};

/// How long somebody else who is writing is waited for.
const BUSY: Duration = Duration::from_secs(5);

const KEY_FILE: &str = "ledger.key";

/// Raised with every change of [`TABLES`].
const VERSION: i64 = 4;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS settled_entry (
    id          INTEGER PRIMARY KEY,
    queue       TEXT    NOT NULL,
    mid         INTEGER NOT NULL,
    record      TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL,
    message_id  TEXT    NOT NULL,
    recipients  TEXT    NOT NULL, -- JSON array of keyed hashes of addresses
    complete    INTEGER NOT NULL, -- 1: with these accepted the row waited for nobody any more
    begun       INTEGER NOT NULL, -- milliseconds since 1970, like every time here
    reply       TEXT,             -- without addresses
    accepted    INTEGER NOT NULL,
    repairs     TEXT    NOT NULL DEFAULT '[]' -- JSON array of what was repaired on the way, without text of the row
) STRICT;
CREATE INDEX IF NOT EXISTS settled_entry_row ON settled_entry (queue, mid);
-- Queues for which this ledger has been there since its dispatcher's first claim.
CREATE TABLE IF NOT EXISTS known_queue (name TEXT PRIMARY KEY) STRICT;
-- Keys that addresses were hashed with, by which each can be told again. lost: it came in place of another.
CREATE TABLE IF NOT EXISTS hash_key (proof TEXT PRIMARY KEY, since INTEGER NOT NULL, lost INTEGER NOT NULL) STRICT;
";

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
        let from_before = version == 3 || (version == 2 && !has_open_entries(&connection)?);
        if version != 0 && version != VERSION && !from_before {
            return Ok(Err(of_version(path, version)));
        }
        let old_tables = match version {
            2 => [OPEN_ENTRIES_ELSEWHERE, REPAIRS].concat(),
            3 => REPAIRS.to_owned(),
            _ => String::new(),
        };
        // A ledger that can be read but not written must be noticed now, not when the first mail is settled.
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {old_tables} {TABLES} PRAGMA user_version = {VERSION}; COMMIT"
        ))?;
        Ok(Ok(connection))
    };
    match look() {
        Ok(answer) => answer,
        Err(error) => Err(damaged(path, &error)),
    }
}

/// Up to version 2 open entries stood in this file too.
const OPEN_ENTRIES_ELSEWHERE: &str = "DROP VIEW entry; DROP TABLE open_entry;";

/// Up to version 3 entries did not tell of repairs.
const REPAIRS: &str = "ALTER TABLE settled_entry ADD COLUMN repairs TEXT NOT NULL DEFAULT '[]';";

fn has_open_entries(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM open_entry)", [], |row| row.get(0))
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

/// The highest id of a settled entry; 0 where there is none.
pub fn last_settled(book: &Connection) -> rusqlite::Result<i64> {
    book.query_row("SELECT coalesce(max(id), 0) FROM settled_entry", [], |row| row.get(0))
}

/// What the daybook has open, but for what was posted: a process that was killed need not have come to strike it out, and
/// one that runs may be about to.
pub fn still_open(dir: &Path, book: &Connection) -> Result<Open, Error> {
    let mut open = daybook::read(dir).map_err(|error| damaged(&dir.join(daybook::FILE), &error))?;
    let posted = settled_among(book, &open).map_err(|error| damaged(&dir.join(FILE), &error))?;
    posted.iter().for_each(|id| drop(open.remove(id)));
    Ok(open)
}

fn settled_among(book: &Connection, open: &Open) -> rusqlite::Result<Vec<i64>> {
    let mut settled = book.prepare("SELECT EXISTS (SELECT 1 FROM settled_entry WHERE id = ?)")?;
    let mut is_settled = |id: &i64| settled.query_row([id], |row| row.get::<_, bool>(0));
    open.keys().filter_map(|id| is_settled(id).map(|settled| settled.then_some(*id)).transpose()).collect()
}

/// The highest number of each queue's rows that are settled.
pub fn highest_numbers(book: &Connection) -> rusqlite::Result<HashMap<String, i64>> {
    let sql =
        "SELECT name, highest FROM (SELECT name, (SELECT max(mid) FROM settled_entry WHERE queue = name) AS highest
               FROM known_queue) WHERE highest IS NOT NULL";
    book.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

pub fn knows(book: &Connection, queue: &str) -> rusqlite::Result<bool> {
    book.query_row("SELECT EXISTS (SELECT 1 FROM known_queue WHERE name = ?)", [queue], |row| row.get(0))
}

pub fn know(book: &Connection, queue: &str) -> rusqlite::Result<()> {
    book.execute("INSERT OR IGNORE INTO known_queue (name) VALUES (?)", [queue]).map(drop)
}

/// Puts accepted entries with the settled ones, the recipients hashed and addresses taken out of the reply.
pub fn post(book: &Connection, key: &[u8; 32], entries: &[(i64, Arc<Entry>)]) -> rusqlite::Result<()> {
    let transaction = book.unchecked_transaction()?;
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO settled_entry (id, queue, mid, record, fingerprint, message_id, recipients, complete, begun,
         reply, accepted, repairs) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for (id, entry) in entries {
        let Entry { transmission: t, accepted: Some((reply, at)) } = &**entry else { continue };
        let hashed: Vec<_> = t.recipients.iter().map(|address| hash_address(key, address)).collect();
        let recipients = json(&hashed)?;
        insert.execute(params![
            id,
            &*t.id.queue,
            t.id.mid,
            t.record.as_str(),
            t.fingerprint.to_hex(),
            t.message_id,
            recipients,
            t.complete,
            t.begun.as_millisecond(),
            without_addresses(reply),
            at.as_millisecond(),
            json(&t.repairs)?
        ])?;
    }
    drop(insert);
    transaction.commit()
}

fn json(texts: &[String]) -> rusqlite::Result<String> {
    serde_json::to_string(texts).map_err(|error| ToSqlConversionFailure(error.into()))
}

/// Drops entries that began before this.
pub fn expire(book: &Connection, before: Timestamp) -> rusqlite::Result<()> {
    book.execute("DELETE FROM settled_entry WHERE begun < ?", [before.as_millisecond()]).map(drop)
}

/// Whether anything can be written: takes a page or two of the write-ahead log, and leaves nothing.
pub fn probe(book: &Connection) -> rusqlite::Result<()> {
    book.execute_batch(
        "BEGIN; INSERT OR IGNORE INTO known_queue VALUES (''); DELETE FROM known_queue WHERE name = ''; COMMIT",
    )
}

/// The key for the hashes of addresses, in a file of its own, so that a copy of the ledger alone gives none away. Makes
/// one where there is none, and says so where that cannot be the first.
pub fn key(dir: &Path, connection: &Connection) -> Result<[u8; 32], Error> {
    let path = dir.join(KEY_FILE);
    let (key, fresh) = any_key(dir)?;
    if note_key(connection, &hash_address(&key, ""), fresh).map_err(|error| failed(connection, &error))? {
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
