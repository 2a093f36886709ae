//! The dialect of PostgreSQL.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use super::dialect::{Dialect, Engine};

pub(crate) const DIALECT: Dialect = Dialect {
    engine: Engine::Postgres,
    // The startup message holds the settings: see `SETTINGS`.
    session: "",
    begin: "BEGIN",
    short_waits: "SET LOCAL lock_timeout = '200ms'",
    locks_rows: true,
    lock: " FOR UPDATE",
    by_index: |_| String::new(),
    delete: "DELETE FROM",
    by_number: false,
    ranges: false,
    numbered_by: None,
    quote: '"',
    mid: "q.mid::bigint",
    skip: ("INSERT INTO", "ON CONFLICT DO NOTHING"),
    same_record: "ON CONFLICT (id) DO UPDATE SET \
                  fingerprint = COALESCE(excluded.fingerprint, mailqueue_delivery.fingerprint), \
                  state = excluded.state, reason = excluded.reason, detail = excluded.detail, \
                  attempts = excluded.attempts, unknowns = excluded.unknowns, \
                  first_deferred = GREATEST(excluded.first_deferred, mailqueue_delivery.first_deferred), \
                  next_attempt = excluded.next_attempt, owner = NULL, \
                  last_reply = COALESCE(excluded.last_reply, mailqueue_delivery.last_reply), \
                  message_id = COALESCE(excluded.message_id, mailqueue_delivery.message_id)",
    same_recipient: "ON CONFLICT (record, address_key) DO UPDATE SET \
                     state = excluded.state, reply = excluded.reply, at = excluded.at \
                     WHERE mailqueue_recipient.state <> 'accepted'",
    same_dispatcher: "ON CONFLICT (kind, id) DO UPDATE SET heartbeat = mailqueue_dispatcher.heartbeat + 1",
    now: "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
    // Of the types with a limit, the type modifier is the limit and the four bytes of a length word.
    columns: "SELECT a.attname::text, t.typname::text, \
              CASE WHEN a.atttypmod > 4 AND t.typname IN ('varchar', 'bpchar') THEN (a.atttypmod - 4)::bigint END \
              FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
              WHERE a.attrelid = to_regclass(?) AND a.attnum > 0 AND NOT a.attisdropped",
    transactional: None,
    estimate: "SELECT c.reltuples::bigint FROM pg_catalog.pg_class c WHERE c.oid = to_regclass(?)",
    // Into the encoding that it has already: the stored bytes, whichever that encoding is.
    bytes: |column, kind| match kind {
        "bytea" => column.to_owned(),
        _ => format!("convert_to({column}::text, getdatabaseencoding())"),
    },
    // Of a value that is stored compressed or elsewhere, this reads the head only.
    length: |column, kind| match kind {
        "bytea" => format!("octet_length({column})::bigint"),
        _ => format!("octet_length({column}::text)::bigint"),
    },
    no_length: "(-1)::bigint",
    greatest: "GREATEST",
    cuts: false,
    no_bytes: "NULL::bytea",
    fingerprint: Some(|columns| {
        let parts = columns.each_ref().map(|column| match column {
            Some(bytes) => format!("coalesce(encode(sha256({bytes}), 'hex'), '-')"),
            None => "'-'".to_owned(),
        });
        format!("encode(sha256(convert_to(concat_ws(',', {}), 'UTF8')), 'hex')", parts.join(", "))
    }),
    pair: |fingerprint| format!("(q.mid::text || ':' || {fingerprint})"),
    place: |kind| match kind {
        "bytea" => "convert_to(?, 'UTF8')",
        _ => "?",
    },
    producers: include_str!("../../../migrations/postgres/producers/table.sql"),
    producers_mparams: ",\n  mparams TEXT NULL",
    last_number: None,
};

/// The settings of a session. A transaction that a stopped process left open ends by itself. The time of a statement is
/// bounded by us: a server's own limit counts the wait for a lock. A plan that knows nothing of
/// the values takes a LIMIT for a tenth of the table, and reads all of it.
const SETTINGS: [(&str, &str); 5] = [
    ("default_transaction_isolation", "read committed"),
    ("lock_timeout", "5s"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("plan_cache_mode", "force_custom_plan"),
];

/// Begins a transaction behind a pooler, with the same settings for the transaction alone: the next transaction may be on
/// another connection of the pooler's, and this connection's next transaction another client's.
pub(crate) const POOLED_BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '5s'; \
     SET LOCAL statement_timeout = 0;      SET LOCAL idle_in_transaction_session_timeout = '30s'; SET LOCAL plan_cache_mode = 'force_custom_plan'";

/// A setting that no server has. Its value is another for each connection.
const MARK: &str = "mailqueue.session";

/// Connects to the server itself, with the settings of a session in the startup message; `None` where a pooler such as
/// PgBouncer is in between. Poolers refuse or drop what they do not know, so that the server does not know the mark.
pub(crate) async fn connect_directly(
    options: &PgConnectOptions,
    mark: &str,
) -> Result<Option<PgConnection>, sqlx::Error> {
    let marked = options.clone().options(SETTINGS).options([(MARK, mark)]);
    let mut connection = match marked.connect().await {
        Ok(connection) => connection,
        Err(error) if refuses_startup(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let sql = format!("SELECT current_setting('{MARK}', true) = '{mark}'");
    let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut connection).await?;
    let is_marked: Option<&str> = row.try_get_unchecked(0)?;
    Ok((is_marked == Some("t")).then_some(connection))
}

/// Returns true where the startup message is refused. 08P01 is PgBouncer's code, 0A000 that of poolers that take no
/// `options` at all.
fn refuses_startup(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(refused) = error else { return false };
    refused.code().is_some_and(|code| code == "08P01" || code == "0A000")
        && ["startup", "options"].iter().any(|word| refused.message().contains(word))
}

/// Returns false on a standby, and where transactions of this session are read-only.
pub(crate) const WRITABLE: &str =
    "SELECT NOT pg_is_in_recovery() AND NOT current_setting('default_transaction_read_only')::boolean";
pub(crate) const VERSION: &str = "SELECT 'PostgreSQL ' || current_setting('server_version')";
/// Returns each right that we have on a table.
pub(crate) const GRANTS: &str = "SELECT r.name FROM (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), \
     ('DELETE'), ('TRUNCATE'), ('TRIGGER')) AS r (name) WHERE has_table_privilege(to_regclass(?)::oid, r.name) \
     UNION ALL SELECT 'OWNER' FROM pg_catalog.pg_class c \
     WHERE c.oid = to_regclass(?) AND pg_has_role(c.relowner, 'USAGE')";
/// Counts the unique keys of the number alone.
pub(crate) const UNIQUE: &str = "SELECT COUNT(*) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a \
     ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] WHERE i.indrelid = to_regclass(?) AND i.indisunique \
     AND i.indisvalid AND i.indnkeyatts = 1 AND i.indpred IS NULL AND a.attname = 'mid'";
/// Milliseconds since 1970.
pub(crate) const CLOCK: &str = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
