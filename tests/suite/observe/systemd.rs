//! What the service manager is told, and when.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mailqueue::observe::health::{Health, Queue, Rows};
use mailqueue::observe::systemd;
use mailqueue::telemetry::RelayState;
use tokio::sync::watch;
use tokio::time::sleep;

use super::fake::{Fake, lane};

struct Told {
    fake: Fake,
    health: watch::Sender<Health>,
    words: Arc<Mutex<Vec<String>>>,
}

impl Told {
    fn start(watchdog: Option<Duration>) -> Self {
        let fake = Fake::default();
        fake.set(|sample| {
            sample.lanes = vec![lane("newsletter")];
            sample.lanes[0].liveness.started = false;
        });
        let (health, seen) = watch::channel(Health::default());
        let words = Arc::<Mutex<Vec<String>>>::default();
        let listening = words.clone();
        tokio::spawn(systemd::tell_all(fake.clone(), seen, watchdog, move |states| {
            listening.lock().unwrap().extend(states.iter().map(ToString::to_string));
        }));
        Self { fake, health, words }
    }

    /// What was told since the last call, after so much time.
    async fn after(&self, seconds: u64) -> Vec<String> {
        sleep(Duration::from_secs(seconds)).await;
        std::mem::take(&mut self.words.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn ready_comes_once_every_lane_was_seen_to_and_the_status_when_it_changes() {
    let told = Told::start(None);
    assert_eq!(told.after(60).await, [""; 0]);
    told.fake.set(|sample| sample.lanes[0].liveness.started = true);
    assert_eq!(told.after(60).await, ["READY=1", "STATUS=relay up"]);
    let rows = Rows { waiting: 1204, failed: 3, ..Rows::default() };
    let queue = Queue { rows: Some(rows), ..Queue::uncounted("newsletter") };
    told.health.send_replace(Health { queues: vec![queue], ..Health::default() });
    assert_eq!(told.after(1).await, ["STATUS=newsletter 1,204 waiting, 3 failed; relay up"]);
    assert_eq!(told.after(60).await, [""; 0]);
    told.fake.set(|sample| sample.relay.state = RelayState::Paused);
    assert_eq!(told.after(10).await, ["STATUS=newsletter 1,204 waiting, 3 failed; relay paused by an operator"]);
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_is_fed_only_while_every_loop_makes_progress() {
    let told = Told::start(Some(Duration::from_secs(30)));
    told.fake.set(|sample| sample.lanes = vec![lane("newsletter"), lane("admidio")]);
    let fed = |words: Vec<String>| words.iter().filter(|word| *word == "WATCHDOG=1").count();
    assert!(fed(told.after(60).await) >= 6, "three times an interval");
    told.fake.set(|sample| sample.lanes[1].liveness.stalled_for = Duration::from_secs(300));
    told.after(1).await;
    assert_eq!(fed(told.after(60).await), 0);
    told.fake.set(|sample| sample.lanes[1].liveness.stalled_for = Duration::ZERO);
    assert!(fed(told.after(60).await) >= 5);
}
