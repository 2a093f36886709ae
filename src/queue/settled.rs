//! The end of a claim, as settling tells it.

use jiff::Timestamp;

/// The result of settling a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As the verdict wanted. Row and record are gone, or the record says it.
    Done,
    /// The row was gone or had another content; the record is dropped, nothing else was touched.
    RowGone,
    /// Another dispatcher has the claim. Acceptances were recorded all the same; nothing else was.
    ClaimLost,
    /// All recipients are accepted and the database does not delete the row, which is `held`, `not-deleted` now.
    NotDeleted {
        /// The database's words.
        detail: String,
        /// The time of the next DELETE.
        next_attempt: Timestamp,
    },
    /// Another session has locked the row or its record. Nothing was done, and the same is to be tried again.
    Locked {
        /// The database's words.
        detail: String,
    },
}
