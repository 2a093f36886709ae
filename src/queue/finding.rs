//! Which rows nobody knows of yet.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::claim::Found;
use super::db::connection::Line;
use super::db::error::{Error, Failure, persist};
use crate::mail::Fingerprint;

/// A look at the head of the table that takes longer is one at very many records.
const QUICK: Duration = Duration::from_millis(100);

/// Such looks get one part in so many of the time, but none is put off for longer than [`LONGEST`].
const SHARE: u32 = 20;
const LONGEST: Duration = Duration::from_secs(60);

/// Of so many bytes at most the content's fingerprint is read with the number, and goes into the record with the claim: to
/// mark a batch `sending` then takes half as long. Of larger ones it would hold up the search.
const SMALL: u64 = 64 * 1024;

/// The numbers up to `end`, which all had records when they were last looked at. Rows that come to stand among them, as
/// late commits do, are found by the next look at the head, at `again`; all others at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    end: i64,
    again: Instant,
}

impl Inner {
    pub(super) async fn find(&self, cursor: i64, limit: u32) -> Result<Vec<Found>, Error> {
        let known = self.head().filter(|head| Instant::now() < head.again);
        let from = known.map_or(cursor, |head| head.end.max(cursor));
        if from > i64::MIN {
            return persist!(self, self.find_once(from, limit));
        }
        let begin = Instant::now();
        let found = persist!(self, self.find_once(from, limit))?;
        let took = begin.elapsed();
        if took > QUICK {
            let end = match found.first() {
                Some(first) => first.mid - 1,
                None => persist!(self, self.last_record_once())?.unwrap_or(i64::MIN),
            };
            let again = Instant::now() + (took * SHARE).min(LONGEST);
            *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(Head { end, again });
        }
        Ok(found)
    }

    fn head(&self) -> Option<Head> {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows wait again whose records we have dropped: the next look begins at the beginning.
    pub(super) fn forget_head(&self) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn last_record_once(&self) -> Result<Option<i64>, Failure> {
        let sql = "SELECT MAX(d.mid) FROM mailqueue_delivery d WHERE d.queue_table = ?";
        let lines = self.link().await?.fetch(sql, vec![self.key()]).await?;
        lines.first().map_or(Ok(None), |line| line.int(0))
    }

    async fn find_once(&self, cursor: i64, limit: u32) -> Result<Vec<Found>, Failure> {
        let mut link = self.link().await?;
        let schema = self.schema(&mut link).await?;
        let fingerprint = match &schema.fingerprint {
            Some(fingerprint) => format!("CASE WHEN {} <= {SMALL} THEN {fingerprint} END", schema.size),
            None => "NULL".to_owned(),
        };
        // Length and fingerprint apart from the search: where a table keeps long columns elsewhere, they are read for what
        // is found only, and not for all that is looked at.
        let sql = format!(
            "SELECT {}, {size}, {}, {fingerprint} FROM (SELECT q.mid FROM {table} q LEFT JOIN mailqueue_delivery d \
             ON d.queue_table = ? AND d.mid = q.mid WHERE q.mid > ? AND d.mid IS NULL ORDER BY q.mid LIMIT ?) f \
             JOIN {table} q ON q.mid = f.mid ORDER BY f.mid",
            self.dialect().mid,
            schema.longest,
            size = schema.size,
            table = schema.table
        );
        let lines = link.fetch(&sql, vec![self.key(), cursor.into(), i64::from(limit).into()]).await?;
        let found = |line: &Line| {
            Ok(Found {
                mid: line.some_int(0)?,
                bytes: line.some_int(1)?.unsigned_abs(),
                longest: line.some_int(2)?.unsigned_abs(),
                fingerprint: line.text(3)?.and_then(|text| Fingerprint::from_hex(&text)),
            })
        };
        lines.iter().map(found).collect()
    }
}
