//! `mailqueue migrate`: our tables, and if asked the producers' as well.

use std::io::Write;

use super::ending::{Ending, QueueErrors, Usage};
use super::output::{Out, safe};
use super::select;
use crate::config::{self, Config};
use crate::queue;

#[derive(Debug, clap::Args)]
#[command(after_help = "Tables that exist are left as they are. The daemon itself needs no right to create tables: \
    give --database with a user who has it, or name such a user in the configuration for this one command.\n\
    Exit status: 0 done; 1 a table cannot be created; 69 a database is out of reach (those of others are created).\n\
    Examples:\n  mailqueue migrate --database 'mysql://root@localhost/DATABASE?socket=/run/mysqld/mysqld.sock'\n  \
    mailqueue migrate --producers --queue newsletter")]
pub struct Args {
    /// Create the producers' tables too
    #[arg(long)]
    producers: bool,
    #[command(flatten)]
    target: Target,
}

/// The queues that are meant, and the login.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Only this queue; may be given several times
    #[arg(long, value_name = "QUEUE")]
    pub queue: Vec<String>,
    /// Log in with this URL, for the queues of the database that it names
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let mut errors = QueueErrors::default();
    for settings in args.target.settings(config)? {
        let queue = select::open(&settings)?;
        for sentence in errors.pass(queue.migrate(args.producers).await).unwrap_or_default() {
            writeln!(out, "{}: {}", settings.name, safe(&sentence))?;
        }
    }
    Ok(errors.ending(Ending::Done))
}

impl Target {
    /// The queues that are meant, with their database's URL replaced where one was given.
    pub fn settings(&self, config: &Config) -> anyhow::Result<Vec<queue::Settings>> {
        for name in &self.queue {
            select::named(config, name)?;
        }
        let all = config.queues.iter().map(|queue| queue.settings.clone());
        let mut chosen: Vec<queue::Settings> = all
            .filter(|settings| self.queue.is_empty() || self.queue.iter().any(|name| **name == *settings.name))
            .collect();
        let Some(url) = &self.database else { return Ok(chosen) };
        let database =
            config::database(url, None).map_err(|(what, remedy)| Usage(format!("--database: {what}; {remedy}")))?;
        if self.queue.is_empty() {
            let same = |settings: &queue::Settings| {
                let theirs = &settings.database.url;
                theirs.scheme() == database.url.scheme() && theirs.path() == database.url.path()
            };
            chosen.retain(same);
        }
        if chosen.is_empty() {
            let text = "no queue of the configuration has its table in the database that --database names; \
                correct the URL, or name the queue with --queue";
            return Err(Usage(text.to_owned()).into());
        }
        for settings in &mut chosen {
            settings.database = database.clone();
        }
        Ok(chosen)
    }
}
