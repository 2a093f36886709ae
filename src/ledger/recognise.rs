//! Whether rows were accepted before: a restored dump, or a row that somebody put back.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::daybook::Open;
use super::entry::time;
use crate::mail::Fingerprint;

/// A row's number and its content.
type Content = (i64, Fingerprint);

/// The last time a row of this number and content was accepted as a whole, and settled.
const ACCEPTED_SETTLED: &str = "SELECT max(accepted) FROM settled_entry
    WHERE queue = ? AND mid = ? AND fingerprint = ? AND complete = 1";

/// Which of these rows were accepted as a whole, and when, where their deletion is not noted yet.
pub fn open(open: &Open, queue: &str, rows: &[Content]) -> Vec<(i64, Timestamp)> {
    let (Some(first), Some(last)) = (rows.iter().map(|row| row.0).min(), rows.iter().map(|row| row.0).max()) else {
        return Vec::new();
    };
    let accepted = open.values().filter_map(|entry| {
        let (transmission, accepted) = (&entry.transmission, entry.accepted.as_ref()?);
        let mid = transmission.id.mid;
        let counts = transmission.complete && (first..=last).contains(&mid) && *transmission.id.queue == *queue;
        counts.then_some(((mid, transmission.fingerprint), accepted.1))
    });
    let accepted: HashMap<Content, Timestamp> = accepted.collect();
    rows.iter().filter_map(|row| Some((row.0, *accepted.get(row)?))).collect()
}

/// Which of these rows were accepted as a whole and are settled, and when that was last.
pub fn settled(book: &Connection, queue: &str, rows: &[Content]) -> rusqlite::Result<Vec<(i64, Timestamp)>> {
    let mut settled = book.prepare_cached(ACCEPTED_SETTLED)?;
    let mut known = Vec::new();
    for (mid, content) in rows {
        let at: Option<i64> = settled.query_row(params![queue, mid, content.to_hex()], |row| row.get(0))?;
        known.extend(at.map(|at| (*mid, time(at))));
    }
    Ok(known)
}
