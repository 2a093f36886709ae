//! A row's columns to a [`Mail`], or the reason why it cannot be one.

use jiff::Timestamp;

use crate::mail::{Address, ColumnLimits, Columns, Mail, RecordId};
use crate::outcome::Reason;

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

/// What the smarthost can carry, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// It offers 8BITMIME. Where it does not, honest 8-bit parts are encoded anew too.
    pub eight_bit: bool,
}

/// The row stays as it is, for this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Unreadable {
    pub reason: Reason,
    /// Which column, and what is wrong with it, in words for a person.
    pub detail: String,
}

/// Translates a row. Never panics, whatever the bytes are.
pub fn translate(
    columns: &Columns,
    limits: &ColumnLimits,
    stamp: &Stamp,
    wire: Wire,
    settings: &Settings,
) -> Result<Mail, Unreadable> {
    let _ = (columns, limits, stamp, wire, settings);
    todo!()
}
