//! Records that stand for nothing any more.

use std::time::Duration;

use tokio::time::Instant;

use super::db::connection::Connection;
use super::db::error::Failure;
use super::error::Error;
use super::handle::Queue;
use super::records::{borrowed, keys_of};
use crate::mail::RecordId;

/// A walk over many records goes on for about this long at each pass, so that it costs little however many there are.
/// Nothing wrong is sent meanwhile: loading a row compares as well.
const WALK: Duration = Duration::from_millis(300);

impl Queue {
    /// Drops records without a row and records whose row has another content; returns their number. Gives claims of ours
    /// back that no task of this process holds.
    pub async fn sweep(&self) -> Result<u64, Error> {
        drop(self.unconfirmed().await?);
        self.release_unheld().await?;
        let mut position = self.inner.cleanup.lock().await;
        let mut swept = 0;
        let mut walk = Walk::from(position.rowless, 1000, 1000);
        while walk.goes_on() {
            let looked = self.retrying_part(|| self.drop_rowless_once(walk.at, walk.batch)).await;
            let Some((dropped, last)) = self.unless_locked(looked)? else { break };
            swept += dropped;
            position.rowless = walk.step(last);
        }
        // Comparing contents makes the database read and hash them, and some are large.
        let mut walk = Walk::from(position.changed, 8, 512);
        while walk.goes_on() {
            let looked = self.retrying_part(|| self.drop_changed_once(walk.at, walk.batch)).await;
            let Some((dropped, last)) = self.unless_locked(looked)? else { break };
            swept += dropped;
            position.changed = walk.step(last);
        }
        Ok(swept)
    }

    /// Returns `None` where another session has locked a record: the next pass looks again, and rows do not wait for it.
    fn unless_locked<T>(&self, looked: Result<T, Failure>) -> Result<Option<T>, Error> {
        match looked {
            Err(Failure::Busy(words)) if self.dialect().locks_rows => {
                tracing::debug!(queue = %self.name(), words, "records are locked and are not tidied up");
                Ok(None)
            }
            looked => looked.map(Some).map_err(|failure| failure.into_error(self.name())),
        }
    }

    /// Looks at up to `batch` records behind `from`; answers how many were dropped, and the last number that was looked
    /// at unless that was the end.
    async fn drop_rowless_once(&self, from: i64, batch: i64) -> Result<(u64, Option<i64>), Failure> {
        let mut connection = self.connection().await?;
        let schema = self.schema(&mut connection).await?;
        let sql = format!(
            "SELECT part.mid, part.id, {} FROM (SELECT d.mid, d.id FROM mailqueue_delivery d WHERE d.queue_table = ? \
             AND d.mid > ? AND d.state NOT IN ('claimed', 'sending') ORDER BY d.mid LIMIT ?) part \
             LEFT JOIN {} q ON q.mid = part.mid ORDER BY part.mid",
            self.dialect().mid,
            schema.table
        );
        let lines = connection.fetch(&sql, vec![self.key(), from.into(), batch.into()]).await?;
        let last = lines.last().map(|line| line.required_i64(0)).transpose()?.filter(|_| lines.len() as i64 == batch);
        let mut rowless = Vec::new();
        for line in lines {
            if line.i64(2)?.is_none() {
                rowless.push(line);
            }
        }
        Ok((self.drop_idle(&mut connection, &keys_of(rowless)?).await?, last))
    }

    /// Compares the contents likewise.
    async fn drop_changed_once(&self, from: i64, batch: i64) -> Result<(u64, Option<i64>), Failure> {
        let mut connection = self.connection().await?;
        let sql = "SELECT d.mid, d.id, d.fingerprint FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.mid > ? \
                   AND d.state NOT IN ('claimed', 'sending') ORDER BY d.mid LIMIT ?";
        let mut made_for = Vec::new();
        for line in connection.fetch(sql, vec![self.key(), from.into(), batch.into()]).await? {
            made_for.push((line.required_i64(0)?, line.required_text(1)?, line.text(2)?));
        }
        let last = made_for.last().map(|&(mid, ..)| mid).filter(|_| made_for.len() as i64 == batch);
        let mids: Vec<i64> = made_for.iter().filter(|(.., made)| made.is_some()).map(|&(mid, ..)| mid).collect();
        let found = self.fingerprints(&mut connection, &mids).await?;
        let changed = made_for.iter().filter(|(mid, _, made)| match (found.get(mid), made) {
            (Some(found), Some(made)) => found.to_hex() != *made,
            _ => false,
        });
        let changed: Vec<_> = changed.filter_map(|(mid, id, _)| Some((*mid, RecordId::parse(id)?))).collect();
        Ok((self.drop_idle(&mut connection, &changed).await?, last))
    }

    /// Drops those of the records, ascending by number, that nobody has claimed meanwhile.
    async fn drop_idle(&self, connection: &mut Connection, keys: &[(i64, RecordId)]) -> Result<u64, Failure> {
        let mut dropped = 0;
        for group in borrowed(keys).chunks(100) {
            connection.begin(self.dialect().begin).await?;
            let (condition, args) = self.where_records("d", group);
            let sql = format!(
                "SELECT d.mid, d.id FROM mailqueue_delivery d{} WHERE {condition} \
                 AND d.state NOT IN ('claimed', 'sending') ORDER BY d.mid{}",
                self.index_hint_primary(),
                self.dialect().lock
            );
            let idle = keys_of(connection.fetch(&sql, args).await?)?;
            self.drop_records(connection, &borrowed(&idle)).await?;
            connection.commit().await?;
            self.set_scan_start(None);
            dropped += idle.len() as u64;
        }
        Ok(dropped)
    }
}

/// Goes through all numbers once, from where the last walk ended, as far as the time allows.
struct Walk {
    start: i64,
    at: i64,
    batch: i64,
    largest: i64,
    wrapped: bool,
    done: bool,
    begin: Instant,
}

impl Walk {
    fn from(position: Option<i64>, batch: i64, largest: i64) -> Self {
        let start = position.unwrap_or(i64::MIN);
        Self { start, at: start, batch, largest, wrapped: start == i64::MIN, done: false, begin: Instant::now() }
    }

    fn goes_on(&self) -> bool {
        !self.done && self.begin.elapsed() < WALK
    }

    /// `last` is the last number that was looked at, `None` at the end of all. Answers where to go on.
    fn step(&mut self, last: Option<i64>) -> Option<i64> {
        self.done = match last {
            Some(last) => self.wrapped && self.start > i64::MIN && last >= self.start,
            None => std::mem::replace(&mut self.wrapped, true),
        };
        self.batch = (self.batch * 2).min(self.largest);
        self.at = last.unwrap_or(i64::MIN);
        last
    }
}
