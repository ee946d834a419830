//! What Larder reads of what others wrote or sent, each behind a function that takes any bytes. It tells what is wrong by a panic.
//!
//! ```text
//! fuzz_targets/<name>.rs ─► larder_fuzz::<name>(bytes)      libFuzzer, by `run`
//! tests below            ─► the same, with corpus/<name>/*  always
//! ```
//!
//! Where checksums lie in front, each function also reads the bytes with checksums that are right: a peer or a disk may say
//! anything in a way that is formally in order.
#![expect(clippy::unwrap_used, reason = "that is how it tells")]

mod catalog;
mod disk;
mod keeper;
mod messages;
mod peer;
mod volumes;

pub use catalog::catalog;
pub use disk::disk;
pub use keeper::keeper;
pub use messages::messages;
pub use peer::peer;
pub use volumes::volumes;

/// Runs to its end on a runtime of this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

#[cfg(test)]
mod tests;
