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
    use lettre::transport::smtp::AsyncSmtpTransportBuilder;
    use lettre::transport::smtp::authentication::Credentials;
    use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
    use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor, address::Envelope};

    use crate::support::postfix;

    type Transport = AsyncSmtpTransport<Tokio1Executor>;

    #[tokio::test]
    async fn takes_mail_over_starttls_with_a_password() {
        takes_mail(with_password(postfix::port()).tls(Tls::Required(trust())), "starttls.example").await;
    }

    #[tokio::test]
    async fn takes_mail_over_implicit_tls_with_a_password() {
        takes_mail(with_password(postfix::implicit_tls_port()).tls(Tls::Wrapper(trust())), "implicit.example").await;
    }

    #[tokio::test]
    async fn takes_mail_in_the_clear_on_a_port_for_that() {
        takes_mail(to_port(postfix::plain_port()), "plain.example").await;
    }

    #[tokio::test]
    async fn answers_the_recipients_that_it_does_not_take() {
        let smarthost = to_port(postfix::plain_port()).build();
        for (recipient, reply) in [("refused@x.example", "5.1.1"), ("deferred@x.example", "4.2.1")] {
            let error = smarthost.send_raw(&envelope(&[recipient]), b"\r\n").await.unwrap_err();
            assert!(error.to_string().contains(reply), "{error}");
        }
    }

    async fn takes_mail(smarthost: AsyncSmtpTransportBuilder, domain: &str) {
        let recipients = [format!("a@{domain}"), format!("b@{domain}")];
        let recipients = recipients.each_ref().map(String::as_str);
        smarthost.build().send_raw(&envelope(&recipients), b"Subject: Hi\r\n\r\n.dot").await.unwrap();

        let delivered = postfix::delivered_to(domain, 2).await;
        assert_eq!(delivered.iter().map(|mail| mail.recipient.as_str()).collect::<Vec<_>>(), recipients);
        for mail in delivered {
            assert_eq!(mail.sender, "from@example.org");
            let content = String::from_utf8(mail.content).unwrap();
            assert!(content.starts_with("Received: "), "{content}");
            assert!(content.ends_with("\nSubject: Hi\n\n.dot\n"), "{content}");
        }
    }

    fn to_port(port: u16) -> AsyncSmtpTransportBuilder {
        Transport::builder_dangerous("127.0.0.1").port(port)
    }

    fn with_password(port: u16) -> AsyncSmtpTransportBuilder {
        let password = std::fs::read_to_string(postfix::password_file()).unwrap();
        to_port(port).credentials(Credentials::new(postfix::user(), password))
    }

    fn trust() -> TlsParameters {
        let ca = Certificate::from_pem(&std::fs::read(postfix::ca_file()).unwrap()).unwrap();
        TlsParameters::builder("127.0.0.1".to_owned()).add_root_certificate(ca).build().unwrap()
    }

    fn envelope(recipients: &[&str]) -> Envelope {
        let recipients = recipients.iter().map(|recipient| recipient.parse().unwrap()).collect();
        Envelope::new(Some("from@example.org".parse().unwrap()), recipients).unwrap()
    }
}

mod catcher {
    use std::net::TcpStream as Plain;

    use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor, address::Envelope};

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
        for (recipient, reply) in [("no@x.example", "5.1.1"), ("late@x.example", "5.6.0")] {
            let error = send(&catcher, &[recipient]).await.unwrap_err();
            assert!(error.to_string().contains(reply), "{error}");
        }
        send(&catcher, &["a@x.example", "b@x.example"]).await.unwrap();

        let [mail] = catcher.wait_for(1).await.try_into().unwrap();
        assert_eq!((mail.connection, mail.sender.as_str()), (3, "from@example.org"));
        assert_eq!(mail.recipients, ["a@x.example", "b@x.example"]);
        assert_eq!(mail.content, b"Subject: Hi\r\n\r\n.dot\r\n");
        assert_eq!(catcher.connections(), 3);
    }

    #[tokio::test]
    async fn can_be_away_and_come_back() {
        let mut catcher = Catcher::start().await;
        catcher.stop().await;
        assert!(Plain::connect(("127.0.0.1", catcher.port())).is_err());
        catcher.start_again().await;
        send(&catcher, &["a@x.example"]).await.unwrap();
        assert_eq!(catcher.received().len(), 1);
    }

    async fn send(catcher: &Catcher, recipients: &[&str]) -> Result<(), lettre::transport::smtp::Error> {
        let recipients = recipients.iter().map(|recipient| recipient.parse().unwrap()).collect();
        let envelope = Envelope::new(Some("from@example.org".parse().unwrap()), recipients).unwrap();
        let transport =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("127.0.0.1").port(catcher.port()).build();
        transport.send_raw(&envelope, b"Subject: Hi\r\n\r\n.dot").await.map(drop)
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
