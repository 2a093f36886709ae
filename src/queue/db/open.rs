//! Opens connections: what a URL says, and what of it is safe to leave to the driver.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::LevelFilter;
use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use url::Url;

use super::dialect::Engine;
use super::error::Failure;
use super::native::Native;
use super::{Database, Password, postgres};

/// The time in which a connection is opened, and in which one comes free.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server that a URL names, in one spelling: host and port, socket, or file.
pub(crate) fn address(url: &Url) -> String {
    let port = match url.scheme() {
        "sqlite" => return file(url).display().to_string(),
        "mysql" | "mariadb" => 3306,
        _ => 5432,
    };
    let host = bare(url.host_str().unwrap_or_default()).to_lowercase();
    let host = if is_remote(&host) { host.as_str() } else { "localhost" };
    let mut address = format!("{host}:{}", url.port().unwrap_or(port));
    // Parameters that say where the server is, too.
    for (key, value) in url.query_pairs().filter(|(key, _)| ["socket", "host", "hostaddr", "port"].contains(&&**key)) {
        address.push_str(&format!(" {key}={value}"));
    }
    address
}

/// Opens a connection to a database. Remembers a pooler in `is_pooled`.
pub(crate) async fn connect(database: &Database, engine: Engine, is_pooled: &AtomicBool) -> Result<Native, Failure> {
    let opened = match engine {
        Engine::MySql => mysql(database).await,
        Engine::Postgres => postgres(database, is_pooled).await,
        Engine::Sqlite => Ok(Native::Sqlite(Box::new(quiet(sqlite_options(&database.url)?).connect().await?))),
    };
    opened.map_err(|failure: Failure| failure.naming(missing_file(&database.url)))
}

async fn mysql(database: &Database) -> Result<Native, Failure> {
    let url = &database.url;
    let mut options = MySqlConnectOptions::from_url(url).map_err(|error| bad(url, &error))?.pipes_as_concat(false);
    let host = bare(options.get_host()).to_owned();
    options = options.host(&host);
    if let Some(password) = password(database)? {
        options = options.password(&password);
    }
    if !named(url, &["ssl-mode", "sslmode"]) && options.get_socket().is_none() && is_remote(&host) {
        options = options.ssl_mode(MySqlSslMode::VerifyIdentity);
    }
    Ok(Native::MySql(Box::new(quiet(options).connect().await?)))
}

async fn postgres(database: &Database, is_pooled: &AtomicBool) -> Result<Native, Failure> {
    let url = &database.url;
    let mut options = PgConnectOptions::from_url(url).map_err(|error| bad(url, &error))?;
    let host = bare(options.get_host()).to_owned();
    options = options.host(&host);
    if let Some(password) = password(database)? {
        options = options.password(&password);
    }
    if !named(url, &["ssl-mode", "sslmode"]) && options.get_socket().is_none() && is_remote(&host) {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    let options = quiet(options).extra_float_digits(None);
    if !is_pooled.load(Ordering::Relaxed) {
        let mark = format!("{:016x}", rand::random::<u64>());
        if let Some(native) = postgres::connect_directly(&options, &mark).await? {
            return Ok(Native::Postgres(Box::new(native)));
        }
        is_pooled.store(true, Ordering::Relaxed);
    }
    Ok(Native::Pooled(Box::new(options.connect().await?)))
}

/// Creates the file of an SQLite database that does not exist yet; answers whether it did. WAL is a property of the
/// file, and files that others made keep what they have.
pub(crate) async fn create_file(url: &Url) -> Result<bool, Failure> {
    if file(url).exists() {
        return Ok(false);
    }
    let options =
        SqliteConnectOptions::new().filename(file(url)).create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
    quiet(options).connect().await?;
    Ok(true)
}

fn bad(url: &Url, error: &sqlx::Error) -> Failure {
    Failure::Refused(format!("the URL {url} cannot be used: {error}"))
}

fn password(database: &Database) -> Result<Option<String>, Failure> {
    database.password.as_ref().map(read).transpose()
}

/// Statements, which hold no values, are logged for those who ask for `sqlx::query=trace`.
fn quiet<O: ConnectOptions>(options: O) -> O {
    options.log_statements(LevelFilter::Trace).log_slow_statements(LevelFilter::Off, Duration::MAX)
}

fn read(password: &Password) -> Result<String, Failure> {
    password.read().map_err(|error| Failure::NoSecret(error.to_string()))
}

fn sqlite_options(url: &Url) -> Result<SqliteConnectOptions, Failure> {
    let path = file(url);
    if !path.exists() {
        return Err(Failure::NotMigrated(format!("the file {} does not exist", path.display())));
    }
    Ok(SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(5)))
}

fn file(url: &Url) -> PathBuf {
    let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy();
    Path::new(path.as_ref()).to_owned()
}

/// Returns the file that the URL names and that does not exist, with the parameter that names it.
fn missing_file(url: &Url) -> Option<String> {
    let paths = url.query_pairs().filter(|(_, value)| value.starts_with('/'));
    let mut files = paths.map(|(key, value)| {
        let path = Path::new(&*value);
        // PostgreSQL's `host` is the folder of the socket.
        let file = match &*key {
            "host" => path.join(format!(".s.PGSQL.{}", url.port().unwrap_or(5432))),
            _ => path.to_owned(),
        };
        (key, file)
    });
    let missing = files.find(|(_, file)| !file.exists());
    missing.map(|(key, file)| format!("{} does not exist (`{key}` in `database`)", file.display()))
}

fn named(url: &Url, keys: &[&str]) -> bool {
    url.query_pairs().any(|(key, _)| keys.contains(&key.as_ref()))
}

/// The host without the brackets in which an IPv6 address stands in a URL (RFC 3986 §3.2.2): neither a resolver nor TLS
/// takes them.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Neither a socket nor loopback, so that what is said passes a network. `host` is the one that is dialled, which a
/// parameter of the URL can name too.
fn is_remote(host: &str) -> bool {
    let host = percent_encoding::percent_decode_str(host).decode_utf8_lossy();
    let loopback = IpAddr::from_str(&host).is_ok_and(|address| address.is_loopback());
    !(host.is_empty() || host.eq_ignore_ascii_case("localhost") || host.starts_with('/') || loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_one_address_however_a_url_says_it() {
        let of = |url: &str| address(&url.parse().unwrap());
        assert_eq!(of("mysql://a@localhost/x"), of("mysql://b@127.0.0.1:3306/y?ssl-mode=disabled"));
        assert_eq!(of("postgres://a@[::1]/x"), of("postgresql://localhost:5432/y"));
        assert_eq!(of("mysql://a@DB.example.org/x"), of("mariadb://db.example.org:3306/y"));
        for other in
            ["mysql://a@localhost:3307/x", "mysql://a@db2.example.org/x", "mysql://a@localhost/x?socket=/run/a"]
        {
            assert_ne!(of("mysql://a@localhost/x"), of(other));
        }
        assert_ne!(of("postgres://a@localhost/x?host=/run/a"), of("postgres://a@localhost/x?host=/run/b"));
        assert_ne!(of("sqlite:/a/b"), of("sqlite:/a/c"));
    }
}
