//! Logging in: the password file, and that no log shows what is in it.

use mailqueue::outcome::{Cause, Scope, Stage};
use mailqueue::relay::{Auth, Credential, Password, Relay, Settings};

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
    let login = support::login(Auth::Auto, Credential::Secret(Password::File(file.to_owned())));
    Settings { login: Some(login), ..support::settings(port) }
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
    settings.login = Some(support::login(Auth::Auto, Credential::Secret(Password::Value("geheim".into()))));
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
    settings.login = Some(support::login(Auth::Auto, Credential::Secret(Password::Value("geheim".into()))));
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

/// Returns what `probe` says of a smarthost that plays this script.
async fn refused(script: &str, login: mailqueue::relay::Login) -> String {
    let (server, served) = server::serve(script::parse(script, Mode::Off).unwrap(), Mode::Off).await;
    let settings = Settings { login: Some(login), ..support::settings(server.port()) };
    support::listen();
    let trouble = Relay::new(settings).unwrap().probe().await.unwrap_err();
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
    assert!(trouble.is_login(), "{trouble}");
    let all = format!("{trouble}\n{}", support::heard());
    for hidden in ["geheim", "Z2VoZWlt", "ya29.tok", "eWEyOS50b2"] {
        assert!(!all.contains(hidden), "{hidden} is in\n{all}");
    }
    trouble.to_string()
}

#[tokio::test]
async fn a_rejected_mechanism_is_named_and_the_password_is_not_blamed() {
    let secret = Credential::Secret(Password::Value("geheim".into()));
    let script = "connection\ngreet AUTH PLAIN|SIZE\nC: AUTH PLAIN\nS: 504 5.5.4 not here geheim\ngone";
    let said = refused(script, support::login(Auth::Auto, secret.clone())).await;
    assert!(said.contains("AUTH PLAIN is rejected") && said.contains("relay.auth"), "{said}");
    assert!(!said.contains("password_file"), "{said}");
    let script = "connection\ngreet AUTH XOAUTH2 CRAM-MD5|SIZE\ngone";
    let said = refused(script, support::login(Auth::Auto, secret.clone())).await;
    assert!(said.contains("offers XOAUTH2, CRAM-MD5") && said.contains("relay.token_command"), "{said}");
    let said = refused("connection\ngreet AUTH PLAIN|SIZE\ngone", support::login(Auth::Login, secret)).await;
    assert!(said.contains("offers PLAIN to log in, and not LOGIN"), "{said}");
}

/// In a log the reply would stand as it is, because no code and no text can be told apart in it.
#[tokio::test]
async fn an_answer_that_is_no_reply_and_repeats_the_secret_is_not_shown() {
    for answer in ["geheim\\r\\n", "AHVzZXIAZ2VoZWlt\\r\\n", "535-no\\r\\n500 geheim\\r\\n"] {
        let script = format!("connection\ngreet AUTH PLAIN|SIZE\nC: AUTH PLAIN\nS! {answer}\ngone");
        let said =
            refused(&script, support::login(Auth::Auto, Credential::Secret(Password::Value("geheim".into())))).await;
        assert!(said.contains("no SMTP reply"), "{said}");
    }
}

#[tokio::test]
async fn the_reason_why_a_token_is_refused_is_shown_and_the_token_is_not() {
    // {"status":"invalid_token","scope":"mail"}, and the token itself.
    let reason = "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NvcGUiOiJtYWlsIn0=";
    for (challenge, shown) in [(reason, true), ("eWEyOS50b2s=", false)] {
        for (mechanism, answer) in [("OAUTHBEARER", "AQ=="), ("XOAUTH2", "")] {
            let script = format!(
                "connection\ngreet AUTH {mechanism}|SIZE\nC: AUTH {mechanism}\nS: 334 {challenge}\nC= {answer}\n\
                 S: 535 5.7.8 no\ngone"
            );
            let command = ["/bin/echo", "ya29.tok"].map(str::to_owned).to_vec();
            let said = refused(&script, support::login(Auth::Auto, Credential::TokenCommand(command))).await;
            assert_eq!(said.contains("invalid_token"), shown, "{said}");
            assert!(said.contains(mechanism) && said.contains("relay.token_command"), "{said}");
        }
    }
}

#[tokio::test]
async fn oauthbearer_goes_first_and_names_user_host_and_port() {
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = port.local_addr().unwrap().port();
    let response = format!("n,a=us=3Der=2C,\u{1}host=127.0.0.1\u{1}port={port}\u{1}auth=Bearer ya29.tok\u{1}\u{1}");
    let response = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, response);
    let script =
        format!("connection\ngreet AUTH XOAUTH2 OAUTHBEARER|SIZE\nC= AUTH OAUTHBEARER {response}\nS: 235 ok\nbye");
    let (server, served) = server::serve(script::parse(&script, Mode::Off).unwrap(), Mode::Off).await;
    let command = ["/bin/echo", "ya29.tok"].map(str::to_owned).to_vec();
    let mut login = support::login(Auth::Xoauth2, Credential::TokenCommand(command));
    login.username = "us=er,".into();
    // The port that the response names is not the one that the smarthost has here.
    let settings = Settings { login: Some(login), ..support::settings(port) };
    Relay::at_addresses(settings, vec![server]).unwrap().probe().await.unwrap();
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_command_that_fails_is_the_relays_trouble() {
    let login = support::login(Auth::Auto, Credential::TokenCommand(vec!["/no/such/program".into()]));
    let said = refused("connection\ngreet AUTH XOAUTH2|SIZE\ngone", login).await;
    assert!(said.contains("/no/such/program cannot be started"), "{said}");
}
