//! Which certificates are trusted, and what is said where TLS does not come about.

use mailqueue::relay::{Relay, Settings, Tls};

use crate::script::{self, Mode};
use crate::{certificates, server, support};

/// Probes a smarthost that plays this script.
async fn probe(script: &str, change: impl FnOnce(&mut Settings)) -> Result<(), String> {
    let script = script::parse(script, Mode::Off).unwrap();
    let (server, served) = server::serve(script, Mode::Off).await;
    let mut settings = support::settings(server.port());
    settings.tls = Tls::Implicit;
    settings.ca_file = Some(certificates::authority_file());
    change(&mut settings);
    let probed = Relay::new(settings).unwrap().probe().await;
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
    probed.map(|_| ()).map_err(|trouble| trouble.to_string())
}

#[tokio::test]
async fn a_certificate_that_stands_in_ca_file_itself_is_trusted_for_its_name_and_its_time() {
    let works = |certificate: &str| format!("connection\ntls {certificate}\ngreet\nbye");
    let fails = |certificate: &str| format!("connection\ntls {certificate}\n");
    let own = |name: &'static str| move |settings: &mut Settings| settings.ca_file = Some(certificates::file(name));
    assert_eq!(probe(&works("self-signed"), own("self-signed")).await, Ok(()));
    assert_eq!(probe(&works(""), own("ca")).await, Ok(()));

    let other = probe(&fails("self-signed-other"), own("self-signed-other")).await.unwrap_err();
    assert!(other.contains("is for another name"), "{other}");
    let expired = probe(&fails("self-signed-expired"), own("self-signed-expired")).await.unwrap_err();
    assert!(expired.contains("has expired"), "{expired}");
    let stranger = probe(&fails("self-signed"), own("ca")).await.unwrap_err();
    assert!(stranger.contains("put that certificate into relay.ca_file"), "{stranger}");
}

#[tokio::test]
async fn a_handshake_that_ends_early_names_the_versions_that_we_speak() {
    let starttls = |end: &str| format!("connection\ngreet STARTTLS\nC: STARTTLS\nS: 220 go\n{end}");
    let wanted = |settings: &mut Settings| settings.tls = Tls::Starttls;
    // The last is the alert protocol_version, in the form of TLS 1.1.
    for end in ["read 5\nclose", "read 5\nS! \\x15\\x03\\x02\\x00\\x02\\x02\\x46\nclose"] {
        let said = probe(&starttls(end), wanted).await.unwrap_err();
        assert!(said.contains("TLS 1.2 and 1.3"), "{said}");
    }
}

#[tokio::test]
async fn a_login_that_is_wanted_after_opportunistic_tls_failed_names_tls() {
    let text = "mail one a@x.test\nconnection\ngreet STARTTLS|AUTH PLAIN\nC: STARTTLS\nS: 220 go\nclose\n\
                connection\ngreet STARTTLS|AUTH PLAIN\nC: MAIL\nS: 530 5.7.0 log in first\ngone";
    let (server, served) = server::serve(script::parse(text, Mode::Off).unwrap(), Mode::Off).await;
    let mut settings = support::settings(server.port());
    settings.tls = Tls::Opportunistic;
    let secret = mailqueue::relay::Password::Value("geheim".into());
    settings.login = Some(support::login(Default::default(), mailqueue::relay::Credential::Secret(secret)));
    let mail = support::mail("x\r\n", &[support::address("a@x.test")]);
    let mut worker = Relay::new(settings).unwrap().worker();
    let attempt = worker.send(&mail, &mail.envelope.recipients, &mut support::Notes::default()).await;
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
    let trouble = attempt.relay.unwrap();
    assert!(trouble.is_login());
    let said = trouble.to_string();
    assert!(said.starts_with("530 5.7.0 log in first") && said.contains("relay.tls"), "{said}");
}
