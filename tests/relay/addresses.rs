//! A smarthost with several addresses, of which some do not work.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mailqueue::relay::{Relay, Settings};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::script::{self, Mode};
use crate::support::{self, Notes};
use crate::{certificates, server};

/// Accepts connections, says this to each, and closes it. The task counts them.
async fn saying(words: &'static str) -> (SocketAddr, JoinHandle<()>, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counted = count.clone();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let _ = stream.write_all(words.as_bytes()).await;
        }
    });
    (address, task, count)
}

/// An address at which nothing listens.
async fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// An address that answers no SYN: a listener whose backlog is full. It lasts as long as what is returned.
async fn swallowing() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
        assert!(waiting.len() < 20, "the backlog has no end");
    }
    (address, waiting, listener)
}

/// Sends two mails over a connection each to a host with these addresses and, last of them, one that works.
async fn two_mails(others: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> (Vec<String>, Duration) {
    let text = "mail one a@x.test\nmail two b@x.test\nset messages=1\n\
                connection\ngreet\nwhole one\nbye\nconnection\ngreet\nwhole two\nbye";
    let script = script::parse(text, Mode::Off).unwrap();
    let (works, served) = server::serve(script.clone(), Mode::Off).await;
    let mut settings = support::settings(works.port());
    settings.messages_per_connection = 1;
    change(&mut settings);
    let addresses = others.iter().copied().chain([works]).collect();
    let mut worker = Relay::at_addresses(settings, addresses).unwrap().worker();
    let mut lines = Vec::new();
    let begun = Instant::now();
    for letter in &script.mails {
        let recipients = letter.recipients.iter().map(|text| support::address(text)).collect::<Vec<_>>();
        let mail = support::mail(&letter.content(), &recipients);
        lines.extend(support::lines(&worker.send(&mail, &recipients, &mut Notes::default()).await));
    }
    let taken = begun.elapsed();
    worker.quit().await;
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
    (lines, taken)
}

const ACCEPTED: [&str; 2] =
    ["a@x.test: accepted 250 2.0.0 queued as one", "b@x.test: accepted 250 2.0.0 queued as two"];

#[tokio::test]
async fn an_address_that_does_not_work_makes_room_for_the_next_and_is_remembered() {
    for words in ["421 4.3.2 not now\r\n", "554 5.3.2 no\r\n", "", "220 mx\r\n", "HTTP/1.1 400\r\n"] {
        let (address, task, count) = saying(words).await;
        support::listen();
        assert_eq!(two_mails(&[address], |_| {}).await.0, ACCEPTED, "{words:?}");
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1, "{words:?}: it is tried once");
        let log = support::heard();
        let told = log.lines().filter(|line| line.contains("passed over") && line.contains(&address.to_string()));
        assert_eq!(told.count(), 1, "{log}");
        task.abort();
    }
    assert_eq!(two_mails(&[refusing().await], |_| {}).await.0, ACCEPTED);
}

#[tokio::test]
async fn an_address_that_swallows_connections_costs_a_moment_once() {
    let (address, _waiting, _listener) = swallowing().await;
    let (lines, taken) = two_mails(&[address], |_| {}).await;
    assert_eq!(lines, ACCEPTED);
    assert!((Duration::from_millis(250)..Duration::from_secs(5)).contains(&taken), "{taken:?}");
}

#[tokio::test]
async fn where_no_address_works_the_one_that_came_furthest_is_told() {
    let (busy, task, _) = saying("421 4.7.0 too many connections\r\n").await;
    let relay = Relay::at_addresses(support::settings(25), vec![refusing().await, busy, refusing().await]).unwrap();
    let trouble = relay.probe().await.unwrap_err();
    assert_eq!(support::show(&trouble), "greeting relay 421 4.7.0 too many connections");
    assert!(trouble.is_connection_limit());
    task.abort();

    let dead = [refusing().await, refusing().await];
    let trouble = Relay::at_addresses(support::settings(25), dead.to_vec()).unwrap().probe().await.unwrap_err();
    assert_eq!(support::show(&trouble), "connect relay closed");
    for address in dead {
        assert!(trouble.to_string().contains(&format!("{address}: ")), "{trouble}");
    }
    let nowhere = Relay::at_addresses(support::settings(25), Vec::new()).unwrap().probe().await.unwrap_err();
    assert!(nowhere.to_string().contains("has no address"), "{nowhere}");
}

#[tokio::test]
async fn a_refused_login_is_not_tried_at_the_next_address() {
    let script = "connection\ngreet AUTH PLAIN|SIZE\nC: AUTH PLAIN\nS: 535 5.7.8 no\ngone";
    let (first, served) = server::serve(script::parse(script, Mode::Off).unwrap(), Mode::Off).await;
    let (second, task, count) = saying("421 4.3.2 not now\r\n").await;
    let mut settings = support::settings(25);
    let secret = mailqueue::relay::Password::Value("geheim".into());
    settings.login = Some(support::login(Default::default(), mailqueue::relay::Credential::Secret(secret)));
    let trouble = Relay::at_addresses(settings, vec![first, second]).unwrap().probe().await.unwrap_err();
    assert_eq!(support::show(&trouble), "auth relay 535 5.7.8 no");
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(served.await.unwrap(), Vec::<String>::new());
    task.abort();
}

#[tokio::test]
async fn an_address_in_brackets_is_an_address() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"554 5.3.2 over version 6\r\n").await;
        }
    });
    for host in ["[::1]", "::1"] {
        let mut settings = support::settings(port);
        settings.host = host.to_owned();
        let trouble = Relay::new(settings.clone()).unwrap().probe().await.unwrap_err();
        assert_eq!(support::show(&trouble), "greeting relay 554 5.3.2 over version 6");
        // The name in the certificate is the address without brackets.
        settings.tls = mailqueue::relay::Tls::Starttls;
        settings.ca_file = Some(certificates::authority_file());
        Relay::new(settings).unwrap();
    }
}
