//! Checks that a database is fit for the job.

use jiff::{SignedDuration, Timestamp};

use super::claim::HIGHEST_NUMBER;
use super::db::connection::{Connection, DbRow};
use super::db::dialect::Engine;
use super::db::error::Failure;
use super::error::Error;
use super::rights::Rights;
use super::schema::Schema;
use super::{db::mysql, db::postgres, db::sqlite, handle::Queue};
use crate::mail::ColumnLimits;
use crate::outcome::Reason;

/// Seconds.
const CLOCK_MAY_DIFFER: i64 = 60;

const OURS: [&str; 3] = ["mailqueue_delivery", "mailqueue_recipient", "mailqueue_dispatcher"];
const ON_OURS: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];
const ON_THEIRS: [&str; 2] = ["SELECT", "DELETE"];

/// One finding of `check`.
#[derive(Clone, Debug)]
pub struct Finding {
    pub level: Level,
    /// The thing that was looked at, in a few words.
    pub what: String,
    /// The finding, and on a warning or failure the remedy.
    pub found: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    Warning,
    Failed,
}

impl Queue {
    /// Checks that database, rights and schema are fit for the job. A probe that fails keeps no other from its work, unless
    /// the connection is lost.
    pub async fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(failure) = self.probe(&mut findings).await {
            let what = if findings.is_empty() { "database" } else { "looking further" };
            let found = match failure {
                Failure::NoSecret(what) => {
                    findings.push(finding(Level::Failed, "password", what));
                    return findings;
                }
                Failure::Unavailable(what) => format!("the server answered: {what}"),
                Failure::Broken(what) | Failure::Stalled(what) => {
                    format!("out of reach: {what}; check `database` and whether the server is up")
                }
                failure => failure.into_error(self.name()).to_string(),
            };
            findings.push(finding(Level::Failed, what, found));
        }
        findings
    }

    /// The longest statement or row that the server takes or gives; `None` where there is no such limit.
    pub async fn longest_packet(&self) -> Result<Option<u64>, Error> {
        if self.engine() != Engine::MySql {
            return Ok(None);
        }
        let packet = async {
            let lines = self.connection().await?.fetch(mysql::LONGEST_PACKET, Vec::new()).await?;
            lines.first().map(|line| line.required_i64(0)).transpose()
        };
        let packet: Result<_, Failure> = packet.await;
        Ok(packet.map_err(|failure| failure.into_error(self.name()))?.and_then(|bytes| u64::try_from(bytes).ok()))
    }

    async fn probe(&self, findings: &mut Vec<Finding>) -> Result<(), Failure> {
        let mut connection = self.connection().await?;
        let version = match self.engine() {
            Engine::MySql => mysql::VERSION,
            Engine::Postgres => postgres::VERSION,
            Engine::Sqlite => sqlite::VERSION,
        };
        let version = connection.fetch(version, Vec::new()).await?;
        let version = version.first().map(|line| line.required_text(0)).transpose()?.unwrap_or_default();
        findings.push(finding(Level::Ok, "database", version));
        if connection.is_pooled() {
            let found = "PgBouncer or another pooler is in between; each statement is a transaction of its own and is \
                         prepared each time, which takes four round trips in place of one; a direct connection is faster";
            findings.push(finding(Level::Ok, "pooler", found));
        }
        findings.extend(self.told("server", self.server(&mut connection).await)?);

        self.forget_schema().await;
        let schema = match self.schema(&mut connection).await {
            Ok(schema) => {
                let without = if schema.columns.len() < 5 { "; no mparams, so senders come from headers" } else { "" };
                let found = format!("{} has the columns{without}", self.settings().table);
                findings.push(finding(Level::Ok, "table", found));
                Some(schema)
            }
            Err(failure) => {
                findings.extend(self.told("table", Err(failure))?);
                None
            }
        };

        let ours = self.our_tables(&mut connection).await;
        let migrated = !matches!(ours, Err(Failure::Missing(_) | Failure::NotMigrated(_)));
        match ours {
            Ok(()) => {
                findings.push(finding(Level::Ok, "our tables", "there"));
                findings.extend(self.told("not deleted", self.not_deleted(&mut connection).await)?);
            }
            // MySQL denies what is not there as well.
            Err(Failure::Refused(what)) => {
                let found = format!(
                    "{what}; run `mailqueue migrate`, or GRANT {} on {} to this user",
                    ON_OURS.join(", "),
                    OURS.join(", ")
                );
                findings.push(finding(Level::Failed, "our tables", found));
            }
            Err(failure) => findings.extend(self.told("our tables", Err(failure))?),
        }
        let Some(schema) = schema else { return Ok(()) };
        findings.extend(self.told("rights", self.rights(&mut connection, migrated).await)?);
        findings.extend(self.told("numbers", self.numbering(&mut connection, &schema).await)?);
        findings.extend(self.told("numbers", self.numbers_too_high(&mut connection, &schema).await)?);
        findings.extend(self.told("engine", self.storage_engine(&mut connection).await)?);
        findings.push(sizes(&schema, self.dialect().cuts));
        Ok(())
    }

    /// The findings of one probe. A probe that the database refuses is a finding itself, and keeps no other from its work;
    /// the error is a connection that is of no use any more.
    fn told(&self, what: &str, found: Result<Vec<Finding>, Failure>) -> Result<Vec<Finding>, Failure> {
        match found {
            Err(failure) if failure.ends_connection() => Err(failure),
            Err(failure) => Ok(vec![finding(Level::Failed, what, failure.into_error(self.name()).to_string())]),
            found => found,
        }
    }

    /// Asks our tables for all columns that this version knows, and for no rows.
    async fn our_tables(&self, connection: &mut Connection) -> Result<(), Failure> {
        let mut ours = Ok(());
        for table in OURS {
            let columns = match table {
                "mailqueue_delivery" => "queue_table, claim, next_attempt",
                "mailqueue_recipient" => "record, address_key, position",
                _ => "kind, id, heartbeat",
            };
            let sql = format!("SELECT {columns} FROM {table} WHERE 1 = 0");
            ours = ours.and(connection.fetch(&sql, Vec::new()).await.map(drop));
        }
        ours
    }

    /// Says how many delivered rows the database does not delete, and why, where there are any.
    async fn not_deleted(&self, connection: &mut Connection) -> Result<Vec<Finding>, Failure> {
        let sql = "SELECT COUNT(*), MIN(d.detail) FROM mailqueue_delivery d WHERE d.queue_table = ? AND d.state = 'held' \
                   AND d.next_attempt IS NOT NULL AND d.reason = ?";
        let rows = connection.fetch(sql, vec![self.key(), Reason::NotDeleted.as_str().into()]).await?;
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let (count, words) = (row.required_i64(0)?, row.text(1)?.unwrap_or_default());
        if count == 0 {
            return Ok(Vec::new());
        }
        let found = format!(
            "{count} delivered, and the database does not delete them: {words}; remove what is in the way, then \
             `mailqueue retry --queue {} --reason not-deleted`, which sends nothing",
            self.name()
        );
        Ok(vec![finding(Level::Warning, "not deleted", found)])
    }

    /// The server's clock and character set.
    async fn server(&self, connection: &mut Connection) -> Result<Vec<Finding>, Failure> {
        let mut told = Vec::new();
        let clock = match self.engine() {
            Engine::MySql => mysql::CLOCK,
            Engine::Postgres => postgres::CLOCK,
            // A file has no clock of its own.
            Engine::Sqlite => {
                let lines = connection.fetch(sqlite::IS_UTF16, Vec::new()).await?;
                if lines.first().map(|line| line.required_i64(0)).transpose()? != Some(0) {
                    let found = "the file keeps texts in UTF-16, in which no value is base64: every row would be set aside; \
                                 make it with PRAGMA encoding = 'UTF-8'";
                    told.push(finding(Level::Failed, "encoding", found));
                }
                return Ok(told);
            }
        };
        let asked = Timestamp::now();
        let lines = connection.fetch(clock, Vec::new()).await?;
        let answered = Timestamp::now();
        if let Some(line) = lines.first() {
            // In the middle between question and answer, as far as anybody can tell.
            let here = (asked.as_millisecond() + answered.as_millisecond()) / 2;
            let (level, found) = clock_ahead("the database", SignedDuration::from_millis(line.required_i64(0)? - here));
            told.push(finding(level, "clock", found));
        }
        if self.engine() == Engine::Postgres {
            let lines = connection.fetch("SELECT current_setting('server_encoding')", Vec::new()).await?;
            let encoding = lines.first().map(|line| line.required_text(0)).transpose()?.unwrap_or_default();
            told.push(match encoding.as_str() {
                "UTF8" | "SQL_ASCII" => finding(Level::Ok, "encoding", encoding),
                _ => {
                    let found = format!(
                        "{encoding} cannot hold every character: what a row or the smarthost says in others cannot be written \
                         down, and such a row would be tried again for ever; use a database made with ENCODING 'UTF8' (or \
                         SQL_ASCII)"
                    );
                    finding(Level::Failed, "encoding", found)
                }
            });
        }
        Ok(told)
    }

    async fn rights(&self, connection: &mut Connection, migrated: bool) -> Result<Vec<Finding>, Failure> {
        let table = self.settings().table.as_str();
        let mut told = Vec::new();
        let rights = match self.engine() {
            Engine::MySql => Rights::of_mysql(connection).await?,
            Engine::Postgres => Rights::of_postgres(connection, &OURS, &self.dialect().quoted(table)).await?,
            Engine::Sqlite => {
                let writable = connection.command("BEGIN IMMEDIATE; ROLLBACK").await;
                return Ok(vec![match writable {
                    Ok(()) => finding(Level::Ok, "rights", "the file can be written"),
                    Err(failure) => finding(Level::Failed, "rights", failure.into_error(self.name()).to_string()),
                }]);
            }
        };
        let theirs = if self.engine() == Engine::Postgres { self.dialect().quoted(table) } else { table.to_owned() };
        let mut missing = Vec::new();
        for (table, wanted) in OURS
            .iter()
            .filter(|_| migrated)
            .map(|&ours| (ours, &ON_OURS[..]))
            .chain([(theirs.as_str(), &ON_THEIRS[..])])
        {
            let lacking: Vec<_> = wanted.iter().filter(|right| !rights.allow(right, table)).copied().collect();
            if !lacking.is_empty() {
                missing.push(format!("GRANT {} ON {table} TO {}", lacking.join(", "), rights.grantee));
            }
        }
        told.push(match missing.as_slice() {
            [] => finding(Level::Ok, "rights", "all that are needed"),
            _ if rights.unsure => {
                let found = format!("those of roles are not looked into; needed: {}", missing.join("; "));
                finding(Level::Warning, "rights", found)
            }
            _ => finding(Level::Failed, "rights", format!("too few: {}", missing.join("; "))),
        });
        let needless = rights.beyond(&ON_THEIRS, &theirs);
        if !needless.is_empty() {
            let found = format!(
                "more than are needed on {table}: {}; SELECT and DELETE do, and a mistake can then do no more than that",
                needless.join(", ")
            );
            told.push(finding(Level::Warning, "rights", found));
        }
        Ok(told)
    }

    async fn numbering(&self, connection: &mut Connection, schema: &Schema) -> Result<Vec<Finding>, Failure> {
        let (sql, name) = match self.engine() {
            Engine::MySql => (mysql::UNIQUE, self.settings().table.as_str()),
            Engine::Postgres => (postgres::UNIQUE, schema.table.as_str()),
            Engine::Sqlite => (sqlite::UNIQUE, self.settings().table.as_str()),
        };
        let lines = connection.fetch(sql, vec![name.into()]).await?;
        if lines.first().map(|line| line.required_i64(0)).transpose()?.unwrap_or(0) > 0 {
            return Ok(vec![finding(Level::Ok, "numbers", "mid is unique")]);
        }
        let found =
            "mid is not unique: two mails could share a number, and one of them be lost; make it the primary key";
        Ok(vec![finding(Level::Failed, "numbers", found)])
    }

    /// Looks for rows whose number no record of ours can name. They stay in the table.
    async fn numbers_too_high(&self, connection: &mut Connection, schema: &Schema) -> Result<Vec<Finding>, Failure> {
        let sql = format!("SELECT COUNT(*) FROM {} q WHERE q.mid > {HIGHEST_NUMBER}", schema.table);
        let lines = connection.fetch(&sql, Vec::new()).await?;
        let rows = lines.first().map(|line| line.required_i64(0)).transpose()?.unwrap_or(0);
        if rows == 0 {
            return Ok(Vec::new());
        }
        let found =
            format!("{rows} row(s) have a mid over {HIGHEST_NUMBER} and are never sent: give them smaller numbers");
        Ok(vec![finding(Level::Failed, "numbers", found)])
    }

    async fn storage_engine(&self, connection: &mut Connection) -> Result<Vec<Finding>, Failure> {
        let mut told = Vec::new();
        if self.engine() != Engine::MySql {
            return Ok(told);
        }
        let text = |lines: Vec<DbRow>| lines.first().map(|line| line.text(0)).transpose().map(Option::flatten);
        let engine = text(connection.fetch(mysql::ENGINE, vec![self.settings().table.as_str().into()]).await?)?;
        let engine = engine.unwrap_or_else(|| "no table".to_owned());
        told.push(match engine.to_lowercase().as_str() {
            "innodb" | "rocksdb" | "tokudb" | "ndbcluster" => finding(Level::Ok, "engine", engine),
            _ => {
                let found = format!(
                    "{engine} has no transactions: only one dispatcher may work on this table, and one that dies while it \
                     deletes a row can leave its record until the next pass; ALTER TABLE … ENGINE = InnoDB mends it"
                );
                finding(Level::Warning, "engine", found)
            }
        });
        let log = text(
            connection.fetch("SELECT CAST(@@log_bin * (@@binlog_format = 'STATEMENT') AS CHAR)", Vec::new()).await?,
        )?;
        if log.is_some_and(|log| log != "0") {
            let found = "binlog_format is STATEMENT, with which InnoDB refuses READ COMMITTED; set MIXED or ROW";
            told.push(finding(Level::Failed, "binary log", found));
        }
        Ok(told)
    }
}

fn finding(level: Level, what: &str, found: impl Into<String>) -> Finding {
    Finding { level, what: what.to_owned(), found: found.into() }
}

/// Judges a clock by its difference from this host's. Nothing here compares clocks, but people who read logs
/// do, and a mail's Date is ours.
pub fn clock_ahead(whose: &str, ahead: SignedDuration) -> (Level, String) {
    let seconds = ahead.as_secs();
    if seconds.abs() <= CLOCK_MAY_DIFFER {
        return (Level::Ok, format!("that of {whose} and this host's agree within {} s", seconds.abs().max(1)));
    }
    let how = if seconds > 0 { "ahead of" } else { "behind" };
    let found = format!(
        "that of {whose} is {} s {how} this host's: times in logs and in the mails' Date do not fit together; let both \
         hosts keep time by NTP",
        seconds.abs()
    );
    (Level::Warning, found)
}

/// `cuts`: the database cuts a value that is too long without an error.
fn sizes(schema: &Schema, cuts: bool) -> Finding {
    let limits = schema.sizes;
    if limits == ColumnLimits::NONE {
        return finding(Level::Ok, "column sizes", "the columns have no limit");
    }
    let small = [
        ("mto", limits.mto, 4096),
        ("msubject", limits.msubject, 1024),
        ("mbody", limits.mbody, 1 << 20),
        ("mheaders", limits.mheaders, 8192),
    ];
    let small: Vec<_> = small.iter().filter(|(_, limit, wanted)| limit < wanted).collect();
    if small.is_empty() {
        return finding(Level::Ok, "column sizes", "large enough");
    }
    // Three bytes of text are four of base64.
    let small: Vec<_> =
        small.iter().map(|(name, limit, _)| format!("{name} holds {} bytes of text", limit / 4 * 3)).collect();
    let consequence = if cuts {
        "a server that is not strict cuts what is longer without a word, and the row is set aside as truncated"
    } else {
        "the database refuses an INSERT with more, and a producer that ignores the error loses that mail"
    };
    let found = format!("{}; {consequence}; make the columns longer", small.join(", "));
    finding(Level::Warning, "column sizes", found)
}
