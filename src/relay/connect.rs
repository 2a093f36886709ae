//! From a host name to a session that can take a mail: connect, greeting, EHLO, STARTTLS, EHLO, AUTH.
//!
//! All trouble here is the relay's ([`Scope::Relay`]).

use std::net::SocketAddr;

use jiff::Timestamp;
use lettre::transport::smtp::commands::{Ehlo, Starttls};
use lettre::transport::smtp::extension::ClientId;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::announced::Announced;
use super::dial::{Dialing, resolve};
use super::log::LOG;
use super::settings::Tls;
use super::smarthost::Relay;
use super::wire::{Stream, Wire};
use super::{addresses, auth, classify, reply, tls};
use crate::outcome::{Cause, Scope, Stage, Trouble};

/// A connection on which MAIL may follow.
pub(super) struct Connection {
    pub wire: Wire,
    pub announced: Announced,
    /// Why it goes on in the clear, although the smarthost offers TLS: opportunistic TLS failed. There is no login then.
    pub tls_failed: Option<String>,
}

/// Makes a connection to the first address of the host that greets and says what it offers (RFC 5321 §5.1), and logs in
/// there. A refused login is not tried at other addresses: the account is the same, and it might be locked.
pub(super) async fn connect(relay: &Relay) -> Result<Connection, Trouble> {
    let settings = &relay.settings;
    let limit = settings.timeouts.connect;
    let found = match &relay.fixed_addresses {
        Some(addresses) => addresses.clone(),
        None => resolve(&settings.host, settings.port, limit).await.map_err(at(Stage::Connect))?,
    };
    let mut dialing = Dialing::new(relay.addresses.order(&found, Instant::now()), limit);
    let mut failures: Vec<(SocketAddr, Trouble)> = Vec::new();
    while let Some((address, connected)) = dialing.next().await {
        let greeted = match connected {
            Ok(stream) => greet(relay, stream, address).await,
            Err(how) => Err(at(Stage::Connect)(how)),
        };
        match greeted {
            Ok(greeted) => {
                note_address(relay, address, &failures);
                return log_in(relay, greeted).await;
            }
            Err(trouble) => failures.push((address, trouble)),
        }
    }
    Err(worst(relay, failures))
}

/// Notes which address works, and says once which are passed over from here on.
fn note_address(relay: &Relay, address: SocketAddr, failures: &[(SocketAddr, Trouble)]) {
    // An address that could not be tried, because our limit of open files was reached, does not count as failed.
    let failed = failures.iter().filter(|(_, trouble)| !trouble.is_open_files());
    let failed: Vec<_> = failed.map(|(failed, _)| *failed).collect();
    for news in relay.addresses.note(address, &failed, Instant::now()) {
        if let Some((_, trouble)) = failures.iter().find(|(failed, _)| *failed == news) {
            tracing::warn!(
                target: LOG,
                "{news} does not work and is passed over for {} min while another address of {} works ({address}): {}",
                addresses::PASSED_OVER.as_secs() / 60,
                relay.settings.host,
                (relay.shown)(&trouble.to_string())
            );
        }
    }
}

/// Returns the trouble of the address that came furthest; where none could be connected to, that of all. Our own limit
/// of open files comes first, because it says nothing about the smarthost.
fn worst(relay: &Relay, failures: Vec<(SocketAddr, Trouble)>) -> Trouble {
    if let Some((_, ours)) = failures.iter().find(|(_, trouble)| trouble.is_open_files()) {
        return ours.clone();
    }
    let furthest = failures.iter().map(|(_, trouble)| trouble).max_by_key(|trouble| trouble.stage);
    match furthest {
        Some(trouble) if trouble.stage > Stage::Connect => trouble.clone(),
        _ => {
            let all = failures.iter().map(|(address, trouble)| format!("{address}: {}", trouble.cause));
            let how = all.collect::<Vec<_>>().join("; ");
            let how = if how.is_empty() { "the name has no address".into() } else { how };
            let (host, port) = (&relay.settings.host, relay.settings.port);
            at(Stage::Connect)(Cause::Closed(format!("no connection to {host} port {port}: {how}")))
        }
    }
}

/// A connection that has been greeted, with what TLS came to.
struct Greeted {
    connection: Connection,
    verified: bool,
}

/// Greeting, TLS and EHLO. Where opportunistic TLS fails, once more over a new connection in the clear.
async fn greet(relay: &Relay, stream: TcpStream, address: SocketAddr) -> Result<Greeted, Trouble> {
    let why = match greet_over(relay, stream, address, None).await {
        Err(trouble) if relay.settings.tls == Tls::Opportunistic && trouble.stage == Stage::Tls => {
            trouble.cause.to_string()
        }
        greeted => return greeted,
    };
    tracing::info!(target: LOG, peer = %address, "opportunistic TLS failed, going on in the clear: {}",
        (relay.shown)(&why));
    let limit = relay.settings.timeouts.connect;
    let candidate = addresses::Candidate { address, is_last_resort: false };
    match Dialing::new(vec![candidate], limit).next().await {
        Some((_, Ok(stream))) => greet_over(relay, stream, address, Some(why)).await,
        Some((_, Err(how))) => Err(at(Stage::Connect)(how)),
        None => Err(at(Stage::Connect)(Cause::Timeout)),
    }
}

async fn greet_over(
    relay: &Relay,
    stream: TcpStream,
    peer: SocketAddr,
    tls_failed: Option<String>,
) -> Result<Greeted, Trouble> {
    let settings = &relay.settings;
    let limits = &settings.timeouts;
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
        Tls::Starttls | Tls::Opportunistic if announced.starttls && tls_failed.is_none() => {
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
    Ok(Greeted { connection: Connection { wire, announced, tls_failed }, verified: secured.verified })
}

async fn log_in(relay: &Relay, greeted: Greeted) -> Result<Connection, Trouble> {
    let Greeted { mut connection, verified } = greeted;
    if let Some(login) = &relay.settings.login
        && connection.tls_failed.is_none()
    {
        auth::log_in(&mut connection.wire, &relay.settings, login, &connection.announced, verified).await?;
    }
    Ok(connection)
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

/// The outcome of the handshake.
#[derive(Default)]
struct Secured {
    /// The peer's certificate was checked.
    verified: bool,
    /// The end of its validity.
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
                None => Cause::Closed(tls::explain_end(&error, peer, &relay.settings)),
            }))
        }
        Err(_) => Err(at(Stage::Tls)(Cause::Timeout)),
    }
}

fn at(stage: Stage) -> impl FnOnce(Cause) -> Trouble {
    move |cause| Trouble { stage, scope: Scope::Relay, cause }
}
