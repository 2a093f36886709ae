//! Databases: connections, and SQL as each of them wants it. Nothing here knows of mail.

pub(super) mod connection;
pub(super) mod dialect;
pub(super) mod error;
pub(super) mod mysql;
pub(super) mod native;
pub(super) mod open;
pub(super) mod pool;
pub(super) mod postgres;
pub(super) mod server;
pub(super) mod sqlite;

use crate::secret::Secret as Password;

/// The place of a database and our login there. `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
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
