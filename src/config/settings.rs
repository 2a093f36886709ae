//! The checked configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::dispatch::Rate;
use crate::mail::Address;
use crate::observe::logs;
use crate::{queue, relay, retry, translate};

/// Everything that the file says, with defaults put in. Secrets have not been read.
#[derive(Clone, Debug)]
pub struct Config {
    pub file: PathBuf,
    /// At least one.
    pub queues: Vec<Queue>,
    pub relay: relay::Settings,
    pub message: translate::Settings,
    pub retry: retry::Settings,
    /// Connections to the smarthost at the same time, at most.
    pub connections: u32,
    pub rate: Option<Rate>,
    pub poll_interval: Duration,
    pub state_dir: PathBuf,
    pub lease: Duration,
    pub ledger_keep: Duration,
    pub max_in_flight_bytes: u64,
    pub log: logs::Settings,
    pub monitor: Option<SocketAddr>,
    pub notify: Option<Address>,
}

#[derive(Clone, Debug)]
pub struct Queue {
    pub settings: queue::Settings,
    /// Share of the relay while several queues have work.
    pub weight: u32,
}
