//! `mailqueue once`: one pass over all that is due.

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::daemon;
use super::ending::Ending;
use super::output::{self, Out, safe};
use crate::config::Config;
use crate::dispatch::{Dispatcher, Pass};
use crate::observe::health::Health;
use crate::observe::status_file;
use crate::telemetry::Tally;

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 nothing is left over from the pass; 1 some rows were deferred, failed or \
    unreadable; 69 a database or the smarthost is out of reach; 70 an internal error; 75 another dispatcher holds state_dir.")]
pub struct Args {}

pub async fn run(_: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let state_dir = daemon::take_state_dir(config)?;
    let dispatcher = daemon::dispatcher(config, &state_dir, true).await?;
    let handle = dispatcher.handle();
    // Without counts: the pass ends, and nothing that it could tell is missed by then.
    let (_, health) = watch::channel(Health::default());
    let mut showing = JoinSet::new();
    showing.spawn(status_file::keep(handle.clone(), health, config.state_dir.clone(), true));
    let pass = drive(dispatcher).await?;
    showing.shutdown().await;
    // What became of the mails counts more than what `status` can say of it later.
    if let Err(error) = status_file::close(&handle, &Health::default(), &config.state_dir) {
        tracing::warn!(%error, "`mailqueue status` will not know of this pass: its file cannot be written");
    }
    writeln!(out, "{}", sentence(&pass.tally))?;
    conclude(pass)
}

/// Runs a pass to its end, or until a signal, and shows on a terminal how far it is.
pub async fn drive(dispatcher: Dispatcher) -> anyhow::Result<Pass> {
    let handle = dispatcher.handle();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // Draws nothing where standard error is no terminal.
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut running = std::pin::pin!(dispatcher.run());
    let pass = loop {
        tokio::select! {
            pass = &mut running => break pass,
            _ = terminate.recv() => handle.stop(),
            _ = interrupt.recv() => handle.stop(),
            _ = tick.tick() => {
                bar.set_message(sentence(&handle.progress().tally()));
                bar.tick();
            }
        }
    };
    bar.finish_and_clear();
    end_by_signals();
    Ok(pass)
}

/// Lets SIGTERM and SIGINT end the process at once again: what is left to do is to write a few lines, and their reader
/// may have stopped.
fn end_by_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the default action runs no code of this program.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

pub fn sentence(tally: &Tally) -> String {
    let Tally { delivered, deferred, failed, unreadable, held, not_deleted, .. } = tally;
    let mut sentence =
        format!("{delivered} delivered, {deferred} deferred, {failed} failed, {unreadable} unreadable, {held} held");
    if *not_deleted > 0 {
        sentence += &format!(", {not_deleted} delivered and not deleted (see `mailqueue list --reason not-deleted`)");
    }
    sentence
}

fn conclude(pass: Pass) -> anyhow::Result<Ending> {
    if let Some(refusal) = pass.refused {
        return Err(refusal.into());
    }
    for (queue, why) in &pass.databases {
        output::tell(&format!("mailqueue: queue {queue}: {}", safe(why)));
    }
    if let Some(why) = &pass.relay {
        output::tell(&format!("mailqueue: relay: {}", safe(why)));
    }
    Ok(if !pass.databases.is_empty() || pass.relay.is_some() {
        Ending::OutOfReach
    } else if pass.tally.left_over() > 0 || pass.cut_short {
        Ending::LeftOver
    } else {
        Ending::Done
    })
}
