//! `mailqueue retry`, `hold`, `release` and `delete`: what an operator wants of rows.

use std::io::{self, BufRead, IsTerminal, Write};

use jiff::Timestamp;

use super::output::{Out, count, safe};
use super::select::{self, Filters};
use super::{Ending, Usage};
use crate::config::Config;
use crate::mail::MailId;
use crate::queue::{Chosen, Granted, Queue, Wish};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Name rows by id, or say which with a filter. A row that a dispatcher is at work on is left alone."
)]
pub struct Args {
    /// Ids, as in newsletter/1234
    #[arg(value_name = "ID", conflicts_with_all = ["queue", "state", "reason", "to", "subject", "older_than"])]
    ids: Vec<MailId>,
    /// Say which rows are meant, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    filters: Filters,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    common: Args,
}

pub async fn run(wish: Wish, args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let groups = args.groups(config).await?;
    args.carry_out(&wish, groups, out).await
}

pub async fn delete(args: &DeleteArgs, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let groups = args.common.groups(config).await?;
    let rows = groups.iter().map(|(_, rows)| rows.len()).sum();
    if !args.yes && !args.common.dry_run && rows > 0 && !confirmed(rows)? {
        writeln!(out, "nothing was deleted")?;
        return Ok(Ending::LeftOver);
    }
    args.common.carry_out(&Wish::Delete, groups, out).await
}

fn confirmed(rows: usize) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        let text = "delete asks first, and there is no terminal to answer on; add --yes, or look with --dry-run";
        return Err(Usage(text.to_owned()).into());
    }
    eprint!("Delete {} for good? [y/N] ", count(rows, "row"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes" | "j" | "ja"))
}

impl Args {
    /// The rows that are meant, by queue: those that a filter finds as they are now.
    async fn groups(&self, config: &Config) -> anyhow::Result<Vec<(Queue, Vec<Chosen>)>> {
        if !self.ids.is_empty() {
            let groups = select::by_id(config, &self.ids)?.into_iter();
            return Ok(groups.map(|(queue, mids)| (queue, mids.into_iter().map(Chosen::from).collect())).collect());
        }
        if self.filters.is_empty() {
            return Err(Usage("which rows? name ids, or give a filter such as --state failed".to_owned()).into());
        }
        let now = Timestamp::now();
        let mut groups = Vec::new();
        for queue in self.filters.queues(config)? {
            let mut walk = self.filters.walk(config, queue.clone(), now);
            let mut rows = Vec::new();
            while let Some(page) = walk.next().await? {
                rows.extend(queue.choose(&page).await?);
            }
            groups.push((queue, rows));
        }
        Ok(groups)
    }

    async fn carry_out(&self, wish: &Wish, groups: Vec<(Queue, Vec<Chosen>)>, out: &mut Out) -> anyhow::Result<Ending> {
        let (mut done, mut left) = (0, 0);
        for (queue, rows) in groups {
            for rows in rows.chunks(500) {
                let answers = if self.dry_run {
                    rows.iter().map(|row| (row.mid, Granted::Done)).collect()
                } else {
                    queue.grant(wish, rows, Timestamp::now()).await?
                };
                for (mid, granted) in answers {
                    let id = MailId::new(queue.name().clone(), mid);
                    match granted {
                        Granted::Done if self.dry_run => writeln!(out, "{id}: would be {}", word(wish))?,
                        Granted::Done => {
                            tracing::info!(%id, user = %user(), "{} by an operator", word(wish));
                            writeln!(out, "{id}: {}", word(wish))?;
                        }
                        Granted::NoSuchRow => writeln!(out, "{id}: there is no such row")?,
                        Granted::NotNow(ref why) => writeln!(out, "{id}: left alone: {}", safe(why))?,
                    }
                    if granted == Granted::Done { done += 1 } else { left += 1 }
                }
            }
        }
        if done + left == 0 {
            writeln!(out, "no row fits")?;
        }
        Ok(if left == 0 { Ending::Done } else { Ending::LeftOver })
    }
}

fn word(wish: &Wish) -> &'static str {
    match wish {
        Wish::Retry => "due now",
        Wish::Hold => "held",
        Wish::Release => "released",
        Wish::Delete => "deleted",
    }
}

/// Who gave the command, for the log.
pub fn user() -> String {
    let variable = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    let name = variable("SUDO_USER").or_else(|| variable("USER"));
    name.map_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()), |name| safe(&name))
}
