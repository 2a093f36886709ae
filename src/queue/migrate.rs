//! Our tables, the producers' tables where they are wanted, and a row as a producer would write it.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, PgConnection};

use super::db::connection::Connection;
use super::db::error::Failure;
use super::db::native::Native;
use super::error::Error;
use super::handle::Queue;

const OURS: &str = "mailqueue_delivery, mailqueue_recipient, mailqueue_dispatcher";

/// The name of the lock under which MySQL and MariaDB migrate a database. Both take up to 64 characters. MySQL 9 has no
/// MD5().
const LOCK: &str = "CONCAT('mailqueue ', LEFT(SHA2(DATABASE(), 256), 32))";

impl Queue {
    /// Creates our tables, and the producers' table too if asked, where they do not exist. Answers in sentences.
    pub async fn migrate(&self, producers: bool) -> Result<Vec<String>, Error> {
        let mut told = Vec::new();
        match self.inner.pool.create_file().await {
            Ok(true) => told.push(format!("created the file {}", self.settings().database.url.path())),
            Ok(false) => {}
            Err(failure) => return Err(failure.into_error(self.name())),
        }
        told.extend(self.retrying(|| self.migrate_once(producers)).await?);
        self.forget_schema().await;
        Ok(told)
    }

    async fn migrate_once(&self, producers: bool) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        let mut connection = self.connection().await?;
        let before = connection.fetch("SELECT 1 FROM mailqueue_dispatcher WHERE kind = ''", Vec::new()).await.is_ok();
        // Where another process was quicker, or an earlier one was stopped half-way, every step may be taken again.
        connection.migrate().await?;
        told.push(match before {
            true => format!("our tables are up to date ({OURS})"),
            false => format!(
                "created our tables ({OURS}); where the daemon is another user of the database, GRANT it SELECT, \
                 INSERT, UPDATE, DELETE on them and SELECT, DELETE on {}",
                self.settings().table
            ),
        });
        if producers {
            let table = self.dialect().quoted(&self.settings().table);
            let look = format!("SELECT 1 FROM {table} WHERE mid IS NULL");
            let there = connection.fetch(&look, Vec::new()).await.is_ok();
            let mparams =
                if self.settings().table.ends_with("adm_mail_queue") { self.dialect().producers_mparams } else { "" };
            let sql = self.dialect().producers.replace("{table}", &table).replace("{mparams}", mparams);
            if let Err(failure) = connection.command(sql).await {
                // PostgreSQL's IF NOT EXISTS does not see a table that another process is just making.
                connection.fetch(&look, Vec::new()).await.map_err(|_| no_right(failure))?;
            }
            told.push(format!(
                "{} the producers' table {}",
                if there { "left as it is:" } else { "created" },
                self.settings().table
            ));
        }
        Ok(told)
    }
}

impl Connection {
    async fn migrate(&mut self) -> Result<(), Failure> {
        // sqlx's own lock waits without limit, which MariaDB does not know and answers with no lock at all.
        if let Native::MySql(_) = self.mark_dirty() {
            let lock = format!("SELECT GET_LOCK({LOCK}, 50)");
            let locked = self.fetch(&lock, Vec::new()).await?;
            if locked.first().map(|line| line.i64(0)).transpose()?.flatten() != Some(1) {
                return Err(Failure::Refused("another migration has been running for long".to_owned()));
            }
        }
        let done = match self.mark_dirty() {
            Native::MySql(raw) => named(sqlx::migrate!("migrations/mysql")).run(&mut **raw).await,
            Native::Postgres(raw) | Native::Pooled(raw) => migrate_postgres(raw).await,
            Native::Sqlite(raw) => named(sqlx::migrate!("migrations/sqlite")).run(&mut **raw).await,
        };
        match done {
            Ok(()) => {
                if let Native::MySql(_) = self.mark_dirty() {
                    self.fetch(&format!("SELECT RELEASE_LOCK({LOCK})"), Vec::new()).await?;
                }
                self.mark_clean();
                Ok(())
            }
            Err(MigrateError::Dirty(version)) => self.forget_half_done(version).await,
            Err(MigrateError::ExecuteMigration(error, version)) => Err(in_migration(version, error.into())),
            Err(MigrateError::Execute(error)) => Err(no_right(error.into())),
            Err(error) => Err(Failure::Refused(format!(
                "our tables are not those of this version: {error}; use the version of mailqueue that made them, or a newer one"
            ))),
        }
    }

    /// Removes the mark of a migration that was stopped half-way, so that it is tried again: each of its steps may be taken
    /// twice.
    async fn forget_half_done(&mut self, version: i64) -> Result<(), Failure> {
        let words = format!("migration {version} of our tables was stopped half-way");
        match self.execute("DELETE FROM mailqueue_migrations WHERE NOT success", Vec::new()).await {
            Ok(_) => Err(Failure::Busy(format!("{words}; run `mailqueue migrate` again"))),
            Err(Failure::Refused(what)) => Err(Failure::Refused(format!(
                "{words}, and its mark cannot be removed: {what}; run `mailqueue migrate --database URL` with a user that \
                 may CREATE tables there, and DELETE from mailqueue_migrations"
            ))),
            Err(failure) => Err(failure),
        }
    }
}

/// Everything is in one transaction, under a lock that ends with it: sqlx's own lock belongs to the session, which behind
/// a pooler is another client's next.
async fn migrate_postgres(raw: &mut PgConnection) -> Result<(), MigrateError> {
    let mut migrator = named(sqlx::migrate!("migrations/postgres"));
    migrator.set_locking(false);
    let mut transaction = raw.begin().await?;
    sqlx::raw_sql("SELECT pg_advisory_xact_lock(hashtext('mailqueue'))").execute(&mut *transaction).await?;
    migrator.run(&mut *transaction).await?;
    // sqlx prepares its statements under names, which another client of a pooler may want for its own.
    transaction.clear_cached_statements().await?;
    Ok(transaction.commit().await?)
}

fn named(mut migrator: Migrator) -> Migrator {
    migrator.dangerous_set_table_name("mailqueue_migrations");
    migrator
}

/// The failure of a migration. What it did before stays; the next run takes it up.
fn in_migration(version: i64, failure: Failure) -> Failure {
    match no_right(failure) {
        Failure::Refused(what) => Failure::Refused(format!("migration {version} of our tables failed: {what}")),
        failure => failure,
    }
}

fn no_right(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(what) => Failure::Refused(format!(
            "tables cannot be created: {what}; use `--database URL` with a user that may CREATE tables there"
        )),
        failure => failure,
    }
}
