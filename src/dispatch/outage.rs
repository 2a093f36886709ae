//! The relay's outage, which expiry does not count: noted when it begins, excused in each queue before the next claim,
//! forgotten when all queues have been seen to. The note outlives the process.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::events;
use super::lane::Lane;
use crate::ledger::OutageNote;
use crate::queue;

#[derive(Debug)]
pub struct Outage {
    note: OutageNote,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// `None` once every lane has excused it.
    since: Option<Timestamp>,
    /// It is not over.
    lasts: bool,
    lanes: HashSet<usize>,
    /// Lanes whose deferred mails have not been excused for all of it.
    owing: HashSet<usize>,
}

impl Outage {
    /// Goes on with what an earlier process noted.
    pub fn new(state_dir: &Path, lanes: usize) -> Self {
        let note = OutageNote::new(state_dir);
        let since = note.read().unwrap_or_else(|error| {
            tracing::warn!(target: events::RELAY, file = %note.path().display(), %error,
                "since when the relay is down cannot be read: deferred mails may expire too early");
            None
        });
        let lanes: HashSet<_> = (0..lanes).collect();
        let owing = if since.is_some() { lanes.clone() } else { HashSet::new() };
        Self { note, inner: Mutex::new(Inner { since, lasts: since.is_some(), lanes, owing }) }
    }

    /// Returns true while the outage goes on, as far as is known.
    pub fn lasts(&self) -> bool {
        self.lock().lasts
    }

    /// The relay is in trouble.
    pub fn begins(&self, now: Timestamp) {
        let mut inner = self.lock();
        inner.lasts = true;
        inner.owing = inner.lanes.clone();
        if inner.since.is_some() {
            return;
        }
        inner.since = Some(now);
        if let Err(error) = self.note.write(now) {
            tracing::warn!(target: events::RELAY, file = %self.note.path().display(), %error,
                "since when the relay is down cannot be noted: after a restart deferred mails may expire too early");
        }
    }

    /// The relay can be reached. Returns how long it could not be.
    pub fn ends(&self, now: Timestamp) -> Duration {
        let mut inner = self.lock();
        inner.lasts = false;
        inner.since.map_or(Duration::ZERO, |since| between(since, now))
    }

    /// Returns true if this lane must not claim before [`Outage::account`].
    pub fn is_owed_by(&self, lane: usize) -> bool {
        self.lock().owing.contains(&lane)
    }

    /// Tells the lane's database the time that expiry must not count, or that the outage goes on.
    pub async fn account(&self, lane: &Lane) -> Result<(), queue::Error> {
        let (since, lasted) = {
            let inner = self.lock();
            (inner.since.filter(|_| inner.owing.contains(&lane.index)), inner.lasts)
        };
        lane.queue.excuse(since.map_or(Duration::ZERO, |since| between(since, Timestamp::now()))).await?;
        if !lasted {
            self.paid(lane.index);
        }
        Ok(())
    }

    /// The lanes from now on. A new one owes nothing; one that is gone is not waited for.
    pub fn set_lanes(&self, lanes: HashSet<usize>) {
        let gone: Vec<_> = self.lock().owing.difference(&lanes).copied().collect();
        self.lock().lanes = lanes;
        gone.into_iter().for_each(|lane| self.paid(lane));
    }

    fn paid(&self, lane: usize) {
        let mut inner = self.lock();
        if inner.lasts || !inner.owing.remove(&lane) || !inner.owing.is_empty() {
            return;
        }
        inner.since = None;
        if let Err(error) = self.note.remove() {
            tracing::warn!(target: events::RELAY, file = %self.note.path().display(), %error,
                "is out of date and cannot be removed: remove it");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns zero where the clock was set back meanwhile.
fn between(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}
