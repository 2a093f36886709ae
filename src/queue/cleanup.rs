//! Records that stand for nothing any more.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::db::connection::{Link, Value};
use super::db::dialect::{padded, places};
use super::db::error::{Error, Failure, persist};
use super::records::{borrowed, keys_of};
use crate::mail::{Fingerprint, RecordId};

/// Where each walk over the records goes on at the next pass: behind which number.
#[derive(Debug, Default)]
pub(super) struct Position {
    rowless: Option<i64>,
    changed: Option<i64>,
}

/// A walk over many records goes on for about this long at each pass, so that it costs little however many there are.
/// Nothing unsound is sent meanwhile: loading a row compares as well.
const WALK: Duration = Duration::from_millis(300);

impl Inner {
    pub(super) async fn sweep(&self) -> Result<u64, Error> {
        drop(self.doubts().await?);
        let mut position = self.sweep.lock().await;
        let mut swept = 0;
        let mut walk = Walk::from(position.rowless, 1000, 1000);
        while walk.goes_on() {
            let (dropped, last) = persist!(self, self.drop_rowless_once(walk.at, walk.batch))?;
            swept += dropped;
            position.rowless = walk.step(last);
        }
        // Comparing contents makes the database read and hash them, and some are large.
        let mut walk = Walk::from(position.changed, 8, 512);
        while walk.goes_on() {
            let (dropped, last) = persist!(self, self.drop_changed_once(walk.at, walk.batch))?;
            swept += dropped;
            position.changed = walk.step(last);
        }
        Ok(swept)
    }

    /// Looks at up to `batch` records behind `from`; answers how many were dropped, and the last number that was looked
    /// at unless that was the end.
    async fn drop_rowless_once(&self, from: i64, batch: i64) -> Result<(u64, Option<i64>), Failure> {
        let mut link = self.link().await?;
        let schema = self.schema(&mut link).await?;
        let sql = format!(
            "SELECT part.mid, part.id, {} FROM (SELECT d.mid, d.id FROM mailqueue_delivery d WHERE d.queue_table = ? \
             AND d.mid > ? AND d.state NOT IN ('claimed', 'sending') ORDER BY d.mid LIMIT ?) part \
             LEFT JOIN {} q ON q.mid = part.mid ORDER BY part.mid",
            self.dialect().mid,
            schema.table
        );
        let lines = link.fetch(&sql, vec![self.key(), from.into(), batch.into()]).await?;
        let last = lines.last().map(|line| line.some_int(0)).transpose()?.filter(|_| lines.len() as i64 == batch);
        let mut rowless = Vec::new();
        for line in lines {
            if line.int(2)?.is_none() {
                rowless.push(line);
            }
        }
        Ok((self.drop_idle(&mut link, &keys_of(rowless)?).await?, last))
    }

    /// Compares the contents likewise.
    async fn drop_changed_once(&self, from: i64, batch: i64) -> Result<(u64, Option<i64>), Failure> {
        let mut link = self.link().await?;
        let sql = "SELECT d.mid, d.id, d.fingerprint FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.mid > ? \
                   AND d.state NOT IN ('claimed', 'sending') ORDER BY d.mid LIMIT ?";
        let mut made_for = Vec::new();
        for line in link.fetch(sql, vec![self.key(), from.into(), batch.into()]).await? {
            made_for.push((line.some_int(0)?, line.some_text(1)?, line.text(2)?));
        }
        let last = made_for.last().map(|&(mid, ..)| mid).filter(|_| made_for.len() as i64 == batch);
        let mids: Vec<i64> = made_for.iter().filter(|(.., made)| made.is_some()).map(|&(mid, ..)| mid).collect();
        let found = self.fingerprints(&mut link, &mids).await?;
        let changed = made_for.iter().filter(|(mid, _, made)| match (found.get(mid), made) {
            (Some(found), Some(made)) => found.to_hex() != *made,
            _ => false,
        });
        let changed: Vec<_> = changed.filter_map(|(mid, id, _)| Some((*mid, RecordId::parse(id)?))).collect();
        Ok((self.drop_idle(&mut link, &changed).await?, last))
    }

    /// Drops those of the records, ascending by number, that nobody has claimed meanwhile.
    async fn drop_idle(&self, link: &mut Link, keys: &[(i64, RecordId)]) -> Result<u64, Failure> {
        let mut dropped = 0;
        for group in borrowed(keys).chunks(100) {
            link.begin(self.dialect().begin).await?;
            let (these, args) = self.these("d", group);
            let sql = format!(
                "SELECT d.mid, d.id FROM mailqueue_delivery d{} WHERE {these} \
                 AND d.state NOT IN ('claimed', 'sending') ORDER BY d.mid{}",
                self.by_key(),
                self.dialect().lock
            );
            let idle = keys_of(link.fetch(&sql, args).await?)?;
            self.drop_records(link, &borrowed(&idle)).await?;
            link.commit().await?;
            self.forget_head();
            dropped += idle.len() as u64;
        }
        Ok(dropped)
    }

    /// The contents' fingerprints of those of the rows that are there.
    pub(super) async fn fingerprints(
        &self,
        link: &mut Link,
        mids: &[i64],
    ) -> Result<HashMap<i64, Fingerprint>, Failure> {
        let schema = self.schema(link).await?;
        let mut found = HashMap::with_capacity(mids.len());
        let Some(fingerprint) = &schema.fingerprint else {
            // One row at a time: together they may be larger than memory.
            for &mid in mids {
                found.extend(self.fingerprint_here(link, mid).await?.map(|content| (mid, content)));
            }
            return Ok(found);
        };
        for group in mids.chunks(super::db::dialect::GROUP) {
            let args: Vec<Value> = padded(group.iter().map(|&mid| mid.into()).collect());
            let sql = format!(
                "SELECT {}, {fingerprint} FROM {} q WHERE q.mid IN ({})",
                self.dialect().mid,
                schema.table,
                places(args.len())
            );
            for line in link.fetch(&sql, args).await? {
                let content = Fingerprint::from_hex(&line.some_text(1)?)
                    .ok_or_else(|| Failure::Refused("the database answers no SHA-256".to_owned()))?;
                found.insert(line.some_int(0)?, content);
            }
        }
        Ok(found)
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
