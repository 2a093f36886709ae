//! Which refusals make a streak, whose it is, and how long it lasts.

use std::time::Duration;

use mailqueue::dispatch::refusal_streak::{
    Consequence, Heard, Offered, PATIENCE, RefusalStreak, Ruling, Sender, Turn, heard, refusal,
};
use mailqueue::outcome::{Attempt, Cause, RecipientOutcome, Reply, Scope, Stage, Trouble};
use tokio::time::Instant;

/// No jitter: pauses are exactly as long as they are meant to be.
const MIDDLE: f64 = 0.5;

fn sender(name: &str) -> Sender {
    Some(format!("{name}@example.org").parse().unwrap())
}

fn no(essence: &str) -> Heard {
    Heard::Refused { essence: essence.to_owned(), said: format!("{essence} said") }
}

/// A streak of numbered mails, and a clock for it.
struct Bench {
    streak: RefusalStreak<u32>,
    now: Instant,
    count: u32,
}

impl Bench {
    fn new() -> Self {
        Self { streak: RefusalStreak::default(), now: Instant::now(), count: 0 }
    }

    /// The next mail of a sender, while mails of others are ready or not.
    fn mail(&mut self, name: &str, heard: Heard, others: bool) -> Ruling<u32> {
        self.answered(name, self.now, heard, others)
    }

    /// Likewise, where the mail was offered some time before it was answered.
    fn answered(&mut self, name: &str, begun: Instant, heard: Heard, others: bool) -> Ruling<u32> {
        self.count += 1;
        let offered = Offered { item: self.count, sender: &sender(name), queue: 0, begun };
        self.streak.take(offered, heard, || others, self.now, MIDDLE)
    }

    /// Takes `count` refused mails of this sender; returns the last one's ruling.
    fn refused(&mut self, name: &str, count: usize, others: bool) -> Ruling<u32> {
        for _ in 1..count {
            assert_eq!(self.mail(name, no("550 no"), others).consequences, []);
        }
        self.mail(name, no("550 no"), others)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn turn(&self, name: &str, queue: usize) -> Option<Turn> {
        self.streak.turn(&sender(name), queue, self.now)
    }

    /// The mail that tries whether the pause is over is refused again: for how long the next one is.
    fn tried_in_vain(&mut self, name: &str, others: bool) -> Duration {
        self.streak.goes_out(&sender(name), self.now);
        let ruling = self.mail(name, no("550 no"), others);
        assert_eq!(ruling.excused.len(), 1);
        match ruling.consequences.as_slice() {
            [Consequence::Sender { pause, .. }, ..] => *pause,
            other => panic!("{other:?}"),
        }
    }
}

fn paused(ruling: &Ruling<u32>) -> Vec<String> {
    let name = |trip: &Consequence| match trip {
        Consequence::Relay { .. } => "relay".to_owned(),
        Consequence::Sender { sender, .. } => {
            sender.as_ref().map_or("<>".to_owned(), |sender| sender.user().to_owned())
        }
    };
    ruling.consequences.iter().map(name).collect()
}

#[test]
fn ten_refusals_of_one_sender_pause_it_while_others_have_mails() {
    let mut bench = Bench::new();
    let ruling = bench.refused("a", 10, true);
    assert_eq!(paused(&ruling), ["a"]);
    assert_eq!((ruling.settled, ruling.excused), (vec![], (1..=10).collect()));
    assert_eq!(bench.turn("a", 0), None);
    assert_eq!(bench.turn("b", 0), Some(Turn::Now));
    let said = bench.streak.paused(&sender("a"), bench.now).map(|(left, said)| (left.as_millis(), said.to_owned()));
    assert_eq!(said, Some((1000, "550 no said".to_owned())));
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.streak.paused(&sender("a"), bench.now), None);
}

#[test]
fn nine_refusals_and_an_acceptance_are_nine_refusals() {
    let mut bench = Bench::new();
    assert_eq!(paused(&bench.refused("a", 9, true)), [""; 0]);
    assert_eq!(bench.mail("a", Heard::Accepted, true).settled, [10]);
    bench.pass(PATIENCE - Duration::from_millis(1));
    assert_eq!(paused(&bench.refused("a", 1, true)), [""; 0], "they count from one again");
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.streak.ripe(bench.now), (1..=9).collect::<Vec<_>>(), "what was accepted meanwhile has ended them");
    bench.pass(PATIENCE);
    assert_eq!(bench.mail("a", Heard::Accepted, true).settled, [11, 12]);
    assert!(bench.streak.is_quiet());
}

/// A quota ends between two mails, and the answers to both come in another order.
#[test]
fn an_acceptance_of_a_mail_that_was_offered_before_ends_nothing() {
    let mut bench = Bench::new();
    let before = bench.now;
    bench.pass(Duration::from_millis(5));
    bench.refused("a", 5, false);
    assert_eq!(bench.answered("a", before, Heard::Accepted, false).settled, [6]);
    let ruling = bench.refused("a", 5, false);
    assert_eq!(paused(&ruling), ["a", "relay"]);
    assert_eq!(ruling.excused.len(), 10);
}

#[test]
fn what_was_refused_just_before_an_acceptance_is_excused_with_a_streak_that_follows_at_once() {
    let mut bench = Bench::new();
    bench.refused("a", 3, true);
    bench.mail("a", Heard::Accepted, true);
    let ruling = bench.refused("a", 10, true);
    assert_eq!((paused(&ruling), ruling.excused.len()), (vec!["a".to_owned()], 13));
}

#[test]
fn ten_refusals_of_the_only_sender_take_the_relay_down_and_its_pause_outlasts_the_relays() {
    let mut bench = Bench::new();
    let ruling = bench.refused("a", 10, false);
    assert_eq!(paused(&ruling), ["a", "relay"]);
    assert_eq!(ruling.excused, (1..=10).collect::<Vec<_>>());
    assert_eq!(bench.streak.paused(&sender("a"), bench.now).unwrap().0, Duration::from_secs(3));
}

#[test]
fn ten_refusals_over_several_senders_take_the_relay_down() {
    let mut bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.refused(name, 3, true);
    }
    let ruling = bench.refused("a", 1, true);
    assert_eq!(paused(&ruling), ["relay"]);
    let mut excused = ruling.excused;
    excused.sort();
    assert_eq!(excused, (1..=10).collect::<Vec<_>>(), "those of all senders");
    assert_eq!(paused(&bench.refused("d", 1, true)), ["relay"], "once it is clear, one more is enough");
    assert_eq!(bench.turn("d", 0), Some(Turn::AfterOthers));
    assert_eq!(bench.turn("e", 0), Some(Turn::Now), "after the pause a sender goes first that was not refused");
    bench.mail("e", Heard::Accepted, true);
    assert_eq!(bench.turn("d", 0), Some(Turn::Now));
}

#[test]
fn acceptances_of_others_end_no_senders_row_and_keep_the_relay_up() {
    let mut bench = Bench::new();
    for _ in 0..9 {
        bench.refused("a", 1, false);
        assert_eq!(bench.mail("b", Heard::Accepted, false).settled.len(), 1);
    }
    assert_eq!(paused(&bench.refused("a", 1, false)), ["a"]);
}

#[test]
fn another_refusal_begins_another_row() {
    let mut bench = Bench::new();
    bench.refused("a", 9, true);
    let ruling = bench.mail("a", no("554 spam"), true);
    assert_eq!((ruling.settled, ruling.consequences), ((1..=9).collect(), vec![]));
    for _ in 0..8 {
        assert_eq!(bench.mail("a", no("554 spam"), true).consequences, []);
    }
    assert_eq!(paused(&bench.mail("a", no("554 spam"), true)), ["a"]);
}

#[test]
fn what_says_nothing_about_rights_neither_ends_a_row_nor_lengthens_it() {
    let mut bench = Bench::new();
    bench.refused("a", 9, true);
    assert_eq!(
        bench.mail("a", Heard::Other, true),
        Ruling { settled: vec![10], excused: vec![], consequences: vec![] }
    );
    assert_eq!(paused(&bench.refused("a", 1, true)), ["a"]);
}

#[test]
fn after_a_pause_one_mail_is_tried_and_pauses_double_up_to_five_minutes() {
    let mut bench = Bench::new();
    bench.refused("a", 10, true);
    let mut pause = Duration::from_secs(1);
    for expected in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        bench.pass(pause);
        assert_eq!(bench.turn("a", 0), Some(Turn::Last));
        assert_eq!(bench.turn("a", 1), Some(Turn::AfterOthers), "another queue's mail goes before");
        pause = bench.tried_in_vain("a", true);
        assert_eq!(pause.as_secs(), expected);
        assert_eq!(bench.turn("a", 0), None);
    }
}

#[test]
fn while_one_mail_is_tried_no_other_of_the_sender_goes_out() {
    let mut bench = Bench::new();
    bench.refused("a", 10, true);
    bench.pass(Duration::from_secs(1));
    bench.streak.goes_out(&sender("a"), bench.now);
    assert_eq!(bench.turn("a", 0), None);
    bench.streak.came_back(&sender("a"));
    assert_eq!(bench.turn("a", 0), Some(Turn::Last), "it was not offered");
    bench.streak.goes_out(&sender("a"), bench.now);
    bench.mail("a", Heard::Other, true);
    assert_eq!(bench.turn("a", 0), Some(Turn::Last), "it says nothing about rights");
    bench.streak.goes_out(&sender("a"), bench.now);
    bench.mail("a", Heard::Accepted, true);
    assert_eq!(bench.turn("a", 0), Some(Turn::Now));
}

#[test]
fn a_trial_that_takes_long_is_a_pause_for_the_senders_other_mails() {
    let mut bench = Bench::new();
    bench.refused("a", 10, true);
    bench.pass(Duration::from_secs(1));
    bench.streak.goes_out(&sender("a"), bench.now);
    let left = |bench: &Bench| bench.streak.paused(&sender("a"), bench.now).map(|(left, _)| left.as_secs());
    bench.pass(Duration::from_millis(1999));
    assert_eq!(left(&bench), None, "most are answered by now");
    bench.pass(Duration::from_millis(1));
    assert_eq!(left(&bench), Some(2));
    bench.pass(Duration::from_secs(8));
    assert_eq!(left(&bench), Some(10), "as long again as it has taken");
    bench.pass(Duration::from_secs(600));
    assert_eq!(left(&bench), Some(60));
    bench.mail("a", Heard::Accepted, true);
    assert_eq!(left(&bench), None);
}

#[test]
fn mails_that_were_under_way_when_the_pause_began_change_nothing() {
    let mut bench = Bench::new();
    bench.refused("a", 10, true);
    // No mail of another sender is ready any more: they are all under way.
    let ruling = bench.refused("a", 1, false);
    assert_eq!((paused(&ruling), ruling.excused), (vec![], vec![11]));
    assert_eq!(bench.streak.paused(&sender("a"), bench.now).unwrap().0, Duration::from_secs(1));
}

#[test]
fn refusals_that_wait_are_settled_when_nothing_more_comes_and_still_count() {
    let mut bench = Bench::new();
    assert!(bench.streak.is_idle());
    bench.refused("a", 5, true);
    assert!(!bench.streak.is_idle());
    bench.pass(PATIENCE - Duration::from_millis(1));
    assert!(bench.streak.ripe(bench.now).is_empty());
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.streak.ripe(bench.now), [1, 2, 3, 4, 5]);
    assert!(bench.streak.is_idle() && !bench.streak.is_quiet());
    bench.refused("a", 2, true);
    assert_eq!(bench.streak.flush(), [6, 7]);
    let ruling = bench.refused("a", 3, true);
    assert_eq!((paused(&ruling), ruling.excused), (vec!["a".to_owned()], vec![8, 9, 10]));
}

#[test]
fn other_senders_mails_do_not_make_refusals_wait_for_ever() {
    let mut bench = Bench::new();
    bench.refused("a", 2, true);
    bench.pass(PATIENCE);
    assert_eq!(bench.mail("b", Heard::Accepted, true).settled, [1, 2, 3]);
}

#[test]
fn a_sender_is_forgotten_after_an_hour_and_of_very_many_the_oldest() {
    let mut bench = Bench::new();
    bench.refused("a", 9, true);
    bench.pass(Duration::from_secs(3600));
    bench.streak.ripe(bench.now);
    assert!(bench.streak.is_quiet());
    for n in 0..1000 {
        bench.pass(Duration::from_millis(1));
        bench.mail(&format!("s{n}"), no(&format!("550 {n}")), true);
    }
    assert_eq!(bench.turn("s0", 0), Some(Turn::Now));
    let waiting = bench.streak.flush().len();
    bench.mail("one-more", no("550 one more"), true);
    assert!(waiting <= 1000 && bench.streak.flush().len() == 1);
}

#[test]
fn a_sender_that_is_known_drives_no_other_out() {
    let mut bench = Bench::new();
    for n in 0..1000 {
        bench.pass(Duration::from_millis(1));
        bench.refused(&format!("s{n}"), 1, true);
    }
    // They trip together. What each has against it alone is counted all the same.
    let counts = |ruling: Ruling<u32>| paused(&ruling).contains(&"s0".to_owned());
    let needed = (2..=20).find(|_| counts(bench.mail("s0", no("550 no"), true)));
    assert_eq!(needed, Some(10));
}

fn reply(text: &str) -> Reply {
    let (code, rest) = text.split_once(' ').unwrap_or((text, ""));
    let enhanced = rest.split_once(' ').map_or(rest, |(first, _)| first);
    let numbers: Vec<u16> = enhanced.split('.').filter_map(|number| number.parse().ok()).collect();
    let enhanced = match numbers.as_slice() {
        [class, subject, detail] => Some((*class as u8, *subject, *detail)),
        _ => None,
    };
    Reply { code: code.parse().unwrap(), enhanced, text: "words".to_owned() }
}

fn attempt(stage: Stage, replies: &[&str]) -> Attempt {
    let outcome = |text: &&str| {
        let reply = reply(text);
        let trouble = |reply| Trouble { stage, scope: Scope::Message, cause: Cause::Reply(reply) };
        match reply.code / 100 {
            2 => RecipientOutcome::Accepted(reply),
            4 => RecipientOutcome::Deferred(trouble(reply)),
            _ => RecipientOutcome::Refused(trouble(reply)),
        }
    };
    let address = |n: usize| format!("r{n}@example.org").parse().unwrap();
    let outcomes = replies.iter().map(outcome).enumerate().map(|(n, outcome)| (address(n), outcome)).collect();
    Attempt { outcomes, ..Attempt::default() }
}

#[test]
fn at_mail_data_and_the_dot_any_refusal_counts() {
    for stage in [Stage::Mail, Stage::Data, Stage::FinalDot] {
        for text in ["550", "550 5.1.1", "552 5.2.2", "553", "504 5.5.2", "554 5.6.0", "530 5.7.0", "552 5.3.4"] {
            assert!(refusal(&attempt(stage, &[text, text])).is_some(), "{stage:?} {text}");
        }
        assert!(refusal(&attempt(stage, &["451 4.7.1"])).is_none());
    }
}

#[test]
fn at_rcpt_a_refusal_counts_only_where_it_can_be_about_the_sender_or_the_account() {
    for (text, counts) in [
        ("550 5.7.1", true),
        ("554 5.7.60", true),
        ("530 5.7.0", true),
        ("550 5.4.5", true),
        ("550 5.2.0", true),
        ("550 5.1.7", true),
        ("550 5.1.8", true),
        ("504 5.5.2", true),
        ("552", true),
        ("552 5.2.0", true),
        ("552 5.3.4", true),
        ("550 5.1.0", false),
        ("550 5.1.1", false),
        ("550 5.1.2", false),
        ("553 5.1.3", false),
        ("551 5.1.6", false),
        ("550 5.1.10", false),
        ("550 5.2.1", false),
        ("550 5.2.2", false),
        ("552 5.2.2", false),
        ("552 5.2.1", false),
        ("550 5.4.4", false),
        ("501 5.5.2", false),
        ("504 5.5.4", false),
        ("504", false),
        ("550", false),
        ("551", false),
        ("553", false),
        ("554", false),
        ("450 4.7.1", false),
    ] {
        assert_eq!(refusal(&attempt(Stage::Rcpt, &[text])).is_some(), counts, "{text}");
    }
}

#[test]
fn only_a_whole_mail_that_is_refused_in_one_way_counts() {
    let of = |replies: &[&str]| heard(&attempt(Stage::Rcpt, replies));
    assert!(matches!(of(&["550 5.7.1", "550 5.7.1"]), Heard::Refused { .. }));
    assert_eq!(of(&["550 5.7.1", "550 5.7.2"]), Heard::Other);
    assert_eq!(of(&["550 5.7.1", "550 5.1.1"]), Heard::Other);
    assert_eq!(of(&["250", "550 5.7.1"]), Heard::Accepted, "somebody has it");
    assert_eq!(heard(&Attempt::default()), Heard::Other);
    let Heard::Refused { essence, said } = of(&["550 5.7.1"]) else { panic!() };
    assert_eq!((essence.as_str(), said.as_str()), ("550 5.7.1 words", "550 5.7.1 words (at rcpt)"));
}
