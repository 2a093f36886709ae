//! What the next digest will tell and when the last one went out, on file so that a restart forgets neither.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::snapshot;
use super::subject::{Gone, News};
use crate::outcome::{Reason, State};

/// Below `state_dir`.
const FILE: &str = "digest.json";

/// So many rows are told one by one; of further ones only the number.
const KEPT: usize = 200;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    pub sent: Option<Timestamp>,
    pub news: News,
}

impl News {
    /// All rows, those included of which only the number is known.
    pub fn len(&self) -> u64 {
        self.rows.len() as u64 + self.more
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Newer ones. Those that are too many are counted only.
    pub fn add(&mut self, newer: Self) {
        let room = KEPT.saturating_sub(self.rows.len());
        self.more += newer.more + newer.rows.len().saturating_sub(room) as u64;
        self.rows.extend(newer.rows.into_iter().take(room));
    }
}

/// The file's form.
#[derive(Serialize, Deserialize)]
struct Stored {
    sent: Option<Timestamp>,
    rows: Vec<Row>,
    more: u64,
}

#[derive(Serialize, Deserialize)]
struct Row {
    id: String,
    state: String,
    reason: String,
    said: Option<String>,
}

impl Pending {
    /// What is on file; nothing where that cannot be read.
    pub fn read(state_dir: &Path) -> Self {
        let bytes = std::fs::read(state_dir.join(FILE)).unwrap_or_default();
        let Ok(Stored { sent, rows, more }) = serde_json::from_slice(&bytes) else { return Self::default() };
        Self { sent, news: News { rows: rows.into_iter().filter_map(gone).collect(), more } }
    }

    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let row = |gone: &Gone| Row {
            id: gone.id.to_string(),
            state: gone.state.to_string(),
            reason: gone.reason.to_string(),
            said: gone.said.clone(),
        };
        let stored = Stored { sent: self.sent, rows: self.news.rows.iter().map(row).collect(), more: self.news.more };
        snapshot::replace(state_dir, FILE, &serde_json::to_vec(&stored)?)
    }
}

fn gone(row: Row) -> Option<Gone> {
    let Row { id, state, reason, said } = row;
    Some(Gone { id: id.parse().ok()?, state: State::parse(&state)?, reason: Reason::parse(&reason)?, said })
}
