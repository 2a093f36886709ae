//! `mailqueue run`: the daemon, as systemd or a shell starts it.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Ending, daemon};
use crate::config::Config;
use crate::dispatch::{Handle, Pass, RelayState};
use crate::ledger::StateDir;
use crate::observe::{Picture, RelayPicture};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGTERM and SIGINT finish what is in flight and end with 0; SIGHUP reads the configuration again \
    (all but [log]); SIGUSR1 looks at the tables at once."
)]
pub struct Args {}

/// How often the picture of health is drawn anew, and the service manager told that we live.
const TICK: Duration = Duration::from_secs(1);

pub async fn run(_: &Args, mut config: Config) -> anyhow::Result<Ending> {
    let mut signals = Signals::new()?;
    let mut state_dir = daemon::take_state_dir(&config)?;
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), config = %config.file.display(), "started");
    loop {
        let (pass, next) = session(&config, &state_dir, &mut signals).await?;
        if let Some(refusal) = pass.refused {
            return Err(refusal.into());
        }
        let Some(next) = next else { break };
        if next.state_dir != config.state_dir {
            state_dir = daemon::take_state_dir(&next)?;
        }
        config = *next;
        info!(config = %config.file.display(), "configuration read again");
    }
    info!("stopped");
    Ok(Ending::Done)
}

/// Runs one dispatcher until a signal ends it; the configuration to go on with, if it shall.
async fn session(
    config: &Config,
    state_dir: &StateDir,
    signals: &mut Signals,
) -> anyhow::Result<(Pass, Option<Box<Config>>)> {
    let dispatcher = daemon::dispatcher(config, state_dir, false).await?;
    let handle = dispatcher.handle();
    let mut next = None;
    let mut running = std::pin::pin!(dispatcher.run());
    let mut tick = tokio::time::interval(TICK);
    notify(&[NotifyState::Ready]);
    let pass = loop {
        tokio::select! {
            pass = &mut running => break pass,
            _ = signals.terminate.recv() => stop(&handle),
            _ = signals.interrupt.recv() => stop(&handle),
            _ = signals.poll.recv() => handle.poll(),
            _ = signals.reload.recv() => match Config::load(&config.file) {
                Ok(fresh) => {
                    reloading();
                    next = Some(Box::new(fresh));
                    handle.stop();
                }
                Err(invalid) => error!("the configuration stays as it was: {invalid}"),
            },
            _ = tick.tick() => show(&handle, state_dir.path()),
        }
    };
    Ok((pass, next))
}

fn stop(handle: &Handle) {
    info!("finishing what is in flight");
    notify(&[NotifyState::Stopping]);
    handle.stop();
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

/// Leaves the picture for `mailqueue status`, and tells the service manager.
fn show(handle: &Handle, state_dir: &Path) {
    let picture = picture(handle);
    notify(&[NotifyState::Watchdog, NotifyState::Status(&picture.sentence())]);
    if let Err(error) = picture.write(state_dir) {
        warn!(%error, "the picture of health cannot be written to state_dir");
    }
}

fn picture(handle: &Handle) -> Picture {
    let progress = handle.progress();
    let relay = match handle.relay().state {
        RelayState::Up => RelayPicture { state: "up".to_owned(), until: None, reason: None },
        RelayState::Paused { until, reason } => {
            let pause = until.saturating_duration_since(Instant::now());
            let until = Timestamp::now().checked_add(pause).ok();
            RelayPicture { state: "paused".to_owned(), until, reason: Some(reason) }
        }
        RelayState::Stopped => {
            RelayPicture { state: "stopped".to_owned(), until: None, reason: Some("operator".to_owned()) }
        }
    };
    Picture {
        pid: std::process::id(),
        drawn: Timestamp::now(),
        last_poll: progress.last_poll(),
        last_accepted: progress.last_accepted(),
        relay,
    }
}

/// Without a service manager this does nothing.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}
