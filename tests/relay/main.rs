//! The session with the smarthost, seen from the wire.

mod dialogs;
mod script;
mod server;
mod support;
