//! Shares the relay between the queues: which of the mails that are ready goes next.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

/// Mails that are ready, a line for each queue. While several lines have mails, each gets its weight's share; within a
/// line it is first come, first served. (Stride scheduling: whoever has had the least, by weight, comes next.)
#[derive(Debug)]
pub struct Share<T> {
    lines: Mutex<Lines<T>>,
    arrived: Notify,
    room: Notify,
}

#[derive(Debug)]
struct Lines<T> {
    lines: Vec<Line<T>>,
    /// The stride at which the last mail left.
    passed: f64,
}

#[derive(Debug)]
struct Line<T> {
    ready: VecDeque<T>,
    weight: f64,
    passed: f64,
}

impl<T> Share<T> {
    /// One line for each weight; a weight is at least 1.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let line = |weight: u32| Line { ready: VecDeque::new(), weight: f64::from(weight.max(1)), passed: 0.0 };
        let lines = weights.into_iter().map(line).collect();
        Self { lines: Mutex::new(Lines { lines, passed: 0.0 }), arrived: Notify::new(), room: Notify::new() }
    }

    pub fn push(&self, line: usize, item: T) {
        self.with(|lines| {
            let passed = lines.passed;
            let line = &mut lines.lines[line];
            if line.ready.is_empty() {
                // A line that was empty saves up no claim to the time in which it asked for nothing.
                line.passed = line.passed.max(passed);
            }
            line.ready.push_back(item);
        });
        self.arrived.notify_one();
    }

    /// The next mail, where there is one.
    pub fn try_next(&self) -> Option<T> {
        let item = self.with(|lines| {
            let next = lines.lines.iter_mut().filter(|line| !line.ready.is_empty());
            let line = next.min_by(|a, b| a.passed.total_cmp(&b.passed))?;
            lines.passed = line.passed;
            line.passed += 1.0 / line.weight;
            line.ready.pop_front()
        });
        if item.is_some() {
            self.room.notify_waiters();
        }
        item
    }

    /// The next mail, as soon as there is one.
    pub async fn next(&self) -> T {
        loop {
            let arrived = self.arrived.notified();
            if let Some(item) = self.try_next() {
                // Whoever else waits may have missed its call to this one.
                self.arrived.notify_one();
                return item;
            }
            arrived.await;
        }
    }

    /// Waits until there is a mail, and leaves it where it is.
    pub async fn arrival(&self) {
        loop {
            let arrived = self.arrived.notified();
            if !self.is_empty() {
                // The call was for somebody who takes the mail.
                self.arrived.notify_one();
                return;
            }
            arrived.await;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.with(|lines| lines.lines.iter().all(|line| line.ready.is_empty()))
    }

    /// Waits until fewer than `limit` mails of this line are ready.
    pub async fn room(&self, line: usize, limit: usize) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before the look, so that no call between the two is missed.
            room.as_mut().enable();
            if self.len(line) < limit {
                return;
            }
            room.await;
        }
    }

    pub fn len(&self, line: usize) -> usize {
        self.with(|lines| lines.lines[line].ready.len())
    }

    /// Takes all mails of a line out.
    pub fn clear(&self, line: usize) -> Vec<T> {
        let items = self.with(|lines| lines.lines[line].ready.drain(..).collect());
        self.room.notify_waiters();
        items
    }

    fn with<R>(&self, look: impl FnOnce(&mut Lines<T>) -> R) -> R {
        look(&mut self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
