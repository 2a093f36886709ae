//! Our tables, the producers' tables where they are wanted, and a row as a producer would write it.

use sqlx::migrate::{MigrateError, Migrator};

use super::Inner;
use super::db::connection::{Link, Raw, Value};
use super::db::error::{Error, Failure, persist};
use crate::mail::Columns;

const OURS: &str = "mailqueue_delivery, mailqueue_recipient, mailqueue_dispatcher";

impl Inner {
    pub(super) async fn migrate(&self, producers: bool) -> Result<Vec<String>, Error> {
        let mut told = Vec::new();
        match self.connections.create_file().await {
            Ok(true) => told.push(format!("created the file {}", self.settings.database.url.path())),
            Ok(false) => {}
            Err(failure) => return Err(failure.told(self.name())),
        }
        told.extend(persist!(self, self.migrate_once(producers))?);
        self.forget_schema().await;
        Ok(told)
    }

    async fn migrate_once(&self, producers: bool) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        let mut link = self.link().await?;
        let before = link.fetch("SELECT 1 FROM mailqueue_dispatcher WHERE kind = ''", Vec::new()).await.is_ok();
        // Where another process was quicker, or an earlier one was stopped half-way, every step may be taken again.
        link.migrate().await?;
        told.push(match before {
            true => format!("our tables are up to date ({OURS})"),
            false => format!(
                "created our tables ({OURS}); where the daemon is another user of the database, GRANT it SELECT, \
                 INSERT, UPDATE, DELETE on them and SELECT, DELETE on {}",
                self.settings.table
            ),
        });
        if producers {
            let table = self.dialect().quoted(&self.settings.table);
            let look = format!("SELECT 1 FROM {table} WHERE mid IS NULL");
            let there = link.fetch(&look, Vec::new()).await.is_ok();
            let mparams =
                if self.settings.table.ends_with("adm_mail_queue") { self.dialect().producers_mparams } else { "" };
            let sql = self.dialect().producers.replace("{table}", &table).replace("{mparams}", mparams);
            if let Err(failure) = link.command(sql).await {
                // PostgreSQL's IF NOT EXISTS does not see a table that another process is just making.
                link.fetch(&look, Vec::new()).await.map_err(|_| no_right(failure))?;
            }
            told.push(format!(
                "{} the producers' table {}",
                if there { "left as it is:" } else { "created" },
                self.settings.table
            ));
        }
        Ok(told)
    }

    /// Not tried again when the answer is lost: a mail twice is worse than an error.
    pub(super) async fn insert(&self, columns: &Columns) -> Result<i64, Error> {
        self.insert_once(columns).await.map_err(|failure| failure.told(self.name()))
    }

    async fn insert_once(&self, columns: &Columns) -> Result<i64, Failure> {
        let mut link = self.link().await?;
        let schema = self.schema(&mut link).await?;
        let (mut names, mut marks, mut args) = (Vec::new(), Vec::new(), Vec::<Value>::new());
        for (name, value) in columns.each() {
            let Some((_, kind)) = schema.columns.iter().find(|(there, _)| *there == name) else {
                if value.is_some() {
                    return Err(Failure::Refused(format!("the table {} has no column {name}", self.settings.table)));
                }
                continue;
            };
            let text = value.map(std::str::from_utf8).transpose();
            let text = text.map_err(|_| Failure::Refused(format!("the value for {name} is no text")))?;
            names.push(name);
            marks.push((self.dialect().place)(kind));
            args.push(text.into());
        }
        let mut sql = format!("INSERT INTO {} ({}) VALUES ({})", schema.table, names.join(", "), marks.join(", "));
        let lines = match self.dialect().last_number {
            Some(last) => {
                link.execute(&sql, args).await?;
                link.fetch(last, Vec::new()).await?
            }
            None => {
                sql.push_str(" RETURNING CAST(mid AS BIGINT)");
                link.fetch(&sql, args).await?
            }
        };
        lines.first().map(|line| line.some_int(0)).transpose()?.ok_or_else(|| {
            Failure::Refused("the INSERT answered no number; does the table number its rows by itself?".to_owned())
        })
    }
}

impl Link {
    async fn migrate(&mut self) -> Result<(), Failure> {
        // sqlx's own lock waits without limit, which MariaDB does not know and answers with no lock at all.
        if let Raw::MySql(_) = self.unsound() {
            let lock = "SELECT GET_LOCK(CONCAT('mailqueue ', MD5(DATABASE())), 50)";
            let locked = self.fetch(lock, Vec::new()).await?;
            if locked.first().map(|line| line.int(0)).transpose()?.flatten() != Some(1) {
                return Err(Failure::Refused("another migration has been running for long".to_owned()));
            }
        }
        let done = match self.unsound() {
            Raw::MySql(raw) => named(sqlx::migrate!("migrations/mysql")).run(&mut **raw).await,
            Raw::Postgres(raw) => named(sqlx::migrate!("migrations/postgres")).run(&mut **raw).await,
            Raw::Sqlite(raw) => named(sqlx::migrate!("migrations/sqlite")).run(&mut **raw).await,
        };
        match done {
            Ok(()) => {
                if let Raw::MySql(_) = self.unsound() {
                    self.fetch("SELECT RELEASE_LOCK(CONCAT('mailqueue ', MD5(DATABASE())))", Vec::new()).await?;
                }
                self.sound();
                Ok(())
            }
            Err(MigrateError::Dirty(_)) => {
                self.execute("DELETE FROM mailqueue_migrations WHERE NOT success", Vec::new()).await?;
                Err(Failure::Busy("an earlier migration was stopped half-way".to_owned()))
            }
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => Err(no_right(error.into())),
            Err(error) => Err(Failure::Refused(format!("our tables are not those of this version: {error}"))),
        }
    }
}

fn named(mut migrator: Migrator) -> Migrator {
    migrator.dangerous_set_table_name("mailqueue_migrations");
    migrator
}

fn no_right(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(what) => Failure::Refused(format!(
            "tables cannot be created: {what}; use `--database URL` with a user that may CREATE tables there"
        )),
        failure => failure,
    }
}
