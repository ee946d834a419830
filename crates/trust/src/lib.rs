//! Who is who between daemons: certificates, mutual TLS, mount tokens.
//!
//! ```text
//! operator: Authority ──issues──► Leaf (of this pod: worker of a dataset, mounter of a node)
//!     │ Bundle: certificates of its present, past and next CA        │
//!     ▼ ConfigMap, watched by everyone                               ▼
//! Enrolment: key → Issue (gRPC, pod's own token) → Leaf ──► Credentials ──► Held ──► Incoming, Connector
//! ```
//!
//! A certificate names one [`Identity`] and nothing else. Who is at the other end of a connection is a [`Caller`]; what a caller
//! may do is decided in [`admit`], request by request, so that a certificate that expires ends what its connection may do.
//! Renewal replaces the [`Credentials`] of new connections; those that are open stay as they are.
//!
//! Owns no state but keys in memory, and one file of a worker's ([`store`]). When the operator is away, everything goes on until
//! certificates expire; they are renewed long before. Nothing of Kubernetes is here.
#![forbid(unsafe_code)]

mod accept;
pub mod admit;
mod authority;
mod bundle;
mod caller;
mod connect;
mod credentials;
mod enrol;
mod flags;
mod identity;
mod leaf;
pub mod store;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod token;
mod upkeep;
mod verify;

pub use accept::{Clients, Incoming, incoming};
pub use authority::{Authority, AuthorityError, Lifetimes};
pub use bundle::{Bundle, BundleError};
pub use caller::{Caller, Peer};
pub use connect::{ConnectError, Connector, worker_uri};
pub use credentials::{Credentials, CredentialsError, Held, NoCertificate, Security};
pub use enrol::{Enrolment, IssueError, Issuer};
pub use flags::Flags;
pub use identity::{Identity, IdentityError};
pub use leaf::{Leaf, LeafError};
pub use stream::Stream;
pub use token::{MOUNT_TOKEN_HEADER, MountToken, TokenError, Tokens};
pub use upkeep::{Kept, upkeep};

/// Seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}
