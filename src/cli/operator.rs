//! The words for what an operator does, and its place in the service's log.

use jiff::Timestamp;

use super::output::safe;
use crate::config::Config;
use crate::observe::audit::{self, Change};
use crate::queue::Action;

/// The words for one kind of change.
#[derive(Clone, Copy, Debug)]
pub struct Verb {
    /// For the operator, behind what was changed.
    pub done: &'static str,
    /// For the log, as in "held by an operator".
    pub past: &'static str,
}

impl Verb {
    const RETRY: Self = Self { done: "due now", past: "retried" };
    const HOLD: Self = Self { done: "held", past: "held" };
    const RELEASE: Self = Self { done: "released", past: "released" };
    pub const DELETE: Self = Self { done: "deleted", past: "deleted" };
    pub const PAUSE: Self = Self { done: "paused", past: "paused" };
    pub const RESUME: Self = Self { done: "goes on", past: "resumed" };
    pub const INSERT: Self = Self { done: "inserted", past: "inserted" };
}

impl From<&Action> for Verb {
    fn from(action: &Action) -> Self {
        match action {
            Action::Retry => Self::RETRY,
            Action::Hold => Self::HOLD,
            Action::Release => Self::RELEASE,
            Action::Delete => Self::DELETE,
        }
    }
}

/// Leaves a word of a change where the service logs it. `target` is a queue, or `relay`; without `mids` all of it is meant.
pub fn audit(config: &Config, verb: Verb, target: &str, mids: Vec<i64>) {
    let (user, uid) = (user(), rustix::process::getuid().as_raw());
    let (what, target) = (verb.past.to_owned(), target.to_owned());
    audit::record(&config.state_dir, &Change { at: Timestamp::now(), user, uid, what, target, mids });
}

/// The name of the person who gave the command, as the login says it; the number of the user cannot be made up.
fn user() -> String {
    let variable = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    let name = variable("SUDO_USER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
    name.map_or_else(|| "unknown".to_owned(), |name| safe(&name))
}
