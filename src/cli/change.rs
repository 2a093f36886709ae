//! `mailqueue retry`, `hold`, `release` and `delete`: what an operator wants of rows.

use std::io::{self, BufRead, IsTerminal, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::abandoned::Dispatcher;
use super::ending::{Ending, Usage};
use super::output::{Out, count, safe};
use super::select::{self, Filters};
use crate::config::Config;
use crate::mail::MailId;
use crate::observe::audit::{self, Change};
use crate::queue::{Action, Outcome, Queue, Selected};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ids, as in newsletter/1234
    #[arg(value_name = "ID", conflicts_with_all = ["queue", "state", "reason", "to", "subject", "older_than"])]
    ids: Vec<MailId>,
    /// Say which rows are meant, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// For programs: an object a line, with `outcome` one of done, would-be-done, left-alone, no-such-row
    #[arg(long)]
    json: bool,
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

pub async fn run(action: Action, args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let groups = args.groups(config).await?;
    args.carry_out(&action, groups, config, out).await
}

pub async fn delete(args: &DeleteArgs, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let groups = args.common.groups(config).await?;
    let rows = groups.iter().map(|(_, rows)| rows.len()).sum();
    if !args.yes && !args.common.dry_run && rows > 0 && !confirmed(rows)? {
        writeln!(out, "nothing was deleted")?;
        return Ok(Ending::LeftOver);
    }
    args.common.carry_out(&Action::Delete, groups, config, out).await
}

fn confirmed(rows: usize) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        let text = "delete asks first, and there is no terminal to answer on; add --yes, or look with --dry-run";
        return Err(Usage(text.to_owned()).into());
    }
    // Unasked is unanswered: where the question cannot be shown, nothing is deleted.
    write!(io::stderr(), "Delete {} for good? [y/N] ", count(rows, "row"))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes" | "j" | "ja"))
}

impl Args {
    /// The rows that are meant, by queue: those that a filter finds as they are now.
    async fn groups(&self, config: &Config) -> anyhow::Result<Vec<(Queue, Vec<Selected>)>> {
        if !self.ids.is_empty() {
            let groups = select::by_id(config, &self.ids)?.into_iter();
            return Ok(groups.map(|(queue, mids)| (queue, mids.into_iter().map(Selected::from).collect())).collect());
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
                rows.extend(queue.select(&page).await?);
            }
            groups.push((queue, rows));
        }
        Ok(groups)
    }

    async fn carry_out(
        &self,
        action: &Action,
        groups: Vec<(Queue, Vec<Selected>)>,
        config: &Config,
        out: &mut Out,
    ) -> anyhow::Result<Ending> {
        let (mut done, mut left) = (0, 0);
        let mut dispatcher = Dispatcher::default();
        for (queue, rows) in groups {
            for rows in rows.chunks(500) {
                let answers = if self.dry_run {
                    rows.iter().map(|row| (row.mid, Outcome::Done)).collect()
                } else {
                    let answers = apply(action, &queue, rows, config, &mut dispatcher).await?;
                    let done = done_of(&answers);
                    if !done.is_empty() {
                        audit(config, past(action), queue.name(), done);
                    }
                    answers
                };
                for (mid, outcome) in answers {
                    self.tell(action, &MailId::new(queue.name().clone(), mid), &outcome, out)?;
                    if matches!(outcome, Outcome::Done | Outcome::Deleted) { done += 1 } else { left += 1 }
                }
            }
        }
        if done + left == 0 && !self.json {
            writeln!(out, "no row fits")?;
        }
        Ok(if left == 0 { Ending::Done } else { Ending::LeftOver })
    }

    /// What became of one row.
    fn tell(&self, action: &Action, id: &MailId, outcome: &Outcome, out: &mut Out) -> anyhow::Result<()> {
        if self.json {
            let (word, why) = match outcome {
                Outcome::Done if self.dry_run => ("would-be-done", None),
                Outcome::Done | Outcome::Deleted => ("done", None),
                Outcome::NotFound => ("no-such-row", None),
                Outcome::Rejected(why) => ("left-alone", Some(why.as_str())),
            };
            writeln!(out, "{}", serde_json::to_string(&Line { id: id.to_string(), outcome: word, why })?)?;
            return Ok(());
        }
        match outcome {
            Outcome::Done if self.dry_run => writeln!(out, "{id}: would be {}", word(action))?,
            Outcome::Done => writeln!(out, "{id}: {}", word(action))?,
            Outcome::Deleted => writeln!(out, "{id}: deleted: it was delivered before")?,
            Outcome::NotFound => writeln!(out, "{id}: there is no such row")?,
            Outcome::Rejected(why) => writeln!(out, "{id}: left alone: {}", safe(why))?,
        }
        Ok(())
    }
}

/// A line for programs.
#[derive(Serialize)]
struct Line<'a> {
    id: String,
    outcome: &'static str,
    /// Why it was left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

/// Applies the action. Rows of a dispatcher that is dead are settled before they are held or deleted.
async fn apply(
    action: &Action,
    queue: &Queue,
    rows: &[Selected],
    config: &Config,
    dispatcher: &mut Dispatcher,
) -> anyhow::Result<Vec<(i64, Outcome)>> {
    if !matches!(action, Action::Hold | Action::Delete) {
        return Ok(queue.apply(action, rows, Timestamp::now()).await?);
    }
    let (now, delivered) = dispatcher.settle(config, queue, rows).await?;
    let applied = queue.apply(action, &now, Timestamp::now()).await?;
    let mut applied: std::collections::HashMap<_, _> = applied.into_iter().collect();
    let outcome = |row: &Selected| match applied.remove(&row.mid) {
        None if delivered.contains(&row.mid) => {
            let why = "the smarthost had accepted it before the dispatcher died; its row is deleted";
            Some((row.mid, Outcome::Rejected(why.to_owned())))
        }
        outcome => outcome.map(|outcome| (row.mid, outcome)),
    };
    Ok(rows.iter().filter_map(outcome).collect())
}

fn word(action: &Action) -> &'static str {
    match action {
        Action::Retry => "due now",
        Action::Hold => "held",
        Action::Release => "released",
        Action::Delete => "deleted",
    }
}

/// For the log.
fn past(action: &Action) -> &'static str {
    if matches!(action, Action::Retry) { "retried" } else { word(action) }
}

fn done_of(answers: &[(i64, Outcome)]) -> Vec<i64> {
    answers
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Done | Outcome::Deleted))
        .map(|(mid, _)| *mid)
        .collect()
}

/// Leaves a word of what was changed where the service logs it.
pub fn audit(config: &Config, what: &str, target: &str, mids: Vec<i64>) {
    let (user, uid) = (user(), rustix::process::getuid().as_raw());
    let change = Change { at: Timestamp::now(), user, uid, what: what.to_owned(), target: target.to_owned(), mids };
    audit::record(&config.state_dir, &change);
}

/// Who gave the command, as the login says it; the number of the user cannot be made up.
fn user() -> String {
    let variable = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    let name = variable("SUDO_USER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
    name.map_or_else(|| "unknown".to_owned(), |name| safe(&name))
}
