//! A recording smarthost inside the test: plain SMTP on loopback that takes everything, unless the test's script has
//! another answer. For conversations that go wrong on the wire there are `tests/dialogs`.

use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::eventually;

/// A mail as it came: recorded when its final dot was answered with 250.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Counts from 1, over restarts too.
    pub connection: usize,
    /// Without the angle brackets.
    pub sender: String,
    /// What stood behind the sender, such as `SIZE=1234 BODY=8BITMIME`.
    pub parameters: String,
    /// Those that were accepted.
    pub recipients: Vec<String>,
    /// With CRLF line ends, after dot-unstuffing.
    pub content: Vec<u8>,
}

/// A moment at which the script can have an answer of its own.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    Greeting,
    Ehlo,
    Mail {
        sender: &'a str,
    },
    Rcpt {
        recipient: &'a str,
    },
    Data,
    FinalDot {
        mail: &'a Received,
    },
    /// AUTH with an initial response. A smarthost that wants it says so in the answer to EHLO, which is the script's.
    Auth,
}

/// What a step can come to besides an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    None,
    /// The step is taken, a mail recorded, and the connection ends without a word.
    Unheard,
    /// Likewise, and the connection stays open without a word.
    Stall,
}

/// `None` is the ordinary answer. The reply is a whole one, without its last line end; one that begins with 421 ends
/// the connection, and an empty one ends it without a word.
pub type Script = dyn Fn(Step<'_>) -> Option<String> + Send + Sync;

pub struct Catcher {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<(Arc<Notify>, JoinHandle<()>)>,
}

struct Shared {
    script: Box<Script>,
    hazard: Box<dyn Fn(Step<'_>) -> Hazard + Send + Sync>,
    /// Closed: final dots wait for their answer, so many of them now.
    gate: watch::Sender<(bool, usize)>,
    received: Mutex<Vec<Received>>,
    /// Of a mail that is larger only the head is kept, and what tells its body from another.
    whole: AtomicUsize,
    connections: AtomicUsize,
    /// Connections at the same time, and how one more is turned away.
    room: Mutex<(usize, TurnsAway)>,
    open: AtomicUsize,
    turned_away: AtomicUsize,
}

/// The way in which a connection is refused that is one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnsAway {
    With421,
    WithReset,
}

impl Catcher {
    /// Takes everything.
    pub async fn start() -> Self {
        Self::with_script(|_| None).await
    }

    pub async fn with_script(script: impl Fn(Step<'_>) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::with_hazards(script, |_| Hazard::None).await
    }

    /// The hazard is looked up before the script.
    pub async fn with_hazards(
        script: impl Fn(Step<'_>) -> Option<String> + Send + Sync + 'static,
        hazard: impl Fn(Step<'_>) -> Hazard + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            script: Box::new(script),
            hazard: Box::new(hazard),
            gate: watch::Sender::new((false, 0)),
            received: Mutex::default(),
            whole: AtomicUsize::new(usize::MAX),
            connections: AtomicUsize::default(),
            room: Mutex::new((usize::MAX, TurnsAway::With421)),
            open: AtomicUsize::default(),
            turned_away: AtomicUsize::default(),
        };
        let mut catcher =
            Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), shared: Arc::new(shared), listening: None };
        catcher.start_again().await;
        catcher
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// All mails so far, in the order in which they were accepted.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Keeps of each mail of more than so many bytes the head, and the body's length and a digest in place of the body.
    pub fn keep_whole(&self, most: usize) {
        self.shared.whole.store(most, Ordering::SeqCst);
    }

    /// From now on takes so many connections at the same time.
    pub fn limit_connections(&self, most: usize, turns_away: TurnsAway) {
        *self.shared.room.lock().unwrap() = (most, turns_away);
    }

    /// Connections that were one too many.
    pub fn turned_away(&self) -> usize {
        self.shared.turned_away.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// From now on whoever has sent a final dot waits for the answer.
    pub fn close_gate(&self) {
        self.shared.gate.send_modify(|(closed, _)| *closed = true);
    }

    /// Takes the mails that wait, and all later ones, also where the client has given up meanwhile.
    pub fn open_gate(&self) {
        self.shared.gate.send_modify(|(closed, _)| *closed = false);
    }

    /// Waits until so many mails wait at the gate.
    pub async fn wait_at_gate(&self, count: usize) {
        let gate = self.shared.gate.subscribe();
        eventually(&format!("{count} mails at the gate"), || Some(()).filter(|()| gate.borrow().1 >= count)).await;
    }

    /// Waits until at least `count` mails are there, and returns all.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} mails at the catcher"), || {
            Some(self.received()).filter(|received| received.len() >= count)
        })
        .await
    }

    /// Plays a smarthost that is down: closes the port and drops all connections. When it returns nothing is open.
    pub async fn stop(&mut self) {
        if let Some((stop, task)) = self.listening.take() {
            stop.notify_one();
            task.await.expect("catcher");
        }
    }

    /// Listens on the same port as before.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("catcher's port");
        self.address = listener.local_addr().expect("address");
        let stop = Arc::new(Notify::new());
        let task = tokio::spawn(listen(listener, self.shared.clone(), stop.clone()));
        self.listening = Some((stop, task));
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>, stop: Arc<Notify>) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.notified() => break,
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("accept");
                let connection = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let shared = shared.clone();
                let (room, turns_away) = *shared.room.lock().unwrap();
                if shared.open.load(Ordering::SeqCst) >= room {
                    shared.turned_away.fetch_add(1, Ordering::SeqCst);
                    sessions.spawn(turn_away(stream, turns_away));
                    continue;
                }
                let open = Open::new(shared.clone());
                // A client that hangs up in the middle is no business of the catcher's.
                sessions.spawn(async move {
                    let _open = open;
                    Session { shared, connection, stream: BufReader::new(stream) }.run().await
                });
            }
        }
    }
    drop(listener);
    sessions.shutdown().await;
}

async fn turn_away(mut stream: TcpStream, how: TurnsAway) -> Result<(), Ended> {
    match how {
        TurnsAway::With421 => Ok(stream.write_all(b"421 4.7.0 too many connections from you\r\n").await?),
        TurnsAway::WithReset => Ok(stream.set_zero_linger()?),
    }
}

/// Counts a connection for as long as it lives.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Session {
    shared: Arc<Shared>,
    connection: usize,
    stream: BufReader<TcpStream>,
}

/// The connection is over.
struct Ended;

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Session {
    async fn run(&mut self) -> Result<(), Ended> {
        self.stream.get_ref().set_nodelay(true)?;
        self.answer(Step::Greeting, "220 catcher.example ESMTP").await?;
        let mut mail = Received { connection: self.connection, ..Received::default() };
        let mut begun = false;
        loop {
            let line = self.line().await?;
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => self.answer(Step::Ehlo, EHLO).await.map(drop)?,
                "MAIL" => {
                    let (sender, parameters) = path(&line);
                    begun = false;
                    if self.answer(Step::Mail { sender }, "250 2.1.0 Ok").await? {
                        (mail.sender, mail.parameters) = (sender.to_owned(), parameters.to_owned());
                        begun = true;
                    }
                }
                "RCPT" if !begun => self.write("503 5.5.1 MAIL first").await?,
                "RCPT" => {
                    let (recipient, _) = path(&line);
                    if self.answer(Step::Rcpt { recipient }, "250 2.1.5 Ok").await? {
                        mail.recipients.push(recipient.to_owned());
                    }
                }
                "DATA" if mail.recipients.is_empty() => self.write("554 5.5.1 No valid recipients").await?,
                "DATA" => {
                    if self.answer(Step::Data, "354 Go ahead").await? {
                        mail.content = self.content().await?;
                        if mail.content.len() > self.shared.whole.load(Ordering::SeqCst) {
                            mail.content = abridged(&mail.content);
                        }
                        self.record(&mail).await?;
                    }
                    mail = Received { connection: self.connection, ..Received::default() };
                    begun = false;
                }
                "RSET" => {
                    mail = Received { connection: self.connection, ..Received::default() };
                    begun = false;
                    self.write("250 2.0.0 Ok").await?;
                }
                "AUTH" => self.answer(Step::Auth, "235 2.7.0 Welcome").await.map(drop)?,
                "NOOP" => self.write("250 2.0.0 Ok").await?,
                "QUIT" => {
                    self.write("221 2.0.0 Bye").await?;
                    return Err(Ended);
                }
                _ => self.write("502 5.5.2 Command not recognized").await?,
            }
        }
    }

    /// Recorded before the answer goes out, so that a client that has its answer finds the mail.
    async fn record(&mut self, mail: &Received) -> Result<(), Ended> {
        let mut gate = self.shared.gate.subscribe();
        if gate.borrow_and_update().0 {
            self.shared.gate.send_modify(|(_, waiting)| *waiting += 1);
            // The sender lives as long as this session.
            let _ = gate.wait_for(|(closed, _)| !closed).await;
            self.shared.gate.send_modify(|(_, waiting)| *waiting -= 1);
        }
        let hazard = (self.shared.hazard)(Step::FinalDot { mail });
        if hazard != Hazard::None {
            self.shared.received.lock().unwrap().push(mail.clone());
            return self.endure(hazard).await;
        }
        let scripted = (self.shared.script)(Step::FinalDot { mail });
        let reply = scripted.unwrap_or_else(|| "250 2.0.0 Ok: queued".to_owned());
        if reply.starts_with('2') {
            self.shared.received.lock().unwrap().push(mail.clone());
        }
        self.send(&reply).await.map(drop)
    }

    /// True if the reply that went out was a 2yz or 3yz.
    async fn answer(&mut self, step: Step<'_>, ordinary: &str) -> Result<bool, Ended> {
        self.endure((self.shared.hazard)(step)).await?;
        let scripted = (self.shared.script)(step);
        self.send(scripted.as_deref().unwrap_or(ordinary)).await
    }

    async fn endure(&mut self, hazard: Hazard) -> Result<(), Ended> {
        match hazard {
            Hazard::None => Ok(()),
            Hazard::Unheard => Err(Ended),
            Hazard::Stall => {
                // Until the client has had enough.
                while !self.line().await?.is_empty() {}
                Err(Ended)
            }
        }
    }

    async fn send(&mut self, reply: &str) -> Result<bool, Ended> {
        if reply.is_empty() {
            return Err(Ended);
        }
        self.write(reply).await?;
        if reply.starts_with("421") {
            return Err(Ended);
        }
        Ok(reply.starts_with(['2', '3']))
    }

    async fn write(&mut self, reply: &str) -> Result<(), Ended> {
        Ok(self.stream.get_mut().write_all(format!("{reply}\r\n").as_bytes()).await?)
    }

    async fn line(&mut self) -> Result<Vec<u8>, Ended> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await?;
        if line.ends_with(b"\n") { Ok(line) } else { Err(Ended) }
    }

    async fn content(&mut self) -> Result<Vec<u8>, Ended> {
        let mut content = Vec::new();
        // Only CRLF ends a line: LF `.` CRLF is content.
        let mut at_line_start = true;
        loop {
            let line = self.line().await?;
            if at_line_start && line == b".\r\n" {
                return Ok(content);
            }
            let stuffed = at_line_start && line.starts_with(b".");
            content.extend_from_slice(&line[usize::from(stuffed)..]);
            at_line_start = line.ends_with(b"\r\n");
        }
    }
}

const EHLO: &str = "250-catcher.example\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
    250 ENHANCEDSTATUSCODES";

fn abridged(content: &[u8]) -> Vec<u8> {
    let end = content.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(content.len(), |at| at + 4);
    let (head, body) = content.split_at(end);
    let mut digest = DefaultHasher::new();
    digest.write(body);
    [head, format!("{} bytes {:016x}\r\n", body.len(), digest.finish()).as_bytes()].concat()
}

/// `MAIL FROM:<path> parameters` apart.
fn path(line: &str) -> (&str, &str) {
    let inside = line.split_once('<').map_or("", |(_, rest)| rest);
    let (path, parameters) = inside.rsplit_once('>').unwrap_or((inside, ""));
    (path, parameters.trim())
}
