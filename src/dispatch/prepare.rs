//! From claimed rows to mails that are ready: loads within the memory, translates, marks `sending`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::fetcher::{Trouble, give_back, is_open};
use super::lane::{Done, Job, Lane, Notes};
use super::{BUDGET_UNIT, Shared, events, jitter};
use crate::mail::{Address, Capabilities, ColumnLimits, Columns, Fingerprint, Mail};
use crate::outcome::{Attempt, Fate, Reason, RecipientRecord, RecipientState, Verdict};
use crate::queue::{Claim, Row, Settlement, Unread};
use crate::relay::Announced;
use crate::retry;
use crate::translate::{self, Stamp, Unreadable};

/// Bytes of a row's columns. Larger rows are translated on a thread of their own, so that no heartbeat and no reply waits
/// for them. At this length plain text takes about 1 ms, and a list of addresses or a body of many small parts up to
/// 4 ms. A newsletter of 3 kB takes 0.1 ms, and the way to another thread and back would cost as much again.
const LARGE: usize = 32 * 1024;

/// Loads claimed rows in groups that fit the memory, and passes them on as mails.
pub async fn feed(shared: &Shared, lane: &Arc<Lane>, claims: Vec<Claim>, limits: ColumnLimits) -> Result<(), Trouble> {
    let all = u32::try_from(shared.settings.max_in_flight_bytes / BUDGET_UNIT).unwrap_or(u32::MAX).max(1);
    let claims = set_too_large_aside(lane, claims).await?;
    let costed = |claim: Claim| {
        let cost = cost(claim.bytes()).min(all);
        (claim, cost)
    };
    let mut waiting: VecDeque<(Claim, u32)> = claims.into_iter().map(costed).collect();
    while !waiting.is_empty() {
        let (group, costs) = next_group(&mut waiting, all / 4);
        let permit = shared.budget.clone().acquire_many_owned(costs.values().sum());
        let permit = shared.progress.pulse.waiting(lane.name(), shared.stop.run_until_cancelled(permit));
        let permit = match permit.await {
            Some(Ok(permit)) if is_open(shared, lane) => permit,
            _ => {
                let rest = waiting.into_iter().map(|(claim, _)| claim);
                group.into_iter().chain(rest).for_each(|claim| lane.release(claim));
                return Ok(());
            }
        };
        if let Err(trouble) = feed_group(shared, lane, group, permit, &costs, limits).await {
            waiting.into_iter().for_each(|(claim, _)| lane.release(claim));
            return Err(trouble);
        }
    }
    Ok(())
}

/// Sets rows aside whose length alone says that they cannot become a mail. None of their content is loaded, so that they
/// take no part of the memory. Returns the others.
async fn set_too_large_aside(lane: &Lane, claims: Vec<Claim>) -> Result<Vec<Claim>, Trouble> {
    let (too_large, claims): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| lane.queue.is_too_large(claim));
    if too_large.is_empty() {
        return Ok(claims);
    }
    match lane.queue.measure(too_large).await {
        Ok(unread) => {
            for Unread { claim, oversize, fingerprint } in unread {
                let detail = oversize.to_string();
                let said = detail.clone();
                let fate = Fate::Unreadable { reason: Reason::TooLarge, detail };
                set_aside(lane, claim, fingerprint, fate, Some(said));
            }
            Ok(claims)
        }
        Err((error, too_large)) => {
            too_large.into_iter().chain(claims).for_each(|claim| lane.release(claim));
            Err(error.into())
        }
    }
}

/// A row counts three times its columns: as it was stored, decoded, and rendered.
fn cost(bytes: u64) -> u32 {
    u32::try_from((bytes * 3).div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX).max(1)
}

/// The next claims that together cost no more than `most`; one that costs more goes alone.
fn next_group(waiting: &mut VecDeque<(Claim, u32)>, most: u32) -> (Vec<Claim>, HashMap<i64, u32>) {
    let mut group = Vec::new();
    let mut costs = HashMap::new();
    let mut sum = 0;
    while let Some((claim, cost)) = waiting.pop_front_if(|(_, cost)| sum == 0 || sum + *cost <= most) {
        sum += cost;
        costs.insert(claim.id().mid, cost);
        group.push(claim);
    }
    (group, costs)
}

async fn feed_group(
    shared: &Shared,
    lane: &Arc<Lane>,
    group: Vec<Claim>,
    mut permit: OwnedSemaphorePermit,
    costs: &HashMap<i64, u32>,
    limits: ColumnLimits,
) -> Result<(), Trouble> {
    let rows = match lane.queue.load(group).await {
        Ok(rows) => rows,
        Err((error, group)) => {
            group.into_iter().for_each(|claim| lane.release(claim));
            return Err(error.into());
        }
    };
    let restored = match restored(shared, lane, &rows).await {
        Ok(restored) => restored,
        Err(trouble) => {
            rows.into_iter().for_each(|row| lane.release(row.claim));
            return Err(trouble);
        }
    };
    let mut jobs = Vec::with_capacity(rows.len());
    for Row { claim, columns, fingerprint } in rows {
        let mid = claim.id().mid;
        let share = costs.get(&mid).map_or(0, |cost| *cost as usize).min(permit.num_permits());
        let Some(share) = permit.split(share) else { unreachable!("a permit holds as many as it says") };
        if restored.contains(&mid) {
            set_aside(lane, claim, fingerprint, Fate::Held { reason: Reason::AlreadyAccepted }, None);
            continue;
        }
        let stamp = Stamp { record: *claim.record(), created: claim.created() };
        match make_mail(shared, columns, limits, stamp).await {
            Ok(mail) => {
                events::repaired(shared, claim.id(), &mail);
                jobs.extend(job(shared, lane, claim, fingerprint, mail, share));
            }
            Err(Unreadable { reason, detail }) => {
                let said = detail.clone();
                set_aside(lane, claim, fingerprint, Fate::Unreadable { reason, detail }, Some(said));
            }
        }
    }
    push(shared, lane, jobs).await
}

/// Rows that were accepted before, number and content: a restored dump, or a row that somebody put back.
async fn restored(shared: &Shared, lane: &Lane, rows: &[Row]) -> Result<HashSet<i64>, Trouble> {
    let new: Vec<_> =
        rows.iter().filter(|row| row.claim.is_new()).map(|row| (row.claim.id().mid, row.fingerprint)).collect();
    if new.is_empty() || lane.queue.reuses_numbers().await? {
        return Ok(HashSet::new());
    }
    let known = shared.ledger.recognise(lane.name(), &new).await?;
    Ok(known.into_iter().map(|(mid, _)| mid).collect())
}

async fn make_mail(shared: &Shared, columns: Columns, limits: ColumnLimits, stamp: Stamp) -> Result<Mail, Unreadable> {
    // Before the first connection a mail is made in hope. A connection that does not carry it has it made again.
    let wire = shared.relay.announced().map(|announced| carries(&announced)).unwrap_or_default();
    translated(shared, columns, limits, stamp, wire).await
}

/// Makes the mail of a row again, for a connection with these capabilities. `None` where there is nothing to offer any
/// more, or not now; then the row has been taken care of.
pub async fn remake(shared: &Shared, job: Job, capabilities: Capabilities) -> Option<Job> {
    let Job { lane, claim, fingerprint, memory, confirmed, .. } = job;
    let stamp = Stamp { record: *claim.record(), created: claim.created() };
    let loaded = async {
        match lane.queue.limits().await {
            Ok(limits) => lane.queue.load(vec![claim]).await.map(|rows| (rows, limits)),
            Err(error) => Err((error, vec![claim])),
        }
    };
    let (rows, limits) = match loaded.await {
        Ok(loaded) => loaded,
        Err((error, claims)) => {
            events::database(shared, &lane, &error);
            claims.into_iter().for_each(|claim| lane.release(claim));
            return None;
        }
    };
    let Row { claim, columns, fingerprint: now } = rows.into_iter().next()?;
    if now != fingerprint {
        lane.release(claim);
        return None;
    }
    match translated(shared, columns, limits, stamp, capabilities).await {
        Ok(mail) => {
            let job = self::job(shared, &lane, claim, fingerprint, mail, memory)?;
            Some(Job { confirmed, ..job })
        }
        Err(Unreadable { reason, detail }) => {
            let said = detail.clone();
            set_aside(&lane, claim, fingerprint, Fate::Unreadable { reason, detail }, Some(said));
            None
        }
    }
}

fn carries(announced: &Announced) -> Capabilities {
    Capabilities { eight_bit: announced.eight_bit, smtputf8: announced.smtputf8 }
}

async fn translated(
    shared: &Shared,
    columns: Columns,
    limits: ColumnLimits,
    stamp: Stamp,
    wire: Capabilities,
) -> Result<Mail, Unreadable> {
    let settings = &shared.settings.message;
    if columns.len() < LARGE {
        return translate::translate(&columns, &limits, &stamp, wire, settings);
    }
    let settings = settings.clone();
    let work = move || translate::translate(&columns, &limits, &stamp, wire, &settings);
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The job, unless nobody is left to be reached.
fn job(
    shared: &Shared,
    lane: &Arc<Lane>,
    claim: Claim,
    fingerprint: Fingerprint,
    mail: Mail,
    permit: OwnedSemaphorePermit,
) -> Option<Job> {
    let now = Timestamp::now();
    let mut history = claim.history().clone();
    let known = history.in_states(&RecipientState::ALL);
    let new = mail.invalid.iter().filter(|invalid| !known.contains(invalid.written.as_str()));
    let new: Vec<_> = new
        .map(|invalid| RecipientRecord {
            address: invalid.written.clone(),
            state: RecipientState::Invalid,
            reply: Some(invalid.why.clone()),
            at: now,
        })
        .collect();
    history.note(new);
    let done = history.in_states(&[RecipientState::Accepted, RecipientState::Refused]);
    let is_done = |address: &&Address| done.contains(AsRef::<str>::as_ref(address));
    let recipients: Vec<_> = mail.envelope.recipients.iter().filter(|address| !is_done(address)).cloned().collect();
    if recipients.is_empty() {
        let nothing = Attempt::default();
        let verdict = retry::decide(&shared.settings.retry, &history, &nothing, now, jitter());
        let settlement =
            Settlement { claim, fingerprint: Some(fingerprint), message_id: Some(mail.message_id), verdict };
        lane.settle(Done { settlement, notes: Notes::default() });
        return None;
    }
    Some(Job {
        lane: lane.clone(),
        claim,
        fingerprint,
        mail: Arc::new(mail),
        recipients,
        confirmed: Instant::now(),
        history,
        memory: permit,
    })
}

/// The row stays as it is, for a reason of its own.
fn set_aside(lane: &Lane, claim: Claim, fingerprint: Fingerprint, fate: Fate, last_reply: Option<String>) {
    let verdict = Verdict { fate, history: claim.history().clone(), last_reply };
    let settlement = Settlement { claim, fingerprint: Some(fingerprint), message_id: None, verdict };
    lane.settle(Done { settlement, notes: Notes::default() });
}

/// Marks the mails `sending`, and gives those that are still ours to the workers.
async fn push(shared: &Shared, lane: &Lane, jobs: Vec<Job>) -> Result<(), Trouble> {
    if jobs.is_empty() {
        return Ok(());
    }
    let confirmed = Instant::now();
    let marks: Vec<_> = jobs.iter().map(|job| (&job.claim, job.fingerprint)).collect();
    let ours = match lane.queue.sending(&marks).await {
        Ok(ours) => ours,
        Err(error) => {
            jobs.into_iter().for_each(Job::release);
            return Err(error.into());
        }
    };
    for (job, ours) in jobs.into_iter().zip(ours) {
        if ours {
            shared.refusals.push(shared, Job { confirmed, ..job });
        } else {
            events::claim_lost(job.id());
        }
    }
    if !is_open(shared, lane) {
        give_back(shared, lane);
    }
    Ok(())
}
