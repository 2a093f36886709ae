//! `mailqueue run`: the daemon, as systemd or a shell starts it.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use super::daemon;
use super::ending::Ending;
use crate::config::Config;
use crate::dispatch::{Dispatcher, Pass, Progress};
use crate::observe::logs::{self, Logs};
use crate::observe::{AcrossReloads, systemd};
use crate::queue::Pools;
use crate::relay::Relay;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGTERM and SIGINT finish what is in flight and end with 0; SIGHUP reads the configuration again; \
    SIGUSR1 looks at the tables at once.\n\
    Exit status: 0 it was told to end; 1 it could not start; 2 the command line or the configuration is wrong; \
    70 an internal error, which the log has; 75 another dispatcher holds state_dir."
)]
pub struct Args {}

/// `level` is that of the command line, which counts more than the file's.
pub async fn run(_: &Args, mut config: Config, logs: &Logs, level: Option<&str>) -> anyhow::Result<Ending> {
    let mut signals = Signals::new()?;
    let mut state_dir = daemon::take_state_dir(&config)?;
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), config = %config.file.display(), "started");
    let mut progress = Progress::default();
    let pools = Pools::default();
    let across_reloads = AcrossReloads::new(progress.counters.collectors())?;
    loop {
        let dispatcher = daemon::dispatcher(&config, &pools, &state_dir, progress, false).await?;
        let handle = dispatcher.handle();
        let (pass, next) = session(&config, &pools, dispatcher, &across_reloads, &mut signals).await?;
        if let Some(refusal) = pass.refused {
            return Err(refusal.into());
        }
        let Some(next) = next else { break };
        if next.state_dir != config.state_dir {
            state_dir = daemon::take_state_dir(&next)?;
        }
        progress = handle.progress().carry_over();
        config = *next;
        let level = level.unwrap_or(&config.log.level).to_owned();
        if let Err(error) = logs.change(&logs::Settings { level, ..config.log.clone() }) {
            error!("the log stays as it was: {error:#}");
        }
        info!(config = %config.file.display(), "configuration read again");
    }
    info!("stopped");
    Ok(Ending::Done)
}

/// Runs one dispatcher until a signal ends it; the configuration to go on with, if it shall.
async fn session(
    config: &Config,
    pools: &Pools,
    dispatcher: Dispatcher,
    across_reloads: &AcrossReloads,
    signals: &mut Signals,
) -> anyhow::Result<(Pass, Option<Box<Config>>)> {
    let handle = dispatcher.handle();
    let observers = daemon::observe(config, pools, &handle, across_reloads).await?;
    let mut next = None;
    let mut ending = false;
    let mut running = std::pin::pin!(dispatcher.run());
    let pass = loop {
        tokio::select! {
            pass = &mut running => break pass,
            _ = signals.terminate.recv() => ending = true,
            _ = signals.interrupt.recv() => ending = true,
            _ = signals.poll.recv() => handle.poll(),
            _ = signals.reload.recv() => match reload(config) {
                Ok(fresh) => {
                    systemd::reloading();
                    next = Some(Box::new(fresh));
                    handle.stop();
                }
                Err(error) => error!("the configuration stays as it was: {error:#}"),
            },
        }
        if ending {
            info!("finishing what is in flight");
            systemd::stopping();
            handle.stop();
            break running.await;
        }
    };
    observers.stop().await;
    Ok((pass, next.filter(|_| !ending)))
}

/// The file as it is now, if a dispatcher can be made of it.
fn reload(config: &Config) -> anyhow::Result<Config> {
    let fresh = Config::load(&config.file)?;
    Relay::new(fresh.relay.clone())?;
    Ok(fresh)
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
