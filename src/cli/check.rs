//! `mailqueue check`: is each part ready? Sends nothing.

use std::io::Write;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::ending::Ending;
use super::output::{Colour, Out, count, safe};
use super::select;
use crate::config::Config;
use crate::ledger::Tracer;
use crate::queue::{self, Finding, Level};
use crate::relay::{Announced, Credential, Login, Relay};

#[derive(Debug, clap::Args)]
#[command(after_help = "Each line that is not `ok` says what to do.\n\
    Exit status: 0 nothing failed, warnings or not; 1 something failed.")]
pub struct Args {
    /// One JSON object a line: part, probe, level (ok, warning, failed) and text
    #[arg(long)]
    json: bool,
}

/// A certificate that ends sooner is worth a word.
const CERTIFICATE_DAYS: i64 = 14;

/// The time that a person waits for the smarthost; the daemon waits longer.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn run(args: &Args, config: &Config, out: &mut Out) -> anyhow::Result<Ending> {
    let mut report = Report { out, json: args.json, failed: 0 };
    let file = format!("{}, {}", config.file.display(), count(config.queues.len(), "queue"));
    report.finding("configuration", finding(Level::Ok, "file", file))?;
    if let Some(finding) = exposed(config) {
        report.finding("configuration", finding)?;
    }
    for finding in own_name(config) {
        report.finding("configuration", finding)?;
    }
    if let Some(finding) = memory(config) {
        report.finding("configuration", finding)?;
    }
    report.finding("state_dir", state_dir(&config.state_dir))?;
    report.finding("state_dir", ledger(&config.state_dir))?;
    for queue in &config.queues {
        let part = format!("queue {}", queue.settings.name);
        let queue = select::open(&queue.settings)?;
        let findings = queue.check().await;
        // A database that is out of reach is not waited for a second time.
        let is_reached = findings.first().is_some_and(|first| first.level != Level::Failed);
        for finding in findings {
            report.finding(&part, finding)?;
        }
        if is_reached && let Ok(Some(longest)) = queue.longest_packet().await {
            report.finding(&part, packets(longest, config.message.max_size))?;
        }
    }
    for finding in relay(config).await {
        report.finding("relay", finding)?;
    }
    Ok(if report.failed == 0 { Ending::Done } else { Ending::LeftOver })
}

struct Report<'a> {
    out: &'a mut Out,
    json: bool,
    failed: usize,
}

/// A probe as programs read it: a contract.
#[derive(Serialize)]
struct Object<'a> {
    /// As in `queue newsletter`.
    part: &'a str,
    probe: &'a str,
    /// `ok`, `warning` or `failed`.
    level: &'a str,
    /// The finding, and where something is wrong the remedy.
    text: &'a str,
}

impl Report<'_> {
    fn finding(&mut self, part: &str, finding: Finding) -> std::io::Result<()> {
        let Finding { level, what: probe, found: text } = &finding;
        let (word, level, colour) = match level {
            Level::Ok => ("ok", "ok", Colour::Green),
            Level::Warning => ("warning", "warning", Colour::Yellow),
            Level::Failed => ("FAILED", "failed", Colour::Red),
        };
        self.failed += usize::from(finding.level == Level::Failed);
        if self.json {
            self.out.json(&Object { part, probe, level, text })?;
        } else {
            let word = self.out.coloured(colour, &format!("{word:<8}"));
            writeln!(self.out, "{word} {}: {}: {}", safe(part), safe(probe), safe(text))?;
        }
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

/// Bytes. A queue with a smaller part of the memory can hold few mails with attachments at a time.
const SMALL_PART: u64 = 4_000_000;

/// A part of `max_in_flight_bytes` that is small.
fn memory(config: &Config) -> Option<Finding> {
    let queues = config.queues.len().max(1);
    let part = config.max_in_flight_bytes / queues as u64;
    (part < SMALL_PART).then(|| {
        let found = format!(
            "each of {} has {:.1} MB of max_in_flight_bytes, and a row counts three times: with less than 4 MB, mails with \
             attachments wait for each other; raise it to {} MB",
            count(queues, "queue"),
            part as f64 / 1e6,
            queues as u64 * SMALL_PART / 1_000_000,
        );
        finding(Level::Warning, "memory", found)
    })
}

/// Findings about the name of this host towards others.
fn own_name(config: &Config) -> Vec<Finding> {
    let helo = &config.relay.helo;
    let literal = helo.starts_with('[');
    let mut findings = Vec::new();
    if !literal && !helo.contains('.') {
        let found = format!(
            "\"{helo}\" has no dot, and many mail servers refuse EHLO with such a name: set relay.helo to this host's full \
             name, as in mail.example.org"
        );
        findings.push(finding(Level::Warning, "helo", found));
    }
    let named = config.message.default_from.is_some() || config.message.envelope_from.is_some();
    if config.notify.is_some() && !named && (literal || !helo.contains('.')) {
        let found = format!(
            "digests would come from mailqueue@{helo}, which many mail servers refuse: set message.default_from"
        );
        findings.push(finding(Level::Warning, "notify", found));
    }
    findings
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

fn ledger(state_dir: &Path) -> Finding {
    if !crate::ledger::exists(state_dir) {
        return finding(Level::Ok, "ledger", "none yet; the daemon makes it");
    }
    match Tracer::open(state_dir).and_then(|tracer| tracer.summary()) {
        Ok((open, _)) => finding(Level::Ok, "ledger", format!("can be read, {open} open")),
        Err(error) => finding(Level::Failed, "ledger", error.to_string()),
    }
}

/// Three bytes of a mail are four in its row.
fn packets(longest: u64, max_size: u64) -> Finding {
    let wanted = max_size.div_ceil(3) * 4;
    if longest > wanted {
        return finding(Level::Ok, "max_allowed_packet", format!("{longest} bytes do for every mail"));
    }
    let found = format!(
        "{longest} bytes, and a mail of message.max_size has {wanted} in the table: one over {} bytes cannot be put there, \
         and a producer that ignores the error has lost it; raise max_allowed_packet on the server, or lower message.max_size",
        longest / 4 * 3
    );
    finding(Level::Warning, "max_allowed_packet", found)
}

async fn relay(config: &Config) -> Vec<Finding> {
    let settings = &config.relay;
    let place = match settings.host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{}", settings.port),
        Err(_) => format!("{}:{}", settings.host, settings.port),
    };
    if let Some(Login { credential: Credential::Secret(secret), .. }) = &settings.login
        && let Err(error) = secret.read()
    {
        return vec![finding(Level::Failed, "password", error.to_string())];
    }
    let probed = match Relay::new(settings.clone()) {
        Ok(relay) => match tokio::time::timeout(PATIENCE, relay.probe()).await {
            Ok(Ok(announced)) => Ok((announced, relay.pipelining(tokio::time::Instant::now()))),
            Ok(Err(trouble)) => Err(trouble.to_string()),
            Err(_) => {
                Err(format!("no answer within {} seconds; port 465 wants tls = \"implicit\"", PATIENCE.as_secs()))
            }
        },
        Err(error) => Err(format!("{error:#}")),
    };
    match probed {
        Ok((announced, (mode, why))) => {
            let login = if settings.login.is_some() { "connected and logged in" } else { "connected, without login" };
            let mut findings = vec![finding(Level::Ok, &place, login)];
            findings.extend(announced.certificate_ends.map(|ends| certificate(ends, Timestamp::now())));
            findings.extend(announced.clock_ahead.map(|ahead| {
                let (level, found) = queue::clock_ahead("the smarthost", ahead);
                finding(level, "clock", found)
            }));
            findings.extend(limits(config, &announced));
            findings.push(finding(Level::Ok, "pipelining", format!("{}: {why}", mode.as_str())));
            findings
        }
        Err(what) => vec![finding(Level::Failed, &place, format!("{what}; look at [relay] in the configuration"))],
    }
}

fn certificate(ends: Timestamp, now: Timestamp) -> Finding {
    let days = ends.duration_since(now).as_hours().div_euclid(24);
    let until = ends.strftime("%Y-%m-%d");
    match days {
        ..0 => {
            finding(Level::Failed, "certificate", format!("expired on {until}: it must be renewed at the smarthost"))
        }
        0..CERTIFICATE_DAYS => {
            let found = format!(
                "ends in {}, on {until}: it must be renewed at the smarthost, or no mail will go out",
                count(days.unsigned_abs() as usize, "day")
            );
            finding(Level::Warning, "certificate", found)
        }
        _ => finding(Level::Ok, "certificate", format!("good for {days} days, until {until}")),
    }
}

/// Compares the smarthost's announcement with the configuration.
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
