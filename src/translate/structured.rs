//! Headers whose values are made of ids, URLs or tokens. No encoded word may stand there (RFC 2047 §5): 8-bit text in a
//! URL is percent-encoded, and elsewhere the header cannot be sent.

use std::borrow::Cow;

use super::lines::LONGEST_LINE;
use super::words;

/// The pieces of a structured header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RFC 2369, RFC 5064, RFC 2557 §4.
    Urls,
    /// Ids in angle brackets (RFC 5322 §3.6.4, RFC 2919).
    Ids,
    /// Words of ASCII.
    Tokens,
}

/// The result of writing a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    AsItWas,
    /// The repair, in words for people.
    Changed(&'static str),
    /// Nothing was written.
    LeftOut,
}

const URLS: [&str; 11] = [
    "List-Unsubscribe",
    "List-Archive",
    "List-Help",
    "List-Owner",
    "List-Post",
    "List-Subscribe",
    "Archived-At",
    "Content-Location",
    "Content-Base",
    "X-List-Unsubscribe",
    "X-Report-Abuse",
];

const IDS: [&str; 7] =
    ["Message-ID", "In-Reply-To", "References", "Content-ID", "List-ID", "Resent-Message-ID", "X-Entity-Ref-ID"];

const TOKENS: [&str; 24] = [
    "Auto-Submitted",
    "Content-Duration",
    "Content-Features",
    "Content-Language",
    "Content-MD5",
    "Content-Transfer-Encoding",
    "Authentication-Results",
    "Date",
    "Expires",
    "Feedback-ID",
    "Importance",
    "Jabber-ID",
    "List-Unsubscribe-Post",
    "MIME-Version",
    "Precedence",
    "Priority",
    "Received",
    "Received-SPF",
    "Require-Recipient-Valid-Since",
    "Resent-Date",
    "Sensitivity",
    "TLS-Required",
    "X-Auto-Response-Suppress",
    "X-Priority",
];

impl Kind {
    /// `None` for headers of unstructured text, of addresses, and unknown ones.
    pub fn of(name: &str) -> Option<Self> {
        let is_one_of = |names: &[&str]| names.iter().any(|other| other.eq_ignore_ascii_case(name));
        match name {
            _ if is_one_of(&URLS) => Some(Self::Urls),
            _ if is_one_of(&IDS) => Some(Self::Ids),
            _ if is_one_of(&TOKENS) => Some(Self::Tokens),
            _ => None,
        }
    }

    /// Appends the header as it stands, folded at its blanks. `value` holds no controls.
    pub fn write(self, out: &mut String, name: &str, value: &str) -> Written {
        let (value, mut written) = match self.in_ascii(name, value) {
            Some((value, None)) => (value, Written::AsItWas),
            Some((value, Some(change))) => (value, Written::Changed(change)),
            None => return Written::LeftOut,
        };
        let (value, split) = foldable(&value);
        if split && written == Written::AsItWas {
            written = Written::Changed("was folded between its ids");
        }
        if self == Self::Ids && value.split(' ').any(|id| id.len() + name.len() + 2 > LONGEST_LINE) {
            return Written::LeftOut;
        }
        words::write_as_it_is(out, name, &value);
        written
    }

    /// The value in ASCII, and what had to be done for it.
    fn in_ascii<'a>(self, name: &str, value: &'a str) -> Option<(Cow<'a, str>, Option<&'static str>)> {
        let whole_word = self != Self::Ids && value.starts_with("=?") && words::holds_word(value);
        let (value, change) = match whole_word {
            true => (words::one_line(words::decode(value)), Some("stood in encoded words: they were decoded")),
            false => (Cow::Borrowed(value), None),
        };
        if value.is_ascii() {
            return Some((value, change));
        }
        if self == Self::Urls {
            let encoded: String = percent_encoding::utf8_percent_encode(&value, percent_encoding::CONTROLS).collect();
            return Some((encoded.into(), Some("held 8-bit text: it was percent-encoded")));
        }
        // A name may stand before the id of a list.
        let id = name.eq_ignore_ascii_case("List-ID").then(|| value.find('<').zip(value.rfind('>'))).flatten();
        let id = id.and_then(|(start, end)| value.get(start..=end)).filter(|id| id.is_ascii())?;
        Some((id.to_owned().into(), Some("held 8-bit text: only the id was kept")))
    }
}

/// Ids and URLs that stand side by side, such as `<a@b><c@d>`, with blanks between them if the line is too long without.
fn foldable(value: &str) -> (Cow<'_, str>, bool) {
    if value.split(' ').all(|word| word.len() <= LONGEST_LINE / 2) {
        return (value.into(), false);
    }
    let split = value.replace("><", "> <").replace(">,<", ">, <");
    let changed = split.len() > value.len();
    (split.into(), changed)
}
