//! `mailqueue pause` and `resume`: the emergency stop.

use std::io::Write;

use super::ending::Ending;
use super::output::Out;
use super::select;
use crate::config::Config;
use crate::queue::{self, PauseTarget, Queue};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A queue's name, or `relay` for all queues
    #[arg(required = true, value_name = "QUEUE or relay")]
    targets: Vec<String>,
}

/// `stop`: pause, else resume.
pub async fn run(args: &Args, stop: bool, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let done = if stop { "paused" } else { "goes on" };
    for target in args.targets.iter().filter(|target| *target != "relay") {
        select::named(config, target)?;
    }
    for target in &args.targets {
        if target == "relay" {
            // The flag stands in each database, so that a dispatcher needs to look only at its own.
            // One that is out of reach keeps no other from being told: a single flag stops a dispatcher.
            let mut failed = Ok(());
            for queue in &config.queues {
                failed = failed.and(set(&select::open(&queue.settings)?, PauseTarget::Relay, stop).await);
            }
            // Where one was told, that is a change already.
            super::change::audit(config, done_word(stop), target, Vec::new());
            failed?;
        } else {
            set(&select::named(config, target)?, PauseTarget::Queue, stop).await?;
            super::change::audit(config, done_word(stop), target, Vec::new());
        }
        writeln!(out, "{target}: {done}")?;
    }
    Ok(Ending::Done)
}

async fn set(queue: &Queue, target: PauseTarget, stop: bool) -> Result<(), queue::Error> {
    if stop { queue.pause(target).await } else { queue.resume(target).await }
}

/// For the log.
fn done_word(stop: bool) -> &'static str {
    if stop { "paused" } else { "resumed" }
}
