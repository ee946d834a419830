//! What rustls asks us: is the server at the other end the one that was meant?
//!
//! Daemons have no names in DNS and change their addresses, so the name that is checked is the identity. rustls carries a name
//! from who connects to who verifies; ours are `operator`, and `<address>.<dataset uid>` for any worker of a dataset. The
//! address in it keeps resumed sessions of different workers apart.

use crate::{Bundle, Identity, identity::Named};
use larder_core::names;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use std::sync::{Arc, LazyLock};

/// AES-128-GCM first: it is the fastest where there is hardware for it, and there is on every machine with a GPU.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
});

pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Name of the operator for [`server_name`].
pub(crate) const OPERATOR: &str = "operator";

/// The name under which a server is looked for: `who` is [`OPERATOR`] or a dataset's UID, `host` where it is.
pub(crate) fn server_name(who: &str, host: &str) -> Option<ServerName<'static>> {
    if who == OPERATOR {
        return ServerName::try_from(OPERATOR).ok();
    }
    // A label begins and ends with a letter.
    let host: String = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    ServerName::try_from(format!("n{host}n.{who}")).ok().filter(|_| names::is_uid(who))
}

fn is_meant(name: &ServerName<'_>, found: &Identity) -> bool {
    let ServerName::DnsName(name) = name else { return false };
    match (name.as_ref().rsplit_once('.'), found) {
        (None, Identity::Operator) => name.as_ref() == OPERATOR,
        (Some((_, wanted)), Identity::Worker { dataset, .. }) => wanted == dataset,
        _ => false,
    }
}

#[derive(Debug)]
pub(crate) struct ServerVerifier(pub Bundle);

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, self.0.roots(), intermediates, now, algorithms)?;
        let found = Named::read(end_entity).map_err(|e| Error::General(e.to_string()))?.identity;
        if is_meant(server_name, &found) {
            return Ok(ServerCertVerified::assertion());
        }
        let expected = server_name.to_owned();
        Err(CertificateError::NotValidForNameContext { expected, presented: vec![found.to_string()] }.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    #[test]
    fn a_server_is_meant_only_by_its_own_name() {
        let worker = |dataset: &str| Identity::Worker { dataset: dataset.into(), node: "gpu-1".into() };
        let other = UID.replace('0', "1");
        for host in ["10.0.0.7", "[fd00::]", "::1"] {
            let name = server_name(UID, host).unwrap();
            assert!(is_meant(&name, &worker(UID)), "{host}");
            for not_meant in [worker(&other), Identity::Operator, Identity::Mounter { node: "gpu-1".into() }] {
                assert!(!is_meant(&name, &not_meant), "{not_meant}");
            }
        }
        let operator = server_name(OPERATOR, "larder-operator.larder-system.svc").unwrap();
        assert!(is_meant(&operator, &Identity::Operator) && !is_meant(&operator, &worker(UID)));
        assert!(server_name("somebody", "10.0.0.7").is_none());
    }
}
