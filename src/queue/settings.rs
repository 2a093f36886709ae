//! Where a queue is, and who we are there.

use std::sync::Arc;

pub use crate::secret::Secret as Password;

/// One `[[queue]]` of the configuration, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: Arc<str>,
    pub database: Database,
    /// An identifier, `[A-Za-z0-9_]+`, in PostgreSQL optionally `schema.table`.
    pub table: String,
}

/// Where a database is and who we are there. `Debug` shows no password.
#[derive(Clone)]
pub struct Database {
    /// Without the password.
    pub url: url::Url,
    pub password: Option<Password>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.url)
    }
}
