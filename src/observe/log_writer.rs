//! The way from an event to standard error or the journal. Nothing here waits for a reader: what cannot be written at
//! once waits in a buffer of bounded size for a thread, and when the buffer is full, lines are dropped and counted.
//!
//! A line goes out at once where that is possible, so that a process that is killed has written what it logged.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use libsystemd::logging::{Priority, journal_send};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::stdio::stderr;

use crate::failpoint;

/// The target of the line that counts dropped lines. It is logged at every level.
pub const LOG: &str = "mailqueue::log";

/// Bytes of entries that wait. About 10,000 lines: some seconds of a fast relay, which is longer than a log daemon needs
/// for a restart, and little beside the memory for mails.
const BUFFER: usize = 4 * 1024 * 1024;

/// Bytes of lines that go out with one call.
const WRITE: usize = 64 * 1024;

/// `pwritev2` then writes at the end of a stream, or where the file's offset is.
const HERE: u64 = u64::MAX;

/// The record of one event.
#[derive(Debug)]
pub enum Entry {
    /// Bytes for standard error, with their line end.
    Line(Vec<u8>),
    /// For the systemd journal.
    Record(Record),
}

/// A handle of the writer. Clones write to the same buffer.
#[derive(Clone, Debug)]
pub struct LogWriter {
    shared: Arc<LineBuffer>,
}

#[derive(Debug, Default)]
struct LineBuffer {
    buffer: Mutex<Buffer>,
    /// Notified when there is something to write, and when nothing is left.
    changed: Condvar,
    thread: OnceLock<ThreadId>,
}

#[derive(Debug, Default)]
struct Buffer {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Lines for which there was no room, and of which the log does not tell yet.
    dropped: u64,
    /// The thread is writing entries that it has taken out.
    writing: bool,
}

impl LogWriter {
    /// Starts the thread, which lives as long as the process. Fails where the system has no thread left.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(LineBuffer::default());
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn({
            let shared = shared.clone();
            move || write_all(&shared)
        })?;
        // Set once, here.
        let _ = shared.thread.set(thread.thread().id());
        Ok(Self { shared })
    }

    /// Writes the entry, or keeps it for the thread; drops it where the buffer is full.
    pub fn push(&self, entry: Entry) {
        let mut buffer = self.shared.lock();
        let rest = if buffer.is_idle() { write_now(entry) } else { Some(entry) };
        let Some(rest) = rest else { return };
        if buffer.bytes + rest.len() > BUFFER {
            buffer.dropped += 1;
            return;
        }
        let was_idle = buffer.is_idle();
        buffer.bytes += rest.len();
        buffer.entries.push_back(rest);
        drop(buffer);
        if was_idle {
            self.shared.changed.notify_all();
        }
    }

    /// Waits up to `limit` until everything is written. Returns false where something is left.
    pub fn flush(&self, limit: Duration) -> bool {
        if self.shared.thread.get() == Some(&std::thread::current().id()) {
            return false;
        }
        let until = Instant::now().checked_add(limit);
        let mut buffer = self.shared.lock();
        while !buffer.is_idle() || buffer.dropped > 0 {
            let left = until.map_or(limit, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(buffer, left);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Writes what it can of the buffer without the thread, which may have ended by a panic.
    pub fn write_last_lines(&self) {
        let mut buffer = self.shared.lock();
        while let Some(entry) = buffer.entries.pop_front() {
            // Ends the process late where the log is not read; a limit is the caller's.
            match write_now(entry) {
                Some(Entry::Line(rest)) => write_blocking(&rest),
                // journald takes no more: standard error is the last resort.
                Some(Entry::Record(record)) => write_blocking(format!("{}\n", record.message).as_bytes()),
                None => {}
            }
        }
    }
}

impl Buffer {
    fn is_idle(&self) -> bool {
        self.entries.is_empty() && !self.writing
    }
}

impl LineBuffer {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Bytes that it takes in the buffer, about.
    fn len(&self) -> usize {
        match self {
            Self::Line(line) => line.len(),
            Self::Record(record) => record.len(),
        }
    }
}

/// An event as the journal takes it.
#[derive(Debug)]
pub struct Record {
    pub priority: Priority,
    pub message: String,
    pub fields: Vec<(String, String)>,
}

impl Record {
    /// Bytes of its texts.
    fn len(&self) -> usize {
        self.fields.iter().fold(self.message.len(), |sum, (name, value)| sum + name.len() + value.len())
    }

    /// Sends it, and waits for the journal to take it. What the journal does not take goes to standard error, which
    /// systemd keeps. Where that is closed too, the record is lost.
    fn send(self) {
        let Self { priority, message, fields } = self;
        if let Err(error) = journal_send(priority, &message, fields.into_iter()) {
            let _ = writeln!(io::stderr(), "{message} (not in the journal: {error})");
        }
    }
}

/// The thread: writes what is in the buffer, and waits for more.
fn write_all(shared: &LineBuffer) {
    let mut buffer = shared.lock();
    loop {
        if buffer.entries.is_empty() {
            buffer.writing = false;
            shared.changed.notify_all();
            buffer = shared.changed.wait(buffer).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let entries = std::mem::take(&mut buffer.entries);
        let dropped = std::mem::take(&mut buffer.dropped);
        buffer.bytes = 0;
        buffer.writing = true;
        drop(buffer);
        failpoint::hit("in-log");
        write_entries(entries);
        if dropped > 0 {
            // Comes back as an entry, in the form that the log has.
            tracing::warn!(target: LOG, lines = dropped,
                "log lines were dropped: the log was not read for a while; see what reads standard error, or the journal");
        }
        buffer = shared.lock();
    }
}

/// Lines that follow each other go out together.
fn write_entries(entries: VecDeque<Entry>) {
    let mut lines = Vec::new();
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                lines.extend(line);
                if lines.len() >= WRITE {
                    write_blocking(&std::mem::take(&mut lines));
                }
            }
            Entry::Record(record) => {
                write_blocking(&std::mem::take(&mut lines));
                record.send();
            }
        }
    }
    write_blocking(&lines);
}

/// Writes to standard error without waiting, whatever it is and whatever process shares it. Returns what is left to be
/// written.
///
/// Standard error cannot be made non-blocking: that would be so for every process that has it too.
fn write_now(entry: Entry) -> Option<Entry> {
    let Entry::Line(mut line) = entry else { return Some(entry) };
    match pwritev2(stderr(), &[IoSlice::new(&line)], HERE, ReadWriteFlags::NOWAIT) {
        Ok(written) if written >= line.len() => None,
        Ok(written) => Some(Entry::Line(line.split_off(written))),
        // Its reader has closed it.
        Err(Errno::PIPE) => None,
        // It is full, or it is a terminal or a file, for which there is no such call.
        Err(_) => Some(Entry::Line(line)),
    }
}

/// Writes to standard error, and waits for its reader. What a closed one does not take is lost.
fn write_blocking(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(stderr(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Another process has made it non-blocking.
            Err(Errno::AGAIN) => {
                // An error shows at the next write.
                let _ = poll(&mut [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}
