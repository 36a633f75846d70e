//! The TLS settings of a connection.

use std::path::PathBuf;

use super::Surroundings;
use super::error::ConnInfoError;
use super::settings::Settings;
use super::types::{SslCertMode, SslMode, SslNegotiation, TlsVersion};
use super::word;

/// Whom to trust (`sslrootcert`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// The machine's own roots; goes with `verify-full` only.
    System,
    /// The certificates of this file. Where it is there libpq checks the chain in every `sslmode`, so
    /// that `require` with it means `verify-ca`.
    File(PathBuf),
    /// There is no such file: `verify-ca` and `verify-full` must fail, the others check nothing.
    Missing(PathBuf),
}

/// A client certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The file of the certificate, with the chain below the root (`sslcert`).
    pub certificate: PathBuf,
    /// The file of its private key (`sslkey`). libpq refuses one that others may read: more than 0600,
    /// or more than 0640 if root owns it.
    pub key: PathBuf,
}

/// The TLS settings of a connection. They mean nothing on a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    mode: SslMode,
    negotiation: SslNegotiation,
    roots: RootCertificates,
    certificate_mode: SslCertMode,
    certificate: Option<ClientCertificate>,
    crl: Option<PathBuf>,
    crl_folder: Option<PathBuf>,
    sni: bool,
    min_version: TlsVersion,
    max_version: TlsVersion,
}

impl Tls {
    /// Whether to use TLS, and what to check.
    pub fn mode(&self) -> SslMode {
        self.mode
    }

    /// How TLS begins.
    pub fn negotiation(&self) -> SslNegotiation {
        self.negotiation
    }

    /// Whom to trust.
    pub fn roots(&self) -> &RootCertificates {
        &self.roots
    }

    /// Whether the certificate's chain must be checked against [`Self::roots`].
    pub fn checks_chain(&self) -> bool {
        matches!(self.roots, RootCertificates::System | RootCertificates::File(_))
            || matches!(self.mode, SslMode::VerifyCa | SslMode::VerifyFull)
    }

    /// Whether to present a client certificate.
    pub fn certificate_mode(&self) -> SslCertMode {
        self.certificate_mode
    }

    /// The client certificate, if there is one and it may be presented.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }

    /// The file of revoked certificates (`sslcrl`).
    pub fn crl(&self) -> Option<&PathBuf> {
        self.crl.as_ref()
    }

    /// The folder of revoked certificates (`sslcrldir`), with OpenSSL's hashed names.
    pub fn crl_folder(&self) -> Option<&PathBuf> {
        self.crl_folder.as_ref()
    }

    /// Whether to announce the host's name (`sslsni`).
    pub fn sni(&self) -> bool {
        self.sni
    }

    /// The oldest version that will do.
    pub fn min_version(&self) -> TlsVersion {
        self.min_version
    }

    /// The newest version that will do.
    pub fn max_version(&self) -> TlsVersion {
        self.max_version
    }

    pub(super) fn of(settings: &Settings, around: &Surroundings<'_>) -> Result<Self, ConnInfoError> {
        let at_home = |file: &str| around.home.as_ref().map(|home| home.join(".postgresql").join(file));
        let there = |path: &PathBuf| (around.exists)(path);
        let roots = match settings.filled_text("sslrootcert")? {
            Some("system") => RootCertificates::System,
            given => {
                let given = given.map(PathBuf::from).or_else(|| at_home("root.crt"));
                let path = given.unwrap_or_else(|| PathBuf::from("~/.postgresql/root.crt"));
                if there(&path) {
                    RootCertificates::File(path)
                } else {
                    RootCertificates::Missing(path)
                }
            }
        };
        let (mode, negotiation) = modes(settings, &roots)?;
        let certificate_mode =
            word(settings, "sslcertmode", SslCertMode::from_word, SslCertMode::ALLOWED)?.unwrap_or(SslCertMode::Allow);
        let crl = settings.filled_text("sslcrl")?.map(PathBuf::from);
        let crl_folder = settings.filled_text("sslcrldir")?.map(PathBuf::from);
        let default_crl = || at_home("root.crl").filter(|path| crl_folder.is_none() && there(path));
        let (min_version, max_version) = versions(settings)?;
        Ok(Self {
            mode,
            negotiation,
            roots,
            certificate_mode,
            certificate: client_certificate(settings, around)?.filter(|_| certificate_mode != SslCertMode::Disable),
            crl: crl.or_else(default_crl),
            crl_folder,
            sni: settings.text("sslsni")?.is_none_or(|value| value.starts_with('1')),
            min_version,
            max_version,
        })
    }
}

/// The mode and negotiation, which must be strong enough for each other and for the roots.
fn modes(settings: &Settings, roots: &RootCertificates) -> Result<(SslMode, SslNegotiation), ConnInfoError> {
    let system = *roots == RootCertificates::System;
    let default = if system { SslMode::VerifyFull } else { SslMode::Prefer };
    let mode = word(settings, "sslmode", SslMode::from_word, SslMode::ALLOWED)?.unwrap_or(default);
    if system && mode != SslMode::VerifyFull {
        return Err(ConnInfoError::Contradiction(format!(
            "sslmode={mode} is too weak for sslrootcert=system; use verify-full"
        )));
    }
    let negotiation = word(
        settings,
        "sslnegotiation",
        SslNegotiation::from_word,
        SslNegotiation::ALLOWED,
    )?
    .unwrap_or(SslNegotiation::Postgres);
    if negotiation == SslNegotiation::Direct && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
        return Err(ConnInfoError::Contradiction(format!(
            "sslmode={mode} is too weak for sslnegotiation=direct; use require, verify-ca or verify-full"
        )));
    }
    Ok((mode, negotiation))
}

fn client_certificate(
    settings: &Settings,
    around: &Surroundings<'_>,
) -> Result<Option<ClientCertificate>, ConnInfoError> {
    let at_home = |file: &str| around.home.as_ref().map(|home| home.join(".postgresql").join(file));
    let key = settings.filled_text("sslkey")?;
    if key.is_some_and(|key| key.contains(':')) {
        return Err(settings.unsupported("sslkey", "keys in an OpenSSL engine cannot be used; name a file"));
    }
    // One that was named must be there, and is missed when it is read; the default one need not.
    let named = settings.filled_text("sslcert")?.map(PathBuf::from);
    let certificate = named.or_else(|| at_home("postgresql.crt").filter(|path| (around.exists)(path)));
    let key = key.map(PathBuf::from).or_else(|| at_home("postgresql.key"));
    Ok(certificate
        .zip(key)
        .map(|(certificate, key)| ClientCertificate { certificate, key }))
}

/// The range of versions. 1.0 and 1.1 as the lower end mean 1.2, the oldest there is here.
fn versions(settings: &Settings) -> Result<(TlsVersion, TlsVersion), ConnInfoError> {
    let number = |word: &str| match word.to_ascii_lowercase().as_str() {
        "" => Some(None),
        "tlsv1" => Some(Some(0)),
        "tlsv1.1" => Some(Some(1)),
        "tlsv1.2" => Some(Some(2)),
        "tlsv1.3" => Some(Some(3)),
        _ => None,
    };
    let allowed = "TLSv1, TLSv1.1, TLSv1.2, TLSv1.3";
    let min = word(settings, "ssl_min_protocol_version", number, allowed)?.unwrap_or(Some(2));
    let max = word(settings, "ssl_max_protocol_version", number, allowed)?.flatten();
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        return Err(ConnInfoError::Contradiction(
            "ssl_min_protocol_version is above ssl_max_protocol_version".to_owned(),
        ));
    }
    let max = match max {
        Some(0 | 1) => return Err(settings.unsupported("ssl_max_protocol_version", "TLS 1.2 is the oldest there is")),
        Some(2) => TlsVersion::V1_2,
        _ => TlsVersion::V1_3,
    };
    let min = if min == Some(3) {
        TlsVersion::V1_3
    } else {
        TlsVersion::V1_2
    };
    Ok((min, max))
}
