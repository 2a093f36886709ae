//! The columns of a producers' table, and the pieces of SQL that follow from them.

use std::time::Duration;

use tokio::time::Instant;

use super::db::connection::Connection;
use super::db::dialect::{Dialect, Engine};
use super::db::error::Failure;
use crate::mail::ColumnLimits;

/// A table's definition is read again after this time, and at once after an error of a statement.
const TRUSTED: Duration = Duration::from_secs(300);

/// An operation that a missing table or column has ended is repeated within this time, with the definition read again.
const NEW: Duration = Duration::from_secs(10);

/// The text columns, in the order of [`Columns::each`](crate::mail::Columns::each).
pub(super) const NAMES: [&str; 5] = ["mto", "msubject", "mbody", "mheaders", "mparams"];

#[derive(Debug)]
pub(super) struct Schema {
    /// Quoted.
    pub table: String,
    /// Behind the table's name in a DELETE by number.
    pub by_mid: String,
    /// Name and type of the text columns that are there.
    pub columns: Vec<(&'static str, String)>,
    /// The five columns' bytes, each for a SELECT.
    pub bytes: [String; 5],
    /// The five columns' lengths in bytes, for a SELECT; -1 for NULL and for a column that the table lacks.
    pub lengths: String,
    /// Bytes of all columns together.
    pub size: String,
    /// Bytes of the longest column.
    pub longest: String,
    pub fingerprint: Option<String>,
    /// The longest value that each column holds, as the database's catalogue says.
    pub sizes: ColumnLimits,
    /// The lengths at which the database cuts a value silently.
    pub cut_at: ColumnLimits,
    /// A statement that fails leaves the table as it was.
    pub transactional: bool,
    read: Instant,
}

impl Schema {
    /// Returns true where the definition was read within the last seconds.
    pub(super) fn is_new(&self) -> bool {
        self.read.elapsed() < NEW
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.read.elapsed() < TRUSTED
    }

    pub(super) async fn read(connection: &mut Connection, dialect: &Dialect, table: &str) -> Result<Self, Failure> {
        let quoted = dialect.quoted(table);
        let name = if dialect.engine == Engine::Postgres { quoted.as_str() } else { table };
        let mut found = Vec::new();
        for line in connection.fetch(dialect.columns, vec![name.into()]).await? {
            found.push((line.required_text(0)?.to_lowercase(), line.required_text(1)?.to_lowercase(), line.i64(2)?));
        }
        if found.is_empty() {
            return Err(Failure::Refused(format!(
                "there is no table {table}, or we have no rights on it; check `table`, and GRANT SELECT, DELETE on it"
            )));
        }
        let column = |name: &str| found.iter().find(|(found, ..)| found == name);
        for name in ["mid"].iter().chain(&NAMES[..4]) {
            if column(name).is_none() {
                return Err(Failure::Refused(format!(
                    "the table {table} has no column {name}, or it is not ours to read"
                )));
            }
        }
        if column("mparams").is_none() {
            hidden(connection, dialect, &quoted, table, "mparams").await?;
        }
        let mut by_mid = String::new();
        if let Some(sql) = dialect.numbered_by
            && let Some(line) = connection.fetch(sql, vec![table.into()]).await?.first()
        {
            by_mid = (dialect.by_index)(&line.required_text(0)?);
        }
        let mut transactional = true;
        if let Some(sql) = dialect.transactional
            && let Some(row) = connection.fetch(sql, vec![table.into()]).await?.first()
        {
            transactional = row.text(0)?.is_none_or(|word| word == "YES");
        }
        let bytes = NAMES.map(|name| column(name).map(|(_, kind, _)| (dialect.bytes)(name, kind)));
        let length = NAMES.map(|name| column(name).map(|(_, kind, _)| (dialect.length)(name, kind)));
        let known: Vec<_> = length.iter().flatten().map(|length| format!("COALESCE({length}, 0)")).collect();
        let lengths = length.map(|length| match length {
            Some(length) => format!("COALESCE({length}, -1)"),
            None => dialect.no_length.to_owned(),
        });
        let size = |name| match column(name) {
            Some((_, _, Some(size))) => u64::try_from(*size).unwrap_or(u64::MAX),
            _ => u64::MAX,
        };
        let sizes = ColumnLimits {
            mto: size("mto"),
            msubject: size("msubject"),
            mbody: size("mbody"),
            mheaders: size("mheaders"),
            mparams: size("mparams"),
        };
        Ok(Self {
            lengths: lengths.join(", "),
            size: known.join(" + "),
            longest: format!("{}({})", dialect.greatest, known.join(", ")),
            fingerprint: dialect.fingerprint.map(|of| of(&bytes)),
            bytes: bytes.map(|bytes| bytes.unwrap_or_else(|| dialect.no_bytes.to_owned())),
            sizes,
            cut_at: if dialect.cuts { sizes } else { ColumnLimits::NONE },
            columns: NAMES.iter().filter_map(|&name| column(name).map(|(_, kind, _)| (name, kind.clone()))).collect(),
            table: quoted,
            by_mid,
            transactional,
            read: Instant::now(),
        })
    }
}

/// Returns an error for a column that the table has and the catalogue does not show. MySQL and MariaDB show only columns on
/// which there is a right. Without it a row would have another fingerprint, and be taken for another mail.
async fn hidden(
    connection: &mut Connection,
    dialect: &Dialect,
    quoted: &str,
    table: &str,
    column: &str,
) -> Result<(), Failure> {
    if dialect.engine != Engine::MySql {
        return Ok(());
    }
    match connection.fetch(&format!("SELECT q.{column} FROM {quoted} q WHERE 1 = 0"), Vec::new()).await {
        Err(Failure::Missing(_)) => Ok(()),
        Err(Failure::Refused(what)) => Err(Failure::Refused(format!(
            "the table {table} has a column {column} that is not ours to read: {what}; GRANT SELECT on it"
        ))),
        Err(failure) => Err(failure),
        Ok(_) => Err(Failure::Busy(format!("the table {table} is being altered"))),
    }
}
