//! What people and machines see of the work: one picture of health, and the files below that turn it into text.
//!
//! [`start`] has everything that watches a running dispatcher; [`daemon::health`] is for commands. Neither knows the
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

use jiff::Timestamp;
use prometheus::core::Collector;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::queue::Queue;
use crate::telemetry::Observed;
use health::Health;
use metrics::Metrics;
use summary::Summary;

/// What is to watch a dispatcher.
#[derive(Clone, Debug)]
pub struct Settings {
    pub state_dir: PathBuf,
    /// Rows are counted so often, and never more often than every five seconds.
    pub poll_interval: Duration,
    /// For `/metrics` and `/healthz`.
    pub listen: Option<SocketAddr>,
    pub notify: Option<digest::Settings>,
    /// How long it is remembered what operators did.
    pub audit_keep: Duration,
}

/// Everything that watches a running dispatcher. Dropping it ends the watch.
#[derive(Debug)]
pub struct Observers<S> {
    dispatcher: S,
    health: watch::Receiver<Health>,
    state_dir: PathBuf,
    monitor: Option<SocketAddr>,
    notifies: bool,
    tasks: JoinSet<()>,
}

/// What outlives the dispatcher when the configuration is read again: counters never go back, and an hour stays an hour.
#[derive(Clone, Debug)]
pub struct AcrossReloads {
    metrics: Arc<Metrics>,
    summary: Arc<Mutex<Summary>>,
    /// Waiting rows do not become younger.
    waiting: refresh::Waiting,
}

impl AcrossReloads {
    /// `counters` are those that the dispatchers keep.
    pub fn new(counters: Vec<Box<dyn Collector>>) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new(counters, Timestamp::now())?);
        Ok(Self { metrics, summary: Arc::new(Mutex::new(Summary::begin())), waiting: refresh::Waiting::default() })
    }
}

/// Starts to watch: counts rows in the background, serves metrics, tells the service manager, sums up each hour, sends
/// digests, logs what operators do. Fails where the port cannot be had.
pub async fn start<S: Observed>(
    dispatcher: S,
    queues: Vec<Queue>,
    across_reloads: &AcrossReloads,
    settings: Settings,
) -> anyhow::Result<Observers<S>> {
    let metrics = across_reloads.metrics.clone();
    metrics.forget_queues();
    let monitor = match settings.listen {
        Some(address) => Some(http::Server::bind(address).await?),
        None => None,
    };
    let address = monitor.as_ref().and_then(|monitor| monitor.address().ok());
    if let Some(address) = address {
        tracing::info!(target: "mailqueue::monitor", %address, "serves /metrics and /healthz");
    }
    let uncounted = queues.iter().map(|queue| health::Queue::uncounted(queue.name())).collect();
    let (sender, health) = watch::channel(Health { queues: uncounted, ..Health::default() });

    let notifies = settings.notify.is_some();
    let mut tasks = JoinSet::new();
    if let Some(monitor) = monitor {
        tasks.spawn(monitor.serve(dispatcher.clone(), metrics.clone(), health.clone()));
    }
    for queue in queues {
        let waiting = across_reloads.waiting.clone();
        tasks.spawn(refresh::count(queue, sender.clone(), metrics.clone(), waiting, settings.poll_interval));
    }
    tasks.spawn(refresh::stall(dispatcher.clone(), sender, settings.poll_interval));
    tasks.spawn(systemd::run(dispatcher.clone(), health.clone()));
    tasks.spawn(summary::run(dispatcher.clone(), across_reloads.summary.clone()));
    tasks.spawn(audit::follow(settings.state_dir.clone(), settings.audit_keep));
    tasks.spawn(status_file::keep(dispatcher.clone(), health.clone(), settings.state_dir.clone(), false));
    if let Some(notify) = settings.notify {
        tasks.spawn(digest::run(dispatcher.clone(), notify, settings.state_dir.clone()));
    }
    Ok(Observers { dispatcher, health, state_dir: settings.state_dir, monitor: address, notifies, tasks })
}

impl<S: Observed> Observers<S> {
    /// Where `/metrics` is.
    pub fn monitor(&self) -> Option<SocketAddr> {
        self.monitor
    }

    /// The dispatcher has ended in good order.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        if self.notifies {
            digest::put_by(self.dispatcher.take_failures(), &self.state_dir);
        }
        if let Err(error) = status_file::close(&self.dispatcher, &self.health.borrow(), &self.state_dir) {
            tracing::warn!(target: "mailqueue::monitor", %error, "`mailqueue status` will not know of this end");
        }
    }
}
