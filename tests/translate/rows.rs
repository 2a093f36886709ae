//! Rows for the tests: those of the corpus, and a builder for such as a single test wants.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::mail::{Capabilities, ColumnLimits, Columns, Mail, RecordId};
use mailqueue::translate::{Settings, Stamp, Unreadable, translate};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use serde_json::Value;

/// A row of the corpus.
pub struct CorpusRow {
    pub id: String,
    pub columns: Columns,
    pub expect: Value,
}

/// All rows of all files in `tests/corpus`, or in the directory that `MAILQUEUE_TEST_CORPUS` names.
pub fn corpus() -> Vec<CorpusRow> {
    let directory = std::env::var_os("MAILQUEUE_TEST_CORPUS").map_or_else(corpus_directory, PathBuf::from);
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    text.lines().map(corpus_row).collect()
}

pub fn corpus_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn corpus_row(line: &str) -> CorpusRow {
    let row: Value = serde_json::from_str(line).unwrap();
    let column = |name: &str| row[format!("{name}_b64")].as_str().map(|text| text.as_bytes().to_vec());
    let columns = Columns {
        mto: column("mto"),
        msubject: column("msubject"),
        mbody: column("mbody"),
        mheaders: column("mheaders"),
        mparams: column("mparams"),
    };
    CorpusRow { id: row["id"].as_str().unwrap().to_owned(), columns, expect: row["expect"].clone() }
}

/// The limits of the producers' tables as a corpus row finds them: `mto` as declared, the rest wide enough for
/// attachments.
pub fn corpus_limits() -> ColumnLimits {
    ColumnLimits { mto: 256, msubject: 65_535, mheaders: 65_535, mparams: 65_535, mbody: u64::MAX }
}

pub fn stamp() -> Stamp {
    Stamp { record: RecordId::new([0xab; 16]), created: "2026-03-01T12:00:00Z".parse().unwrap() }
}

pub fn settings() -> Settings {
    Settings { envelope_from: None, default_from: None, max_size: 40_000_000 }
}

pub fn render(columns: &Columns) -> Result<Mail, Unreadable> {
    translate(columns, &corpus_limits(), &stamp(), Capabilities::default(), &settings())
}

/// The columns of a row, in base64.
pub fn columns(mto: &[u8], msubject: &[u8], mheaders: &[u8], mbody: &[u8]) -> Columns {
    let encoded = |bytes: &[u8]| Some(STANDARD.encode(bytes).into_bytes());
    Columns {
        mto: encoded(mto),
        msubject: encoded(msubject),
        mbody: encoded(mbody),
        mheaders: encoded(mheaders),
        mparams: None,
    }
}

/// Settings of a random test with `ordinary` cases. They come from a fixed seed, so that the result of a run depends on
/// the code alone. `MAILQUEUE_TEST_CASES=n` makes `n` cases from a new seed, to look for input that fails.
pub fn config(ordinary: u32) -> ProptestConfig {
    let wanted = std::env::var("MAILQUEUE_TEST_CASES").ok().map(|count| count.parse().unwrap());
    let rng_seed = if wanted.is_some() { RngSeed::Random } else { RngSeed::Fixed(2047) };
    ProptestConfig {
        cases: wanted.unwrap_or(ordinary),
        rng_seed,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
