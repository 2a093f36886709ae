//! Bytes to the smarthost and replies from it. Replies are read while we write, so that a peer that answers early and
//! stops reading cannot lock us up.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::dot_stuffing::Stuffed;
use super::log::LOG;
use super::reply;
use super::smarthost::Shown;
use crate::outcome::{Cause, Reply};

/// Clear or encrypted.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// More unread input than this while we write, and the peer floods us. The replies to a flight of thousands fit in.
const MAX_INPUT: usize = 4 * 1024 * 1024;

/// A peer that takes fewer bytes a second of what we write is given up. Slow links are ten times as fast even when
/// several connections share one; without a total, a peer could keep a mail for ever by taking one byte at a time.
const LEAST_PER_SECOND: u64 = 1_000;

/// Bytes that are read at once.
const READ: usize = 4096;

/// Bytes of a reply's code.
const CODE: usize = 3;

/// Slices in one system call.
const SLICES: usize = 32;

/// A connection. The first thing that goes wrong is remembered and comes out of every later [`Wire::reply`], behind the
/// replies that had arrived before it.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    peer: SocketAddr,
    input: BytesMut,
    broken: Option<Cause>,
    shown: Shown,
    /// The peer may repeat a secret: a log shows the code of its replies alone.
    secret: bool,
}

/// The point that a content reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The final dot may have left.
    Dot,
    /// It stopped before the final dot was complete, because of an answer that came too early or because the connection
    /// broke; the next reply says which.
    Cut,
}

impl Wire {
    pub fn new(stream: Box<dyn Stream>, peer: SocketAddr, shown: Shown) -> Self {
        Self { stream, peer, input: BytesMut::new(), broken: None, shown, secret: false }
    }

    /// The stream alone, and the peer; `Err` if the peer has said something that nobody has read.
    pub fn into_stream(self) -> Result<(Box<dyn Stream>, SocketAddr), Cause> {
        match self.broken {
            Some(cause) => Err(cause),
            None if !self.input.is_empty() => Err(Cause::Protocol(
                "data in the clear behind the reply to STARTTLS: somebody may be tampering with the connection".into(),
            )),
            None => Ok((self.stream, self.peer)),
        }
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Writes commands. What goes wrong comes out of the next reply.
    ///
    /// The peer has `limit` to take each further part, and in all `limit` and a second for each [`LEAST_PER_SECOND`]
    /// bytes. What it says meanwhile buys it no time.
    pub async fn write(&mut self, commands: &str, limit: Duration) {
        self.log(commands);
        self.write_unlogged(commands, limit).await;
    }

    /// Says that the peer is being told a secret, which it may repeat.
    pub fn set_secret(&mut self, secret: bool) {
        self.secret = secret;
    }

    /// As [`Wire::write`], for what no log may show.
    pub async fn write_unlogged(&mut self, commands: &str, limit: Duration) {
        let time = Time::new(limit, commands.len());
        self.push(std::iter::once((commands.as_bytes(), false)), false, time).await;
    }

    /// Writes the content, the final dot and, in the same write where they fit, commands behind it.
    pub async fn write_content(&mut self, content: &[u8], ahead: &str, limit: Duration) -> Written {
        debug!(target: LOG, peer = %self.peer, bytes = content.len(), "C: (content and final dot)");
        self.log(ahead);
        let pieces = Stuffed::new(content).map(|piece| (piece, false));
        let behind = (!ahead.is_empty()).then_some((ahead.as_bytes(), false));
        let time = Time::new(limit, content.len() + ahead.len());
        self.push(pieces.chain([(Stuffed::end(content), true)]).chain(behind), true, time).await
    }

    fn log(&self, commands: &str) {
        if tracing::enabled!(target: LOG, tracing::Level::DEBUG) {
            for line in commands.lines() {
                debug!(target: LOG, peer = %self.peer, "C: {}", (self.shown)(line));
            }
        }
    }

    /// Writes pieces; the one that is marked ends with the final dot, before which a `content` has no answer.
    async fn push<'a>(
        &mut self,
        mut pieces: impl Iterator<Item = (&'a [u8], bool)>,
        content: bool,
        mut time: Time,
    ) -> Written {
        let mut window: VecDeque<(&[u8], bool)> = VecDeque::with_capacity(SLICES);
        let mut written = Written::Cut;
        while self.broken.is_none() {
            window.extend(pieces.by_ref().take(SLICES - window.len()));
            if window.is_empty() {
                self.drive(time.end(), |stream, context| stream.poll_flush(context).map_ok(|()| 0)).await;
                break;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            for (slice, (piece, _)) in slices.iter_mut().zip(&window) {
                *slice = IoSlice::new(piece);
            }
            let filled = &slices[..window.len()];
            let end = time.end();
            let mut taken = self.drive(end, |stream, context| stream.poll_write_vectored(context, filled)).await;
            time.took(taken);
            while let Some((piece, ends)) = window.front_mut() {
                if taken < piece.len() {
                    *piece = &piece[taken..];
                    break;
                }
                taken -= piece.len();
                if *ends {
                    written = Written::Dot;
                }
                window.pop_front();
            }
            if content && written == Written::Cut && !matches!(reply::frame(&self.input), Ok(None)) {
                self.fail(Cause::Closed("the smarthost answered before it had the whole mail".into()));
            }
        }
        written
    }

    /// One step of writing, reading meanwhile what the peer says. Returns how many bytes were taken.
    async fn drive(
        &mut self,
        end: Instant,
        mut step: impl FnMut(Pin<&mut dyn Stream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> usize {
        let Self { stream, input, .. } = self;
        input.reserve(READ);
        let progress = poll_fn(|context| {
            if let Poll::Ready(result) = step(Pin::new(&mut **stream), context) {
                return Poll::Ready(result.map(Progress::Taken));
            }
            pin!(stream.read_buf(input)).poll(context).map_ok(Progress::Read)
        });
        let cause = match timeout_at(end, progress).await {
            Ok(Ok(Progress::Taken(count))) => return count,
            Ok(Ok(Progress::Read(0))) => closed(),
            Ok(Ok(Progress::Read(_))) if self.input.len() > MAX_INPUT => {
                Cause::Protocol("the peer sends without end while we write".into())
            }
            Ok(Ok(Progress::Read(_))) => return 0,
            Ok(Err(error)) => {
                self.last_words().await;
                broke(&error)
            }
            Err(_) => Cause::Timeout,
        };
        self.fail(cause);
        0
    }

    /// The next reply, complete within `limit`.
    pub async fn reply(&mut self, limit: Duration) -> Result<Reply, Cause> {
        Ok(reply::parse(&self.frame(limit).await?))
    }

    /// The bytes of the next reply, complete within `limit`.
    pub async fn frame(&mut self, limit: Duration) -> Result<BytesMut, Cause> {
        let mut deadline = None;
        loop {
            match reply::frame(&self.input) {
                Ok(Some(length)) => {
                    let frame = self.input.split_to(length);
                    if tracing::enabled!(target: LOG, tracing::Level::DEBUG) {
                        let most = if self.secret { CODE } else { 500 };
                        let said = reply::printable(&frame[..frame.len().min(most)], most);
                        debug!(target: LOG, peer = %self.peer, "S: {}", (self.shown)(&said));
                    }
                    return Ok(frame);
                }
                Ok(None) => {}
                // What it says may be the secret.
                Err(_) if self.secret => {
                    return Err(self.fail(Cause::Protocol("the smarthost answers a login with no SMTP reply".into())));
                }
                Err(how) => return Err(self.fail(Cause::Protocol(how))),
            }
            if let Some(cause) = &self.broken {
                return Err(cause.clone());
            }
            self.input.reserve(READ);
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + limit);
            match timeout_at(deadline, self.stream.read_buf(&mut self.input)).await {
                Ok(Ok(0)) => self.fail(closed()),
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => self.fail(broke(&error)),
                Err(_) => self.fail(Cause::Timeout),
            };
        }
    }

    /// Returns true where the peer has sent data that belongs to no command, or has gone. Does not wait.
    pub fn has_stirred(&mut self) -> bool {
        self.broken.is_some()
            || !self.input.is_empty()
            || self.stream.read_buf(&mut self.input).now_or_never().is_some()
    }

    /// Returns true where replies have arrived that are not read yet.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Remembers the first thing that went wrong.
    fn fail(&mut self, cause: Cause) -> Cause {
        debug!(target: LOG, peer = %self.peer, "the connection is given up: {}", (self.shown)(&cause.to_string()));
        self.broken.get_or_insert(cause).clone()
    }

    /// A peer that hangs up often says why, and a failed write comes before our reading of it.
    async fn last_words(&mut self) {
        let listen = async {
            while self.input.len() < MAX_INPUT && matches!(self.stream.read_buf(&mut self.input).await, Ok(1..)) {}
        };
        let _ = timeout(Duration::from_secs(1), listen).await;
    }
}

/// Until when a write must have come further.
struct Time {
    limit: Duration,
    next: Instant,
    last: Instant,
}

impl Time {
    fn new(limit: Duration, bytes: usize) -> Self {
        let next = Instant::now() + limit;
        Self { limit, next, last: next + Duration::from_secs(bytes as u64 / LEAST_PER_SECOND) }
    }

    fn end(&self) -> Instant {
        self.next.min(self.last)
    }

    fn took(&mut self, bytes: usize) {
        if bytes > 0 {
            self.next = Instant::now() + self.limit;
        }
    }
}

enum Progress {
    Taken(usize),
    Read(usize),
}

fn closed() -> Cause {
    Cause::Closed("the smarthost closed the connection".into())
}

fn broke(error: &io::Error) -> Cause {
    Cause::Closed(format!("the connection broke: {error}"))
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("peer", &self.peer).field("broken", &self.broken).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
