//! Fetches the large rows of a queue one at a time, so that the queue's other mails never wait for them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::PassError;
use super::lane::Lane;
use super::memory::{Cost, Reserved};
use super::prepare::{self, Preparer};
use crate::failpoint;
use crate::queue::{Claim, Found};

/// The wait after an error.
const WAIT: Duration = Duration::from_secs(1);

pub struct LargeFetcher {
    pub context: Arc<Context>,
    pub lane: Arc<Lane>,
    pub preparer: Arc<Preparer>,
}

impl LargeFetcher {
    /// Works until `over`.
    pub async fn run(self, over: CancellationToken) {
        let Self { context, lane, .. } = &self;
        while over.run_until_cancelled(context.wait_large(lane)).await.is_some() {
            failpoint::hit("in-large-fetcher");
            let done = if lane.large.has_claimed() {
                let slot = async {
                    let budget = context.live.get().memory.clone();
                    let memory = budget.reserve_large().await;
                    // The rows may have been given back meanwhile.
                    let claim = lane.large.next()?;
                    if let Cost::Large(units) = budget.cost(&claim) {
                        memory.note_large(units);
                    }
                    Some((claim, memory))
                };
                match over.run_until_cancelled(slot).await {
                    Some(Some((claim, memory))) => self.prepare(claim, memory).await,
                    Some(None) => Ok(()),
                    None => return,
                }
            } else {
                lane.large.claim_next(async |rows: &[Found]| self.claim(rows).await).await
            };
            lane.calls.fetcher.notify_waiters();
            if let Err(error) = done {
                context.fetching_failed(lane, &error);
                if let PassError::Database(error) = error {
                    lane.note_marking(Err(error));
                }
                // The next one would hold the slot while the database does not answer, and other queues' rows wait for it.
                while let Some(claim) = lane.large.next() {
                    lane.release(claim);
                }
                over.run_until_cancelled(tokio::time::sleep(WAIT)).await;
            }
        }
    }

    /// Claims rows, which then wait for the slot.
    async fn claim(&self, rows: &[Found]) -> Result<(), PassError> {
        let Self { context, lane, .. } = self;
        let claims = lane.queue.claim(rows, Timestamp::now()).await?;
        claims.iter().for_each(|claim| context.events.claimed(claim));
        for claim in prepare::set_too_large_aside(lane, claims).await? {
            lane.large.push_claimed(claim);
        }
        if !context.may_send(lane) {
            context.return_ready(lane);
        }
        Ok(())
    }

    async fn prepare(&self, claim: Claim, memory: Reserved) -> Result<(), PassError> {
        let Self { context, lane, .. } = self;
        if !context.may_send(lane) {
            lane.release(claim);
            return Ok(());
        }
        let limits = match lane.queue.limits().await {
            Ok(limits) => limits,
            Err(error) => {
                lane.release(claim);
                return Err(error.into());
            }
        };
        let batch = self.preparer.prepare(lane, vec![(claim, 0)], memory, limits).await?;
        batch.mails.into_iter().for_each(|mail| context.push_prepared(mail));
        if !context.may_send(lane) {
            context.return_ready(lane);
        }
        Ok(())
    }
}
