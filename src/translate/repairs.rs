//! The repairs of a row, and pieces of it in words for people.

use super::words;
use crate::mail::{Repair, RepairCode};

/// The repairs of one row, each once, and no more than a person will read.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    kept: Vec<Repair>,
    /// Others were made that are not kept.
    more: bool,
}

impl Repairs {
    /// The most repairs that are kept for one row: a damaged list of addresses may have thousands. The first of each
    /// code is kept besides, since the log and `trace` tell of it.
    const MOST: usize = 100;

    pub fn add(&mut self, code: RepairCode, place: &str, text: impl Into<String>) {
        let text = text.into();
        if self.kept.iter().any(|repair| repair.text == text) {
            return;
        }
        if self.kept.len() < Self::MOST || !self.kept.iter().any(|repair| repair.code == code) {
            self.kept.push(Repair { code, place: for_people(place), text });
        } else {
            self.more = true;
        }
    }

    pub fn finish(mut self) -> Vec<Repair> {
        if let Some(last) = self.kept.last_mut().filter(|_| self.more) {
            last.text.push_str("; further repairs are not listed");
        }
        self.kept
    }
}

/// A piece of a row as it may stand in a sentence for people: no controls, and not too long.
pub(super) fn for_people(text: &str) -> String {
    const LONGEST: usize = 120;
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let clean = words::one_line(clean.into());
    match clean.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean.into_owned(),
    }
}
