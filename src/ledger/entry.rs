//! The words of the ledger: its entries, and what can go wrong with it.

use jiff::Timestamp;

use crate::mail::{Fingerprint, MailId, RecordId};

/// The name of the settled entries' file below `state_dir`.
pub const FILE: &str = "ledger.sqlite";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process works with this `state_dir`.
    #[error("{dir} is in use by another mailqueue{}: stop that one, or give this one a state_dir of its own",
        pid.map(|pid| format!(", process {pid}")).unwrap_or_default())]
    Busy { dir: String, pid: Option<u32> },
    /// The ledger or its directory cannot be used as it is.
    #[error("{path}: {what}. {remedy}")]
    Unusable { path: String, what: String, remedy: &'static str },
    /// A write did not succeed; the same write can be tried again.
    #[error("the ledger cannot be written: {0}")]
    Write(String),
}

/// Names an entry while this process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryId(pub(super) i64);

/// Entries of which the database knows everything, so that they need not stay open.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Entries of accepted transactions. They go into the archive.
    pub accepted: Vec<EntryId>,
    /// Entries of transactions that were refused, or whose outcome is unknown. They are forgotten.
    pub other: Vec<EntryId>,
}

impl Closing {
    /// Adds further entries.
    pub fn append(&mut self, mut more: Self) {
        self.accepted.append(&mut more.accepted);
        self.other.append(&mut more.other);
    }
}

/// A transaction that is about to come to its final dot.
#[derive(Clone, Debug)]
pub struct Transmission {
    pub id: MailId,
    pub record: RecordId,
    pub fingerprint: Fingerprint,
    pub message_id: String,
    /// Those that the dot is for.
    pub recipients: Vec<String>,
    /// With these accepted, no recipient of the row is open any more.
    pub complete: bool,
    /// [Labels](crate::mail::Repair::label) of what was repaired on the way from the row, without text of the row.
    pub repairs: Vec<String>,
    pub begun: Timestamp,
}

/// An entry that an earlier process, or a database that was out of reach, left open.
#[derive(Clone, Debug)]
pub struct OpenEntry {
    pub entry: EntryId,
    pub transmission: Transmission,
    /// The smarthost's 250 and when it came; `None` where it is unknown whether the dot was answered.
    pub accepted: Option<(String, Timestamp)>,
}

/// From milliseconds since 1970, as every time is kept.
pub(super) fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}
