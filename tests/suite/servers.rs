//! The servers and helpers that the other tests stand on are what they are taken for.

mod mariadb {
    use sqlx::{Connection, MySqlConnection};

    use crate::support::database;

    #[tokio::test]
    async fn a_test_has_a_database_of_its_own_with_durable_commits() {
        let database = database::mariadb().await;
        let mut connection = MySqlConnection::connect(database.url.as_str()).await.unwrap();
        let settings = "SELECT DATABASE(), @@innodb_flush_log_at_trx_commit";
        let (name, flush): (String, u64) = sqlx::query_as(settings).fetch_one(&mut connection).await.unwrap();
        assert_eq!((database.url.path(), flush), (format!("/{name}").as_str(), 1));
    }
}

mod postgres {
    use sqlx::{Connection, PgConnection};

    use crate::support::database;

    #[tokio::test]
    async fn a_test_has_a_database_of_its_own_with_durable_commits() {
        let database = database::postgres().await;
        let mut connection = PgConnection::connect(database.url.as_str()).await.unwrap();
        let settings =
            "SELECT current_database()::text, current_setting('fsync'), current_setting('synchronous_commit')";
        let (name, fsync, commit): (String, String, String) =
            sqlx::query_as(settings).fetch_one(&mut connection).await.unwrap();
        assert_eq!((database.url.path(), fsync.as_str(), commit.as_str()), (format!("/{name}").as_str(), "on", "on"));
    }
}

mod sqlite {
    use sqlx::{Connection, SqliteConnection};

    use crate::support::database;

    #[tokio::test]
    async fn a_test_has_a_file_of_its_own() {
        let database = database::sqlite();
        let url = format!("{}?mode=rwc", database.url);
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query("CREATE TABLE made_here (id INTEGER)").execute(&mut connection).await.unwrap();
        assert!(std::fs::exists(database.url.path()).unwrap());
    }
}

mod postfix {
    use lettre::transport::smtp::client::Tls;

    use super::submission::*;
    use crate::support::eventually;
    use crate::support::smarthost::POSTFIX;

    #[tokio::test]
    async fn takes_mail_over_starttls_with_a_password() {
        let transport = with_password(POSTFIX, POSTFIX.port()).tls(Tls::Required(trust(POSTFIX)));
        takes_mail(POSTFIX, transport).await;
    }

    #[tokio::test]
    async fn takes_mail_over_implicit_tls_with_a_password() {
        let transport = with_password(POSTFIX, POSTFIX.implicit_tls_port()).tls(Tls::Wrapper(trust(POSTFIX)));
        takes_mail(POSTFIX, transport).await;
    }

    #[tokio::test]
    async fn takes_mail_in_the_clear_on_a_port_for_that() {
        takes_mail(POSTFIX, to_port(POSTFIX.plain_port())).await;
    }

    #[tokio::test]
    async fn answers_the_recipients_that_it_does_not_take() {
        let transport = to_port(POSTFIX.plain_port()).build();
        for (recipient, reply) in [("refused@x.example", "5.1.1"), ("deferred@x.example", "4.2.1")] {
            assert_eq!(refusal(&transport, recipient, "Hi").await, reply);
        }
        // Its log is written by a process of its own.
        eventually("a line about it in the log", || POSTFIX.log().contains("to=<refused@x.example>").then_some(()))
            .await;
    }
}

mod exim {
    use lettre::transport::smtp::client::Tls;

    use super::submission::*;
    use crate::support::smarthost::EXIM;

    #[tokio::test]
    async fn takes_mail_over_starttls_with_a_password() {
        let transport = with_password(EXIM, EXIM.port()).tls(Tls::Required(trust(EXIM)));
        takes_mail(EXIM, transport).await;
    }

    #[tokio::test]
    async fn answers_the_recipients_and_the_mails_that_it_does_not_take() {
        let transport = with_password(EXIM, EXIM.port()).tls(Tls::Required(trust(EXIM))).build();
        for (recipient, subject, reply) in [
            ("refused@x.example", "Hi", "5.1.1"),
            ("deferred@x.example", "Hi", "4.2.1"),
            ("a@x.example", "refuse this", "5.6.0"),
            ("a@x.example", "defer this", "4.3.0"),
        ] {
            assert_eq!(refusal(&transport, recipient, subject).await, reply);
        }
    }
}

/// Sends with somebody else's client.
mod submission {
    use lettre::transport::smtp::AsyncSmtpTransportBuilder;
    use lettre::transport::smtp::authentication::Credentials;
    use lettre::transport::smtp::client::{Certificate, TlsParameters};
    use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor, address::Envelope};

    use crate::support::smarthost::Smarthost;

    pub type Transport = AsyncSmtpTransport<Tokio1Executor>;

    pub fn to_port(port: u16) -> AsyncSmtpTransportBuilder {
        Transport::builder_dangerous("127.0.0.1").port(port)
    }

    pub fn with_password(smarthost: Smarthost, port: u16) -> AsyncSmtpTransportBuilder {
        let password = std::fs::read_to_string(smarthost.password_file()).unwrap();
        to_port(port).credentials(Credentials::new(smarthost.user(), password))
    }

    pub fn trust(smarthost: Smarthost) -> TlsParameters {
        let ca = Certificate::from_pem(&std::fs::read(smarthost.ca_file()).unwrap()).unwrap();
        TlsParameters::builder("127.0.0.1".to_owned()).add_root_certificate(ca).build().unwrap()
    }

    pub async fn send(
        transport: &Transport,
        recipients: &[&str],
        subject: &str,
    ) -> Result<(), lettre::transport::smtp::Error> {
        let recipients = recipients.iter().map(|recipient| recipient.parse().unwrap()).collect();
        let envelope = Envelope::new(Some("from@example.org".parse().unwrap()), recipients).unwrap();
        transport.send_raw(&envelope, format!("Subject: {subject}\r\n\r\n.dot").as_bytes()).await.map(drop)
    }

    /// The enhanced status code with which a mail is refused.
    pub async fn refusal(transport: &Transport, recipient: &str, subject: &str) -> String {
        let error = send(transport, &[recipient], subject).await.unwrap_err().to_string();
        let code = error.split_whitespace().find(|word| word.chars().filter(|c| *c == '.').count() == 2);
        code.unwrap_or(&error).to_owned()
    }

    pub async fn takes_mail(smarthost: Smarthost, transport: AsyncSmtpTransportBuilder) {
        let domain = format!("t{:016x}.example", rand::random::<u64>());
        let recipients = [format!("a@{domain}"), format!("b@{domain}")];
        let recipients = recipients.each_ref().map(String::as_str);
        send(&transport.build(), &recipients, "Hi").await.unwrap();

        let delivered = smarthost.delivered_to(&domain, 2).await;
        assert_eq!(delivered.iter().map(|mail| mail.recipient.as_str()).collect::<Vec<_>>(), recipients);
        for mail in delivered {
            assert_eq!(mail.sender, "from@example.org");
            assert!(mail.content.ends_with("\nSubject: Hi\n\n.dot\n"), "{}", mail.content);
        }
    }
}

mod catcher {
    use std::net::TcpStream;

    use super::submission::*;
    use crate::support::catcher::{Catcher, Step};

    #[tokio::test]
    async fn records_what_it_accepts_and_answers_as_scripted() {
        let catcher = Catcher::with_script(|step| match step {
            Step::Mail { sender: "from@example.org" } => Some("250-2.1.0 Fine\r\n250 2.1.0 sender".to_owned()),
            Step::Rcpt { recipient: "no@x.example" } => Some("550 5.1.1 Unknown".to_owned()),
            Step::FinalDot { mail } if mail.recipients == ["late@x.example"] => Some("554 5.6.0 Not this".to_owned()),
            _ => None,
        })
        .await;
        let transport = to_port(catcher.port()).build();
        assert_eq!(refusal(&transport, "no@x.example", "Hi").await, "5.1.1");
        assert_eq!(refusal(&transport, "late@x.example", "Hi").await, "5.6.0");
        send(&transport, &["a@x.example", "b@x.example"], "Hi").await.unwrap();

        let [mail] = catcher.wait_for(1).await.try_into().unwrap();
        assert_eq!((mail.connection, mail.sender.as_str()), (catcher.connections(), "from@example.org"));
        assert_eq!(mail.recipients, ["a@x.example", "b@x.example"]);
        assert_eq!(mail.content, b"Subject: Hi\r\n\r\n.dot\r\n");
    }

    #[tokio::test]
    async fn can_be_away_and_come_back() {
        let mut catcher = Catcher::start().await;
        catcher.stop().await;
        assert!(TcpStream::connect(("127.0.0.1", catcher.port())).is_err());
        catcher.start_again().await;
        send(&to_port(catcher.port()).build(), &["a@x.example"], "Hi").await.unwrap();
        assert_eq!(catcher.received().len(), 1);
    }
}

mod process {
    use rustix::process::Signal;
    use tokio::process::Command;

    use crate::support::binary::{Installation, Running};

    #[tokio::test]
    async fn lines_and_the_end_of_a_running_program_are_seen() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap 'echo stopping >&2; exit 3' TERM; echo ready; while :; do sleep 0.1; done"]);
        let running = Running::spawn(shell);
        assert_eq!(running.wait_for_line("read").await, "ready");
        running.signal(Signal::TERM);
        let (status, lines) = running.wait().await;
        assert_eq!((status.code(), lines), (Some(3), vec!["ready".to_owned(), "stopping".to_owned()]));
    }

    #[tokio::test]
    async fn the_program_starts_with_a_configuration_of_its_own() {
        let installation = Installation::new("state_dir = \"{dir}/state\"\n");
        let text = std::fs::read_to_string(installation.configuration()).unwrap();
        assert_eq!(text, format!("state_dir = \"{}/state\"\n", installation.path().display()));
        assert!(installation.run(&["--help"]).await.status.success());
        let (status, _) = installation.start(&["--help"]).wait().await;
        assert!(status.success());
    }
}
