//! A fresh database for each test. Those on servers go when `tests/run` ends and throws the servers away.

use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection};
use tempfile::TempDir;
use url::Url;

use super::variable;

pub struct TestDatabase {
    /// With user and password, as sqlx and the configuration's `database` take it.
    pub url: Url,
    /// The same without a pooler in between, for what a test does itself.
    pub direct: Url,
    /// Holds an SQLite file.
    _directory: Option<TempDir>,
}

pub async fn mariadb() -> TestDatabase {
    on_mysql(&variable("MAILQUEUE_TEST_MARIADB")).await
}

/// On a MariaDB whose sessions begin with odd settings: `autocommit = 0` and the like.
pub async fn odd_mariadb() -> TestDatabase {
    on_mysql(&variable("MAILQUEUE_TEST_MARIADB_ODD")).await
}

/// On MySQL itself, of which MariaDB differs more with each release.
pub async fn mysql() -> TestDatabase {
    on_mysql(&variable("MAILQUEUE_TEST_MYSQL")).await
}

pub async fn on_mysql(server: &str) -> TestDatabase {
    let name = random_name();
    let mut connection = MySqlConnection::connect(server).await.expect("the server is out of reach");
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("CREATE DATABASE");
    on_server(server, &name)
}

pub async fn postgres() -> TestDatabase {
    let (server, name) = (variable("MAILQUEUE_TEST_POSTGRES"), random_name());
    let mut connection = PgConnection::connect(&server).await.expect("PostgreSQL is out of reach");
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("CREATE DATABASE");
    on_server(&server, &name)
}

/// A further database on the server of this one.
pub async fn beside(database: &TestDatabase) -> TestDatabase {
    let mut server = database.direct.clone();
    match server.scheme() {
        "mysql" => {
            server.set_path("");
            on_mysql(server.as_str()).await
        }
        _ => postgres().await,
    }
}

/// By way of a PgBouncer: `session`, `transaction`, `statement` or `lenient`, as in `tests/servers/pgbouncer.sh`.
pub async fn pgbouncer(which: &str) -> TestDatabase {
    let database = postgres().await;
    let pooler = variable(&format!("MAILQUEUE_TEST_PGBOUNCER_{}", which.to_uppercase()));
    let mut url: Url = pooler.parse().expect("URL");
    url.set_path(database.direct.path());
    TestDatabase { url, ..database }
}

/// A file that does not exist yet, in a directory of its own.
pub fn sqlite() -> TestDatabase {
    let directory = tempfile::tempdir().expect("temporary directory");
    let url = format!("sqlite:{}", directory.path().join("queue.sqlite").display());
    let url: Url = url.parse().expect("URL");
    TestDatabase { direct: url.clone(), url, _directory: Some(directory) }
}

fn on_server(server: &str, name: &str) -> TestDatabase {
    let mut url: Url = server.parse().expect("URL");
    url.set_path(name);
    TestDatabase { direct: url.clone(), url, _directory: None }
}

fn random_name() -> String {
    format!("test_{:016x}", rand::random::<u64>())
}
