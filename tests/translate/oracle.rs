//! Random mails as producers write them, and an oracle: what a second reader sees of the mail is what was meant, and
//! what it sees of the row.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_parser::{Message, MessageParser, MimeHeaders, PartType};
use proptest::prelude::*;

use crate::fitness::try_everywhere;
use crate::rows::{columns, config};

/// The content of a mail: text, or a file with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaf {
    Text(String),
    File(String, Vec<u8>),
}

/// A leaf with the way in which it is written.
#[derive(Clone, Debug)]
struct Written {
    leaf: Leaf,
    encoding: &'static str,
    charset: &'static str,
    name: &'static str,
    /// Columns of its base64.
    width: usize,
}

#[derive(Clone, Debug)]
enum Tree {
    Leaf(Written),
    Multipart(&'static str, Vec<Tree>),
}

const LETTERS: &str = "[ -~\u{e4}\u{f6}\u{df}.=\t-]{0,60}";

fn text() -> impl Strategy<Value = Leaf> {
    // A line that begins with a delimiter would be one.
    let line = LETTERS.prop_map(|line| line.trim_end().replace("--", "- "));
    let lines =
        prop::collection::vec(prop_oneof![9 => line, 1 => Just("x\u{e4}y ".repeat(300).trim_end().to_owned())], 0..6);
    lines.prop_map(|lines| Leaf::Text(lines.join("\n").trim().to_owned()))
}

fn file() -> impl Strategy<Value = Leaf> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..300),
        prop::collection::vec(prop::sample::select(b"ab=\r\n \t.-,".as_slice()), 1..300),
    ];
    let name = "[a-zA-Z\u{e4}\u{f6}]{1,12}( [a-z]{1,5})?\\.(pdf|zip)";
    (name, bytes).prop_map(|(name, bytes)| Leaf::File(name, bytes))
}

fn leaf() -> impl Strategy<Value = Tree> {
    let encodings = prop::sample::select(&["7bit", "8bit", "", "base64", "quoted-printable", "BASE64", "binary"][..]);
    let charsets = prop::sample::select(&["utf-8", "iso-8859-1", "windows-1252", "UTF-8"][..]);
    let names = prop::sample::select(&["raw", "words", "extended"][..]);
    let widths = prop::sample::select(&[20, 60, 76, 1000, 100_000][..]);
    let leaves = prop_oneof![text(), file()];
    (leaves, encodings, charsets, names, widths)
        .prop_map(|(leaf, encoding, charset, name, width)| Tree::Leaf(Written { leaf, encoding, charset, name, width }))
}

fn tree() -> impl Strategy<Value = Tree> {
    let kinds = prop::sample::select(&["mixed", "related", "alternative", "x-foo"][..]);
    leaf().prop_recursive(3, 12, 4, move |inner| {
        (kinds.clone(), prop::collection::vec(inner, 1..4)).prop_map(|(kind, parts)| Tree::Multipart(kind, parts))
    })
}

fn quoted(bytes: &[u8], binary: bool) -> String {
    let mut text = String::new();
    let mut column = 0;
    for byte in bytes {
        let piece = match byte {
            b'\n' if !binary => "\n".to_owned(),
            b'!'..=b'<' | b'>'..=b'~' => char::from(*byte).to_string(),
            byte => format!("={byte:02X}"),
        };
        if column + piece.len() > 75 {
            text.push_str("=\n");
            column = 0;
        }
        column = if piece == "\n" { 0 } else { column + piece.len() };
        text.push_str(&piece);
    }
    text
}

fn base64(bytes: &[u8], width: usize) -> String {
    let digits = STANDARD.encode(bytes);
    let lines = digits.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

impl Written {
    /// Content-Type and the other headers, and the body.
    fn write(&self) -> (String, Vec<u8>) {
        let (kind, bytes) = match &self.leaf {
            Leaf::Text(text) if self.charset.eq_ignore_ascii_case("utf-8") => {
                (format!("text/plain; charset={}", self.charset), text.clone().into_bytes())
            }
            // All of the letters are one byte there.
            Leaf::Text(text) => {
                (format!("text/plain;\n\tcharset=\"{}\"", self.charset), text.chars().map(|c| c as u8).collect())
            }
            Leaf::File(name, bytes) => {
                (format!("application/octet-stream; {}", self.file_name("name", name)), bytes.clone())
            }
        };
        let binary = matches!(self.leaf, Leaf::File(..));
        let body = match self.encoding {
            "quoted-printable" => quoted(&bytes, binary).into_bytes(),
            "base64" | "BASE64" => base64(&bytes, self.width).into_bytes(),
            _ => bytes,
        };
        let mut headers = format!("Content-Type: {kind}\n");
        if !self.encoding.is_empty() {
            headers += &format!("Content-Transfer-Encoding: {}\n", self.encoding);
        }
        if let Leaf::File(name, _) = &self.leaf {
            headers += &format!("Content-Disposition: attachment; {}\n", self.file_name("filename", name));
        }
        (headers, body)
    }

    fn file_name(&self, parameter: &str, name: &str) -> String {
        let hex = |mark: char| name.bytes().map(|byte| format!("{mark}{byte:02X}")).collect::<String>();
        match self.name {
            "words" => format!("{parameter}=\"=?utf-8?Q?{}?=\"", hex('=')),
            "extended" => format!("{parameter}*=utf-8''{}", hex('%')),
            _ => format!("{parameter}=\"{name}\""),
        }
    }
}

impl Tree {
    fn write(&self, number: &mut usize) -> (String, Vec<u8>) {
        match self {
            Self::Leaf(written) => written.write(),
            Self::Multipart(kind, parts) => {
                *number += 1;
                let boundary = format!("--=_Part{number}");
                let mut body = b"preamble\n".to_vec();
                for part in parts {
                    let (headers, content) = part.write(number);
                    for piece in ["--", &boundary, "\n", &headers, "\n"] {
                        body.extend_from_slice(piece.as_bytes());
                    }
                    body.extend_from_slice(&content);
                    body.push(b'\n');
                }
                for piece in ["--", &boundary, "--\n"] {
                    body.extend_from_slice(piece.as_bytes());
                }
                (format!("Content-Type: multipart/{kind}; boundary=\"{boundary}\"\n"), body)
            }
        }
    }

    fn leaves(&self) -> Vec<Leaf> {
        match self {
            Self::Leaf(written) => vec![written.leaf.clone()],
            Self::Multipart(_, parts) => parts.iter().flat_map(Self::leaves).collect(),
        }
    }
}

/// All leaves as the second reader sees them: line ends of texts as LF, none at their ends.
fn seen(message: &Message<'_>) -> Vec<Leaf> {
    let leaf = |part: &mail_parser::MessagePart| match &part.body {
        PartType::Multipart(_) => None,
        PartType::Text(text) | PartType::Html(text) if part.attachment_name().is_none() => {
            Some(Leaf::Text(text.replace("\r\n", "\n").replace('\r', "\n").trim().to_owned()))
        }
        _ => Some(Leaf::File(part.attachment_name().unwrap_or_default().to_owned(), part.contents().to_vec())),
    };
    message.parts.iter().filter_map(leaf).collect()
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn a_second_reader_sees_in_the_mail_what_was_meant_and_what_it_sees_in_the_row(
        tree in tree(), subject in "[ -~\u{e4}\u{20ac}]{1,60}", crlf in any::<bool>(),
    ) {
        prop_assume!(!subject.contains("=?"));
        let (kind, mut body) = tree.write(&mut 0);
        let meant = tree.leaves();
        // A CR before the line end of a delimiter is one with it, and a binary file has CRs of its own.
        prop_assume!(!meant.iter().any(|leaf| matches!(leaf, Leaf::File(_, bytes) if bytes.ends_with(b"\r"))));
        let of_texts = meant.iter().all(|leaf| matches!(leaf, Leaf::Text(_)));
        if crlf && of_texts {
            body = body.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(b"\r\n".as_slice());
        }
        let headers = format!("From: a@example.org\nMIME-Version: 1.0\n{kind}");
        let mail = try_everywhere(&columns(b"lea@example.org", subject.as_bytes(), headers.as_bytes(), &body)).unwrap();
        let message = MessageParser::new().parse(&mail.content[..]).unwrap();
        prop_assert_eq!(&seen(&message), &meant, "{}", String::from_utf8_lossy(&mail.content));
        let one_line = subject.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        prop_assert_eq!(message.subject().unwrap_or_default(), one_line);
        // The row as it stands. Raw 8-bit bytes and CRs are what this reader takes otherwise than they were meant.
        if body.is_ascii() && !body.contains(&b'\r') && headers.is_ascii() {
            let row = [headers.as_bytes(), b"\n", &body].concat();
            let row = MessageParser::new().parse(&row).unwrap();
            prop_assert_eq!(seen(&message), seen(&row), "{}", String::from_utf8_lossy(&mail.content));
        }
    }
}
