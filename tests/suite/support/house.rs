//! A whole installation: a database with the producers' tables, a smarthost, and mailqueue configured between them.

use std::process::Output;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use mailqueue::ledger::Tracer;
use mailqueue::mail::Columns;
use mailqueue::queue::{self, Filter, Listed, Queue};
use sqlx::Connection;

use super::binary::{Installation, Running};
use super::database::TestDatabase;
use super::secrets;

pub struct House {
    pub database: TestDatabase,
    pub installation: Installation,
    /// The queue `newsletter` with the table `mail_queue`.
    pub newsletter: Queue,
    /// The queue `admidio` with the table `adm_mail_queue`.
    pub admidio: Queue,
    settings: String,
}

impl House {
    /// Both tables are made, by the program itself. `more` is put in front of the configuration, and may replace
    /// what stands in `[relay]` by ending with lines of that section.
    pub async fn build(database: TestDatabase, smarthost: u16, top: &str, relay: &str) -> Self {
        let settings = configuration(&database, smarthost, top, relay);
        let installation = Installation::new(&settings);
        let output = installation.run(&["migrate", "--producers"]).await;
        assert!(output.status.success(), "{}", said(&output));
        let newsletter = open(&database, "newsletter", "mail_queue");
        let admidio = open(&database, "admidio", "adm_mail_queue");
        Self { database, installation, newsletter, admidio, settings }
    }

    /// Lets the program, but not the test, reach the database of the queue `newsletter` on another port.
    pub fn reroute(&self, port: u16) {
        self.reroute_with(port, "");
    }

    /// The same, with parameters in the URL's query.
    pub fn reroute_with(&self, port: u16, parameters: &str) {
        let mut url = self.database.url.clone();
        url.set_port(Some(port)).expect("a server's URL");
        url.set_query(Some(parameters).filter(|parameters| !parameters.is_empty()));
        let text = std::fs::read_to_string(self.installation.configuration()).expect("configuration");
        let text = text.replacen(self.database.url.as_str(), url.as_str(), 1);
        std::fs::write(self.installation.configuration(), text).expect("configuration");
    }

    /// Entries of the ledger that are not settled.
    pub fn ledger_open(&self) -> u64 {
        let ledger = Tracer::open(&self.installation.path().join("state")).expect("ledger");
        ledger.summary().expect("ledger").0
    }

    /// A second installation on the same tables, with a `state_dir` of its own.
    pub fn neighbour(&self) -> Installation {
        Installation::new(&self.settings)
    }

    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.installation.run(arguments).await
    }

    /// One pass; answers its exit status.
    pub async fn once(&self) -> i32 {
        let output = self.run(&["--log-level", "info", "once"]).await;
        output.status.code().unwrap_or_else(|| panic!("ended by a signal: {}", said(&output)))
    }

    pub fn start(&self) -> Running {
        self.installation.start(&["run"])
    }

    /// A connection of the producers' own, to an SQLite file.
    pub async fn connect(&self) -> sqlx::SqliteConnection {
        sqlx::SqliteConnection::connect(self.database.url.as_str()).await.expect("connect")
    }

    /// Inserts a row into `mail_queue` under a number of the caller's choice.
    pub async fn insert_as(&self, connection: &mut sqlx::SqliteConnection, mid: i64, columns: &Columns) {
        let text = |value: &Option<Vec<u8>>| value.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        sqlx::query("INSERT INTO mail_queue (mid, mto, msubject, mbody, mheaders) VALUES (?, ?, ?, ?, ?)")
            .bind(mid)
            .bind(text(&columns.mto))
            .bind(text(&columns.msubject))
            .bind(text(&columns.mbody))
            .bind(text(&columns.mheaders))
            .execute(connection)
            .await
            .expect("INSERT");
    }

    /// All rows of a queue, as `list` shows them.
    pub async fn rows(&self, queue: &Queue) -> Vec<Listed> {
        queue.list(&Filter::default(), i64::MIN, 1_000_000).await.expect("list")
    }

    pub async fn row(&self, queue: &Queue, mid: i64) -> Option<Listed> {
        queue.look(mid).await.expect("look").map(|(row, _)| row)
    }

    /// Makes every deferred row due now, as time would.
    pub async fn let_time_pass(&self, queue: &Queue) {
        let rows = self.rows(queue).await;
        let deferred: Vec<_> =
            rows.iter().filter(|row| row.next_attempt.is_some()).map(|row| row.id.mid.into()).collect();
        queue.apply(&queue::Action::Retry, &deferred, Timestamp::now()).await.expect("retry");
    }
}

/// What a command wrote, for a test's failure.
pub fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A row as the newsletter writes it.
pub fn mail(to: &str, subject: &str) -> Columns {
    row(to, subject, &format!("Grüße, {}\n", secrets::BODY), "From: Newsletter <newsletter@partei.example.at>\r\n")
}

/// A row with these texts in base64.
pub fn row(to: &str, subject: &str, body: &str, headers: &str) -> Columns {
    let stored = |text: &str| Some(STANDARD.encode(text).into_bytes());
    Columns {
        mto: stored(to),
        msubject: stored(subject),
        mbody: stored(body),
        mheaders: stored(headers),
        mparams: None,
    }
}

fn open(database: &TestDatabase, name: &str, table: &str) -> Queue {
    let mut url = database.url.clone();
    let password = url.password().map(|password| queue::Password::Value(password.to_owned()));
    // A URL without an authority has no password to take out.
    let _ = url.set_password(None);
    let database = queue::Database { url, password };
    let (name, table) = (name.into(), table.to_owned());
    // What the program reads is bounded by its own configuration.
    let settings = queue::Settings { name, database, table, max_size: u64::MAX };
    Queue::new(settings, String::new()).expect("queue")
}

fn configuration(database: &TestDatabase, smarthost: u16, top: &str, relay: &str) -> String {
    let url = &database.url;
    format!(
        r#"
state_dir = "{{dir}}/state"
{top}

[[queue]]
name = "newsletter"
database = "{url}"
table = "mail_queue"

[[queue]]
name = "admidio"
database = "{url}"
table = "adm_mail_queue"
weight = 4

[log]
addresses = "full"

[relay]
host = "127.0.0.1"
port = {smarthost}
tls = "none"
helo = "test.example"
{relay}
"#
    )
}
