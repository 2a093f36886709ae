//! Nothing lost, nothing twice: the program is killed, stopped, cut off and lied to, and then the smarthost's record is
//! compared with what producers had put into the tables.
//!
//! What runs by default is short. `MAILQUEUE_TEST_LONG=1` runs the same for longer; `MAILQUEUE_TEST_SEED=n` repeats
//! what was random.

use std::time::Duration;

use jiff::Timestamp;
use mailqueue::outcome::{Reason, State};
use mailqueue::queue::{Action, Filter, Listed, Queue};
use rustix::process::Signal;

use crate::support::DEADLINE;
use crate::support::binary::Running;
use crate::support::house::{House, said};

/// Makes of each function a test on every database, in modules that are named after them.
macro_rules! on_every_database {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::support::database::sqlite()).await })*
        }
        on_every_server!($($name),*);
    };
}

/// Likewise, without SQLite.
macro_rules! on_every_server {
    ($($name:ident),* $(,)?) => {
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::support::database::mariadb().await).await })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::support::database::postgres().await).await })*
        }
    };
}

mod abandoned;
mod bounds;
mod certificate;
mod connections;
mod failpoints;
mod floods;
mod foreign;
mod hosts;
mod isolation;
mod kill;
mod link;
mod locked;
mod log_pipe;
mod many;
mod model;
mod numbers;
mod open_files;
mod operators;
mod outage;
mod pace;
mod panics;
mod queues;
mod reload;
mod second_queue;
mod senders;
mod settling;
mod smarthost;
mod soak;
mod state;
mod undeleted;

/// Lets tables be looked at often, so that nothing waits for a poll.
const OFTEN: &str = "poll_interval = \"200ms\"";

/// Goes behind `[relay]`: what was put off is soon due again.
const SOON: &str = "\n[retry]\ninitial = \"200ms\"\nmaximum = \"1s\"";

async fn until_empty(queue: &Queue) {
    until_left(queue, 0).await;
}

/// The same, where chance may leave a mail whose outcome was unknown twice: that waits for an operator.
async fn until_released_and_empty(queue: &Queue) {
    until_released_and_left(queue, &[]).await;
}

/// Waits until these rows, and no others, are left and held.
async fn until_released_and_left(queue: &Queue, kept: &[i64]) {
    let held = Filter { states: vec![State::Held], reason: Some(Reason::OutcomeUnknown), ..Filter::default() };
    let deadline = tokio::time::Instant::now() + 3 * DEADLINE;
    loop {
        let rows = queue.list(&held, i64::MIN, 1000).await.unwrap_or_default();
        let rows: Vec<_> = rows.iter().map(|row| row.id.mid.into()).collect();
        queue.apply(&Action::Release, &rows, Timestamp::now()).await.expect("release");
        let left = queue.list(&Filter::default(), i64::MIN, 1000).await;
        let unknown = Some(Reason::OutcomeUnknown);
        let at_rest = |row: &Listed| kept.contains(&row.id.mid) && row.state == State::Held && row.reason != unknown;
        if left.as_ref().is_ok_and(|left| left.len() == kept.len() && left.iter().all(at_rest)) {
            return;
        }
        let now = tokio::time::Instant::now();
        assert!(
            now < deadline,
            "something is left: {:?}",
            left.map(|left| left.into_iter().take(3).collect::<Vec<_>>())
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until no more than so many rows are in the table, for as long as they become fewer.
async fn until_left(queue: &Queue, count: usize) {
    let mut deadline = tokio::time::Instant::now() + DEADLINE;
    let mut fewest = usize::MAX;
    loop {
        let rows = queue.list(&Default::default(), i64::MIN, 1000).await.unwrap_or_default();
        let known = queue.counts(jiff::Timestamp::now()).await.is_ok();
        if known && rows.len() <= count {
            return;
        }
        if known && rows.len() < fewest {
            fewest = rows.len();
            deadline = tokio::time::Instant::now() + DEADLINE;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} rows are left: {:?}", rows.len(), rows.first());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a command of the operator's says so.
async fn until_said(house: &House, command: &[&str], word: &str) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let told = said(&house.run(command).await);
        if told.contains(word) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "no `{word}` in: {told}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stop(running: Running) -> Vec<String> {
    running.signal(Signal::TERM);
    let (status, lines) = running.wait().await;
    assert_eq!(status.code(), Some(0), "{}", lines.join("\n"));
    lines
}

async fn kill(running: Running) -> Vec<String> {
    running.signal(Signal::KILL);
    running.wait().await.1
}

/// The lines that are worth reading when a test fails.
fn story(lines: &[String], words: &[&str]) -> String {
    let wanted = lines.iter().filter(|line| words.iter().any(|word| line.contains(word)));
    wanted.cloned().collect::<Vec<_>>().join("\n")
}
