//! `mailqueue retry`, `hold`, `release` and `delete`: actions of an operator on rows.

use std::collections::HashMap;
use std::io::{self, BufRead, IsTerminal, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::abandoned::Dispatcher;
use super::ending::{Ending, QueueErrors, Usage};
use super::operator::{self, Verb};
use super::output::{Out, count, safe};
use super::select::{self, Filters};
use crate::config::Config;
use crate::mail::MailId;
use crate::queue::{self, Action, Outcome, Outcomes, Queue, Selected};

/// Rows whose outcomes are said and audited together.
const AT_ONCE: usize = 500;

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
    let mut errors = QueueErrors::default();
    let groups = args.groups(config, &mut errors).await?;
    args.carry_out(&action, groups, errors, config, out).await
}

pub async fn delete(args: &DeleteArgs, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let mut errors = QueueErrors::default();
    let groups = args.common.groups(config, &mut errors).await?;
    let rows = groups.iter().map(|(_, rows)| rows.len()).sum();
    if !args.yes && !args.common.dry_run && rows > 0 && !confirmed(rows)? {
        writeln!(out, "nothing was deleted")?;
        return Ok(errors.ending(Ending::LeftOver));
    }
    args.common.carry_out(&Action::Delete, groups, errors, config, out).await
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
    async fn groups(&self, config: &Config, errors: &mut QueueErrors) -> anyhow::Result<Vec<(Queue, Vec<Selected>)>> {
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
            if let Some(rows) = errors.pass(self.filtered(config, &queue, now).await) {
                groups.push((queue, rows));
            }
        }
        Ok(groups)
    }

    async fn filtered(&self, config: &Config, queue: &Queue, now: Timestamp) -> Result<Vec<Selected>, queue::Error> {
        let mut walk = self.filters.walk(config, queue.clone(), now);
        let mut rows = Vec::new();
        while let Some(page) = walk.next().await? {
            rows.extend(queue.select(&page).await?);
        }
        Ok(rows)
    }

    async fn carry_out(
        &self,
        action: &Action,
        groups: Vec<(Queue, Vec<Selected>)>,
        mut errors: QueueErrors,
        config: &Config,
        out: &mut Out,
    ) -> anyhow::Result<Ending> {
        let (mut done, mut left) = (0, 0);
        let mut dispatcher = Dispatcher::default();
        for (queue, rows) in groups {
            for rows in rows.chunks(AT_ONCE) {
                let Applied { outcomes, ended } = match self.dry_run {
                    true => Applied::foreseen(queue.foresee(action, rows).await),
                    false => apply(action, &queue, rows, config, &mut dispatcher).await,
                };
                if !self.dry_run {
                    audit_rows(config, action, &queue, &outcomes);
                }
                for (mid, outcome) in outcomes {
                    self.tell(action, &MailId::new(queue.name().clone(), mid), &outcome, out)?;
                    if matches!(outcome, Outcome::Done | Outcome::Deleted) { done += 1 } else { left += 1 }
                }
                if errors.pass_any(ended)?.is_none() {
                    break;
                }
            }
        }
        if done + left == 0 && !self.json && errors.is_empty() {
            writeln!(out, "no row fits")?;
        }
        Ok(errors.ending(if left == 0 { Ending::Done } else { Ending::LeftOver }))
    }

    /// Says the outcome of one row.
    fn tell(&self, action: &Action, id: &MailId, outcome: &Outcome, out: &mut Out) -> anyhow::Result<()> {
        if self.json {
            let (word, why) = match outcome {
                Outcome::Done | Outcome::Deleted if self.dry_run => ("would-be-done", None),
                Outcome::Done | Outcome::Deleted => ("done", None),
                Outcome::NotFound => ("no-such-row", None),
                Outcome::Rejected(why) => ("left-alone", Some(why.as_str())),
            };
            writeln!(out, "{}", serde_json::to_string(&Line { id: id.to_string(), outcome: word, why })?)?;
            return Ok(());
        }
        let would = if self.dry_run { "would be " } else { "" };
        match outcome {
            Outcome::Done => writeln!(out, "{id}: {would}{}", Verb::from(action).done)?,
            Outcome::Deleted => writeln!(out, "{id}: {would}deleted: it was delivered before")?,
            Outcome::NotFound => writeln!(out, "{id}: there is no such row")?,
            Outcome::Rejected(why) => writeln!(out, "{id}: {would}left alone: {}", safe(why))?,
        }
        Ok(())
    }
}

/// A line for programs.
#[derive(Serialize)]
struct Line<'a> {
    id: String,
    outcome: &'static str,
    /// The reason for which it was left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

/// The outcomes of a group of rows, and the error that ended it before all rows had one.
struct Applied {
    outcomes: Outcomes,
    ended: anyhow::Result<()>,
}

impl Applied {
    fn of(applied: Result<Outcomes, (queue::Error, Outcomes)>) -> Self {
        match applied {
            Ok(outcomes) => Self { outcomes, ended: Ok(()) },
            Err((error, outcomes)) => Self { outcomes, ended: Err(error.into()) },
        }
    }

    fn foreseen(foreseen: Result<Outcomes, queue::Error>) -> Self {
        Self::of(foreseen.map_err(|error| (error, Vec::new())))
    }
}

/// Applies the action. Rows of a dispatcher that is dead are settled before they are held or deleted.
async fn apply(
    action: &Action,
    queue: &Queue,
    rows: &[Selected],
    config: &Config,
    dispatcher: &mut Dispatcher,
) -> Applied {
    if !matches!(action, Action::Hold | Action::Delete) {
        return Applied::of(queue.apply(action, rows, Timestamp::now()).await);
    }
    let settled = match dispatcher.settle(config, queue, rows).await {
        Ok(settled) => settled,
        Err(error) => return Applied { outcomes: Vec::new(), ended: Err(error) },
    };
    let applied = match settled.refreshed(queue, rows).await {
        Ok(now) => queue.apply(action, &now, Timestamp::now()).await,
        Err(error) => Err((error, Vec::new())),
    };
    let Applied { outcomes, ended } = Applied::of(applied);
    let mut outcomes: HashMap<_, _> = outcomes.into_iter().collect();
    outcomes.extend(settled.delivered.iter().map(|&mid| (mid, Outcome::Deleted)));
    let in_order = rows.iter().filter_map(|row| Some((row.mid, outcomes.remove(&row.mid)?)));
    Applied { outcomes: in_order.collect(), ended }
}

/// Leaves a word of the rows that were changed. A row that was delivered before is deleted, whatever the action.
fn audit_rows(config: &Config, action: &Action, queue: &Queue, outcomes: &Outcomes) {
    for (outcome, verb) in [(Outcome::Done, Verb::from(action)), (Outcome::Deleted, Verb::DELETE)] {
        let mids: Vec<_> = outcomes.iter().filter(|(_, ended)| *ended == outcome).map(|(mid, _)| *mid).collect();
        if !mids.is_empty() {
            operator::audit(config, verb, queue.name(), mids);
        }
    }
}
