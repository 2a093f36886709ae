//! What it costs to make a mail of a row: a newsletter of 3 kB, a press release of 100 kB in two parts, and a file of
//! 25 MB.

use std::hint::black_box;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mailqueue::mail::{Capabilities, ColumnLimits, Columns, RecordId};
use mailqueue::translate::{Settings, Stamp, translate};

const TEXT: &str =
    "Liebe Freundinnen und Freunde, am Samstag treffen wir uns um 15 Uhr im Gemeindezentrum Übelbach.\n\n";

fn columns(headers: &str, body: &[u8]) -> Columns {
    let encoded = |bytes: &[u8]| Some(STANDARD.encode(bytes).into_bytes());
    Columns {
        mto: encoded(b"\"=?UTF-8?Q?J=C3=B6rg?=\" <joerg@example.org>"),
        msubject: encoded(b"=?UTF-8?B?TmV1ZXMgYXVzIGRlbSBKw6RubmVy?="),
        mbody: encoded(body),
        mheaders: encoded(
            format!("From: Newsletter <news@example.org>\r\nMIME-Version: 1.0\r\n{headers}\r\n").as_bytes(),
        ),
        mparams: None,
    }
}

fn newsletter() -> Columns {
    columns("Content-type: text/plain; charset=UTF-8", TEXT.repeat(30).as_bytes())
}

fn press_release() -> Columns {
    let part = |kind: &str| {
        format!(
            "--b\nContent-Type: text/{kind}; charset=utf-8\nContent-Transfer-Encoding: 7bit\n\n{}\n",
            TEXT.repeat(500)
        )
    };
    let body = part("plain") + &part("html") + "--b-";
    columns("Content-Type: multipart/alternative; boundary=\"b\"", body.as_bytes())
}

fn large_file() -> Columns {
    let file = STANDARD.encode(vec![0x5a; 18_000_000]);
    let mut body =
        b"--b\nContent-Type: application/zip; name=\"x.zip\"\nContent-Transfer-Encoding: base64\n\n".to_vec();
    for line in file.as_bytes().chunks(76) {
        body.extend_from_slice(line);
        body.push(b'\n');
    }
    body.extend_from_slice(b"\n--b--");
    columns("Content-Type: multipart/mixed; boundary=\"b\"", &body)
}

fn benchmarks(criterion: &mut Criterion) {
    let stamp = Stamp { record: RecordId::new([1; 16]), created: jiff::Timestamp::UNIX_EPOCH };
    let settings = Settings { envelope_from: None, default_from: None, max_size: u64::MAX };
    let limits = ColumnLimits { mbody: u64::MAX, ..ColumnLimits::default() };
    let mut group = criterion.benchmark_group("translate");
    for (name, columns) in [("3 kB", newsletter()), ("100 kB", press_release()), ("25 MB", large_file())] {
        group.throughput(Throughput::Bytes(columns.len() as u64)).sample_size(20);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || (),
                |()| {
                    translate(black_box(&columns), &limits, &stamp, Capabilities::default(), &settings)
                        .expect("a good row")
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
