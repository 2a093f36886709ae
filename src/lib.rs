//! mailqueue sends the mails that other programs leave in database tables.
//!
//! The flow of one row:
//!
//! 1. [`queue`] finds a row that is due, claims it for this dispatcher and loads its content.
//! 2. [`translate`] makes a [`mail::Mail`] of it, with the help of [`decode`] for what producers store as base64.
//! 3. [`queue`] marks the row `sending`, so that after a crash it is known that the mail may have gone out.
//! 4. [`relay`] offers the mail to the smarthost. [`ledger`] notes the transaction before the final dot and its reply
//!    after it. The result is an [`outcome::Attempt`], which says what became of each recipient.
//! 5. [`retry`] decides from attempt and history, and [`queue`] settles the row: deleted, deferred, failed or held. Then
//!    [`ledger`] closes its entries.
//!
//! [`dispatch`] is the loop around all of this; `dispatch/lane.rs` has the forms that a row takes on its way. [`observe`]
//! and [`cli`] show it to people.
//!
//! Imports run one way: `main → cli → {config, dispatch, observe} → {queue, ledger, relay, translate, retry} → outcome
//! → mail`, and `translate → decode`; `dispatch` fills `telemetry` and `observe` shows it; below all are `secret`,
//! `visible`, `failpoint`, `panics` and `open_files`. The five in the middle never import each other, each owns its
//! `Settings`, and nothing below `cli` imports `config`. `tests/suite/layers.rs` holds this rule.

pub mod cli;
pub mod config;
pub mod decode;
pub mod dispatch;
pub mod failpoint;
pub mod ledger;
pub mod mail;
pub mod observe;
pub mod open_files;
pub mod outcome;
pub mod panics;
pub mod queue;
pub mod relay;
pub mod retry;
pub mod secret;
pub mod telemetry;
pub mod translate;
pub mod visible;
