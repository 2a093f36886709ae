//! Mails of the dispatcher's own: no row stands behind them, and nothing is remembered of them.

use super::Shared;
use crate::mail::{Address, Mail};
use crate::outcome::{RecipientOutcome, Reply, Trouble};
use crate::relay::TransactionHook;
use crate::telemetry::SendError;

/// Offers a mail of our own on a connection of its own, while the relay is up. Trouble with it opens no breaker.
pub async fn send_notice(shared: &Shared, mail: &Mail) -> Result<(), SendError> {
    if !shared.health.is_up() {
        return Err(SendError::Temporary("the relay is down or paused".to_owned()));
    }
    shared.bucket.take().await;
    let mut worker = shared.relay.worker();
    worker.ready().await.map_err(|trouble| SendError::Temporary(trouble.to_string()))?;
    let attempt = worker.send(mail, &mail.envelope.recipients, &mut Unseen).await;
    worker.quit().await;
    let relay = attempt.relay.as_ref().map(Trouble::to_string).unwrap_or_default();
    for (_, outcome) in attempt.outcomes {
        match outcome {
            RecipientOutcome::Accepted(_) => {}
            RecipientOutcome::Deferred(trouble) => return Err(SendError::Temporary(trouble.to_string())),
            RecipientOutcome::Untried => return Err(SendError::Temporary(relay)),
            RecipientOutcome::Refused(trouble) | RecipientOutcome::Unknown(trouble) => {
                return Err(SendError::Permanent(trouble.to_string()));
            }
        }
    }
    Ok(())
}

/// Nothing is promised of these mails.
struct Unseen;

impl TransactionHook for Unseen {
    async fn before_final_dot(&mut self, _: &[Address]) -> Result<(), Trouble> {
        Ok(())
    }

    async fn after_final_dot(&mut self, _: Result<&Reply, &Trouble>) {}
}
