//! A port in front of a smarthost: lets connections wait, or speaks TLS with a certificate of the test's choice.

use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub struct Front {
    port: u16,
    door: watch::Sender<bool>,
    waiting: watch::Receiver<usize>,
    certificate: Arc<Mutex<Option<TlsAcceptor>>>,
}

impl Front {
    /// Passes everything on to this port on loopback.
    pub async fn of(smarthost: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("address").port();
        let (door, opened) = watch::channel(true);
        let (arrived, waiting) = watch::channel(0);
        let certificate = Arc::new(Mutex::new(None::<TlsAcceptor>));
        let shown = certificate.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                arrived.send_modify(|count| *count += 1);
                let (mut opened, acceptor) = (opened.clone(), shown.lock().unwrap().clone());
                tokio::spawn(async move {
                    opened.wait_for(|open| *open).await.ok()?;
                    let mut server = TcpStream::connect(("127.0.0.1", smarthost)).await.ok()?;
                    match acceptor {
                        None => copy_bidirectional(&mut client, &mut server).await.ok(),
                        // A client that does not like the certificate hangs up.
                        Some(acceptor) => {
                            let mut client = acceptor.accept(client).await.ok()?;
                            copy_bidirectional(&mut client, &mut server).await.ok()
                        }
                    }
                });
            }
        });
        Self { port, door, waiting, certificate }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whoever connects from now on is not greeted.
    pub fn close(&self) {
        self.door.send_replace(false);
    }

    pub fn open(&self) {
        self.door.send_replace(true);
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        *self.waiting.borrow()
    }

    /// From now on connections are TLS from their first byte.
    pub fn show(&self, certificate: TlsAcceptor) {
        *self.certificate.lock().unwrap() = Some(certificate);
    }
}

/// An authority that lives for one test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for 127.0.0.1 that is valid up to the end of this year.
    pub fn certify(&self, year: i32) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}
