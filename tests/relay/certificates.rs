//! Two authorities made for the test, and servers' certificates of them.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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
    /// Servers' own certificates, marked as authorities, as `openssl req -x509` makes them.
    self_signed: Vec<(&'static str, TlsAcceptor)>,
}

static AUTHORITIES: LazyLock<Authorities> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let (issuer, pem) = authority();
    std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
    let (stranger, _) = authority();
    let here = ["localhost", "127.0.0.1"];
    let own = |name: &'static str, names: &[&str], until| {
        let (acceptor, pem) = self_signed(names, until);
        std::fs::write(folder.path().join(format!("{name}.pem")), pem).unwrap();
        (name, acceptor)
    };
    let self_signed = vec![
        own("self-signed", &here, 4096),
        own("self-signed-other", &["other.test"], 4096),
        own("self-signed-expired", &here, 2001),
    ];
    Authorities {
        self_signed,
        folder,
        good: server(&issuer, &here),
        other: server(&issuer, &["other.test"]),
        foreign: server(&stranger, &here),
    }
});

/// The PEM file of the authority that is to be trusted.
pub fn authority_file() -> PathBuf {
    file("ca")
}

/// The PEM file of the authority `ca`, or of a server's own certificate.
pub fn file(name: &str) -> PathBuf {
    AUTHORITIES.folder.path().join(format!("{name}.pem"))
}

pub fn acceptor(certificate: &str) -> TlsAcceptor {
    match certificate {
        "" => AUTHORITIES.good.clone(),
        "other" => AUTHORITIES.other.clone(),
        "foreign" => AUTHORITIES.foreign.clone(),
        own => {
            let found = AUTHORITIES.self_signed.iter().find(|(name, _)| *name == own);
            found.unwrap_or_else(|| panic!("no such certificate: {own}")).1.clone()
        }
    }
}

fn authority() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

/// A server's own certificate, good until the end of a year.
fn self_signed(names: &[&str], last_year: i32) -> (TlsAcceptor, String) {
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let pem = certificate.pem();
    (acceptor_of(certificate.der().clone(), &key), pem)
}

fn server(issuer: &Issuer<'static, KeyPair>, names: &[&str]) -> TlsAcceptor {
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, issuer).unwrap();
    acceptor_of(certificate.der().clone(), &key)
}

fn acceptor_of(certificate: CertificateDer<'static>, key: &KeyPair) -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
