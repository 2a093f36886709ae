//! The TLS configuration: ring as the provider, chosen here and not process-wide; verified, or not at all.

use std::sync::Arc;

use anyhow::{Context, bail};
use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::{Settings, Tls};

/// How to start TLS, and with whom.
#[derive(Clone)]
pub(super) struct Handshake {
    pub connector: TlsConnector,
    pub name: ServerName<'static>,
    /// The certificate is checked.
    pub verified: bool,
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
            _ => "its certificate was not accepted".to_owned(),
        },
        Error::InvalidMessage(_) => "what answers does not speak TLS: port 587 usually wants tls = \"starttls\", \
            port 465 tls = \"implicit\""
            .to_owned(),
        _ => return format!("TLS with {host} failed: {error}"),
    };
    format!("TLS with {host} failed: {remedy} ({error})")
}

/// When the first of a chain of certificates ends, which is the peer's own.
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
    let name = ServerName::try_from(settings.host.clone())
        .with_context(|| format!("relay host `{}` is neither a host name nor an address", settings.host))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let config = if verified {
        builder.with_root_certificates(authorities(settings)?).with_no_client_auth()
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))).with_no_client_auth()
    };
    Ok(Some(Handshake { connector: TlsConnector::from(Arc::new(config)), name, verified }))
}

fn authorities(settings: &Settings) -> anyhow::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    if let Some(file) = &settings.ca_file {
        let shown = file.display();
        let pem = std::fs::read(file).with_context(|| format!("ca_file {shown} cannot be read"))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.with_context(|| format!("ca_file {shown} is not PEM"))?;
            store
                .add(certificate)
                .with_context(|| format!("ca_file {shown} holds a certificate that is no authority"))?;
        }
        if store.is_empty() {
            bail!("ca_file {shown} holds no certificate: it must be PEM, with BEGIN CERTIFICATE lines");
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            bail!(
                "this system trusts no certificate authority, so that no smarthost can be verified: install the \
                 ca-certificates package, or name the authority's PEM file in ca_file"
            );
        }
    }
    Ok(store)
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
