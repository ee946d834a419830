//! Who is at the other end of a connection.

use crate::{Held, Identity, IdentityError, identity::Named};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;

/// Who asks.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Nobody is asked for a certificate here.
    Anyone,
    /// Somebody who proved it.
    Known(Arc<Peer>),
}

/// Somebody with a certificate.
#[derive(Debug)]
pub struct Peer {
    named: Named,
    /// Of the process that was called.
    held: Held,
    /// The token this connection came with last, found good, and until when.
    admitted: Mutex<Option<(String, i64)>>,
}

impl Peer {
    pub(crate) fn new(certificate: &CertificateDer<'_>, held: Held) -> Result<Self, IdentityError> {
        Ok(Self { named: Named::read(certificate)?, held, admitted: Mutex::default() })
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.named.identity
    }

    /// Is its certificate valid at this time, in seconds since 1970?
    pub(crate) fn is_valid_at(&self, now: i64) -> bool {
        now <= self.named.not_after
    }

    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// Was this very token found good on this connection, and is it still?
    pub(crate) fn has_shown(&self, token: &str, now: i64) -> bool {
        self.admitted.lock().as_ref().is_some_and(|(shown, until)| shown == token && now < *until)
    }

    pub(crate) fn shows(&self, token: &str, until: i64) {
        *self.admitted.lock() = Some((token.to_owned(), until));
    }
}
