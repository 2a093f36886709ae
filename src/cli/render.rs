//! `mailqueue render`: what would go out for each row, as files. Sends nothing and changes nothing.

mod folder;

use std::io::Write;
use std::path::PathBuf;

use jiff::Timestamp;

use super::ending::{Ending, QueueErrors, Usage};
use super::output::{Out, count, safe};
use super::select::{self, Filters};
use crate::config::Config;
use crate::mail::Mail;
use crate::queue::{Listed, Queue};
use folder::Folder;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "For each row QUEUE-NUMBER.eml with the exact mail and QUEUE-NUMBER.json with its envelope are \
    written, for their owner's eyes only. A file that exists is never overwritten, so name a new folder each time.\n\
    Exit status: 0 all rows can become mails; 1 some cannot, or a file cannot be written; 69 a database is out of \
    reach (the rows of others are written).\n\
    Examples:\n  mailqueue render --all --out /var/tmp/trial\n  \
    mailqueue render --queue newsletter --to @example.org --out trial"
)]
pub struct Args {
    /// Every row of every queue
    #[arg(long, conflicts_with_all = ["queue", "state", "reason", "to", "subject", "older_than"])]
    all: bool,
    /// The folder to write into; made with mode 0700 where it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    filters: Filters,
}

#[derive(Default)]
struct Summary {
    written: usize,
    repaired: usize,
    unreadable: usize,
}

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    if !args.all && args.filters.is_empty() {
        return Err(Usage("which rows? add --all, or a filter such as --queue newsletter".to_owned()).into());
    }
    let queues = args.filters.queues(config)?;
    let folder = Folder::create(&args.out)?;
    let mut summary = Summary::default();
    let mut errors = QueueErrors::default();
    let mut ended = Ok(());
    for queue in queues {
        let written = rows(args, config, &queue, &folder, &mut summary, out).await;
        ended = errors.pass_any(written).map(drop);
        if ended.is_err() {
            break;
        }
    }
    writeln!(
        out,
        "{} written to {}, {} of them repaired; {} cannot become a mail",
        count(summary.written, "mail"),
        safe(&folder.path().display().to_string()),
        summary.repaired,
        count(summary.unreadable, "row")
    )?;
    ended?;
    Ok(errors.ending(if summary.unreadable == 0 { Ending::Done } else { Ending::LeftOver }))
}

/// Writes the rows of a queue, up to the first file that cannot be written; `summary` then says how many were written.
async fn rows(
    args: &Args,
    config: &Config,
    queue: &Queue,
    folder: &Folder,
    summary: &mut Summary,
    out: &mut Out,
) -> anyhow::Result<()> {
    let wire = select::announced_wire(config).unwrap_or_default();
    let mut walk = args.filters.walk(config, queue.clone(), Timestamp::now());
    while let Some(page) = walk.next().await? {
        for listed in page {
            let Some((listed, content)) = queue.look(listed.id.mid).await? else { continue };
            let mail = match select::translated(config, queue, &listed, &content, wire).await? {
                Ok(mail) => mail,
                Err(unreadable) => {
                    summary.unreadable += 1;
                    writeln!(out, "{}: no mail: {}", listed.id, safe(&unreadable.to_string()))?;
                    continue;
                }
            };
            write(folder, &listed, &mail)?;
            summary.written += 1;
            summary.repaired += usize::from(!mail.repairs.is_empty());
            for repair in &mail.repairs {
                writeln!(out, "{}: {}", listed.id, safe(&repair.text))?;
            }
            for invalid in &mail.invalid {
                writeln!(out, "{}: leaves out {}: {}", listed.id, safe(&invalid.written), safe(&invalid.why))?;
            }
        }
    }
    Ok(())
}

fn write(folder: &Folder, listed: &Listed, mail: &Mail) -> anyhow::Result<()> {
    let stem = format!("{}-{}", listed.id.queue, listed.id.mid);
    let envelope = serde_json::json!({
        "id": listed.id.to_string(),
        "sender": mail.envelope.sender.as_ref().map(ToString::to_string).unwrap_or_default(),
        "recipients": mail.envelope.recipients.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "invalid": mail.invalid.iter().map(|invalid| &invalid.written).collect::<Vec<_>>(),
        "repairs": mail.repairs.iter().map(|repair| &repair.text).collect::<Vec<_>>(),
    });
    let envelope = format!("{envelope:#}\n");
    folder.write(&[(format!("{stem}.eml"), &mail.content), (format!("{stem}.json"), envelope.as_bytes())])
}
