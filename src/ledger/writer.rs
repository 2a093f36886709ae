//! One connection. What goes with every mail is written on the spot; what takes longer is a thread's, and so is whatever
//! comes while the thread has the connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::Error;
use super::ops::{Op, define, perform};

/// Different statements that are kept prepared: more than there are here.
const STATEMENTS: usize = 32;

/// How long the thread waits for another process that is writing.
const PATIENCE: Duration = Duration::from_secs(5);

/// After so many commits the write-ahead log goes into the file, and nobody writes until the disk has it: some 4 MB. More
/// at a time would take as much longer, since it is the disk that is waited for.
const CHECKPOINT: u32 = 500;

/// So many entries can be settled on the spot: a fifth of a millisecond, in which no reply is read.
pub const BRIEFLY: usize = 64;

enum Request {
    Write(Op, oneshot::Sender<Result<(), Error>>),
    /// Looks, and answers whoever asked.
    Read {
        look: Box<dyn FnOnce(&Connection) + Send>,
        brief: bool,
    },
    Shut(oneshot::Sender<()>),
}

impl Request {
    /// Whether it can be carried out on the spot: a page or two, which the operating system takes without a disk. To hand
    /// it to the thread and to be woken by it costs more than the write.
    fn is_brief(&self) -> bool {
        match self {
            Self::Write(Op::Transmitting(..) | Op::Accepted(..) | Op::Forget(_), _) => true,
            Self::Write(Op::Settled(entries), _) => entries.len() <= BRIEFLY,
            Self::Read { brief, .. } => *brief,
            Self::Write(..) | Self::Shut(_) => false,
        }
    }
}

/// The way to the connection. It is closed when it is told to, or when the last of these is dropped.
#[derive(Clone)]
pub struct Writer {
    desk: Arc<Mutex<Desk>>,
    thread: mpsc::Sender<(Book, Vec<Request>)>,
}

struct Desk {
    /// What nobody waits for yet: it goes with what comes next, in one transaction.
    held: Vec<Request>,
    place: Place,
}

/// Where the connection is.
enum Place {
    Here(Book),
    /// And what has been asked of it since, in order.
    AtThread(Vec<Request>),
    Closed,
}

struct Book {
    connection: Connection,
    /// Since the last checkpoint.
    commits: u32,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    pub fn start(connection: Connection, key: [u8; 32]) -> Result<Self, Error> {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.execute_batch("PRAGMA wal_autocheckpoint = 0").map_err(failed)?;
        define(&connection, key).map_err(failed)?;
        let mut book = Book { connection, commits: 0 };
        book.wait_for_others(Duration::ZERO);
        let desk = Arc::new(Mutex::new(Desk { held: Vec::new(), place: Place::Here(book) }));
        let (thread, work) = mpsc::channel();
        let back = Back(Arc::clone(&desk));
        std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || work.into_iter().for_each(|(book, requests)| back.carry_out(book, requests)))
            .map_err(|error| Error::Write(error.to_string()))?;
        Ok(Self { desk, thread })
    }

    /// Takes its place in the order of writes at once, and is written at once; the future answers when it is on file.
    pub fn write(&self, op: Op) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let answered = self.note(op);
        self.flush();
        answered
    }

    /// Takes its place in the order of writes at once; it is written with the next, or at [`Writer::flush`], or as soon
    /// as the future is asked whether it is on file.
    pub fn note(&self, op: Op) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        self.desk().held.push(Request::Write(op, answer));
        let writer = self.clone();
        async move {
            writer.flush();
            // Where the connection is closed, the answer's end was dropped with the request.
            answered.await.unwrap_or_else(|_| Err(stopped()))
        }
    }

    /// Has everything written that was only noted.
    pub fn flush(&self) {
        let mut desk = self.desk();
        let requests = std::mem::take(&mut desk.held);
        if requests.is_empty() {
            return;
        }
        match &mut desk.place {
            Place::Closed => {}
            Place::AtThread(waiting) => waiting.extend(requests),
            Place::Here(book) if requests.iter().all(Request::is_brief) && book.begin_now(&requests) => {
                book.carry_out(requests, true);
            }
            here => {
                let Place::Here(book) = std::mem::replace(here, Place::AtThread(Vec::new())) else { return };
                // Where the thread is gone, the requests go with it, and those who wait hear of it.
                let _ = self.thread.send((book, requests));
            }
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn shut(&self) {
        let (answer, answered) = oneshot::channel();
        self.desk().held.push(Request::Shut(answer));
        self.flush();
        // Where the thread is gone already there is nothing left to close.
        let _ = answered.await;
    }

    /// Sees everything that was handed to [`Writer::write`] before.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.look(look, false).await
    }

    /// The same on the spot, for a look at a few pages that are seldom on the disk alone.
    pub async fn glance<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.look(look, true).await
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        brief: bool,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let look = move |connection: &Connection| {
            // Whoever asked may have been cancelled.
            let _ = answer.send(look(connection).map_err(failed));
        };
        self.desk().held.push(Request::Read { look: Box::new(look), brief });
        self.flush();
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> Error {
    Error::Write("its writer has stopped".to_owned())
}

pub fn failed(error: rusqlite::Error) -> Error {
    Error::Write(error.to_string())
}

/// The thread's way back to the desk. Where the thread ends, by a panic even, nobody waits for it.
struct Back(Arc<Mutex<Desk>>);

impl Back {
    /// Carries everything out that is asked of the connection, and leaves it on the desk.
    fn carry_out(&self, mut book: Book, mut requests: Vec<Request>) {
        book.wait_for_others(PATIENCE);
        loop {
            if let Some(shut) = book.carry_out(requests, false) {
                // Checkpoints and removes the write-ahead log; what cannot be done now is done at the next open.
                drop(book);
                self.desk().place = Place::Closed;
                // Whoever asked may have been cancelled.
                let _ = shut.send(());
                return;
            }
            if book.commits >= CHECKPOINT {
                book.checkpoint();
            }
            let mut desk = self.desk();
            match std::mem::replace(&mut desk.place, Place::AtThread(Vec::new())) {
                Place::AtThread(waiting) if !waiting.is_empty() => requests = waiting,
                _ => {
                    book.wait_for_others(Duration::ZERO);
                    desk.place = Place::Here(book);
                    return;
                }
            }
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.desk().place = Place::Closed;
    }
}

impl Book {
    fn wait_for_others(&mut self, patience: Duration) {
        // Fails only in the middle of a statement.
        let _ = self.connection.busy_timeout(patience);
    }

    /// Begins a transaction, where one is needed for these, unless another process is writing, or a checkpoint is due, or
    /// was made just now, so that the log begins anew and its head is brought to the disk: those waits are the thread's.
    fn begin_now(&self, requests: &[Request]) -> bool {
        let writes = requests.iter().any(|request| matches!(request, Request::Write(..)));
        !writes || (1..CHECKPOINT).contains(&self.commits) && self.begin().is_ok()
    }

    fn begin(&self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(drop)
    }

    /// One transaction for all writes, or for those up to a read: what was asked to be written before is on file before
    /// anybody reads. Answers whoever asked for the end.
    fn carry_out(&mut self, requests: Vec<Request>, begun: bool) -> Option<oneshot::Sender<()>> {
        let mut group = Vec::with_capacity(requests.len());
        let mut begun = begun.then_some(Ok(()));
        let mut shut = None;
        for request in requests {
            match request {
                Request::Write(op, answer) => group.push((op, answer)),
                Request::Read { look, .. } => {
                    self.write(&mut group, &mut begun);
                    look(&self.connection);
                }
                Request::Shut(answer) => shut = Some(answer),
            }
        }
        self.write(&mut group, &mut begun);
        shut
    }

    fn write(
        &mut self,
        group: &mut Vec<(Op, oneshot::Sender<Result<(), Error>>)>,
        begun: &mut Option<rusqlite::Result<()>>,
    ) {
        if group.is_empty() {
            return;
        }
        let (ops, answers): (Vec<_>, Vec<_>) = group.drain(..).unzip();
        let connection = &self.connection;
        let written = begun
            .take()
            .unwrap_or_else(|| self.begin())
            .and_then(|()| ops.into_iter().try_for_each(|op| perform(connection, op)))
            .and_then(|()| connection.prepare_cached("COMMIT")?.execute([]));
        if written.is_err() && !connection.is_autocommit() {
            // The first error is the one that tells; without a transaction there is nothing to take back.
            let _ = connection.execute_batch("ROLLBACK");
        }
        self.commits += 1;
        for answer in answers {
            // Whoever asked may have been cancelled; the write counts all the same.
            let _ = answer.send(written.as_ref().map(drop).map_err(|error| Error::Write(error.to_string())));
        }
    }

    fn checkpoint(&mut self) {
        // What cannot be moved now, for want of room or because somebody reads, is moved the next time.
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        self.commits = 0;
    }
}
