//! The dispatcher itself, in this process, against a smarthost that does whatever chance wants, a database that is locked
//! or keeps a row whenever chance wants, and dying whenever chance wants. A second queue on a database of its own goes on
//! meanwhile. Some hundred schedules; `MAILQUEUE_TEST_LONG=1` runs more than ten thousand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mailqueue::dispatch::{self, Dispatcher, Pass, Source};
use mailqueue::ledger::{Ledger, StateDir};
use mailqueue::outcome::State;
use mailqueue::queue::{Database, Filter, Listed, Queue, Settings};
use mailqueue::relay::{self, Relay, Timeouts, Tls};
use mailqueue::{retry, translate};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use url::Url;

use crate::support::catcher::{Catcher, Hazard, Received, Step};
use crate::support::house::row;
use crate::support::session::Session;
use crate::support::undeletable::Keeper;
use crate::support::{long, seed};

const CONNECTIONS: usize = 3;

/// Schedules side by side: most of their time they wait.
const THREADS: u64 = 6;

/// Lives that end early, before the last one, in which nothing goes wrong.
const LIVES: usize = 3;

#[test]
fn whatever_chance_does_to_smarthost_and_process_nothing_is_lost_and_nothing_comes_twice() {
    let count: u64 = if long() { 10_500 } else { 150 };
    let first = seed();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            std::thread::spawn(move || {
                for number in (thread..count).step_by(THREADS as usize) {
                    schedule(first.wrapping_add(number));
                }
            })
        })
        .collect();
    let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
    assert_eq!(failed, 0);
}

/// What chance has decided, shared with the smarthost.
struct Chance {
    random: Mutex<StdRng>,
    /// How often of a hundred a step goes wrong.
    harshness: Mutex<u32>,
    /// How often each mail, by its first recipient, was taken and not a word said.
    unheard: Mutex<HashMap<String, usize>>,
}

impl Chance {
    fn strikes(&self) -> bool {
        let harshness = *self.harshness.lock().unwrap();
        self.random.lock().unwrap().random_range(0..100) < harshness
    }

    fn of(&self, count: usize) -> usize {
        self.random.lock().unwrap().random_range(0..count)
    }

    fn answer(&self, step: Step<'_>) -> Option<String> {
        let pick = |answers: &[&str]| self.strikes().then(|| answers[self.of(answers.len())].to_owned());
        match step {
            Step::Mail { .. } => pick(&["421 4.3.2 later", "", "451 4.3.0 later", "451 4.7.1 slowly"]),
            Step::Rcpt { recipient } if recipient.starts_with("never") => Some("550 5.1.1 nobody".to_owned()),
            Step::Rcpt { .. } => {
                pick(&["450 4.2.1 busy", "421 4.3.2 later", "", "452 4.5.3 enough", "451 4.7.1 slowly"])
            }
            Step::Data => pick(&["421 4.3.2 later", "", "451 4.3.0 later"]),
            Step::FinalDot { .. } => pick(&["421 4.3.2 later", "451 4.3.0 later", "452 4.2.2 full"]),
            Step::Greeting | Step::Ehlo | Step::Auth => None,
        }
    }

    fn hazard(&self, step: Step<'_>) -> Hazard {
        match step {
            Step::FinalDot { mail } if self.strikes() => {
                *self.unheard.lock().unwrap().entry(mail.recipients[0].clone()).or_default() += 1;
                if self.of(2) == 0 { Hazard::Unheard } else { Hazard::Stall }
            }
            Step::Mail { .. } | Step::Rcpt { .. } | Step::Data if self.strikes() && self.of(4) == 0 => Hazard::Stall,
            _ => Hazard::None,
        }
    }
}

fn schedule(seed: u64) {
    let told = std::panic::catch_unwind(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(play(seed));
    });
    if let Err(panic) = told {
        eprintln!("schedule {seed} failed: MAILQUEUE_TEST_SEED={seed} begins with it");
        std::panic::resume_unwind(panic);
    }
}

async fn play(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let chance = Arc::new(Chance {
        random: Mutex::new(StdRng::seed_from_u64(random.random())),
        harshness: Mutex::new(random.random_range(0..25)),
        unheard: Mutex::default(),
    });
    let (answers, hazards) = (chance.clone(), chance.clone());
    let catcher = Catcher::with_hazards(move |step| answers.answer(step), move |step| hazards.hazard(step)).await;
    let directory = tempfile::tempdir().unwrap();
    let place = Arc::new(Place { directory: directory.path().to_owned(), port: catcher.port() });
    let mut newsletter = Filled::new(place.queue("newsletter", "")).await;
    let mut second = Filled::new(place.queue("second", "")).await;
    for n in 0..random.random_range(3..12) {
        let count = if random.random_bool(0.3) { random.random_range(2..6) } else { 1 };
        let mut recipients: Vec<_> = (0..count).map(|k| format!("r{k}.n{n}@example.org")).collect();
        if random.random_bool(0.1) {
            recipients.push(format!("never.n{n}@example.org"));
        }
        newsletter.insert(recipients).await;
    }
    let harshness = *chance.harshness.lock().unwrap();
    let kept = random.random_bool(0.2).then(|| newsletter.any(&mut random));
    let keeper = any_keeper(&mut random);
    let mut session = Session::on(&place.url("newsletter")).await;
    if let Some(mid) = kept {
        keeper.keep(&mut session, mid).await;
    }

    let mut kills = 0;
    for life in 0..LIVES {
        let until = random.random_bool(0.5).then(|| Duration::from_millis(random.random_range(1..120)));
        let calm = random.random_bool(0.4);
        *chance.harshness.lock().unwrap() = if calm { 0 } else { harshness };
        let mut new = Vec::new();
        for n in 0..2 {
            new.push(second.insert(vec![format!("r{n}.l{life}@second.example")]).await);
        }
        let undeletable = kept.is_none().then(|| newsletter.any(&mut random));
        let disturbed = disturb(place.clone(), StdRng::seed_from_u64(random.random()), undeletable);
        let (pass, ()) = tokio::join!(live(place.clone(), until), disturbed);
        kills += usize::from(pass.is_none());
        if calm && pass.is_some() {
            let left = second.rows().await;
            assert!(!left.iter().any(|row| new.contains(&row.id.mid)), "the second queue did not go on: {left:?}");
        }
    }
    *chance.harshness.lock().unwrap() = 0;
    if kept.is_some() {
        keeper.let_go(&mut session).await;
    }
    come_to_rest(&place, [&newsletter, &second]).await;
    let unheard = chance.unheard.lock().unwrap().clone();
    let received = catcher.received();
    let beyond = newsletter.judge(&received, &unheard).await + second.judge(&received, &unheard).await;
    assert!(beyond <= kills * CONNECTIONS, "{beyond} mails came too often with {kills} kills");
    let state_dir = place.state_dir();
    let ledger = Ledger::open(&state_dir).unwrap();
    assert_eq!(ledger.open_count(), 0);
}

/// Passes in which nothing goes wrong, until nothing is due any more.
async fn come_to_rest(place: &Arc<Place>, queues: [&Filled; 2]) {
    for pass in 0.. {
        let pass_ended = live(place.clone(), None).await.expect("nobody kills it");
        assert!(pass_ended.refused.is_none(), "{:?}", pass_ended.refused);
        let mut rows = queues[0].rows().await;
        rows.extend(queues[1].rows().await);
        let rests = |row: &Listed| match row.state {
            State::Failed => true,
            State::Held => row.next_attempt.is_none(),
            _ => false,
        };
        if rows.iter().all(rests) {
            return;
        }
        assert!(pass < 200, "it does not come to rest: {rows:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn any_keeper(random: &mut StdRng) -> Keeper {
    [Keeper::Refusal, Keeper::Silence, Keeper::ForeignKey][random.random_range(0..3)]
}

/// The first database during a life: locked for a while, or a row that cannot be deleted for a while, or neither.
async fn disturb(place: Arc<Place>, mut random: StdRng, undeletable: Option<i64>) {
    let mut session = Session::on(&place.url("newsletter")).await;
    for _ in 0..random.random_range(0..3) {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..30))).await;
        let lasts = Duration::from_millis(random.random_range(1..100));
        match undeletable.filter(|_| random.random_bool(0.5)) {
            Some(mid) => {
                let keeper = any_keeper(&mut random);
                keeper.keep(&mut session, mid).await;
                tokio::time::sleep(lasts).await;
                keeper.let_go(&mut session).await;
            }
            None => {
                session.run("BEGIN EXCLUSIVE").await.unwrap();
                tokio::time::sleep(lasts).await;
                session.run("COMMIT").await.unwrap();
            }
        }
    }
}

/// A queue, and who is to get which of its rows.
struct Filled {
    queue: Queue,
    expected: BTreeMap<i64, Vec<String>>,
}

impl Filled {
    async fn new(queue: Queue) -> Self {
        queue.migrate(true).await.unwrap();
        Self { queue, expected: BTreeMap::new() }
    }

    async fn insert(&mut self, recipients: Vec<String>) -> i64 {
        let mail = row(&recipients.join(", "), "x", "x\n", "From: a@example.org\n");
        let mid = self.queue.insert(&mail).await.unwrap();
        self.expected.insert(mid, recipients);
        mid
    }

    fn any(&self, random: &mut StdRng) -> i64 {
        *self.expected.keys().nth(random.random_range(0..self.expected.len())).unwrap()
    }

    async fn rows(&self) -> Vec<Listed> {
        self.queue.list(&Filter::default(), i64::MIN, 100).await.unwrap()
    }

    /// Returns how many copies came too often for which the smarthost is not to blame.
    async fn judge(&self, received: &[Received], unheard: &HashMap<String, usize>) -> usize {
        let rows = self.rows().await;
        let left: HashSet<_> = rows.iter().map(|row| row.id.mid).collect();
        let mut beyond_unheard = 0;
        for (mid, recipients) in &self.expected {
            let copies =
                |recipient: &String| received.iter().filter(|mail| mail.recipients.contains(recipient)).count();
            if !left.contains(mid) {
                let missing: Vec<_> = recipients.iter().filter(|recipient| copies(recipient) == 0).collect();
                assert!(missing.is_empty(), "row {mid} is gone and {missing:?} have nothing");
            }
            let row = rows.iter().find(|row| row.id.mid == *mid);
            if row.is_some_and(|row| row.state == State::Failed) {
                let wanting = recipients.iter().filter(|to| !to.starts_with("never") && copies(to) == 0).count();
                assert_eq!(wanting, 0, "row {mid} failed for those that are refused only: {row:?}");
            }
            let most = recipients.iter().map(copies).max().unwrap();
            let excused: usize = recipients.iter().filter_map(|recipient| unheard.get(recipient)).sum();
            beyond_unheard += most.saturating_sub(1 + excused);
            let stamps = received.iter().filter(|mail| recipients.contains(&mail.recipients[0])).map(|mail| {
                let text = String::from_utf8_lossy(&mail.content).into_owned();
                let stamp = |line: &&str| line.starts_with("Date:") || line.starts_with("Message-ID:");
                text.lines().filter(stamp).map(str::to_owned).collect::<Vec<_>>()
            });
            let stamps: HashSet<_> = stamps.collect();
            assert!(stamps.len() <= 1, "row {mid}: {stamps:?}");
        }
        self.queue.sweep().await.unwrap();
        beyond_unheard
    }
}

struct Place {
    directory: std::path::PathBuf,
    port: u16,
}

impl Place {
    fn state_dir(&self) -> StateDir {
        let path: &Path = &self.directory.join("state");
        StateDir::take(path, || "0123456789abcdef0123456789abcdef".to_owned()).unwrap()
    }

    /// Each queue has a database of its own.
    fn url(&self, queue: &str) -> Url {
        format!("sqlite:{}/{queue}.sqlite", self.directory.display()).parse().unwrap()
    }

    fn queue(&self, name: &str, dispatcher: &str) -> Queue {
        let database = Database { url: self.url(name), password: None };
        let settings = Settings { name: name.into(), database, table: "mail_queue".to_owned(), max_size: 1_000_000 };
        Queue::new(settings, dispatcher.to_owned()).unwrap()
    }

    async fn dispatcher(&self, state_dir: &StateDir) -> Dispatcher {
        let short = Duration::from_millis(150);
        let relay = Relay::new(relay::Settings {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            tls: Tls::None,
            ca_file: None,
            login: None,
            helo: "model.example".to_owned(),
            messages_per_connection: 5,
            recipients_per_message: 3,
            pipelining: relay::Pipelining::Full,
            timeouts: Timeouts { mail: short, rcpt: short, data: short, final_dot: short * 2, ..Timeouts::default() },
        });
        let settings = dispatch::Settings {
            poll_interval: Duration::from_millis(20),
            state_dir: state_dir.path().to_owned(),
            lease: Duration::from_secs(900),
            ledger_keep: Duration::from_secs(3600),
            max_in_flight_bytes: 1_000_000,
            connections: CONNECTIONS,
            rate: None,
            message: translate::Settings { envelope_from: None, default_from: None, max_size: 1_000_000 },
            retry: retry::Settings {
                initial: Duration::from_millis(5),
                maximum: Duration::from_millis(20),
                ..retry::Settings::default()
            },
            redact: Arc::new(str::to_owned),
        };
        let ledger = Ledger::open(state_dir).unwrap();
        let sources =
            ["newsletter", "second"].map(|name| Source { queue: self.queue(name, state_dir.dispatcher()), weight: 1 });
        Dispatcher::new(settings, sources.into(), relay.unwrap(), ledger, true)
    }
}

/// One pass in a runtime of its own; `None` where it was killed after `until`, with all that it was about to do.
async fn live(place: Arc<Place>, until: Option<Duration>) -> Option<Pass> {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let state_dir = place.state_dir();
        let pass = runtime.block_on(async {
            let dispatcher = place.dispatcher(&state_dir).await;
            let Some(until) = until else { return Some(dispatcher.run().await) };
            tokio::time::timeout(until, dispatcher.run()).await.ok()
        });
        runtime.shutdown_background();
        pass
    });
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap()
}
