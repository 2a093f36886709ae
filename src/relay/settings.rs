//! `[relay]` of the configuration, checked.

use std::path::PathBuf;
use std::time::Duration;

use super::pipelining::Pipelining;
use crate::secret::Secret as Password;

/// `[relay]` of the configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, PartialEq, Eq)]
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
#[derive(Clone, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
