//! The ready queue: which of the mails that are ready goes next, so that the queues share the relay.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

/// The ready mails, a flow for each queue. While several flows have mails, each gets its weight's share; within a flow it
/// is first in, first out. (Stride scheduling: the flow with the lowest pass goes next, and each mail that leaves raises
/// its flow's pass by 1 / weight.)
#[derive(Debug)]
pub struct ReadyQueue<T> {
    flows: Mutex<Flows<T>>,
    arrived: Notify,
}

#[derive(Debug)]
struct Flows<T> {
    flows: Vec<Flow<T>>,
    /// The pass of the flow that the last mail left.
    pass: f64,
}

#[derive(Debug)]
struct Flow<T> {
    ready: VecDeque<T>,
    weight: f64,
    pass: f64,
}

impl<T> ReadyQueue<T> {
    /// One flow for each weight; a weight is at least 1.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let flow = |weight: u32| Flow { ready: VecDeque::new(), weight: f64::from(weight.max(1)), pass: 0.0 };
        let flows = weights.into_iter().map(flow).collect();
        Self { flows: Mutex::new(Flows { flows, pass: 0.0 }), arrived: Notify::new() }
    }

    /// Adds a flow behind the others.
    pub fn add_flow(&self, weight: u32) {
        self.with(|flows| {
            let flow = Flow { ready: VecDeque::new(), weight: f64::from(weight.max(1)), pass: flows.pass };
            flows.flows.push(flow);
        });
    }

    pub fn set_weight(&self, flow: usize, weight: u32) {
        self.with(|flows| flows.flows[flow].weight = f64::from(weight.max(1)));
    }

    pub fn push(&self, flow: usize, item: T) {
        self.with(|flows| {
            let pass = flows.pass;
            let flow = &mut flows.flows[flow];
            if flow.ready.is_empty() {
                // An idle flow resumes at the current pass, so it earns no credit for the time it was idle.
                flow.pass = flow.pass.max(pass);
            }
            flow.ready.push_back(item);
        });
        self.arrived.notify_one();
    }

    /// Puts a mail back that was taken out: it goes before the others of its flow.
    pub fn push_front(&self, flow: usize, item: T) {
        self.with(|flows| flows.flows[flow].ready.push_front(item));
        self.arrived.notify_one();
    }

    /// The next mail, where there is one.
    pub fn try_next(&self) -> Option<T> {
        self.try_next_by((), |_, _| Some(()))
    }

    /// The next of the mails whose rank is lowest; no rank is lower than `lowest`. `rank` is given a mail with its flow; a
    /// mail without a rank stays where it is.
    pub fn try_next_by<R: Ord>(&self, lowest: R, rank: impl Fn(usize, &T) -> Option<R>) -> Option<T> {
        self.with(|flows| {
            let mut best: Option<(R, usize, usize)> = None;
            for (index, flow) in flows.flows.iter().enumerate() {
                for (place, item) in flow.ready.iter().enumerate() {
                    let Some(rank) = rank(index, item) else { continue };
                    let before = |(best_rank, other, _): &(R, usize, usize)| {
                        rank < *best_rank || rank == *best_rank && flow.pass < flows.flows[*other].pass
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
            let flow = &mut flows.flows[index];
            flows.pass = flow.pass;
            flow.pass += 1.0 / flow.weight;
            flow.ready.remove(place)
        })
    }

    /// Waits until `there_is` finds a mail, and leaves it where it is. `there_is` is asked when a mail arrives, and after
    /// [`ReadyQueue::stir`].
    pub async fn wait_nonempty(&self, there_is: impl Fn() -> bool) {
        loop {
            let arrived = self.arrived.notified();
            if there_is() {
                // The permit is passed on, for the task that takes the mail.
                self.arrived.notify_one();
                return;
            }
            arrived.await;
        }
    }

    /// Makes [`ReadyQueue::wait_nonempty`] ask again.
    pub fn stir(&self) {
        self.arrived.notify_one();
    }

    /// Returns true for a mail of this kind. It is given with its flow.
    pub fn any(&self, is: impl Fn(usize, &T) -> bool) -> bool {
        self.with(|flows| {
            flows.flows.iter().enumerate().any(|(index, flow)| flow.ready.iter().any(|item| is(index, item)))
        })
    }

    /// Takes all mails of a kind out.
    pub fn extract(&self, is: impl Fn(&T) -> bool) -> Vec<T> {
        self.with(|flows| {
            let mut items = Vec::new();
            for flow in &mut flows.flows {
                let (out, stay) = std::mem::take(&mut flow.ready).into_iter().partition(|item| is(item));
                flow.ready = stay;
                items.extend::<VecDeque<T>>(out);
            }
            items
        })
    }

    pub fn is_empty(&self) -> bool {
        self.with(|flows| flows.flows.iter().all(|flow| flow.ready.is_empty()))
    }

    /// Takes up to `limit` mails of a flow, those with the lowest rank first. A mail without a rank stays where it is.
    pub fn take<R: Ord>(&self, flow: usize, limit: usize, rank: impl Fn(&T) -> Option<R>) -> Vec<T> {
        self.with(|flows| {
            let ready = &mut flows.flows[flow].ready;
            let ranked = ready.iter().enumerate().filter_map(|(place, item)| Some((rank(item)?, place)));
            let mut places: Vec<_> = ranked.collect();
            places.sort();
            places.truncate(limit);
            if places.iter().map(|(_, place)| *place).eq(0..places.len()) {
                // The mails to be taken are the first ones, as they usually are: the others need not be moved.
                return ready.drain(..places.len()).collect();
            }
            let mut items: Vec<_> = std::mem::take(ready).into_iter().map(Some).collect();
            let taken = places.iter().filter_map(|(_, place)| items[*place].take()).collect();
            ready.extend(items.into_iter().flatten());
            taken
        })
    }

    /// Returns the number of a flow's mails of a kind.
    pub fn count(&self, flow: usize, is: impl Fn(&T) -> bool) -> usize {
        self.with(|flows| flows.flows[flow].ready.iter().filter(|item| is(item)).count())
    }

    pub fn len(&self, flow: usize) -> usize {
        self.with(|flows| flows.flows[flow].ready.len())
    }

    /// Takes all mails of a flow out.
    pub fn drain(&self, flow: usize) -> Vec<T> {
        self.with(|flows| flows.flows[flow].ready.drain(..).collect())
    }

    fn with<R>(&self, look: impl FnOnce(&mut Flows<T>) -> R) -> R {
        look(&mut self.flows.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
