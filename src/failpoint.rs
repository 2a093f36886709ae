//! Failpoints: named places at which a test makes the process die or a task panic. A release build has none.
//!
//! `MAILQUEUE_FAIL_AT=after-dot:17` ends the process with SIGKILL when it comes to `after-dot` for the 17th time:
//! nothing is flushed or closed, as in a power failure. `MAILQUEUE_FAIL_AT=after-dot:17:panic` panics there instead.
//! Without a number the first time counts. This is the lowest layer: every module may have failpoints.

/// Marks the failpoint `name`.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_: &str) {}

/// Marks the failpoint `name`.
///
/// # Panics
/// The place that the environment names.
#[cfg(debug_assertions)]
pub fn hit(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: LazyLock<Option<Wanted>> =
        LazyLock::new(|| std::env::var("MAILQUEUE_FAIL_AT").ok().map(|text| Wanted::parse(&text)));
    static TIMES: AtomicU32 = AtomicU32::new(0);

    let Some(wanted) = &*WANTED else { return };
    if name != wanted.name || TIMES.fetch_add(1, Ordering::SeqCst) + 1 != wanted.nth {
        return;
    }
    match wanted.action {
        Action::Kill => {
            // If the signal cannot be sent, an abort is the closest thing to it.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::process::abort();
        }
        Action::Panic => panic!("failpoint {name}"),
    }
}

/// The content of `MAILQUEUE_FAIL_AT`.
#[cfg(debug_assertions)]
struct Wanted {
    name: String,
    /// Counts from 1.
    nth: u32,
    action: Action,
}

#[cfg(debug_assertions)]
enum Action {
    Kill,
    Panic,
}

#[cfg(debug_assertions)]
impl Wanted {
    /// Reads `name`, `name:nth` or `name:nth:panic`.
    ///
    /// # Panics
    /// On anything else, so that a typing error in a test is seen.
    fn parse(text: &str) -> Self {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default().to_owned();
        let nth = parts.next().map_or(Ok(1), str::parse).expect("MAILQUEUE_FAIL_AT=name:nth: nth is a number");
        let action = match parts.next() {
            None => Action::Kill,
            Some("panic") => Action::Panic,
            Some(other) => panic!("MAILQUEUE_FAIL_AT=name:nth:action: {other} is no action"),
        };
        Self { name, nth, action }
    }
}

/// Returns `normal`, or what the environment of a test has in its place. A release build never asks.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn shortened(_: &str, normal: std::time::Duration) -> std::time::Duration {
    normal
}

/// Returns `normal`, or the seconds of `MAILQUEUE_SHORTEN=name:seconds` where the environment of a test has that.
///
/// # Panics
/// Panics where the variable has another form, so that a typing error in a test is seen.
#[cfg(debug_assertions)]
pub fn shortened(name: &str, normal: std::time::Duration) -> std::time::Duration {
    let Ok(text) = std::env::var("MAILQUEUE_SHORTEN") else { return normal };
    let (wanted, seconds) = text.split_once(':').expect("MAILQUEUE_SHORTEN=name:seconds");
    let seconds = seconds.parse().expect("MAILQUEUE_SHORTEN=name:seconds: seconds is a number");
    if wanted == name { std::time::Duration::from_secs_f64(seconds) } else { normal }
}
