//! A smarthost whose name has several addresses, as the system's resolver finds them.

/// Needs the library of Debian's package `libnss-wrapper`, which takes the addresses of a name from a file.
mod nss_wrapper {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::process::Command;

    use crate::support::binary::output;
    use crate::support::catcher::Catcher;
    use crate::support::house::{House, mail, said};
    use crate::support::{database, variable};

    const NAME: &str = "smarthost.example";

    /// The program, for which the name has the addresses 127.0.0.x of `last`, in this order.
    fn command(house: &House, last: &[u8], arguments: &[&str]) -> Command {
        let configuration = house.installation.configuration();
        let text = std::fs::read_to_string(&configuration).expect("configuration");
        let text = text.replace("host = \"127.0.0.1\"", &format!("host = \"{NAME}\""));
        std::fs::write(&configuration, text).expect("configuration");
        let hosts = house.installation.path().join("hosts");
        let lines: String = last.iter().map(|last| format!("127.0.0.{last} {NAME}\n")).collect();
        std::fs::write(&hosts, lines).expect("hosts");
        let mut command = house.installation.command();
        command.env("LD_PRELOAD", variable("MAILQUEUE_TEST_NSS_WRAPPER")).env("NSS_WRAPPER_HOSTS", hosts);
        command.args(arguments);
        command
    }

    /// Greets everybody with 421. Returns the number of connections.
    async fn busy(address: SocketAddr) -> Arc<AtomicUsize> {
        let listener = TcpListener::bind(address).await.expect("bind");
        let count = Arc::new(AtomicUsize::new(0));
        let seen = count.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::SeqCst);
                // The other side may have gone.
                let _ = stream.write_all(b"421 4.3.2 not now\r\n").await;
            }
        });
        count
    }

    /// A listener with a full backlog answers no SYN. It lasts as long as what is returned.
    async fn swallowing(address: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(address).expect("bind");
        let listener = socket.listen(1).expect("listen");
        let mut waiting = Vec::new();
        while let Ok(connected) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(connected.expect("connect"));
            assert!(waiting.len() < 20, "the backlog has no end");
        }
        (listener, waiting)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_addresses_of_a_name_are_tried_until_one_works_which_goes_first_from_then_on() {
        let catcher = Catcher::start().await;
        let port = catcher.port();
        let relay = "connections = 1\nmessages_per_connection = 2";
        let house = House::build(database::sqlite(), port, "", relay).await;
        let at = |last: u8| SocketAddr::from(([127, 0, 0, last], port));
        let count = busy(at(3)).await;
        let _swallowing = swallowing(at(4)).await;
        for n in 0..10 {
            house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.expect("INSERT");
        }
        let begun = Instant::now();
        // Nobody listens at 127.0.0.2.
        let output = output(command(&house, &[2, 3, 4, 1], &["--log-level", "info", "once"])).await;
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert_eq!(catcher.received().len(), 10);
        assert_eq!(count.load(Ordering::SeqCst), 1, "{}", said(&output));
        let words = said(&output);
        for dead in [at(2), at(3)] {
            let told = words.lines().filter(|line| line.contains(&format!("{dead} does not work"))).count();
            assert_eq!(told, 1, "{words}");
        }
        // Five connections; each try of the address that swallows them would cost 30 s, and the first a quarter of one.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_check_uses_the_address_that_works() {
        let catcher = Catcher::start().await;
        let house = House::build(database::sqlite(), catcher.port(), "", "").await;
        let output = output(command(&house, &[2, 1], &["check"])).await;
        assert!(said(&output).contains(&format!("{NAME}:{}: connected", catcher.port())), "{}", said(&output));
    }
}
