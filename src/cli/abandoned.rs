//! Rows that the dispatcher of this host was at work on when it died: `hold` and `delete` settle them first.

use std::collections::HashSet;

use jiff::Timestamp;

use super::output::{self, safe};
use crate::config::Config;
use crate::dispatch::abandoned::{self, AbandonedError};
use crate::ledger::{self, StateDir, Tracer};
use crate::outcome::State;
use crate::queue::{self, Filter, Queue, Selected};

/// Rows read at a time.
const PAGE: u32 = 500;

/// The dispatcher of this host.
#[derive(Debug, Default)]
pub enum Dispatcher {
    /// Not looked for yet.
    #[default]
    Unknown,
    /// It runs, or what it left behind cannot be used: the rows that it is at work on are left alone.
    Untouchable,
    /// It is dead, and does not start while this is held.
    Dead(StateDir),
}

/// Rows of a dead dispatcher that were settled.
#[derive(Debug, Default)]
pub struct Settled {
    /// The smarthost had accepted these, and they are deleted.
    pub delivered: HashSet<i64>,
    /// These are in another state than before.
    changed: HashSet<i64>,
}

impl Settled {
    /// Those of the rows that were not deleted, as they are now.
    pub async fn refreshed(&self, queue: &Queue, rows: &[Selected]) -> Result<Vec<Selected>, queue::Error> {
        let mut now = Vec::with_capacity(rows.len());
        for row in rows.iter().filter(|row| !self.delivered.contains(&row.mid)) {
            let refreshed = match self.changed.contains(&row.mid) {
                true => match queue.look(row.mid).await? {
                    Some((listed, _)) => queue.select(&[listed]).await?.pop().map(|selected| row.refreshed(selected)),
                    None => None,
                },
                false => None,
            };
            now.push(refreshed.unwrap_or_else(|| row.clone()));
        }
        Ok(now)
    }
}

impl Dispatcher {
    /// Settles those of `rows` that the dispatcher of this host was at work on, if it is dead.
    ///
    /// Nothing but rows with the dispatcher id of this `state_dir` is touched, and its lock is held from before the first
    /// change until this is dropped. The ledger is read and not written.
    pub async fn settle(&mut self, config: &Config, queue: &Queue, rows: &[Selected]) -> anyhow::Result<Settled> {
        let wanted: HashSet<i64> = rows.iter().map(|row| row.mid).collect();
        let mids = self.abandoned(config, queue, &wanted).await?;
        let Self::Dead(state_dir) = self else { return Ok(Settled::default()) };
        if mids.is_empty() {
            return Ok(Settled::default());
        }
        let ledger = Tracer::open(state_dir.path())?;
        let (entries, is_known) = (ledger.open_entries()?, ledger.knows(queue.name())?);
        let settings = config.queues.iter().map(|known| &known.settings).find(|known| known.name == *queue.name());
        let Some(settings) = settings else { return Ok(Settled::default()) };
        let own = Queue::new(settings.clone(), state_dir.dispatcher().to_owned())?;
        let settled = abandoned::settle(&own, entries, is_known, &mids, &config.retry, Timestamp::now()).await;
        let delivered = match settled {
            Ok(delivered) => delivered,
            Err(AbandonedError::Database(error)) => return Err(error.into()),
            Err(error @ AbandonedError::LedgerMissing { .. }) => {
                self.leave_alone(&error);
                return Ok(Settled::default());
            }
        };
        let delivered: HashSet<i64> = delivered.into_iter().collect();
        let changed = mids.into_iter().filter(|mid| !delivered.contains(mid)).collect();
        Ok(Settled { delivered, changed })
    }

    /// Returns those of the rows that the dispatcher of this host was at work on, and holds its `state_dir`, if it is dead.
    async fn abandoned(&mut self, config: &Config, queue: &Queue, wanted: &HashSet<i64>) -> anyhow::Result<Vec<i64>> {
        if matches!(self, Self::Untouchable) {
            return Ok(Vec::new());
        }
        let id = match StateDir::dispatcher_of(&config.state_dir) {
            Ok(Some(id)) => id,
            Ok(None) => return Ok(Vec::new()),
            Err(error) => return Ok(self.leave_alone(&error)),
        };
        let filter = Filter { states: vec![State::Claimed, State::Sending], ..Filter::default() };
        let (mut mids, mut cursor) = (Vec::new(), i64::MIN);
        loop {
            let page = queue.list(&filter, cursor, PAGE).await?;
            let Some(last) = page.last() else { break };
            cursor = last.id.mid;
            let own = page.iter().filter(|row| row.owner.as_ref() == Some(&id) && wanted.contains(&row.id.mid));
            mids.extend(own.map(|row| row.id.mid));
        }
        if !mids.is_empty() && matches!(self, Self::Unknown) {
            match StateDir::take_existing(&config.state_dir) {
                Ok(Some(state_dir)) if ledger::exists(&config.state_dir) => *self = Self::Dead(state_dir),
                // It runs, and is at work on them.
                Err(ledger::Error::Busy { .. }) => *self = Self::Untouchable,
                Ok(_) => {
                    let file = config.state_dir.join(ledger::FILE);
                    return Ok(self.leave_alone(&format!("{} is missing", file.display())));
                }
                Err(error) => return Ok(self.leave_alone(&error)),
            }
        }
        Ok(mids)
    }

    fn leave_alone(&mut self, why: &impl ToString) -> Vec<i64> {
        output::tell(&format!(
            "mailqueue: rows that the dispatcher of this host is at work on are left alone: {}",
            safe(&why.to_string())
        ));
        *self = Self::Untouchable;
        Vec::new()
    }
}
