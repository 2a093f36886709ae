//! The entries that are open, in memory and in a file that only grows: a line for each thing that became of one. What is
//! settled is posted to the ledger proper, and when nothing is open any more the file begins anew.
//!
//! A commit of SQLite for each mail was a quarter of the dispatcher's time; a line costs one write. Neither waits for the
//! disk: what a killed process wrote is there, and a machine that loses its power may lose the last moments.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::entry::{Transmission, time};
use crate::mail::{Fingerprint, MailId, RecordId};

/// The file's name below `state_dir`.
pub const FILE: &str = "ledger.daybook";

/// A file of so many bytes is written anew with what is open still: some ten thousand mails, of which none was without
/// company.
const LONG: u64 = 8 * 1024 * 1024;

/// So much room is looked for where nothing could be written before: less may be left of a block that is there already.
const PROBE: [u8; 8192] = [b'\n'; 8192];

/// A transaction that came to its dot, or is about to, and is not settled.
#[derive(Clone, Debug)]
pub struct Entry {
    pub transmission: Transmission,
    /// The smarthost's 250 and when it came; `None` where it is unknown whether the dot was answered.
    pub accepted: Option<(String, Timestamp)>,
}

/// Open entries by their ids, oldest first.
pub type Open = BTreeMap<i64, Arc<Entry>>;

#[derive(Debug)]
pub struct Daybook {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines in the file.
    length: u64,
    /// A write failed: some of it may stand behind `length`.
    torn: bool,
    /// The file is written anew when it is longer.
    limit: u64,
    /// The highest id that was ever given.
    last: i64,
    open: Open,
    /// What is not in the file yet.
    unwritten: Vec<Unwritten>,
    /// What kept the last transmission from being noted that was not.
    trouble: String,
}

/// A line that is to be written. What it says of an entry stands in `open`.
#[derive(Debug)]
enum Unwritten {
    Transmitting(i64),
    Accepted(i64),
    Closed(i64),
}

impl Daybook {
    /// With what is open still of that which an earlier process left: the file then says it, and no more. Makes one where
    /// there is none. `last` is the highest id that was settled.
    pub fn start(dir: &Path, open: Open, last: i64) -> io::Result<Self> {
        let path = dir.join(FILE);
        let file = appended(&path)?;
        let last = open.keys().next_back().map_or(last, |open| last.max(*open));
        let (unwritten, trouble) = (Vec::new(), String::new());
        let mut daybook = Self { path, file, length: 0, torn: false, limit: LONG, last, open, unwritten, trouble };
        daybook.renew()?;
        Ok(daybook)
    }

    pub fn entries(&self) -> &Open {
        &self.open
    }

    /// Those of these entries that are open.
    pub fn those(&self, ids: impl Iterator<Item = i64>) -> Vec<(i64, Arc<Entry>)> {
        ids.filter_map(|id| Some((id, Arc::clone(self.open.get(&id)?)))).collect()
    }

    /// Notes a transaction before its dot, under a new id; no dot may go out before [`Daybook::is_on_file`] says so.
    pub fn begin(&mut self, transmission: Transmission) -> i64 {
        self.last += 1;
        self.open.insert(self.last, Arc::new(Entry { transmission, accepted: None }));
        self.unwritten.push(Unwritten::Transmitting(self.last));
        self.last
    }

    /// Notes the 250. Should it not come into the file now, it does with the next write that succeeds.
    pub fn accept(&mut self, id: i64, reply: String, now: Timestamp) {
        let Some(entry) = self.open.get_mut(&id) else { return };
        Arc::make_mut(entry).accepted = Some((reply, now));
        self.unwritten.push(Unwritten::Accepted(id));
    }

    /// Forgets entries: refused, of no interest any more, or posted.
    pub fn close(&mut self, ids: impl IntoIterator<Item = i64>) {
        for id in ids {
            if self.open.remove(&id).is_some() {
                self.unwritten.push(Unwritten::Closed(id));
            }
        }
    }

    /// Whether a transmission was noted; else what kept it from being.
    pub fn is_on_file(&self, id: i64) -> Result<(), String> {
        if self.open.contains_key(&id) { Ok(()) } else { Err(self.trouble.clone()) }
    }

    /// Writes what is not written yet, in one piece. Where that fails, no transmission is noted that was to be, and
    /// acceptances wait for the next.
    pub fn write(&mut self) -> Result<(), String> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let written = if self.open.is_empty() || self.length > self.limit { self.renew() } else { self.append() };
        written.map_err(|error| {
            self.trouble = format!("{}: {error}", self.path.display());
            for line in std::mem::take(&mut self.unwritten) {
                match line {
                    Unwritten::Transmitting(id) => drop(self.open.remove(&id)),
                    Unwritten::Accepted(_) | Unwritten::Closed(_) => self.unwritten.push(line),
                }
            }
            self.trouble.clone()
        })
    }

    /// Whether there is room for more; leaves nothing.
    pub fn probe(&mut self) -> Result<(), String> {
        self.write()?;
        self.stretch().map_err(|error| format!("{}: {error}", self.path.display()))
    }

    fn stretch(&mut self) -> io::Result<()> {
        self.mend()?;
        self.torn = true;
        self.file.write_all(&PROBE)?;
        self.mend()
    }

    fn append(&mut self) -> io::Result<()> {
        self.mend()?;
        let mut text = Vec::with_capacity(512 * self.unwritten.len());
        for line in &self.unwritten {
            let line = match line {
                Unwritten::Closed(id) => Line::Closed { id: *id },
                Unwritten::Transmitting(id) => match self.open.get(id) {
                    Some(entry) => Line::transmitting(*id, &entry.transmission),
                    None => continue,
                },
                Unwritten::Accepted(id) => match self.open.get(id).and_then(|entry| entry.accepted.as_ref()) {
                    Some((reply, at)) => Line::accepted(*id, reply, *at),
                    None => continue,
                },
            };
            line.write(&mut text)?;
        }
        self.torn = true;
        self.file.write_all(&text)?;
        self.torn = false;
        self.length += text.len() as u64;
        self.unwritten.clear();
        Ok(())
    }

    /// Takes back what a write that failed has left.
    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        Ok(())
    }

    /// The file with what is open, and nothing else.
    fn renew(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            self.file.set_len(0)?;
            self.length = 0;
        } else {
            let mut text = Vec::new();
            for (&id, entry) in &self.open {
                Line::transmitting(id, &entry.transmission).write(&mut text)?;
                if let Some((reply, at)) = &entry.accepted {
                    Line::accepted(id, reply, *at).write(&mut text)?;
                }
            }
            let new = self.path.with_extension("new");
            let mut file = appended(&new)?;
            file.set_len(0)?;
            file.write_all(&text)?;
            // What was on the disk before must not be lost by being written anew.
            file.sync_data()?;
            std::fs::rename(&new, &self.path)?;
            self.file = file;
            self.length = text.len() as u64;
        }
        self.torn = false;
        self.limit = LONG.max(2 * self.length);
        self.unwritten.clear();
        Ok(())
    }
}

fn appended(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// What is open according to the file, which somebody may be writing to. An end that makes no sense is what a machine that
/// lost its power left of the last lines; what makes none before a line that does is damage.
pub fn read(dir: &Path) -> io::Result<Open> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Open::new()),
        Err(error) => return Err(error),
    };
    let mut open = Open::new();
    let mut bad = None;
    for (at, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match Line::read(line).map(|line| line.apply(&mut open)) {
            Some(_) if let Some(bad) = bad => {
                let what = format!("line {bad} is nothing that mailqueue writes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            Some(()) => {}
            None => bad = bad.or(Some(at + 1)),
        }
    }
    Ok(open)
}

/// A line of the file, in JSON. Times are milliseconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Transmitting {
        id: i64,
        queue: Cow<'a, str>,
        mid: i64,
        record: Cow<'a, str>,
        fingerprint: Cow<'a, str>,
        message_id: Cow<'a, str>,
        recipients: Cow<'a, [String]>,
        complete: bool,
        #[serde(default, skip_serializing_if = "<[String]>::is_empty")]
        repairs: Cow<'a, [String]>,
        begun: i64,
    },
    Accepted {
        id: i64,
        reply: Cow<'a, str>,
        at: i64,
    },
    Closed {
        id: i64,
    },
}

impl<'a> Line<'a> {
    fn transmitting(id: i64, transmission: &'a Transmission) -> Self {
        Self::Transmitting {
            id,
            queue: Cow::Borrowed(&transmission.id.queue),
            mid: transmission.id.mid,
            record: transmission.record.as_str().into(),
            fingerprint: transmission.fingerprint.to_hex().into(),
            message_id: Cow::Borrowed(&transmission.message_id),
            recipients: Cow::Borrowed(&transmission.recipients),
            complete: transmission.complete,
            repairs: Cow::Borrowed(&transmission.repairs),
            begun: transmission.begun.as_millisecond(),
        }
    }

    fn accepted(id: i64, reply: &'a str, at: Timestamp) -> Self {
        Self::Accepted { id, reply: reply.into(), at: at.as_millisecond() }
    }

    fn write(&self, text: &mut Vec<u8>) -> io::Result<()> {
        serde_json::to_writer(&mut *text, self)?;
        text.push(b'\n');
        Ok(())
    }

    /// `None` where this is no whole line of ours.
    fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
    }

    fn apply(self, open: &mut Open) {
        match self {
            Self::Closed { id } => drop(open.remove(&id)),
            Self::Accepted { id, reply, at } => {
                if let Some(entry) = open.get_mut(&id) {
                    Arc::make_mut(entry).accepted = Some((reply.into_owned(), time(at)));
                }
            }
            Self::Transmitting {
                id,
                queue,
                mid,
                record,
                fingerprint,
                message_id,
                recipients,
                complete,
                repairs,
                begun,
            } => {
                let ids = RecordId::parse(&record).zip(Fingerprint::from_hex(&fingerprint));
                let Some((record, fingerprint)) = ids else { return };
                let transmission = Transmission {
                    id: MailId::new(&*queue, mid),
                    record,
                    fingerprint,
                    message_id: message_id.into_owned(),
                    recipients: recipients.into_owned(),
                    complete,
                    repairs: repairs.into_owned(),
                    begun: time(begun),
                };
                open.insert(id, Arc::new(Entry { transmission, accepted: None }));
            }
        }
    }
}
