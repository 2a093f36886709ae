//! Secrets: where they stand, and how they are read when they are used. The lowest layer; reads files, does no other I/O.
//!
//! Nothing here is read before it is needed, so that a command that needs no password runs where none is at hand.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A secret that has not been read yet. Both forms may hold `${NAME}`. `Debug` shows no value.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    File(PathBuf),
    Value(String),
}

impl Secret {
    /// Reads the secret now. Call this at each use, so that a changed file needs no restart.
    pub fn read(&self) -> Result<String, Error> {
        match self {
            Self::File(path) => read_file(path),
            Self::Value(text) => Ok(expand(text)?),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Value(_) => f.write_str("Value(…)"),
        }
    }
}

/// Why there is no secret. Names places, never content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Variable(#[from] Variable),
    #[error("the password file {} cannot be read ({why}): create it, or correct `password_file`", path.display())]
    File { path: PathBuf, why: String },
    #[error("the password file {} can be read by others (mode {mode:04o}): run chmod 0600 on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the password file {} is empty: write the password into it", path.display())]
    Empty { path: PathBuf },
}

/// Reads a secret's file, in whose name `${NAME}` is put in. One line end at the end is not part of the secret.
///
/// The file must be closed to everybody but its owner. One exception: what systemd hands over under
/// `$CREDENTIALS_DIRECTORY` (LoadCredential=) belongs to root or to us and may also show group read (0440), because
/// that bit is how an access control list for the service's user looks from outside.
pub fn read_file(path: &Path) -> Result<String, Error> {
    let path = match path.to_str() {
        Some(text) => PathBuf::from(expand(text)?),
        None => path.to_owned(),
    };
    let failed = |error: io::Error| Error::File { path: path.clone(), why: cause(&error) };
    let file = fs::File::open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && metadata.mode() & forbidden(&path, &metadata) != 0 {
        return Err(Error::Exposed { path, mode: metadata.mode() & 0o7777 });
    }
    let mut secret = io::read_to_string(file).map_err(failed)?;
    for end in ['\n', '\r'] {
        if secret.ends_with(end) {
            secret.pop();
        }
    }
    if secret.is_empty() {
        return Err(Error::Empty { path });
    }
    Ok(secret)
}

/// The permission bits that this file must not have.
fn forbidden(path: &Path, metadata: &Metadata) -> u32 {
    let handed_over = std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|folder| path.starts_with(folder));
    let owner = metadata.uid();
    if handed_over && (owner == 0 || owner == rustix::process::geteuid().as_raw()) { 0o037 } else { 0o077 }
}

/// An I/O error without the number that the standard library adds.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// A `${NAME}` that cannot be put in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Variable {
    #[error("the environment variable {0} is not set: set it, or write out what it stands for{hint}", hint = hint(.0))]
    Unset(String),
    #[error("the environment variable {0} is empty: give it a value, or take ${{{0}}} out{hint}", hint = hint(.0))]
    Empty(String),
    #[error("the environment variable {0} is not UTF-8")]
    NotText(String),
    #[error("`${{` begins a variable and is not followed by a name and `}}`: write ${{NAME}}")]
    Malformed,
}

/// What systemd sets for the service alone is what a person in a shell misses first.
fn hint(variable: &str) -> &'static str {
    if variable == "CREDENTIALS_DIRECTORY" {
        ". systemd sets it for the service only; in a shell name the folder of the password files, as in \
         `sudo CREDENTIALS_DIRECTORY=/etc/mailqueue mailqueue …`"
    } else {
        ""
    }
}

/// Puts environment variables in place of each `${NAME}`; one that is not set, or empty, is an error. A `$` without `{`
/// stands for itself, and what a variable holds is not looked through again.
pub fn expand(text: &str) -> Result<String, Variable> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        expanded.push_str(&rest[..start]);
        let (name, behind) = rest[start + 2..].split_once('}').ok_or(Variable::Malformed)?;
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !fits || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Variable::Malformed);
        }
        match std::env::var(name) {
            // Half a URL or half a path is never what was meant.
            Ok(value) if value.is_empty() => return Err(Variable::Empty(name.to_owned())),
            Ok(value) => expanded.push_str(&value),
            Err(std::env::VarError::NotPresent) => return Err(Variable::Unset(name.to_owned())),
            Err(std::env::VarError::NotUnicode(_)) => return Err(Variable::NotText(name.to_owned())),
        }
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(expanded)
}
