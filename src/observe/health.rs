//! One picture of health: what `status --json` prints, and what the other files turn into text.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::outcome::State;
use crate::queue::{Counts, Paused};
use crate::telemetry::{self, Sample};

/// How mail flows. Its JSON form is a contract with monitoring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub queues: Vec<Queue>,
    pub relay: Relay,
    /// When a dispatcher of this `state_dir` last looked at a table.
    pub last_poll: Option<Timestamp>,
    pub last_accepted: Option<Timestamp>,
    /// Entries of the ledger that are not settled; `None` where there is no ledger yet or it cannot be read.
    pub ledger_open: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    pub name: String,
    /// Absent where the database is out of reach: nobody knows then.
    #[serde(flatten)]
    pub rows: Option<Rows>,
    /// Why `rows` are absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Rows by state, and what an operator wants of the queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    pub waiting: u64,
    pub claimed: u64,
    pub sending: u64,
    pub deferred: u64,
    pub failed: u64,
    pub unreadable: u64,
    pub held: u64,
    pub paused: bool,
    /// How long ago the oldest row that is due became due; `None` where none is.
    pub oldest_due_seconds: Option<u64>,
    /// `waiting` is an estimate.
    #[serde(skip)]
    pub about: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    pub state: RelayState,
    /// When a relay in trouble is tried again.
    pub until: Option<Timestamp>,
    pub reason: Option<String>,
    /// The number of connections that may be in use: fewer than configured where the smarthost takes no more, or throttles. `None`
    /// where no dispatcher runs.
    #[serde(default)]
    pub connections_cap: Option<usize>,
    /// The form of pipelining in use: `full`, `commands` or `off`. `None` before the first connection.
    #[serde(default)]
    pub pipelining: Option<String>,
    /// Why it is this form.
    #[serde(default)]
    pub pipelining_reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayState {
    #[default]
    Up,
    /// In trouble that is no mail's; tried again by itself.
    Paused,
    /// An operator's emergency stop; or no dispatcher runs.
    Stopped,
}

impl RelayState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Relay {
    /// The relay as a running dispatcher sees it now.
    pub fn of(sample: &Sample) -> Self {
        let relay = match &sample.relay.state {
            telemetry::RelayState::Up => Self::default(),
            telemetry::RelayState::Paused => Self::stopped(),
            telemetry::RelayState::Down { until, reason } => Self {
                state: RelayState::Paused,
                until: Timestamp::now().checked_add(until.saturating_duration_since(Instant::now())).ok(),
                reason: Some(reason.clone()),
                ..Self::default()
            },
        };
        Self {
            connections_cap: Some(sample.relay.cap),
            pipelining: sample.pipelining.as_ref().map(|(mode, _)| (*mode).to_owned()),
            pipelining_reason: sample.pipelining.as_ref().map(|(_, reason)| reason.clone()),
            ..relay
        }
    }

    /// An operator's emergency stop.
    pub fn stopped() -> Self {
        Self { state: RelayState::Stopped, reason: Some("operator".to_owned()), ..Self::default() }
    }

    /// Nobody is there to offer it anything.
    pub fn unused() -> Self {
        let reason = Some("no dispatcher runs here".to_owned());
        Self { state: RelayState::Stopped, reason, ..Self::default() }
    }
}

impl Queue {
    pub fn of(name: &str, counts: &Counts, paused: Paused) -> Self {
        let of = |state| counts.records.iter().filter(|(known, _)| *known == state).map(|(_, rows)| rows).sum();
        let rows = Rows {
            waiting: counts.waiting,
            claimed: of(State::Claimed),
            sending: of(State::Sending),
            deferred: of(State::Deferred),
            failed: of(State::Failed),
            unreadable: of(State::Unreadable),
            held: of(State::Held),
            paused: paused.queue,
            oldest_due_seconds: counts.oldest_due_seconds,
            about: counts.waiting_is_estimate,
        };
        Self { name: name.to_owned(), rows: Some(rows), error: None }
    }

    /// A queue whose database did not answer.
    pub fn out_of_reach(name: &str, why: impl Into<String>) -> Self {
        Self { name: name.to_owned(), rows: None, error: Some(why.into()) }
    }
}

impl Rows {
    /// Each state's count.
    pub fn by_state(&self) -> [(State, u64); 7] {
        State::ALL.map(|state| {
            let rows = match state {
                State::Waiting => self.waiting,
                State::Claimed => self.claimed,
                State::Sending => self.sending,
                State::Deferred => self.deferred,
                State::Failed => self.failed,
                State::Unreadable => self.unreadable,
                State::Held => self.held,
            };
            (state, rows)
        })
    }
}

/// `1,204`: digits in threes, for people.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12 s`, `5 min`, `3 h`, `9 days`: one unit is enough for a person.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
