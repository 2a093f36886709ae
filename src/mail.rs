//! What a mail is, before anybody does anything with it. No I/O.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
pub use lettre::Address;
use sha2::{Digest, Sha256};

/// Names a row for people and programs: `newsletter/1234`, the queue's name and the row's `mid`.
///
/// It is no identity over time, because a `mid` can come back on another mail; see [`Fingerprint`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MailId {
    pub queue: Arc<str>,
    pub mid: i64,
}

impl MailId {
    pub fn new(queue: impl Into<Arc<str>>, mid: i64) -> Self {
        Self { queue: queue.into(), mid }
    }
}

impl fmt::Display for MailId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.queue, self.mid)
    }
}

/// The text is not of the form `queue/number`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no mail id: write QUEUE/NUMBER, as in newsletter/1234")]
pub struct BadMailId(String);

impl FromStr for MailId {
    type Err = BadMailId;

    fn from_str(text: &str) -> Result<Self, BadMailId> {
        let bad = || BadMailId(text.escape_debug().to_string());
        let (queue, mid) = text.rsplit_once('/').ok_or_else(bad)?;
        if queue.is_empty() {
            return Err(bad());
        }
        Ok(Self::new(queue, mid.parse().map_err(|_| bad())?))
    }
}

/// A row's text columns as they stand in the table. They should hold base64; nothing is taken for granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    pub mto: Option<Vec<u8>>,
    pub msubject: Option<Vec<u8>>,
    pub mbody: Option<Vec<u8>>,
    pub mheaders: Option<Vec<u8>>,
    pub mparams: Option<Vec<u8>>,
}

impl Columns {
    /// Each column with its name, in the order of the tables.
    pub fn each(&self) -> [(&'static str, Option<&[u8]>); 5] {
        [
            ("mto", self.mto.as_deref()),
            ("msubject", self.msubject.as_deref()),
            ("mbody", self.mbody.as_deref()),
            ("mheaders", self.mheaders.as_deref()),
            ("mparams", self.mparams.as_deref()),
        ]
    }

    /// Bytes of all columns together.
    pub fn len(&self) -> usize {
        self.each().iter().map(|(_, value)| value.map_or(0, <[u8]>::len)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How many bytes each column can hold, so that a value of just that length is recognised as cut off.
/// `u64::MAX` where the value cannot have been cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnLimits {
    pub mto: u64,
    pub msubject: u64,
    pub mbody: u64,
    pub mheaders: u64,
    pub mparams: u64,
}

impl Default for ColumnLimits {
    /// What the producers' original tables have: `VARCHAR(256)` for `mto`, `TEXT` for the rest.
    fn default() -> Self {
        Self { mto: 256, msubject: 65_535, mbody: 65_535, mheaders: 65_535, mparams: 65_535 }
    }
}

/// Identifies the content of a row, so that an old number on a new mail is not taken for the old mail.
///
/// SHA-256 over the lower-case hex SHA-256 of each column, in the order of [`Columns::each`], joined by commas, with
/// `-` for NULL. This shape, and no other, because a database can compute it too, column by column, whatever their size.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(columns: &Columns) -> Self {
        let parts = columns.each().map(|(_, value)| match value {
            Some(bytes) => hex(&Sha256::digest(bytes)),
            None => "-".to_owned(),
        });
        Self(Sha256::digest(parts.join(",")).into())
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }

    /// Reads what [`Fingerprint::to_hex`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// Two lower-case hexadecimal digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('?');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Names a record of ours about a row: 32 lower-case hexadecimal digits, random, never used twice. It is the local part
/// of the Message-ID that a mail without one of its own gets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(String);

impl RecordId {
    /// `bytes` must be random.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(hex(&bytes))
    }

    /// Reads an id that a database or ledger holds; `None` if it is not of the right form.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fits.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who sends and who receives, as SMTP is told (RFC 5321 §2.3.1). Domains are in punycode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// `None` is the null sender `<>`.
    pub sender: Option<Address>,
    /// To, Cc and Bcc in the order of their first mention, each address once.
    pub recipients: Vec<Address>,
}

/// Something that the row names as a recipient and that cannot be an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidRecipient {
    /// As it was written, decoded, with control characters taken out.
    pub written: String,
    pub why: String,
}

/// A mail that is ready for the wire.
#[derive(Clone, Debug)]
pub struct Mail {
    /// With its angle brackets: the mail's own, or the one that was made for it.
    pub message_id: String,
    /// Decoded, on one line, for people.
    pub subject: String,
    pub envelope: Envelope,
    pub invalid: Vec<InvalidRecipient>,
    /// Header and body (RFC 5322): every line ends with CRLF, none is longer than 998 bytes, dots are not stuffed yet.
    pub content: Bytes,
    /// The content holds bytes over 127, so that the smarthost must offer 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// An address or a header needs SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// What had to be mended on the way, each a sentence for people.
    pub mendings: Vec<String>,
}
