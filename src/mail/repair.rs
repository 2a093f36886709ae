//! Repairs: what a mail says otherwise than its row, because the row could not go out as it is.

use std::fmt;

/// The kind of a repair. The words are stable: logs, `trace` and scripts use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RepairCode {
    /// An entry of From, Sender, Reply-To or Resent-* that is no address was left out. Recipients never are.
    AddressDropped,
    /// The delimiters of a multipart body were put right, or its boundary was found or replaced.
    Boundary,
    /// The charset of a text was missing or untrue, and was found by looking at the text.
    Charset,
    /// A Content-Type that was missing, cut off or untrue was replaced.
    ContentType,
    /// The content was encoded for the wire in another way than its label said.
    Encoding,
    /// A header that the mail lacked was added.
    HeaderAdded,
    /// A header that cannot stand in a mail was left out.
    HeaderDropped,
    /// Raw 8-bit text in a header was read as UTF-8 or Windows-1252 and encoded.
    HeaderEncoded,
    /// A header was written again in a form that can travel.
    HeaderRewritten,
    /// Invisible characters around an address were taken off.
    Invisible,
    /// A line end stood where none may be.
    LineEnd,
    /// The row's own envelope sender or From could not be used, and the next in order took its place.
    SenderReplaced,
    /// A signature over content that had to be changed was left out.
    SignatureDropped,
    /// Text that no reader shows, outside of the parts of a multipart, was left out.
    TextDropped,
}

impl RepairCode {
    pub const ALL: [Self; 14] = [
        Self::AddressDropped,
        Self::Boundary,
        Self::Charset,
        Self::ContentType,
        Self::Encoding,
        Self::HeaderAdded,
        Self::HeaderDropped,
        Self::HeaderEncoded,
        Self::HeaderRewritten,
        Self::Invisible,
        Self::LineEnd,
        Self::SenderReplaced,
        Self::SignatureDropped,
        Self::TextDropped,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressDropped => "address-dropped",
            Self::Boundary => "boundary",
            Self::Charset => "charset",
            Self::ContentType => "content-type",
            Self::Encoding => "encoding",
            Self::HeaderAdded => "header-added",
            Self::HeaderDropped => "header-dropped",
            Self::HeaderEncoded => "header-encoded",
            Self::HeaderRewritten => "header-rewritten",
            Self::Invisible => "invisible",
            Self::LineEnd => "line-end",
            Self::SenderReplaced => "sender-replaced",
            Self::SignatureDropped => "signature-dropped",
            Self::TextDropped => "text-dropped",
        }
    }
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    pub code: RepairCode,
    /// The name of the header, the column, or the part of the body (`part 2.1`).
    pub place: String,
    /// A sentence for people. It may quote the row.
    pub text: String,
}

/// Longest place that [`Repair::label`] names, in bytes. Real headers' names are shorter.
const LONGEST_PLACE: usize = 60;

impl Repair {
    /// The code and the place, such as `charset (part 2)`, for what is kept after the row is gone. It holds nothing of the
    /// row's text: a place that is no plain name is left out, because a header's name may be an address.
    pub fn label(&self) -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b' ');
        match !self.place.is_empty() && self.place.len() <= LONGEST_PLACE && self.place.bytes().all(plain) {
            true => format!("{} ({})", self.code.as_str(), self.place),
            false => self.code.as_str().to_owned(),
        }
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_holds_nothing_of_the_rows_text() {
        let label = |place: &str| {
            Repair { code: RepairCode::HeaderDropped, place: place.to_owned(), text: "x".to_owned() }.label()
        };
        assert_eq!(label("X-Mailer"), "header-dropped (X-Mailer)");
        assert_eq!(label("part 2.1"), "header-dropped (part 2.1)");
        for place in ["anna@example.org", "", "J\u{f6}rg", &"x".repeat(61)] {
            assert_eq!(label(place), "header-dropped");
        }
    }
}
