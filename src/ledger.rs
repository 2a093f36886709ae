//! What was accepted, in an SQLite file of this dispatcher's own: the one place that knows between the smarthost's
//! 250 and the row's deletion that a mail is on its way.
//!
//! An entry stands for one transaction, that is one final dot. It is `transmitting` before the dot may go out, `accepted`
//! after the 250, and `settled` once the row says so too. A dot that was refused leaves no entry. What a crash leaves
//! open is answered by [`Ledger::open_entries`] and settled before anything is sent.

mod ops;
mod outage;
mod recognise;
mod schema;
mod state_dir;
mod trace;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

use crate::mail::{Fingerprint, MailId, RecordId};

use ops::Op;
pub use ops::hash_address;
pub use outage::OutageNote;
pub use state_dir::StateDir;
pub use trace::{Query, Traced, Tracer};
use writer::Writer;

/// The file's name below `state_dir`.
pub const FILE: &str = "ledger.sqlite";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process works with this `state_dir`.
    #[error("{dir} is in use by another mailqueue{}: stop that one, or give this one a state_dir of its own",
        pid.map(|pid| format!(", process {pid}")).unwrap_or_default())]
    Busy { dir: String, pid: Option<u32> },
    /// The ledger or its directory cannot be used as it is.
    #[error("{path}: {what}. {remedy}")]
    Unusable { path: String, what: String, remedy: &'static str },
    /// A write did not succeed; the same write can be tried again.
    #[error("the ledger cannot be written: {0}")]
    Write(String),
}

/// The key of the hashes that stand in place of addresses; made where there is none yet.
pub fn address_key(dir: &StateDir) -> Result<[u8; 32], Error> {
    schema::any_key(dir.path()).map(|(key, _)| key)
}

/// Names an entry while this process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryId(i64);

/// A transaction that is about to come to its final dot.
#[derive(Clone, Debug)]
pub struct Transmission {
    pub id: MailId,
    pub record: RecordId,
    pub fingerprint: Fingerprint,
    pub message_id: String,
    /// Those that the dot is for.
    pub recipients: Vec<String>,
    /// With these accepted, the row waits for nobody any more.
    pub complete: bool,
    pub begun: Timestamp,
}

/// An entry that an earlier process, or a database that was out of reach, left open.
#[derive(Clone, Debug)]
pub struct OpenEntry {
    pub entry: EntryId,
    pub transmission: Transmission,
    /// The smarthost's 250 and when it came; `None` where nobody knows whether the dot was answered.
    pub accepted: Option<(String, Timestamp)>,
}

/// The open ledger. Cheap to clone; all clones write over one connection, in groups.
#[derive(Clone, Debug)]
pub struct Ledger {
    writer: Writer,
    next: Arc<AtomicI64>,
    open: Arc<AtomicU64>,
}

impl Ledger {
    /// Opens the ledger in a `state_dir` that is ours, and makes it where there is none.
    pub fn open(dir: &StateDir) -> Result<Self, Error> {
        let path = dir.path().join(FILE);
        let connection = schema::open(&path)?;
        let (last, open) = schema::last_and_open(&connection).map_err(|error| schema::damaged(&path, &error))?;
        let key = schema::key(dir.path(), &connection)?;
        Ok(Self {
            writer: Writer::start(connection, key).map_err(|error| schema::damaged(&path, &error))?,
            next: Arc::new(AtomicI64::new(last + 1)),
            open: Arc::new(AtomicU64::new(open)),
        })
    }

    /// Whether this ledger has been there for all that was ever sent of `queue`. Where it has not, and the database knows
    /// of rows that this dispatcher was sending, another ledger has been lost; starting once more does not change that.
    pub async fn knows(&self, queue: &str) -> Result<bool, Error> {
        let queue = queue.to_owned();
        self.writer.read(move |ledger| ledger.query_row(schema::KNOWN_QUEUE, [queue], |row| row.get(0))).await
    }

    /// From now on this ledger knows `queue`.
    pub async fn know(&self, queue: &str) -> Result<(), Error> {
        self.writer.write(Op::Know(queue.to_owned())).await
    }

    /// Entries that are not settled yet.
    pub fn open_count(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Notes a transaction before its dot. No dot may go out unless this came back well; when it does, everything
    /// that was handed to [`Ledger::accepted`] before is on file too.
    pub async fn transmitting(&self, transmission: Transmission) -> Result<EntryId, Error> {
        let entry = EntryId(self.next.fetch_add(1, Ordering::Relaxed));
        let on_file = self.writer.note(Op::Transmitting(entry.0, transmission));
        // Whoever else has a reply to deal with adds his entry: one commit for all.
        tokio::task::yield_now().await;
        on_file.await?;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(entry)
    }

    /// Notes the 250. It is written with the next [`Ledger::transmitting`], or at [`Ledger::flush`]; the future sees to
    /// that too and tells when it is on file, which must be awaited before the row is deleted.
    pub fn accepted(
        &self,
        entry: EntryId,
        reply: String,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.writer.note(Op::Accepted(entry.0, reply, now))
    }

    /// Has everything written that was only noted. To be called when no further dot is about to follow.
    pub fn flush(&self) {
        self.writer.flush();
    }

    /// Notes that a transaction's dot was refused or never sent, so that it can be forgotten; written as acceptances are.
    pub fn refused(&self, entry: EntryId) {
        // Should it stay on file, the next start takes the outcome for unknown: too careful, and no harm.
        drop(self.writer.note(Op::Forget(vec![entry.0])));
        let _ = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| Some(open.saturating_sub(1)));
    }

    /// Forgets transactions whose dot was refused or never sent, or whose mail is settled as of unknown outcome.
    pub async fn forget(&self, entries: &[EntryId]) -> Result<(), Error> {
        self.close(entries, Op::Forget(entries.iter().map(|entry| entry.0).collect())).await
    }

    /// The database says it too now. Addresses become keyed hashes.
    pub async fn settled(&self, entries: &[EntryId]) -> Result<(), Error> {
        for some in entries.chunks(writer::BRIEFLY) {
            self.close(some, Op::Settled(some.iter().map(|entry| entry.0).collect())).await?;
            // Whoever has a mail on the wire comes first.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn close(&self, entries: &[EntryId], op: Op) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        self.writer.write(op).await?;
        let closed = entries.len() as u64;
        // Two entries of one mail can be closed twice when a database comes back; the count must not wrap.
        let _ = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| Some(open.saturating_sub(closed)));
        Ok(())
    }

    /// All entries of `queue` that are not settled, oldest first. Only while none of its mails is being sent.
    pub async fn open_entries(&self, queue: &str) -> Result<Vec<OpenEntry>, Error> {
        let queue = queue.to_owned();
        let look = move |ledger: &Connection| {
            ledger.prepare(schema::OPEN_ENTRIES)?.query_map([queue], schema::open_entry)?.collect()
        };
        self.writer.read(look).await
    }

    /// Which of these rows of `queue` were accepted as a whole before, with this very content, and when: a restored dump,
    /// or a row that somebody put back.
    pub async fn recognise(&self, queue: &str, rows: &[(i64, Fingerprint)]) -> Result<Vec<(i64, Timestamp)>, Error> {
        let (Some(first), Some(last)) = (rows.iter().map(|row| row.0).min(), rows.iter().map(|row| row.0).max()) else {
            return Ok(Vec::new());
        };
        let rows: Vec<_> = rows.iter().map(|(mid, content)| (*mid, content.to_hex())).collect();
        let name = queue.to_owned();
        let (mut known, highest) =
            self.writer.glance(move |ledger| recognise::open_and_highest(ledger, &name, first..=last)).await?;
        // Most numbers are new.
        let old: Vec<_> = rows.iter().filter(|(mid, _)| Some(*mid) <= highest).cloned().collect();
        if !old.is_empty() {
            let name = queue.to_owned();
            let settled = self.writer.read(move |ledger| recognise::settled(ledger, &name, old)).await?;
            known.extend(settled);
        }
        let time = |at| Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(rows.iter().filter_map(|row| Some((row.0, time(*known.get(row)?)))).collect())
    }

    /// Whether it can be written; writes nothing that stays.
    pub async fn is_writable(&self) -> Result<(), Error> {
        self.writer.write(Op::Try).await
    }

    /// Writes what was handed over, and closes the file so that nothing of its write-ahead log is left. Everything that
    /// is asked of any clone afterwards is refused.
    pub async fn shut(&self) {
        self.writer.shut().await;
    }

    /// Drops settled entries that are older than `keep`.
    pub async fn expire(&self, now: Timestamp, keep: Duration) -> Result<(), Error> {
        let before = now.checked_sub(keep).unwrap_or(Timestamp::MIN);
        self.writer.write(Op::Expire(before)).await
    }
}

/// Whether there is a ledger in this directory.
pub fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}
