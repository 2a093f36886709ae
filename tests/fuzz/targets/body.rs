//! The inside of multipart bodies, with the boundary `b` and parts inside of parts.

#![no_main]

#[path = "../../translate/fitness.rs"]
mod fitness;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use mailqueue::mail::Columns;

fuzz_target!(|input: &[u8]| {
    let encoded = |bytes: &[u8]| Some(STANDARD.encode(bytes).into_bytes());
    fitness::try_everywhere(&Columns {
        mto: encoded(b"lea@example.org"),
        msubject: None,
        mheaders: encoded(b"From: a@example.org\nContent-Type: multipart/mixed; boundary=b\n"),
        mparams: None,
        mbody: encoded(input),
    });
});
