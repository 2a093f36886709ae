//! What all connections to the smarthost share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::announced::Announced;
use super::pipelining::PipeliningMode;
use super::settings::{Credential, Settings};
use super::{addresses, pipelining, recipient_limit, tls};
use crate::secret::Error as SecretError;

/// The state that all workers share: settings, TLS configuration, and experience with the smarthost.
pub struct Relay {
    pub(super) settings: Settings,
    /// Absent without TLS.
    pub(super) handshake: Option<tls::Handshake>,
    /// In place of what the resolver finds.
    pub(super) fixed_addresses: Option<Vec<SocketAddr>>,
    pub(super) addresses: addresses::Addresses,
    announced: Mutex<Option<Announced>>,
    pub(super) pipelining: pipelining::Trust,
    pub(super) recipient_limit: recipient_limit::RecipientLimit,
    /// Sessions that exist.
    pub(super) open: Arc<AtomicUsize>,
    pub(super) shown: Shown,
}

/// Turns a line of the dialogue, in which addresses stand, into the form that a log may show.
pub type Shown = Arc<dyn Fn(&str) -> String + Send + Sync>;

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

    /// Returns true if the other has the same settings and trusts the same authorities, whose files may have changed.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let authorities = |relay: &Self| relay.handshake.as_ref().map(|handshake| handshake.authorities);
        self.settings == other.settings && authorities(self) == authorities(other)
    }

    /// Returns true if the other connects to the same port of the same host.
    pub fn is_at_host_of(&self, other: &Self) -> bool {
        let place = |relay: &Self| (relay.settings.host.to_ascii_lowercase(), relay.settings.port);
        place(self) == place(other)
    }

    /// Reads the password, where the settings name one, and forgets it again. Fails where no connection could log in.
    pub fn check_secret(&self) -> Result<(), SecretError> {
        match self.settings.login.as_ref().map(|login| &login.credential) {
            Some(Credential::Secret(secret)) => secret.read().map(drop),
            Some(Credential::TokenCommand(_)) | None => Ok(()),
        }
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

    pub(super) fn note(&self, announced: &Announced) {
        *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = Some(announced.clone());
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("settings", &self.settings).finish_non_exhaustive()
    }
}
