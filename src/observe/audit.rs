//! What operators change: who, what, which rows. It belongs into the service's log, and the command that changes
//! something is another process, often another user's. So the command writes it into a file in `state_dir`, and the
//! dispatcher copies that into its log: within a second, or when it starts. Where the command cannot write there, it
//! tells the journal of its host, and where there is none, its own standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval};
use tracing_subscriber::prelude::*;

use super::journald::Journal;
use super::log_writer::LogWriter;
use super::status_file::replace;
use crate::failpoint;
use crate::mail::MailId;

/// Below `state_dir`: one [`Change`] a line, as JSON.
pub const FILE: &str = "operators.jsonl";

/// How many bytes of it are in the log.
const LOGGED: &str = "operators.logged";

/// The target of these lines. They are logged at every level.
pub const AUDIT: &str = "mailqueue::audit";

/// The last part of a change is in the log so soon.
const LOOK: Duration = Duration::from_secs(1);

/// The longest wait for a journal that does not take a change.
const JOURNAL_LIMIT: Duration = Duration::from_secs(2);

const DAY: Duration = Duration::from_secs(86_400);

/// What an operator changed with one command, or with a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub at: Timestamp,
    /// As whom the operator is logged in, who may have become another with sudo.
    pub user: String,
    pub uid: u32,
    /// As in "held".
    pub what: String,
    /// The queue, or `relay`.
    pub target: String,
    /// The rows; none where all of `target` is meant.
    pub mids: Vec<i64>,
}

impl Change {
    /// Whether that very row was changed.
    pub fn concerns(&self, id: &MailId) -> bool {
        *self.target == *id.queue && self.mids.contains(&id.mid)
    }

    /// One event for each row, so that the story of a mail has it.
    fn log(&self) {
        let Self { at, user, uid, what, target, mids } = self;
        if mids.is_empty() {
            tracing::info!(target: AUDIT, queue = target, user, uid, %at, "{what} by an operator");
        }
        for mid in mids {
            let id = format!("{target}/{mid}");
            tracing::info!(target: AUDIT, queue = target, mid, id, user, uid, %at, "{what} by an operator");
        }
    }
}

/// Sees to it that a change comes into a log. Never fails: the last resort is standard error.
pub fn record(state_dir: &Path, change: &Change) {
    if append(state_dir, change).is_ok() {
        return;
    }
    match LogWriter::start().and_then(|log| Ok((Journal::new(log.clone())?, log))) {
        Ok((journal, log)) => {
            let subscriber = tracing_subscriber::registry().with(journal);
            tracing::subscriber::with_default(subscriber, || change.log());
            log.flush(JOURNAL_LIMIT);
        }
        Err(_) => change.log(),
    }
}

fn append(state_dir: &Path, change: &Change) -> io::Result<()> {
    // Root may write into a folder of the daemon's user here, who must not be able to lead it elsewhere.
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(state_dir.join(FILE))?;
    file.lock()?;
    let (metadata, folder) = (file.metadata()?, std::fs::metadata(state_dir)?);
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if metadata.len() == 0 && metadata.uid() != folder.uid() {
        fchown(&file, Some(folder.uid()), Some(folder.gid()))?;
    }
    let mut line = serde_json::to_vec(change)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// All that is known of changes, oldest first. A line that cannot be read is left out.
pub fn changes(state_dir: &Path) -> io::Result<Vec<Change>> {
    let file = match File::open(state_dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    file.lock_shared()?;
    let lines = BufReader::new(file).lines();
    lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()).map(Ok).collect()
}

/// Logs what is new in the file until it is dropped, and forgets what is older than `keep`.
pub async fn follow(state_dir: PathBuf, keep: Duration) {
    let mut looks = interval(LOOK);
    let mut expired: Option<Instant> = None;
    let mut failing = false;
    loop {
        looks.tick().await;
        failpoint::hit("in-audit");
        let mut looked = log_news(&state_dir);
        if expired.is_none_or(|at| at.elapsed() > DAY) {
            looked = looked.and_then(|()| expire(&state_dir, Timestamp::now(), keep));
            expired = Some(Instant::now());
        }
        if let Err(error) = &looked
            && !failing
        {
            let file = state_dir.join(FILE);
            tracing::warn!(target: AUDIT, %error, file = %file.display(), "what operators change is not logged");
        }
        failing = looked.is_err();
    }
}

/// What was written since the last call, also by an earlier process.
pub fn log_news(state_dir: &Path) -> io::Result<()> {
    let length = match std::fs::metadata(state_dir.join(FILE)) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let logged = logged(state_dir);
    if logged == length {
        return Ok(());
    }
    let mut file = File::open(state_dir.join(FILE))?;
    file.lock_shared()?;
    // A file that has shrunk is another one.
    file.seek(SeekFrom::Start(if logged > length { 0 } else { logged }))?;
    let mut news = String::new();
    file.read_to_string(&mut news)?;
    news.lines().filter_map(|line| serde_json::from_str::<Change>(line).ok()).for_each(|change| change.log());
    replace(state_dir, LOGGED, file.stream_position()?.to_string().as_bytes())
}

fn logged(state_dir: &Path) -> u64 {
    let text = std::fs::read_to_string(state_dir.join(LOGGED)).unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn expire(state_dir: &Path, now: Timestamp, keep: Duration) -> io::Result<()> {
    let mut file = match OpenOptions::new().read(true).write(true).open(state_dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    // What came in since the last look is for the next one.
    if logged(state_dir) != text.len() as u64 {
        return Ok(());
    }
    let young = |line: &&str| {
        let change = serde_json::from_str::<Change>(line);
        change.is_ok_and(|change| Duration::try_from(now.duration_since(change.at)).unwrap_or_default() < keep)
    };
    let kept: String = text.lines().filter(young).map(|line| format!("{line}\n")).collect();
    if kept.len() == text.len() {
        return Ok(());
    }
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(kept.as_bytes())?;
    replace(state_dir, LOGGED, kept.len().to_string().as_bytes())
}
