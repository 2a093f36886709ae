//! The policy: what an attempt means for a row. Pure functions; time and chance are arguments.

use std::time::Duration;

use jiff::Timestamp;

use crate::outcome::{
    Attempt, Cause, Fate, History, Reason, RecipientOutcome, RecipientRecord, RecipientState, Scope, Trouble, Verdict,
};

/// `[retry]` of the configuration and `on_unknown`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Before the second attempt; doubles with each further one.
    pub initial: Duration,
    /// The longest pause between two attempts.
    pub maximum: Duration,
    /// How long a mail may be put off, counted from the first time.
    pub expire: Duration,
    pub on_unknown: OnUnknown,
}

/// What to do with a mail of which nobody knows whether the smarthost accepted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnknown {
    /// Better twice than never: offer it again, once. A second unknown outcome is held.
    #[default]
    Resend,
    Hold,
}

impl Default for Settings {
    fn default() -> Self {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        Self {
            initial: Duration::from_secs(60),
            maximum: hours(4),
            expire: hours(5 * 24),
            on_unknown: OnUnknown::default(),
        }
    }
}

/// Decides what becomes of a row after `attempt`. `history` is what was known before it, with a record for each
/// recipient that cannot be an address; `jitter` is in `0.0..1.0`.
///
/// - Everybody accepted, now or earlier: delivered.
/// - An unknown outcome: offered again once, or held.
/// - Somebody was put off: deferred, or failed once that has lasted too long.
/// - Somebody was not offered the mail, because of trouble that is not the mail's: back to where it was; where others
///   have been accepted meanwhile, deferred and due at once. No attempt is used.
/// - Somebody was refused, nobody put off: failed.
pub fn decide(settings: &Settings, history: &History, attempt: &Attempt, now: Timestamp, jitter: f64) -> Verdict {
    let before = history;
    let mut history = history.clone();
    history.note(attempt.outcomes.iter().filter_map(|(address, outcome)| {
        let (state, reply) = record(outcome)?;
        Some(RecipientRecord { address: address.to_string(), state, reply, at: now })
    }));

    let outcomes = || attempt.outcomes.iter().map(|(_, outcome)| outcome);
    let put_off: Vec<&Trouble> = outcomes().filter_map(deferral).collect();
    let refusals: Vec<&Trouble> = outcomes().filter_map(refusal).collect();
    let unknown = outcomes().any(|outcome| matches!(outcome, RecipientOutcome::Unknown(_)));
    let untried = outcomes().any(|outcome| matches!(outcome, RecipientOutcome::Untried));
    let accepted_now = outcomes().any(|outcome| matches!(outcome, RecipientOutcome::Accepted(_)));

    if unknown || !put_off.is_empty() || !refusals.is_empty() {
        history.attempts = history.attempts.saturating_add(1);
    }
    if unknown {
        history.unknowns = history.unknowns.saturating_add(1);
    }
    if !put_off.is_empty() {
        history.first_deferred.get_or_insert(now);
    }

    let later = |attempts| later(now, pause(settings, attempts, jitter));
    let fate = if unknown {
        unknown_fate(settings, before.unknowns, later(1))
    } else if !put_off.is_empty() {
        if expired(settings, &history, now) {
            Fate::Failed { reason: Reason::Expired }
        } else {
            Fate::Deferred { reason: reason_to_wait(&put_off), next_attempt: later(history.attempts) }
        }
    } else if untried {
        if accepted_now || !refusals.is_empty() {
            Fate::Deferred { reason: Reason::RelayUnavailable, next_attempt: now }
        } else {
            return Verdict::released();
        }
    } else if history.recipients.iter().all(|recipient| recipient.state == RecipientState::Accepted) {
        Fate::Delivered
    } else {
        Fate::Failed { reason: reason_to_fail(&refusals, &history) }
    };
    Verdict { fate, last_reply: last_words(attempt), history }
}

/// Decides what becomes of a row that its dispatcher was sending when it died. `history` is what was known before.
pub fn unknown(settings: &Settings, mut history: History, now: Timestamp, jitter: f64) -> Verdict {
    let fate = unknown_fate(settings, history.unknowns, later(now, pause(settings, 1, jitter)));
    history.attempts = history.attempts.saturating_add(1);
    history.unknowns = history.unknowns.saturating_add(1);
    let last_reply = Some("the dispatcher died before the final dot was answered".to_owned());
    Verdict { fate, history, last_reply }
}

/// How long to wait after so many attempts: doubling from `initial` to `maximum`, a quarter more or less by `jitter`.
pub fn pause(settings: &Settings, attempts: u32, jitter: f64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(31);
    let pause = settings.initial.saturating_mul(1 << doublings).min(settings.maximum);
    pause.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// Returns the time of the next DELETE of a row that was delivered and that the database does not delete. `since` is the
/// time of the first one that it refused: the pause is as long as that has lasted, from `initial` to `maximum`, so that it
/// doubles each time.
pub fn next_delete(settings: &Settings, since: Timestamp, now: Timestamp, jitter: f64) -> Timestamp {
    let lasted = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let pause = lasted.max(settings.initial).mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0);
    later(now, pause.min(settings.maximum))
}

/// The same attempt with each refusal turned into a deferral, for refusals that turn out to be the relay's trouble: the
/// same policy refusal, mail after mail.
pub fn excused(attempt: &Attempt) -> Attempt {
    let mut attempt = attempt.clone();
    for (_, outcome) in &mut attempt.outcomes {
        if let RecipientOutcome::Refused(trouble) = outcome {
            *outcome = RecipientOutcome::Deferred(Trouble { scope: Scope::Relay, ..trouble.clone() });
        }
    }
    attempt
}

fn unknown_fate(settings: &Settings, unknowns_before: u32, next_attempt: Timestamp) -> Fate {
    if settings.on_unknown == OnUnknown::Hold || unknowns_before > 0 {
        Fate::Held { reason: Reason::OutcomeUnknown }
    } else {
        Fate::Deferred { reason: Reason::OutcomeUnknown, next_attempt }
    }
}

fn record(outcome: &RecipientOutcome) -> Option<(RecipientState, Option<String>)> {
    Some(match outcome {
        RecipientOutcome::Accepted(reply) => (RecipientState::Accepted, Some(reply.to_string())),
        RecipientOutcome::Deferred(trouble) => (RecipientState::Deferred, Some(trouble.to_string())),
        RecipientOutcome::Refused(trouble) => (RecipientState::Refused, Some(trouble.to_string())),
        RecipientOutcome::Unknown(trouble) => (RecipientState::Open, Some(trouble.to_string())),
        RecipientOutcome::Untried => return None,
    })
}

fn deferral(outcome: &RecipientOutcome) -> Option<&Trouble> {
    match outcome {
        RecipientOutcome::Deferred(trouble) => Some(trouble),
        _ => None,
    }
}

fn refusal(outcome: &RecipientOutcome) -> Option<&Trouble> {
    match outcome {
        RecipientOutcome::Refused(trouble) => Some(trouble),
        _ => None,
    }
}

fn expired(settings: &Settings, history: &History, now: Timestamp) -> bool {
    history.first_deferred.is_some_and(|first| now >= later(first, settings.expire))
}

fn reason_to_wait(put_off: &[&Trouble]) -> Reason {
    let is = |test: fn(&Trouble) -> bool| put_off.iter().all(|trouble| test(trouble));
    if is(|trouble| matches!(trouble.cause, Cause::Reply(_)) && trouble.scope == Scope::Relay) {
        Reason::Throttled
    } else if is(|trouble| trouble.scope == Scope::Relay || !matches!(trouble.cause, Cause::Reply(_))) {
        Reason::RelayUnavailable
    } else {
        Reason::Refused
    }
}

fn reason_to_fail(refusals: &[&Trouble], history: &History) -> Reason {
    let refused_before = history.recipients.iter().any(|recipient| recipient.state == RecipientState::Refused);
    match refusals.last() {
        Some(Trouble { cause: Cause::Local(reason, _), .. }) => *reason,
        None if !refused_before => Reason::AddressInvalid,
        _ => Reason::Refused,
    }
}

fn last_words(attempt: &Attempt) -> Option<String> {
    let trouble = attempt.outcomes.iter().rev().find_map(|(_, outcome)| match outcome {
        RecipientOutcome::Deferred(trouble)
        | RecipientOutcome::Refused(trouble)
        | RecipientOutcome::Unknown(trouble) => Some(trouble.to_string()),
        RecipientOutcome::Accepted(_) | RecipientOutcome::Untried => None,
    });
    let acceptance = || {
        attempt.outcomes.iter().rev().find_map(|(_, outcome)| match outcome {
            RecipientOutcome::Accepted(reply) => Some(reply.to_string()),
            _ => None,
        })
    };
    trouble.or_else(|| attempt.relay.as_ref().map(Trouble::to_string)).or_else(acceptance)
}

/// `moment + pause`; the end of time where that is beyond it.
fn later(moment: Timestamp, pause: Duration) -> Timestamp {
    moment.checked_add(pause).unwrap_or(Timestamp::MAX)
}
