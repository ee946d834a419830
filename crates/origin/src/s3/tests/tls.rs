//! Trust in the endpoint's certificate. The key in this folder belongs to nothing but this test.

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

const CA: &[u8] = include_bytes!("ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("server.pem");
const KEY: &[u8] = include_bytes!("server.key");

/// Valid on the first day of 2020 only, and its CA, which is valid for long.
const EXPIRED: &[u8] = include_bytes!("expired.pem");
const EXPIRED_CA: &[u8] = include_bytes!("expired-ca.pem");

/// Answers every request with an empty page.
async fn server(certificate: &[u8]) -> String {
    let chain = vec![CertificateDer::from_pem_slice(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut request = [0; 4096];
                let _ = tls.read(&mut request).await;
                let page = "<ListBucketResult></ListBucketResult>";
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}", page.len());
                let _ = tls.write_all(answer.as_bytes()).await;
                let _ = tls.shutdown().await;
            });
        }
    });
    url
}

fn trusting(ca: Option<&[u8]>) -> Access {
    Access { ca: ca.map(<[u8]>::to_vec), ..access() }
}

#[tokio::test]
async fn a_certificate_is_trusted_by_the_given_ca_and_no_other() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let source = Source {
        uri: "s3://b/".into(),
        endpoint: server(CERTIFICATE).await,
        path_style: true,
        anonymous: true,
        ..Source::default()
    };
    let with = |ca: Option<&[u8]>| S3::new(&source, &trusting(ca), Arc::default()).unwrap();
    let (files, _) = list(&with(Some(CA))).await.unwrap();
    assert!(files.is_empty());
    // The server's own certificate is no CA.
    for ca in [None, Some(CERTIFICATE)] {
        let e = list(&with(ca)).await.unwrap_err();
        assert_eq!(e.reason(), Reason::TlsUntrusted, "{e}");
        assert!(e.to_string().contains("source.ca"), "{e}");
    }
    let no_pem = S3::new(&source, &trusting(Some(b"-----BEGIN CERTIFICATE-----\n!")), Arc::default()).unwrap_err();
    assert_eq!(no_pem.reason(), Reason::InvalidSource);
}

#[tokio::test]
async fn a_certificate_that_is_expired_is_not_taken_for_one_of_an_unknown_ca() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let endpoint = server(EXPIRED).await;
    let source = Source { uri: "s3://b/".into(), endpoint, path_style: true, anonymous: true, ..Source::default() };
    let e = list(&S3::new(&source, &trusting(Some(EXPIRED_CA)), Arc::default()).unwrap()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TlsExpired, "{e}");
    assert!(e.to_string().contains("renew"), "{e}");
}
