//! Since when the relay is out of reach, in a file of `state_dir`, because expiry stands still meanwhile and the process
//! may end before the outage does.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// The file's name below `state_dir`. It is there as long as some outage has not been excused.
pub const FILE: &str = "relay-down";

/// The note of an outage that is not over, or that not every deferred mail has been excused for.
#[derive(Debug)]
pub struct OutageNote {
    path: PathBuf,
}

impl OutageNote {
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When the outage began; `None` where there is none.
    pub fn read(&self) -> io::Result<Option<Timestamp>> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// On the disk when this comes back.
    pub fn write(&self, since: Timestamp) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        writeln!(file, "{since}")?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)
    }

    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
