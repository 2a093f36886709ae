//! A dispatcher made from the configuration: the same for `run`, `once` and `demo`.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;

use super::ending::Usage;
use crate::config::{self, Config};
use crate::dispatch::{self, Change, Dispatcher, Source};
use crate::ledger::{self, Ledger, StateDir};
use crate::mail::Address;
use crate::mail::hex;
use crate::observe::logs::Redactor;
use crate::observe::{self, digest};
use crate::queue::{self, Pools, Queue};
use crate::relay::Relay;

/// Takes `state_dir` for as long as this process lives.
pub fn take_state_dir(config: &Config) -> anyhow::Result<StateDir> {
    Ok(StateDir::take(&config.state_dir, || hex(&rand::random::<[u8; 16]>()))?)
}

/// The way in which logs show addresses. It can change while parts of a dispatcher have it.
#[derive(Clone)]
pub struct Redaction(Arc<RwLock<Redactor>>);

impl Redaction {
    /// With the ledger's key, so that a hash in the log can be looked up with `trace`.
    pub fn new(config: &Config, state_dir: &StateDir) -> Result<Self, ledger::Error> {
        Ok(Self(Arc::new(RwLock::new(redactor(config, state_dir)?))))
    }

    pub fn change(&self, redactor: Redactor) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = redactor;
    }

    fn as_fn(&self) -> dispatch::Redact {
        let redactor = self.0.clone();
        Arc::new(move |text| redactor.read().unwrap_or_else(PoisonError::into_inner).text(text))
    }
}

pub fn redactor(config: &Config, state_dir: &StateDir) -> Result<Redactor, ledger::Error> {
    Ok(Redactor::new(config.log.addresses, ledger::address_key(state_dir)?))
}

/// Puts a dispatcher together. Opens the ledger and nothing else.
pub async fn dispatcher(config: &Config, state_dir: &StateDir, once: bool) -> anyhow::Result<Dispatcher> {
    with_redaction(config, &Pools::default(), state_dir, &Redaction::new(config, state_dir)?, once).await
}

/// As [`dispatcher`], for one that logs as `redaction` says.
pub async fn with_redaction(
    config: &Config,
    pools: &Pools,
    state_dir: &StateDir,
    redaction: &Redaction,
    once: bool,
) -> anyhow::Result<Dispatcher> {
    let ledger = Ledger::open(state_dir)?;
    let Change { settings, sources, relay } = parts(config, pools, state_dir, redaction)?;
    Ok(Dispatcher::new(settings, sources, relay, ledger, once))
}

/// The parts of a dispatcher that the configuration decides. Opens no connection; reads the files of authorities.
pub fn parts(config: &Config, pools: &Pools, state_dir: &StateDir, redaction: &Redaction) -> anyhow::Result<Change> {
    let settings = settings(config, redaction.as_fn());
    let relay = Relay::logging(config.relay.clone(), settings.redact.clone())
        .map_err(|error| Usage(format!("the relay cannot be used as it is configured: {error:#}")))?;
    let source = |queue: &config::Queue| {
        let weight = queue.weight;
        let queue = Queue::sharing(queue.settings.clone(), state_dir.dispatcher().to_owned(), pools)?;
        Ok(Source { queue, weight })
    };
    let sources = config.queues.iter().map(source).collect::<anyhow::Result<_>>()?;
    Ok(Change { settings, sources, relay })
}

/// The queues as observers count them.
pub fn counted_queues(config: &Config, pools: &Pools) -> Result<Vec<Queue>, queue::Error> {
    config.queues.iter().map(|queue| Queue::sharing(queue.settings.clone(), String::new(), pools)).collect()
}

/// The settings of the observers.
pub fn observers(config: &Config) -> anyhow::Result<observe::Settings> {
    Ok(observe::Settings {
        state_dir: config.state_dir.clone(),
        poll_interval: config.poll_interval,
        listen: config.monitor,
        notify: notify(config)?,
        audit_keep: config.ledger_keep,
    })
}

/// Digests come from whom the configuration names as a sender, else from this host.
fn notify(config: &Config) -> anyhow::Result<Option<digest::Settings>> {
    let Some(to) = config.notify.clone() else { return Ok(None) };
    let host = config.relay.helo.clone();
    let named = config.message.default_from.clone().or(config.message.envelope_from.clone());
    let from = match named {
        Some(from) => from,
        None => Address::new("mailqueue", &host)
            .with_context(|| format!("[notify] has no sender, {host} being no domain: set message.default_from"))?,
    };
    let pace = digest::Pace::default();
    Ok(Some(digest::Settings { to, from, host, pace }))
}

fn settings(config: &Config, redact: dispatch::Redact) -> dispatch::Settings {
    dispatch::Settings {
        poll_interval: config.poll_interval,
        state_dir: config.state_dir.clone(),
        lease: config.lease,
        ledger_keep: config.ledger_keep,
        max_in_flight_bytes: config.max_in_flight_bytes,
        connections: config.connections as usize,
        rate: config.rate,
        message: config.message.clone(),
        retry: config.retry,
        redact,
    }
}
