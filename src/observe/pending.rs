//! What the next digest will tell and when the last one went out, on file so that a restart forgets neither.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::snapshot;
use crate::outcome::{Reason, State};
use crate::telemetry::{FailedRow, FailureReport};

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
    /// What is on file; nothing where that cannot be read.
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
        snapshot::replace(state_dir, FILE, &serde_json::to_vec(&stored)?)
    }
}

fn failed(row: Row) -> Option<FailedRow> {
    let Row { id, state, reason, detail } = row;
    Some(FailedRow { id: id.parse().ok()?, state: State::parse(&state)?, reason: Reason::parse(&reason)?, detail })
}
