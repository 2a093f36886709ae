//! Logging in (RFC 4954): PLAIN, else LOGIN, and never a password where somebody could listen or stand between.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};

use super::wire::Wire;
use super::{Announced, Login, classify};
use crate::outcome::{Cause, Reason, Reply, Scope, Stage, Trouble};

/// Whether a password may be sent. TLS with an unchecked certificate protects from nobody who stands between.
fn may_send_password(verified_tls: bool, peer: IpAddr) -> bool {
    verified_tls || peer.to_canonical().is_loopback()
}

/// Logs in, and says in [`Trouble`] why not. Reads the password file anew.
pub(super) async fn log_in(
    wire: &mut Wire,
    login: &Login,
    announced: &Announced,
    verified_tls: bool,
    limit: Duration,
) -> Result<(), Trouble> {
    let peer = wire.peer().ip();
    if !may_send_password(verified_tls, peer) {
        return Err(local(format!(
            "no password is sent to {peer} without verified TLS: set tls to starttls or implicit"
        )));
    }
    let offers = |mechanism: &Mechanism| announced.auth.iter().any(|offered| *offered == mechanism.to_string());
    let Some(mechanism) = [Mechanism::Plain, Mechanism::Login].into_iter().find(offers) else {
        let why = match announced.auth.as_slice() {
            [] => "the smarthost offers no login, and a username is configured".to_owned(),
            others => format!("the smarthost offers {} to log in, and neither PLAIN nor LOGIN", others.join(", ")),
        };
        return Err(Trouble { stage: Stage::Auth, scope: Scope::Relay, cause: Cause::Protocol(why) });
    };
    let password = password(login)?;
    let credentials = Credentials::new(login.username.clone(), password.clone());
    wire.set_secret(true);
    let mut dialogue = Dialogue { wire, credentials, limit };
    let said = match mechanism {
        Mechanism::Plain => dialogue.plain().await,
        _ => dialogue.login().await,
    };
    wire.set_secret(false);
    let reply = said?;
    if reply.code == 235 {
        return Ok(());
    }
    Err(classify::before_mail(Stage::Auth, without(reply, login, &password)))
}

struct Dialogue<'a> {
    wire: &'a mut Wire,
    credentials: Credentials,
    limit: Duration,
}

impl Dialogue<'_> {
    /// RFC 4616, with the initial response.
    async fn plain(&mut self) -> Result<Reply, Trouble> {
        let response = self.response(Mechanism::Plain, None)?;
        self.say(&format!("AUTH PLAIN {response}\r\n"), "AUTH PLAIN").await
    }

    /// The challenges are words for a person and differ from server to server; their order does not.
    async fn login(&mut self) -> Result<Reply, Trouble> {
        let mut reply = self.say("AUTH LOGIN\r\n", "AUTH LOGIN").await?;
        for challenge in ["Username:", "Password:"] {
            if reply.code != 334 {
                break;
            }
            let response = self.response(Mechanism::Login, Some(challenge))?;
            reply = self.say(&format!("{response}\r\n"), challenge).await?;
        }
        Ok(reply)
    }

    fn response(&self, mechanism: Mechanism, challenge: Option<&str>) -> Result<String, Trouble> {
        let response = mechanism.response(&self.credentials, challenge).map_err(|error| local(error.to_string()))?;
        Ok(BASE64_STANDARD.encode(response))
    }

    async fn say(&mut self, line: &str, shown: &str) -> Result<Reply, Trouble> {
        tracing::debug!(target: super::LOG, peer = %self.wire.peer(), "C: {shown} (hidden)");
        self.wire.write_unlogged(line, self.limit).await;
        self.wire.reply(self.limit).await.map_err(|cause| Trouble { stage: Stage::Auth, scope: Scope::Relay, cause })
    }
}

/// Read now, so that a changed file needs no restart. It is small and on this machine, so this blocks nobody for long.
fn password(login: &Login) -> Result<String, Trouble> {
    login.password.read().map_err(|error| local(error.to_string()))
}

/// A server that repeats the password in its reply, as it is or as it came, must not bring it into a log.
fn without(mut reply: Reply, login: &Login, password: &str) -> Reply {
    let encoded = [password.to_owned(), format!("\0{}\0{password}", login.username)].map(|s| BASE64_STANDARD.encode(s));
    let mut shapes = encoded.iter().map(String::as_str).chain([password]);
    if !password.is_empty() && shapes.any(|shape| reply.text.contains(shape)) {
        reply.text = "(the reply repeats the password)".into();
    }
    reply
}

fn local(why: String) -> Trouble {
    Trouble { stage: Stage::Auth, scope: Scope::Relay, cause: Cause::Local(Reason::RelayUnavailable, why) }
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
