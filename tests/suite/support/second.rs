//! A second queue, `presse`, on a database of its own, which goes on whatever happens to the first.

use std::time::{Duration, Instant};

use super::catcher::{Catcher, Received};
use super::database::{self, TestDatabase};
use super::eventually;
use super::mails::{Mails, Producer};
use super::session::Session;

/// The longest time in which a mail of a healthy queue is delivered, on a machine that is busy with other tests. On an idle
/// one half a second is enough, most of which is the wait for a poll.
pub const PROMPT: Duration = Duration::from_secs(15);

/// The queue's name.
pub const NAME: &str = "presse";

pub struct Second {
    database: TestDatabase,
    session: Option<Session>,
    mails: Mails,
}

impl Second {
    /// On an SQLite file, which `mailqueue migrate` makes.
    pub fn new() -> Self {
        Self { database: database::sqlite(), session: None, mails: Mails::of(NAME) }
    }

    /// The configuration's section. It stands behind keys that belong to no section.
    pub fn section(&self) -> String {
        format!("\n[[queue]]\nname = \"{NAME}\"\ndatabase = \"{}\"\ntable = \"mail_queue\"\n", self.database.url)
    }

    pub fn url(&self) -> &url::Url {
        &self.database.url
    }

    /// A producer that goes on inserting until it is stopped.
    pub fn all_the_while(&self, pause: Duration) -> Producer {
        Mails::of(NAME).keep_filling(&self.database.url, "presse-during", pause)
    }

    pub fn add(&mut self, mails: Mails) {
        self.mails.add(mails);
    }

    /// Mails that are inserted now are delivered, and their rows deleted, within [`PROMPT`].
    pub async fn goes_on(&mut self, catcher: &Catcher, during: &str) {
        let name = format!("{NAME}-{during}-{}", self.mails.len());
        let begun = Instant::now();
        let mids = self.fill(&name, 3).await;
        let last = format!("{name}-2@example.org");
        let arrived = || catcher.received().iter().any(|mail| mail.recipients.contains(&last)).then_some(());
        eventually(&format!("{last} has its mail"), arrived).await;
        assert!(begun.elapsed() < PROMPT, "{during}: delivered after {:?}", begun.elapsed());
        let mids = mids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        self.until_none(during, &format!("SELECT COUNT(*) FROM mail_queue WHERE mid IN ({mids})")).await;
        assert!(begun.elapsed() < 2 * PROMPT, "{during}: deleted after {:?}", begun.elapsed());
    }

    async fn fill(&mut self, name: &str, count: usize) -> Vec<i64> {
        let mut session = self.session().await;
        let mids = self.mails.fill(&mut session, name, count).await;
        self.session = Some(session);
        mids
    }

    /// Waits until all rows are deleted.
    pub async fn until_empty(&mut self, when: &str) {
        self.until_none(when, "SELECT COUNT(*) FROM mail_queue").await;
    }

    async fn until_none(&mut self, when: &str, count: &str) {
        let mut session = self.session().await;
        let empty = async {
            while session.number(count).await.expect("SELECT") > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(super::DEADLINE, empty).await;
        assert!(in_time.is_ok(), "{when}: delivered rows of the second queue are not deleted");
        self.session = Some(session);
    }

    /// As [`Mails::audit`].
    pub fn audit(&self, received: &[Received], lines: &[String]) -> usize {
        self.mails.audit(received, lines)
    }

    async fn session(&mut self) -> Session {
        match self.session.take() {
            Some(session) => session,
            None => Session::on(&self.database.url).await,
        }
    }
}
