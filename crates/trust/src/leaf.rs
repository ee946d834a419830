//! A daemon's key and certificate.

use crate::{Identity, IdentityError, bundle::pem, identity::Named};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a leaf is of no use.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeafError {
    /// No randomness.
    #[error("make a key: {0}")]
    Key(String),
    /// The certificate names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is of another key.
    #[error("the certificate is of another key")]
    OtherKey,
    /// Stored text that is not PEM.
    #[error("key or certificate is not readable: {0}")]
    Unreadable(String),
}

/// A key that has no certificate yet. It never leaves the process but into [`crate::store`].
pub(crate) struct NewKey(KeyPair);

impl NewKey {
    pub(crate) fn generate() -> Result<Self, LeafError> {
        KeyPair::generate().map(Self).map_err(|e| LeafError::Key(e.to_string()))
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(crate) fn certified(self, certificate: CertificateDer<'static>) -> Result<Leaf, LeafError> {
        let named = Named::read(&certificate)?;
        let unreadable = |e: &dyn fmt::Display| LeafError::Unreadable(e.to_string());
        {
            let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| unreadable(&e))?;
            if parsed.public_key().subject_public_key.as_ref() != self.0.public_key_raw() {
                return Err(LeafError::OtherKey);
            }
        }
        Ok(Leaf { certificate, key: self.0.serialize_der(), named })
    }
}

/// Key, certificate, and what the certificate says.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    named: Named,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.named.fmt(f)
    }
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct Stored {
    certificate: String,
    key: String,
}

impl Leaf {
    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.named.identity
    }

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Until when, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.named.not_after
    }

    /// From when on another one should be asked for, in seconds since 1970: at two thirds.
    #[must_use]
    pub fn renew_at(&self) -> i64 {
        self.named.not_before + (self.named.not_after - self.named.not_before) * 2 / 3
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    pub(crate) fn store(&self) -> Stored {
        Stored { certificate: pem("CERTIFICATE", &self.certificate), key: pem("PRIVATE KEY", &self.key) }
    }

    pub(crate) fn stored(stored: &Stored) -> Result<Self, LeafError> {
        let unreadable = |e: &dyn fmt::Display| LeafError::Unreadable(e.to_string());
        let key = KeyPair::from_pem(&stored.key).map_err(|e| unreadable(&e))?;
        let certificate = CertificateDer::from_pem_slice(stored.certificate.as_bytes()).map_err(|e| unreadable(&e))?;
        NewKey(key).certified(certificate)
    }
}
