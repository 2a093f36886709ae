//! What people and machines see of a dispatcher: texts to the letter, the port for monitoring, and the daemon as systemd,
//! Prometheus and Checkmk meet it.

mod audit;
pub mod daemon;
mod digest;
mod fake;
mod http;
mod reload;
mod repairs;
mod rules;
mod stall;
mod summary;
mod systemd;
mod texts;
