//! The tasks of a running dispatcher.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::error::StartError;
use super::{fetcher, settler};
use crate::telemetry::Tally;

/// The end of one pass.
#[derive(Debug, Default)]
pub struct Pass {
    pub tally: Tally,
    /// The relay's trouble that ended the pass early.
    pub relay: Option<String>,
    /// Queues whose database was out of reach, with the reason.
    pub databases: Vec<(Arc<str>, String)>,
    /// The pass was stopped, or something is paused, so that rows may be left that had no turn.
    pub cut_short: bool,
    /// The ledger or the rows' records kept the dispatcher from starting.
    pub refused: Option<StartError>,
}

/// The end of a task.
pub enum Ended {
    Fetcher(fetcher::Ended),
    Supplier,
    /// The number of its connection.
    Sender(usize),
    /// The number of its lane. `None` if it was cut off.
    Settler(usize, Option<settler::Ended>),
    Background,
}

/// The tasks of a running dispatcher, with what they have reported so far.
pub struct Tasks {
    pub set: JoinSet<Ended>,
    /// Fetchers that have not ended.
    pub fetchers: usize,
    /// Tasks between fetchers and senders that have not ended.
    pub suppliers: usize,
    /// Senders that have not ended, by the numbers of their connections, with the time that the reply to a final dot may
    /// take on each.
    pub senders: BTreeMap<usize, Duration>,
    /// Lanes whose settlers have not ended, with their queues.
    pub unsettled: BTreeMap<usize, Arc<str>>,
    pub pass: Pass,
    /// The order to end.
    stop: CancellationToken,
    /// Ends suppliers that wait for a claim.
    pub no_more_claims: CancellationToken,
    /// Ends senders that wait for a mail.
    pub no_more_mails: CancellationToken,
    pub cut_senders: CancellationToken,
    pub cut_settlers: CancellationToken,
    pub background: CancellationToken,
}

impl Tasks {
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            fetchers: 0,
            suppliers: 0,
            senders: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            pass: Pass::default(),
            stop,
            no_more_claims: CancellationToken::new(),
            no_more_mails: CancellationToken::new(),
            cut_senders: CancellationToken::new(),
            cut_settlers: CancellationToken::new(),
            background: CancellationToken::new(),
        }
    }

    /// `ended` is cancelled at the end of the task.
    pub fn add_fetcher(
        &mut self,
        task: impl Future<Output = fetcher::Ended> + Send + 'static,
        ended: CancellationToken,
    ) {
        self.fetchers += 1;
        self.set.spawn(async move {
            let _ended = ended.drop_guard();
            Ended::Fetcher(task.await)
        });
    }

    pub fn add_supplier(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.suppliers += 1;
        self.set.spawn(async {
            task.await;
            Ended::Supplier
        });
    }

    /// `connection` is the number of the sender's connection, and `final_dot` the time that the reply to a final dot may
    /// take on it.
    pub fn add_sender(
        &mut self,
        connection: usize,
        final_dot: Duration,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.senders.insert(connection, final_dot);
        let task = self.cut_senders.clone().run_until_cancelled_owned(task);
        self.set.spawn(async move {
            task.await;
            Ended::Sender(connection)
        });
    }

    /// `ended` is cancelled at the end of the task.
    pub fn add_settler(
        &mut self,
        lane: usize,
        queue: Arc<str>,
        task: impl Future<Output = settler::Ended> + Send + 'static,
        ended: CancellationToken,
    ) {
        self.unsettled.insert(lane, queue);
        let task = self.cut_settlers.clone().run_until_cancelled_owned(task);
        self.set.spawn(async move {
            let _ended = ended.drop_guard();
            Ended::Settler(lane, task.await)
        });
    }

    /// Runs a task until `over`, which is [`Tasks::background`] or a child of it.
    pub fn add_background(&mut self, over: CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
        let task = over.run_until_cancelled_owned(task);
        self.set.spawn(async {
            task.await;
            Ended::Background
        });
    }

    /// Waits for tasks to end until `reached`. Passes on the panic of any task.
    pub async fn until(&mut self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            match self.set.join_next().await {
                Some(Ok(ended)) => self.note(ended),
                Some(Err(error)) => resume(error),
                None => return,
            }
        }
    }

    fn note(&mut self, ended: Ended) {
        match ended {
            Ended::Fetcher(ended) => {
                self.fetchers -= 1;
                match ended {
                    fetcher::Ended::Done => {}
                    fetcher::Ended::CutShort => self.pass.cut_short = true,
                    fetcher::Ended::OutOfReach(queue, why) => self.pass.databases.push((queue, why)),
                    fetcher::Ended::Refused(error) => {
                        self.stop.cancel();
                        self.pass.refused = Some(error);
                    }
                }
            }
            Ended::Supplier => self.suppliers -= 1,
            Ended::Sender(connection) => drop(self.senders.remove(&connection)),
            Ended::Settler(lane, Some((queue, why))) => {
                self.unsettled.remove(&lane);
                self.pass.databases.extend(why.map(|why| (queue, why)));
            }
            Ended::Settler(_, None) | Ended::Background => {}
        }
    }
}

/// Passes a panic on. Nothing else ends a task with an error, because none is aborted.
fn resume(error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        std::panic::resume_unwind(panic);
    }
}
