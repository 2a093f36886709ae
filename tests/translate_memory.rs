//! How much memory a large row takes, counted by an allocator of this test binary's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::mail::{ColumnLimits, Columns, RecordId};
use mailqueue::translate::{Settings, Stamp, Wire, translate};

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

#[test]
fn a_row_takes_at_most_three_times_its_columns() {
    let encoded = |bytes: &[u8]| Some(STANDARD.encode(bytes).into_bytes());
    let columns = Columns {
        mto: encoded(b"lea@example.org"),
        mheaders: encoded(b"From: a@example.org\nContent-Type: multipart/mixed; boundary=b\n"),
        mbody: encoded(&body_with_file(5_000_000)),
        ..Columns::default()
    };
    let limits = ColumnLimits { mbody: u64::MAX, ..ColumnLimits::default() };
    let stamp = Stamp { record: RecordId::new([1; 16]), created: jiff::Timestamp::UNIX_EPOCH };
    let settings = Settings { envelope_from: None, default_from: None, max_size: u64::MAX };
    PEAK.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
    let before = HELD.load(Ordering::Relaxed) - columns.len();
    let mail = translate(&columns, &limits, &stamp, Wire::default(), &settings).unwrap();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    assert!(peak <= 3 * columns.len(), "{peak} bytes for {} in the columns", columns.len());
    assert!(mail.content.len() > 5_000_000);
}
