//! What happened so far, counted for monitoring. Labels are the queue's name and our own words, never anything of a row.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

use crate::outcome::{Attempt, Cause, Fate, RecipientOutcome, Stage, Trouble};

/// Counters and histograms. Cheap to clone: clones count together.
#[derive(Clone, Debug)]
pub struct Counters {
    recipients: IntCounterVec,
    rows: IntCounterVec,
    transactions: IntCounterVec,
    attempt_seconds: HistogramVec,
    settle_seconds: HistogramVec,
}

const OUTCOMES: [&str; 4] = ["accepted", "deferred", "refused", "unknown"];
const FATES: [&str; 7] = ["delivered", "deferred", "failed", "held", "not-deleted", "unreadable", "released"];

/// In seconds: from a reply at once to the ten minutes that a final dot may take (RFC 5321 §4.5.3.2.6).
const ATTEMPT_BUCKETS: [f64; 13] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];
const SETTLE_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 60.0];

impl Default for Counters {
    fn default() -> Self {
        Self {
            recipients: counter(
                "mailqueue_recipients_total",
                "Recipients of attempts, by what the attempt came to for them.",
                &["queue", "outcome"],
            ),
            rows: counter(
                "mailqueue_rows_settled_total",
                "Claims that were settled, by what became of the row; delivered rows are deleted.",
                &["queue", "fate"],
            ),
            transactions: counter(
                "mailqueue_transactions_total",
                "SMTP transactions and tries of one, by the step that ended them and the class of its reply.",
                &["stage", "reply_class"],
            ),
            attempt_seconds: histogram(
                "mailqueue_attempt_duration_seconds",
                "Time from MAIL to the last reply, for each offer of a mail to the smarthost.",
                &ATTEMPT_BUCKETS,
            ),
            settle_seconds: histogram(
                "mailqueue_settle_duration_seconds",
                "Time that the database took to settle a group of rows, tries that failed included.",
                &SETTLE_BUCKETS,
            ),
        }
    }
}

impl Counters {
    /// Makes the series of a queue, so that its first failure is a step from 0 to 1 and not a series that appears.
    pub fn expect_queue(&self, queue: &str) {
        for outcome in OUTCOMES {
            self.recipients.with_label_values(&[queue, outcome]).inc_by(0);
        }
        for fate in FATES {
            self.rows.with_label_values(&[queue, fate]).inc_by(0);
        }
    }

    /// For a registry.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.recipients.clone()),
            Box::new(self.rows.clone()),
            Box::new(self.transactions.clone()),
            Box::new(self.attempt_seconds.clone()),
            Box::new(self.settle_seconds.clone()),
        ]
    }

    /// An offer of a mail. Its transactions that came to a dot are counted by [`Counters::dot`].
    pub(super) fn attempted(&self, queue: &str, attempt: &Attempt, took: Duration) {
        self.attempt_seconds.with_label_values(&[queue]).observe(took.as_secs_f64());
        let mut before_the_dot = None;
        let mut dots = false;
        for (_, outcome) in &attempt.outcomes {
            let word = match outcome {
                RecipientOutcome::Accepted(_) => {
                    dots = true;
                    "accepted"
                }
                RecipientOutcome::Deferred(trouble) => {
                    before_the_dot = before_the_dot.or(Some(trouble));
                    "deferred"
                }
                RecipientOutcome::Refused(trouble) => {
                    before_the_dot = before_the_dot.or(Some(trouble));
                    "refused"
                }
                RecipientOutcome::Unknown(_) => {
                    dots = true;
                    "unknown"
                }
                RecipientOutcome::Untried => continue,
            };
            self.recipients.with_label_values(&[queue, word]).inc();
        }
        let ended = before_the_dot.or(attempt.relay.as_ref());
        if let Some(trouble) = ended.filter(|trouble| !dots && trouble.stage != Stage::FinalDot) {
            self.try_failed(trouble);
        }
    }

    /// A final dot, and what came back.
    pub(super) fn dot(&self, failure: Option<&Trouble>) {
        match failure {
            None => self.transactions.with_label_values(&[Stage::FinalDot.as_str(), "2xx"]).inc(),
            Some(trouble) => self.try_failed(trouble),
        }
    }

    /// A transaction, or a connection for one, that ended before its dot.
    pub(super) fn try_failed(&self, trouble: &Trouble) {
        self.transactions.with_label_values(&[trouble.stage.as_str(), reply_class(&trouble.cause)]).inc();
    }

    pub(super) fn settled(&self, queue: &str, fate: &Fate) {
        let word = match fate {
            Fate::Delivered => "delivered",
            Fate::Deferred { .. } => "deferred",
            Fate::Failed { .. } => "failed",
            Fate::Held { .. } => "held",
            Fate::Unreadable { .. } => "unreadable",
            Fate::Released => "released",
        };
        self.rows.with_label_values(&[queue, word]).inc();
    }

    pub(super) fn not_deleted(&self, queue: &str) {
        self.rows.with_label_values(&[queue, "not-deleted"]).inc();
    }

    pub(super) fn settling_took(&self, queue: &str, took: Duration) {
        self.settle_seconds.with_label_values(&[queue]).observe(took.as_secs_f64());
    }
}

fn reply_class(cause: &Cause) -> &'static str {
    match cause {
        Cause::Reply(reply) => match reply.code / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        },
        Cause::Timeout => "timeout",
        Cause::Closed(_) => "closed",
        Cause::Protocol(_) => "protocol",
        Cause::OpenFiles(_) | Cause::Local(..) => "local",
    }
}

fn counter(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("names and labels are constants, and valid")
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    HistogramVec::new(options, &["queue"]).expect("names, labels and buckets are constants, and valid")
}
