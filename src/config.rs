//! The configuration: what the file says, checked. Each part's settings belong to that part; this fills them.

mod check;
mod database;
mod file;
mod host;
mod problem;
mod reader;
mod settings;

use std::path::Path;

pub use database::database;
pub use problem::{Invalid, Problem};
pub use settings::{Config, Queue};

/// Where the file is when nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/mailqueue/mailqueue.toml";

impl Config {
    pub fn load(path: &Path) -> Result<Self, Invalid> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let (what, remedy) = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    ("there is no such file", "name it with --config FILE or $MAILQUEUE_CONFIG, or create it")
                }
                std::io::ErrorKind::PermissionDenied => {
                    ("you may not read this file", "run this as its owner, or as a member of its group")
                }
                std::io::ErrorKind::InvalidData => ("this is not UTF-8", "save it as UTF-8"),
                _ => ("this file cannot be read", "look at what stands there"),
            };
            let problem = Problem { at: None, key: String::new(), what: what.into(), remedy: remedy.into() };
            Invalid::new(path.to_owned(), "", vec![problem])
        })?;
        Self::parse(path, &text)
    }

    /// `path` is for messages only.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Invalid> {
        let invalid = |problems| Invalid::new(path.to_owned(), text, problems);
        let file = file::File::parse(text).map_err(|problem| invalid(vec![problem]))?;
        check::check(path, file).map_err(invalid)
    }
}
