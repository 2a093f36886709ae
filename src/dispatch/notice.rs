//! Notices: mails of our own, which have no row.

use std::sync::Arc;

use super::rate::Bucket;
use crate::mail::{Address, Mail};
use crate::outcome::{RecipientOutcome, Reply, Trouble};
use crate::relay::{Relay, TransactionHook};
use crate::telemetry::SendError;

/// Offers a mail of our own, which has no row, on a connection of its own. Trouble with it does not take the relay down.
pub async fn send(relay: &Arc<Relay>, bucket: &Bucket, mail: &Mail) -> Result<(), SendError> {
    bucket.take().await;
    let mut client = relay.worker();
    client.ready().await.map_err(|trouble| SendError::Temporary(trouble.to_string()))?;
    let attempt = client.send(mail, &mail.envelope.recipients, &mut Unguarded).await;
    client.quit().await;
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

/// A notice may be lost or sent twice.
struct Unguarded;

impl TransactionHook for Unguarded {
    async fn before_final_dot(&mut self, _: &[Address]) -> Result<(), Trouble> {
        Ok(())
    }

    async fn after_final_dot(&mut self, _: Result<&Reply, &Trouble>) {}
}
