//! Address lists. The input is a list as it stands in `mto`, and again in the Bcc of a row.

#![no_main]

#[path = "../../translate/fitness.rs"]
mod fitness;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use mailqueue::mail::Columns;

fuzz_target!(|input: &[u8]| {
    let stored = |text: &[u8]| Some(STANDARD.encode(text).into_bytes());
    let row = |mto: &[u8], mheaders: &[u8]| Columns { mto: stored(mto), mheaders: stored(mheaders), ..Columns::default() };
    fitness::try_everywhere(&row(input, b"From: a@example.org\n"));
    // A list is one line of a header there: what it says must not depend on where it stands.
    let line: Vec<u8> = input.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }).collect();
    let header = [b"From: a@example.org\nBcc: ".as_slice(), &line].concat();
    let (to, bcc) = (fitness::try_everywhere(&row(&line, b"From: a@example.org\n")), fitness::try_everywhere(&row(b"", &header)));
    assert_eq!(to.as_ref().map(|mail| &mail.envelope), bcc.as_ref().map(|mail| &mail.envelope));
    assert_eq!(to.map(|mail| mail.invalid), bcc.map(|mail| mail.invalid));
});
