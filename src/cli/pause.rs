//! `mailqueue pause` and `resume`: the emergency stop.

use std::io::Write;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::ending::{Ending, QueueErrors};
use super::operator::{self, Verb};
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

/// A target of the command, and the databases that have been told of it.
struct Target<'a> {
    name: &'a str,
    kind: PauseTarget,
    queues: Vec<Queue>,
    reached: usize,
    answered: usize,
}

/// `stop`: pause, else resume. All databases are told side by side, so that one that does not answer delays no other.
pub async fn run(args: &Args, stop: bool, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let verb = if stop { Verb::PAUSE } else { Verb::RESUME };
    let targets: anyhow::Result<Vec<_>> = args.targets.iter().map(|name| Target::named(name, config)).collect();
    let mut targets = targets?;
    let mut telling = FuturesUnordered::new();
    for (at, target) in targets.iter().enumerate() {
        for queue in &target.queues {
            let (queue, kind) = (queue.clone(), target.kind);
            telling.push(async move { (at, set(&queue, kind, stop).await) });
        }
    }
    let (mut errors, mut said) = (QueueErrors::default(), 0);
    while let Some((at, told)) = telling.next().await {
        let target = &mut targets[at];
        target.answered += 1;
        if errors.pass(told).is_some() {
            target.reached += 1;
            // A change from the first database on: a single flag stops a dispatcher.
            if target.reached == 1 {
                operator::audit(config, verb, target.name, Vec::new());
            }
        }
        // In the order of the command line.
        while let Some(target) = targets.get(said).filter(|target| target.answered == target.queues.len()) {
            target.tell(stop, verb, out)?;
            said += 1;
        }
    }
    Ok(errors.ending(Ending::Done))
}

impl<'a> Target<'a> {
    fn named(name: &'a str, config: &Config) -> anyhow::Result<Self> {
        let (kind, queues) = match name {
            // The flag stands in each database, so that a dispatcher needs to look only at its own.
            "relay" => (PauseTarget::Relay, select::all(config)?),
            name => (PauseTarget::Queue, vec![select::named(config, name)?]),
        };
        Ok(Self { name, kind, queues, reached: 0, answered: 0 })
    }

    fn tell(&self, stop: bool, verb: Verb, out: &mut Out) -> anyhow::Result<()> {
        let Self { name, reached, queues, .. } = self;
        match *reached {
            0 => return Ok(()),
            reached if reached == queues.len() => writeln!(out, "{name}: {}", verb.done)?,
            reached if stop => {
                writeln!(out, "{name}: paused in the databases of {reached} of {} queues", queues.len())?
            }
            reached => {
                let all = queues.len();
                writeln!(out, "{name}: stays paused: the databases of {reached} of {all} queues were told to go on")?;
            }
        }
        Ok(out.flush()?)
    }
}

async fn set(queue: &Queue, target: PauseTarget, stop: bool) -> Result<(), queue::Error> {
    if stop { queue.pause(target).await } else { queue.resume(target).await }
}
