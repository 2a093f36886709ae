//! A dispatcher that is as the test wants it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mailqueue::mail::Mail;
use mailqueue::observe::subject::{Lane, Look, News, Subject, Undelivered};

#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    look: Look,
    news: News,
    refusals: VecDeque<Undelivered>,
    posted: Vec<Mail>,
}

impl Fake {
    pub fn set(&self, change: impl FnOnce(&mut Look)) {
        change(&mut self.0.lock().unwrap().look);
    }

    pub fn happens(&self, news: News) {
        self.0.lock().unwrap().news.add(news);
    }

    /// What the next mails meet; the others are taken.
    pub fn refuse(&self, refusals: impl IntoIterator<Item = Undelivered>) {
        self.0.lock().unwrap().refusals.extend(refusals);
    }

    /// The mails that were taken.
    pub fn posted(&self) -> Vec<Mail> {
        self.0.lock().unwrap().posted.clone()
    }
}

impl Subject for Fake {
    fn look(&self) -> Look {
        self.0.lock().unwrap().look.clone()
    }

    fn take_news(&self) -> News {
        std::mem::take(&mut self.0.lock().unwrap().news)
    }

    async fn post(&self, mail: &Mail) -> Result<(), Undelivered> {
        let mut inner = self.0.lock().unwrap();
        match inner.refusals.pop_front() {
            Some(refusal) => Err(refusal),
            None => {
                inner.posted.push(mail.clone());
                Ok(())
            }
        }
    }
}

pub fn lane(name: &str) -> Lane {
    Lane { name: name.into(), still_for: Duration::ZERO, started: true, database: None }
}
