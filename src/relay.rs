//! The smarthost: offers a mail over SMTP and says what became of each recipient.
//!
//! A [`Relay`] holds the settings and what is known of the smarthost; each worker holds a [`Worker`] with a connection
//! of its own. The order of events that the promises rest on is in [`TransactionHook`].
//!
//! `client` leads a mail through transactions, `session` speaks one, `wire` carries bytes and replies. What a reply
//! means and whom it concerns is in `classify` and `judge`, which do no I/O.

mod addresses;
mod announced;
mod auth;
mod classify;
mod client;
mod commands;
mod connect;
mod dial;
mod dot_stuffing;
mod final_dot;
mod judge;
mod log;
mod pipelining;
mod recipient_limit;
mod reply;
mod session;
mod settings;
mod smarthost;
mod tls;
mod token;
mod transaction_hook;
mod wire;

pub use self::announced::Announced;
pub use self::client::{Offer, Worker};
pub use self::pipelining::{Pipelining, PipeliningMode};
pub use self::settings::{Auth, Credential, Login, Settings, Timeouts, Tls};
pub use self::smarthost::{Relay, Shown};
pub use self::transaction_hook::TransactionHook;
pub use crate::secret::Secret as Password;
