//! The certificates of the CA that everyone trusts: the present one, the one before it, the one to come.

use crate::now;
use rustls::{
    RootCertStore, SignatureScheme,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use std::{fmt::Write as _, sync::Arc};

/// Why a bundle is none.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BundleError {
    /// Not PEM, or no certificate in it.
    #[error("certificates of the CA are not readable: {0}")]
    Unreadable(String),
    /// It is there, but empty.
    #[error("there is no certificate of a CA in it")]
    Empty,
}

/// Whose signatures count.
#[derive(Clone, Debug)]
pub struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Bundle {
    /// Of these certificates.
    ///
    /// # Errors
    /// When there are none, or one is not readable.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|e| BundleError::Unreadable(e.to_string()))?;
        }
        Ok(Self { certificates, roots: Arc::new(roots) })
    }

    /// Of PEM blocks, one after the other.
    ///
    /// # Errors
    /// As [`Bundle::new`].
    pub fn from_pem(text: &str) -> Result<Self, BundleError> {
        let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        Self::new(certificates.map_err(|e| BundleError::Unreadable(e.to_string()))?)
    }

    /// As it goes into the ConfigMap.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.certificates.iter().fold(String::new(), |mut text, certificate| {
            let _ = write!(text, "{}", pem("CERTIFICATE", certificate));
            text
        })
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// Is it the signature of one of these CAs, and is that one still valid?
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithms = crate::verify::provider().signature_verification_algorithms.mapping;
        let scheme = algorithms.iter().find(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
        let Some([algorithm, ..]) = scheme.map(|(_, algorithms)| *algorithms) else { return false };
        self.certificates.iter().any(|certificate| {
            x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, ca)| {
                ca.validity().not_after.timestamp() > now()
                    && algorithm.verify_signature(ca.public_key().subject_public_key.as_ref(), message, signature).is_ok()
            })
        })
    }
}

impl Bundle {
    /// Is the certificate signed by one of these CAs?
    pub(crate) fn has_issued(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, leaf)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        self.certificates.iter().any(|certificate| {
            x509_parser::parse_x509_certificate(certificate)
                .is_ok_and(|(_, ca)| leaf.verify_signature(Some(ca.public_key())).is_ok())
        })
    }
}

/// A PEM block.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    pem::encode_config(&pem::Pem::new(label, der), pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}
