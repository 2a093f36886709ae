//! The dialect of MySQL and MariaDB.

use super::dialect::{Dialect, Engine};

pub(crate) const DIALECT: Dialect = Dialect {
    engine: Engine::MySql,
    // Strict, so that nothing of ours is cut without a word. Each statement outside a transaction is one, COMMIT begins no
    // other, and no limit of the server applies to statements without a WHERE or to joins, whatever the server's defaults
    // are. The metadata lock is what ALTER TABLE holds. Columns come
    // as they are stored, whatever their character set; and texts are compared byte by byte, which is what is meant and
    // costs least. MariaDB ends a transaction that a stopped process left open; MySQL cannot.
    // The time of a statement is bounded by us: a server's own limit counts the wait for a lock.
    session: "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
              SET SESSION autocommit = 1, completion_type = 0, sql_safe_updates = 0, sql_big_selects = 1, \
              sql_select_limit = 18446744073709551615, innodb_lock_wait_timeout = 5, lock_wait_timeout = 5, \
              character_set_results = NULL, collation_connection = utf8mb4_bin, \
              sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION' /*M!100300 , idle_transaction_timeout = 30, max_statement_time = 0 */ /*!80000 , max_execution_time = 0 */",
    begin: "START TRANSACTION",
    short_waits: "SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = 1",
    locks_rows: true,
    lock: " FOR UPDATE",
    by_index: |index| format!(" FORCE INDEX (`{index}`)"),
    delete: "DELETE q FROM",
    by_number: true,
    ranges: true,
    numbered_by: Some(
        "SELECT index_name FROM information_schema.statistics \
         WHERE table_schema = DATABASE() AND table_name = ? AND column_name = 'mid' AND seq_in_index = 1 \
         ORDER BY non_unique, index_name = 'PRIMARY' DESC LIMIT 1",
    ),
    quote: '`',
    mid: "CAST(q.mid AS SIGNED)",
    skip: ("INSERT IGNORE INTO", ""),
    same_record: "ON DUPLICATE KEY UPDATE fingerprint = COALESCE(VALUES(fingerprint), fingerprint), \
                  state = VALUES(state), reason = VALUES(reason), detail = VALUES(detail), \
                  attempts = VALUES(attempts), unknowns = VALUES(unknowns), \
                  first_deferred = GREATEST(COALESCE(VALUES(first_deferred), first_deferred), \
                  COALESCE(first_deferred, VALUES(first_deferred))), next_attempt = VALUES(next_attempt), owner = NULL, \
                  last_reply = COALESCE(VALUES(last_reply), last_reply), \
                  message_id = COALESCE(VALUES(message_id), message_id)",
    // Assignments are carried out from left to right, so that the state comes last.
    same_recipient: "ON DUPLICATE KEY UPDATE reply = IF(state = 'accepted', reply, VALUES(reply)), \
                     at = IF(state = 'accepted', at, VALUES(at)), \
                     state = IF(state = 'accepted', state, VALUES(state))",
    same_dispatcher: "ON DUPLICATE KEY UPDATE heartbeat = heartbeat + 1",
    now: "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    // The character sets whose letters take more than one byte each. Base64 is ASCII in all others.
    columns: "SELECT column_name, IF(character_set_name IN ('ucs2', 'utf16', 'utf16le', 'utf32'), 'wide', data_type), \
              CAST(character_maximum_length AS SIGNED) \
              FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ?",
    transactional: Some(
        "SELECT e.transactions FROM information_schema.tables t JOIN information_schema.engines e \
         ON e.engine = t.engine WHERE t.table_schema = DATABASE() AND t.table_name = ?",
    ),
    estimate: "SELECT CAST(table_rows AS SIGNED) FROM information_schema.tables \
               WHERE table_schema = DATABASE() AND table_name = ?",
    // A CAST would copy each, which takes longer than to hash it.
    bytes: |column, kind| stored(column, kind),
    length: |column, kind| format!("LENGTH({})", stored(column, kind)),
    no_length: "-1",
    greatest: "GREATEST",
    // VARCHAR(n) holds n characters, and base64 has one byte a character, whichever the character set; TEXT and its
    // like hold 65,535 bytes and more. `columns` says either number.
    cuts: true,
    no_bytes: "NULL",
    fingerprint: Some(|columns| {
        let parts = columns.each_ref().map(|column| match column {
            Some(bytes) => format!("IFNULL(SHA2({bytes}, 256), '-')"),
            None => "'-'".to_owned(),
        });
        format!("SHA2(CONCAT_WS(',', {}), 256)", parts.join(", "))
    }),
    // Of a column with ZEROFILL the text has leading zeros.
    pair: |fingerprint| format!("CONCAT(CAST(q.mid AS SIGNED), ':', {fingerprint})"),
    place: |_| "?",
    producers: include_str!("../../../migrations/mysql/producers/table.sql"),
    producers_mparams: ",\n  mparams LONGTEXT NULL",
    last_number: Some("SELECT CAST(LAST_INSERT_ID() AS SIGNED)"),
};

/// The stored bytes of a column, or what they are in UTF-8 where they are no ASCII.
fn stored(column: &str, kind: &str) -> String {
    match kind {
        "wide" => format!("CONVERT({column} USING utf8mb4)"),
        _ => column.to_owned(),
    }
}

pub(crate) const VERSION: &str = "SELECT CONCAT(IF(VERSION() LIKE '%MariaDB%', 'MariaDB ', 'MySQL '), VERSION())";
pub(crate) const GRANTS: &str = "SHOW GRANTS FOR CURRENT_USER()";
pub(crate) const ENGINE: &str =
    "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?";
/// Counts the unique keys of the number alone.
pub(crate) const UNIQUE: &str = "SELECT COUNT(*) FROM (SELECT index_name FROM information_schema.statistics \
     WHERE table_schema = DATABASE() AND table_name = ? AND non_unique = 0 GROUP BY index_name \
     HAVING COUNT(*) = 1 AND MIN(column_name) = 'mid') k";
/// Milliseconds since 1970.
pub(crate) const CLOCK: &str = "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)";
/// Returns a line where the server or the session is read-only. MariaDB has several values for the server, and MySQL 8
/// another name for the session.
pub(crate) const READ_ONLY: &str = "SHOW VARIABLES WHERE variable_name IN ('read_only', 'super_read_only', \
     'innodb_read_only', 'tx_read_only', 'transaction_read_only') AND value NOT IN ('OFF', '0')";
pub(crate) const LONGEST_PACKET: &str = "SELECT CAST(@@max_allowed_packet AS SIGNED)";
