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

    /// Puts a mail back that was taken out: it goes before the others of its line.
    pub fn push_front(&self, line: usize, item: T) {
        self.with(|lines| lines.lines[line].ready.push_front(item));
        self.arrived.notify_one();
    }

    /// The next mail, where there is one.
    pub fn try_next(&self) -> Option<T> {
        self.try_next_by((), |_, _| Some(()))
    }

    /// The next of the mails whose rank is lowest; no rank is lower than `lowest`. `rank` is given a mail with its line; a
    /// mail without a rank stays where it is.
    pub fn try_next_by<R: Ord>(&self, lowest: R, rank: impl Fn(usize, &T) -> Option<R>) -> Option<T> {
        let item = self.with(|lines| {
            let mut best: Option<(R, usize, usize)> = None;
            for (index, line) in lines.lines.iter().enumerate() {
                for (place, item) in line.ready.iter().enumerate() {
                    let Some(rank) = rank(index, item) else { continue };
                    let before = |(best_rank, other, _): &(R, usize, usize)| {
                        rank < *best_rank || rank == *best_rank && line.passed < lines.lines[*other].passed
                    };
                    let is_lowest = rank == lowest;
                    if best.as_ref().is_none_or(before) {
                        best = Some((rank, index, place));
                    }
                    if is_lowest {
                        break;
                    }
                }
            }
            let (_, index, place) = best?;
            let line = &mut lines.lines[index];
            lines.passed = line.passed;
            line.passed += 1.0 / line.weight;
            line.ready.remove(place)
        });
        if item.is_some() {
            self.room.notify_waiters();
        }
        item
    }

    /// Waits until `there_is` finds a mail, and leaves it where it is. `there_is` is asked when a mail arrives, and after
    /// [`Share::stir`].
    pub async fn arrival(&self, there_is: impl Fn() -> bool) {
        loop {
            let arrived = self.arrived.notified();
            if there_is() {
                // The call was for somebody who takes the mail.
                self.arrived.notify_one();
                return;
            }
            arrived.await;
        }
    }

    /// Lets those who wait for a mail look again.
    pub fn stir(&self) {
        self.arrived.notify_one();
    }

    /// Returns true for a mail of this kind. It is given with its line.
    pub fn any(&self, is: impl Fn(usize, &T) -> bool) -> bool {
        self.with(|lines| {
            lines.lines.iter().enumerate().any(|(index, line)| line.ready.iter().any(|item| is(index, item)))
        })
    }

    /// Takes all mails of a kind out.
    pub fn extract(&self, is: impl Fn(&T) -> bool) -> Vec<T> {
        let items = self.with(|lines| {
            let mut items = Vec::new();
            for line in &mut lines.lines {
                let (out, stay) = std::mem::take(&mut line.ready).into_iter().partition(|item| is(item));
                line.ready = stay;
                items.extend::<VecDeque<T>>(out);
            }
            items
        });
        self.room.notify_waiters();
        items
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
