//! TLS by libpq's rules, on `rustls`.
//!
//! The chain is checked in every `sslmode` as soon as there is a root file, the host's name only with `verify-full`,
//! and with neither any certificate will do, as long as its owner is at the other end. The provider is passed
//! explicitly: with two of them in the build `rustls` could not choose.

mod binding;
mod chain;
mod names;
mod revocation;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use chain::CertificateFault;

use super::auth::Channel;
use crate::error::{Class, Explain};
use crate::pg::conninfo::{
    ClientCertificate, RootCertificates, Server, SslCertMode, SslMode, SslNegotiation, Tls, TlsVersion,
};
use chain::{Parsed, Trust};
use revocation::RevocationList;
use verify::Verifier;

/// The protocol's name in ALPN, without which a server takes no direct TLS.
const ALPN: &[u8] = b"postgresql";

/// TLS settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSettingsError {
    /// A file that cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file without what it should hold, or with something broken in it.
    #[error("{} holds no {what} in PEM format", path.display())]
    Empty {
        /// What it should hold.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// The certificate must be checked and there is nothing to check it against.
    #[error("sslmode={mode} checks the server's certificate, and the root certificate file {} is not there", path.display())]
    NoRoots {
        /// The mode.
        mode: SslMode,
        /// Where the file should be.
        path: PathBuf,
    },
    /// The machine has no store of roots.
    #[error("sslrootcert=system: this machine has no root certificates")]
    NoSystemRoots,
    /// The client's key can be read by others.
    #[error("the private key {} can be read by others", path.display())]
    KeyPermissions {
        /// Its path.
        path: PathBuf,
    },
    /// The client's key needs a passphrase.
    #[error("the private key {} is encrypted", path.display())]
    KeyEncrypted {
        /// Its path.
        path: PathBuf,
    },
    /// The client's key does not belong to its certificate, or is of a kind that cannot be used.
    #[error("the private key {} cannot be used with {}", key.display(), certificate.display())]
    Key {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// `verify-full` without a name to verify.
    #[error("sslmode=verify-full needs a host name, and only an address was given")]
    NoHostName,
    /// TLS versions that `rustls` cannot do.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

impl Explain for TlsSettingsError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoRoots { .. } => {
                "put the root certificate there, name it with sslrootcert, or use sslrootcert=system"
            }
            Self::NoSystemRoots => "install the package ca-certificates, or name a file with sslrootcert",
            Self::KeyPermissions { .. } => "chmod 0600 it (0640 if root owns it)",
            Self::KeyEncrypted { .. } => "store the client key without a passphrase, readable by its owner only",
            Self::NoHostName => "give host as well as hostaddr",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) enum HandshakeError {
    Settings(TlsSettingsError),
    Certificate(CertificateFault),
    Failed(io::Error),
    /// The server took direct TLS for another protocol.
    NoAlpn,
    /// `sslcertmode=require`, and none was asked for, or there is none to present.
    NoClientCertificate,
}

/// What all connections with the same settings share: files read, roots parsed.
#[derive(Debug)]
pub(super) struct Client {
    provider: Arc<CryptoProvider>,
    trust: Option<Arc<Trust>>,
    certificate: Option<Arc<CertifiedKey>>,
}

impl Client {
    /// Reads the files that the settings name.
    pub(super) fn new(settings: &Tls) -> Result<Self, TlsSettingsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let trust = trust(settings, &provider)?.map(Arc::new);
        let certificate = match settings.certificate() {
            Some(files) => Some(Arc::new(client_certificate(files, &provider)?)),
            None => None,
        };
        Ok(Self {
            provider,
            trust,
            certificate,
        })
    }

    /// Makes a TCP stream a TLS stream, and says what a login can be bound to.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        settings: &Tls,
        server: &Server,
    ) -> Result<(TlsStream<TcpStream>, Channel), HandshakeError> {
        let asked = Arc::new(AtomicBool::new(false));
        let config = self
            .config(settings, server, asked.clone())
            .map_err(HandshakeError::Settings)?;
        let peer = stream.peer_addr().map_err(HandshakeError::Failed)?;
        // Announced to the server, unless it is an address. What the certificate must be for is the verifier's.
        let name = server
            .tls_name()
            .and_then(|name| ServerName::try_from(name.to_owned()).ok())
            .unwrap_or_else(|| ServerName::from(peer.ip()));
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| match fault_of(&error) {
                Some(fault) => HandshakeError::Certificate(fault),
                None => HandshakeError::Failed(error),
            })?;
        let (_, connection) = stream.get_ref();
        if settings.negotiation() == SslNegotiation::Direct && connection.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::NoAlpn);
        }
        let presented = asked.load(Ordering::Relaxed) && self.certificate.is_some();
        if settings.certificate_mode() == SslCertMode::Require && !presented {
            return Err(HandshakeError::NoClientCertificate);
        }
        let leaf = connection.peer_certificates().and_then(|chain| chain.first());
        let end_point = leaf.and_then(|der| binding::end_point(der, &Parsed::of(der).ok()?.certificate));
        Ok((stream, Channel::Tls { end_point }))
    }

    fn config(
        &self,
        settings: &Tls,
        server: &Server,
        asked: Arc<AtomicBool>,
    ) -> Result<ClientConfig, TlsSettingsError> {
        let host = match settings.mode() {
            SslMode::VerifyFull => Some(server.tls_name().ok_or(TlsSettingsError::NoHostName)?.to_owned()),
            _ => None,
        };
        let verifier = Verifier {
            trust: self.trust.clone(),
            host,
            algorithms: self.provider.signature_verification_algorithms,
        };
        let versions: Vec<_> = [
            (TlsVersion::V1_2, &rustls::version::TLS12),
            (TlsVersion::V1_3, &rustls::version::TLS13),
        ]
        .into_iter()
        .filter(|(version, _)| (settings.min_version()..=settings.max_version()).contains(version))
        .map(|(_, version)| version)
        .collect();
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&versions)
            .map_err(TlsSettingsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(OneCertificate {
                certificate: self.certificate.clone(),
                asked,
            }));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = settings.sni();
        Ok(config)
    }
}

/// Presents the client's certificate, if there is one, and remembers that it was asked for.
#[derive(Debug)]
struct OneCertificate {
    certificate: Option<Arc<CertifiedKey>>,
    asked: Arc<AtomicBool>,
}

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        // Also without one: else we would not be told that it was asked for.
        true
    }
}

/// The verifier's own reason inside an error of `rustls`.
fn fault_of(error: &io::Error) -> Option<CertificateFault> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            other.0.downcast_ref::<CertificateFault>().cloned()
        }
        _ => None,
    }
}

/// The roots to check against; `None` if nothing is checked.
fn trust(settings: &Tls, provider: &CryptoProvider) -> Result<Option<Trust>, TlsSettingsError> {
    let algorithms = provider.signature_verification_algorithms;
    let mut trust = match settings.roots() {
        _ if !settings.checks_chain() => return Ok(None),
        RootCertificates::Missing(path) => {
            return Err(TlsSettingsError::NoRoots {
                mode: settings.mode(),
                path: path.clone(),
            });
        }
        RootCertificates::System => {
            let trust = Trust::new(&rustls_native_certs::load_native_certs().certs, algorithms);
            match trust.roots() {
                0 => return Err(TlsSettingsError::NoSystemRoots),
                _ => trust,
            }
        }
        RootCertificates::File(path) => {
            let what = "root certificate";
            let trust = Trust::new(&pem_items::<CertificateDer<'_>>(path, what)?, algorithms);
            match trust.roots() {
                0 => return Err(empty(what, path)),
                _ => trust,
            }
        }
    };
    let mut lists: Vec<PathBuf> = settings.crl().into_iter().cloned().collect();
    if let Some(folder) = settings.crl_folder() {
        lists.extend(files_of(folder)?);
    }
    for path in lists {
        let what = "certificate revocation list";
        for list in pem_items::<CertificateRevocationListDer<'_>>(&path, what)? {
            trust.revoke(RevocationList::of(&list).ok_or_else(|| empty(what, &path))?);
        }
    }
    Ok(Some(trust))
}

/// The files of a folder of revocation lists; OpenSSL names them by a hash and `.r0`, `.r1` …
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, TlsSettingsError> {
    let read = |source| TlsSettingsError::Read {
        what: "the certificate revocation lists of",
        path: folder.to_owned(),
        source,
    };
    let is_list = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extension.starts_with('r'))
    };
    let entries = std::fs::read_dir(folder).map_err(read)?;
    let paths: Result<Vec<PathBuf>, io::Error> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    Ok(paths.map_err(read)?.into_iter().filter(is_list).collect())
}

fn empty(what: &'static str, path: &Path) -> TlsSettingsError {
    TlsSettingsError::Empty {
        what,
        path: path.to_owned(),
    }
}

/// All items of one kind in a PEM file, at least one.
fn pem_items<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, TlsSettingsError> {
    let bytes = std::fs::read(path).map_err(|source| TlsSettingsError::Read {
        what,
        path: path.to_owned(),
        source,
    })?;
    let items: Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    match items {
        Ok(items) if !items.is_empty() => Ok(items),
        _ => Err(empty(what, path)),
    }
}

fn client_certificate(files: &ClientCertificate, provider: &CryptoProvider) -> Result<CertifiedKey, TlsSettingsError> {
    let chain = pem_items::<CertificateDer<'static>>(&files.certificate, "client certificate")?;
    let what = "private key";
    check_key_permissions(&files.key)?;
    let key = pem_items::<PrivateKeyDer<'static>>(&files.key, what).map_err(|error| match error {
        TlsSettingsError::Empty { path, .. } if is_encrypted(&path) => TlsSettingsError::KeyEncrypted { path },
        error => error,
    })?;
    let key = key.into_iter().next().ok_or_else(|| empty(what, &files.key))?;
    let unusable = |source| TlsSettingsError::Key {
        key: files.key.clone(),
        certificate: files.certificate.clone(),
        source,
    };
    let key = provider.key_provider.load_private_key(key).map_err(unusable)?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Err(error @ rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => Err(unusable(error)),
        // Else it is not known, as with a certificate that rustls cannot read: the server will see.
        _ => Ok(pair),
    }
}

/// libpq's rule: a key is its owner's alone; one of root may be readable by a group, for services.
fn check_key_permissions(path: &Path) -> Result<(), TlsSettingsError> {
    use std::os::unix::fs::MetadataExt;
    let what = "private key";
    let file = std::fs::metadata(path).map_err(|source| TlsSettingsError::Read {
        what,
        path: path.to_owned(),
        source,
    })?;
    let roots_own = file.uid() == 0 && !rustix::process::geteuid().is_root();
    let forbidden = if roots_own { 0o037 } else { 0o077 };
    match file.is_file() && file.mode() & forbidden == 0 {
        true => Ok(()),
        false => Err(TlsSettingsError::KeyPermissions { path: path.to_owned() }),
    }
}

fn is_encrypted(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.contains("ENCRYPTED"))
}
