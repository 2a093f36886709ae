//! A dispatcher made from the configuration: the same for `run`, `once` and `demo`.

use std::sync::Arc;

use anyhow::Context;

use super::ending::Usage;
use crate::config::Config;
use crate::dispatch::{self, Dispatcher, Handle, Progress, Source};
use crate::ledger::{self, Ledger, StateDir};
use crate::mail::Address;
use crate::mail::hex;
use crate::observe::logs::Redactor;
use crate::observe::{self, AcrossReloads, Observers, digest};
use crate::queue::{Pools, Queue};
use crate::relay::Relay;

/// Takes `state_dir` for as long as this process lives.
pub fn take_state_dir(config: &Config) -> anyhow::Result<StateDir> {
    Ok(StateDir::take(&config.state_dir, || hex(&rand::random::<[u8; 16]>()))?)
}

/// Puts a dispatcher together, which goes on counting where `progress` stands. Opens the ledger and nothing else: `pools`
/// open connections when they are needed.
pub async fn dispatcher(
    config: &Config,
    pools: &Pools,
    state_dir: &StateDir,
    progress: Progress,
    once: bool,
) -> anyhow::Result<Dispatcher> {
    let ledger = Ledger::open(state_dir)?;
    let settings = settings(config, state_dir)?;
    let relay = Relay::logging(config.relay.clone(), settings.redact.clone())
        .map_err(|error| Usage(format!("the relay cannot be used as it is configured: {error:#}")))?;
    let mut sources = Vec::with_capacity(config.queues.len());
    for queue in &config.queues {
        let weight = queue.weight;
        let queue = Queue::sharing(queue.settings.clone(), state_dir.dispatcher().to_owned(), pools)?;
        sources.push(Source { queue, weight });
    }
    Ok(Dispatcher::counting_on(progress, settings, sources, relay, ledger, once))
}

/// Everything that watches a dispatcher.
pub async fn observe(
    config: &Config,
    pools: &Pools,
    handle: &Handle,
    across_reloads: &AcrossReloads,
) -> anyhow::Result<Observers<Handle>> {
    let queues = config.queues.iter().map(|queue| Queue::sharing(queue.settings.clone(), String::new(), pools));
    let settings = observe::Settings {
        state_dir: config.state_dir.clone(),
        poll_interval: config.poll_interval,
        listen: config.monitor,
        notify: notify(config)?,
        audit_keep: config.ledger_keep,
    };
    observe::start(handle.clone(), queues.collect::<Result<_, _>>()?, across_reloads, settings).await
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

fn settings(config: &Config, state_dir: &StateDir) -> Result<dispatch::Settings, ledger::Error> {
    // The ledger's, so that what stands in the log can be looked up with `trace`.
    let redactor = Redactor::new(config.log.addresses, ledger::address_key(state_dir)?);
    Ok(dispatch::Settings {
        poll_interval: config.poll_interval,
        state_dir: config.state_dir.clone(),
        lease: config.lease,
        ledger_keep: config.ledger_keep,
        max_in_flight_bytes: config.max_in_flight_bytes,
        connections: config.connections as usize,
        rate: config.rate,
        message: config.message.clone(),
        retry: config.retry,
        redact: Arc::new(move |text| redactor.text(text)),
    })
}
