//! Plays every file of `tests/dialogs` with and without PIPELINING, and with commands ahead of their mail.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mailqueue::mail::{Address, Capabilities, Mail};
use mailqueue::relay::{Auth, Credential, Offer, Password, Pipelining, Relay, Settings, Tls};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::certificates;
use crate::script::{self, Mode, Script};
use crate::server;
use crate::support::{self, Notes};

#[tokio::test]
async fn every_dialog_ends_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogs");
    // All at once, they would wait for each other.
    let places = Arc::new(Semaphore::new(16));
    let mut runs = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        for mode in Mode::ALL {
            if let Some(script) = script::parse(&text, mode) {
                let (name, places) = (name.clone(), places.clone());
                runs.push(tokio::spawn(async move {
                    let _place = places.acquire().await.unwrap();
                    (name, mode, run(script, mode).await)
                }));
            }
        }
    }
    assert!(runs.len() > 100, "only {} runs: the dialogs are missing", runs.len());
    let mut failed = Vec::new();
    for run in runs {
        let (name, mode, problems) = run.await.unwrap();
        failed.extend(problems.iter().map(|problem| format!("{name} ({mode:?}): {problem}")));
    }
    failed.sort();
    assert!(failed.is_empty(), "{} problems:\n{}", failed.len(), failed.join("\n"));
}

/// What is not as the script says.
async fn run(script: Script, mode: Mode) -> Vec<String> {
    let (server, served) = server::serve(script.clone(), mode).await;
    let mut settings = support::settings(server.port());
    let (mut stop, mut pause) = (None, None);
    for (key, value) in &script.settings {
        match key.as_str() {
            "stop" => stop = value.parse().ok(),
            "pause" => pause = Some(script::duration(value)),
            _ => set(&mut settings, key, value),
        }
    }
    let mails = script.mails.iter().map(mail).collect::<Vec<_>>();
    let relay = Relay::new(settings).unwrap();
    let mut worker = relay.worker();
    let mut notes = Notes::new(stop, pause);
    let mut found = Vec::new();
    for (index, (mail, recipients)) in mails.iter().enumerate() {
        let offer = Offer { mail, recipients };
        let next = mails.get(index + 1).filter(|_| mode == Mode::Ahead);
        let next = next.map(|(mail, recipients)| Offer { mail, recipients });
        let sending = worker.send_ahead(offer, next, &mut notes);
        // Less than the timeouts that a script does not set.
        let Ok(attempt) = timeout(Duration::from_secs(20), sending).await else {
            return vec![format!("mail {} does not come to an end", script.mails[index].name)];
        };
        found.extend(support::lines(&attempt).into_iter().map(|line| format!("{} {line}", script.mails[index].name)));
    }
    worker.quit().await;
    drop(worker);
    if script.expected.iter().any(|line| line.starts_with("witness:")) {
        found.extend(notes.seen.iter().map(|line| format!("witness: {line}")));
    }
    let mut problems = served.await.unwrap();
    if found != script.expected {
        problems.push(format!(
            "expected\n    {}\n  found\n    {}",
            script.expected.join("\n    "),
            found.join("\n    ")
        ));
    }
    problems
}

fn mail(letter: &script::Letter) -> (Mail, Vec<Address>) {
    let recipients = letter.recipients.iter().map(|text| support::address(text)).collect::<Vec<_>>();
    let mut mail = support::mail(&letter.content(), &recipients);
    mail.eight_bit = letter.eight_bit;
    mail.smtputf8 = letter.smtputf8;
    mail.narrowed = letter.narrowed;
    if letter.made_for_none {
        mail.made_for = Capabilities { eight_bit: false, smtputf8: false };
    }
    (mail, recipients)
}

fn set(settings: &mut Settings, key: &str, value: &str) {
    let limits = &mut settings.timeouts;
    let limit = match key {
        "messages" => return settings.messages_per_connection = value.parse().unwrap(),
        "recipients" => return settings.recipients_per_message = value.parse().unwrap(),
        "pipelining" => {
            return settings.pipelining = match value {
                "auto" => Pipelining::Auto,
                "commands" => Pipelining::Commands,
                "off" => Pipelining::Off,
                _ => panic!("no such pipelining: {value}"),
            };
        }
        "host" => return settings.host = value.to_owned(),
        "login" => {
            let secret = Credential::Secret(Password::Value(value.to_owned()));
            return settings.login = Some(support::login(Auth::Auto, secret));
        }
        "token" => {
            let command = ["/bin/echo", value].map(str::to_owned).to_vec();
            return settings.login = Some(support::login(Auth::Auto, Credential::TokenCommand(command)));
        }
        "way" => {
            let login = settings.login.as_mut().expect("a login before its way");
            return login.auth = match value {
                "plain" => Auth::Plain,
                "login" => Auth::Login,
                "xoauth2" => Auth::Xoauth2,
                _ => panic!("no such way to log in: {value}"),
            };
        }
        "tls" => {
            settings.ca_file = Some(certificates::authority_file());
            return settings.tls = match value {
                "starttls" => Tls::Starttls,
                "implicit" => Tls::Implicit,
                "opportunistic" => Tls::Opportunistic,
                _ => panic!("no such way: {value}"),
            };
        }
        "connect" => &mut limits.connect,
        "tls_timeout" => &mut limits.tls,
        "auth" => &mut limits.auth,
        "greeting" => &mut limits.greeting,
        "ehlo" => &mut limits.ehlo,
        "mail" => &mut limits.mail,
        "rcpt" => &mut limits.rcpt,
        "data" => &mut limits.data,
        "body" => &mut limits.body,
        "final_dot" => &mut limits.final_dot,
        _ => panic!("no such setting: {key}"),
    };
    *limit = script::duration(value);
}
