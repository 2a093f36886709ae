//! The TLS configuration: ring as the provider, chosen here and not process-wide; verified, or not at all.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;

use super::dial::without_brackets;
use super::settings::{Settings, Tls};

/// The configuration of TLS, and the name that the peer must have.
#[derive(Clone)]
pub(super) struct Handshake {
    pub connector: TlsConnector,
    pub name: ServerName<'static>,
    /// The certificate is checked.
    pub verified: bool,
    /// SHA-256 of the certificates of the authorities; zeros where none is asked.
    pub authorities: [u8; 32],
}

/// Why a handshake failed, and what to do about it.
pub(super) fn explain(error: &Error, settings: &Settings) -> String {
    let host = &settings.host;
    let remedy = match error {
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => match &settings.ca_file {
                Some(file) => format!("its certificate is signed by no authority in ca_file {}", file.display()),
                None => "its certificate is signed by no authority that this system trusts: name the file of its \
                    authority in relay.ca_file"
                    .to_owned(),
            },
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: it must be renewed there (or this host's clock is wrong)".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: relay.host must be a name that the certificate has".to_owned()
            }
            // The library gives this error no type of its own.
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                "it shows the certificate of an authority, most likely its own self-signed one: if it is the right one, put \
                 that certificate into relay.ca_file"
                    .to_owned()
            }
            _ => "its certificate was not accepted".to_owned(),
        },
        Error::PeerIncompatible(_)
        | Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure) => {
            format!("it and we have no version or cipher of TLS in common: {VERSIONS}")
        }
        Error::InvalidMessage(_) => "what answers does not speak TLS: port 587 usually wants tls = \"starttls\", \
            port 465 tls = \"implicit\""
            .to_owned(),
        _ => return format!("TLS with {host} failed: {error}"),
    };
    format!("TLS with {host} failed: {remedy} ({error})")
}

/// The versions that rustls speaks with our configuration.
const VERSIONS: &str = "mailqueue speaks TLS 1.2 and 1.3, and older versions are not safe";

/// The peer ended the connection in the middle of the handshake, as those do that speak older versions only.
pub(super) fn explain_end(error: &io::Error, peer: SocketAddr, settings: &Settings) -> String {
    let host = &settings.host;
    let remedy = match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            format!("it ended the connection during the handshake; {VERSIONS} ({error})")
        }
        _ => error.to_string(),
    };
    format!("TLS with {host} ({peer}) failed: {remedy}")
}

/// The end of the first certificate of a chain, which is the peer's own.
pub(super) fn ends(chain: &[CertificateDer<'_>]) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

/// `None` where no TLS is wanted.
pub(super) fn handshake(settings: &Settings) -> anyhow::Result<Option<Handshake>> {
    let verified = match settings.tls {
        Tls::None => return Ok(None),
        Tls::Opportunistic => false,
        Tls::Starttls | Tls::Implicit => true,
    };
    let name = ServerName::try_from(without_brackets(&settings.host).to_owned())
        .with_context(|| format!("relay host `{}` is neither a host name nor an address", settings.host))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut authorities = [0; 32];
    let verifier: Arc<dyn ServerCertVerifier> = if verified {
        let Authorities { store, listed, digest } = Authorities::read(settings)?;
        authorities = digest;
        let by_authority = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build()?;
        Arc::new(Trusted { by_authority, listed })
    } else {
        Arc::new(Anyone(provider))
    };
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok(Some(Handshake { connector: TlsConnector::from(Arc::new(config)), name, verified, authorities }))
}

/// The authorities to trust.
struct Authorities {
    store: RootCertStore,
    /// The certificates of `ca_file` as they stand there.
    listed: Vec<CertificateDer<'static>>,
    /// SHA-256 of all of them.
    digest: [u8; 32],
}

impl Authorities {
    fn read(settings: &Settings) -> anyhow::Result<Self> {
        let (mut store, mut listed) = (RootCertStore::empty(), Vec::new());
        let mut digest = Sha256::new();
        if let Some(file) = &settings.ca_file {
            let shown = file.display();
            let pem = std::fs::read(file).with_context(|| format!("ca_file {shown} cannot be read"))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.with_context(|| format!("ca_file {shown} is not PEM"))?;
                digest.update(&certificate);
                listed.push(certificate.clone());
                store
                    .add(certificate)
                    .with_context(|| format!("ca_file {shown} holds a certificate that is no authority"))?;
            }
            if store.is_empty() {
                bail!("ca_file {shown} holds no certificate: it must be PEM, with BEGIN CERTIFICATE lines");
            }
        } else {
            let found = rustls_native_certs::load_native_certs();
            found.certs.iter().for_each(|certificate| digest.update(certificate));
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                bail!(
                    "this system trusts no certificate authority, so that no smarthost can be verified: install the \
                 ca-certificates package, or name the authority's PEM file in ca_file"
                );
            }
        }
        Ok(Self { store, listed, digest: digest.finalize().into() })
    }
}

/// Takes certificates of the authorities, and those that the operator has listed themselves: a server's own self-signed
/// certificate is in most cases marked as an authority, and as such no server's for the usual rules (RFC 5280 §4.2.1.9).
#[derive(Debug)]
struct Trusted {
    by_authority: Arc<WebPkiServerVerifier>,
    listed: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.listed.iter().any(|listed| listed == own) {
            return self.by_authority.verify_server_cert(own, chain, name, ocsp, now);
        }
        verify_server_name(&ParsedCertificate::try_from(own)?, name)?;
        in_its_time(own, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

fn in_its_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// Takes any certificate, for opportunistic TLS: encryption against those who only listen (RFC 7435).
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
