//! From a host name to a session that can take a mail: connect, greeting, EHLO, STARTTLS, EHLO, AUTH.
//!
//! All trouble here is the relay's ([`Scope::Relay`]).

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use lettre::transport::smtp::commands::{Ehlo, Starttls};
use lettre::transport::smtp::extension::ClientId;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::wire::{Stream, Wire};
use super::{Announced, Relay, Tls, auth, classify, reply, tls};
use crate::outcome::{Cause, Scope, Stage, Trouble};

/// Makes a connection on which MAIL may follow.
pub(super) async fn connect(relay: &Relay) -> Result<(Wire, Announced), Trouble> {
    let settings = &relay.settings;
    let limits = &settings.timeouts;
    let (stream, peer) = dial(&settings.host, settings.port, limits.connect).await?;
    let mut wire = Wire::new(Box::new(stream), peer, relay.shown.clone());
    let mut secured = Secured::default();
    if settings.tls == Tls::Implicit {
        (wire, secured) = encrypt(relay, wire).await?;
    }
    let greeting = wire.reply(limits.greeting).await.map_err(at(Stage::Greeting))?;
    if greeting.code != 220 {
        return Err(classify::before_mail(Stage::Greeting, greeting));
    }
    let clock = reply::clock(&greeting.text);
    let clock_ahead = clock.map(|clock| clock.duration_since(Timestamp::now()));
    let mut announced = ehlo(relay, &mut wire).await?;
    match settings.tls {
        Tls::Starttls if !announced.starttls => {
            let why = "the smarthost does not offer STARTTLS, which tls = \"starttls\" requires";
            return Err(at(Stage::Tls)(Cause::Protocol(why.into())));
        }
        Tls::Starttls | Tls::Opportunistic if announced.starttls => {
            wire.write(&Starttls.to_string(), limits.tls).await;
            let reply = wire.reply(limits.tls).await.map_err(at(Stage::Tls))?;
            if reply.code == 220 {
                (wire, secured) = encrypt(relay, wire).await?;
                announced = ehlo(relay, &mut wire).await?;
            } else if settings.tls == Tls::Starttls || reply.code == 421 {
                return Err(classify::before_mail(Stage::Tls, reply));
            }
        }
        _ => {}
    }
    announced.software = announced.software.or_else(|| reply::software(greeting.text.as_bytes()));
    announced.clock_ahead = clock_ahead;
    announced.certificate_ends = secured.ends;
    relay.note(&announced);
    if let Some(login) = &settings.login {
        auth::log_in(&mut wire, login, &announced, secured.verified, limits.auth).await?;
    }
    Ok((wire, announced))
}

/// Tries each address of the host in turn, `limit` for each.
async fn dial(host: &str, port: u16, limit: Duration) -> Result<(TcpStream, SocketAddr), Trouble> {
    let found = match timeout(limit, lookup_host((host, port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => return Err(at(Stage::Connect)(Cause::Closed(format!("{host} was not found: {error}")))),
        Err(_) => return Err(at(Stage::Connect)(Cause::Closed(format!("{host} was not found in time")))),
    };
    let mut failures = Vec::new();
    for address in found {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A write of ours is a whole flight; waiting for more would only cost the peer's delayed ACK.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(target: super::LOG, peer = %address, "TCP_NODELAY cannot be set: {error}");
                }
                return Ok((stream, address));
            }
            Ok(Err(error)) => failures.push(format!("{address}: {error}")),
            Err(_) => failures.push(format!("{address}: no answer in time")),
        }
    }
    let how = if failures.is_empty() { "the name has no address".into() } else { failures.join("; ") };
    Err(at(Stage::Connect)(Cause::Closed(format!("no connection to {host} port {port}: {how}"))))
}

/// EHLO; HELO where the peer does not know EHLO and nothing that EHLO announces is needed (RFC 5321 §3.2).
async fn ehlo(relay: &Relay, wire: &mut Wire) -> Result<Announced, Trouble> {
    let settings = &relay.settings;
    let limit = settings.timeouts.ehlo;
    wire.write(&Ehlo::new(ClientId::Domain(settings.helo.clone())).to_string(), limit).await;
    let frame = wire.frame(limit).await.map_err(at(Stage::Ehlo))?;
    let mut answer = reply::parse(&frame);
    if answer.code == 250 {
        return Ok(reply::announced(&frame));
    }
    let helo_will_do = settings.tls != Tls::Starttls && settings.login.is_none();
    if helo_will_do && matches!(answer.code, 500 | 501 | 502 | 504) {
        wire.write(&format!("HELO {}\r\n", settings.helo), limit).await;
        answer = wire.reply(limit).await.map_err(at(Stage::Ehlo))?;
        if answer.code == 250 {
            return Ok(Announced::default());
        }
    }
    Err(classify::before_mail(Stage::Ehlo, answer))
}

/// What TLS came to.
#[derive(Default)]
struct Secured {
    /// The peer's certificate was checked.
    verified: bool,
    /// When it ends.
    ends: Option<Timestamp>,
}

/// The handshake.
async fn encrypt(relay: &Relay, wire: Wire) -> Result<(Wire, Secured), Trouble> {
    let (stream, peer) = wire.into_stream().map_err(at(Stage::Tls))?;
    let Some(handshake) = &relay.handshake else {
        return Err(at(Stage::Tls)(Cause::Protocol("TLS is not configured".into())));
    };
    let connecting = handshake.connector.connect(handshake.name.clone(), stream);
    match timeout(relay.settings.timeouts.tls, connecting).await {
        Ok(Ok(encrypted)) => {
            let ends = encrypted.get_ref().1.peer_certificates().and_then(tls::ends);
            let encrypted: Box<dyn Stream> = Box::new(encrypted);
            Ok((Wire::new(encrypted, peer, relay.shown.clone()), Secured { verified: handshake.verified, ends }))
        }
        Ok(Err(error)) => {
            let by_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            Err(at(Stage::Tls)(match by_tls {
                Some(by_tls) => Cause::Protocol(tls::explain(by_tls, &relay.settings)),
                None => Cause::Closed(format!("TLS with {} ({peer}) failed: {error}", relay.settings.host)),
            }))
        }
        Err(_) => Err(at(Stage::Tls)(Cause::Timeout)),
    }
}

fn at(stage: Stage) -> impl FnOnce(Cause) -> Trouble {
    move |cause| Trouble { stage, scope: Scope::Relay, cause }
}
