//! The policy, case by case: what an attempt means for a row.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mailqueue::outcome::{
    Attempt, Cause, Fate, History, Reason, RecipientOutcome, RecipientRecord, RecipientState, Reply, Scope, Stage,
    Trouble,
};
use mailqueue::retry::{OnUnknown, Settings, decide, excused, next_delete, pause, unknown};

const MINUTE: Duration = Duration::from_secs(60);

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn after(pause: Duration) -> Timestamp {
    now() + SignedDuration::try_from(pause).unwrap()
}

#[test]
fn the_pauses_before_a_delete_that_was_refused_double_from_initial_to_maximum() {
    let settings = Settings { initial: MINUTE, maximum: 4 * MINUTE, ..Settings::default() };
    // A jitter of one half is none.
    let next = |lasted: Duration, jitter| next_delete(&settings, now(), after(lasted), jitter);
    assert_eq!(next(Duration::ZERO, 0.5), after(MINUTE));
    assert_eq!(next(MINUTE, 0.5), after(2 * MINUTE));
    assert_eq!(next(2 * MINUTE, 0.5), after(4 * MINUTE));
    assert_eq!(next(4 * MINUTE, 0.5), after(8 * MINUTE));
    assert_eq!(next(1000 * MINUTE, 0.5), after(1004 * MINUTE));
    assert_eq!(next(1000 * MINUTE, 0.99), after(1004 * MINUTE), "never longer than the maximum");
    assert_eq!(next(Duration::ZERO, 0.0), after(45 * MINUTE / 60));
    // A clock that was set back makes no pause shorter.
    assert_eq!(next_delete(&settings, after(10 * MINUTE), now(), 0.5), after(MINUTE));
}

fn reply(code: u16, enhanced: Option<(u8, u16, u16)>) -> Reply {
    Reply { code, enhanced, text: "words".to_owned() }
}

fn trouble(scope: Scope, cause: Cause) -> Trouble {
    Trouble { stage: Stage::Rcpt, scope, cause }
}

fn accepted() -> RecipientOutcome {
    RecipientOutcome::Accepted(reply(250, Some((2, 0, 0))))
}

fn deferred() -> RecipientOutcome {
    RecipientOutcome::Deferred(trouble(Scope::Recipient, Cause::Reply(reply(450, Some((4, 2, 1))))))
}

fn refused() -> RecipientOutcome {
    RecipientOutcome::Refused(trouble(Scope::Recipient, Cause::Reply(reply(550, Some((5, 1, 1))))))
}

fn lost() -> RecipientOutcome {
    RecipientOutcome::Unknown(trouble(Scope::Message, Cause::Closed("the connection broke".to_owned())))
}

/// Recipients a@x.at, b@x.at, … with these outcomes.
fn attempt(outcomes: impl IntoIterator<Item = RecipientOutcome>) -> Attempt {
    let address = |index: u8| format!("{}@x.at", char::from(b'a' + index)).parse().unwrap();
    Attempt { outcomes: (0..).map(address).zip(outcomes).collect(), ..Attempt::default() }
}

fn known(address: &str, state: RecipientState) -> RecipientRecord {
    RecipientRecord { address: address.to_owned(), state, reply: None, at: now() }
}

fn states(recipients: &[RecipientRecord]) -> Vec<(&str, RecipientState)> {
    recipients.iter().map(|recipient| (recipient.address.as_str(), recipient.state)).collect()
}

/// The middle of the jitter: pauses are exactly what the settings say.
const MIDDLE: f64 = 0.5;

#[test]
fn a_row_whose_recipients_were_all_accepted_is_delivered() {
    let verdict = decide(&Settings::default(), &History::default(), &attempt([accepted(), accepted()]), now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Delivered);
    assert_eq!(verdict.history.attempts, 0, "an attempt counts where somebody was put off or refused");
    assert_eq!(verdict.last_reply.as_deref(), Some("250 2.0.0 words"));
}

#[test]
fn acceptances_of_earlier_attempts_count() {
    let history = History { recipients: vec![known("z@x.at", RecipientState::Accepted)], ..History::default() };
    assert_eq!(decide(&Settings::default(), &history, &attempt([accepted()]), now(), MIDDLE).fate, Fate::Delivered);
}

#[test]
fn while_anybody_is_put_off_the_row_is_deferred_whatever_became_of_the_others() {
    let outcomes = attempt([accepted(), refused(), deferred(), accepted()]);
    let verdict = decide(&Settings::default(), &History::default(), &outcomes, now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Deferred { reason: Reason::Refused, next_attempt: after(MINUTE) });
    assert_eq!(verdict.history.attempts, 1);
    assert_eq!(verdict.history.first_deferred, Some(now()));
    use RecipientState::{Accepted, Deferred, Refused};
    let expected = [("a@x.at", Accepted), ("b@x.at", Refused), ("c@x.at", Deferred), ("d@x.at", Accepted)];
    assert_eq!(states(&verdict.history.recipients), expected);
}

#[test]
fn when_nobody_is_put_off_any_more_and_somebody_was_refused_the_row_has_failed() {
    let history = History {
        attempts: 1,
        first_deferred: Some(now()),
        recipients: vec![known("z@x.at", RecipientState::Refused), known("a@x.at", RecipientState::Deferred)],
        ..History::default()
    };
    let verdict = decide(&Settings::default(), &history, &attempt([accepted()]), now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Failed { reason: Reason::Refused });
    assert_eq!(verdict.history.attempts, 1);
}

#[test]
fn a_recipient_that_cannot_be_an_address_fails_the_row_after_the_others_have_their_mail() {
    let history = History { recipients: vec![known("a..b@x", RecipientState::Invalid)], ..History::default() };
    let verdict = decide(&Settings::default(), &history, &attempt([accepted()]), now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Failed { reason: Reason::AddressInvalid });
    let nobody_left = decide(&Settings::default(), &history, &attempt([]), now(), MIDDLE);
    assert_eq!(nobody_left.fate, Fate::Failed { reason: Reason::AddressInvalid });
}

#[test]
fn an_acceptance_is_never_taken_back() {
    let history = History { recipients: vec![known("a@x.at", RecipientState::Accepted)], ..History::default() };
    let verdict = decide(&Settings::default(), &history, &attempt([refused()]), now(), MIDDLE);
    assert_eq!(states(&verdict.history.recipients), [("a@x.at", RecipientState::Accepted)]);
}

#[test]
fn a_mail_that_is_put_off_for_too_long_has_failed() {
    let settings = Settings::default();
    let since = |age: Duration| History {
        attempts: 9,
        first_deferred: Some(now() - SignedDuration::try_from(age).unwrap()),
        ..History::default()
    };
    let young =
        decide(&settings, &since(settings.expire - Duration::from_secs(1)), &attempt([deferred()]), now(), MIDDLE);
    assert!(matches!(young.fate, Fate::Deferred { .. }), "{:?}", young.fate);
    let old = decide(&settings, &since(settings.expire), &attempt([deferred()]), now(), MIDDLE);
    assert_eq!(old.fate, Fate::Failed { reason: Reason::Expired });
}

#[test]
fn trouble_of_the_relay_uses_no_attempt() {
    let attempt = Attempt {
        relay: Some(trouble(Scope::Relay, Cause::Timeout)),
        ..attempt([RecipientOutcome::Untried, RecipientOutcome::Untried])
    };
    let verdict = decide(&Settings::default(), &History::default(), &attempt, now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Released);
}

#[test]
fn after_half_of_a_mail_the_relays_trouble_leaves_the_other_half_due_at_once() {
    let outcomes = attempt([accepted(), RecipientOutcome::Untried]);
    let verdict = decide(&Settings::default(), &History::default(), &outcomes, now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Deferred { reason: Reason::RelayUnavailable, next_attempt: now() });
    assert_eq!((verdict.history.attempts, verdict.history.first_deferred), (0, None));
    assert_eq!(states(&verdict.history.recipients), [("a@x.at", RecipientState::Accepted)]);
}

#[test]
fn an_unknown_outcome_is_offered_again_once_and_then_held() {
    let settings = Settings::default();
    let first = decide(&settings, &History::default(), &attempt([lost(), accepted()]), now(), MIDDLE);
    assert_eq!(first.fate, Fate::Deferred { reason: Reason::OutcomeUnknown, next_attempt: after(MINUTE) });
    assert_eq!(first.history.unknowns, 1);
    let second = decide(&settings, &first.history, &attempt([lost()]), now(), MIDDLE);
    assert_eq!(second.fate, Fate::Held { reason: Reason::OutcomeUnknown });
}

#[test]
fn an_unknown_outcome_is_held_at_once_where_the_operators_want_it_so() {
    let settings = Settings { on_unknown: OnUnknown::Hold, ..Settings::default() };
    let verdict = decide(&settings, &History::default(), &attempt([lost()]), now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Held { reason: Reason::OutcomeUnknown });
}

#[test]
fn a_dispatcher_that_died_while_sending_counts_as_an_unknown_outcome() {
    let settings = Settings::default();
    let first = unknown(&settings, History::default(), now(), MIDDLE);
    assert_eq!(first.fate, Fate::Deferred { reason: Reason::OutcomeUnknown, next_attempt: after(MINUTE) });
    assert_eq!(unknown(&settings, first.history, now(), MIDDLE).fate, Fate::Held { reason: Reason::OutcomeUnknown });
}

#[test]
fn pauses_double_up_to_the_maximum_and_vary_by_a_quarter() {
    let settings = Settings::default();
    let minutes = |attempts| pause(&settings, attempts, MIDDLE).as_secs() / 60;
    assert_eq!((1..=10).map(minutes).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 128, 240, 240]);
    assert_eq!(minutes(u32::MAX), 240);
    assert_eq!(pause(&settings, 1, 0.0).as_secs(), 45);
    assert_eq!(pause(&settings, 1, 1.0).as_secs(), 75);
}

#[test]
fn the_reason_for_waiting_tells_the_smarthosts_pace_from_its_absence() {
    let reason = |scope, cause| {
        let outcomes = attempt([RecipientOutcome::Deferred(trouble(scope, cause))]);
        match decide(&Settings::default(), &History::default(), &outcomes, now(), MIDDLE).fate {
            Fate::Deferred { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason(Scope::Relay, Cause::Reply(reply(451, Some((4, 7, 1))))), Reason::Throttled);
    assert_eq!(reason(Scope::Relay, Cause::Timeout), Reason::RelayUnavailable);
    assert_eq!(reason(Scope::Message, Cause::Closed("broke".to_owned())), Reason::RelayUnavailable);
    assert_eq!(reason(Scope::Message, Cause::Reply(reply(451, Some((4, 6, 0))))), Reason::Refused);
}

#[test]
fn a_limit_of_our_own_names_itself_as_the_reason() {
    let cause = Cause::Local(Reason::TooLarge, "41 MB, the smarthost takes 40 MB".to_owned());
    let outcomes = attempt([RecipientOutcome::Refused(trouble(Scope::Message, cause))]);
    let verdict = decide(&Settings::default(), &History::default(), &outcomes, now(), MIDDLE);
    assert_eq!(verdict.fate, Fate::Failed { reason: Reason::TooLarge });
}

#[test]
fn an_excused_refusal_defers() {
    let outcomes = excused(&attempt([refused(), refused()]));
    let verdict = decide(&Settings::default(), &History::default(), &outcomes, now(), MIDDLE);
    assert!(matches!(verdict.fate, Fate::Deferred { reason: Reason::Throttled, .. }), "{:?}", verdict.fate);
}
