//! What a mail is, before anybody does anything with it. No I/O.

mod repair;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
pub use lettre::Address;
pub use repair::{Repair, RepairCode};
use serde::{Deserialize, Serialize};
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

/// A number of bytes for each column: how long a value the column holds. As what the translation is told, it is the
/// length at which a value has been cut off, and `u64::MAX` where the database does not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnLimits {
    pub mto: u64,
    pub msubject: u64,
    pub mbody: u64,
    pub mheaders: u64,
    pub mparams: u64,
}

impl ColumnLimits {
    /// No column has a limit.
    pub const NONE: Self =
        Self { mto: u64::MAX, msubject: u64::MAX, mbody: u64::MAX, mheaders: u64::MAX, mparams: u64::MAX };
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
        let mut whole = Sha256::new();
        for (at, (_, value)) in columns.each().into_iter().enumerate() {
            if at > 0 {
                whole.update(",");
            }
            match value {
                Some(bytes) => whole.update(digits::<64>(&Sha256::digest(bytes))),
                None => whole.update("-"),
            }
        }
        Self(whole.finalize().into())
    }

    /// The fingerprint of a row that is too large to be read: of the columns' lengths in bytes, in the order of
    /// [`Columns::each`], `None` being NULL. Its first eight bytes are zero, which tells it from one of content: a SHA-256
    /// begins like that once in 2^64 times.
    pub fn of_lengths(lengths: [Option<u64>; 5]) -> Self {
        let text = lengths.map(|length| length.map_or_else(|| "-".to_owned(), |length| length.to_string())).join(",");
        let mut bytes: [u8; 32] = Sha256::digest(text).into();
        bytes[..UNREAD.len()].copy_from_slice(&UNREAD);
        Self(bytes)
    }

    /// The row was not read: the fingerprint is of its columns' lengths.
    pub fn is_of_lengths(self) -> bool {
        self.0.starts_with(&UNREAD)
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        ascii(&digits::<64>(&self.0)).to_owned()
    }

    /// Reads what [`Fingerprint::to_hex`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Some(Self(bytes))
    }
}

/// The first bytes of a fingerprint of lengths.
const UNREAD: [u8; 8] = [0; 8];

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// Two lower-case hexadecimal digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| pair(*byte)).map(char::from).collect()
}

/// The same, where the length is known: `N` is twice the number of bytes.
fn digits<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut text = [b'0'; N];
    text.chunks_exact_mut(2).zip(bytes).for_each(|(digits, byte)| digits.copy_from_slice(&pair(*byte)));
    text
}

fn ascii(digits: &[u8]) -> &str {
    std::str::from_utf8(digits).unwrap_or_else(|_| unreachable!("hexadecimal digits are ASCII"))
}

fn pair(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// Names a record of ours about a row: 32 lower-case hexadecimal digits, random, never used twice. It is the local part
/// of the Message-ID that a mail without one of its own gets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId([u8; 32]);

impl RecordId {
    /// `bytes` must be random.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(digits(&bytes))
    }

    /// Reads an id that a database or ledger holds; `None` if it is not of the right form.
    pub fn parse(text: &str) -> Option<Self> {
        let id = <[u8; 32]>::try_from(text.as_bytes()).ok()?;
        id.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some(Self(id))
    }

    pub fn as_str(&self) -> &str {
        ascii(&self.0)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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

/// The extensions of a smarthost on which the form of a mail depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// 8BITMIME (RFC 6152). Without it, honest 8-bit parts are encoded too.
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531). Without it, addresses that need it are no recipients.
    pub smtputf8: bool,
}

impl Default for Capabilities {
    /// Everything, which is assumed of a smarthost before its first EHLO reply.
    fn default() -> Self {
        Self { eight_bit: true, smtputf8: true }
    }
}

/// A mail that is ready for the wire.
#[derive(Clone, Debug)]
pub struct Mail {
    /// With its angle brackets: the mail's own, or the one that was made for it.
    pub message_id: String,
    /// Decoded, on one line, for people.
    pub subject: String,
    pub envelope: Envelope,
    /// The row's own sender, before `envelope_from` replaced it; `None` is the null sender `<>`.
    pub own_sender: Option<Address>,
    pub invalid: Vec<InvalidRecipient>,
    /// The capabilities that the mail was made for.
    pub made_for: Capabilities,
    /// A recipient stands in `invalid` only because `made_for` lacks SMTPUTF8.
    pub narrowed: bool,
    /// Header and body (RFC 5322): every line ends with CRLF, none is longer than 998 bytes, dots are not stuffed yet.
    pub content: Bytes,
    /// The content holds bytes over 127, so that the smarthost must offer 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// An address or a header needs SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// The repairs on the way from the row, in the order of the row.
    pub repairs: Vec<Repair>,
}

impl Mail {
    /// [Labels](Repair::label) of the repairs, each once.
    pub fn repair_labels(&self) -> Vec<String> {
        let mut labels: Vec<String> = self.repairs.iter().map(Repair::label).collect();
        labels.sort();
        labels.dedup();
        labels
    }
}
