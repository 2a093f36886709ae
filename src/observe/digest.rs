//! When mail fails for good, somebody is told: a digest by mail, at most one an hour, never about itself.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use lettre::message::header::{ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0};
use lettre::message::{Mailbox, Message};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::status_file::replace;
use super::words::grouped;
use crate::failpoint;
use crate::mail::{Address, Capabilities, Envelope, Mail};
use crate::outcome::{Reason, State};
use crate::telemetry::{FailedRow, FailureReport, Observed, SendError};
use crate::visible;

/// `[notify]` of the configuration, with what a mail of our own needs besides.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub to: Address,
    /// Envelope sender and From.
    pub from: Address,
    /// Our host's name: for the Message-ID, and to tell dispatchers apart.
    pub host: String,
    pub pace: Pace,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A digest waits until nothing has failed for so long, so that the first failure's fellows are in it,
    pub quiet: Duration,
    /// but no longer than this.
    pub patience: Duration,
    /// From one digest to the next, also over a restart.
    pub between: Duration,
    /// From a digest that could not be sent to the next try.
    pub again: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Self { quiet: Duration::from_secs(10), patience: minutes(5), between: minutes(60), again: minutes(5) }
    }
}

/// How often news are looked for, and put on file.
const LOOK: Duration = Duration::from_secs(2);

/// Sends digests until it is dropped.
pub async fn run(dispatcher: impl Observed, settings: Settings, state_dir: PathBuf) {
    let pace = settings.pace;
    let mut pending = Pending::read(&state_dir);
    loop {
        failpoint::hit("in-digest");
        gather(&dispatcher, &mut pending, pace, &state_dir).await;
        let mail = match digest(&settings, &pending.failures) {
            Ok(mail) => mail,
            Err(error) => {
                tracing::error!(target: "mailqueue::notify", %error, "no digest could be made");
                return;
            }
        };
        let rows = pending.failures.len();
        match dispatcher.send_notice(&mail).await {
            Ok(()) => {
                tracing::info!(target: "mailqueue::notify", message_id = mail.message_id, rows, "digest sent");
            }
            Err(SendError::Temporary(why)) => {
                tracing::warn!(target: "mailqueue::notify", reason = why, "digest put off");
                wait(&dispatcher, &mut pending, pace.again, &state_dir).await;
                continue;
            }
            // Not offered again, and the next one not before its time: a digest must not become a flood.
            Err(SendError::Permanent(why)) => {
                tracing::warn!(target: "mailqueue::notify", reason = why, rows, "digest refused: see [notify] to");
            }
        }
        pending = Pending { sent: Some(Timestamp::now()), failures: FailureReport::default() };
        keep(&pending, &state_dir);
    }
}

/// Until there is something to tell, all of it has happened, and the last digest is old enough.
async fn gather(dispatcher: &impl Observed, pending: &mut Pending, pace: Pace, state_dir: &Path) {
    while pending.failures.is_empty() {
        wait(dispatcher, pending, LOOK.min(pace.quiet), state_dir).await;
    }
    let begun = Instant::now();
    loop {
        let before = pending.failures.len();
        wait(dispatcher, pending, pace.quiet, state_dir).await;
        if pending.failures.len() == before || begun.elapsed() >= pace.patience {
            break;
        }
    }
    // Clocks are compared over restarts here; nothing but a digest's time hangs on it.
    let age = pending.sent.and_then(|sent| Duration::try_from(Timestamp::now().duration_since(sent)).ok());
    let rest = age.map_or(Duration::ZERO, |age| pace.between.saturating_sub(age));
    wait(dispatcher, pending, rest, state_dir).await;
}

/// Takes in news meanwhile, so that not many are lost with the process.
async fn wait(dispatcher: &impl Observed, pending: &mut Pending, how_long: Duration, state_dir: &Path) {
    let until = Instant::now() + how_long;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        sleep(left.min(LOOK)).await;
        let newer = dispatcher.take_failures();
        if !newer.is_empty() {
            pending.failures.append(newer);
            keep(pending, state_dir);
        }
        if left <= LOOK {
            return;
        }
    }
}

/// What a dispatcher that ends has not told anybody yet.
pub fn put_by(newer: FailureReport, state_dir: &Path) {
    if !newer.is_empty() {
        let mut pending = Pending::read(state_dir);
        pending.failures.append(newer);
        keep(&pending, state_dir);
    }
}

fn keep(pending: &Pending, state_dir: &Path) {
    if let Err(error) = pending.write(state_dir) {
        tracing::warn!(target: "mailqueue::notify", %error, "state_dir cannot be written: a restart may repeat or lose news");
    }
}

/// The digest as a mail: ids, reasons and last replies, nothing of a mail itself.
pub fn digest(settings: &Settings, report: &FailureReport) -> anyhow::Result<Mail> {
    let random: u128 = rand::random();
    let message_id = format!("<{random:032x}@{}>", settings.host);
    let subject = subject_line(report, &settings.host);
    let auto = HeaderName::new_from_ascii_str("Auto-Submitted");
    let message = Message::builder()
        .from(Mailbox::new(Some("mailqueue".to_owned()), settings.from.clone()))
        .to(Mailbox::new(None, settings.to.clone()))
        .subject(&subject)
        .message_id(Some(message_id.clone()))
        .date_now()
        .header(MIME_VERSION_1_0)
        .header(ContentType::TEXT_PLAIN)
        // RFC 3834 §5: no vacation message answers it.
        .raw_header(HeaderValue::new(auto, "auto-generated".to_owned()))
        .body(text(report))?;
    let smtputf8 = ![&settings.to, &settings.from].iter().all(|address| AsRef::<str>::as_ref(*address).is_ascii());
    let envelope = Envelope { sender: Some(settings.from.clone()), recipients: vec![settings.to.clone()] };
    let content = message.formatted().into();
    let (invalid, repairs) = (Vec::new(), Vec::new());
    Ok(Mail {
        message_id,
        subject,
        own_sender: envelope.sender.clone(),
        envelope,
        invalid,
        made_for: Capabilities::default(),
        narrowed: false,
        content,
        eight_bit: false,
        smtputf8,
        repairs,
    })
}

fn subject_line(report: &FailureReport, host: &str) -> String {
    let not_deleted = report.rows.iter().filter(|row| row.state == State::Held).count() as u64;
    let mut parts = Vec::new();
    match report.len() - not_deleted {
        0 => {}
        1 => parts.push("1 mail was not sent".to_owned()),
        number => parts.push(format!("{} mails were not sent", grouped(number))),
    }
    match not_deleted {
        0 => {}
        1 => parts.push("1 row was not deleted".to_owned()),
        number => parts.push(format!("{} rows were not deleted", grouped(number))),
    }
    format!("mailqueue on {host}: {}", parts.join(", "))
}

/// The digest's text.
pub fn text(report: &FailureReport) -> String {
    let mut text = String::from("These rows stay in their tables until somebody deals with them.\n");
    for (state, head) in [
        (State::Failed, "Failed: the smarthost refused them, or they grew too old."),
        (State::Unreadable, "Unreadable: no mail could be made of them."),
        (State::Held, "Delivered and not deleted: the database refuses it. They are not sent again."),
    ] {
        let rows: Vec<&FailedRow> = report.rows.iter().filter(|row| row.state == state).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{head}\n\n");
        for FailedRow { id, reason, detail, .. } in rows {
            let _ = writeln!(text, "  {id}  {reason}");
            if let Some(detail) = detail {
                let detail: String =
                    detail.chars().map(|c| if visible::is_hidden(c) { ' ' } else { c }).take(500).collect();
                let _ = writeln!(text, "      {detail}");
            }
        }
    }
    if report.omitted > 0 {
        let _ = write!(text, "\nAnd {} more.\n", grouped(report.omitted));
    }
    text.push_str(
        "\nOn the host of the dispatcher:\n\n\
         \x20 mailqueue list --state failed,unreadable   shows them all\n\
         \x20 mailqueue show ID                          explains one\n\
         \x20 mailqueue retry ID                         tries it again; who has it does not get it twice\n\
         \x20 mailqueue delete ID                        gives it up\n",
    );
    if report.rows.iter().any(|row| row.state == State::Held) {
        text.push_str(
            "\x20 mailqueue list --reason not-deleted         shows those that are not deleted; retry deletes them\n",
        );
    }
    text
}

/// Below `state_dir`.
const FILE: &str = "digest.json";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    pub sent: Option<Timestamp>,
    pub failures: FailureReport,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
struct Stored {
    sent: Option<Timestamp>,
    rows: Vec<Row>,
    omitted: u64,
}

#[derive(Serialize, Deserialize)]
struct Row {
    id: String,
    state: String,
    reason: String,
    detail: Option<String>,
}

impl Pending {
    /// The counts on file; nothing where the file cannot be read.
    pub fn read(state_dir: &Path) -> Self {
        let bytes = std::fs::read(state_dir.join(FILE)).unwrap_or_default();
        let Ok(Stored { sent, rows, omitted }) = serde_json::from_slice(&bytes) else { return Self::default() };
        Self { sent, failures: FailureReport { rows: rows.into_iter().filter_map(failed).collect(), omitted } }
    }

    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let row = |failed: &FailedRow| Row {
            id: failed.id.to_string(),
            state: failed.state.to_string(),
            reason: failed.reason.to_string(),
            detail: failed.detail.clone(),
        };
        let FailureReport { rows, omitted } = &self.failures;
        let stored = Stored { sent: self.sent, rows: rows.iter().map(row).collect(), omitted: *omitted };
        replace(state_dir, FILE, &serde_json::to_vec(&stored)?)
    }
}

fn failed(row: Row) -> Option<FailedRow> {
    let Row { id, state, reason, detail } = row;
    Some(FailedRow { id: id.parse().ok()?, state: State::parse(&state)?, reason: Reason::parse(&reason)?, detail })
}
