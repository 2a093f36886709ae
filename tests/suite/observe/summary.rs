//! The line of each hour, in simulated time.

use std::io::Write;
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

use mailqueue::observe::summary::{self, Summary};
use mailqueue::telemetry::Tally;
use tokio::sync::Mutex;
use tokio::time::sleep;
use tracing_subscriber::fmt::MakeWriter;

use super::fake::Fake;

#[derive(Clone, Default)]
struct Lines(Arc<Lock<Vec<u8>>>);

impl Lines {
    /// What was logged since the last call.
    fn take(&self) -> Vec<serde_json::Value> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_has_one_line_with_what_happened_in_it_also_over_a_reload() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let fake = Fake::default();
    let summary = Arc::new(Mutex::new(Summary::begin()));
    let minutes = |number: u64| sleep(Duration::from_secs(number * 60));

    let first = tokio::spawn(summary::run(fake.clone(), summary.clone()));
    fake.set(|sample| sample.tally = Tally { claimed: 12, delivered: 10, failed: 2, ..Tally::default() });
    minutes(40).await;
    assert_eq!(lines.take(), [serde_json::Value::Null; 0]);
    // The configuration is read again: another dispatcher, and the same hour.
    first.abort();
    let _ = first.await;
    let second = tokio::spawn(summary::run(fake.clone(), summary));
    minutes(21).await;
    let [line] = lines.take().try_into().unwrap();
    assert_eq!((&line["message"], &line["target"]), (&"summary".into(), &"mailqueue::summary".into()));
    assert_eq!(line["level"], "INFO");
    let counts = ["claimed", "delivered", "deferred", "failed", "unreadable", "held"].map(|key| line[key].as_u64());
    assert_eq!(counts, [12, 10, 0, 2, 0, 0].map(Some));

    fake.set(|sample| sample.tally.delivered = 15);
    minutes(60).await;
    let [line] = lines.take().try_into().unwrap();
    assert_eq!((&line["claimed"], &line["delivered"]), (&0.into(), &5.into()));
    minutes(60).await;
    let [line] = lines.take().try_into().unwrap();
    assert_eq!(line["delivered"], 0, "an hour without mail has its line too: silence would be no news");
    second.abort();
}
