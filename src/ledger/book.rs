//! The settled entries' file, which a thread has: whoever wants something of it waits for the disk, and nobody else.

use std::sync::mpsc;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::entry::{Error, FILE};
use crate::failpoint;

/// Different statements that are kept prepared: more than there are here.
const STATEMENTS: usize = 32;

/// Answers whoever wants to know that the connection is closed, where it is the last.
type Job = Box<dyn FnOnce(&Connection) -> Option<oneshot::Sender<()>> + Send>;

/// The way to the connection. It is closed when it is told to, or when the last of these is dropped.
#[derive(Clone)]
pub struct Book {
    jobs: mpsc::Sender<Job>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Book")
    }
}

impl Book {
    pub fn start(connection: Connection) -> Result<Self, Error> {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let (jobs, inbox) = mpsc::channel::<Job>();
        let work = move || {
            let shut = inbox.into_iter().find_map(|job| job(&connection));
            // Checkpoints and removes the write-ahead log; what cannot be done now is done at the next open.
            drop(connection);
            // Whoever asked may have been cancelled.
            let _ = shut.map(|shut| shut.send(()));
        };
        std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(work)
            .map_err(|error| Error::Write(error.to_string()))?;
        Ok(Self { jobs })
    }

    /// Has something done with the connection, in the order in which it is asked for.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        // Where the thread is gone, the answer's end goes with the job.
        let _ = self.jobs.send(Box::new(move |connection| {
            failpoint::hit("in-ledger");
            // Whoever asked may have been cancelled.
            let _ = answer.send(work(connection).map_err(|error| failed(connection, &error)));
            None
        }));
        answered.await.unwrap_or_else(|_| Err(Error::Write("its writer has stopped".to_owned())))
    }

    /// Closes the file, so that nothing of its write-ahead log is left. Whatever is asked afterwards is refused.
    pub async fn shut(&self) {
        let (answer, answered) = oneshot::channel();
        // Where the thread is gone already there is nothing left to close.
        let _ = self.jobs.send(Box::new(|_| Some(answer)));
        let _ = answered.await;
    }
}

pub fn failed(book: &Connection, error: &rusqlite::Error) -> Error {
    Error::Write(format!("{}: {error}", book.path().unwrap_or(FILE)))
}
