//! Logging in (RFC 4954): with a password by PLAIN or LOGIN, with an access token by OAUTHBEARER (RFC 7628) or XOAUTH2;
//! and never where somebody could listen or stand between.

use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::announced::Announced;
use super::log::LOG;
use super::settings::{Auth, Credential, Login, Settings};
use super::wire::Wire;
use super::{classify, reply, token};
use crate::outcome::{Cause, Reason, Reply, Scope, Stage, Trouble};

/// The part of a server's explanation that is shown, in bytes.
const MAX_CHALLENGE: usize = 200;

/// Returns true where a password may be sent. TLS with an unchecked certificate does not protect from a proxy.
fn may_send_password(verified_tls: bool, peer: IpAddr) -> bool {
    verified_tls || peer.to_canonical().is_loopback()
}

/// A way to log in that we know. CRAM-MD5 is none: it wants the server to keep passwords in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mechanism {
    Plain,
    Login,
    OauthBearer,
    Xoauth2,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::OauthBearer => "OAUTHBEARER",
            Self::Xoauth2 => "XOAUTH2",
        }
    }

    fn takes_token(self) -> bool {
        matches!(self, Self::OauthBearer | Self::Xoauth2)
    }
}

impl Login {
    /// The mechanisms that the configuration allows, in the order in which they are tried.
    fn mechanisms(&self) -> &'static [Mechanism] {
        match (self.auth, &self.credential) {
            (Auth::Plain, _) => &[Mechanism::Plain],
            (Auth::Login, _) => &[Mechanism::Login],
            (Auth::Xoauth2, _) | (Auth::Auto, Credential::TokenCommand(_)) => {
                &[Mechanism::OauthBearer, Mechanism::Xoauth2]
            }
            (Auth::Auto, Credential::Secret(_)) => &[Mechanism::Plain, Mechanism::Login],
        }
    }
}

/// Logs in, and says in [`Trouble`] why not. Reads the password file, or runs the token command, each time. A mechanism
/// that the smarthost announces and rejects (504, 534) makes room for the next one.
pub(super) async fn log_in(
    wire: &mut Wire,
    settings: &Settings,
    login: &Login,
    announced: &Announced,
    verified_tls: bool,
) -> Result<(), Trouble> {
    let peer = wire.peer().ip();
    if !may_send_password(verified_tls, peer) {
        return Err(local(format!(
            "no password is sent to {peer} without verified TLS: set tls to starttls or implicit"
        )));
    }
    let offered = |mechanism: &&Mechanism| announced.auth.iter().any(|offered| *offered == mechanism.name());
    let mechanisms = login.mechanisms().iter().filter(offered).copied().collect::<Vec<_>>();
    if mechanisms.is_empty() {
        return Err(protocol(not_offered(login, announced)));
    }
    let secret = secret(login).await?;
    let mut rejections = Vec::new();
    wire.set_secret(true);
    for mechanism in mechanisms {
        let mut dialogue = Dialogue { wire, settings, login, secret: &secret, mechanism, challenge: None };
        let reply = dialogue.run().await?;
        match reply.code {
            235 => {
                wire.set_secret(false);
                return Ok(());
            }
            504 | 534 => rejections.push(format!("AUTH {} is rejected with {reply}", mechanism.name())),
            _ => return Err(dialogue.refusal(reply)),
        }
    }
    Err(protocol(format!(
        "{}; the smarthost offers {}: set relay.auth to a mechanism that it takes",
        rejections.join(", "),
        announced.auth.join(", ")
    )))
}

fn not_offered(login: &Login, announced: &Announced) -> String {
    let ours = login.mechanisms().iter().map(|mechanism| mechanism.name()).collect::<Vec<_>>().join(" or ");
    match announced.auth.as_slice() {
        [] => "the smarthost offers no login, and a username is configured".to_owned(),
        others => format!(
            "the smarthost offers {} to log in, and not {ours}: look at relay.auth{}",
            others.join(", "),
            if login.mechanisms()[0].takes_token() { "" } else { ", or use an access token (relay.token_command)" }
        ),
    }
}

/// One attempt with one mechanism.
struct Dialogue<'a> {
    wire: &'a mut Wire,
    settings: &'a Settings,
    login: &'a Login,
    /// The password or the token.
    secret: &'a str,
    mechanism: Mechanism,
    /// The words of the smarthost in place of taking a token.
    challenge: Option<String>,
}

impl Dialogue<'_> {
    /// Returns the last reply, without our secret.
    async fn run(&mut self) -> Result<Reply, Trouble> {
        let reply = match self.mechanism {
            Mechanism::Login => self.login().await?,
            _ => self.with_initial_response().await?,
        };
        Ok(self.hiding(reply))
    }

    /// A 334 behind an initial response comes from a server that did not read it, and wants it once more; or, where it
    /// has something to say, it explains why a token is refused, and wants an answer before it says so by a code.
    async fn with_initial_response(&mut self) -> Result<Reply, Trouble> {
        let name = self.mechanism.name();
        let response = BASE64_STANDARD.encode(self.response());
        let mut reply = self.say(&format!("AUTH {name} {response}\r\n"), &format!("AUTH {name}")).await?;
        if reply.code == 334 && (!self.mechanism.takes_token() || reply.text.is_empty()) {
            reply = self.say(&format!("{response}\r\n"), name).await?;
        }
        if reply.code == 334 && self.mechanism.takes_token() {
            let said = BASE64_STANDARD.decode(&reply.text).unwrap_or_else(|_| reply.text.into_bytes());
            self.challenge = Some(reply::printable(&said, MAX_CHALLENGE));
            // RFC 7628 §3.2.3 wants one byte of 1, XOAUTH2 nothing.
            let answer = if self.mechanism == Mechanism::OauthBearer { "AQ==\r\n" } else { "\r\n" };
            reply = self.say(answer, "(nothing)").await?;
        }
        Ok(reply)
    }

    /// The challenges are words for a person and differ from server to server; their order does not.
    async fn login(&mut self) -> Result<Reply, Trouble> {
        let mut reply = self.say("AUTH LOGIN\r\n", "AUTH LOGIN").await?;
        for (answer, shown) in [(self.login.username.as_str(), "Username:"), (self.secret, "Password:")] {
            if reply.code != 334 {
                break;
            }
            reply = self.say(&format!("{}\r\n", BASE64_STANDARD.encode(answer)), shown).await?;
        }
        Ok(reply)
    }

    fn response(&self) -> String {
        let (username, secret) = (&self.login.username, self.secret);
        match self.mechanism {
            Mechanism::Plain | Mechanism::Login => format!("\0{username}\0{secret}"),
            Mechanism::OauthBearer => {
                let name = username.replace('=', "=3D").replace(',', "=2C");
                let Settings { host, port, .. } = self.settings;
                format!("n,a={name},\u{1}host={host}\u{1}port={port}\u{1}auth=Bearer {secret}\u{1}\u{1}")
            }
            Mechanism::Xoauth2 => format!("user={username}\u{1}auth=Bearer {secret}\u{1}\u{1}"),
        }
    }

    async fn say(&mut self, line: &str, shown: &str) -> Result<Reply, Trouble> {
        let limit = self.settings.timeouts.auth;
        tracing::debug!(target: LOG, peer = %self.wire.peer(), "C: {shown} (hidden)");
        self.wire.write_unlogged(line, limit).await;
        self.wire.reply(limit).await.map_err(|cause| Trouble { stage: Stage::Auth, scope: Scope::Relay, cause })
    }

    /// A server that repeats the secret in its reply, as it is or as it came, must not bring it into a log.
    fn hiding(&self, mut reply: Reply) -> Reply {
        if self.reveals(&reply.text) {
            reply.text = "(the reply repeats the password)".into();
        }
        reply
    }

    fn reveals(&self, text: &str) -> bool {
        let encoded = [self.secret.to_owned(), self.response()].map(|text| BASE64_STANDARD.encode(text));
        let mut shapes = encoded.iter().map(String::as_str).chain([self.secret]);
        !self.secret.is_empty() && shapes.any(|shape| text.contains(shape))
    }

    /// The login itself was refused. A remedy for passwords stands elsewhere, with the other remedies.
    fn refusal(&self, reply: Reply) -> Trouble {
        if !self.mechanism.takes_token() || !reply.is_permanent() {
            return classify::before_mail(Stage::Auth, reply);
        }
        let challenge = self.challenge.as_deref().filter(|challenge| !self.reveals(challenge));
        let said = challenge.map_or_else(String::new, |challenge| format!(" and says {challenge}"));
        let source = match &self.login.credential {
            Credential::TokenCommand(_) => "what relay.token_command prints",
            Credential::Secret(_) => "the file in relay.password_file",
        };
        protocol(format!(
            "{reply}: the smarthost refuses the access token by {}{said}; look at {source}, and at relay.username",
            self.mechanism.name()
        ))
    }
}

/// Read now, so that a changed file needs no restart. It is small and on this machine, so reading it takes a moment only.
async fn secret(login: &Login) -> Result<String, Trouble> {
    match &login.credential {
        Credential::Secret(secret) => secret.read().map_err(|error| local(error.to_string())),
        Credential::TokenCommand(command) => token::print(command).await.map_err(local),
    }
}

fn local(why: String) -> Trouble {
    Trouble { stage: Stage::Auth, scope: Scope::Relay, cause: Cause::Local(Reason::RelayUnavailable, why) }
}

fn protocol(why: String) -> Trouble {
    Trouble { stage: Stage::Auth, scope: Scope::Relay, cause: Cause::Protocol(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_travels_over_verified_tls_or_not_beyond_this_host() {
        for (verified, peer, expected) in [
            (true, "192.0.2.1", true),
            (false, "192.0.2.1", false),
            (false, "127.0.0.1", true),
            (false, "127.9.9.9", true),
            (false, "::1", true),
            (false, "::ffff:127.0.0.1", true),
            (false, "::ffff:192.0.2.1", false),
            (false, "10.0.0.1", false),
            (false, "2001:db8::1", false),
            (true, "2001:db8::1", true),
        ] {
            assert_eq!(may_send_password(verified, peer.parse().unwrap()), expected, "{verified} {peer}");
        }
    }
}
