//! What people and machines see of the work: one picture of health, and the files below that turn it into text.
//!
//! [`Observers`] has everything that watches a running dispatcher; [`daemon::health`] is for commands. Neither knows the
//! dispatcher itself, only the [`Sample`](crate::telemetry::Sample)s that it gives.

pub mod audit;
pub mod checkmk;
pub mod daemon;
pub mod digest;
mod first_seen;
pub mod health;
pub mod http;
mod journald;
pub mod log_writer;
pub mod logs;
pub mod metrics;
mod refresh;
pub mod relay;
pub mod stall;
pub mod status_file;
pub mod summary;
pub mod systemd;
mod words;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use prometheus::core::Collector;
use tokio::sync::{Mutex, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::queue::Queue;
use crate::telemetry::Observed;
use health::Health;
use metrics::Metrics;
use summary::Summary;

/// The settings of the observers.
#[derive(Clone, Debug)]
pub struct Settings {
    pub state_dir: PathBuf,
    /// The interval at which rows are counted; never less than five seconds.
    pub poll_interval: Duration,
    /// For `/metrics` and `/healthz`.
    pub listen: Option<SocketAddr>,
    pub notify: Option<digest::Settings>,
    /// The time for which changes by operators are remembered.
    pub audit_keep: Duration,
}

/// The observers of a running dispatcher: they count rows in the background, serve metrics, tell the service manager, sum
/// up each hour, send digests, and log what operators do. Dropping this ends them.
#[derive(Debug)]
pub struct Observers<S> {
    dispatcher: S,
    metrics: Arc<Metrics>,
    health: watch::Sender<Health>,
    queues: Vec<Queue>,
    settings: Settings,
    /// The address of `/metrics`.
    monitor: Option<SocketAddr>,
    /// Since when rows have waited.
    waiting: refresh::Waiting,
    tasks: JoinSet<()>,
    /// Those of the tasks that a change of the settings can end.
    http: Option<AbortHandle>,
    counts: Vec<AbortHandle>,
    audit: Option<AbortHandle>,
    digest: Option<AbortHandle>,
}

/// The opened things that other settings need.
#[derive(Debug)]
pub struct Opened {
    server: Option<http::Server>,
}

impl<S: Observed> Observers<S> {
    /// Starts all. `counters` are those of the dispatcher. Fails where the port cannot be had.
    pub async fn start(
        dispatcher: S,
        counters: Vec<Box<dyn Collector>>,
        queues: Vec<Queue>,
        settings: Settings,
    ) -> anyhow::Result<Self> {
        let server = match settings.listen {
            Some(address) => Some(http::Server::bind(address).await?),
            None => None,
        };
        let mut observers = Self {
            metrics: Arc::new(Metrics::new(counters, Timestamp::now())?),
            health: watch::Sender::new(Health::default()),
            waiting: refresh::Waiting::default(),
            queues,
            monitor: None,
            tasks: JoinSet::new(),
            http: None,
            counts: Vec::new(),
            audit: None,
            digest: None,
            settings,
            dispatcher,
        };
        let health = observers.health.subscribe();
        let Self { dispatcher, settings, tasks, .. } = &mut observers;
        tasks.spawn(systemd::run(dispatcher.clone(), health.clone()));
        tasks.spawn(summary::run(dispatcher.clone(), Arc::new(Mutex::new(Summary::begin()))));
        tasks.spawn(status_file::keep(dispatcher.clone(), health, settings.state_dir.clone(), false));
        observers.serve(server);
        observers.count();
        observers.follow_audit();
        observers.send_digests();
        Ok(observers)
    }

    /// Opens what other settings need. Fails where the port cannot be had; nothing has changed before
    /// [`Observers::change`].
    pub async fn open(&self, settings: &Settings) -> anyhow::Result<Opened> {
        let server = match settings.listen {
            Some(address) if settings.listen != self.settings.listen => {
                let in_use = self.settings.listen.map(|address| address.port());
                let bound = http::Server::bind(address).await;
                let is_own = bound.is_err() && in_use == Some(address.port());
                Some(if is_own {
                    bound.context("the port is in use by this process, which can leave it by a restart only")?
                } else {
                    bound?
                })
            }
            _ => None,
        };
        Ok(Opened { server })
    }

    /// Goes on with other settings. What is as before goes on untouched.
    pub fn change(&mut self, opened: Opened, queues: Vec<Queue>, settings: Settings) {
        let before = std::mem::replace(&mut self.settings, settings);
        let same_queues = queues.len() == self.queues.len()
            && queues.iter().zip(&self.queues).all(|(new, before)| new.is_same_as(before));
        if self.settings.listen != before.listen {
            self.serve(opened.server);
        }
        if !same_queues || self.settings.poll_interval != before.poll_interval {
            // A queue that is as before keeps its connections.
            let known = |new: Queue| self.queues.iter().find(|before| before.is_same_as(&new)).cloned().unwrap_or(new);
            self.queues = queues.into_iter().map(known).collect();
            self.count();
        }
        if self.settings.audit_keep != before.audit_keep {
            self.follow_audit();
        }
        if self.settings.notify != before.notify {
            self.send_digests();
        }
        // Those that were ended leave their results behind.
        while self.tasks.try_join_next().is_some() {}
    }

    /// The address of `/metrics`.
    pub fn monitor(&self) -> Option<SocketAddr> {
        self.monitor
    }

    /// Ends all. The dispatcher has ended in good order.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        if self.settings.notify.is_some() {
            digest::put_by(self.dispatcher.take_failures(), &self.settings.state_dir);
        }
        if let Err(error) = status_file::close(&self.dispatcher, &self.health.borrow(), &self.settings.state_dir) {
            tracing::warn!(target: "mailqueue::monitor", %error, "`mailqueue status` will not know of this end");
        }
    }

    fn serve(&mut self, server: Option<http::Server>) {
        self.monitor = server.as_ref().and_then(|server| server.address().ok());
        if let Some(address) = self.monitor {
            tracing::info!(target: "mailqueue::monitor", %address, "serves /metrics and /healthz");
        }
        let parts = (self.dispatcher.clone(), self.metrics.clone(), self.health.subscribe());
        let (dispatcher, metrics, health) = parts;
        let server = server.map(|server| self.tasks.spawn(server.serve(dispatcher, metrics, health)));
        replace(&mut self.http, server);
    }

    /// Counts the rows of each queue, and looks whether they are sent.
    fn count(&mut self) {
        self.metrics.forget_queues();
        self.health.send_modify(|health| {
            let known = std::mem::take(&mut health.queues);
            let of = |queue: &Queue| known.iter().find(|known| known.name == **queue.name()).cloned();
            let counted =
                self.queues.iter().map(|queue| of(queue).unwrap_or_else(|| health::Queue::uncounted(queue.name())));
            health.queues = counted.collect();
        });
        self.counts.drain(..).for_each(|before| before.abort());
        let interval = self.settings.poll_interval;
        for queue in self.queues.clone() {
            let (health, metrics, waiting) = (self.health.clone(), self.metrics.clone(), self.waiting.clone());
            self.counts.push(self.tasks.spawn(refresh::count(queue, health, metrics, waiting, interval)));
        }
        let stall = refresh::stall(self.dispatcher.clone(), self.health.clone(), interval);
        self.counts.push(self.tasks.spawn(stall));
    }

    fn follow_audit(&mut self) {
        let task = audit::follow(self.settings.state_dir.clone(), self.settings.audit_keep);
        replace(&mut self.audit, Some(self.tasks.spawn(task)));
    }

    fn send_digests(&mut self) {
        let notify = self.settings.notify.clone();
        let task = notify.map(|notify| digest::run(self.dispatcher.clone(), notify, self.settings.state_dir.clone()));
        replace(&mut self.digest, task.map(|task| self.tasks.spawn(task)));
    }
}

/// Ends the task before, if there is one.
fn replace(place: &mut Option<AbortHandle>, task: Option<AbortHandle>) {
    if let Some(before) = std::mem::replace(place, task) {
        before.abort();
    }
}
