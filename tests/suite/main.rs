//! The suite: one binary, so that it links once. A new part is a file beside this one and a `mod` line here.
//! How tests come by servers, and how those that need one are named, stands in [`support`].

mod addresses;
mod check;
mod circles;
mod commands;
mod config;
mod delivery;
mod faults;
mod layers;
mod leaks;
mod ledger;
mod logs;
mod observe;
mod operators;
mod pace;
mod package;
mod peers;
mod queue;
mod readme;
mod refusal_streak;
mod retry;
mod servers;
mod support;
