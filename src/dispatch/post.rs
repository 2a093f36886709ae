//! Mails of the dispatcher's own: no row stands behind them, and nothing is remembered of them.

use super::{Handle, RelayState};
use crate::mail::{Address, Mail};
use crate::outcome::{RecipientOutcome, Reply, Trouble};
use crate::relay::Witness;

/// Why a mail of our own did not go out.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// It can be tried again later.
    #[error("{0}")]
    NotNow(String),
    /// It was refused, or nobody knows what became of it: it is not offered again.
    #[error("{0}")]
    Never(String),
}

impl Handle {
    /// Offers a mail of our own on a connection of its own. Only while the relay is up; trouble with it opens no breaker.
    pub async fn post(&self, mail: &Mail) -> Result<(), PostError> {
        if self.relay().state != RelayState::Up {
            return Err(PostError::NotNow("the relay is paused".to_owned()));
        }
        self.shared.bucket.take().await;
        let mut worker = self.shared.relay.worker();
        worker.ready().await.map_err(|trouble| PostError::NotNow(trouble.to_string()))?;
        let attempt = worker.send(mail, &mail.envelope.recipients, &mut Unseen).await;
        worker.quit().await;
        let relay = attempt.relay.as_ref().map(Trouble::to_string).unwrap_or_default();
        for (_, outcome) in attempt.outcomes {
            match outcome {
                RecipientOutcome::Accepted(_) => {}
                RecipientOutcome::Deferred(trouble) => return Err(PostError::NotNow(trouble.to_string())),
                RecipientOutcome::Untried => return Err(PostError::NotNow(relay)),
                RecipientOutcome::Refused(trouble) | RecipientOutcome::Unknown(trouble) => {
                    return Err(PostError::Never(trouble.to_string()));
                }
            }
        }
        Ok(())
    }
}

/// Nothing is promised of these mails.
struct Unseen;

impl Witness for Unseen {
    async fn before_dot(&mut self, _: &[Address]) -> Result<(), Trouble> {
        Ok(())
    }

    async fn after_dot(&mut self, _: Result<&Reply, &Trouble>) {}
}
