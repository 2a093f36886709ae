//! Acts of claiming whose answer was lost: what they may have claimed is given back before anything else is claimed.

use tokio::sync::MutexGuard;

use super::db::error::Failure;
use super::error::Error;
use super::handle::{Queue, UnconfirmedClaims};
use super::records::{borrowed, keys_of};
use crate::mail::RecordId;

impl Queue {
    /// Acts of claiming whose answer was lost, after they have been undone; no other task claims while this is held.
    pub(super) async fn unconfirmed(&self) -> Result<MutexGuard<'_, UnconfirmedClaims>, Error> {
        let mut unconfirmed = self.inner.unconfirmed.lock().await;
        while let Some((token, keys)) = unconfirmed.last() {
            self.retrying(|| self.undo_once(token.as_str(), keys)).await?;
            unconfirmed.pop();
        }
        Ok(unconfirmed)
    }

    /// Gives those of the records back that are claimed under this token.
    pub(super) async fn undo_once(&self, token: &str, keys: &[(i64, RecordId)]) -> Result<(), Failure> {
        let mut connection = self.connection().await?;
        connection.begin(self.dialect().begin).await?;
        let (condition, mut args) = self.where_records("d", &borrowed(keys));
        let sql = format!(
            "SELECT d.mid, d.id FROM mailqueue_delivery d{} WHERE {condition} AND d.claim = ? AND d.owner = ? \
             AND d.state = 'claimed' ORDER BY d.mid{}",
            self.index_hint_primary(),
            self.dialect().lock
        );
        args.extend([token.into(), self.owner()]);
        let ours = keys_of(connection.fetch(&sql, args).await?)?;
        self.give_back(&mut connection, &borrowed(&ours)).await?;
        connection.commit().await
    }

    /// Gives those of the records back that are claimed under this token. Waits for no lock unless there are some.
    pub(super) async fn undo_unlocked_once(&self, token: &str, keys: &[(i64, RecordId)]) -> Result<(), Failure> {
        let (condition, mut args) = self.where_records("d", &borrowed(keys));
        let sql = format!("SELECT d.mid, d.id FROM mailqueue_delivery d WHERE {condition} AND d.claim = ?");
        args.push(token.into());
        let claimed = keys_of(self.connection().await?.fetch(&sql, args).await?)?;
        if claimed.is_empty() { Ok(()) } else { self.undo_once(token, &claimed).await }
    }
}
