//! The CA: signs certificates and mount tokens.

use crate::{
    Identity, Leaf, MountToken,
    bundle::{BundleError, pem},
    identity::is_node,
    now,
};
use larder_core::names;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SigningKey as _, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::time::Duration;
use time::OffsetDateTime;

/// How long things that are signed are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// A CA. Its successor is made when two thirds of it are over.
    pub ca: Duration,
    /// A certificate of a daemon.
    pub leaf: Duration,
    /// A mount token: longer than the longest absence of the operator that mounts must not notice.
    pub token: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self { ca: 365 * DAY, leaf: DAY, token: 7 * DAY }
    }
}

/// Clocks of nodes may be this much behind.
const SKEW: Duration = Duration::from_secs(300);

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Key or certificate is not what it should be.
    #[error("key and certificate of the CA are not usable: {0}")]
    Stored(String),
    /// The certificate of the CA cannot be used to trust it.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The public key that was sent.
    #[error("public key is not readable: {0}")]
    PublicKey(String),
    /// Signing failed.
    #[error("sign for {whom}: {source}")]
    Sign {
        /// Who or what.
        whom: String,
        /// What went wrong.
        source: rcgen::Error,
    },
    /// What a mount token should name.
    #[error("no mount token can name dataset {dataset:?} and node {node:?}")]
    Names {
        /// As asked.
        dataset: String,
        /// As asked.
        node: String,
    },
}

/// One CA with its key.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_before: i64,
    not_after: i64,
}

impl Authority {
    /// A new one, valid from `now` (seconds since 1970) on.
    ///
    /// # Errors
    /// When there is no randomness for a key.
    pub fn generate(lifetimes: &Lifetimes, now: i64) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::Sign { whom: "a new CA".to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(lifetimes.ca, now);
        // Tells one from the other in logs and in `openssl x509`.
        params.distinguished_name.push(DnType::CommonName, format!("larder CA {now}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Self::from_der(certificate.der().clone(), key)
    }

    /// As it was stored.
    ///
    /// # Errors
    /// When it is not what [`Authority::to_pem`] gave.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key).map_err(|e| AuthorityError::Stored(e.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
        Self::from_der(certificate.map_err(|e| AuthorityError::Stored(e.to_string()))?, key)
    }

    fn from_der(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let stored = |e: &dyn std::fmt::Display| AuthorityError::Stored(e.to_string());
        let (not_before, not_after) = {
            let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| stored(&e))?;
            if parsed.public_key().subject_public_key.as_ref() != key.public_key_raw() {
                return Err(stored(&"the key is of another certificate"));
            }
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())
        };
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| stored(&e))?;
        Ok(Self { issuer, certificate, not_before, not_after })
    }

    /// Certificate and key, to be stored.
    #[must_use]
    pub fn to_pem(&self) -> (String, String) {
        (pem("CERTIFICATE", &self.certificate), self.issuer.key().serialize_pem())
    }

    /// What others need to know of it.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Tells it from others.
    #[must_use]
    pub fn name(&self) -> String {
        self.not_before.to_string()
    }

    /// Since when it is valid, in seconds since 1970; it was made a little later.
    pub(crate) fn not_before(&self) -> i64 {
        self.not_before
    }

    /// Until when it is valid, in seconds since 1970.
    pub(crate) fn not_after(&self) -> i64 {
        self.not_after
    }

    /// A certificate for whoever has the key that belongs to this public one (SubjectPublicKeyInfo, DER).
    ///
    /// # Errors
    /// When the key is none, or an identity cannot be put into a certificate.
    pub fn issue(
        &self,
        identity: &Identity,
        public_key: &[u8],
        lifetimes: &Lifetimes,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let key = SubjectPublicKeyInfo::from_der(public_key).map_err(|e| AuthorityError::PublicKey(e.to_string()))?;
        let failed = |source| AuthorityError::Sign { whom: identity.to_string(), source };
        let mut params = params(lifetimes.leaf, now());
        let uri = identity.to_string();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(failed)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&key, &self.issuer).map_err(failed)?.der().clone())
    }

    /// Key and certificate at once, for the process that holds the CA.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn leaf(&self, identity: &Identity, lifetimes: &Lifetimes) -> Result<Leaf, AuthorityError> {
        let stored = |e: &dyn std::fmt::Display| AuthorityError::Stored(e.to_string());
        let key = crate::leaf::NewKey::generate().map_err(|e| stored(&e))?;
        let certificate = self.issue(identity, &key.public(), lifetimes)?;
        key.certified(certificate).map_err(|e| stored(&e))
    }

    /// Lets the mounter of a node read a dataset.
    ///
    /// # Errors
    /// When these are no names of a dataset and a node.
    pub fn mount_token(&self, dataset: &str, node: &str, lifetimes: &Lifetimes) -> Result<MountToken, AuthorityError> {
        if !names::is_uid(dataset) || !is_node(node) {
            return Err(AuthorityError::Names { dataset: dataset.to_owned(), node: node.to_owned() });
        }
        let expiry = now() + lifetimes.token.as_secs().cast_signed();
        MountToken::signed(dataset, node, expiry, |message| {
            let whom = || format!("mount token of dataset {dataset} on node {node}");
            self.issuer.key().sign(message).map_err(|source| AuthorityError::Sign { whom: whom(), source })
        })
    }
}

fn params(lifetime: Duration, now: i64) -> CertificateParams {
    let now = OffsetDateTime::from_unix_timestamp(now).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    (params.not_before, params.not_after) = (now - SKEW, now + lifetime);
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Named;

    #[test]
    fn a_stored_ca_signs_as_the_one_that_was_made() {
        let lifetimes = Lifetimes::default();
        let made = Authority::generate(&lifetimes, now()).unwrap();
        let (certificate, key) = made.to_pem();
        let stored = Authority::from_pem(&certificate, &key).unwrap();
        let leaf = stored.leaf(&Identity::Operator, &lifetimes).unwrap();
        assert_eq!(*leaf.identity(), Identity::Operator);
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf.certificate()).unwrap();
        let (_, ca) = x509_parser::parse_x509_certificate(made.certificate()).unwrap();
        parsed.verify_signature(Some(ca.public_key())).unwrap();
        let named = Named::read(leaf.certificate()).unwrap();
        assert!((named.not_after - now() - 24 * 3600).abs() < 60);
    }

    #[test]
    fn a_key_of_another_ca_is_noticed() {
        let one = || Authority::generate(&Lifetimes::default(), now()).unwrap().to_pem();
        let ((certificate, _), (_, key)) = (one(), one());
        assert!(matches!(Authority::from_pem(&certificate, &key), Err(AuthorityError::Stored(_))));
    }

    #[test]
    fn what_is_no_public_key_gets_no_certificate() {
        let authority = Authority::generate(&Lifetimes::default(), now()).unwrap();
        for bad in [&b""[..], b"key", &[0x30; 91]] {
            let issued = authority.issue(&Identity::Operator, bad, &Lifetimes::default());
            assert!(matches!(issued, Err(AuthorityError::PublicKey(_))));
        }
    }
}
