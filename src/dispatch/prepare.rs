//! From claimed rows to prepared mails: loads them, and translates their content.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::context::jitter;
use super::error::PassError;
use super::events::Events;
use super::lane::{Job, Lane, Prepared};
use super::memory::Reserved;
use super::progress::Work;
use super::settings::Live;
use crate::failpoint;
use crate::ledger::Ledger;
use crate::mail::{Capabilities, ColumnLimits, Columns, Fingerprint, Mail};
use crate::outcome::{Attempt, Fate, Reason};
use crate::panics;
use crate::queue::{Claim, Row, Unread};
use crate::retry;
use crate::translate::{self, Stamp, Unreadable};

/// Bytes of a row's columns. Larger rows are translated on a thread of their own, so that no heartbeat and no reply waits
/// for them. At this length plain text takes about 1 ms, and a list of addresses or a body of many small parts up to
/// 4 ms. A newsletter of 3 kB takes 0.1 ms, and the way to another thread and back would cost as much again.
const LARGE: usize = 32 * 1024;

/// Mails that were made of rows.
pub struct Batch {
    pub mails: Vec<Prepared>,
    /// The numbers of rows that could not be loaded. Their claims are gone.
    pub not_loaded: Vec<i64>,
}

/// Makes mails of rows.
pub struct Preparer {
    pub live: Arc<Live>,
    pub ledger: Ledger,
    pub events: Events,
}

impl Preparer {
    /// Loads claimed rows and makes mails of them. Each claim comes with its part of `memory`. Rows that become no mail
    /// are settled; after an error all are released.
    pub async fn prepare(
        &self,
        lane: &Arc<Lane>,
        claims: Vec<(Claim, u32)>,
        mut memory: Reserved,
        limits: ColumnLimits,
    ) -> Result<Batch, PassError> {
        let mut costs: HashMap<i64, u32> = claims.iter().map(|(claim, cost)| (claim.id().mid, *cost)).collect();
        let claims = claims.into_iter().map(|(claim, _)| claim).collect();
        let rows = match lane.queue.load(claims).await {
            Ok(rows) => rows,
            Err((error, claims)) => {
                claims.into_iter().for_each(|claim| lane.release(claim));
                return Err(error.into());
            }
        };
        let restored = match self.restored(lane, &rows).await {
            Ok(restored) => restored,
            Err(error) => {
                rows.into_iter().for_each(|row| lane.release(row.claim));
                return Err(error);
            }
        };
        let mut mails = Vec::with_capacity(rows.len());
        for Row { claim, columns, fingerprint } in rows {
            let mid = claim.id().mid;
            let memory = memory.split(costs.remove(&mid).unwrap_or(0));
            if restored.contains(&mid) {
                lane.set_aside(claim, fingerprint, Fate::Held { reason: Reason::AlreadyAccepted }, None);
                continue;
            }
            // Before the first connection a mail is made in hope. A connection that does not carry it has it made again.
            let wire = self.live.get().relay.announced().map(|announced| announced.capabilities()).unwrap_or_default();
            let loaded = Loaded { claim, fingerprint, memory };
            let Some((loaded, mail)) = self.translate(lane, loaded, columns, limits, wire).await else { continue };
            self.events.repaired(loaded.claim.id(), &mail);
            mails.extend(self.with_recipients(lane, loaded, mail));
        }
        Ok(Batch { mails, not_loaded: costs.into_keys().collect() })
    }

    /// Returns the numbers of rows that were accepted before, number and content: a restored dump, or a row that somebody
    /// put back.
    async fn restored(&self, lane: &Lane, rows: &[Row]) -> Result<HashSet<i64>, PassError> {
        let new = rows.iter().filter(|row| row.claim.is_new());
        let new: Vec<_> = new.map(|row| (row.claim.id().mid, row.fingerprint)).collect();
        if new.is_empty() || lane.queue.reuses_numbers().await? {
            return Ok(HashSet::new());
        }
        let known = self.ledger.recognise(lane.name(), &new).await?;
        Ok(known.into_iter().map(|(mid, _)| mid).collect())
    }

    /// Makes the mail of a row again, for a connection with these capabilities. Returns `None` if there is nothing to offer
    /// any more, or not now; then the row has been settled.
    pub async fn prepare_again(&self, job: Job, capabilities: Capabilities) -> Option<Job> {
        let (Prepared { lane, claim, fingerprint, memory, .. }, marked) = job.into_parts();
        let loaded = async {
            match lane.queue.limits().await {
                Ok(limits) => lane.queue.load(vec![claim]).await.map(|rows| (rows, limits)),
                Err(error) => Err((error, vec![claim])),
            }
        };
        let (rows, limits) = match loaded.await {
            Ok(loaded) => loaded,
            Err((error, claims)) => {
                self.events.database_failed(&lane, Work::Fetching, &error);
                claims.into_iter().for_each(|claim| lane.release(claim));
                lane.note_marking(Err(error));
                return None;
            }
        };
        let Row { claim, columns, fingerprint: now } = rows.into_iter().next()?;
        if now != fingerprint {
            lane.release(claim);
            return None;
        }
        let loaded = Loaded { claim, fingerprint, memory };
        let (loaded, mail) = self.translate(&lane, loaded, columns, limits, capabilities).await?;
        Some(self.with_recipients(&lane, loaded, mail)?.marked(marked))
    }

    /// Makes the mail, unless the row cannot become one; then it is set aside.
    async fn translate(
        &self,
        lane: &Lane,
        row: Loaded,
        columns: Columns,
        limits: ColumnLimits,
        wire: Capabilities,
    ) -> Option<(Loaded, Mail)> {
        let stamp = Stamp { record: *row.claim.record(), created: row.claim.created() };
        match translated(columns, limits, stamp, wire, &self.live.get().settings.message).await {
            Ok(mail) => Some((row, mail)),
            Err(Unreadable { reason, detail }) => {
                let said = detail.clone();
                lane.set_aside(row.claim, row.fingerprint, Fate::Unreadable { reason, detail }, Some(said));
                None
            }
        }
    }

    /// Adds the recipients that are to be reached. Where none is left, the row is settled.
    fn with_recipients(&self, lane: &Arc<Lane>, row: Loaded, mail: Mail) -> Option<Prepared> {
        let Loaded { claim, fingerprint, memory } = row;
        let now = Timestamp::now();
        let mut history = claim.history().clone();
        history.note_invalid(mail.invalid.iter().map(|invalid| (&*invalid.written, &*invalid.why)), now);
        let recipients = history.unfinished(&mail.envelope.recipients);
        if recipients.is_empty() {
            let verdict = retry::decide(&self.live.get().settings.retry, &history, &Attempt::default(), now, jitter());
            lane.settle(claim, Some(fingerprint), Some(mail.message_id), verdict);
            return None;
        }
        Some(Prepared { lane: lane.clone(), claim, fingerprint, mail: Arc::new(mail), recipients, history, memory })
    }
}

/// A row whose content has been loaded.
struct Loaded {
    claim: Claim,
    fingerprint: Fingerprint,
    memory: Reserved,
}

async fn translated(
    columns: Columns,
    limits: ColumnLimits,
    stamp: Stamp,
    wire: Capabilities,
    settings: &translate::Settings,
) -> Result<Mail, Unreadable> {
    if columns.len() < LARGE {
        return translated_safely(&columns, &limits, &stamp, wire, settings);
    }
    let settings = settings.clone();
    let work = move || translated_safely(&columns, &limits, &stamp, wire, &settings);
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Translates a row. A panic is a fault of ours which this row brings to light: it concerns no other.
fn translated_safely(
    columns: &Columns,
    limits: &ColumnLimits,
    stamp: &Stamp,
    wire: Capabilities,
    settings: &translate::Settings,
) -> Result<Mail, Unreadable> {
    let translated = panics::catch(|| {
        failpoint::hit("in-translate");
        translate::translate(columns, limits, stamp, wire, settings)
    });
    translated.unwrap_or_else(|text| {
        let detail = format!("mailqueue has a fault that this row brings to light; report it with this text: {text}");
        Err(Unreadable { reason: Reason::InternalError, detail })
    })
}

/// Sets rows aside whose length alone says that they cannot become a mail. None of their content is loaded, so that they
/// take no part of the memory. Returns the others.
pub async fn set_too_large_aside(lane: &Lane, claims: Vec<Claim>) -> Result<Vec<Claim>, PassError> {
    let (too_large, claims): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| lane.queue.is_too_large(claim));
    if too_large.is_empty() {
        return Ok(claims);
    }
    match lane.queue.measure(too_large).await {
        Ok(unread) => {
            for Unread { claim, oversize, fingerprint } in unread {
                let detail = oversize.to_string();
                let said = detail.clone();
                lane.set_aside(claim, fingerprint, Fate::Unreadable { reason: Reason::TooLarge, detail }, Some(said));
            }
            Ok(claims)
        }
        Err((error, too_large)) => {
            too_large.into_iter().chain(claims).for_each(|claim| lane.release(claim));
            Err(error.into())
        }
    }
}
