//! A folder of files that only their owner can read, into which no other user can lead a write.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rustix::fs::{AtFlags, Mode, OFlags, open, openat, unlinkat};
use rustix::io::Errno;

pub struct Folder {
    path: PathBuf,
    handle: OwnedFd,
}

impl Folder {
    /// Makes the folder, and those above it, with mode 0700 where they do not exist. A folder that exists keeps its mode.
    /// A symbolic link in its place is an error: in a folder such as /var/tmp anybody could have put it there.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        // Without a slash at its end, behind which a link would be followed.
        let path: PathBuf = path.components().collect();
        let shown = path.display().to_string();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the folder {shown}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match open(&path, flags, Mode::empty()) {
            Ok(handle) => Ok(Self { path, handle }),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(anyhow!("{shown} is a symbolic link, which is not followed: name the folder itself with --out"))
            }
            Err(error) => Err(error).with_context(|| format!("cannot open the folder {shown}")),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes new files with mode 0600, all or none. A file that exists is an error, and stays as it is.
    pub fn write(&self, files: &[(String, &[u8])]) -> anyhow::Result<()> {
        let mut created = Vec::new();
        let written = self.write_each(files, &mut created);
        if written.is_err() {
            for name in created {
                // The error that is returned already counts more than what is left of an unfinished file.
                let _ = unlinkat(&self.handle, name, AtFlags::empty());
            }
        }
        written
    }

    fn write_each<'a>(&self, files: &'a [(String, &[u8])], created: &mut Vec<&'a str>) -> anyhow::Result<()> {
        for (name, bytes) in files {
            let shown = self.path.join(name).display().to_string();
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = match openat(&self.handle, name.as_str(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => file,
                Err(Errno::EXIST) => {
                    return Err(anyhow!("{shown} exists, and is not overwritten: name another folder with --out"));
                }
                Err(error) => return Err(error).with_context(|| format!("cannot write {shown}")),
            };
            created.push(name);
            File::from(file).write_all(bytes).with_context(|| format!("cannot write {shown}"))?;
        }
        Ok(())
    }
}
