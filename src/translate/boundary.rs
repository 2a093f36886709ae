//! Boundaries of multiparts (RFC 2046 §5.1.1): those that may stay, the replacement of a bad one, and one that a body has
//! and no header names.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::lines::lines;
use super::words;

/// RFC 2046 §5.1.1.
const LONGEST: usize = 70;
/// Longest boundary of a signed or encrypted multipart that fits into a header and a delimiter without being replaced.
const LONGEST_SEALED: usize = 500;

/// Every reader finds the delimiters of this boundary. More characters than RFC 2046 allows are fine, since readers know
/// them; quotation marks, encoded words and blanks at the end are what they read differently.
pub fn is_good(boundary: &str) -> bool {
    boundary.len() <= LONGEST && travels(boundary) && !words::holds_word(boundary)
}

/// The boundary is worse than good, and still is the same in a header and in a delimiter.
pub fn is_bearable(boundary: &str) -> bool {
    boundary.len() <= LONGEST_SEALED && travels(boundary)
}

fn travels(boundary: &str) -> bool {
    let fits = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    !boundary.is_empty() && !boundary.ends_with(' ') && boundary.bytes().all(fits)
}

/// A boundary that occurs nowhere in `body`, and is the same for the same body. `part` is the number of the part, so
/// that no two parts of a mail get the same one.
pub fn fresh(body: &[u8], part: &str) -> String {
    let digest = Sha256::digest(body);
    let number = part.trim_start_matches(|c: char| !c.is_ascii_digit());
    (0_u32..)
        .map(|attempt| {
            let mut boundary = String::from("=_");
            // Writing into a String cannot fail.
            for byte in &digest[..12] {
                let _ = write!(boundary, "{byte:02x}");
            }
            let _ = write!(boundary, "_{attempt}");
            if (1..=30).contains(&number.len()) {
                let _ = write!(boundary, "_{number}");
            }
            boundary
        })
        .find(|boundary| memchr::memmem::find(body, boundary.as_bytes()).is_none())
        .unwrap_or_default()
}

/// The boundary of a body whose Content-Type names none: the first line that looks like a delimiter and comes again.
pub fn guess(body: &[u8]) -> Option<&str> {
    let delimiter = |line: &[u8]| line.len() > 2 && line.starts_with(b"--") && line.iter().all(u8::is_ascii_graphic);
    let first = lines(body).map(|line| line.content.trim_ascii_end()).find(|line| !line.is_empty())?;
    if !delimiter(first) {
        return None;
    }
    let again =
        |line: &[u8]| line.strip_prefix(first).is_some_and(|tail| matches!(tail.trim_ascii_end(), b"" | b"-" | b"--"));
    lines(body).filter(|line| again(line.content)).nth(1)?;
    std::str::from_utf8(&first[2..]).ok()
}
