//! The relay's circuit breaker, which opens on trouble that is no mail's, and the connections that may be in use.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::connections::{Connections, Learned};
use crate::open_files;
use crate::telemetry::{RelayState, RelayView};

/// The longest pause between two tries of a relay in trouble.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct Breaker {
    view: watch::Sender<RelayView>,
    /// Sent whenever a worker's turn may have come or gone.
    turns: watch::Sender<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Pauses in a row, without a clean transaction between them.
    failures: u32,
    connections: Connections,
    /// The breaker's own state, under an operator's pause.
    breaker: RelayState,
    /// Lanes in whose databases an operator has paused the relay.
    paused: std::collections::HashSet<usize>,
}

/// The effect of [`Breaker::trip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// The relay is down now, and is tried again after this time.
    Opened(Duration),
    /// The relay was down already.
    AlreadyOpen,
}

impl Breaker {
    pub fn new(connections: usize) -> Self {
        let inner = Inner {
            failures: 0,
            connections: Connections::new(connections),
            breaker: RelayState::Up,
            paused: std::collections::HashSet::new(),
        };
        Self { view: watch::Sender::new(inner.view()), turns: watch::Sender::new(()), inner: Mutex::new(inner) }
    }

    pub fn watch(&self) -> watch::Receiver<RelayView> {
        self.view.subscribe()
    }

    pub fn is_up(&self) -> bool {
        self.view.borrow().state == RelayState::Up
    }

    /// Returns true if the connection of this worker, counted from 0, may be used at `now`.
    pub fn admits(&self, worker: usize, now: Instant) -> bool {
        let inner = self.lock();
        inner.is_up() && inner.connections.admits(worker, now)
    }

    /// Waits until the worker may use or make its connection, and gives it a slot for that.
    pub async fn admitted(&self, worker: usize) {
        let mut turns = self.turns.subscribe();
        loop {
            turns.borrow_and_update();
            let probe_at = {
                let mut inner = self.lock();
                if inner.is_up() && inner.connections.enter(worker, Instant::now()) {
                    return;
                }
                inner.connections.next_probe(Instant::now())
            };
            // The sender lives in `self`, so that a wait cannot end with an error.
            let _ = match probe_at {
                Some(probe_at) => timeout_at(probe_at, turns.changed()).await.unwrap_or(Ok(())),
                None => turns.changed().await,
            };
        }
    }

    /// Waits until the relay is not up.
    pub async fn down(&self) {
        let mut view = self.view.subscribe();
        // As above.
        let _ = view.wait_for(|view| view.state != RelayState::Up).await;
    }

    /// The worker uses its connection, or makes one.
    pub fn connecting(&self, worker: usize) {
        self.lock().connections.connecting(worker);
    }

    /// The worker's connection was greeted and logged in.
    pub fn connected(&self, worker: usize, now: Instant) -> Learned {
        self.change_slots(|connections| connections.connected(worker, now))
    }

    /// The smarthost did not let this worker in, in a way that can be a limit of connections. `None` if no other
    /// connection of ours works: the relay is out of reach.
    pub fn refused(&self, worker: usize, now: Instant) -> Option<Learned> {
        self.change_slots(|connections| connections.refused(worker, now))
    }

    /// Our own limit of open files was reached: at the connection of this worker, or elsewhere. Returns the new cap where
    /// it is news.
    pub fn out_of_files(&self, worker: Option<usize>, now: Instant) -> Option<usize> {
        self.change_slots(|connections| connections.out_of_files(worker, now))
    }

    /// Returns true while there are fewer connections because our own limit of open files was reached.
    pub fn is_short_of_files(&self) -> bool {
        self.lock().connections.is_short_of_files()
    }

    /// Waits until this worker's connection is one for which there is no file any more.
    pub async fn surplus(&self, worker: usize) {
        let mut turns = self.turns.subscribe();
        while !self.lock().connections.is_surplus(worker, Instant::now()) {
            // As above.
            let _ = turns.changed().await;
        }
    }

    /// The worker has no connection any more.
    pub fn left(&self, worker: usize) {
        self.change_slots(|connections| connections.left(worker));
    }

    /// Returns true while a connection of ours exists or is being made.
    pub fn has_connections(&self) -> bool {
        self.lock().connections.in_use() > 0
    }

    /// Waits until none of our connections is in use.
    pub async fn all_left(&self) {
        let mut turns = self.turns.subscribe();
        while self.lock().connections.in_use() > 0 {
            // As above.
            let _ = turns.changed().await;
        }
    }

    /// Trouble that concerns the relay as a whole. `jitter` is in `0.0..1.0`.
    pub fn trip(&self, reason: &str, now: Instant, jitter: f64) -> Trip {
        self.change(|inner| {
            if matches!(inner.breaker, RelayState::Down { until, .. } if until > now) {
                return Trip::AlreadyOpen;
            }
            let pause = pause(inner.failures, jitter);
            inner.failures = inner.failures.saturating_add(1);
            inner.connections.forget_limit();
            inner.breaker = RelayState::Down { until: now + pause, reason: reason.to_owned() };
            Trip::Opened(pause)
        })
    }

    /// The relay can be reached again: one connection at first, more as mails get through.
    pub fn close(&self) {
        self.change(|inner| {
            inner.breaker = RelayState::Up;
            inner.connections.begin_with_one();
        });
    }

    /// The relay has other settings: it is up, and new connections are numbered from `first`. Those of before count where
    /// they are to the same host.
    pub fn renew(&self, first: usize, connections: usize, same_host: bool) {
        self.change_slots(|slots| slots.renew(first, connections, same_host));
        self.change(|inner| {
            inner.failures = 0;
            inner.breaker = RelayState::Up;
        });
    }

    /// A transaction ended without trouble that is the relay's.
    pub fn success(&self) {
        self.change(|inner| {
            inner.failures = 0;
            inner.connections.clean();
        });
    }

    /// The smarthost asks for less. Returns the new cap if it changed.
    pub fn throttled(&self, now: Instant) -> Option<usize> {
        self.change(|inner| inner.connections.throttled(now))
    }

    /// Sets or lifts the operators' pause of the relay, as the database of a lane has it. Returns true if that is a change.
    pub fn set_paused(&self, lane: usize, paused: bool) -> bool {
        self.change(|inner| if paused { inner.paused.insert(lane) } else { inner.paused.remove(&lane) })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let answer = change(&mut inner);
        let new = inner.view();
        let changed = self.view.send_if_modified(|view| {
            let changed = *view != new;
            *view = new;
            changed
        });
        drop(inner);
        if changed {
            self.turns.send_replace(());
        }
        answer
    }

    /// A change that can free a slot or take one, whatever the view says.
    fn change_slots<T>(&self, change: impl FnOnce(&mut Connections) -> T) -> T {
        let answer = self.change(|inner| change(&mut inner.connections));
        self.turns.send_replace(());
        answer
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The pause after `failures` others without a success between them: doubling from a second to five minutes, a quarter more
/// or less by `jitter`, which is in `0.0..1.0`.
pub fn pause(before: u32, jitter: f64) -> Duration {
    Duration::from_secs(1 << before.min(9)).min(LONGEST_PAUSE).mul_f64(0.75 + jitter / 2.0)
}

impl Inner {
    fn is_up(&self) -> bool {
        self.paused.is_empty() && self.breaker == RelayState::Up
    }

    fn view(&self) -> RelayView {
        let state = if !self.paused.is_empty() { RelayState::Paused } else { self.breaker.clone() };
        let cap_reason = self.connections.is_short_of_files().then(open_files::explanation);
        RelayView { state, cap: self.connections.cap(), cap_reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_sender_is_admitted_while_the_relay_is_up_and_a_slot_is_free() {
        let breaker = Breaker::new(1);
        let now = Instant::now();
        assert!(breaker.admits(0, now));
        breaker.admitted(0).await;
        breaker.connecting(0);
        assert!(breaker.admits(0, now));
        assert!(matches!(breaker.trip("no", now, 0.5), Trip::Opened(_)));
        assert!(!breaker.admits(0, now), "the relay is down");
        breaker.close();
        assert!(breaker.set_paused(0, true));
        assert!(!breaker.admits(0, now), "an operator has paused it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_relay_is_woken_by_its_changes() {
        let breaker = Breaker::new(1);
        let mut down = Box::pin(breaker.down());
        assert!(timeout_at(Instant::now() + SOON, &mut down).await.is_err());
        breaker.trip("no", Instant::now(), 0.5);
        assert!(timeout_at(Instant::now() + SOON, &mut down).await.is_ok());
        let mut admitted = Box::pin(breaker.admitted(0));
        assert!(timeout_at(Instant::now() + SOON, &mut admitted).await.is_err(), "the relay is down");
        breaker.close();
        assert!(timeout_at(Instant::now() + SOON, &mut admitted).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_sender_is_admitted_when_the_first_has_left() {
        let breaker = Breaker::new(2);
        breaker.trip("no", Instant::now(), 0.5);
        breaker.close();
        breaker.admitted(0).await;
        let mut second = Box::pin(breaker.admitted(1));
        assert!(timeout_at(Instant::now() + SOON, &mut second).await.is_err(), "one connection at first");
        let mut left = Box::pin(breaker.all_left());
        breaker.connecting(0);
        assert!(timeout_at(Instant::now() + SOON, &mut left).await.is_err());
        breaker.left(0);
        assert!(timeout_at(Instant::now() + SOON, &mut left).await.is_ok());
        assert!(timeout_at(Instant::now() + SOON, &mut second).await.is_ok());
    }
}
