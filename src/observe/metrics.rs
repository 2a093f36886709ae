//! Metrics in Prometheus' text format. A scrape reads memory only: rows are counted by [`Metrics::counted`]'s caller.

use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{Encoder, Gauge, Histogram, HistogramOpts, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::health::Queue;
use super::stall::Stalled;
use crate::telemetry::{RelayState, Sample, Wait};

/// The content type of what [`Metrics::text`] answers.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The label of rows that are `held`, `not-deleted`, in place of a state: they are apart from those that an operator holds.
const NOT_DELETED: &str = "not-deleted";

/// All metrics of a dispatcher.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    rows: IntGaugeVec,
    oldest_due: IntGaugeVec,
    paused: IntGaugeVec,
    database_up: IntGaugeVec,
    stalled: IntGaugeVec,
    relay_up: IntGauge,
    relay_paused: IntGauge,
    connections: IntGauge,
    ledger_open: IntGauge,
    in_flight: IntGauge,
    last_poll: Gauge,
    last_accepted: Gauge,
    counting: Histogram,
}

impl Metrics {
    /// `counters` are those that the dispatcher keeps itself.
    pub fn new(counters: Vec<Box<dyn Collector>>, started: Timestamp) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        for collector in counters {
            registry.register(collector)?;
        }
        register_build(&registry, started)?;
        let counting = Histogram::with_opts(
            HistogramOpts::new("mailqueue_count_duration_seconds", "Time that counting the rows of a queue took.")
                .buckets(vec![0.001, 0.01, 0.1, 1.0, 10.0, 60.0]),
        )?;
        registry.register(Box::new(counting.clone()))?;
        let r = &registry;
        Ok(Self {
            rows: gauges(
                r,
                "mailqueue_rows",
                "Rows by state, as last counted; waiting is an estimate over 10,000.",
                &["queue", "state"],
            )?,
            oldest_due: gauges(
                r,
                "mailqueue_oldest_due_seconds",
                "For how long the oldest row that is due has been due; 0 when none is.",
                &["queue"],
            )?,
            paused: gauges(r, "mailqueue_queue_paused", "Whether an operator paused the queue.", &["queue"])?,
            database_up: gauges(
                r,
                "mailqueue_database_up",
                "Whether the queue's database does what it should.",
                &["queue"],
            )?,
            stalled: gauges(
                r,
                "mailqueue_stalled",
                "Whether nothing has been sent for 5 minutes while rows wait, by the reason.",
                &["reason"],
            )?,
            relay_up: integer(
                r,
                "mailqueue_relay_up",
                "Whether mails may be offered to the relay: 0 if down or paused.",
            )?,
            relay_paused: integer(r, "mailqueue_relay_paused", "Whether an operator paused the relay.")?,
            connections: integer(
                r,
                "mailqueue_relay_connections_cap",
                "Connections that may be in use; fewer than configured while the smarthost throttles.",
            )?,
            ledger_open: integer(
                r,
                "mailqueue_ledger_open_entries",
                "Entries of the ledger that are not settled yet.",
            )?,
            in_flight: integer(r, "mailqueue_in_flight_bytes", "Memory that rows under way are counted with.")?,
            last_poll: gauge(
                r,
                "mailqueue_last_poll_timestamp_seconds",
                "When a table was last looked at, as a Unix time; 0 if never.",
            )?,
            last_accepted: gauge(
                r,
                "mailqueue_last_accepted_timestamp_seconds",
                "When the smarthost last accepted a mail, as a Unix time; 0 if not since the start.",
            )?,
            counting,
            registry,
        })
    }

    /// The queues may be others from now on: those that are there are counted anew.
    pub fn forget_queues(&self) {
        for gauges in [&self.rows, &self.oldest_due, &self.paused, &self.database_up] {
            gauges.reset();
        }
    }

    /// Takes the newest counts of a queue. One that could not be counted has none, rather than old ones.
    pub fn counted(&self, queue: &Queue) {
        let name = queue.name.as_str();
        let Some(rows) = &queue.rows else {
            for state in crate::outcome::State::ALL {
                // An error says that there was none, which is what is wanted.
                let _ = self.rows.remove_label_values(&[name, state.as_str()]);
            }
            let _ = self.rows.remove_label_values(&[name, NOT_DELETED]);
            let _ = self.oldest_due.remove_label_values(&[name]);
            return;
        };
        for (state, count) in rows.by_state() {
            self.rows.with_label_values(&[name, state.as_str()]).set(whole(count));
        }
        self.rows.with_label_values(&[name, NOT_DELETED]).set(whole(rows.not_deleted));
        self.oldest_due.with_label_values(&[name]).set(whole(rows.oldest_due_seconds.unwrap_or(0)));
        self.paused.with_label_values(&[name]).set(i64::from(rows.paused));
    }

    pub fn counting_took(&self, took: std::time::Duration) {
        self.counting.observe(took.as_secs_f64());
    }

    /// Everything, as it is now.
    pub fn text(&self, sample: &Sample, stalled: Option<Stalled>) -> Result<Vec<u8>, prometheus::Error> {
        for reason in Wait::ALL {
            let holds = stalled.is_some_and(|stalled| stalled.reason == reason);
            self.stalled.with_label_values(&[reason.as_str()]).set(i64::from(holds));
        }
        self.relay_up.set(i64::from(sample.relay.state == RelayState::Up));
        self.relay_paused.set(i64::from(sample.relay.state == RelayState::Paused));
        self.connections.set(whole(sample.relay.cap as u64));
        self.ledger_open.set(whole(sample.ledger_open));
        self.in_flight.set(whole(sample.in_flight_bytes));
        self.last_poll.set(sample.last_poll.map_or(0.0, seconds));
        self.last_accepted.set(sample.last_accepted.map_or(0.0, seconds));
        for lane in &sample.lanes {
            self.database_up.with_label_values(&[&*lane.name]).set(i64::from(lane.database.is_none()));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Adds the metrics that never change.
fn register_build(registry: &Registry, started: Timestamp) -> Result<(), prometheus::Error> {
    let build = gauges(registry, "mailqueue_build_info", "The program's version; always 1.", &["version"])?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let start = gauge(registry, "mailqueue_start_time_seconds", "When the process started, as a Unix time.")?;
    start.set(seconds(started));
    Ok(())
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

fn integer(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    let gauge = Gauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}
