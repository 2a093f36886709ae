//! What commands write: to a person at a terminal, or plain to a pipe. Nothing from a row gets through unescaped.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Cell, Color, ContentArrangement, Table};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

/// Standard output.
pub struct Out {
    writer: BufWriter<io::Stdout>,
    pub terminal: bool,
    colours: bool,
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
        // <https://no-color.org>
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self { writer: BufWriter::new(io::stdout()), terminal, colours: terminal && wanted && able }
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
        // JSON itself allows these characters inside strings, and outside of strings there are none.
        let escaped: String = text.chars().map(|c| if is_unsafe(c) { json_escape(c) } else { c.to_string() }).collect();
        writeln!(self, "{escaped}")
    }

    /// Columns for people, as wide as they must be; in a terminal no wider than it.
    pub fn table<const N: usize>(&mut self, head: Option<[&str; N]>, rows: Vec<[String; N]>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if self.terminal {
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

/// What needs somebody is red, what waits is yellow: a state, or a number under a state's name.
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
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The text on one line, fit for a terminal: control characters, and those that turn the direction of writing around,
/// are shown as escapes.
pub fn safe(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Like [`safe`], for text of several lines.
pub fn safe_lines(text: &str) -> String {
    text.replace("\r\n", "\n").split('\n').map(|line| safe(&line.replace('\t', "    "))).collect::<Vec<_>>().join("\n")
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn json_escape(c: char) -> String {
    format!("\\u{:04x}", u32::from(c))
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

/// How long ago, or how far ahead.
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
