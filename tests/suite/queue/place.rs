//! A database with a producers' table and our tables, and shorthands for what tests do there.

use std::sync::Arc;

use jiff::Timestamp;
use mailqueue::mail::{Columns, Fingerprint};
use mailqueue::outcome::{Fate, History, Reason, RecipientRecord, RecipientState, Verdict};
use mailqueue::queue::{
    Claim, Database, DeleteRetry, Error, Found, Listed, Pools, Queue, Row, Settings, Settled, Settlement,
};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection, Row as _, SqliteConnection};
use url::Url;

use crate::support::database::{self, TestDatabase};

pub const TABLE: &str = "mail_queue";

/// `message.max_size` of the queues here: the configuration's default, in bytes.
pub const MAX_SIZE: u64 = 40_000_000;

pub struct Place {
    pub database: TestDatabase,
}

/// A producer's or an operator's own connection.
pub enum Session {
    MariaDb(MySqlConnection),
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Place {
    pub async fn mariadb() -> Self {
        Self::on(database::mariadb().await).await
    }

    pub async fn mysql() -> Self {
        Self::on(database::mysql().await).await
    }

    pub async fn postgres() -> Self {
        Self::on(database::postgres().await).await
    }

    pub async fn pgbouncer() -> Self {
        Self::on(database::pgbouncer("transaction").await).await
    }

    pub async fn sqlite() -> Self {
        Self::on(database::sqlite()).await
    }

    pub async fn on(database: TestDatabase) -> Self {
        let place = Self { database };
        place.dispatcher("").migrate(true).await.unwrap();
        place
    }

    /// The queue as a dispatcher of this name sees it; with an empty name as an operator does.
    pub fn dispatcher(&self, name: &str) -> Queue {
        self.queue_on(self.database.url.clone(), TABLE, name)
    }

    pub fn queue_on(&self, url: Url, table: &str, dispatcher: &str) -> Queue {
        self.sharing(&Pools::default(), url, table, dispatcher)
    }

    /// The same, with connections of these.
    pub fn sharing(&self, pools: &Pools, url: Url, table: &str, dispatcher: &str) -> Queue {
        let settings = Settings {
            name: Arc::from("newsletter"),
            database: Database { url, password: None },
            table: table.to_owned(),
            max_size: MAX_SIZE,
        };
        Queue::sharing(settings, dispatcher.to_owned(), pools).unwrap()
    }

    pub async fn session(&self) -> Session {
        Session::on(&self.database.direct).await
    }

    pub fn is_sqlite(&self) -> bool {
        self.database.url.scheme() == "sqlite"
    }

    /// Puts mails into the table as a producer would; each says its number.
    pub async fn mails(&self, count: usize) -> Vec<i64> {
        let queue = self.dispatcher("");
        let mut mids = Vec::with_capacity(count);
        for number in 0..count {
            mids.push(queue.insert(&mail(number)).await.unwrap());
        }
        mids
    }

    /// The state that an operator sees.
    pub async fn listed(&self, mid: i64) -> Option<Listed> {
        self.dispatcher("").look(mid).await.unwrap().map(|(listed, _)| listed)
    }

    pub async fn state(&self, mid: i64) -> String {
        self.listed(mid).await.map_or_else(|| "gone".to_owned(), |listed| listed.state.to_string())
    }

    /// How many records there are, of rows that are there or not.
    pub async fn records(&self) -> i64 {
        self.session().await.number("SELECT COUNT(*) FROM mailqueue_delivery").await
    }
}

impl Session {
    pub async fn on(url: &Url) -> Self {
        match url.scheme() {
            "mysql" => Self::MariaDb(MySqlConnection::connect(url.as_str()).await.unwrap()),
            "postgres" => Self::Postgres(PgConnection::connect(url.as_str()).await.unwrap()),
            _ => Self::Sqlite(SqliteConnection::connect(url.as_str()).await.unwrap()),
        }
    }

    pub async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::MariaDb(connection) => connection.execute(sql).await.map(drop),
            Self::Postgres(connection) => connection.execute(sql).await.map(drop),
            Self::Sqlite(connection) => connection.execute(sql).await.map(drop),
        }
    }

    pub async fn number(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::MariaDb(connection) => connection.fetch_one(sql).await.unwrap().get_unchecked(0),
            Self::Postgres(connection) => connection.fetch_one(sql).await.unwrap().get_unchecked(0),
            Self::Sqlite(connection) => connection.fetch_one(sql).await.unwrap().get_unchecked(0),
        }
    }

    /// The connections of MariaDB or MySQL, as a table with `id`, `user`, `db` and `state`. MySQL's `processlist` fails
    /// while a statement runs that has bytes which are no text.
    pub async fn processes(&mut self) -> &'static str {
        match self.number("SELECT VERSION() LIKE '%MariaDB%'").await {
            1 => "information_schema.processlist",
            _ => {
                "(SELECT PROCESSLIST_ID AS id, PROCESSLIST_USER AS user, PROCESSLIST_DB AS db, PROCESSLIST_STATE AS state \
                 FROM performance_schema.threads WHERE TYPE = 'FOREGROUND')"
            }
        }
    }

    /// All lines of an answer, each cell as text.
    pub async fn lines(&mut self, sql: &str) -> Vec<String> {
        macro_rules! lines {
            ($connection:expr) => {{
                let rows = $connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
                rows.iter()
                    .map(|row| {
                        let cells = (0..row.len()).map(|at| row.get_unchecked::<Option<String>, _>(at));
                        cells.map(|cell| cell.unwrap_or_default()).collect::<Vec<_>>().join(" ")
                    })
                    .collect()
            }};
        }
        match self {
            Self::MariaDb(connection) => lines!(connection),
            Self::Postgres(connection) => lines!(connection),
            Self::Sqlite(connection) => lines!(connection),
        }
    }
}

pub fn mail(number: usize) -> Columns {
    let text = |text: String| Some(text.into_bytes());
    Columns {
        mto: text(format!("bWVtYmVy{number:08}")),
        msubject: text("TmV3cw==".to_owned()),
        mbody: text("SGVsbG8=".repeat(300)),
        mheaders: text("RnJvbTogYUBleGFtcGxlLm9yZw==".to_owned()),
        mparams: None,
    }
}

/// The times of rows that the database does not delete.
pub const RETRY: DeleteRetry =
    DeleteRetry { now: Timestamp::constant(1_700_000_000, 0), next: Timestamp::constant(1_700_000_060, 0) };

/// A moment, in seconds.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

pub fn recipient(address: &str, state: RecipientState) -> RecipientRecord {
    RecipientRecord { address: address.to_owned(), state, reply: Some("250 2.0.0 Ok".to_owned()), at: at(5) }
}

pub fn verdict(fate: Fate, recipients: &[RecipientRecord]) -> Verdict {
    let history = History { attempts: 1, unknowns: 0, first_deferred: Some(at(5)), recipients: recipients.to_vec() };
    Verdict { fate, history, last_reply: Some("451 4.3.0 Try later".to_owned()) }
}

pub fn delivered() -> Verdict {
    verdict(Fate::Delivered, &[])
}

pub fn deferred(until: Timestamp) -> Verdict {
    verdict(Fate::Deferred { reason: Reason::Throttled, next_attempt: until }, &[])
}

pub fn failed() -> Verdict {
    verdict(Fate::Failed { reason: Reason::Refused }, &[])
}

pub fn held() -> Verdict {
    verdict(Fate::Held { reason: Reason::OutcomeUnknown }, &[])
}

pub fn settlement(row: Row, verdict: Verdict) -> Settlement {
    Settlement { claim: row.claim, fingerprint: Some(row.fingerprint), message_id: Some("<m@x>".to_owned()), verdict }
}

/// The numbers of rows that nobody knows of.
pub async fn find(queue: &Queue, cursor: i64, limit: u32) -> Vec<i64> {
    queue.find(cursor, limit).await.unwrap().into_iter().map(|row| row.mid).collect()
}

/// Claims waiting rows, however long they may be, and whatever is in them.
pub async fn claim(queue: &Queue, mids: &[i64], now: Timestamp) -> Result<Vec<Claim>, Error> {
    let found: Vec<_> = mids.iter().map(|&mid| Found { mid, bytes: 0, longest: 0, fingerprint: None }).collect();
    queue.claim(&found, now).await
}

/// Finds, claims and loads everything that waits.
pub async fn take_all(queue: &Queue) -> Vec<Row> {
    let found = queue.find(i64::MIN, 10_000).await.unwrap();
    let claims = queue.claim(&found, at(0)).await.unwrap();
    queue.load(claims).await.unwrap()
}

/// Marks rows as sending.
pub async fn send(queue: &Queue, rows: &[Row]) -> Vec<bool> {
    let rows: Vec<(&Claim, Fingerprint)> = rows.iter().map(|row| (&row.claim, row.fingerprint)).collect();
    queue.sending(&rows).await.unwrap()
}

pub async fn settle(queue: &Queue, row: Row, verdict: Verdict) -> Settled {
    queue.settle(&[settlement(row, verdict)], RETRY).await.unwrap().remove(0).1
}

/// Claims everything that is due.
pub async fn take_due(queue: &Queue, now: Timestamp) -> Vec<Row> {
    let claims = queue.claim_due(now, 1000).await.unwrap();
    queue.load(claims).await.unwrap()
}
