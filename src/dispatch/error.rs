//! Errors that end the work on a queue, or keep the dispatcher from starting.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{ledger, queue};

/// An error that keeps a dispatcher from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The database has rows that this dispatcher was sending, and the ledger with their outcomes is missing.
    #[error(
        "the ledger in {} is missing, but queue {queue} has {rows} row(s) that this dispatcher was sending. Put {} back from \
         a backup; or, if it is lost, remove {}: the rows are then taken over after a lease as of unknown outcome",
        state_dir.display(), state_dir.join(ledger::FILE).display(), state_dir.join("dispatcher").display()
    )]
    LedgerMissing { state_dir: PathBuf, queue: Arc<str>, rows: usize },
}

/// An error that ends a pass over a queue. All but `Start` are tried again.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Database(#[from] queue::Error),
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Start(#[from] StartError),
}
