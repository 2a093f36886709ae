//! What was accepted, in two files of this dispatcher's own: the one place that knows between the smarthost's 250 and the
//! row's deletion that a mail is on its way.
//!
//! An entry stands for one transaction, that is one final dot. It is `transmitting` before the dot may go out, `accepted`
//! after the 250, and `settled` once the row says so too. A dot that was refused leaves no entry. What is open stands in
//! the daybook, a file of its own; what is settled is posted to an SQLite file. What a crash leaves open is answered by
//! [`Ledger::open_entries`] and settled before anything is sent.

mod address;
mod book;
mod daybook;
mod entry;
mod outage;
mod recognise;
mod schema;
mod state_dir;
mod trace;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::mail::{Fingerprint, MailId, RecordId};

pub use address::hash_address;
use book::Book;
use daybook::{Daybook, Entry};
pub use entry::{Closing, EntryId, Error, FILE, OpenEntry, Transmission};
pub use outage::OutageNote;
pub use state_dir::StateDir;
pub use trace::{Query, Traced, Tracer};

/// The key of the hashes that stand in place of addresses; made where there is none yet.
pub fn address_key(dir: &StateDir) -> Result<[u8; 32], Error> {
    schema::any_key(dir.path()).map(|(key, _)| key)
}

/// The open ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    daybook: Arc<Mutex<Daybook>>,
    settled: Book,
    key: [u8; 32],
    /// The highest number of each queue's rows that are settled.
    highest: Arc<Mutex<HashMap<String, i64>>>,
}

impl Ledger {
    /// Opens the ledger in a `state_dir` that is ours, and makes it where there is none.
    pub fn open(dir: &StateDir) -> Result<Self, Error> {
        let path = dir.path().join(FILE);
        let connection = schema::open(&path)?;
        let key = schema::key(dir.path(), &connection)?;
        let damaged = |error| schema::damaged(&path, &error);
        let last = schema::last_settled(&connection).map_err(damaged)?;
        let highest = schema::highest_numbers(&connection).map_err(damaged)?;
        let open = schema::still_open(dir.path(), &connection)?;
        let daybook = Daybook::start(dir.path(), open, last)
            .map_err(|error| schema::damaged(&dir.path().join(daybook::FILE), &error))?;
        Ok(Self {
            daybook: Arc::new(Mutex::new(daybook)),
            settled: Book::start(connection)?,
            key,
            highest: Arc::new(Mutex::new(highest)),
        })
    }

    /// Whether this ledger has been there for all that was ever sent of `queue`. Where it has not, and the database knows
    /// of rows that this dispatcher was sending, another ledger has been lost; starting once more does not change that.
    pub async fn knows(&self, queue: &str) -> Result<bool, Error> {
        let queue = queue.to_owned();
        self.settled.ask(move |book| schema::knows(book, &queue)).await
    }

    /// From now on this ledger knows `queue`.
    pub async fn know(&self, queue: &str) -> Result<(), Error> {
        let queue = queue.to_owned();
        self.settled.ask(move |book| schema::know(book, &queue)).await
    }

    /// Entries that are not settled yet.
    pub fn open_count(&self) -> u64 {
        self.daybook().entries().len() as u64
    }

    /// Notes a transaction before its dot. No dot may go out unless this came back well; when it does, everything
    /// that was handed to [`Ledger::accepted`] before is on file too.
    pub async fn transmitting(&self, transmission: Transmission) -> Result<EntryId, Error> {
        let entry = self.daybook().begin(transmission);
        // Whoever else has a reply to deal with adds his entry: one write for all.
        tokio::task::yield_now().await;
        let mut daybook = self.daybook();
        // What keeps it from being written is said when it is asked for.
        let _ = daybook.write();
        daybook.is_on_file(entry).map_err(Error::Write)?;
        Ok(EntryId(entry))
    }

    /// Notes the 250. It is written with the next [`Ledger::transmitting`], or at [`Ledger::flush`].
    pub fn accepted(&self, entry: EntryId, reply: String, now: Timestamp) {
        self.daybook().accept(entry.0, reply, now);
    }

    /// Notes that a transaction's dot was refused or never sent, so that it can be forgotten; written as acceptances are.
    pub fn refused(&self, entry: EntryId) {
        // Should it stay on file, the next start takes the outcome for unknown: too careful, and no harm.
        self.daybook().close([entry.0]);
    }

    /// Has everything written that was noted: must have come back well before an accepted row is deleted, and is to be
    /// called when no further dot is about to follow.
    pub fn flush(&self) -> Result<(), Error> {
        self.daybook().write().map_err(Error::Write)
    }

    /// Forgets transactions whose dot was refused or never sent, or whose mail is settled as of unknown outcome.
    pub fn forget(&self, entries: &[EntryId]) -> Result<(), Error> {
        self.daybook().close(entries.iter().map(|entry| entry.0));
        self.flush()
    }

    /// The database says it too now. Addresses become keyed hashes.
    pub async fn settled(&self, entries: &[EntryId]) -> Result<(), Error> {
        let posted = self.daybook().those(entries.iter().map(|entry| entry.0));
        if posted.is_empty() {
            return Ok(());
        }
        self.note_highest(&posted);
        let key = self.key;
        self.settled.ask(move |book| schema::post(book, &key, &posted)).await?;
        self.forget(entries)
    }

    /// Closes entries. What an error keeps open is closed by calling this again with the same entries.
    pub async fn close(&self, closing: &Closing) -> Result<(), Error> {
        self.settled(&closing.accepted).await?;
        self.forget(&closing.other)
    }

    /// All entries of `queue` that are not settled, oldest first. Only while none of its mails is being sent.
    pub fn open_entries(&self, queue: &str) -> Vec<OpenEntry> {
        self.open_entries_of(queue, &HashSet::new())
    }

    /// As [`Ledger::open_entries`], and those of `records` besides: the queue may have had another name.
    pub fn open_entries_of(&self, queue: &str, records: &HashSet<RecordId>) -> Vec<OpenEntry> {
        let daybook = self.daybook();
        let is_wanted =
            |entry: &Entry| *entry.transmission.id.queue == *queue || records.contains(&entry.transmission.record);
        let wanted = daybook.entries().iter().filter(|(_, entry)| is_wanted(entry));
        let open = wanted.map(|(id, entry)| OpenEntry {
            entry: EntryId(*id),
            transmission: entry.transmission.clone(),
            accepted: entry.accepted.clone(),
        });
        open.collect()
    }

    /// Which of these rows of `queue` were accepted as a whole before, with this very content, and when: a restored dump,
    /// or a row that somebody put back.
    pub async fn recognise(&self, queue: &str, rows: &[(i64, Fingerprint)]) -> Result<Vec<(i64, Timestamp)>, Error> {
        let mut known = recognise::open(self.daybook().entries(), queue, rows);
        // Most numbers are new.
        let highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner).get(queue).copied();
        let old: Vec<_> = rows.iter().filter(|(mid, _)| Some(*mid) <= highest).copied().collect();
        if !old.is_empty() {
            let queue = queue.to_owned();
            known.extend(self.settled.ask(move |book| recognise::settled(book, &queue, &old)).await?);
        }
        Ok(known)
    }

    /// Whether it can be written; writes nothing that stays.
    pub async fn is_writable(&self) -> Result<(), Error> {
        self.daybook().probe().map_err(Error::Write)?;
        self.settled.ask(schema::probe).await
    }

    /// Writes what was handed over, and closes the files so that nothing of a write-ahead log is left. Nothing is settled
    /// any more afterwards.
    pub async fn shut(&self) -> Result<(), Error> {
        self.settled.shut().await;
        self.flush()
    }

    /// Drops settled entries that are older than `keep`.
    pub async fn expire(&self, now: Timestamp, keep: Duration) -> Result<(), Error> {
        let before = now.checked_sub(keep).unwrap_or(Timestamp::MIN);
        self.settled.ask(move |book| schema::expire(book, before)).await
    }

    fn note_highest(&self, posted: &[(i64, Arc<Entry>)]) {
        let mut numbers = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, entry) in posted {
            let MailId { queue, mid } = &entry.transmission.id;
            match numbers.get_mut(&**queue) {
                Some(highest) => *highest = (*highest).max(*mid),
                None => drop(numbers.insert(queue.to_string(), *mid)),
            }
        }
    }

    fn daybook(&self) -> MutexGuard<'_, Daybook> {
        self.daybook.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is a ledger in this directory.
pub fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}
