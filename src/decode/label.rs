//! Charset labels: those that can be converted, those that are registered all the same, and those that mean nothing.

use std::collections::HashSet;
use std::sync::LazyLock;

use encoding_rs::{Encoding, UTF_16BE, X_USER_DEFINED};

/// Every name and alias of IANA's registry of character sets, in lower case, between blanks and line ends.
const REGISTERED: &str = include_str!("charsets.txt");

/// Spellings that are in use and that neither WHATWG's list nor IANA's has, with the label that they mean.
const ALSO: [(&str, &str); 6] = [
    ("cp932", "shift_jis"),
    ("cp936", "gbk"),
    ("cp949", "euc-kr"),
    ("cp950", "big5"),
    ("latin-1", "iso-8859-1"),
    ("utf_8", "utf-8"),
];

/// UTF-16 whose byte order the label leaves open: big-endian where no mark says otherwise (RFC 2781 §4.3). WHATWG takes
/// them for little-endian.
const OPEN_UTF_16: [&str; 4] = ["utf-16", "csutf16", "iso-10646-ucs-2", "csunicode"];

/// Returns the encoding that a charset label means. `None` for a missing, foreign or meaningless label, and for `us-ascii`,
/// under which 8-bit text says nothing of itself. A language tag behind `*` (RFC 2231 §5) is passed over.
pub fn charset(label: &str) -> Option<&'static Encoding> {
    let label = plain(label);
    let is = |other: &str| label.eq_ignore_ascii_case(other);
    if is_ascii(label) {
        return None;
    }
    if OPEN_UTF_16.iter().any(|open| is(open)) {
        return Some(UTF_16BE);
    }
    let known = Encoding::for_label_no_replacement(label.as_bytes()).filter(|known| *known != X_USER_DEFINED);
    known.or_else(|| charset(ALSO.iter().find(|(also, _)| is(also))?.1))
}

/// The label is registered with IANA, and its text cannot be converted here: UTF-7, ISO-2022-KR, code page 850 and others.
/// Such text keeps its label and its bytes.
pub fn is_foreign(label: &str) -> bool {
    let label = plain(label);
    if label.is_empty() || is_ascii(label) || charset(label).is_some() {
        return false;
    }
    static NAMES: LazyLock<HashSet<&str>> = LazyLock::new(|| REGISTERED.split_ascii_whitespace().collect());
    NAMES.contains(label.to_ascii_lowercase().as_str())
}

/// The label says nothing that 8-bit text could be read by: it is registered nowhere.
pub fn is_meaningless(label: &str) -> bool {
    !is_ascii(plain(label)) && charset(label).is_none() && !is_foreign(label)
}

fn plain(label: &str) -> &str {
    label.split('*').next().unwrap_or_default().trim()
}

fn is_ascii(label: &str) -> bool {
    ["us-ascii", "ascii", "ansi_x3.4-1968"].iter().any(|ascii| label.eq_ignore_ascii_case(ascii))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_known_foreign_or_meaningless() {
        for label in ["utf-8", "UTF8", "iso-8859-15", "utf-8*de", "gb2312", "cp932", "ISO-2022-JP", " koi8-r "] {
            assert!(charset(label).is_some() && !is_foreign(label) && !is_meaningless(label), "{label}");
        }
        for label in ["UTF-7", "iso-2022-kr", "HZ-GB-2312", "ISO-2022-CN", "cp850", "UTF-32", "ibm037", "Unknown-8bit"]
        {
            assert!(charset(label).is_none() && is_foreign(label) && !is_meaningless(label), "{label}");
        }
        for label in ["", "x-foo", "x-user-defined", "8bit", "utf-8mb4", "none", "csv"] {
            assert!(charset(label).is_none() && !is_foreign(label) && is_meaningless(label), "{label}");
        }
        for label in ["us-ascii", "ASCII"] {
            assert!(charset(label).is_none() && !is_foreign(label) && !is_meaningless(label), "{label}");
        }
    }

    #[test]
    fn utf_16_without_a_mark_is_big_endian() {
        let name = |label| charset(label).map(Encoding::name);
        assert_eq!(name("utf-16"), Some("UTF-16BE"));
        assert_eq!(name("UTF-16be"), Some("UTF-16BE"));
        assert_eq!(name("utf-16le"), Some("UTF-16LE"));
    }
}
