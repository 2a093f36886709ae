//! `mailqueue demo`: the first thing that a newcomer runs. An SQLite file, mails as the three producers write them, a
//! catcher on loopback, and between them the same dispatcher as in production.

mod catcher;
mod mails;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::ending::Ending;
use super::output::{Out, safe};
use super::{daemon, once, select};
use crate::config::Config;
use crate::ledger::{Query, Tracer};
use crate::mail::MailId;
use crate::outcome::RecipientState;
use crate::queue::Listed;
use catcher::Catcher;

#[derive(Debug, clap::Args)]
#[command(after_help = "Nothing leaves this machine. The folder stays, so that you can look around in it.")]
pub struct Args {
    /// The folder for everything; default: a new one for temporary files
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub async fn run(args: &Args, out: &mut Out) -> anyhow::Result<Ending> {
    let dir = folder(args.dir.as_deref())?;
    let catcher = Catcher::start(dir.join("received"), mails::GONE).await.context("cannot start the catcher")?;
    let file = dir.join("mailqueue.toml");
    std::fs::write(&file, configuration(&dir, catcher.address().port()))?;
    let config = Config::load(&file)?;

    let mut rows = Vec::new();
    for queue in &config.queues {
        let queue = select::open(&queue.settings)?;
        queue.migrate(true).await?;
        for mail in mails::of(queue.name()) {
            let mid = queue.insert(&mail.columns).await?;
            rows.push((MailId::new(queue.name().clone(), mid), mail.about));
        }
    }
    writeln!(
        out,
        "{} mails stand in {}; now they are sent.\n",
        rows.len(),
        safe(&dir.join("mailqueue.sqlite").display().to_string())
    )?;
    out.flush()?;

    let state_dir = daemon::take_state_dir(&config)?;
    let pass = once::drive(daemon::dispatcher(&config, &state_dir, true).await?).await?;
    if let Some(refusal) = pass.refused {
        return Err(refusal.into());
    }
    let received = received(&config, &catcher).await?;
    let mut cells = Vec::new();
    for (id, about) in rows {
        let listed = select::named(&config, &id.queue)?.look(id.mid).await?.map(|(listed, _)| listed);
        let files = received.get(&id).map(|files| files.join(" ")).unwrap_or_default();
        cells.push([id.to_string(), about.to_owned(), fate(listed.as_ref()), files]);
    }
    out.table(Some(["ID", "MAIL", "WHAT BECAME OF IT", "RECEIVED AS"]), cells)?;
    farewell(&dir, &file, out)?;
    Ok(Ending::Done)
}

fn folder(wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = match wanted {
        Some(dir) => std::path::absolute(dir)?,
        None => std::env::temp_dir().join(format!("mailqueue-demo-{:08x}", rand::random::<u32>())),
    };
    let received = dir.join("received");
    std::fs::create_dir_all(&received).with_context(|| format!("cannot make the folder {}", received.display()))?;
    Ok(dir)
}

fn configuration(dir: &Path, port: u16) -> String {
    // What would end a URL's path, or be taken for an escape.
    const PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');
    let quoted = |text: String| toml::Value::String(text).to_string();
    let file = dir.join("mailqueue.sqlite");
    let database = quoted(format!("sqlite:{}", utf8_percent_encode(&file.to_string_lossy(), PATH)));
    let state_dir = quoted(dir.join("state").to_string_lossy().into_owned());
    format!(
        "# Made by `mailqueue demo`. The catcher on this port ended with it.\n\
         state_dir = {state_dir}\n\n\
         [[queue]]\nname = \"newsletter\"\ndatabase = {database}\ntable = \"mail_queue\"\n\n\
         [[queue]]\nname = \"admidio\"\ndatabase = {database}\ntable = \"adm_mail_queue\"\nweight = 4\n\n\
         [relay]\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\n"
    )
}

/// The files in which each mail arrived: the ledger knows the row's Message-ID, the catcher the file's.
async fn received(config: &Config, catcher: &Catcher) -> anyhow::Result<HashMap<MailId, Vec<String>>> {
    let mut files: HashMap<MailId, Vec<String>> = HashMap::new();
    let tracer = Tracer::open(&config.state_dir)?;
    for caught in catcher.caught() {
        let known = tracer.find(&Query::MessageId(caught.message_id), 1)?;
        if let Some(known) = known.into_iter().next() {
            files.entry(known.id).or_default().push(caught.file);
        }
    }
    Ok(files)
}

fn fate(listed: Option<&Listed>) -> String {
    let Some(listed) = listed else { return "delivered, row deleted".to_owned() };
    let recipients = &listed.history.recipients;
    let accepted = recipients.iter().filter(|r| r.state == RecipientState::Accepted).count();
    let mut text = listed.state.to_string();
    if let Some(reason) = listed.reason {
        text += &format!(" ({reason})");
    }
    if !recipients.is_empty() {
        text += &format!(", {accepted} of {} have it", recipients.len());
    }
    for refused in recipients.iter().filter(|r| r.state == RecipientState::Refused) {
        text += &format!("; {}: {}", refused.address, refused.reply.as_deref().unwrap_or_default());
    }
    if let Some(detail) = &listed.detail {
        text += &format!(": {detail}");
    }
    text
}

fn farewell(dir: &Path, file: &Path, out: &mut Out) -> std::io::Result<()> {
    let file = safe(&file.display().to_string());
    writeln!(out, "\nThe received mails lie in {}.", safe(&dir.join("received").display().to_string()))?;
    writeln!(out, "What is left in the tables, and why:")?;
    writeln!(out, "  mailqueue --config {file} list")?;
    writeln!(out, "  mailqueue --config {file} show admidio/2")
}
