//! The settings of a dispatcher, and the state that follows from them and is replaced with them.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::events::Redact;
use super::memory::Memory;
use super::rate::Rate;
use crate::queue::Queue;
use crate::relay::Relay;
use crate::{retry, translate};

/// The settings of the dispatcher.
#[derive(Clone)]
pub struct Settings {
    /// The time after which a table that ran empty is looked at again.
    pub poll_interval: Duration,
    /// The directory of the ledger and the dispatcher id.
    pub state_dir: PathBuf,
    /// A dispatcher that shows no signs of life for this long loses its claims.
    pub lease: Duration,
    /// The time for which the ledger remembers settled mails.
    pub ledger_keep: Duration,
    /// Bytes for the content of rows under way.
    pub max_in_flight_bytes: u64,
    pub connections: usize,
    pub rate: Option<Rate>,
    pub message: translate::Settings,
    pub retry: retry::Settings,
    /// Turns text with addresses into the form in which a log may show it.
    pub redact: Redact,
}

/// A queue with its share of the relay while several have work.
pub struct Source {
    pub queue: Queue,
    pub weight: u32,
}

/// A change of a running dispatcher's configuration. Whatever could fail has been opened.
pub struct Change {
    pub settings: Settings,
    /// All queues from now on. One that is as before keeps its connections and its mails.
    pub sources: Vec<Source>,
    /// The relay from now on. One that is as before keeps its connections and all that is known of the smarthost.
    pub relay: Arc<Relay>,
}

/// The settings in force, with the parts that are made from them.
pub struct Current {
    pub settings: Settings,
    pub relay: Arc<Relay>,
    pub memory: Arc<Memory>,
}

/// The place of [`Current`], which a reload replaces. Tasks ask it at each use, and keep nothing of it over a wait.
pub struct Live(RwLock<Arc<Current>>);

impl Live {
    pub fn new(current: Current) -> Self {
        Self(RwLock::new(Arc::new(current)))
    }

    pub fn get(&self) -> Arc<Current> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn replace(&self, current: Current) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
    }
}
