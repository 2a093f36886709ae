//! `mailqueue run`: the daemon, as systemd or a shell starts it.

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use super::daemon::{self, Redaction};
use super::ending::Ending;
use crate::config::Config;
use crate::dispatch::Handle;
use crate::ledger::StateDir;
use crate::observe::logs::{self, Logs};
use crate::observe::{Observers, systemd};
use crate::queue::Pools;
use crate::telemetry::Observed;

/// The time that the database of a queue which a reload brings has to answer. A server answers within milliseconds.
const OPENED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGTERM and SIGINT finish what is in flight and end with 0; SIGHUP reads the configuration again; \
    SIGUSR1 looks at the tables at once.\n\
    Exit status: 0 it was told to end; 1 it could not start; 2 the command line or the configuration is wrong; \
    70 an internal error, which the log has; 75 another dispatcher holds state_dir."
)]
pub struct Args {}

/// `level` is that of the command line, which counts more than the file's.
pub async fn run(_: &Args, config: Config, logs: &Logs, level: Option<&str>) -> anyhow::Result<Ending> {
    let mut signals = Signals::new()?;
    let state_dir = daemon::take_state_dir(&config)?;
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), config = %config.file.display(), "started");
    let redaction = Redaction::new(&config, &state_dir)?;
    let pools = Pools::default();
    let dispatcher = daemon::with_redaction(&config, &pools, &state_dir, &redaction, false).await?;
    let handle = dispatcher.handle();
    let counters = handle.progress().counters.collectors();
    let queues = daemon::counted_queues(&config, &pools)?;
    let observers = Observers::start(handle.clone(), counters, queues, daemon::observers(&config)?).await?;
    let mut daemon = Daemon { config, pools, state_dir, redaction, logs, level, handle, observers };
    // A task of its own, so that it goes on while a new configuration is read.
    let mut running = tokio::spawn(dispatcher.run());
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
            _ = signals.poll.recv() => {
                daemon.handle.poll();
                continue;
            }
            _ = signals.reload.recv() => {
                daemon.reload().await;
                continue;
            }
        }
        info!("finishing what is in flight");
        systemd::stopping();
        daemon.handle.stop();
        break running.await;
    };
    // It is not cancelled, and a panic has ended the process.
    let pass = ended?;
    daemon.observers.stop().await;
    if let Some(refusal) = pass.refused {
        return Err(refusal.into());
    }
    info!("stopped");
    Ok(Ending::Done)
}

/// A running daemon.
struct Daemon<'a> {
    /// The configuration in force.
    config: Config,
    /// The connections to databases.
    pools: Pools,
    state_dir: StateDir,
    redaction: Redaction,
    logs: &'a Logs,
    /// The level of the command line.
    level: Option<&'a str>,
    handle: Handle,
    observers: Observers<Handle>,
}

impl Daemon<'_> {
    /// Reads the configuration again and puts it in force. After an error all is as before.
    async fn reload(&mut self) {
        systemd::reloading();
        let file = self.config.file.clone();
        match self.put_in_force().await {
            Ok(()) => info!(config = %file.display(), "configuration read again"),
            Err(error) => error!(config = %file.display(),
                "the configuration stays as it was: {error:#}; correct it, and reload again"),
        }
        // Before the first look at each queue, the observer says it when it is so.
        if self.handle.sample().started() {
            systemd::ready();
        }
    }

    /// Opens everything first that the new configuration needs and that can fail.
    async fn put_in_force(&mut self) -> anyhow::Result<()> {
        let config = Config::load(&self.config.file)?;
        if config.state_dir != self.config.state_dir {
            bail!(
                "state_dir cannot change while mailqueue runs, because claims and ledger belong to it: restart, or put {} \
                 back",
                self.config.state_dir.display()
            );
        }
        let change = daemon::parts(&config, &self.pools, &self.state_dir, &self.redaction)?;
        change.relay.check_secret().context("[relay]")?;
        for queue in &config.queues {
            let password = queue.settings.database.password.as_ref();
            password
                .map(|password| password.read())
                .transpose()
                .with_context(|| format!("queue {}", queue.settings.name))?;
        }
        let checks = change.sources.iter().map(|source| self.handle.check_new(&source.queue, OPENED_WITHIN));
        // Side by side: a signal is obeyed only afterwards.
        try_join_all(checks).await?;
        let settings = daemon::observers(&config)?;
        let queues = daemon::counted_queues(&config, &self.pools)?;
        let opened = self.observers.open(&settings).await?;
        let redactor = daemon::redactor(&config, &self.state_dir)?;
        let level = self.level.unwrap_or(&config.log.level).to_owned();
        let log = self.logs.prepare(&logs::Settings { level, ..config.log.clone() }).context("[log]")?;

        self.logs.change(log)?;
        self.redaction.change(redactor);
        self.handle.change(change).await;
        self.observers.change(opened, queues, settings);
        self.config = config;
        Ok(())
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
    poll: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
            poll: signal(SignalKind::user_defined1())?,
        })
    }
}
