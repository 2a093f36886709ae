//! How much memory a large row takes, counted by an allocator of this test binary's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::mail::{Capabilities, ColumnLimits, Columns, Mail, RecordId};
use mailqueue::outcome::Reason;
use mailqueue::translate::{Settings, Stamp, Unreadable, translate};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A multipart body with one file of this many bytes in base64.
fn body_with_file(size: usize) -> Vec<u8> {
    let mut body = b"--b\nContent-Type: application/zip; name=x.zip\nContent-Transfer-Encoding: base64\n\n".to_vec();
    for chunk in vec![0x5a; size].chunks(57) {
        body.extend_from_slice(STANDARD.encode(chunk).as_bytes());
        body.push(b'\n');
    }
    body.extend_from_slice(b"--b--\n");
    body
}

/// One test at a time is counted.
static ALONE: Mutex<()> = Mutex::new(());

fn row(body: &[u8]) -> Columns {
    let encoded = |bytes: &[u8]| Some(STANDARD.encode(bytes).into_bytes());
    Columns {
        mto: encoded(b"lea@example.org"),
        mheaders: encoded(b"From: a@example.org\nContent-Type: multipart/mixed; boundary=b\n"),
        mbody: encoded(body),
        ..Columns::default()
    }
}

/// Translates, and gives the most bytes that were held meanwhile, the columns included.
fn measured(columns: &Columns, max_size: u64) -> (Result<Mail, Unreadable>, usize) {
    let limits = ColumnLimits { mbody: u64::MAX, ..ColumnLimits::default() };
    let stamp = Stamp { record: RecordId::new([1; 16]), created: jiff::Timestamp::UNIX_EPOCH };
    let settings = Settings { envelope_from: None, default_from: None, max_size };
    PEAK.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
    let before = HELD.load(Ordering::Relaxed) - columns.len();
    let mail = translate(columns, &limits, &stamp, Capabilities::default(), &settings);
    (mail, PEAK.load(Ordering::Relaxed) - before)
}

#[test]
fn a_row_takes_at_most_three_times_its_columns() {
    let _alone = ALONE.lock();
    let columns = row(&body_with_file(5_000_000));
    let (mail, peak) = measured(&columns, u64::MAX);
    assert!(peak <= 3 * columns.len(), "{peak} bytes for {} in the columns", columns.len());
    assert!(mail.unwrap().content.len() > 5_000_000);
}

#[test]
fn a_part_that_grows_beyond_max_size_when_it_is_encoded_takes_no_more_than_that() {
    let _alone = ALONE.lock();
    // Each byte becomes three.
    let mut body = b"--b\nContent-Type: text/plain; charset=iso-8859-1\n\n".to_vec();
    for _ in 0..8_000_000 / 80 {
        body.extend_from_slice(&[0xfc; 79]);
        body.push(b'\n');
    }
    body.extend_from_slice(b"--b--\n");
    let columns = row(&body);
    let (refused, peak) = measured(&columns, 10_000_000);
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, Reason::TooLarge);
    assert!(refused.detail.contains("max_size allows 10000000"), "{refused}");
    assert!(peak <= 3 * columns.len(), "{peak} bytes for {} in the columns", columns.len());
    let (sent, peak) = measured(&columns, 40_000_000);
    let size = sent.unwrap().content.len();
    assert!(size > 24_000_000);
    // The columns, the decoded body, the mail, and while the mail moves into more room the room that it had.
    let most = columns.len() + body.len() + size + body.len() * 5 / 4;
    assert!(peak <= most, "{peak} bytes for a mail of {size}, and {most} are enough");
}
