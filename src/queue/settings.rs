//! Which table a queue is, and in which database.

use std::sync::Arc;

use super::db::Database;

/// One `[[queue]]` of the configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: Arc<str>,
    pub database: Database,
    /// An identifier, `[A-Za-z0-9_]+`, in PostgreSQL optionally `schema.table`.
    pub table: String,
    /// `message.max_size`, in bytes of a mail.
    pub max_size: u64,
}

impl Settings {
    /// The most stored bytes of a column that is read. Above them it decodes to more than twice `max_size`, and cannot
    /// become a mail that is small enough: UTF-16 that becomes UTF-8 shrinks to half at best. Base64 makes 4 bytes of 3;
    /// line breaks in it, which nearly no producer writes, count as if they were content.
    pub fn longest_column(&self) -> u64 {
        // Not beyond what SQL counts in.
        (self.max_size / 3).saturating_mul(8).saturating_add(8).min(i64::MAX.unsigned_abs())
    }
}
