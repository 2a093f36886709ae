//! What is wrong with a configuration: where it stands, and what to do.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use crate::visible;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Byte offset in the file; `None` where something is missing as a whole.
    pub at: Option<usize>,
    /// The key with its section, as `relay.port`; may be empty.
    pub key: String,
    pub what: String,
    pub remedy: String,
}

/// A configuration that cannot be used. `Display` has a line for each problem: `FILE:LINE: KEY: WHAT; REMEDY`.
#[derive(Debug)]
pub struct Invalid {
    file: PathBuf,
    problems: Vec<(Option<usize>, Problem)>,
}

impl Invalid {
    pub(super) fn new(file: PathBuf, text: &str, problems: Vec<Problem>) -> Self {
        let line = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        let mut problems: Vec<_> = problems.into_iter().map(|problem| (problem.at.map(line), problem)).collect();
        problems.sort_by_key(|(line, _)| line.unwrap_or(usize::MAX));
        Self { file, problems }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (line, problem)) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file.display())?;
            if let Some(line) = line {
                write!(f, "{line}:")?;
            }
            if !problem.key.is_empty() {
                write!(f, " {}:", plain(&problem.key))?;
            }
            write!(f, " {}; {}", plain(&problem.what), plain(&problem.remedy))?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Control characters would let a file write to the terminal.
fn plain(text: &str) -> Cow<'_, str> {
    visible::escaped(text)
}
