//! Header blocks. The input is `mheaders` of a row, and again the headers of a part.

#![no_main]

#[path = "../../translate/fitness.rs"]
mod fitness;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use mailqueue::mail::Columns;

fuzz_target!(|input: &[u8]| {
    let stored = |text: &[u8]| Some(STANDARD.encode(text).into_bytes());
    let row = |mheaders: &[u8], mbody: &[u8]| Columns {
        mto: stored(b"lea@example.org"),
        mheaders: stored(mheaders),
        mbody: stored(mbody),
        ..Columns::default()
    };
    fitness::try_everywhere(&row(input, b"Text\n"));
    fitness::try_everywhere(&row(input, b""));
    let part = [b"--b\n".as_slice(), input, b"\n\nText\n--b--\n"].concat();
    fitness::try_everywhere(&row(b"From: a@example.org\nContent-Type: multipart/mixed; boundary=b\n", &part));
});
