//! When mail fails for good, somebody is told: a digest by mail, at most one an hour, never about itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use tokio::time::sleep;

use super::health::grouped;
use super::subject::{Gone, News, Subject, Undelivered};
use crate::mail::{Address, Envelope, Mail};
use crate::outcome::State;

/// `[notify]` of the configuration, with what a mail of our own needs besides.
#[derive(Clone, Debug)]
pub struct Settings {
    pub to: Address,
    /// Envelope sender and From.
    pub from: Address,
    /// Our host's name: for the Message-ID, and to tell dispatchers apart.
    pub host: String,
    /// Remembers when the last digest went out, also over a restart.
    pub state_dir: PathBuf,
    pub pace: Pace,
}

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the first failure to its digest, so that its fellows are in it.
    pub gather: Duration,
    /// From one digest to the next.
    pub between: Duration,
    /// From a digest that could not be sent to the next try.
    pub again: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Self { gather: minutes(1), between: minutes(60), again: minutes(5) }
    }
}

/// How often news are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// The file in `state_dir` whose time is that of the last digest.
const STAMP: &str = "digest";

/// Sends digests until it is dropped.
pub async fn run(subject: impl Subject, settings: Settings) {
    let Pace { gather, between, again } = settings.pace;
    let stamp = settings.state_dir.join(STAMP);
    loop {
        let news = news(&subject, gather.min(LOOK)).await;
        subject.put_back(news);
        sleep(gather.max(until_next(&stamp, between))).await;
        let news = subject.take_news();
        let mail = match digest(&settings, &news) {
            Ok(mail) => mail,
            Err(error) => {
                tracing::error!(target: "mailqueue::notify", %error, "no digest could be made");
                return;
            }
        };
        match subject.post(&mail).await {
            Ok(()) => {
                remember(&stamp);
                tracing::info!(target: "mailqueue::notify", message_id = mail.message_id, rows = news.len(), "digest sent");
            }
            Err(Undelivered::NotNow(why)) => {
                tracing::warn!(target: "mailqueue::notify", reason = why, "digest put off");
                subject.put_back(news);
                sleep(again).await;
            }
            Err(Undelivered::Never(why)) => {
                // Not offered again, and the next one not before its time: a digest must not become a flood.
                remember(&stamp);
                tracing::warn!(target: "mailqueue::notify", reason = why, rows = news.len(), "digest refused: see [notify] to");
            }
        }
    }
}

async fn news(subject: &impl Subject, look: Duration) -> News {
    loop {
        let news = subject.take_news();
        if news.len() > 0 {
            return news;
        }
        sleep(look).await;
    }
}

impl News {
    /// All rows.
    #[expect(clippy::len_without_is_empty, reason = "a number of rows, not a collection")]
    pub fn len(&self) -> u64 {
        self.rows.len() as u64 + self.more
    }
}

/// How long until a digest may go out. Clocks are compared over restarts here, and nothing more than a digest's time
/// hangs on it.
fn until_next(stamp: &Path, between: Duration) -> Duration {
    let last = std::fs::metadata(stamp).and_then(|metadata| metadata.modified());
    let age = last.ok().and_then(|last| SystemTime::now().duration_since(last).ok());
    age.map_or(Duration::ZERO, |age| between.saturating_sub(age))
}

fn remember(stamp: &Path) {
    if let Err(error) = std::fs::write(stamp, "The last digest for [notify] went out when this file was written.\n") {
        tracing::warn!(target: "mailqueue::notify", %error, file = %stamp.display(),
            "cannot be written: after a restart the next digest may come too soon");
    }
}

/// The digest as a mail: ids, reasons and last replies, nothing of a mail itself.
pub fn digest(settings: &Settings, news: &News) -> anyhow::Result<Mail> {
    let random: u128 = rand::random();
    let message_id = format!("<{random:032x}@{}>", settings.host);
    let subject = subject_line(news, &settings.host);
    let auto = HeaderName::new_from_ascii_str("Auto-Submitted");
    let message = Message::builder()
        .from(Mailbox::new(Some("mailqueue".to_owned()), settings.from.clone()))
        .to(Mailbox::new(None, settings.to.clone()))
        .subject(&subject)
        .message_id(Some(message_id.clone()))
        .date_now()
        .header(ContentType::TEXT_PLAIN)
        // RFC 3834 §5: no vacation message answers it.
        .raw_header(HeaderValue::new(auto, "auto-generated".to_owned()))
        .body(text(news))?;
    let smtputf8 = ![&settings.to, &settings.from].iter().all(|address| AsRef::<str>::as_ref(*address).is_ascii());
    let envelope = Envelope { sender: Some(settings.from.clone()), recipients: vec![settings.to.clone()] };
    let content = message.formatted().into();
    let (invalid, mendings) = (Vec::new(), Vec::new());
    Ok(Mail { message_id, subject, envelope, invalid, content, eight_bit: false, smtputf8, mendings })
}

fn subject_line(news: &News, host: &str) -> String {
    match news.len() {
        1 => format!("mailqueue on {host}: 1 mail was not sent"),
        number => format!("mailqueue on {host}: {} mails were not sent", grouped(number)),
    }
}

/// The digest's text.
pub fn text(news: &News) -> String {
    let mut text = String::from("These rows stay in their tables until somebody deals with them.\n");
    for (state, head) in [
        (State::Failed, "Failed: the smarthost refused them, or they grew too old."),
        (State::Unreadable, "Unreadable: no mail could be made of them."),
    ] {
        let rows: Vec<&Gone> = news.rows.iter().filter(|row| row.state == state).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{head}\n\n");
        for Gone { id, reason, said, .. } in rows {
            let _ = writeln!(text, "  {id}  {reason}");
            if let Some(said) = said {
                let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
                let _ = writeln!(text, "      {said}");
            }
        }
    }
    if news.more > 0 {
        let _ = write!(text, "\nAnd {} more.\n", grouped(news.more));
    }
    text.push_str(
        "\nOn the host of the dispatcher:\n\n\
         \x20 mailqueue list --state failed,unreadable   shows them all\n\
         \x20 mailqueue show ID                          explains one\n\
         \x20 mailqueue retry ID                         tries it again; who has it does not get it twice\n\
         \x20 mailqueue delete ID                        gives it up\n",
    );
    text
}
