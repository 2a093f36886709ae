//! The relay as `status` and the status file show it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::telemetry::{RelayState, Sample};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    pub state: RelayStatus,
    /// The time at which a relay in trouble is tried again.
    pub until: Option<Timestamp>,
    pub reason: Option<String>,
    /// The number of connections that may be in use: fewer than configured where the smarthost takes no more, or
    /// throttles. `None` where no dispatcher runs.
    #[serde(default)]
    pub connections_cap: Option<usize>,
    /// The reason for fewer connections where it is our own limit of open files.
    #[serde(default)]
    pub connections_reason: Option<String>,
    /// The form of pipelining in use: `full`, `commands` or `off`. `None` before the first connection.
    #[serde(default)]
    pub pipelining: Option<String>,
    /// Why it is this form.
    #[serde(default)]
    pub pipelining_reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayStatus {
    #[default]
    Up,
    /// In trouble that is no single mail's; tried again by itself.
    Down,
    /// Paused by an operator.
    Paused,
    /// No dispatcher runs that could offer it anything.
    Unused,
}

impl RelayStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Paused => "paused",
            Self::Unused => "unused",
        }
    }
}

impl Relay {
    /// The relay as a running dispatcher sees it now.
    pub fn of(sample: &Sample) -> Self {
        let relay = match &sample.relay.state {
            RelayState::Up => Self::default(),
            RelayState::Paused => Self::paused(),
            RelayState::Down { until, reason } => Self {
                state: RelayStatus::Down,
                until: Timestamp::now().checked_add(until.saturating_duration_since(Instant::now())).ok(),
                reason: Some(reason.clone()),
                ..Self::default()
            },
        };
        Self {
            connections_cap: Some(sample.relay.cap),
            connections_reason: sample.relay.cap_reason.clone(),
            pipelining: sample.pipelining.as_ref().map(|(mode, _)| (*mode).to_owned()),
            pipelining_reason: sample.pipelining.as_ref().map(|(_, reason)| reason.clone()),
            ..relay
        }
    }

    /// The relay while an operator's pause lasts.
    pub fn paused() -> Self {
        Self { state: RelayStatus::Paused, reason: Some("operator".to_owned()), ..Self::default() }
    }

    /// The relay while no dispatcher runs.
    pub fn unused() -> Self {
        let reason = Some("no dispatcher runs here".to_owned());
        Self { state: RelayStatus::Unused, reason, ..Self::default() }
    }
}
