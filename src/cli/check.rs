//! `mailqueue check`: is each part ready? Sends nothing.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::output::{Out, count, safe};
use super::{Ending, select};
use crate::config::Config;
use crate::queue::{self, Finding, Level};
use crate::relay::{Announced, Relay};

#[derive(Debug, clap::Args)]
#[command(after_help = "Each line that is not `ok` says what to do.\n\
    Exit status: 0 nothing failed, warnings or not; 1 something failed.")]
pub struct Args {}

/// How long a person waits for the smarthost; the daemon waits longer.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn run(_: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let mut report = Report { out, failed: 0 };
    report.line(
        Level::Ok,
        "configuration",
        &format!("{}, {}", config.file.display(), count(config.queues.len(), "queue")),
    )?;
    if let Some(finding) = exposed(config) {
        report.finding("configuration", finding)?;
    }
    report.finding("state_dir", state_dir(&config.state_dir))?;
    for queue in &config.queues {
        let part = format!("queue {}", queue.settings.name);
        for finding in select::open(&queue.settings)?.check().await {
            report.finding(&part, finding)?;
        }
    }
    for finding in relay(config).await {
        report.finding("relay", finding)?;
    }
    Ok(if report.failed == 0 { Ending::Done } else { Ending::LeftOver })
}

struct Report<'a> {
    out: &'a mut Out,
    failed: usize,
}

impl Report<'_> {
    fn finding(&mut self, part: &str, finding: Finding) -> std::io::Result<()> {
        self.line(finding.level, &format!("{part}: {}", finding.what), &finding.found)
    }

    fn line(&mut self, level: Level, what: &str, found: &str) -> std::io::Result<()> {
        let word = match level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failed => "FAILED",
        };
        self.failed += usize::from(level == Level::Failed);
        writeln!(self.out, "{word:<8} {}: {}", safe(what), safe(found))?;
        // Some probes take their time, and whoever waits wants to see the others.
        self.out.flush()
    }
}

fn finding(level: Level, what: &str, found: impl Into<String>) -> Finding {
    Finding { level, what: what.to_owned(), found: found.into() }
}

/// A password that stands in the configuration itself, where everybody on this machine can read it.
fn exposed(config: &Config) -> Option<Finding> {
    let literal = |password: &queue::Password| matches!(password, queue::Password::Value(text) if !text.contains("${"));
    let passwords = config.queues.iter().filter_map(|queue| queue.settings.database.password.as_ref());
    let mode = std::fs::metadata(&config.file).ok()?.mode();
    (mode & 0o004 != 0 && passwords.into_iter().any(literal)).then(|| {
        let found = format!(
            "everybody can read the file, and a password stands in a URL: run chmod 0640 {}",
            config.file.display()
        );
        finding(Level::Warning, "mode", found)
    })
}

fn state_dir(path: &Path) -> Finding {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => {
            finding(Level::Failed, "folder", format!("{shown} is no folder; name another"))
        }
        Ok(_) => match rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
            Ok(()) => finding(Level::Ok, "folder", format!("{shown} can be written")),
            Err(_) => {
                let found =
                    format!("{shown} cannot be written by this user; run check as the daemon's user to be sure");
                finding(Level::Warning, "folder", found)
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => finding(
            Level::Warning,
            "folder",
            format!("{shown} does not exist; the daemon makes it when it may, else create it"),
        ),
        Err(error) => finding(Level::Failed, "folder", format!("{shown} cannot be looked at: {error}")),
    }
}

async fn relay(config: &Config) -> Vec<Finding> {
    let settings = &config.relay;
    let place = format!("{}:{}", settings.host, settings.port);
    if let Some(login) = &settings.login
        && let Err(error) = login.password.read()
    {
        return vec![finding(Level::Failed, "password", error.to_string())];
    }
    let probed = match Relay::new(settings.clone()) {
        Ok(relay) => match tokio::time::timeout(PATIENCE, relay.probe()).await {
            Ok(probed) => probed.map_err(|trouble| trouble.to_string()),
            Err(_) => {
                Err(format!("no answer within {} seconds; port 465 wants tls = \"implicit\"", PATIENCE.as_secs()))
            }
        },
        Err(error) => Err(format!("{error:#}")),
    };
    match probed {
        Ok(announced) => {
            let login = if settings.login.is_some() { "connected and logged in" } else { "connected, without login" };
            let mut findings = vec![finding(Level::Ok, &place, login)];
            findings.extend(limits(config, &announced));
            findings
        }
        Err(what) => vec![finding(Level::Failed, &place, format!("{what}; look at [relay] in the configuration"))],
    }
}

/// What the smarthost announces, against what the configuration wants of it.
fn limits(config: &Config, announced: &Announced) -> Vec<Finding> {
    let offers: Vec<&str> = [
        ("PIPELINING", announced.pipelining),
        ("8BITMIME", announced.eight_bit),
        ("SMTPUTF8", announced.smtputf8),
        ("STARTTLS", announced.starttls),
    ]
    .into_iter()
    .filter_map(|(name, offered)| offered.then_some(name))
    .collect();
    let offers = if offers.is_empty() { "no extension".to_owned() } else { offers.join(", ") };
    let mut findings = vec![finding(Level::Ok, "offers", offers)];
    if let Some(size) = announced.size.filter(|size| *size > 0) {
        let wanted = config.message.max_size;
        findings.push(if size < wanted {
            let found = format!("the smarthost takes {size} bytes, message.max_size allows {wanted}: lower max_size");
            finding(Level::Warning, "size", found)
        } else {
            finding(Level::Ok, "size", format!("up to {size} bytes a mail"))
        });
    }
    findings
}
