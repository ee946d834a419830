//! Keeper and clients on a real socket.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

mod held;
mod lab;
mod simulation;
mod users;
