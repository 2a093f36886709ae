//! What a translation is told besides the row.

use jiff::Timestamp;

use crate::mail::{Address, RecordId};

/// What the configuration says about mails.
#[derive(Clone, Debug)]
pub struct Settings {
    /// In place of the row's own envelope sender, but never of the null sender.
    pub envelope_from: Option<Address>,
    /// For rows with no usable From.
    pub default_from: Option<Address>,
    /// Bytes of the rendered mail.
    pub max_size: u64,
}

/// What a mail gets that has no Message-ID or Date of its own: the same at every attempt.
#[derive(Clone, Debug)]
pub struct Stamp {
    pub record: RecordId,
    /// When the record was made.
    pub created: Timestamp,
}
