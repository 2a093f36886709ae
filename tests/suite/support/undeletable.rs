//! Rows that their database does not let anybody delete.

use super::session::Session;

/// The way in which the database keeps a row of `mail_queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A row of another table refers to it.
    ForeignKey,
    /// A trigger ends the DELETE with an error.
    Refusal,
    /// A trigger lets the DELETE succeed without the row. MariaDB has no such triggers.
    Silence,
}

impl Keeper {
    /// From now on the row, if it is there, cannot be deleted, and inserting further rows works as before.
    pub async fn keep(self, session: &mut Session, mid: i64) {
        let sql = match (self, &*session) {
            (Self::ForeignKey, _) => format!(
                "CREATE TABLE keeper (mid BIGINT NOT NULL, FOREIGN KEY (mid) REFERENCES mail_queue (mid)); \
                 INSERT INTO keeper SELECT mid FROM mail_queue WHERE mid = {mid}"
            ),
            (Self::Refusal, Session::MariaDb(_)) => format!(
                "CREATE TRIGGER keeper BEFORE DELETE ON mail_queue FOR EACH ROW IF OLD.mid = {mid} THEN \
                 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the keeper keeps it'; END IF"
            ),
            (Self::Silence, Session::MariaDb(_)) => unreachable!("MariaDB has no such triggers"),
            (Self::Refusal, Session::Postgres(_)) => postgres(mid, "RAISE EXCEPTION 'the keeper keeps it'"),
            (Self::Silence, Session::Postgres(_)) => postgres(mid, "RETURN NULL"),
            (Self::Refusal, Session::Sqlite(_)) => sqlite(mid, "ABORT, 'the keeper keeps it'"),
            (Self::Silence, Session::Sqlite(_)) => sqlite(mid, "IGNORE"),
        };
        session.run(&sql).await.expect("a keeper");
    }

    /// From now on it can.
    pub async fn let_go(self, session: &mut Session) {
        let sql = match (self, &*session) {
            (Self::ForeignKey, _) => "DROP TABLE keeper",
            (_, Session::Postgres(_)) => "DROP TRIGGER keeper ON mail_queue; DROP FUNCTION keeper()",
            _ => "DROP TRIGGER keeper",
        };
        session.run(sql).await.expect("no keeper");
    }

    /// A word of what the database says about it, in small letters.
    pub fn word(self) -> &'static str {
        match self {
            Self::ForeignKey => "foreign key",
            Self::Refusal => "the keeper keeps it",
            Self::Silence => "",
        }
    }
}

fn postgres(mid: i64, act: &str) -> String {
    format!(
        "CREATE FUNCTION keeper() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {act}; END $$; \
         CREATE TRIGGER keeper BEFORE DELETE ON mail_queue FOR EACH ROW WHEN (OLD.mid = {mid}) \
         EXECUTE FUNCTION keeper()"
    )
}

fn sqlite(mid: i64, act: &str) -> String {
    format!("CREATE TRIGGER keeper BEFORE DELETE ON mail_queue WHEN OLD.mid = {mid} BEGIN SELECT RAISE({act}); END")
}
