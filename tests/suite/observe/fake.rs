//! A dispatcher that is as the test wants it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use mailqueue::mail::Mail;
use mailqueue::telemetry::{FailureReport, LaneLiveness, LaneSample, Observed, Sample, SendError, Wait};

#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    sample: Sample,
    failures: FailureReport,
    refusals: VecDeque<SendError>,
    posted: Vec<Mail>,
}

impl Fake {
    pub fn set(&self, change: impl FnOnce(&mut Sample)) {
        change(&mut self.0.lock().unwrap().sample);
    }

    pub fn happens(&self, failures: FailureReport) {
        self.0.lock().unwrap().failures.append(failures);
    }

    /// What the next mails meet; the others are taken.
    pub fn refuse(&self, refusals: impl IntoIterator<Item = SendError>) {
        self.0.lock().unwrap().refusals.extend(refusals);
    }

    /// The mails that were taken.
    pub fn posted(&self) -> Vec<Mail> {
        self.0.lock().unwrap().posted.clone()
    }
}

impl Observed for Fake {
    fn sample(&self) -> Sample {
        self.0.lock().unwrap().sample.clone()
    }

    fn take_failures(&self) -> FailureReport {
        std::mem::take(&mut self.0.lock().unwrap().failures)
    }

    fn out_of_files(&self) {}

    async fn send_notice(&self, mail: &Mail) -> Result<(), SendError> {
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

pub fn lane(name: &str) -> LaneSample {
    let liveness = LaneLiveness { started: true, ..LaneLiveness::default() };
    let (in_hand, attempted, waits_for) = (false, None, Wait::Relay);
    LaneSample { name: name.into(), liveness, database: None, in_hand, attempted, waits_for }
}
