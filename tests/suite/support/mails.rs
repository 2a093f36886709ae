//! Mails that producers put into `mail_queue`, and what must have become of them in the end.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::catcher::Received;
use super::session::Session;

/// How long an INSERT may take, whatever goes on: a second, and another for a machine that is busy with tests. What
/// waits for a lock of ours waits longer. On SQLite three times as long: it has one writer at a time and no queue of those
/// who wait, so that on a busy machine chance makes one wait longer.
const UNBLOCKED: Duration = Duration::from_secs(2);

/// Who is to get which row.
pub struct Mails {
    queue: &'static str,
    rows: Vec<(i64, Vec<String>)>,
    slowest: Duration,
}

impl Default for Mails {
    /// Mails of the queue `newsletter`.
    fn default() -> Self {
        Self::of("newsletter")
    }
}

impl Mails {
    /// Mails of this queue, whose table is `mail_queue` too.
    pub fn of(queue: &'static str) -> Self {
        Self { queue, rows: Vec::new(), slowest: Duration::ZERO }
    }

    /// Inserts as PHP does, whole rows one by one. Each seventh mail is for forty recipients in Bcc, so that it wants
    /// several transactions.
    /// Returns their numbers.
    pub async fn fill(&mut self, session: &mut Session, name: &str, count: usize) -> Vec<i64> {
        let mut mids = Vec::with_capacity(count);
        for n in 0..count {
            mids.push(self.insert(session, &format!("{name}-{n}"), if n % 7 == 3 { 40 } else { 1 }, None).await);
        }
        mids
    }

    /// One row, for `name@example.org` or `name-0@`, `name-1@` and so on, under a number of its own or `mid`.
    pub async fn insert(&mut self, session: &mut Session, name: &str, recipients: usize, mid: Option<i64>) -> i64 {
        let (to, headers, recipients) = envelope(name, recipients);
        let texts = [&to, name, &format!("Grüße an {name}\n"), &headers].map(|text| STANDARD.encode(text));
        let [to, subject, body, headers] = &texts;
        let (column, number) = mid.map_or(Default::default(), |mid| ("mid, ", format!("{mid}, ")));
        let sql = format!(
            "INSERT INTO mail_queue ({column}mto, msubject, mbody, mheaders) \
             VALUES ({number}'{to}', '{subject}', '{body}', '{headers}') RETURNING mid"
        );
        let begin = Instant::now();
        let mid = session.number(&sql).await.expect("an INSERT that fails is a lost mail");
        let took = begin.elapsed() / if session.is_sqlite() { 3 } else { 1 };
        self.slowest = self.slowest.max(took);
        self.rows.push((mid, recipients));
        mid
    }

    /// Many small rows in few statements.
    pub async fn flood(&mut self, session: &mut Session, table: &str, name: &str, count: usize) {
        for first in (0..count).step_by(1000) {
            let rows = (first..count.min(first + 1000)).map(|n| {
                let (to, headers, _) = envelope(&format!("{name}-{n}"), 1);
                let [to, text, headers] = [&to, name, &headers].map(|text| STANDARD.encode(text));
                format!("('{to}', '{text}', '{text}', '{headers}')")
            });
            let rows = rows.collect::<Vec<_>>().join(", ");
            let sql = format!("INSERT INTO {table} (mto, msubject, mbody, mheaders) VALUES {rows}");
            session.run(&sql).await.expect("INSERT");
        }
    }

    /// A producer that goes on inserting until it is stopped.
    pub fn all_the_while(url: &Url, name: &'static str, pause: Duration) -> Producer {
        Self::default().keep_filling(url, name, pause)
    }

    /// The same, on top of what is there.
    pub fn keep_filling(mut self, url: &Url, name: &'static str, pause: Duration) -> Producer {
        let stop = CancellationToken::new();
        let (stopped, url) = (stop.clone(), url.clone());
        let task = tokio::spawn(async move {
            let mut session = Session::on(&url).await;
            let mut n = 0;
            while stopped.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                self.insert(&mut session, &format!("{name}-{n}"), if n % 7 == 3 { 20 } else { 1 }, None).await;
                n += 1;
            }
            self
        });
        Producer { stop, task }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn mids(&self) -> impl Iterator<Item = i64> {
        self.rows.iter().map(|(mid, _)| *mid)
    }

    pub fn add(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.slowest = self.slowest.max(other.slowest);
    }

    /// Everybody has got every mail. Who has got one more than once has got the same Message-ID and Date, and for each
    /// copy too many the log says that an outcome was unknown. No INSERT had to wait.
    /// Answers how many mails came more than once.
    pub fn audit(&self, received: &[Received], lines: &[String]) -> usize {
        assert!(self.slowest < UNBLOCKED, "an INSERT took {:?}", self.slowest);
        self.arrived(received, lines)
    }

    /// As [`Mails::audit`], where the database itself makes an INSERT wait.
    pub fn arrived(&self, received: &[Received], lines: &[String]) -> usize {
        let mut copies: HashMap<&str, Vec<&Received>> = HashMap::new();
        for mail in received {
            for recipient in &mail.recipients {
                copies.entry(recipient).or_default().push(mail);
            }
        }
        let everybody = self.rows.iter().flat_map(|(_, recipients)| recipients);
        let lost: BTreeSet<_> = everybody.filter(|recipient| !copies.contains_key(recipient.as_str())).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        let mut unknown: HashMap<&str, usize> = HashMap::new();
        let mention = format!("\"{}/", self.queue);
        for line in lines.iter().filter(|line| line.contains("unknown: ")) {
            if let Some((_, rest)) = line.split_once(&mention) {
                *unknown.entry(rest.split('"').next().unwrap_or_default()).or_default() += 1;
            }
        }
        let mut repeated = 0;
        for (mid, recipients) in &self.rows {
            let most = recipients.iter().map(|recipient| copies[recipient.as_str()].len()).max().unwrap_or(1);
            let known = unknown.get(mid.to_string().as_str()).copied().unwrap_or(0);
            assert!(most - 1 <= known, "{}/{mid} came {most} times, of unknown outcome {known} times", self.queue);
            repeated += usize::from(most > 1);
            let stamps = recipients.iter().flat_map(|recipient| &copies[recipient.as_str()]);
            let stamps: HashSet<_> = stamps.map(|mail| (header(mail, "Message-ID"), header(mail, "Date"))).collect();
            assert_eq!(stamps.len(), 1, "{}/{mid}: {stamps:?}", self.queue);
        }
        repeated
    }
}

pub struct Producer {
    stop: CancellationToken,
    task: JoinHandle<Mails>,
}

impl Producer {
    /// What it has inserted. Fails where an INSERT has failed.
    pub async fn stop(self) -> Mails {
        self.stop.cancel();
        self.task.await.expect("producer")
    }
}

fn envelope(name: &str, recipients: usize) -> (String, String, Vec<String>) {
    let from = "From: Newsletter <newsletter@partei.example.at>\r\n";
    if recipients == 1 {
        let to = format!("{name}@example.org");
        return (to.clone(), from.to_owned(), vec![to]);
    }
    let bcc: Vec<_> = (0..recipients).map(|k| format!("{name}-{k}@example.org")).collect();
    (String::new(), format!("{from}Bcc: {}\r\n", bcc.join(",\r\n ")), bcc)
}

/// The value of a header, as far as its first line goes.
fn header(mail: &Received, name: &str) -> String {
    let content = String::from_utf8_lossy(&mail.content);
    let mut lines = content.lines().take_while(|line| !line.is_empty());
    let line = lines.find(|line| line.to_ascii_lowercase().starts_with(&format!("{}:", name.to_ascii_lowercase())));
    line.unwrap_or_else(|| panic!("no {name} in:\n{content}")).to_owned()
}
