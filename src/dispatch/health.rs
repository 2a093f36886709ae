//! The relay's health: a breaker that opens on trouble which is no mail's, and a cap on connections that shrinks when
//! the smarthost throttles.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// What everybody may know of the relay.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub state: State,
    /// How many connections may be in use.
    pub cap: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Up,
    /// Trouble that is no mail's; tried again at `until`.
    Paused {
        until: Instant,
        reason: String,
    },
    /// An operator's emergency stop.
    Stopped,
}

/// The longest pause between two tries of a relay in trouble.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Throttling replies that come within this time are answers to what was under way at once, and shrink the cap once.
const ONE_SHRINK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Health {
    view: watch::Sender<View>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    connections: usize,
    /// Pauses in a row, without a clean transaction between them.
    failures: u32,
    down_since: Option<Instant>,
    cap: f64,
    shrunk: Option<Instant>,
    /// The breaker's own state, under an operator's stop.
    breaker: State,
    /// Lanes in whose databases an operator stopped the relay.
    stopped: std::collections::HashSet<usize>,
}

/// What [`Health::trouble`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The relay is paused for so long.
    Now(Duration),
    /// It was paused already.
    Before,
}

impl Health {
    pub fn new(connections: usize) -> Self {
        let inner = Inner {
            connections,
            failures: 0,
            down_since: None,
            cap: connections as f64,
            shrunk: None,
            breaker: State::Up,
            stopped: std::collections::HashSet::new(),
        };
        Self { view: watch::Sender::new(inner.view()), inner: Mutex::new(inner) }
    }

    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub fn is_up(&self) -> bool {
        self.view.borrow().state == State::Up
    }

    /// Whether this connection, counted from 0, may be used now.
    pub fn admits(&self, connection: usize) -> bool {
        let view = self.view.borrow();
        view.state == State::Up && connection < view.cap
    }

    /// Waits until this connection, counted from 0, may be used.
    pub async fn admitted(&self, connection: usize) {
        let mut view = self.view.subscribe();
        // The sender lives in `self`, so that this cannot end with an error.
        let _ = view.wait_for(|view| view.state == State::Up && connection < view.cap).await;
    }

    /// Trouble that concerns the relay as a whole. `jitter` is in `0.0..1.0`.
    pub fn trouble(&self, reason: &str, now: Instant, jitter: f64) -> Opened {
        self.change(|inner| {
            if matches!(inner.breaker, State::Paused { until, .. } if until > now) {
                return Opened::Before;
            }
            let pause = Duration::from_secs(1 << inner.failures.min(9)).min(LONGEST_PAUSE).mul_f64(0.75 + jitter / 2.0);
            inner.failures = inner.failures.saturating_add(1);
            inner.down_since.get_or_insert(now);
            inner.breaker = State::Paused { until: now + pause, reason: reason.to_owned() };
            Opened::Now(pause)
        })
    }

    /// The relay can be reached again: one connection at first, more as mails get through. Answers for how long it could
    /// not.
    pub fn reachable(&self, now: Instant) -> Duration {
        self.change(|inner| {
            inner.breaker = State::Up;
            inner.cap = 1.0;
            inner.down_since.take().map_or(Duration::ZERO, |since| now - since)
        })
    }

    /// A transaction ended without trouble that is the relay's.
    pub fn clean(&self) {
        self.change(|inner| {
            inner.failures = 0;
            // One more connection for each round of the cap: additive increase.
            inner.cap = (inner.cap + 1.0 / inner.cap).min(inner.connections as f64);
        });
    }

    /// The smarthost asks for less. Answers the new cap where it changed.
    pub fn throttled(&self, now: Instant) -> Option<usize> {
        self.change(|inner| {
            if inner.shrunk.is_some_and(|shrunk| now < shrunk + ONE_SHRINK) {
                return None;
            }
            inner.shrunk = Some(now);
            let before = inner.view().cap;
            inner.cap = (inner.cap / 2.0).max(1.0);
            Some(inner.view().cap).filter(|cap| *cap != before)
        })
    }

    /// Sets or lifts the operators' stop that stands in the database of a lane; true where that is a change.
    pub fn stop(&self, lane: usize, stop: bool) -> bool {
        self.change(|inner| if stop { inner.stopped.insert(lane) } else { inner.stopped.remove(&lane) })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let answer = change(&mut inner);
        let new = inner.view();
        self.view.send_if_modified(|view| {
            let changed = *view != new;
            *view = new;
            changed
        });
        answer
    }
}

impl Inner {
    fn view(&self) -> View {
        let state = if !self.stopped.is_empty() { State::Stopped } else { self.breaker.clone() };
        View { state, cap: self.cap as usize }
    }
}
