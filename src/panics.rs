//! Panics. A panic is an internal error: the process ends at once with [`EXIT_STATUS`], so that what is on disk is as
//! after a kill, and the next start recovers from it. [`catch`] makes the one exception.
//!
//! The hook sees every panic, in tasks that are not joined and in threads of libraries too. This is a lowest layer.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::time::Duration;

/// EX_SOFTWARE of sysexits.h.
pub const EXIT_STATUS: i32 = 70;

/// The longest time that the report of a panic may take. It can block on whatever the panic left locked.
const REPORT_LIMIT: Duration = Duration::from_secs(2);

thread_local! {
    // The hook has no other way to know that its thread is inside `catch`, or to give it the text.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes every panic in this process end it, after `report` has been given its text and place. The last call counts.
pub fn end_process(report: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |info| {
        let text = text(info);
        if CATCHING.get() {
            CAUGHT.set(Some(text));
            return;
        }
        // Without the thread a report that blocks would keep the process alive. The exit still follows the report.
        let _ = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(REPORT_LIMIT);
            std::process::exit(EXIT_STATUS);
        });
        report(&text);
        std::process::exit(EXIT_STATUS);
    }));
}

/// Runs `work`. Returns the text and place of a panic in it as an error; the process goes on.
///
/// The state that `work` shares with the rest of the program must be sound after a panic in the middle of it.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CATCHING.replace(true);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(outer);
    ended.map_err(|payload| CAUGHT.take().unwrap_or_else(|| message(payload.as_ref()).to_owned()))
}

/// As in `index out of bounds (src/translate/fold.rs:12:5, thread main)`.
fn text(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let place = info.location().map_or_else(String::new, |place| format!("{place}, "));
    format!("{} ({place}thread {thread})", message(info.payload()))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_is_caught_is_an_error_with_its_text_and_the_next_work_goes_on() {
        let caught = catch(|| panic!("row {}", 7)).map(|(): ()| ());
        assert!(caught.is_err_and(|text| text.starts_with("row 7")));
        assert_eq!(catch(|| 5), Ok(5));
        assert!(!CATCHING.get());
    }

    #[test]
    fn a_catch_inside_a_catch_leaves_the_outer_one_in_force() {
        let outer = catch(|| {
            let inner = catch(|| panic!("inner")).map(|(): ()| ());
            assert!(inner.is_err());
            assert!(CATCHING.get());
            panic!("outer");
        });
        assert!(outer.map(|(): ()| ()).is_err_and(|text| text.starts_with("outer")));
    }
}
