//! `state_dir`: the dispatcher's durable id, and the lock that keeps a second process out.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::entry::Error;

/// A `state_dir` that this process holds for its life.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    dispatcher: String,
    _lock: File,
}

impl StateDir {
    /// Takes the directory, makes it and the id where there are none. `fresh_id` must be random.
    pub fn take(path: &Path, fresh_id: impl FnOnce() -> String) -> Result<Self, Error> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| unusable(path, &error))?;
        let lock = lock(path, true)?;
        let dispatcher = id(path, fresh_id)?;
        Ok(Self { path: path.to_owned(), dispatcher, _lock: lock })
    }

    /// Takes a directory in which a dispatcher has run, and creates nothing. Returns `None` where none has.
    pub fn take_existing(path: &Path) -> Result<Option<Self>, Error> {
        let Some(dispatcher) = Self::dispatcher_of(path)? else { return Ok(None) };
        let lock = lock(path, false)?;
        Ok(Some(Self { path: path.to_owned(), dispatcher, _lock: lock }))
    }

    /// Returns the id of the dispatcher that has run with this directory, whether it runs or not.
    pub fn dispatcher_of(path: &Path) -> Result<Option<String>, Error> {
        read_id(&path.join("dispatcher"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// 32 hexadecimal digits: names this dispatcher in the databases.
    pub fn dispatcher(&self) -> &str {
        &self.dispatcher
    }
}

fn lock(dir: &Path, create: bool) -> Result<File, Error> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| unusable(&path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the message: without a number it is a little less helpful.
            let _ = file.read_to_string(&mut pid);
            return Err(Error::Busy { dir: dir.display().to_string(), pid: pid.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&path, &error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(|error| unusable(&path, &error))?;
    Ok(file)
}

fn id(dir: &Path, fresh: impl FnOnce() -> String) -> Result<String, Error> {
    let path = dir.join("dispatcher");
    if let Some(id) = read_id(&path)? {
        return Ok(id);
    }
    let id = fresh();
    let write = || {
        let new = dir.join("dispatcher.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    };
    write().map_err(|error| unusable(&path, &error))?;
    Ok(id)
}

fn read_id(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let id = text.trim();
            if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(Some(id.to_owned()));
            }
            Err(Error::Unusable {
                path: path.display().to_string(),
                what: "holds no dispatcher id (32 hexadecimal digits)".to_owned(),
                remedy: "Put the file back from a backup, or remove it: the claims of the old id are taken over after a lease",
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::Unusable {
        path: path.display().to_string(),
        what: error.to_string(),
        remedy: "state_dir must be a directory that belongs to the user mailqueue runs as, on a disk with room",
    }
}
