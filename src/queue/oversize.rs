//! Rows that are too large to be read. A database tells a column's length without handing its content over, so that such a
//! row is set aside, shown and deleted with none of it in memory.

use std::collections::HashMap;
use std::fmt;

use super::Inner;
use super::claim::Claim;
use super::claiming::{Lengths, fingerprinted};
use super::db::connection::{Line, Link, Value};
use super::db::dialect::GROUP;
use super::db::error::{Error, Failure, persist};
use super::schema::NAMES;
use crate::mail::{Fingerprint, RecordId};

/// A row that was not read, because a column of it decodes to more than twice `message.max_size`. `Display` says it to a
/// person, with the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oversize {
    /// The longest column.
    pub column: &'static str,
    /// Bytes of that column as they are stored, in base64.
    pub stored: u64,
    /// Bytes of all columns together.
    pub row: u64,
    /// `message.max_size`, in bytes.
    pub max_size: u64,
}

impl fmt::Display for Oversize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, stored, max_size, .. } = self;
        let decoded = stored / 4 * 3;
        write!(
            f,
            "{column} holds {decoded} bytes ({stored} in base64), more than twice the {max_size} that message.max_size \
             allows a mail: the row was not read; raise message.max_size and `retry` the row, or `delete` it"
        )
    }
}

/// A claimed row that is too large to be read.
#[derive(Debug)]
pub struct Unread {
    pub claim: Claim,
    pub oversize: Oversize,
    /// The fingerprint of the content where the database computes it, else of the columns' lengths.
    pub fingerprint: Fingerprint,
}

/// The columns' lengths in bytes; `None` is NULL.
pub(super) type ColumnLengths = [Option<u64>; 5];

/// Reads them, which begin at this column of the line.
pub(super) fn lengths(line: &Line, first: usize) -> Result<ColumnLengths, Failure> {
    let mut lengths = [None; 5];
    for (at, length) in lengths.iter_mut().enumerate() {
        *length = u64::try_from(line.some_int(first + at)?).ok();
    }
    Ok(lengths)
}

impl Inner {
    /// The claim's row is too large to be read, as far as the claim knows.
    pub(super) fn is_too_large(&self, claim: &Claim) -> bool {
        claim.longest > self.settings.longest_column()
    }

    /// Says why a row with these columns is not read; `None` where it is.
    pub(super) fn oversize(&self, lengths: &ColumnLengths) -> Option<Oversize> {
        let named = NAMES.into_iter().zip(lengths.iter().map(|length| length.unwrap_or(0)));
        let (column, stored) = named.max_by_key(|&(_, length)| length)?;
        let row = lengths.iter().flatten().sum();
        let max_size = self.settings.max_size;
        (stored > self.settings.longest_column()).then_some(Oversize { column, stored, row, max_size })
    }

    pub(super) async fn measure(&self, claims: Vec<Claim>) -> Result<Vec<Unread>, (Error, Vec<Claim>)> {
        match persist!(self, self.measure_once(&claims)) {
            Ok(mut found) => {
                let unread = claims.into_iter().filter_map(|claim| {
                    let (oversize, fingerprint) = found.remove(&claim.record)?;
                    Some(Unread { claim, oversize, fingerprint })
                });
                Ok(unread.collect())
            }
            Err(error) => Err((error, claims)),
        }
    }

    async fn measure_once(&self, claims: &[Claim]) -> Result<HashMap<RecordId, (Oversize, Fingerprint)>, Failure> {
        let mut link = self.link().await?;
        let mids: Vec<_> = claims.iter().map(|claim| claim.id.mid).collect();
        let lengths = self.lengths(&mut link, &mids).await?;
        let fingerprints = self.fingerprints(&mut link, &mids).await?;
        let mut measured = HashMap::new();
        let mut void = Vec::new();
        for claim in claims {
            let oversize = lengths.get(&claim.id.mid).and_then(|lengths| self.oversize(lengths));
            match oversize.zip(fingerprints.get(&claim.id.mid)) {
                Some((oversize, &fingerprint)) if claim.fingerprint.is_none_or(|made| made == fingerprint) => {
                    measured.insert(claim.record, (oversize, fingerprint));
                }
                _ => void.push(claim),
            }
        }
        self.drop_void(&mut link, &void).await?;
        Ok(measured)
    }

    /// The lengths of the columns of those of the rows that are there.
    async fn lengths(&self, link: &mut Link, mids: &[i64]) -> Result<HashMap<i64, ColumnLengths>, Failure> {
        let schema = self.schema(link).await?;
        let mut found = HashMap::with_capacity(mids.len());
        for group in mids.chunks(GROUP) {
            let (numbers, args) = self.dialect().among("q.mid", group.iter().copied());
            let (mid, table) = (self.dialect().mid, &schema.table);
            let sql = format!("SELECT {mid}, {} FROM {table} q WHERE {numbers}", schema.lengths);
            for line in link.fetch(&sql, args.into_iter().map(Value::from).collect()).await? {
                found.insert(line.some_int(0)?, lengths(&line, 1)?);
            }
        }
        Ok(found)
    }

    /// The fingerprint of a row whose database computes none; `None` where the row is gone. That of a row that is too
    /// large to be read is of its lengths, unless its record says that it was read once, under a larger `max_size`: the
    /// record must not be taken for another row's.
    pub(super) async fn fingerprint_here(&self, link: &mut Link, mid: i64) -> Result<Option<Fingerprint>, Failure> {
        let mut content = self.contents(link, std::iter::once(mid), Lengths::Bounded).await?.remove(&mid);
        if content.is_none() {
            let Some(lengths) = self.lengths(link, &[mid]).await?.remove(&mid) else { return Ok(None) };
            if self.oversize(&lengths).is_some() && !self.was_read(link, mid).await? {
                return Ok(Some(Fingerprint::of_lengths(lengths)));
            }
            content = self.contents(link, std::iter::once(mid), Lengths::Any).await?.remove(&mid);
        }
        match content {
            Some(columns) => Ok(Some(fingerprinted(columns).await.0)),
            None => Ok(None),
        }
    }

    async fn was_read(&self, link: &mut Link, mid: i64) -> Result<bool, Failure> {
        let sql = "SELECT d.fingerprint FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.mid = ?";
        let lines = link.fetch(sql, vec![self.key(), mid.into()]).await?;
        let made_for = lines.first().map(|line| line.text(0)).transpose()?.flatten();
        Ok(made_for.and_then(|text| Fingerprint::from_hex(&text)).is_some_and(|made| !made.is_of_lengths()))
    }
}
