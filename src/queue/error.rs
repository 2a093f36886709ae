//! Errors of a queue, for those who decide what to do about them.

use std::sync::Arc;

use super::db::error::Failure;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached, or the connection broke: try again later.
    #[error("database of queue {queue} is out of reach: {what}")]
    Unreachable { queue: Arc<str>, what: String },
    /// Our tables are missing or older than this program.
    #[error("queue {queue}: {what}; run `mailqueue migrate`")]
    NotMigrated { queue: Arc<str>, what: String },
    /// The server refused a statement: rights, a missing column, a value that it cannot hold.
    #[error("database of queue {queue}: {what}")]
    Refused { queue: Arc<str>, what: String },
    /// A lock did not come free, or a conflict with another transaction went on. Nothing was done; try again later.
    #[error("database of queue {queue}: {what}")]
    Busy { queue: Arc<str>, what: String },
}

impl Failure {
    pub(super) fn into_error(self, queue: &Arc<str>) -> Error {
        let queue = Arc::clone(queue);
        match self {
            Self::Broken(what) | Self::Unavailable(what) | Self::Stalled(what) | Self::NoSecret(what) => {
                Error::Unreachable { queue, what }
            }
            Self::NotMigrated(what) => Error::NotMigrated { queue, what },
            Self::Missing(what) if what.contains("mailqueue_") => Error::NotMigrated { queue, what },
            Self::Busy(what) => Error::Busy { queue, what },
            Self::Missing(what) | Self::Refused(what) => Error::Refused { queue, what },
        }
    }
}
