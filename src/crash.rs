//! Named moments at which a test lets the process die, as a power switch would. In a release build there are none.
//!
//! `MAILQUEUE_CRASH_AT=after-dot:17` ends the process with SIGKILL when it comes to the point `after-dot` for the 17th
//! time. Nothing is flushed, closed or told. The lowest layer: anybody may name a point.

/// Comes to the point of this name.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &str) {}

/// Comes to the point of this name.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: LazyLock<Option<(String, u32)>> =
        LazyLock::new(|| std::env::var("MAILQUEUE_CRASH_AT").ok().map(|text| wanted(&text)));
    static TIMES: AtomicU32 = AtomicU32::new(0);

    let Some((wanted, nth)) = &*WANTED else { return };
    if name == wanted && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        // Where the signal should ever fail, dying in another way is the next best.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}

/// `point` or `point:nth`; the first time where there is no number.
#[cfg(debug_assertions)]
fn wanted(text: &str) -> (String, u32) {
    let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
    (name.to_owned(), nth.parse().unwrap_or(1))
}
