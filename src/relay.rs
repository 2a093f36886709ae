//! The smarthost: offers a mail over SMTP and says what became of each recipient.
//!
//! A [`Relay`] holds the settings and what is known of the smarthost; each worker holds a [`Worker`] with a connection
//! of its own. The order of events that the promises rest on is in [`Witness`].
//!
//! `client` leads a mail through transactions, `session` speaks one, `wire` carries bytes and replies. What a reply
//! means and whom it concerns is in `classify` and `judge`, which do no I/O.

mod addresses;
mod auth;
mod classify;
mod client;
mod commands;
mod connect;
mod dial;
mod dot_stuffing;
mod final_dot;
mod judge;
mod pipelining;
mod recipient_limit;
mod reply;
mod session;
mod tls;
mod token;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

pub use self::client::{Offer, Worker};
pub use self::pipelining::{Pipelining, PipeliningMode};
use crate::mail::{Address, Capabilities};
#[cfg(doc)]
use crate::outcome::Stage;
use crate::outcome::{Reply, Trouble};
pub use crate::secret::Secret as Password;

/// The target of what is logged here; at level debug this is the dialogue, without passwords and contents.
const LOG: &str = "mailqueue::relay";

/// `[relay]` of the configuration, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub host: String,
    pub port: u16,
    pub tls: Tls,
    /// PEM file with the only authorities to trust; the system's when absent.
    pub ca_file: Option<PathBuf>,
    pub login: Option<Login>,
    /// The name in EHLO.
    pub helo: String,
    pub messages_per_connection: u32,
    pub recipients_per_message: usize,
    pub pipelining: Pipelining,
    pub timeouts: Timeouts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// STARTTLS is required and the certificate is checked.
    Starttls,
    /// TLS from the first byte (RFC 8314), certificate checked.
    Implicit,
    /// STARTTLS when offered; the certificate is not checked. Where the handshake fails, in the clear and without login.
    Opportunistic,
    None,
}

/// The password or token is read whenever a connection is made, so that a changed one needs no restart.
#[derive(Clone)]
pub struct Login {
    pub username: String,
    pub auth: Auth,
    pub credential: Credential,
}

/// `relay.auth` of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// PLAIN, else LOGIN with a password; as [`Auth::Xoauth2`] with a token command.
    #[default]
    Auto,
    Plain,
    Login,
    /// An access token by OAUTHBEARER (RFC 7628), else by XOAUTH2.
    Xoauth2,
}

/// The secret that proves who we are.
#[derive(Clone)]
pub enum Credential {
    /// A password; with [`Auth::Xoauth2`] an access token.
    Secret(Password),
    /// A program and its arguments; it prints an OAuth 2 access token.
    TokenCommand(Vec<String>),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The time limits of the steps (RFC 5321 §4.5.3.2).
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    pub greeting: Duration,
    pub ehlo: Duration,
    pub tls: Duration,
    pub auth: Duration,
    pub mail: Duration,
    pub rcpt: Duration,
    pub data: Duration,
    /// Between two chunks of the body that the peer takes. In all, a body also has a second for each 1,000 bytes.
    pub body: Duration,
    /// At most two thirds of the lease.
    pub final_dot: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Self {
            connect: Duration::from_secs(30),
            greeting: minutes(5),
            ehlo: minutes(5),
            tls: minutes(1),
            auth: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            data: minutes(2),
            body: minutes(3),
            final_dot: minutes(10),
        }
    }
}

/// Sees each transaction at the two moments that count, and can stop it at the first.
///
/// `relay` knows neither ledger nor queue; the dispatcher implements this with both.
pub trait Witness: Send {
    /// All replies to MAIL, RCPT and DATA are in, `recipients` (never empty) were accepted, and nothing of the body has
    /// been written. An error stops the transaction here: no dot goes out, and the connection is dropped.
    fn before_dot(&mut self, recipients: &[Address]) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// The end of a transaction for which `before_dot` returned `Ok`; runs before the next final dot on this connection.
    /// `Ok` is a 2yz reply. In an error the stage says whether the final dot may have left ([`Stage::FinalDot`]) or has
    /// not ([`Stage::Data`]), and a cause other than a reply at [`Stage::FinalDot`] means that nobody knows the outcome.
    fn after_dot(&mut self, answer: Result<&Reply, &Trouble>) -> impl Future<Output = ()> + Send;
}

/// The state that all workers share: settings, TLS configuration, and experience with the smarthost.
pub struct Relay {
    settings: Settings,
    /// Absent without TLS.
    handshake: Option<tls::Handshake>,
    /// In place of what the resolver finds.
    fixed_addresses: Option<Vec<SocketAddr>>,
    addresses: addresses::Addresses,
    announced: Mutex<Option<Announced>>,
    pipelining: pipelining::Trust,
    recipient_limit: recipient_limit::RecipientLimit,
    /// Sessions that exist.
    open: Arc<AtomicUsize>,
    shown: Shown,
}

/// Turns a line of the dialogue, in which addresses stand, into the form that a log may show.
pub type Shown = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// The announcements of the smarthost in its greeting and EHLO reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    pub pipelining: bool,
    pub eight_bit: bool,
    pub smtputf8: bool,
    pub starttls: bool,
    /// RFC 1870; `Some(0)` or `None`: no limit is known.
    pub size: Option<u64>,
    /// Names of the mechanisms, in capitals.
    pub auth: Vec<String>,
    /// Its name, if it is one that the tests run against and that keeps commands behind the final dot.
    pub software: Option<&'static str>,
    /// Mails on one connection (MAILMAX, RFC 9422).
    pub mail_max: Option<u32>,
    /// Recipients in one message (RCPTMAX, RFC 9422).
    pub rcpt_max: Option<u32>,
    /// When its certificate ends, whether that was checked or not; `None` without TLS.
    pub certificate_ends: Option<Timestamp>,
    /// How far its clock is ahead of ours, where the greeting tells the time.
    pub clock_ahead: Option<SignedDuration>,
}

impl Announced {
    /// The part that decides on the form of a mail.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities { eight_bit: self.eight_bit, smtputf8: self.smtputf8 }
    }
}

impl Relay {
    /// Reads the CA file and makes the TLS configuration.
    pub fn new(settings: Settings) -> anyhow::Result<Arc<Self>> {
        Self::logging(settings, Arc::new(str::to_owned))
    }

    /// The same with a dialogue that is logged as `shown` wants it.
    pub fn logging(settings: Settings, shown: Shown) -> anyhow::Result<Arc<Self>> {
        Self::build(settings, shown, None)
    }

    /// The same for a host whose addresses are these, whatever the resolver says.
    pub fn at_addresses(settings: Settings, addresses: Vec<SocketAddr>) -> anyhow::Result<Arc<Self>> {
        Self::build(settings, Arc::new(str::to_owned), Some(addresses))
    }

    fn build(settings: Settings, shown: Shown, fixed_addresses: Option<Vec<SocketAddr>>) -> anyhow::Result<Arc<Self>> {
        let handshake = tls::handshake(&settings)?;
        Ok(Arc::new(Self {
            handshake,
            fixed_addresses,
            addresses: addresses::Addresses::default(),
            announced: Mutex::default(),
            pipelining: pipelining::Trust::new(settings.pipelining),
            recipient_limit: recipient_limit::RecipientLimit::default(),
            open: Arc::default(),
            shown,
            settings,
        }))
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the smarthost announced at the newest EHLO over any connection; `None` before the first.
    pub fn announced(&self) -> Option<Announced> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The form of pipelining that a new connection would use, and the reason, in words for a person.
    pub fn pipelining(&self, now: Instant) -> (PipeliningMode, String) {
        match self.announced() {
            Some(announced) => self.pipelining.mode(&announced, now),
            None => (PipeliningMode::Off, "there was no connection yet".into()),
        }
    }

    /// Sessions that are ready for mail or busy with one.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connects, greets, starts TLS, logs in, and quits. Sends no mail.
    pub async fn probe(&self) -> Result<Announced, Trouble> {
        let session = session::Session::connect(self).await?;
        let announced = session.announced.clone();
        session.quit().await;
        Ok(announced)
    }

    pub fn worker(self: &Arc<Self>) -> Worker {
        Worker::new(self.clone())
    }

    fn note(&self, announced: &Announced) {
        *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = Some(announced.clone());
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("settings", &self.settings).finish_non_exhaustive()
    }
}
