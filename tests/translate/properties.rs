//! What holds for every row, whatever its bytes are.

use mail_parser::{MessageParser, MimeHeaders};
use mailqueue::mail::Columns;
use proptest::prelude::*;

use crate::fitness::try_everywhere;
use crate::rows::{columns, config, corpus};

fn row(mto: &[u8], msubject: &[u8], mheaders: &[u8], mbody: &[u8], mparams: Option<&[u8]>) -> Columns {
    let mparams = mparams.and_then(|params| columns(params, b"", b"", b"").mto);
    Columns { mparams, ..columns(mto, msubject, mheaders, mbody) }
}

/// Bytes as they come in mail: mostly pieces that mean something, in any order.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        2 => prop::collection::vec(any::<u8>(), 0..6),
        1 => (1..1200_usize).prop_map(|length| vec![b'x'; length]),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    ",",
    ";",
    ":",
    "\"",
    "<",
    ">",
    "(",
    ")",
    "@",
    ".",
    "\\",
    "=",
    "?",
    "--",
    "-",
    "a@example.org",
    "<b@example.org>",
    "jörg@example.org",
    "lea@exämple.at",
    "Müller",
    "=?UTF-8?Q?J=C3=B6rg?=",
    "=?UTF-8?B?SsO2",
    "=?iso-8859-1?Q?=F6?=",
    "=?x?Q??=",
    "From: ",
    "From: a@example.org\n",
    "To: ",
    "Cc: ",
    "Bcc: ",
    "Subject: ",
    "Return-Path: <>\n",
    "Sender: ",
    "Reply-To: ",
    "MIME-Version: 1.0\n",
    "Content-Type: ",
    "text/plain",
    "multipart/mixed; boundary=b",
    "multipart/signed; boundary=b",
    "multipart/mixed;",
    " boundary=\"b\"",
    "message/rfc822",
    "application/pdf",
    "application/pkcs7-mime",
    "; charset=utf-8",
    "; charset=iso-8859-1",
    "; charset=utf-16",
    "; charset=iso-2022-jp",
    "; name=\"x \"y\" z\"",
    "; filename*0*=utf-8''%C3",
    "Content-Transfer-Encoding: ",
    "7bit\n",
    "8bit\n",
    "binary\n",
    "base64\n",
    "quoted-printable\n",
    "nonsense\n",
    "Content-Disposition: attachment; filename=\"ö.pdf\"\n",
    "\n--b\n",
    "\n--b--\n",
    "\n--b-",
    "--b",
    "SGFsbG8=",
    "=C3=B6",
    "=\n",
    "\u{f6}",
    "Message-ID: <x@y>\n",
    "Date: x\n",
    "X-Foo: ",
    "-f",
    "-f b@example.org",
];

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn arbitrary_columns_never_panic(
        mto in prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
        mheaders in prop::option::of("[A-Za-z0-9+/=\r\n]{0,80}"),
        mbody in prop::option::of("[A-Za-z0-9+/]{0,20}={0,3}"),
    ) {
        let mheaders = mheaders.map(String::into_bytes);
        let mbody = mbody.map(String::into_bytes);
        try_everywhere(&Columns { mto, mheaders, mbody, ..Columns::default() });
    }

    #[test]
    fn what_is_sent_fits_the_wire_whatever_the_row_holds(
        mto in pieces(), msubject in pieces(), mheaders in pieces(), mbody in pieces(), mparams in prop::option::of(pieces()),
    ) {
        try_everywhere(&row(&mto, &msubject, &mheaders, &mbody, mparams.as_deref()));
        // The same behind what makes a mail of it, so that more of it is tried.
        let headers = [b"From: a@example.org\n".as_slice(), &mheaders].concat();
        try_everywhere(&row(b"lea@example.org", &msubject, &headers, &mbody, None));
        let headers = [b"From: a@example.org\nContent-Type: multipart/mixed; boundary=b\n".as_slice(), &mheaders].concat();
        let parts = [b"--b\nContent-Type: ".as_slice(), &mbody, b"\n--b\n", &mto, b"\n--b--\n"].concat();
        try_everywhere(&row(b"lea@example.org", &msubject, &headers, &parts, None));
    }

    #[test]
    fn names_and_addresses_come_back_from_a_second_reader(
        people in prop::collection::vec(("\\PC{0,90}", "[a-z0-9_+-]{0,10}"), 1..6),
    ) {
        // A stray quotation mark, bracket or backslash in the raw row would be for the patient reader of the row to judge:
        // the names go in as encoded words, which every producer uses for such.
        let list: Vec<String> =
            people.iter().map(|(name, local)| format!("\"{}\" <x{}@example.org>", encoded(name), local)).collect();
        let mail = try_everywhere(&row(list.join(", ").as_bytes(), b"", b"From: a@example.org\n", b"", None)).unwrap();
        let message = MessageParser::new().parse(&mail.content[..]).unwrap();
        let read: Vec<_> = message.to().unwrap().iter().map(|one| (squeezed(one.name().unwrap_or_default()), one.address().unwrap().to_owned())).collect();
        let meant: Vec<_> = people.iter().map(|(name, local)| (squeezed(name), format!("x{}@example.org", local))).collect();
        prop_assert_eq!(read, meant, "{}", String::from_utf8_lossy(&mail.content));
    }

    #[test]
    fn subjects_come_back_from_a_second_reader(subject in "\\PC{0,200}") {
        prop_assume!(!subject.contains("=?"));
        let mail = try_everywhere(&row(b"lea@example.org", subject.as_bytes(), b"From: a@example.org\n", b"", None)).unwrap();
        let message = MessageParser::new().parse(&mail.content[..]).unwrap();
        let one_line = subject.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        prop_assert_eq!(message.subject().unwrap_or_default(), one_line.as_str(), "{}", String::from_utf8_lossy(&mail.content));
    }

    #[test]
    fn texts_come_back_from_a_second_reader(text in "[ -~äöüß€😀\t\r\n.=]{0,300}", nested in any::<bool>()) {
        let text = text.trim_end().to_owned();
        let (kind, body) = match nested {
            false => ("text/plain; charset=utf-8", text.clone()),
            true => ("multipart/mixed; boundary=\"#b#\"", format!("--#b#\nContent-Type: text/plain; charset=utf-8\n\n{text}\n--#b#--")),
        };
        let headers = format!("From: a@example.org\nContent-Type: {kind}\n");
        let mail = try_everywhere(&row(b"lea@example.org", b"", headers.as_bytes(), body.as_bytes(), None)).unwrap();
        let message = MessageParser::new().parse(&mail.content[..]).unwrap();
        let lines = |text: &str| {
            // One line end each, found from the left.
            let text = text.replace("\r\r\n", "\0").replace("\r\n", "\0").replace(['\r', '\0'], "\n");
            text.trim_end().to_owned()
        };
        prop_assert_eq!(lines(&message.body_text(0).unwrap_or_default()), lines(&text), "{}", String::from_utf8_lossy(&mail.content));
    }

    #[test]
    fn files_keep_every_byte(bytes in prop::collection::vec(any::<u8>(), 0..400), encoding in prop::sample::select(&["7bit", "8bit", "binary", "x"][..])) {
        let mut body = format!("--#b#\nContent-Type: application/zip; name=x.zip\nContent-Transfer-Encoding: {encoding}\n\n").into_bytes();
        body.extend_from_slice(&bytes);
        body.extend_from_slice(b"\n--#b#--\n");
        let headers = b"From: a@example.org\nContent-Type: multipart/mixed; boundary=\"#b#\"\n";
        // A CR before the delimiter would make one line end with its LF.
        prop_assume!(!bytes.ends_with(b"\r"));
        let mail = try_everywhere(&row(b"lea@example.org", b"", headers, &body, None)).unwrap();
        let message = MessageParser::new().parse(&mail.content[..]).unwrap();
        let file = message.attachments().next().unwrap();
        prop_assert_eq!(file.attachment_name(), Some("x.zip"));
        prop_assert_eq!(file.contents(), &bytes[..], "{}", String::from_utf8_lossy(&mail.content));
    }
}

/// As one encoded word, of whatever length.
fn encoded(text: &str) -> String {
    let hex: String = text.bytes().map(|byte| format!("={byte:02X}")).collect();
    format!("=?UTF-8?Q?{hex}?=")
}

/// Blanks between encoded words are not the same to all readers.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '\t')).collect()
}

#[test]
fn every_row_of_the_corpus_is_fit_for_the_wire_also_when_it_is_cut_anywhere() {
    for row in corpus() {
        try_everywhere(&row.columns);
        for cut in [1, 2, 3, 5, 8, 21, 55] {
            let cut_off = |column: &Option<Vec<u8>>| {
                use base64::Engine;
                let engine = base64::engine::general_purpose::STANDARD;
                let bytes = engine.decode(column.as_ref()?).ok()?;
                Some(engine.encode(&bytes[..bytes.len() - cut.min(bytes.len())]).into_bytes())
            };
            let columns = &row.columns;
            try_everywhere(&Columns { mbody: cut_off(&columns.mbody), ..columns.clone() });
            try_everywhere(&Columns {
                mto: cut_off(&columns.mto),
                mheaders: cut_off(&columns.mheaders),
                ..columns.clone()
            });
        }
    }
}
