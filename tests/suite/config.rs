//! The configuration: what it fills in, and what it says about a file that it cannot use.

mod hosts;

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
    // One of the two proves who we are.
    let without = |key: &str| {
        let lines: Vec<_> = uncommented.iter().filter(|line| !line.starts_with(key)).copied().collect();
        lines.join("\n")
    };
    let by_token = parse(&without("password_file = \"${CREDENTIALS_DIRECTORY}/smarthost")).relay.login.unwrap();
    assert!(
        matches!(by_token.credential, relay::Credential::TokenCommand(command) if command == ["/usr/local/bin/token"])
    );
    let text = without("token_command");
    let config = parse(&text);
    assert_eq!((config.relay.pipelining, by_token.auth), (relay::Pipelining::Auto, relay::Auth::Auto));
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
        assert!(matches!(
            config.relay.login.map(|login| login.credential),
            Some(relay::Credential::Secret(relay::Password::File(_)))
        ));
    }
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
