//! A sender is one connection's work: takes the next mail, offers it, and passes the outcome on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connections::Learned;
use super::context::Context;
use super::events;
use super::final_dot_guard::{FinalDotGuard, Stopped};
use super::lane::{Finished, Job};
use super::prepare::Preparer;
use super::rate::Bucket;
use super::refusal_streak::{PATIENCE, refusal};
use crate::ledger::Ledger;
use crate::outcome::{Attempt, Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};
use crate::relay::{Offer, Worker};

/// A connection that had nothing to do for this long is closed politely; smarthosts dislike idlers.
const IDLE: Duration = Duration::from_secs(30);

/// A mail is made again this many times for a smarthost whose connections announce different extensions.
const REMAKES: usize = 3;

pub struct Sender {
    pub context: Arc<Context>,
    pub bucket: Arc<Bucket>,
    pub ledger: Ledger,
    pub preparer: Arc<Preparer>,
    /// Counts the connections from 0.
    pub connection: usize,
    pub client: Worker,
    /// The time that the reply to a final dot may take on this connection. After a reload that of the relay in force can
    /// be another.
    pub final_dot: Duration,
    /// The order to end: for this sender, where the relay has other settings, or for all.
    pub stop: CancellationToken,
}

impl Sender {
    /// Works until `over`; mails that are still ready then have been taken back by their fetchers.
    pub async fn run(mut self, over: CancellationToken) {
        let context = self.context.clone();
        let mut ahead = None;
        loop {
            let job = match ahead.take() {
                Some(job) => job,
                None => match over.run_until_cancelled(self.next_job()).await {
                    Some(job) => job,
                    None => break,
                },
            };
            if !self.may_go(&job) {
                context.release(job);
                continue;
            }
            context.breaker.connecting(self.connection);
            match self.stop.clone().run_until_cancelled(self.client.ready()).await {
                Some(Ok(())) => {
                    self.learned(context.breaker.connected(self.connection, Instant::now()));
                    // Connecting can take minutes, and operators are obeyed within a second.
                    if self.may_go(&job) && context.breaker.is_up() {
                        ahead = self.offer(job).await;
                    } else {
                        context.release(job);
                    }
                }
                Some(Err(trouble)) => {
                    context.events.progress.counters.try_failed(&trouble);
                    self.not_let_in(&trouble);
                    context.put_back(job);
                }
                None => {
                    context.breaker.left(self.connection);
                    context.release(job);
                }
            }
        }
        self.close().await;
    }

    /// Waits for the sender's turn, and takes a mail.
    async fn next_job(&mut self) -> Job {
        let context = self.context.clone();
        let idle_since = Instant::now();
        loop {
            // Neither mail nor token is in hand while this waits, so that it can be given up at any moment.
            let turn = async {
                context.breaker.admitted(self.connection).await;
                let _turn = self.bucket.turn().await;
                context.wait_nonempty().await;
                self.bucket.available().await;
            };
            let patience = if context.has_refusals_waiting() { PATIENCE } else { IDLE };
            tokio::select! {
                () = turn => {
                    if let Some(job) = self.take() {
                        return job;
                    }
                }
                // A probe must not be refused because of connections that are idle.
                () = context.breaker.down(), if self.client.is_connected() => self.close().await,
                () = context.breaker.surplus(self.connection), if self.client.is_connected() => self.close().await,
                () = tokio::time::sleep(patience) => {}
            }
            context.flush_ripe_refusals();
            if self.client.is_connected() && idle_since.elapsed() >= IDLE {
                self.close().await;
            }
        }
    }

    async fn close(&mut self) {
        self.client.quit().await;
        self.context.breaker.left(self.connection);
    }

    /// Takes the next mail with a token for it, where there are both and this sender may have them.
    fn take(&self) -> Option<Job> {
        let now = Instant::now();
        let may = !self.stop.is_cancelled() && self.context.breaker.admits(self.connection, now);
        may.then(|| self.bucket.take_for(now, || self.context.next(now))).flatten()
    }

    /// Offers a mail. Returns the next one if its commands are on their way already.
    async fn offer(&mut self, mut job: Job) -> Option<Job> {
        let context = self.context.clone();
        // The next mail, if it can follow at once: its commands then travel with the content of the one before.
        let ahead = self.take();
        let mut remakes = 0;
        loop {
            let begun = Instant::now();
            let mut guard = FinalDotGuard::new(&self.ledger, &context.events.progress, &job, self.final_dot);
            let attempt = self.client.send_ahead(offered(&job), ahead.as_ref().map(offered), &mut guard).await;
            let (closing, stopped) = guard.end();
            if ahead.is_none() {
                // Else it goes on file with the next mail's transaction, which cannot come to its dot without.
                // The next dot and the settler, which depend on it, ask again.
                let _ = self.ledger.flush();
            }
            if !self.client.is_connected() {
                context.breaker.left(self.connection);
            }
            context.events.attempted(&job, &attempt, begun.elapsed());
            let Some(capabilities) = attempt.remake.filter(|_| is_untried(&attempt)) else {
                self.conclude(Finished { job, attempt, begun, closing }, stopped.as_ref());
                break;
            };
            remakes += 1;
            if remakes > REMAKES {
                context.release(job);
                break;
            }
            let sender = job.sender().clone();
            match self.preparer.prepare_again(job, capabilities).await {
                Some(remade) => job = remade,
                None => {
                    context.came_back(&sender);
                    break;
                }
            }
        }
        // Trouble of the relay or with its sender keeps the next mail from its turn too.
        match ahead {
            Some(job) if !context.breaker.admits(self.connection, Instant::now()) || context.sender_is_paused(&job) => {
                context.put_back(job);
                None
            }
            ahead => ahead,
        }
    }

    fn may_go(&self, job: &Job) -> bool {
        !job.lane().is_paused() && job.is_covered(self.final_dot, Instant::now())
    }

    /// Returns true if the relay has other settings by now. What this sender meets then says nothing about it.
    fn is_outdated(&self) -> bool {
        self.stop.is_cancelled() && !self.context.stop.is_cancelled()
    }

    fn conclude(&self, finished: Finished, stopped: Option<&Stopped>) {
        let attempt = &finished.attempt;
        let no_connection = attempt.relay.as_ref().filter(|trouble| trouble.stage < Stage::Mail && stopped.is_none());
        if let Some(trouble) = no_connection {
            self.not_let_in(trouble);
            if is_untried(attempt) {
                return self.context.put_back(finished.job);
            }
        } else {
            self.judge_relay(attempt, stopped);
        }
        self.context.finished(finished);
    }

    fn learned(&self, learned: Learned) {
        match learned {
            Learned::Nothing => {}
            Learned::Limit(connections) => {
                tracing::info!(target: events::RELAY, connections,
                    "the smarthost takes no more connections than these: the others wait; set relay.connections to this number");
            }
            Learned::Files => tracing::info!(target: events::RELAY, "there are files for all connections again"),
            Learned::More(connections) => {
                tracing::info!(target: events::RELAY, connections, "the smarthost takes more connections again");
            }
        }
    }

    /// No connection could be made. While another one works and this can be a limit, there are just fewer connections.
    fn not_let_in(&self, trouble: &Trouble) {
        let breaker = &self.context.breaker;
        if self.is_outdated() {
            return breaker.left(self.connection);
        }
        if trouble.is_open_files() {
            self.context.out_of_files(Some(self.connection));
            // A single pass has no later time at which there may be files.
            if self.context.once && !breaker.has_connections() {
                self.context.relay_failed(trouble);
            }
            return;
        }
        if trouble.is_connection_limit() {
            if let Some(news) = breaker.refused(self.connection, Instant::now()) {
                tracing::debug!(target: events::RELAY, reason = self.context.events.redact(&trouble.to_string()),
                    "a connection was refused while others work");
                return self.learned(news);
            }
        } else {
            breaker.left(self.connection);
        }
        self.context.relay_failed(trouble);
    }

    /// Passes on what an attempt says of the relay.
    fn judge_relay(&self, attempt: &Attempt, stopped: Option<&Stopped>) {
        let blameless =
            |outcome: &RecipientOutcome| matches!(outcome, RecipientOutcome::Untried | RecipientOutcome::Accepted(_));
        let all_blameless = attempt.outcomes.iter().all(|(_, outcome)| blameless(outcome));
        if let Some(Stopped::Ledger(error)) = stopped {
            return self.context.ledger_failed(error);
        }
        match &attempt.relay {
            _ if self.is_outdated() => {}
            // Our own heartbeat is overdue: the smarthost has no part in that.
            Some(_) if stopped.is_some() && all_blameless => {}
            Some(trouble) if all_blameless => self.context.relay_failed(trouble),
            Some(_) => self.throttled(),
            None if asks_for_less(attempt) => self.throttled(),
            None if was_answered(attempt) && refusal(attempt).is_none() => self.context.breaker.success(),
            None => {}
        }
    }

    fn throttled(&self) {
        if let Some(cap) = self.context.breaker.throttled(Instant::now()) {
            tracing::info!(target: events::RELAY, connections = cap, "the smarthost throttles: fewer connections");
        }
    }
}

fn offered(job: &Job) -> Offer<'_> {
    Offer { mail: job.mail(), recipients: &job.prepared.recipients }
}

/// Returns true if the mail was not offered to any recipient.
fn is_untried(attempt: &Attempt) -> bool {
    attempt.outcomes.iter().all(|(_, outcome)| matches!(outcome, RecipientOutcome::Untried))
}

/// The pace is too high for the smarthost: a 4yz reply that concerns neither mail nor recipient, or speaks of policy or
/// of a system that is full.
fn asks_for_less(attempt: &Attempt) -> bool {
    attempt.outcomes.iter().any(|(_, outcome)| match outcome {
        RecipientOutcome::Deferred(Trouble {
            scope,
            cause: Cause::Reply(Reply { code: 421..=454, enhanced, .. }),
            ..
        }) => *scope == Scope::Relay || matches!(enhanced, Some((4, 7, _) | (4, 3, 1 | 2))),
        _ => false,
    })
}

/// The smarthost had an answer to everything: no connection broke and none fell silent.
fn was_answered(attempt: &Attempt) -> bool {
    attempt.outcomes.iter().all(|(_, outcome)| match outcome {
        RecipientOutcome::Accepted(_) => true,
        RecipientOutcome::Deferred(trouble) | RecipientOutcome::Refused(trouble) => {
            matches!(trouble.cause, Cause::Reply(_) | Cause::Local(..))
        }
        RecipientOutcome::Unknown(_) | RecipientOutcome::Untried => false,
    })
}
