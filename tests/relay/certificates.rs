//! Two authorities made for the test, and servers' certificates of them.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

struct Authorities {
    folder: TempDir,
    /// For 127.0.0.1 and localhost.
    good: TlsAcceptor,
    /// Of the same authority, for another name.
    other: TlsAcceptor,
    /// For 127.0.0.1 and localhost, of an authority that the client does not trust.
    foreign: TlsAcceptor,
}

static AUTHORITIES: LazyLock<Authorities> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let (issuer, pem) = authority();
    std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
    let (stranger, _) = authority();
    let here = ["localhost", "127.0.0.1"];
    Authorities {
        folder,
        good: server(&issuer, &here),
        other: server(&issuer, &["other.test"]),
        foreign: server(&stranger, &here),
    }
});

/// The PEM file of the authority that is to be trusted.
pub fn authority_file() -> PathBuf {
    AUTHORITIES.folder.path().join("ca.pem")
}

pub fn acceptor(certificate: &str) -> TlsAcceptor {
    match certificate {
        "" => AUTHORITIES.good.clone(),
        "other" => AUTHORITIES.other.clone(),
        "foreign" => AUTHORITIES.foreign.clone(),
        _ => panic!("no such certificate: {certificate}"),
    }
}

fn authority() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn server(issuer: &Issuer<'static, KeyPair>, names: &[&str]) -> TlsAcceptor {
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
