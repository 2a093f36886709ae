//! Whole rows. The input is the columns' contents, in the order of the tables, each behind a byte 0xff.

#![no_main]

#[path = "../../translate/fitness.rs"]
mod fitness;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use mailqueue::mail::Columns;

fuzz_target!(|input: &[u8]| {
    let mut columns = input.splitn(5, |byte| *byte == 0xff).map(|column| STANDARD.encode(column).into_bytes());
    fitness::try_everywhere(&Columns {
        mto: columns.next(),
        msubject: columns.next(),
        mheaders: columns.next(),
        mparams: columns.next(),
        mbody: columns.next(),
    });
});
