//! The right to handle a row, and what comes of it. No I/O.

use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::mail::{Columns, Fingerprint, MailId, RecordId};
use crate::outcome::{History, Verdict};

/// What the token of a claim begins with that was taken over from another dispatcher; others are hexadecimal.
pub(super) const TAKEN_OVER: char = 'x';

/// A row that no record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub mid: i64,
    /// Of its columns, as they are stored.
    pub bytes: u64,
    /// Bytes of its longest column.
    pub longest: u64,
    /// Of its content, where the database can tell and the row is small.
    pub fingerprint: Option<Fingerprint>,
}

/// The right to handle one row, from [`Queue::claim`](super::Queue::claim) until [`Queue::settle`](super::Queue::settle). Made only here; settling consumes it.
#[must_use = "a claim that is dropped stays claimed until the dispatcher starts anew"]
#[derive(Debug)]
pub struct Claim {
    pub(super) id: MailId,
    pub(super) record: RecordId,
    /// Random, new with every claim: a claim that was lost and won back by the same dispatcher is another claim.
    pub(super) token: Arc<str>,
    pub(super) created: Timestamp,
    /// Of the content that the record was made for, as far as the record says it.
    pub(super) fingerprint: Option<Fingerprint>,
    /// The record was made with this claim: nothing was known of the row before.
    pub(super) new: bool,
    pub(super) history: History,
    /// Of the row's columns when it was found; 0 where the row was not looked at, or was gone.
    pub(super) bytes: u64,
    /// Bytes of its longest column, likewise.
    pub(super) longest: u64,
    /// Counts the claims that are in somebody's hands.
    pub(super) _alive: TaskTrackerToken,
}

impl Claim {
    pub(super) fn key(&self) -> (i64, &RecordId) {
        (self.id.mid, &self.record)
    }

    pub fn id(&self) -> &MailId {
        &self.id
    }

    pub fn record(&self) -> &RecordId {
        &self.record
    }

    /// When the record was made.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Nothing was known of the row before.
    pub fn is_new(&self) -> bool {
        self.new
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    /// How many bytes the row's columns had when it was found.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Another dispatcher was sending this row when it died, and nobody has settled that yet: our ledger knows nothing
    /// of it.
    pub fn was_taken_over(&self) -> bool {
        self.token.starts_with(TAKEN_OVER)
    }
}

/// A row with its content.
#[derive(Debug)]
pub struct Row {
    pub claim: Claim,
    pub columns: Columns,
    pub fingerprint: Fingerprint,
}

/// What settling a claim came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As the verdict wanted. Row and record are gone, or the record says it.
    Done,
    /// The row was gone or had another content; the record is dropped, nothing else was touched.
    RowGone,
    /// Another dispatcher has the claim. Acceptances were recorded all the same; nothing else was.
    ClaimLost,
}

/// What one pass over the own claims, or over those of a dispatcher that shows no signs of life, found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Claims that had not come to a dot: given back to where they were before.
    pub released: usize,
    /// Rows in `sending`: nobody knows whether their dot was answered. They are claimed by us now.
    pub unknown: Vec<Claim>,
}

/// A claim with what shall become of it. The fingerprint is that of the content that was loaded, or `None` if the row
/// was not: then the claim's own counts, from an earlier attempt. `Fate::Delivered` wants one of the two.
#[derive(Debug)]
pub struct Settlement {
    pub claim: Claim,
    pub fingerprint: Option<Fingerprint>,
    pub message_id: Option<String>,
    pub verdict: Verdict,
}
