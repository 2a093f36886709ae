//! Databases: connections, and SQL as each of them wants it. Nothing here knows of mail.

pub(super) mod connection;
pub(super) mod dialect;
pub(super) mod error;
pub(super) mod mysql;
pub(super) mod pool;
pub(super) mod postgres;
pub(super) mod sqlite;
