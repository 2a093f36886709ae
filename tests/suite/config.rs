//! The configuration: what it fills in, and what it says about a file that it cannot use.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use mailqueue::config::Config;
use mailqueue::dispatch::Rate;
use mailqueue::observe::logs::{Addresses, Format};
use mailqueue::queue;
use mailqueue::relay::{self, Tls};
use mailqueue::retry::OnUnknown;

const EXAMPLE: &str = include_str!("../../config/mailqueue.toml");

/// Only what has no default.
const SHORTEST: &str = r#"
[[queue]]
name = "newsletter"
database = "mysql://mailqueue@db.example.org/ppoe_api_data"
table = "mail_queue"
[[queue]]
name = "admidio"
database = "mysql://mailqueue@localhost/ppoe_mitglieder"
table = "adm_mail_queue"
[relay]
host = "globalpirates.net"
"#;

fn parse(text: &str) -> Config {
    Config::parse(Path::new("test.toml"), text).unwrap_or_else(|invalid| panic!("{invalid}"))
}

fn problems(text: &str) -> String {
    Config::parse(Path::new("test.toml"), text).expect_err("this configuration cannot be used").to_string()
}

fn mailqueue() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailqueue"));
    command.env_remove("MAILQUEUE_CONFIG").env_remove("CREDENTIALS_DIRECTORY").env_remove("MAILQUEUE_TEST_UNSET");
    command.env("MAILQUEUE_TEST_EMPTY", "");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

#[test]
fn each_unusable_file_is_explained_with_line_key_and_remedy() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/config");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("tests/suite/config can be read")
        .map(|entry| entry.expect("tests/suite/config can be read").path())
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 21, "only {} files were found", files.len());
    for file in files {
        let name = file.file_name().expect("it has a name");
        let expected =
            std::fs::read_to_string(file.with_extension("txt")).expect("each file has its expected messages");
        let output =
            mailqueue().current_dir(&folder).args(["list", "--config"]).arg(name).output().expect("the binary runs");
        assert_eq!(stderr(&output), expected, "for {}", name.display());
        assert_eq!(output.status.code(), Some(2), "for {}", name.display());
        assert_eq!(output.stdout, b"", "for {}", name.display());
    }
}

#[test]
fn a_file_that_is_not_there_is_named_with_a_remedy() {
    let output =
        mailqueue().args(["--config", "/nonexistent/mailqueue.toml", "list"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "/nonexistent/mailqueue.toml: there is no such file; \
         name it with --config FILE or $MAILQUEUE_CONFIG, or create it\n"
    );
}

#[test]
fn the_option_stands_before_or_behind_the_command_and_wins_over_the_environment() {
    let named = |configure: &dyn Fn(&mut Command)| {
        let mut command = mailqueue();
        configure(&mut command);
        stderr(&command.output().expect("the binary runs")).split(':').next().unwrap_or_default().to_owned()
    };
    assert_eq!(named(&|c| _ = c.args(["--config", "/nonexistent/a", "list"])), "/nonexistent/a");
    assert_eq!(named(&|c| _ = c.args(["list", "--config", "/nonexistent/b"])), "/nonexistent/b");
    assert_eq!(named(&|c| _ = c.arg("list").env("MAILQUEUE_CONFIG", "/nonexistent/c")), "/nonexistent/c");
    let both = named(&|c| _ = c.args(["list", "--config", "/nonexistent/d"]).env("MAILQUEUE_CONFIG", "/nonexistent/c"));
    assert_eq!(both, "/nonexistent/d");
}

#[test]
fn every_default_that_the_example_shows_is_the_one_that_the_program_has() {
    let (shown, mut filled_in) = (parse(EXAMPLE), parse(SHORTEST));
    // What has no default, or is shown with another value so that a reader sees what it is for.
    for (shown, filled_in) in shown.queues.iter().zip(&mut filled_in.queues) {
        filled_in.settings.database.password.clone_from(&shown.settings.database.password);
    }
    assert_eq!(filled_in.queues[0].weight, shown.queues[0].weight);
    filled_in.queues[1].weight = 4;
    assert_eq!(format!("{shown:#?}"), format!("{filled_in:#?}"));
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let config = parse(SHORTEST);
    let seconds = Duration::from_secs;
    assert_eq!(config.poll_interval, seconds(60));
    assert_eq!(config.state_dir, Path::new("/var/lib/mailqueue"));
    assert_eq!(config.lease, seconds(15 * 60));
    assert_eq!(config.ledger_keep, seconds(30 * 86_400));
    assert_eq!(config.max_in_flight_bytes, 64_000_000);
    assert_eq!((config.relay.port, config.relay.tls), (587, Tls::Starttls));
    assert_eq!((config.relay.messages_per_connection, config.relay.recipients_per_message), (100, 16));
    assert_eq!((config.connections, config.rate), (4, None));
    assert!(config.relay.login.is_none() && config.relay.ca_file.is_none() && !config.relay.helo.is_empty());
    assert_eq!(config.message.max_size, 40_000_000);
    assert_eq!((config.retry.initial, config.retry.maximum), (seconds(60), seconds(4 * 3_600)));
    assert_eq!((config.retry.expire, config.retry.on_unknown), (seconds(5 * 86_400), OnUnknown::Resend));
    assert_eq!((config.log.format, config.log.addresses), (Format::Json, Addresses::Domain));
    assert_eq!(config.log.level, "info");
    assert!(config.monitor.is_none() && config.notify.is_none());
}

#[test]
fn the_example_shows_every_key_and_what_it_comments_out_can_be_used() {
    let uncommented: Vec<&str> = EXAMPLE
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())).unwrap_or(line)
        })
        .collect();
    let text = uncommented.join("\n");
    let config = parse(&text);
    assert_eq!(config.relay.ca_file.as_deref(), Some(Path::new("/etc/ssl/certs/our-ca.pem")));
    assert_eq!(config.relay.login.as_ref().map(|login| login.username.as_str()), Some("mailqueue"));
    assert_eq!(config.relay.helo, "mail.example.org");
    assert_eq!(config.rate, Some(Rate { mails: 600, per: Duration::from_secs(60) }));
    assert_eq!(config.message.envelope_from.map(|address| address.to_string()).as_deref(), Some("bounces@example.org"));
    assert_eq!(config.message.default_from.map(|address| address.to_string()).as_deref(), Some("noreply@example.org"));
    assert_eq!(config.monitor.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:9925"));
    assert_eq!(config.notify.map(|address| address.to_string()).as_deref(), Some("technik@example.org"));

    // The program names all keys of a section when it meets one that is like none of them.
    for section in ["", "[[queue]]", "[relay]", "[message]", "[retry]", "[log]", "[monitor]", "[notify]"] {
        let message = problems(&format!("{section}\nzzzzzz = 1\n"));
        let (_, known) = message.split_once("the keys here are ").unwrap_or_else(|| panic!("{message}"));
        for key in known.split(", ") {
            let shown = uncommented.iter().any(|line| {
                line.starts_with(&format!("{key} = ")) || *line == format!("[{key}]") || *line == format!("[[{key}]]")
            });
            assert!(shown, "config/mailqueue.toml does not show {section} {key}");
        }
    }
}

#[test]
fn the_answer_to_the_final_dot_may_take_two_thirds_of_the_lease_and_ten_minutes_at_most() {
    let with = |lease: &str| parse(&format!("lease = \"{lease}\"\n{SHORTEST}")).relay.timeouts.final_dot;
    assert_eq!(with("15m"), Duration::from_secs(600));
    assert_eq!(with("1h"), Duration::from_secs(600));
    assert_eq!(with("9m"), Duration::from_secs(360));
    assert_eq!(with("3s"), Duration::from_secs(2));
}

#[test]
fn a_url_is_taken_apart_before_variables_are_put_in() {
    let text =
        SHORTEST.replace("mysql://mailqueue@db.example.org/ppoe_api_data", "mysql://user:${PATH}@db.example.org/x");
    let config = parse(&text);
    let database = &config.queues[0].settings.database;
    assert_eq!(database.url.as_str(), "mysql://user@db.example.org/x");
    assert!(matches!(&database.password, Some(queue::Password::Value(value)) if value == "${PATH}"));
    assert!(!format!("{config:?}").contains("PATH"), "no password in Debug");

    let text = SHORTEST.replace("db.example.org/ppoe", "${CARGO_PKG_NAME}.example.org/${CARGO_PKG_NAME}_ppoe");
    assert_eq!(
        parse(&text).queues[0].settings.database.url.as_str(),
        "mysql://mailqueue@mailqueue.example.org/mailqueue_ppoe_api_data"
    );
}

#[test]
fn a_literal_password_in_a_url_may_be_percent_encoded() {
    let text = SHORTEST.replace("mailqueue@db", "mailqueue:p%40ss%2Fw@db");
    let config = parse(&text);
    assert!(matches!(
        &config.queues[0].settings.database.password,
        Some(queue::Password::Value(value)) if value == "p@ss/w"
    ));
}

#[test]
fn a_password_may_cross_the_loopback_in_the_clear() {
    for host in ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "::1"] {
        let config = parse(&format!(
            "{}\ntls = \"none\"\nusername = \"a\"\npassword_file = \"/b\"\n",
            SHORTEST.replace("globalpirates.net", host)
        ));
        assert!(matches!(config.relay.login.map(|login| login.password), Some(relay::Password::File(_))));
    }
}

#[test]
fn international_domains_of_configured_addresses_and_of_helo_become_punycode() {
    let config = parse(&format!(
        "{SHORTEST}\nhelo = \"größe.example.at\"\n[message]\ndefault_from = \"noreply@müller.at\"\n\
         envelope_from = \"bounces@MÜLLER.at\"\n[notify]\nto = \"technik@müller.at\"\n"
    ));
    assert_eq!(config.relay.helo, "xn--gre-6ka8i.example.at");
    let text = |address: Option<mailqueue::mail::Address>| address.map(|address| address.to_string());
    assert_eq!(text(config.message.default_from).as_deref(), Some("noreply@xn--mller-kva.at"));
    assert_eq!(text(config.message.envelope_from).as_deref(), Some("bounces@xn--mller-kva.at"));
    assert_eq!(text(config.notify).as_deref(), Some("technik@xn--mller-kva.at"));
}

#[test]
fn helo_is_a_domain_or_an_address_literal() {
    let with = |helo: &str| {
        let text = format!("{SHORTEST}\nhelo = \"{helo}\"\n");
        Config::parse(Path::new("test.toml"), &text).map(|config| config.relay.helo).map_err(|error| error.to_string())
    };
    for good in ["mail.example.org", "mail", "a-1.b--c.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[ipv6:::1]"] {
        assert_eq!(with(good).as_deref(), Ok(good));
    }
    for (bad, remedy) in [
        ("192.0.2.1", "write an address in brackets: [192.0.2.1]"),
        ("::1", "write an IPv6 address as [IPv6:::1]"),
        ("[2001:db8::1]", "write an IPv6 address as [IPv6:2001:db8::1]"),
        ("[IPv6:192.0.2.1]", "write this host's full name"),
        ("[mail.example.org]", "write this host's full name"),
        ("[192.0.2]", "write this host's full name"),
        ("192.0.2.300", "write this host's full name"),
        ("mail_1.example.org", "write this host's full name"),
        ("-mail.example.org", "write this host's full name"),
        ("mail..example.org", "write this host's full name"),
        ("mail.example.org.", "write this host's full name"),
        ("mail.example.org:25", "write this host's full name"),
        ("", "write this host's full name"),
        (&format!("{}.example.org", "a".repeat(64)), "write this host's full name"),
    ] {
        let error = with(bad).expect_err(bad);
        let expected =
            format!("test.toml:13: relay.helo: \"{bad}\" is neither a domain nor an address literal; {remedy}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn the_smarthost_is_a_name_or_an_address_and_its_port_stands_elsewhere() {
    let with = |host: &str| {
        let text = SHORTEST.replace("globalpirates.net", host);
        Config::parse(Path::new("test.toml"), &text).map(|config| config.relay.host).map_err(|error| error.to_string())
    };
    for (written, dialled) in [
        ("mail.example.org", "mail.example.org"),
        ("mail.example.org.", "mail.example.org."),
        ("smtp_relay", "smtp_relay"),
        ("größe.example.at", "xn--gre-6ka8i.example.at"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
    ] {
        assert_eq!(with(written).as_deref(), Ok(dialled));
    }
    for (bad, host, port) in [
        ("mail.example.org:25", "mail.example.org", 25),
        ("[mail.example.org]:587", "mail.example.org", 587),
        ("192.0.2.1:2525", "192.0.2.1", 2525),
        ("[::1]:25", "::1", 25),
    ] {
        let expected = format!(
            "test.toml:11: relay.host: \"{bad}\" has a port in it; \
             write host = \"{host}\" and on a line of its own port = {port}"
        );
        assert_eq!(with(bad), Err(expected));
    }
    for bad in
        ["", "a b", "smtp://mail.example.org:25", "mail.example.org:smtp", "mail..org", "[mail.example.org]", "a\\nb"]
    {
        assert!(with(bad).expect_err(bad).contains("is no host's name; "), "{bad}");
    }
}

/// Runs `list` with this database; `PORT` in its URL is that of a server on `host` that offers no TLS. Returns whether
/// the program sent what comes after the question for TLS.
fn goes_on_without_tls(host: &str, url: &str, variable: &str) -> bool {
    let listener = TcpListener::bind((host, 0)).expect("a port");
    let port = listener.local_addr().expect("address").port().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        // SSLRequest of PostgreSQL, and its answer for "no".
        stream.read_exact(&mut [0; 8]).expect("a request");
        stream.write_all(b"N").expect("answer");
        stream.read(&mut [0; 8]).is_ok_and(|bytes| bytes > 0)
    });
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("mailqueue.toml");
    let url = url.replace("PORT", &port);
    std::fs::write(&file, SHORTEST.replace("mysql://mailqueue@db.example.org/ppoe_api_data", &url)).expect("write");
    let mut command = mailqueue();
    command.env("MAILQUEUE_TEST_HOST", variable).args(["list", "--queue", "newsletter", "--config"]).arg(&file);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(69), "{url}: {}", stderr(&output));
    server.join().expect("the server was reached")
}

#[test]
fn a_database_is_reached_by_its_ipv6_address_and_over_verified_tls_where_that_is_not_loopback() {
    for (host, url, variable, expected) in [
        ("::1", "postgres://mailqueue@[::1]:PORT/news", "", true),
        ("::1", "postgres://mailqueue@${MAILQUEUE_TEST_HOST}:PORT/news", "::1", true),
        ("::1", "postgres://mailqueue@${MAILQUEUE_TEST_HOST}:PORT/news", "[::1]", true),
        // Linux takes the unspecified address for this host, but it is none of loopback.
        ("::1", "postgres://mailqueue@[::]:PORT/news", "", false),
        ("127.0.0.1", "postgres://mailqueue@127.0.0.1:PORT/news", "", true),
        ("127.0.0.1", "postgres://mailqueue@localhost:PORT/news?host=0.0.0.0", "", false),
    ] {
        assert_eq!(goes_on_without_tls(host, url, variable), expected, "{url}");
    }
}

#[test]
fn mysql_too_is_dialled_at_an_ipv6_address() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("mailqueue.toml");
    let listener = TcpListener::bind("[::1]:0").expect("a port");
    let url = format!("mysql://mailqueue@[::1]:{}/news", listener.local_addr().expect("address").port());
    std::fs::write(&file, SHORTEST.replace("mysql://mailqueue@db.example.org/ppoe_api_data", &url)).expect("write");
    let server = std::thread::spawn(move || listener.accept().map(drop).expect("a connection"));
    let output = mailqueue().args(["list", "--queue", "newsletter", "--config"]).arg(&file).output().expect("it runs");
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    server.join().expect("the server was reached");
}

#[test]
fn units_of_size_and_rate_are_understood() {
    let size = |text: &str| parse(&format!("max_in_flight_bytes = \"{text}\"\n{SHORTEST}")).max_in_flight_bytes;
    assert_eq!([size("1B"), size("2kB"), size("3 MB"), size("1GB")], [1, 2_000, 3_000_000, 1_000_000_000]);
    assert_eq!([size("1KiB"), size("1MiB")], [1_024, 1_048_576]);
    let rate = |text: &str| parse(&format!("{SHORTEST}\nrate = \"{text}\"\n")).rate;
    assert_eq!(rate("10/s"), Some(Rate { mails: 10, per: Duration::from_secs(1) }));
    assert_eq!(rate("5000 / h"), Some(Rate { mails: 5_000, per: Duration::from_secs(3_600) }));
}

#[test]
fn no_message_quotes_a_password() {
    for text in [
        "[[queue]]\ndatabase = \"mysql://u:hunter2@localhost\"\n",
        "[[queue]]\ndatabase = \"hunter2://u:hunter2@localhost\"\n".replace("hunter2:", "x:").as_str(),
        "[[queue]]\ndatabase = \"mysql://u:hunter2@loc alhost/x\"\n",
        "[relay]\nusername = 1\npassword = \"hunter2\"\n",
        "[relay]\npassword_file = [\"hunter2\"]\n",
    ] {
        let message = problems(text);
        assert!(!message.contains("hunter2"), "{message}");
    }
}
