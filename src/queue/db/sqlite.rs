//! The dialect of SQLite.

use super::dialect::{Dialect, Engine};

pub(crate) const DIALECT: Dialect = Dialect {
    engine: Engine::Sqlite,
    // The lock wait is the connection's busy time-out; SQLite knows neither clock nor isolation level.
    session: "PRAGMA synchronous = FULL",
    // The write lock at once: a transaction that reads first and then wants to write can be refused without a wait.
    begin: "BEGIN IMMEDIATE",
    short_waits: "PRAGMA busy_timeout = 1000",
    locks_rows: false,
    lock: "",
    by_index: |_| String::new(),
    delete: "DELETE FROM",
    by_number: false,
    ranges: false,
    numbered_by: None,
    quote: '"',
    mid: "CAST(q.mid AS INTEGER)",
    skip: ("INSERT INTO", "ON CONFLICT DO NOTHING"),
    same_record: "ON CONFLICT (id) DO UPDATE SET \
                  fingerprint = COALESCE(excluded.fingerprint, fingerprint), \
                  state = excluded.state, reason = excluded.reason, detail = excluded.detail, \
                  attempts = excluded.attempts, unknowns = excluded.unknowns, \
                  first_deferred = MAX(COALESCE(excluded.first_deferred, first_deferred), \
                  COALESCE(first_deferred, excluded.first_deferred)), next_attempt = excluded.next_attempt, owner = NULL, \
                  last_reply = COALESCE(excluded.last_reply, last_reply), \
                  message_id = COALESCE(excluded.message_id, message_id)",
    same_recipient: "ON CONFLICT (record, address_key) DO UPDATE SET \
                     state = excluded.state, reply = excluded.reply, at = excluded.at \
                     WHERE state <> 'accepted'",
    same_dispatcher: "ON CONFLICT (kind, id) DO UPDATE SET heartbeat = heartbeat + 1",
    now: "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    // Declared sizes are not kept to, so that there is no limit.
    columns: "SELECT name, lower(type), NULL FROM pragma_table_info(?)",
    transactional: None,
    estimate: "SELECT max(mid) - min(mid) + 1 FROM {table} WHERE ? <> ''",
    bytes: |column, _| format!("CAST({column} AS BLOB)"),
    // Of a stored column this reads the head only; LENGTH would read all of a text.
    length: |column, _| format!("octet_length({column})"),
    no_length: "-1",
    greatest: "MAX",
    cuts: false,
    no_bytes: "NULL",
    fingerprint: None,
    pair: |_| String::new(),
    place: |_| "?",
    producers: include_str!("../../../migrations/sqlite/producers/table.sql"),
    producers_mparams: ",\n  mparams TEXT NULL",
    last_number: None,
};

/// Files in another encoding than UTF-8, which is chosen when a file is made, answer 1.
pub(crate) const IS_UTF16: &str = "SELECT COUNT(*) FROM pragma_encoding WHERE encoding <> 'UTF-8'";
pub(crate) const VERSION: &str = "SELECT 'SQLite ' || sqlite_version()";
/// Counts the unique keys of the number alone, the primary key among them.
pub(crate) const UNIQUE: &str = "SELECT (SELECT COUNT(*) FROM pragma_table_info(?1) t WHERE t.name = 'mid' AND t.pk = 1 \
     AND (SELECT COUNT(*) FROM pragma_table_info(?1) p WHERE p.pk > 0) = 1) + \
     (SELECT COUNT(*) FROM pragma_index_list(?1) l WHERE l.\"unique\" = 1 AND l.partial = 0 \
     AND (SELECT COUNT(*) FROM pragma_index_info(l.name)) = 1 \
     AND EXISTS (SELECT 1 FROM pragma_index_info(l.name) c WHERE c.name = 'mid'))";
