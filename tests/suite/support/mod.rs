//! What tests stand on: databases, smarthosts, and the program itself.
//!
//! Servers are started by `tests/run`, which names them to the tests in environment variables; [`variable`] reads them.
//! A test that needs a server stands in a module that is named after it, `mariadb`, `mysql`, `postgres`, `pgbouncer`,
//! `postfix`, `exim`, `dovecot`, `chasquid` or `opensmtpd`, one that gives a name several addresses in `nss_wrapper`,
//! one that needs a cluster in `galera`, one that needs Prometheus' own tool in `promtool`, and one that needs Debian's
//! tools or a machine with systemd in `debian`, because `tests/run --embedded-only` chooses by these names
//! (`.config/nextest.toml`). Started without its server, such a test fails and says what to do; it never passes by
//! doing nothing.
//!
//! | variable | holds |
//! | --- | --- |
//! | `MAILQUEUE_TEST_MARIADB` | URL of an account that may do everything; [`database::mariadb`] |
//! | `MAILQUEUE_TEST_MARIADB_ODD` | likewise, with odd settings for each session; [`database::odd_mariadb`] |
//! | `MAILQUEUE_TEST_MYSQL` | likewise; [`database::mysql`] |
//! | `MAILQUEUE_TEST_POSTGRES` | likewise; [`database::postgres`] |
//! | `MAILQUEUE_TEST_PGBOUNCER_…` | the same by way of PgBouncer; [`database::pgbouncer`] |
//! | `MAILQUEUE_TEST_POSTFIX_…`, `MAILQUEUE_TEST_EXIM_…` | [`smarthost::Smarthost`], its methods in their order: |
//! | `MAILQUEUE_TEST_DOVECOT_…`, `MAILQUEUE_TEST_CHASQUID_…`, `MAILQUEUE_TEST_OPENSMTPD_…` | likewise |
//! | `…_PORT` | submission: STARTTLS, then AUTH, are required |
//! | `…_TLS_PORT` | the same with implicit TLS (Postfix only) |
//! | `…_PLAIN_PORT` | neither TLS nor AUTH (Postfix only) |
//! | `…_LIMITED_PORT` | likewise, and three connections at the same time (Postfix only) |
//! | `MAILQUEUE_TEST_EXIM_LIMITED_…` | an Exim that takes three connections at the same time |
//! | `…_CA` | PEM file of the authority behind the certificate |
//! | `…_USER`, `…_PASSWORD_FILE` | the login |
//! | `…_LOG` | its log |
//! | `…_MAILDIR` | what was accepted, a file for each recipient |
//! | `MAILQUEUE_TEST_NSS_WRAPPER` | the library that takes the addresses of names from a file |
//! | `MAILQUEUE_TEST_PROMTOOL` | Prometheus' `promtool`, which judges metrics and alert rules |
//! | `MAILQUEUE_TEST_LINTIAN`, `MAILQUEUE_TEST_MANDOC` | Debian's `lintian`, which judges packages, and `mandoc` |
//! | `MAILQUEUE_TEST_GALERA` | a script that starts a cluster for one test; [`cluster`] |
//! | `MAILQUEUE_TEST_MARIADB_CLIENT`, `MAILQUEUE_TEST_POSTGRES_CLIENT` | their command-line clients, for `benches/throughput` |
//! | `MAILQUEUE_TEST_SINK`, `MAILQUEUE_TEST_SOURCE` | Postfix's `smtp-sink` and `smtp-source`; as root the sink runs as `nobody` |

pub mod binary;
pub mod catcher;
pub mod cluster;
pub mod database;
pub mod front;
pub mod house;
pub mod machine;
pub mod mails;
pub mod proxy;
pub mod second;
pub mod secrets;
pub mod session;
pub mod smarthost;
pub mod undeletable;

use std::time::Duration;

/// Whether the long versions are wanted: `MAILQUEUE_TEST_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("MAILQUEUE_TEST_LONG").is_some()
}

/// Returns the seed of everything random in a test, and prints it, so that a failure can be had again:
/// `MAILQUEUE_TEST_SEED`, else a new one in the long versions, else a fixed one, so that the result of a run depends on the
/// code.
pub fn seed() -> u64 {
    let seed = std::env::var("MAILQUEUE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| if long() { rand::random() } else { 5321 });
    println!("MAILQUEUE_TEST_SEED={seed}");
    seed
}

/// How long a test waits for something that should happen at once. Generous, because machines can be busy; a test that
/// passes never waits this long.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The value of a variable that `tests/run` sets.
pub fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: this test needs a server, run it with `tests/run`"))
}

/// Waits until `look` finds something, and panics with `what` if that does not come to pass.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("did not happen in time: {what}"))
}

/// Waits for something that should happen at once, and panics with `what` if it does not.
pub async fn within_deadline<T>(what: &str, happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, happens).await.unwrap_or_else(|_| panic!("never: {what}"))
}
