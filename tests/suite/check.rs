//! `mailqueue check`: what it warns of before it hurts.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use mailqueue::queue::{Level, clock_ahead};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::binary::Installation;
use crate::support::catcher::Catcher;
use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, said};

/// Exit status, and each finding as `level part: probe: text`.
async fn check(installation: &Installation) -> (Option<i32>, Vec<String>) {
    let output = installation.run(&["check", "--json"]).await;
    let lines = std::str::from_utf8(&output.stdout).expect("UTF-8").lines();
    let word =
        |object: &Value, key: &str| object[key].as_str().unwrap_or_else(|| panic!("{key} in {object}")).to_owned();
    let findings = lines.map(|line| {
        let object: Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("an object a line: {}", said(&output)));
        let [level, part, probe, text] = ["level", "part", "probe", "text"].map(|key| word(&object, key));
        format!("{level} {part}: {probe}: {text}")
    });
    (output.status.code(), findings.collect())
}

fn one<'a>(findings: &'a [String], what: &str) -> &'a str {
    let mut found = findings.iter().filter(|finding| finding.contains(what));
    match (found.next(), found.next()) {
        (Some(finding), None) => finding,
        _ => panic!("not exactly one `{what}` in {findings:#?}"),
    }
}

#[tokio::test]
async fn each_probe_is_an_object_a_line_and_the_exit_status_says_whether_one_failed() {
    let mut catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    assert_eq!(house.once().await, 0);
    let (status, findings) = check(&house.installation).await;
    assert_eq!(status, Some(0), "{findings:#?}");
    for probe in [
        "ok configuration: file: ",
        "ok state_dir: folder: ",
        "ok state_dir: ledger: can be read, 0 open",
        "ok queue newsletter: rights: ",
        "ok queue admidio: column sizes: ",
        "connected, without login",
        "ok relay: offers: ",
        "ok relay: pipelining: commands: the smarthost does not name itself",
    ] {
        one(&findings, probe);
    }
    let people = house.run(&["check"]).await;
    let people = String::from_utf8(people.stdout).expect("UTF-8");
    assert_eq!(people.lines().count(), findings.len());
    assert!(people.starts_with("ok       configuration: file: ") && !people.contains('\u{1b}'), "{people}");

    catcher.stop().await;
    let state = house.installation.path().join("state");
    // What it says of itself in its write-ahead log would do in place of the file.
    for rest in ["ledger.sqlite-wal", "ledger.sqlite-shm"] {
        let _ = std::fs::remove_file(state.join(rest));
    }
    std::fs::write(state.join("ledger.sqlite"), "no ledger at all, but some text\n".repeat(200)).expect("write");
    let (status, findings) = check(&house.installation).await;
    assert_eq!(status, Some(1));
    assert!(one(&findings, "state_dir: ledger").starts_with("failed "), "{findings:#?}");
    assert!(one(&findings, "relay: ").starts_with("failed "), "{findings:#?}");
}

/// Greets, understands EHLO and QUIT, over TLS from the first byte, with a certificate that ends in so many hours.
async fn tls_smarthost(host: &str, folder: &std::path::Path, hours: i64, greeting: String) -> u16 {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join("ca.pem"), params.self_signed(&key).expect("authority").pem()).expect("write");
    let issuer = Issuer::new(params, key);

    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(["localhost", "127.0.0.1", "::1"].map(str::to_owned)).expect("parameters");
    let at = |hours| std::time::SystemTime::from(Timestamp::now() + SignedDuration::from_hours(hours)).into();
    params.not_before = at(-1000);
    params.not_after = at(hours);
    let certificate = params.signed_by(&key, &issuer).expect("certificate").der().clone();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocols")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((host, 0)).await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let mut stream = BufReader::new(stream);
            let mut answer = format!("220 {greeting}\r\n");
            loop {
                let mut line = String::new();
                if stream.get_mut().write_all(answer.as_bytes()).await.is_err()
                    || !matches!(stream.read_line(&mut line).await, Ok(1..))
                {
                    break;
                }
                answer = if line.starts_with("QUIT") { "221 bye\r\n" } else { "250-here\r\n250 SIZE 0\r\n" }.to_owned();
            }
        }
    });
    port
}

/// What is found of a smarthost like that, with the certificate checked or not.
async fn of_smarthost(hours: i64, greeting: &str) -> (Option<i32>, Vec<String>) {
    let folder = tempfile::tempdir().expect("folder");
    let port = tls_smarthost("127.0.0.1", folder.path(), hours, greeting.to_owned()).await;
    let house = House::build(database::sqlite(), port, "", "").await;
    let file = house.installation.configuration();
    let tls = format!("tls = \"implicit\"\nca_file = \"{}/ca.pem\"", folder.path().display());
    let text = std::fs::read_to_string(&file).expect("configuration").replace("tls = \"none\"", &tls);
    std::fs::write(&file, text).expect("configuration");
    check(&house.installation).await
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_a_warning_and_one_that_has_ended_a_failure() {
    let (status, findings) = of_smarthost(100 * 24 + 5, "mx ESMTP").await;
    assert!(one(&findings, "certificate").starts_with("ok relay: certificate: good for 100 days, until "));
    assert_eq!(status, Some(0), "{findings:#?}");
    let (status, findings) = of_smarthost(5 * 24 + 5, "mx ESMTP").await;
    let warning = one(&findings, "certificate");
    assert!(warning.starts_with("warning relay: certificate: ends in 5 days, on "), "{warning}");
    assert!(warning.ends_with("it must be renewed at the smarthost, or no mail will go out"), "{warning}");
    assert_eq!(status, Some(0));
    let (status, findings) = of_smarthost(-5, "mx ESMTP").await;
    let failure = one(&findings, "certificate");
    assert!(failure.starts_with("failed relay: 127.0.0.1:") && failure.contains("has expired"), "{failure}");
    assert_eq!(status, Some(1));
}

#[tokio::test]
async fn a_smarthost_is_reached_by_its_ipv6_address_and_its_certificate_checked_for_that() {
    let folder = tempfile::tempdir().expect("folder");
    let port = tls_smarthost("::1", folder.path(), 2400, "mx ESMTP".to_owned()).await;
    let house = House::build(database::sqlite(), port, "", "").await;
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    let tls = format!("tls = \"implicit\"\nca_file = \"{}/ca.pem\"", folder.path().display());
    for host in ["::1", "[::1]"] {
        let text = text.replace("tls = \"none\"", &tls).replace("\"127.0.0.1\"", &format!("\"{host}\""));
        std::fs::write(&file, text).expect("configuration");
        let (status, findings) = check(&house.installation).await;
        assert_eq!(one(&findings, "connected"), format!("ok relay: [::1]:{port}: connected, without login"));
        assert_eq!(status, Some(0), "{findings:#?}");
    }
}

#[tokio::test]
async fn a_name_for_ehlo_without_a_dot_is_a_warning() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    let notify = "[notify]\nto = \"technik@example.org\"\n";
    for (helo, warned) in [("mail.example.org", false), ("localhost", true), ("[192.0.2.1]", false)] {
        let changed = text.replace("helo = \"test.example\"", &format!("helo = \"{helo}\"")) + notify;
        std::fs::write(&file, changed).expect("configuration");
        let (status, findings) = check(&house.installation).await;
        assert_eq!(status, Some(0), "{findings:#?}");
        let warning = findings.iter().find(|finding| finding.starts_with("warning configuration: helo: "));
        assert_eq!(warning.is_some(), warned, "{helo}: {findings:#?}");
        let warning = warning.map_or("", String::as_str);
        assert!(
            !warned || warning.contains("\"localhost\" has no dot") && warning.contains("set relay.helo"),
            "{warning}"
        );
        let sender = findings.iter().any(|finding| {
            finding.starts_with(&format!("warning configuration: notify: digests would come from mailqueue@{helo}, "))
        });
        assert_eq!(sender, helo != "mail.example.org", "{findings:#?}");
    }
}

#[tokio::test]
async fn a_smarthost_whose_greeting_tells_another_time_is_a_warning() {
    let greeting = |hours| {
        let at = Timestamp::now() + SignedDuration::from_hours(hours);
        format!("mx ESMTP Exim 4.96 {}", at.strftime("%a, %d %b %Y %H:%M:%S +0000"))
    };
    let (_, findings) = of_smarthost(2400, &greeting(0)).await;
    assert!(one(&findings, "relay: clock").starts_with("ok "), "{findings:#?}");
    let (status, findings) = of_smarthost(2400, &greeting(1)).await;
    let warning = one(&findings, "relay: clock");
    assert!(warning.starts_with("warning relay: clock: that of the smarthost is 3"), "{warning}");
    assert!(warning.contains(" s ahead of this host's") && warning.contains("NTP"), "{warning}");
    assert_eq!(status, Some(0));
    let (_, findings) = of_smarthost(2400, "mx ESMTP Postfix").await;
    assert!(!findings.iter().any(|finding| finding.contains("relay: clock")), "nobody told the time: {findings:#?}");
}

#[test]
fn clocks_may_differ_by_a_minute() {
    let level = |seconds| clock_ahead("the database", SignedDuration::from_secs(seconds)).0;
    assert_eq!([0, 60, -60].map(level), [Level::Ok; 3]);
    assert_eq!([61, -61, 100_000].map(level), [Level::Warning; 3]);
    let (_, text) = clock_ahead("the database", SignedDuration::from_secs(-90));
    assert!(text.starts_with("that of the database is 90 s behind this host's: "), "{text}");
}

async fn the_databases_clock_is_looked_at(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), "", "").await;
    let (_, findings) = check(&house.installation).await;
    let clock = one(&findings, "queue newsletter: clock: ");
    // A machine that is held up between question and answer may see a second or two.
    assert!(
        clock.starts_with("ok queue newsletter: clock: that of the database and this host's agree within "),
        "{clock}"
    );
}

mod mariadb {
    use super::*;

    #[tokio::test]
    async fn the_clock_is_looked_at() {
        the_databases_clock_is_looked_at(database::mariadb().await).await;
    }

    #[tokio::test]
    async fn a_packet_that_is_smaller_than_the_largest_mail_is_a_warning() {
        let catcher = Catcher::start().await;
        let sized = |max_size: &str| format!("[message]\nmax_size = \"{max_size}\"\n");
        for (max_size, level) in [("4MB", "ok"), ("2GB", "warning")] {
            let house = House::build(database::mariadb().await, catcher.port(), "", &sized(max_size)).await;
            let (status, findings) = check(&house.installation).await;
            let finding = one(&findings, "queue newsletter: max_allowed_packet: ");
            assert!(finding.starts_with(level), "{finding}");
            assert_eq!(status, Some(0), "{findings:#?}");
            if level == "warning" {
                let wanted = 2_000_000_000_u64.div_ceil(3) * 4;
                assert!(
                    finding.contains(&format!("a mail of message.max_size has {wanted} in the table")),
                    "{finding}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_column_that_cuts_mails_is_a_warning() {
        let catcher = Catcher::start().await;
        let house = House::build(database::mariadb().await, catcher.port(), "", "").await;
        let mut session = crate::support::session::Session::on(&house.database.url).await;
        session.run("ALTER TABLE mail_queue MODIFY mto VARCHAR(256)").await.expect("ALTER TABLE");
        let (_, findings) = check(&house.installation).await;
        let warning = one(&findings, "queue newsletter: column sizes");
        assert!(warning.starts_with("warning ") && warning.contains("mto holds 192 bytes of text"), "{warning}");
    }
}

mod postgres {
    use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

    use super::*;

    #[tokio::test]
    async fn the_clock_is_looked_at() {
        the_databases_clock_is_looked_at(database::postgres().await).await;
    }

    #[tokio::test]
    async fn an_encoding_that_cannot_hold_every_character_is_a_failure() {
        let catcher = Catcher::start().await;
        for (encoding, level) in [("LATIN1", "failed"), ("SQL_ASCII", "ok"), ("UTF8", "ok")] {
            let mut database = database::postgres().await;
            let mut connection = PgConnection::connect(database.url.as_str()).await.expect("connect");
            let name = format!("{}_{}", database.url.path().trim_start_matches('/'), encoding.to_lowercase());
            let sql = format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
            connection.execute(AssertSqlSafe(sql)).await.expect("CREATE DATABASE");
            database.url.set_path(&name);
            let house = House::build(database, catcher.port(), "", "").await;
            let (status, findings) = check(&house.installation).await;
            let finding = one(&findings, "queue newsletter: encoding: ");
            assert!(finding.starts_with(&format!("{level} queue newsletter: encoding: {encoding}")), "{finding}");
            assert_eq!(status, Some(i32::from(level == "failed")), "{findings:#?}");
        }
    }
}

#[tokio::test]
async fn a_queues_part_of_the_memory_below_4_mb_is_noted() {
    let catcher = Catcher::start().await;
    for (budget, noted) in [("7MB", true), ("8MB", false)] {
        let top = format!("max_in_flight_bytes = \"{budget}\"");
        let house = House::build(database::sqlite(), catcher.port(), &top, "").await;
        let (_, findings) = check(&house.installation).await;
        let memory: Vec<_> = findings.iter().filter(|finding| finding.contains("memory")).collect();
        assert_eq!(memory.len(), usize::from(noted), "{findings:#?}");
        if noted {
            assert!(memory[0].starts_with("warning configuration: memory: each of 2 queues has 3.5 MB"), "{memory:?}");
            assert!(memory[0].contains("raise it to 8 MB"), "{memory:?}");
        }
    }
}
