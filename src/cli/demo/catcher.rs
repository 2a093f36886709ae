//! A small SMTP server (RFC 5321) on loopback: takes every mail but those to one address, and keeps them as files.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mail_parser::MessageParser;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const OFFERS: &str = "250-catcher.localhost\r\n250-PIPELINING\r\n250-SIZE 50000000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
    250 ENHANCEDSTATUSCODES\r\n";

/// No line of a command or mail is longer.
const LINE: u64 = 64 * 1024;

/// A running catcher; it ends when this is dropped.
pub struct Catcher {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

/// A mail that has arrived.
#[derive(Clone)]
pub struct Caught {
    /// The file's name below the folder.
    pub file: String,
    pub message_id: String,
}

struct Shared {
    folder: PathBuf,
    refuses: &'static str,
    number: AtomicUsize,
    caught: Mutex<Vec<Caught>>,
}

impl Catcher {
    /// Listens on a free port. `folder` must exist.
    pub async fn start(folder: PathBuf, refuses: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { folder, refuses, number: AtomicUsize::new(1), caught: Mutex::default() });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, shared.clone()));
        Ok(Self { address, shared, _server: server })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The mails that have arrived so far, in order.
    pub fn caught(&self) -> Vec<Caught> {
        self.shared.caught.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut sessions = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        // A peer that hangs up in the middle is no concern of the others.
        sessions.spawn(async move { drop(session(stream, &shared).await) });
    }
}

#[derive(Default)]
struct Envelope {
    sender: Option<String>,
    recipients: Vec<String>,
}

async fn session(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut envelope = Envelope::default();
    stream.write_all(b"220 catcher.localhost ESMTP\r\n").await?;
    while let Some(line) = line(&mut stream).await? {
        let command = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = command.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" => OFFERS.to_owned(),
            "HELO" => "250 catcher.localhost\r\n".to_owned(),
            "MAIL" => {
                envelope = Envelope { sender: path(&command), recipients: Vec::new() };
                "250 2.1.0 Ok\r\n".to_owned()
            }
            "RCPT" => recipient(&mut envelope, &command, shared),
            "DATA" if envelope.recipients.is_empty() => "554 5.5.1 No valid recipients\r\n".to_owned(),
            "DATA" => {
                stream.write_all(b"354 End data with <CR><LF>.<CR><LF>\r\n").await?;
                let Some(content) = content(&mut stream).await? else { return Ok(()) };
                keep(shared, std::mem::take(&mut envelope), &content).await
            }
            "RSET" => {
                envelope = Envelope::default();
                "250 2.0.0 Ok\r\n".to_owned()
            }
            "NOOP" => "250 2.0.0 Ok\r\n".to_owned(),
            "QUIT" => {
                stream.write_all(b"221 2.0.0 Bye\r\n").await?;
                return Ok(());
            }
            _ => "502 5.5.2 Command not recognized\r\n".to_owned(),
        };
        stream.write_all(reply.as_bytes()).await?;
    }
    Ok(())
}

fn recipient(envelope: &mut Envelope, command: &str, shared: &Shared) -> String {
    match path(command) {
        _ if envelope.sender.is_none() => "503 5.5.1 MAIL comes first\r\n".to_owned(),
        Some(address) if address.eq_ignore_ascii_case(shared.refuses) => {
            format!("550 5.1.1 <{address}>: user unknown\r\n")
        }
        Some(address) if !address.is_empty() => {
            envelope.recipients.push(address);
            "250 2.1.5 Ok\r\n".to_owned()
        }
        _ => "501 5.1.3 Bad recipient address syntax\r\n".to_owned(),
    }
}

/// The text between the angle brackets.
fn path(command: &str) -> Option<String> {
    let (_, behind) = command.split_once('<')?;
    Some(behind.split_once('>')?.0.to_owned())
}

async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    stream.take(LINE).read_until(b'\n', &mut line).await?;
    Ok(line.ends_with(b"\n").then_some(line))
}

/// Up to the final dot, with doubled dots made single (RFC 5321 §4.5.2).
async fn content(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    loop {
        match line(stream).await? {
            None => return Ok(None),
            Some(line) if line == b".\r\n" => return Ok(Some(content)),
            Some(line) => content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line)),
        }
    }
}

/// Writes the mail as a mailbox would get it, its envelope on top.
async fn keep(shared: &Shared, envelope: Envelope, content: &[u8]) -> String {
    let number = shared.number.fetch_add(1, Ordering::Relaxed);
    let file = format!("{number:02}.eml");
    let mut mail = format!("Return-Path: <{}>\r\n", envelope.sender.unwrap_or_default());
    for recipient in envelope.recipients {
        mail += &format!("Delivered-To: {recipient}\r\n");
    }
    let mail = [mail.as_bytes(), content].concat();
    if let Err(error) = tokio::fs::write(shared.folder.join(&file), &mail).await {
        return format!("451 4.3.0 {error}\r\n");
    }
    let id = MessageParser::new().parse_headers(content).and_then(|m| m.message_id().map(str::to_owned));
    let message_id = id.unwrap_or_default();
    let mut caught = shared.caught.lock().unwrap_or_else(PoisonError::into_inner);
    caught.push(Caught { file: file.clone(), message_id });
    format!("250 2.0.0 Ok: kept as {file}\r\n")
}
