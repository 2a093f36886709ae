//! Logging in: the password file, and that no log shows what is in it.

use mailqueue::outcome::{Cause, Scope, Stage};
use mailqueue::relay::{Login, Password, Relay, Settings};

use crate::script::{self, Mode};
use crate::{server, support};

const DIALOG: &str = "
connection
greet AUTH PLAIN|SIZE
C= AUTH PLAIN AHVzZXIAb25l
S: 235 ok
bye
connection
greet AUTH PLAIN|SIZE
C= AUTH PLAIN AHVzZXIAdHdv
S: 535 5.7.8 no
gone
";

fn with_password_file(port: u16, file: &std::path::Path) -> Settings {
    let password = Password::File(file.to_owned());
    Settings { login: Some(Login { username: "user".into(), password }), ..support::settings(port) }
}

#[tokio::test]
async fn the_password_file_is_read_at_each_connect_and_its_line_end_is_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "one\r\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (server, served) = server::serve(script::parse(DIALOG, Mode::Off).unwrap(), Mode::Off).await;
    let relay = Relay::new(with_password_file(server.port(), &file)).unwrap();

    let announced = relay.probe().await.unwrap();
    assert_eq!(announced.auth, ["PLAIN"]);
    assert_eq!(relay.announced(), Some(announced));

    std::fs::write(&file, "two\n").unwrap();
    let trouble = relay.probe().await.unwrap_err();
    assert_eq!(support::show(&trouble), "auth relay 535 5.7.8 no");
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_password_file_is_the_relays_trouble_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let script = script::parse("connection\ngreet AUTH PLAIN|SIZE\ngone", Mode::Off).unwrap();
    let (server, served) = server::serve(script, Mode::Off).await;
    let settings = with_password_file(server.port(), &folder.path().join("nowhere"));
    let trouble = Relay::new(settings).unwrap().probe().await.unwrap_err();
    assert_eq!((trouble.stage, trouble.scope), (Stage::Auth, Scope::Relay));
    assert!(matches!(&trouble.cause, Cause::Local(_, why) if why.contains("nowhere")), "{trouble}");
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
}

#[test]
fn debug_shows_no_password() {
    let mut settings = support::settings(25);
    settings.login = Some(Login { username: "user".into(), password: Password::Value("geheim".into()) });
    let relay = Relay::new(settings.clone()).unwrap();
    for shown in [format!("{settings:?}"), format!("{relay:?}"), format!("{:?}", relay.worker())] {
        assert!(!shown.contains("geheim"), "{shown}");
    }
}

#[tokio::test]
async fn the_log_shows_the_dialogue_without_password_and_content() {
    let text = "mail one a@x.test\nconnection\ngreet AUTH PLAIN|SIZE\nC: AUTH PLAIN\nS: 235 ok\nwhole one\nbye";
    let script = script::parse(text, Mode::Off).unwrap();
    let mail = support::mail(&script.mails[0].content(), &[support::address("a@x.test")]);
    let (server, served) = server::serve(script, Mode::Off).await;
    let mut settings = support::settings(server.port());
    settings.login = Some(Login { username: "user".into(), password: Password::Value("geheim".into()) });
    support::listen();
    let mut worker = Relay::new(settings).unwrap().worker();
    let attempt = worker.send(&mail, &mail.envelope.recipients, &mut support::Notes::default()).await;
    worker.quit().await;
    assert_eq!(support::lines(&attempt), ["a@x.test: accepted 250 2.0.0 queued as one"]);
    assert_eq!(served.await.unwrap(), Vec::<String>::new());

    let log = support::heard();
    for shown in ["mailqueue::relay", "C: RCPT TO:<a@x.test>", "S: 354 go ahead", "S: 250 2.0.0 queued as one"] {
        assert!(log.contains(shown), "{shown} is missing in\n{log}");
    }
    for hidden in ["geheim", "AHVzZXIAZ2VoZWlt", "Subject", "last"] {
        assert!(!log.contains(hidden), "{hidden} is in\n{log}");
    }
}
