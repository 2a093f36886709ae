//! Whether rows were accepted before: a restored dump, or a row that somebody put back.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use rusqlite::{Connection, Row, params};

/// A row's number and the hexadecimal fingerprint of its content.
pub type Content = (i64, String);

/// Rows of a queue that were accepted as a whole and whose deletion is not noted yet. There are few open entries, so that
/// they need no index.
const ACCEPTED_OPEN: &str = "SELECT mid, fingerprint, accepted FROM open_entry
    WHERE queue = ? AND mid BETWEEN ? AND ? AND complete = 1 AND accepted IS NOT NULL";

/// The highest number of a queue's rows that are settled.
const HIGHEST_SETTLED: &str = "SELECT max(mid) FROM settled_entry WHERE queue = ?";

/// The last time a row of this number and content was accepted as a whole, and settled.
const ACCEPTED_SETTLED: &str = "SELECT max(accepted) FROM settled_entry
    WHERE queue = ? AND mid = ? AND fingerprint = ? AND complete = 1";

/// Which rows with these numbers were accepted and are open still, and when; and the highest number that is settled, over
/// which there is nothing to look for.
pub fn open_and_highest(
    ledger: &Connection,
    queue: &str,
    mids: RangeInclusive<i64>,
) -> rusqlite::Result<(HashMap<Content, i64>, Option<i64>)> {
    let mut open = ledger.prepare_cached(ACCEPTED_OPEN)?;
    let read = |row: &Row<'_>| Ok(((row.get(0)?, row.get(1)?), row.get(2)?));
    let open = open.query_map(params![queue, mids.start(), mids.end()], read)?.collect::<Result<_, _>>()?;
    let highest = ledger.prepare_cached(HIGHEST_SETTLED)?.query_row([queue], |row| row.get(0))?;
    Ok((open, highest))
}

/// Which of these rows were accepted and are settled, and when that was last.
pub fn settled(ledger: &Connection, queue: &str, rows: Vec<Content>) -> rusqlite::Result<Vec<(Content, i64)>> {
    let mut settled = ledger.prepare_cached(ACCEPTED_SETTLED)?;
    let mut known = Vec::new();
    for (mid, content) in rows {
        let at: Option<i64> = settled.query_row(params![queue, mid, content], |row| row.get(0))?;
        known.extend(at.map(|at| ((mid, content), at)));
    }
    Ok(known)
}
