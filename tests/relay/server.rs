//! The scripted smarthost: plays one block of a script on each connection, and says where the peer departs from it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::certificates;
use crate::script::{Act, Mode, Script};

/// Longer than everything that a script waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clear or encrypted.
trait Link: AsyncRead + AsyncWrite + Send + Unpin {
    /// Makes the end of the connection a break of it.
    fn break_at_end(&self);
}

impl Link for TcpStream {
    fn break_at_end(&self) {
        self.set_zero_linger().expect("a connection");
    }
}

impl Link for TlsStream<Box<dyn Link>> {
    fn break_at_end(&self) {
        self.get_ref().0.break_at_end();
    }
}

/// Stands in for a connection during the handshake.
impl Link for tokio::io::Empty {
    fn break_at_end(&self) {}
}

/// Serves the script's connections, and one at most beyond them, which is a mistake.
pub async fn serve(script: Script, mode: Mode) -> (SocketAddr, JoinHandle<Vec<String>>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Small, so that a content which nobody reads soon comes to a halt.
    socket.set_recv_buffer_size(16 * 1024).expect("a buffer");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let listener = socket.listen(64).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let served = tokio::spawn(async move {
        let mut mistakes = Vec::new();
        let mut left_open = Vec::new();
        for (number, acts) in script.connections.iter().enumerate() {
            let number = number + 1;
            let Ok(Ok((stream, _))) = timeout(PATIENCE, listener.accept()).await else {
                mistakes.push(format!("connection {number} did not come"));
                return mistakes;
            };
            let _ = stream.set_nodelay(true);
            match play(stream, acts, &script, mode).await {
                Ok(stream) => left_open.extend(stream),
                Err(mistake) => mistakes.push(format!("connection {number}: {mistake}")),
            }
        }
        // The connections come one after the other, so one too many is here by now.
        if timeout(Duration::from_millis(20), listener.accept()).await.is_ok() {
            mistakes.push("one connection more than in the script".to_owned());
        }
        mistakes
    });
    (address, served)
}

async fn play(
    stream: TcpStream,
    acts: &[Act],
    script: &Script,
    mode: Mode,
) -> Result<Option<BufReader<Box<dyn Link>>>, String> {
    let stream: Box<dyn Link> = Box::new(stream);
    let mut peer = Peer { stream: BufReader::new(stream), script, mode, left_open: false };
    for act in acts {
        let step = timeout(PATIENCE, peer.act(act)).await;
        match step {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Ok(peer.left_open.then_some(peer.stream)),
            Ok(Err(mistake)) => return Err(format!("at {act:?}: {mistake}")),
            Err(_) => return Err(format!("at {act:?}: nothing came")),
        }
    }
    // Whatever comes behind the script must be the end.
    peer.gone().await?;
    Ok(None)
}

struct Peer<'a> {
    stream: BufReader<Box<dyn Link>>,
    script: &'a Script,
    mode: Mode,
    left_open: bool,
}

impl Peer<'_> {
    /// `false`: the connection is over.
    async fn act(&mut self, act: &Act) -> Result<bool, String> {
        match act {
            Act::Greet(extensions) => self.greet(extensions).await?,
            Act::Whole(name) => self.whole(name).await?,
            Act::Command(start) => self.command(start).await?,
            Act::Exactly(command) => self.command(&format!("{command}\r\n")).await?,
            Act::Alone if self.stream.buffer().is_empty() => {}
            Act::Alone => return Err("more came in the same write".into()),
            Act::Say(bytes) => self.say(bytes).await?,
            Act::Pieces(bytes) => {
                for byte in bytes {
                    self.say(&[*byte]).await?;
                    tokio::task::yield_now().await;
                }
            }
            Act::Content(name) => self.content(name).await?,
            Act::Read(count) => {
                let mut bytes = vec![0; *count];
                self.stream.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
            }
            Act::Drip(period) => {
                for byte in b"250-a line that never ends".iter().cycle() {
                    if self.stream.get_mut().write_all(&[*byte]).await.is_err() {
                        return Ok(false);
                    }
                    tokio::time::sleep(*period).await;
                }
            }
            Act::Rest(time) => tokio::time::sleep(*time).await,
            Act::Stall => {
                let mut rest = Vec::new();
                // How the peer leaves does not matter.
                let _ = self.stream.read_to_end(&mut rest).await;
                return Ok(false);
            }
            Act::Wait => {
                self.left_open = true;
                return Ok(false);
            }
            Act::Close => return Ok(false),
            Act::Reset => {
                self.stream.get_ref().break_at_end();
                return Ok(false);
            }
            Act::Gone => {
                self.gone().await?;
                return Ok(false);
            }
            Act::Tls(certificate) => {
                // Nothing but the handshake can come here, so an empty buffer takes nothing along.
                let ended: Box<dyn Link> = Box::new(tokio::io::empty());
                let clear = std::mem::replace(&mut self.stream, BufReader::new(ended)).into_inner();
                match certificates::acceptor(certificate).accept(clear).await {
                    Ok(encrypted) => self.stream = BufReader::new(Box::new(encrypted)),
                    // The peer refused the certificate; what it says of that is in its trouble.
                    Err(_) => return Ok(false),
                }
            }
            Act::Bye => {
                self.command("QUIT").await?;
                self.say(b"221 bye\r\n").await?;
            }
        }
        Ok(true)
    }

    async fn greet(&mut self, extensions: &str) -> Result<(), String> {
        self.say(b"220 mx.x.test ESMTP\r\n").await?;
        self.command("EHLO").await?;
        let mut words = vec!["mx.x.test"];
        words.extend(extensions.split('|').filter(|word| !word.is_empty()));
        if self.mode != Mode::Off {
            words.push("PIPELINING");
        }
        let last = words.pop().unwrap_or_default();
        let lines = words.iter().map(|word| format!("250-{word}\r\n")).collect::<String>();
        self.say(format!("{lines}250 {last}\r\n").as_bytes()).await
    }

    async fn whole(&mut self, name: &str) -> Result<(), String> {
        let letter = self.script.mails.iter().find(|letter| letter.name == name).ok_or("no such mail")?;
        self.command("MAIL FROM:<sender@example.org>").await?;
        self.say(b"250 2.1.0 ok\r\n").await?;
        for recipient in &letter.recipients {
            self.command(&format!("RCPT TO:<{recipient}>")).await?;
            self.say(b"250 2.1.5 ok\r\n").await?;
        }
        self.command("DATA").await?;
        self.say(b"354 go ahead\r\n").await?;
        self.content(name).await?;
        self.say(format!("250 2.0.0 queued as {name}\r\n").as_bytes()).await
    }

    async fn command(&mut self, start: &str) -> Result<(), String> {
        let line = self.line().await?;
        if line.starts_with(start.as_bytes()) && line.ends_with(b"\r\n") {
            return Ok(());
        }
        Err(format!("{start} was due, and {:?} came", String::from_utf8_lossy(&line)))
    }

    async fn content(&mut self, name: &str) -> Result<(), String> {
        let mut content = Vec::new();
        loop {
            let line = self.line().await?;
            match line.as_slice() {
                b".\r\n" => break,
                [b'.', stuffed @ ..] => content.extend_from_slice(stuffed),
                line => content.extend_from_slice(line),
            }
        }
        let letter = self.script.mails.iter().find(|letter| letter.name == name);
        let sent = letter.map(|letter| letter.content().into_bytes()).unwrap_or_default();
        if content == sent { Ok(()) } else { Err(format!("the content is not that of mail `{name}`")) }
    }

    async fn line(&mut self) -> Result<Vec<u8>, String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
        if line.is_empty() { Err("the peer closed the connection".into()) } else { Ok(line) }
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.get_mut().write_all(bytes).await.map_err(|error| error.to_string())
    }

    async fn gone(&mut self) -> Result<(), String> {
        let mut rest = Vec::new();
        match timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await {
            Ok(_) if rest.is_empty() => Ok(()),
            Ok(_) => Err(format!("unexpected: {:?}", String::from_utf8_lossy(&rest[..rest.len().min(200)]))),
            Err(_) => Err("the peer keeps the connection open".into()),
        }
    }
}
