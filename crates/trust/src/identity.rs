//! What a certificate says about its holder: one URI, and nothing else that anyone looks at.

use larder_core::names;
use rustls::pki_types::CertificateDer;
use std::{fmt, str::FromStr};
use x509_parser::extensions::GeneralName;

/// Who a daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// `larder://operator`
    Operator,
    /// `larder://worker/<dataset uid>/<node>`
    Worker {
        /// UID of the only dataset whose bytes it may have.
        dataset: String,
        /// Name of its node.
        node: String,
    },
    /// `larder://mounter/<node>`
    Mounter {
        /// Name of its node.
        node: String,
    },
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("certificate is not readable: {0}")]
    Unreadable(String),
    /// It has no URI or more than one.
    #[error("certificate names {0} URIs, but one is what makes an identity")]
    Uris(usize),
    /// The URI is not one of Larder's.
    #[error("{0:?} is no identity of a daemon of Larder")]
    Unknown(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("larder://operator"),
            Self::Worker { dataset, node } => write!(f, "larder://worker/{dataset}/{node}"),
            Self::Mounter { node } => write!(f, "larder://mounter/{node}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let unknown = || IdentityError::Unknown(text.to_owned());
        let parts: Vec<_> = text.strip_prefix("larder://").ok_or_else(unknown)?.split('/').collect();
        match parts[..] {
            ["operator"] => Ok(Self::Operator),
            ["worker", dataset, node] if names::is_uid(dataset) && is_node(node) => {
                Ok(Self::Worker { dataset: dataset.to_owned(), node: node.to_owned() })
            }
            ["mounter", node] if is_node(node) => Ok(Self::Mounter { node: node.to_owned() }),
            _ => Err(unknown()),
        }
    }
}

/// Is it a name that a Node can have?
pub(crate) fn is_node(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&name.len()) && name.bytes().all(allowed)
}

/// What is read of a certificate. Says nothing about who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub identity: Identity,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl Named {
    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let unreadable = |e: &dyn fmt::Display| IdentityError::Unreadable(e.to_string());
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| unreadable(&e))?;
        let names = parsed.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
        let uris: Vec<_> = names.iter().filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None }).collect();
        let [uri] = uris[..] else { return Err(IdentityError::Uris(uris.len())) };
        let validity = parsed.validity();
        Ok(Self {
            identity: uri.parse()?,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }
}

/// Until when a certificate, also one of a CA, is valid; `None` when it is not readable.
pub(crate) fn valid_until(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    #[test]
    fn an_identity_is_read_as_it_is_written() {
        let (dataset, node) = (UID.to_owned(), "gpu-1.example.com".to_owned());
        for identity in [Identity::Operator, Identity::Worker { dataset, node: node.clone() }, Identity::Mounter { node }] {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
    }

    #[test]
    fn nothing_else_is_an_identity() {
        for bad in [
            "",
            "operator",
            "larder://",
            "larder://operator/",
            "larder://operator/x",
            "spiffe://operator",
            "larder://worker/gpu-1",
            "larder://worker/../gpu-1",
            "larder://mounter/",
            "larder://mounter/GPU",
            "larder://mounter/a/b",
            &format!("larder://worker/{UID}/"),
            &format!("larder://worker/{UID}/a/b"),
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
