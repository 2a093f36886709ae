//! No password, no body and, where they are to be hashed, no address comes into a log: over a run with everything that
//! goes wrong in it, at the level trace. Besides, [`crate::support::binary`] looks for secrets in all that any test
//! captures of the program.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mailqueue::mail::Columns;
use rustix::process::Signal;

use crate::support::binary::{Running, output};
use crate::support::catcher::{Catcher, Step};
use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, mail, row};
use crate::support::secrets::{self, BODY, PASSWORD, leak};
use crate::support::session::Session;

/// In the local part of every recipient.
const RECIPIENT: &str = "empfaengerin-4711";

#[test]
fn a_leak_is_seen_as_it_is_and_in_base64_wherever_it_begins() {
    use base64::Engine;
    let encode = |text: String| base64::prelude::BASE64_STANDARD.encode(text);
    for before in ["", "\0u\0", "\0mailqueue\0", "x", "xy"] {
        let line = format!("one line\nC: AUTH PLAIN {}\nanother", encode(format!("{before}{PASSWORD}")));
        let (secret, shown) = leak(&line, &[BODY, PASSWORD]).unwrap_or_else(|| panic!("not seen behind {before:?}"));
        assert!(secret == PASSWORD && shown.starts_with("C: AUTH"), "{shown}");
        assert!(leak(&format!("{before}{BODY} and more"), &[BODY]).is_some());
    }
    assert_eq!(leak("C: AUTH PLAIN (hidden)", &[BODY, PASSWORD]), None);
    let caught = std::panic::catch_unwind(|| secrets::assert_kept("a test", "", &format!("password={PASSWORD}")));
    assert!(caught.is_err(), "what captures output fails then");
    assert!(std::panic::catch_unwind(|| secrets::assert_kept("`show`", BODY, "")).is_ok());
}

/// Everything that was logged by the daemon and by commands.
struct Logs {
    house: House,
    text: String,
}

impl Logs {
    async fn of(&mut self, arguments: &[&str]) {
        let mut command = self.house.installation.command();
        command.args(["--log-level", "trace"]).args(arguments);
        let output = output(command).await;
        self.text += &String::from_utf8_lossy(&output.stderr);
    }

    async fn end(&mut self, daemon: Running) {
        daemon.signal(Signal::TERM);
        let (_, lines) = daemon.wait().await;
        self.text += &lines.join("\n");
    }

    fn daemon(&self) -> Running {
        self.house.installation.start(&["--log-level", "trace", "run"])
    }
}

fn rows() -> Vec<Columns> {
    let to = |name: &str| format!("{RECIPIENT}.{name}@example.org");
    let from = "From: a@partei.example.at\r\n";
    let bcc = |addresses: &str| format!("{from}Bcc: {addresses}\r\n");
    vec![
        mail(&to("good"), "x"),
        mail(&to("refused"), "x"),
        mail(&to("busy"), "x"),
        mail(&format!("\"{RECIPIENT} quoted\"@example.org"), "x"),
        mail(&format!("{}, {RECIPIENT}..dots@example.org", to("beside")), "x"),
        row("", "x", BODY, &bcc(&format!("{}, {}", to("refused.bcc"), to("good.bcc")))),
        row(&to("header"), "x", BODY, &format!("{from}X-Long: {}\r\n", "x".repeat(2_000))),
        row(&to("parts"), "x", BODY, &format!("{from}Content-Type: multipart/mixed; boundary=missing\r\n")),
        // Valid base64 of half a mail, and none at all.
        Columns { mbody: Some(b"U3RyZW5nLXZlcnRyYXVsaWNoLTQ3MTE*".to_vec()), ..mail(&to("cut"), "x") },
        Columns { mto: Some(b"?".to_vec()), ..mail("", "x") },
    ]
}

/// A smarthost that repeats whatever it is told, and takes the password from the moment on that `open` is set.
async fn smarthost(open: Arc<AtomicBool>) -> Catcher {
    Catcher::with_script(move |step| match step {
        Step::Ehlo => Some("250-mx\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250 AUTH PLAIN".to_owned()),
        Step::Auth if open.load(Ordering::SeqCst) => Some("235 2.7.0 welcome".to_owned()),
        Step::Auth => Some(format!("535 5.7.8 wrong password: {PASSWORD}")),
        Step::Rcpt { recipient } if recipient.contains("refused") => {
            Some(format!("550 5.1.1 <{recipient}>: no such user, was it {recipient}?"))
        }
        Step::Rcpt { recipient } if recipient.contains("busy") => Some(format!("450 4.2.1 <{recipient}> is busy")),
        _ => None,
    })
    .await
}

/// Everything that was logged over a run in which much goes wrong.
async fn logs_of_a_run(database: TestDatabase, addresses: &str) -> String {
    let open = Arc::new(AtomicBool::new(false));
    let catcher = smarthost(open.clone()).await;
    let login = "username = \"mailqueue\"\npassword_file = \"{dir}/smarthost\"";
    let house = House::build(database, catcher.port(), "", login).await;
    let folder = house.installation.path().to_owned();
    let secret = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).expect("write");
        std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o600)).expect("chmod");
    };
    secret("smarthost", PASSWORD);
    secret("database", PASSWORD);
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    let mut text = text.replace("addresses = \"full\"", &format!("addresses = \"{addresses}\""));
    let account = account(&house.database).await;
    if let Some(url) = &account {
        let with_file = format!("{url}\"\npassword_file = \"{}", folder.join("database").display());
        text = text.replace(house.database.url.as_str(), &with_file);
    }
    std::fs::write(&file, text).expect("configuration");
    for columns in rows() {
        house.newsletter.insert(&columns).await.expect("INSERT");
        house.admidio.insert(&columns).await.expect("INSERT");
    }
    let mut logs = Logs { house, text: String::new() };

    let daemon = logs.daemon();
    daemon.wait_for_line("relay down").await;
    logs.of(&["status"]).await;
    open.store(true, Ordering::SeqCst);
    // Five of ten rows are mails of which somebody gets one.
    catcher.wait_for(10).await;
    daemon.wait_for_line("\"failed\"").await;
    daemon.signal(Signal::HUP);
    daemon.wait_for_line("configuration read again").await;
    for arguments in [
        &["check"][..],
        &["check", "--json"],
        &["status", "--json"],
        &["status", "--checkmk"],
        &["list"],
        &["list", "--to", "@example.org"],
        &["show", "newsletter/2"],
        &["show", "newsletter/9", "--json"],
        &["trace", "newsletter/1"],
        &["trace", "--to", &format!("{RECIPIENT}.good@example.org")],
        &["retry", "--state", "failed"],
        &["hold", "--reason", "refused"],
        &["release", "--state", "held"],
        &["delete", "--yes", "newsletter/2"],
        &["pause", "newsletter", "relay"],
        &["resume", "newsletter", "relay"],
        &["render", "--all", "--out", "rendered"],
        &["migrate"],
        &["enqueue", "--queue=admidio", "--from=a@partei.example.at", &format!("--to={RECIPIENT}@example.org")],
        &["show", "newsletter/999"],
        &["once"],
    ] {
        logs.of(arguments).await;
    }
    logs.end(daemon).await;

    // A wrong password of the database, for the daemon and for a command.
    if account.is_some() {
        secret("database", &format!("{PASSWORD}-wrong"));
        for arguments in [&["list"][..], &["check"], &["status"], &["once"]] {
            logs.of(arguments).await;
        }
    }
    logs.text
}

/// The URL of a user with [`PASSWORD`], which is not in it; none for a file.
async fn account(database: &TestDatabase) -> Option<url::Url> {
    let user = format!("leak_{:08x}", rand::random::<u32>());
    let mut session = Session::on(&database.url).await;
    let sql = match session {
        Session::MariaDb(_) => [
            format!("CREATE USER '{user}'@'%' IDENTIFIED BY '{PASSWORD}'"),
            format!("GRANT ALL ON *.* TO '{user}'@'%'"),
        ],
        Session::Postgres(_) => [
            format!("CREATE USER {user} SUPERUSER PASSWORD '{PASSWORD}'"),
            format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}"),
        ],
        Session::Sqlite(_) => return None,
    };
    for sql in sql {
        session.run(&sql).await.expect("an account");
    }
    let mut url = database.url.clone();
    url.set_username(&user).expect("a server's URL");
    url.set_password(None).expect("a server's URL");
    Some(url)
}

async fn nothing_leaks(database: TestDatabase) {
    let logs = logs_of_a_run(database, "hash").await;
    // The dialogue is there, without what stood in it.
    for line in [
        "RCPT TO:<",
        "AUTH PLAIN (hidden)",
        "(the reply repeats the password)",
        "550 5.1.1 <",
        "(content and final dot)",
    ] {
        assert!(logs.contains(line), "no `{line}` in\n{logs}");
    }
    let found = leak(&logs, &[PASSWORD, BODY]);
    assert_eq!(found, None);
    let address = logs.lines().find(|line| line.to_lowercase().contains(RECIPIENT));
    assert_eq!(address, None);
}

mod mariadb {
    #[tokio::test]
    async fn no_secret_and_no_address_comes_into_a_log() {
        super::nothing_leaks(crate::support::database::mariadb().await).await;
    }
}

mod postgres {
    #[tokio::test]
    async fn no_secret_and_no_address_comes_into_a_log() {
        super::nothing_leaks(crate::support::database::postgres().await).await;
    }
}

mod sqlite {
    #[tokio::test]
    async fn no_secret_and_no_address_comes_into_a_log() {
        super::nothing_leaks(crate::support::database::sqlite()).await;
    }
}

#[tokio::test]
async fn with_full_addresses_the_same_run_shows_them_so_that_their_absence_means_something() {
    let logs = logs_of_a_run(database::sqlite(), "full").await;
    for address in ["good", "refused", "busy"].map(|name| format!("<{RECIPIENT}.{name}@example.org>")) {
        assert!(logs.contains(&address), "{address} in\n{logs}");
    }
    assert_eq!(leak(&logs, &[PASSWORD, BODY]), None);
}
