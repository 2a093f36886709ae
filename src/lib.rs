//! mailqueue sends the mails that other programs leave in database tables.
//!
//! The flow of one row:
//!
//! 1. [`queue`] finds a row that is due and claims it for this dispatcher.
//! 2. [`decode`] turns the stored bytes into text, [`translate`] the text into a [`mail::Mail`].
//! 3. [`relay`] offers the mail to the smarthost and says what became of each recipient, an [`outcome::Attempt`].
//! 4. [`ledger`] has noted the attempt before the final dot, and notes the acceptance after it.
//! 5. [`retry`] decides from attempt and history, and [`queue`] settles the row: deleted, deferred, failed or held.
//! 6. [`dispatch`] is the loop around all of this; [`observe`] and [`cli`] show it to people.
//!
//! Imports run one way: `main → cli → {config, dispatch, observe} → {queue, ledger, relay, translate, retry} → outcome
//! → mail`, and `translate → decode`; `dispatch` fills `telemetry` and `observe` shows it; below all are `secret`,
//! `visible`, `failpoint`, `panics` and `open_files`. The five in the middle never import each other, each owns its `Settings`, and
//! nothing below `cli` imports `config`. `tests/suite/layers.rs` holds this rule.

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
