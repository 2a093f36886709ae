//! The session with the smarthost, seen from the wire.

mod addresses;
mod certificates;
mod dialogs;
mod login;
mod outcome;
mod script;
mod sending;
mod server;
mod support;
mod tls;
