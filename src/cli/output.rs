//! The output of commands: to a person at a terminal, or plain to a pipe. Nothing from a row gets through unescaped.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Cell, Color, ContentArrangement, Table};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::observe::logs;
use crate::visible;

/// Standard output.
pub struct Out {
    writer: BufWriter<io::Stdout>,
    pub terminal: bool,
    colours: bool,
    to_the_end: bool,
    /// The first error of a command that works to its end.
    failed: Option<io::Error>,
}

/// Standard output takes nothing more; tells this apart from any other I/O error of a command.
#[derive(Debug, thiserror::Error)]
#[error("standard output cannot be written: {0}")]
struct Unwritable(io::Error);

/// True for an error of [`Out`] that says that the reader closed the pipe, as `head` does.
pub fn is_closed_pipe(error: &io::Error) -> bool {
    let ours = error.get_ref().is_some_and(|inner| inner.is::<Unwritable>());
    ours && error.kind() == io::ErrorKind::BrokenPipe
}

/// For a word that people look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Green,
    Yellow,
    Red,
}

impl Out {
    pub fn standard() -> Self {
        let terminal = io::stdout().is_terminal();
        let colours = terminal && logs::colours_wanted();
        Self { writer: BufWriter::new(io::stdout()), terminal, colours, to_the_end: false, failed: None }
    }

    /// For commands that change something: an output that cannot be written, and a reader that closed the pipe, stop
    /// nothing halfway. What is written after that is discarded, and [`Out::finish`] returns the error.
    pub fn work_to_the_end(&mut self) {
        self.to_the_end = true;
    }

    /// Writes what is still held back, and returns the first error since the start. A closed pipe is none.
    pub fn finish(&mut self) -> io::Result<()> {
        let flushed = self.flush();
        match self.failed.take().map_or(flushed, Err) {
            Err(error) if is_closed_pipe(&error) => Ok(()),
            ended => ended,
        }
    }

    /// Decides about an error: a command that works to its end keeps it for later.
    fn outcome<T>(&mut self, written: io::Result<T>, discarded: T) -> io::Result<T> {
        let error = match written {
            Ok(written) => return Ok(written),
            // `write_all` repeats these.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => error,
        };
        let error = io::Error::new(error.kind(), Unwritable(error));
        if !self.to_the_end {
            return Err(error);
        }
        self.failed = Some(error);
        Ok(discarded)
    }

    /// The text in a colour on a terminal, and as it is anywhere else.
    pub fn coloured(&self, colour: Colour, text: &str) -> String {
        let number = match colour {
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
        };
        if self.colours { format!("\x1b[{number}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// One JSON object on a line of its own.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value)?;
        writeln!(self, "{}", visible::escaped_json(&text))
    }

    /// Columns for people, as wide as they must be; in a terminal no wider than it. A terminal that does not know its
    /// width (0 columns, as a serial line or a container has) gets lines as a pipe does.
    pub fn table<const N: usize>(&mut self, head: Option<[&str; N]>, rows: Vec<[String; N]>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if self.terminal && table.width().is_some_and(|columns| columns > 0) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        if let Some(head) = head {
            table.set_header(head);
        }
        if self.colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let cell = |(column, text): (usize, String)| {
            let cell = Cell::new(safe(&text));
            match colour(head.map_or("", |head| head[column]), &text) {
                Some(Colour::Green) => cell.fg(Color::Green),
                Some(Colour::Yellow) => cell.fg(Color::Yellow),
                Some(Colour::Red) => cell.fg(Color::Red),
                None => cell,
            }
        };
        table.add_rows(rows.into_iter().map(|row| row.into_iter().enumerate().map(cell).collect::<Vec<_>>()));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            writeln!(self, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The colour of a state, or of a number under a state's name: red where somebody must see to it, yellow where it waits.
fn colour(head: &str, cell: &str) -> Option<Colour> {
    let state = if cell.parse().is_ok_and(|number: u64| number > 0) { head } else { cell };
    match state.to_lowercase().as_str() {
        "failed" | "unreadable" | "out of reach" => Some(Colour::Red),
        "deferred" | "held" | "paused" => Some(Colour::Yellow),
        _ => None,
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed.is_some() {
            return Ok(bytes.len());
        }
        let written = self.writer.write(bytes);
        self.outcome(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.failed.is_some() {
            return Ok(());
        }
        let flushed = self.writer.flush();
        self.outcome(flushed, ())
    }
}

/// Says something to the person at standard error, on lines of its own. Where standard error is full or closed the
/// text is lost, and the command goes on.
pub fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The text on one line, fit for a terminal: what cannot be seen, or changes what is seen around it, is shown as an
/// escape ([`visible::is_hidden`]).
pub fn safe(text: &str) -> String {
    visible::escaped(text).into_owned()
}

/// Like [`safe`], for text of several lines.
pub fn safe_lines(text: &str) -> String {
    text.replace("\r\n", "\n").split('\n').map(|line| safe(&line.replace('\t', "    "))).collect::<Vec<_>>().join("\n")
}

/// A moment in the local time of whoever reads it.
pub fn moment(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// `3d`, `12m`, `5s`: one unit is enough for a person.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The time since `at`, or until then.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let length = |from: Timestamp, to: Timestamp| span(to.duration_since(from).unsigned_abs());
    if at > now { format!("in {}", length(now, at)) } else { format!("{} ago", length(at, now)) }
}

/// `3 rows`, `1 row`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The value, or a dash where there is none.
pub fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
