//! PIPELINING (RFC 2920) as two abilities, each with a trust of its own: commands of one envelope in one write, and the
//! next envelope in the same write as the final dot.
//!
//! RFC 2920 §3.1 allows both, and much software keeps only the first. What a smarthost teaches us expires, because
//! software is replaced and one odd reply proves little.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::announced::Announced;
use super::log::LOG;

/// `relay.pipelining` of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pipelining {
    /// The commands of one envelope to everything that offers PIPELINING, and behind the final dot only to software that
    /// keeps such commands (Postfix, Exim).
    #[default]
    Auto,
    /// Behind the final dot to everything that offers PIPELINING.
    Full,
    /// The commands of one envelope, and nothing behind the final dot.
    Commands,
    Off,
}

/// The form of pipelining in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipeliningMode {
    /// The next envelope travels with the final dot.
    Full,
    /// MAIL, RCPT and DATA travel together.
    Commands,
    /// One command at a time.
    Off,
}

impl PipeliningMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Commands => "commands",
            Self::Off => "off",
        }
    }
}

/// Software that keeps commands behind the final dot, by the name in its greeting or EHLO reply. The tests run against
/// each of these.
///
/// Others do harm: Dovecot's submission proxy (2.3.19, 2.4.1) panics on such commands after it has relayed the mail, so
/// that the mail comes twice; Courier (1.4.1) drops them, so that the connection stalls for the time limit of MAIL;
/// Haraka (3.3.4) answers 503 on purpose.
pub(super) const KNOWN: [&str; 2] = ["Postfix", "Exim"];

/// Transactions without the ability after a flight that was lost, before it is tried again.
const REST: u32 = 16;

/// Time for which the commands of an envelope go out one by one after the smarthost has shown that it does not keep
/// PIPELINING. A further try costs one mail a new connection.
const COMMANDS_OFF: Duration = Duration::from_secs(3_600);

/// The same for commands behind the final dot. Longer, because a smarthost that drops them stalls the connection for
/// the time limit of MAIL, which is 5 minutes.
const AHEAD_OFF: Duration = Duration::from_secs(24 * 3_600);

/// The experience with one smarthost, shared by all connections to it.
#[derive(Debug)]
pub(super) struct Trust {
    wanted: Pipelining,
    /// MAIL, RCPT and DATA in one write.
    pub commands: Ability,
    /// The next envelope behind the final dot.
    pub ahead: Ability,
}

impl Trust {
    pub fn new(wanted: Pipelining) -> Self {
        Self {
            wanted,
            commands: Ability::new("commands in one write", COMMANDS_OFF),
            ahead: Ability::new("commands behind the final dot", AHEAD_OFF),
        }
    }

    /// The form that may be used on a connection whose peer has announced this, and the reason for it.
    pub fn mode(&self, announced: &Announced, now: Instant) -> (PipeliningMode, String) {
        use PipeliningMode::{Commands, Full, Off};
        if self.wanted == Pipelining::Off {
            return (Off, "relay.pipelining = \"off\"".into());
        }
        if !announced.pipelining {
            return (Off, "the smarthost does not offer PIPELINING".into());
        }
        if let Some(why) = self.commands.obstacle(now) {
            return (Off, why);
        }
        let named = match self.wanted {
            Pipelining::Commands => return (Commands, "relay.pipelining = \"commands\"".into()),
            Pipelining::Full => "relay.pipelining = \"full\"".to_owned(),
            Pipelining::Auto | Pipelining::Off => match announced.software {
                Some(name) => format!("the smarthost is {name}, which keeps commands behind the final dot"),
                None => {
                    let why = format!(
                        "the smarthost does not name itself as software that is known to keep commands behind the final \
                         dot ({})",
                        KNOWN.join(", ")
                    );
                    return (Commands, why);
                }
            },
        };
        match self.ahead.obstacle(now) {
            Some(why) => (Commands, why),
            None => (Full, named),
        }
    }
}

/// One ability of the smarthost.
///
/// A reply out of turn proves that the smarthost lacks it. A connection that was lost while replies were due proves
/// nothing, so it counts only when it happens twice with no success between. Where a smarthost goes away, all connections
/// are lost at once, and that counts once.
#[derive(Debug)]
pub(super) struct Ability {
    name: &'static str,
    /// For how long a proof to the contrary holds.
    off_for: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Until when it is not used, and the proof that it does not work.
    off: Option<(Instant, String)>,
    lost: u32,
    rest: u32,
}

impl Ability {
    fn new(name: &'static str, off_for: Duration) -> Self {
        Self { name, off_for, state: Mutex::default() }
    }

    /// Why the ability may not be used at this time.
    fn obstacle(&self, now: Instant) -> Option<String> {
        let state = self.state();
        match &state.off {
            Some((until, why)) if now < *until => {
                let minutes = (*until - now).as_secs().div_ceil(60);
                Some(format!("{why}; {} are tried again in {minutes} min", self.name))
            }
            _ if state.rest > 0 => {
                Some(format!("a connection was lost; {} are tried again after {} mails", self.name, state.rest))
            }
            _ => None,
        }
    }

    /// A transaction went without the ability.
    pub fn rested(&self) {
        let mut state = self.state();
        state.rest = state.rest.saturating_sub(1);
    }

    /// It worked.
    pub fn kept(&self) {
        self.state().lost = 0;
    }

    /// The connection was lost while the replies were due.
    pub fn lost(&self, now: Instant) {
        let mut state = self.state();
        if state.rest == 0 {
            // Else it was out already when the one before was lost: none goes out in a rest.
            state.lost += 1;
        }
        state.rest = REST;
        if state.lost > 1 {
            self.give_up(&mut state, now, "two connections in a row were lost with it");
        }
    }

    /// It was answered out of turn, or not at all: `why`.
    pub fn broken(&self, now: Instant, why: &str) {
        self.give_up(&mut self.state(), now, why);
    }

    fn give_up(&self, state: &mut State, now: Instant, why: &str) {
        if state.off.as_ref().is_none_or(|(until, _)| *until <= now) {
            let minutes = self.off_for.as_secs() / 60;
            warn!(
                target: LOG,
                "the smarthost announces PIPELINING and does not keep it for {}: {why}; going on without for {minutes} min",
                self.name
            );
        }
        *state = State { off: Some((now + self.off_for, why.to_owned())), lost: 0, rest: 0 };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(pipelining: bool, software: Option<&'static str>) -> Announced {
        Announced { pipelining, software, ..Announced::default() }
    }

    fn allows(ability: &Ability, now: Instant) -> bool {
        ability.obstacle(now).is_none()
    }

    #[test]
    fn the_mode_follows_from_the_setting_the_offer_and_the_name() {
        use Pipelining::{Auto, Commands, Full, Off};
        let now = Instant::now();
        for (wanted, offered, software, mode, reason) in [
            (Auto, true, Some("Postfix"), PipeliningMode::Full, "Postfix"),
            (Auto, true, Some("Exim"), PipeliningMode::Full, "Exim"),
            (Auto, true, None, PipeliningMode::Commands, "does not name itself"),
            (Auto, false, Some("Postfix"), PipeliningMode::Off, "does not offer"),
            (Full, true, None, PipeliningMode::Full, "\"full\""),
            (Full, false, None, PipeliningMode::Off, "does not offer"),
            (Commands, true, Some("Postfix"), PipeliningMode::Commands, "\"commands\""),
            (Off, true, Some("Postfix"), PipeliningMode::Off, "\"off\""),
        ] {
            let (found, why) = Trust::new(wanted).mode(&announced(offered, software), now);
            assert_eq!(found, mode, "{wanted:?} {offered} {software:?}");
            assert!(why.contains(reason), "{why}");
        }
    }

    #[test]
    fn what_breaks_behind_the_dot_leaves_the_commands_alone_and_both_expire() {
        let (trust, now) = (Trust::new(Pipelining::Full), Instant::now());
        let peer = announced(true, None);
        trust.ahead.broken(now, "503 on purpose");
        let (mode, why) = trust.mode(&peer, now);
        assert_eq!(mode, PipeliningMode::Commands);
        assert!(why.contains("503 on purpose") && why.contains("1440 min"), "{why}");
        trust.commands.broken(now, "250- of odd form");
        assert_eq!(trust.mode(&peer, now).0, PipeliningMode::Off);
        assert_eq!(trust.mode(&peer, now + COMMANDS_OFF - Duration::from_millis(1)).0, PipeliningMode::Off);
        assert_eq!(trust.mode(&peer, now + COMMANDS_OFF).0, PipeliningMode::Commands);
        assert_eq!(trust.mode(&peer, now + AHEAD_OFF).0, PipeliningMode::Full);
        // A further proof counts from its own time.
        trust.commands.broken(now + COMMANDS_OFF, "again");
        assert_eq!(trust.mode(&peer, now + COMMANDS_OFF + Duration::from_secs(1)).0, PipeliningMode::Off);
    }

    #[test]
    fn one_lost_flight_is_forgiven_after_a_rest_and_two_in_a_row_are_not() {
        let (trust, now) = (Trust::new(Pipelining::Full), Instant::now());
        let ability = &trust.commands;
        let rest = || (0..100).take_while(|_| !allows(ability, now)).map(|_| ability.rested()).count();
        assert_eq!(rest(), 0);
        ability.lost(now);
        assert_eq!(rest(), REST as usize);
        ability.kept();
        ability.lost(now);
        assert_eq!(rest(), REST as usize);
        ability.lost(now);
        assert_eq!(rest(), 100);
        assert!(allows(ability, now + COMMANDS_OFF));
    }

    #[test]
    fn flights_that_are_lost_together_count_once() {
        let (trust, now) = (Trust::new(Pipelining::Full), Instant::now());
        let ability = &trust.ahead;
        (0..4).for_each(|_| ability.lost(now));
        (0..REST).for_each(|_| ability.rested());
        assert!(allows(ability, now));
        ability.lost(now);
        (0..REST).for_each(|_| ability.rested());
        assert!(!allows(ability, now));
    }

    #[test]
    fn a_reply_out_of_turn_is_not_forgiven_by_a_success() {
        let (trust, now) = (Trust::new(Pipelining::Full), Instant::now());
        trust.commands.broken(now, "503");
        trust.commands.kept();
        assert!(!allows(&trust.commands, now));
    }
}
