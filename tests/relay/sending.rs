//! What the worker's caller does: cancels, waits, sends something else than it announced.

use std::time::Duration;

use mailqueue::mail::{Address, Mail};
use mailqueue::outcome::{Reply, Trouble};
use mailqueue::relay::{Offer, Relay, TransactionHook, Worker};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::script::{self, Mode};
use crate::server;
use crate::support::{self, Notes};

struct Bench {
    worker: Worker,
    mails: Vec<Mail>,
    served: tokio::task::JoinHandle<Vec<String>>,
}

impl Bench {
    async fn new(text: &str) -> Self {
        let script = script::parse(text, Mode::Ahead).unwrap();
        let mails = script.mails.iter().map(|letter| {
            let recipients = letter.recipients.iter().map(|text| support::address(text)).collect::<Vec<_>>();
            support::mail(&letter.content(), &recipients)
        });
        let mails = mails.collect();
        let (server, served) = server::serve(script, Mode::Ahead).await;
        Self { worker: Relay::new(support::settings(server.port())).unwrap().worker(), mails, served }
    }

    fn offer(mail: &Mail) -> Offer<'_> {
        Offer { mail, recipients: &mail.envelope.recipients }
    }

    async fn send(&mut self, index: usize) -> Vec<String> {
        let mail = &self.mails[index];
        support::lines(&self.worker.send(mail, &mail.envelope.recipients, &mut Notes::default()).await)
    }

    async fn end(mut self) {
        self.worker.quit().await;
        drop(self.worker);
        assert_eq!(self.served.await.unwrap(), Vec::<String>::new());
    }
}

/// Never comes back from `before_final_dot`.
struct Forever(Option<oneshot::Sender<()>>);

impl TransactionHook for Forever {
    async fn before_final_dot(&mut self, _: &[Address]) -> Result<(), Trouble> {
        if let Some(reached) = self.0.take() {
            let _ = reached.send(());
        }
        std::future::pending().await
    }

    async fn after_final_dot(&mut self, _: Result<&Reply, &Trouble>) {}
}

#[tokio::test]
async fn a_cancelled_send_leaves_no_connection_behind() {
    let mut bench = Bench::new(
        "mail one a@x.test
        mail two b@x.test
        connection
        greet
        C: MAIL
        S: 250 ok
        C: RCPT
        S: 250 ok
        C: DATA
        S: 354 go ahead
        gone
        connection
        greet
        whole two
        bye",
    )
    .await;
    let (reached, at_the_dot) = oneshot::channel();
    let mut witness = Forever(Some(reached));
    tokio::select! {
        _ = bench.worker.send(&bench.mails[0], &bench.mails[0].envelope.recipients, &mut witness) => panic!("it ended"),
        reached = at_the_dot => reached.unwrap(),
    }
    assert_eq!(bench.send(1).await, ["b@x.test: accepted 250 2.0.0 queued as two"]);
    bench.end().await;
}

#[tokio::test]
async fn another_mail_than_the_one_whose_commands_went_ahead_is_sent_rightly() {
    let mut bench = Bench::new(
        "mail one a@x.test
        mail two b@x.test
        mail three c@x.test
        connection
        greet
        whole one
        C: MAIL
        S: 250 ok
        C: RCPT TO:<b@x.test>
        S: 250 ok
        C: DATA
        S: 354 go ahead
        gone
        connection
        greet
        whole three
        bye",
    )
    .await;
    let [one, two, _] = bench.mails.as_slice() else { panic!("three mails") };
    let attempt = bench.worker.send_ahead(Bench::offer(one), Some(Bench::offer(two)), &mut Notes::default()).await;
    assert_eq!(support::lines(&attempt), ["a@x.test: accepted 250 2.0.0 queued as one"]);
    assert_eq!(bench.send(2).await, ["c@x.test: accepted 250 2.0.0 queued as three"]);
    bench.end().await;
}

#[tokio::test]
async fn quitting_with_an_envelope_out_sends_nothing_more() {
    let mut bench = Bench::new(
        "mail one a@x.test
        mail two b@x.test
        connection
        greet
        whole one
        C: MAIL
        S: 250 ok
        C: RCPT TO:<b@x.test>
        S: 250 ok
        C: DATA
        S: 354 go ahead
        gone",
    )
    .await;
    let [one, two] = bench.mails.as_slice() else { panic!("two mails") };
    bench.worker.send_ahead(Bench::offer(one), Some(Bench::offer(two)), &mut Notes::default()).await;
    bench.end().await;
}

#[tokio::test]
async fn a_worker_that_is_ready_has_its_connection_and_replaces_one_that_was_closed() {
    let mut bench = Bench::new(
        "mail one a@x.test
        connection
        greet
        S: 421 4.4.2 idle
        close
        connection
        greet
        whole one
        bye",
    )
    .await;
    bench.worker.ready().await.unwrap();
    assert_eq!(bench.send(0).await, ["a@x.test: accepted 250 2.0.0 queued as one"]);
    bench.end().await;
}

#[tokio::test]
async fn a_mail_to_nobody_asks_nothing_of_the_smarthost() {
    let mut worker = Relay::new(support::settings(1)).unwrap().worker();
    let mail = support::mail("x\r\n", &[]);
    let attempt = worker.send(&mail, &[], &mut Notes::default()).await;
    assert_eq!((attempt.outcomes.len(), attempt.relay), (0, None));
}

#[tokio::test]
async fn a_smarthost_that_is_not_there_is_the_relays_trouble() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let relay = Relay::new(support::settings(port)).unwrap();
    let mail = support::mail("x\r\n", &[support::address("a@x.test")]);
    let attempt = relay.worker().send(&mail, &mail.envelope.recipients, &mut Notes::default()).await;
    assert_eq!(support::lines(&attempt), ["a@x.test: untried", "relay: connect relay closed"]);
    assert_eq!(support::show(&relay.probe().await.unwrap_err()), "connect relay closed");
    assert_eq!(relay.announced(), None);

    let mut nowhere = support::settings(25);
    nowhere.host = "no-such-host.invalid".into();
    nowhere.timeouts.connect = Duration::from_secs(5);
    let trouble = Relay::new(nowhere).unwrap().probe().await.unwrap_err();
    assert_eq!(support::show(&trouble), "connect relay local relay-unavailable");
    assert!(trouble.to_string().contains("no-such-host.invalid"), "{trouble}");
}

#[test]
fn a_ca_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("missing.pem", None), ("empty.pem", Some("")), ("odd.pem", Some("not a certificate"))] {
        let file = folder.path().join(name);
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let mut settings = support::settings(25);
        settings.tls = mailqueue::relay::Tls::Starttls;
        settings.ca_file = Some(file);
        let error = format!("{:#}", Relay::new(settings).unwrap_err());
        assert!(error.contains(name), "{error}");
    }
}

#[tokio::test]
async fn sending_can_be_spawned() {
    let mut worker = Relay::new(support::settings(1)).unwrap().worker();
    let mail = support::mail("x\r\n", &[]);
    let sending = tokio::spawn(async move { worker.send(&mail, &[], &mut Notes::default()).await });
    assert_eq!(sending.await.unwrap().outcomes.len(), 0);
}

/// The smarthost answers each command before it reads the next, and all that is on the way does not fit in any buffer.
#[tokio::test]
async fn thousands_of_recipients_in_one_flight_do_not_lock_up() {
    let count = 6000;
    let names = (0..count).map(|n| format!("recipient-with-a-rather-long-name-{n}@x.test")).collect::<Vec<_>>();
    let replies = format!("C: RCPT\nS: 250 2.1.5 {}\n", "very well ".repeat(40)).repeat(count);
    let text = format!(
        "mail one {}\nconnection\ngreet\nC: MAIL\nS: 250 ok\n{replies}C: DATA\nS: 354 go ahead\ncontent one\nS: 250 done",
        names.join(" ")
    );
    let script = script::parse(&text, Mode::Ahead).unwrap();
    let recipients = names.iter().map(|text| support::address(text)).collect::<Vec<_>>();
    let mail = support::mail(&script.mails[0].content(), &recipients);
    let (server, served) = server::serve(script, Mode::Ahead).await;
    let mut settings = support::settings(server.port());
    settings.recipients_per_message = count;
    let attempt = Relay::new(settings).unwrap().worker().send(&mail, &recipients, &mut Notes::default()).await;
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
    assert_eq!(attempt.relay, None);
    assert!(support::lines(&attempt).iter().all(|line| line.ends_with("accepted 250 done")));
}

#[tokio::test]
async fn broken_pipelining_is_logged_once() {
    let lost = "connection\ngreet\nC: MAIL\nS: 250 ok\nC: RCPT\nS: 503 5.5.1 not so fast\nstall\n";
    let mut bench = Bench::new(&format!(
        "mail one a@x.test\nmail two b@x.test\n{lost}connection\ngreet\nwhole one\nC: MAIL\nclose\nconnection\ngreet\nwhole two\nbye"
    ))
    .await;
    support::listen();
    for index in 0..2 {
        let accepted = bench.send(index).await;
        assert!(accepted[0].contains("accepted 250"), "{accepted:?}");
    }
    bench.end().await;
    let log = support::heard();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("PIPELINING and does not keep it for commands in one write: 503 5.5.1 not so fast"), "{log}");
}
