//! What `rustls` asks about a server's certificate, answered by libpq's rules.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, PeerMisbehaved, SignatureScheme};
use x509_cert::der::Encode;

use super::chain::{CertificateFault, Parsed, Trust, contents};
use super::names::Names;

/// Checks what `sslmode` and the root file ask for.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Roots to check the chain against; `None` to take any certificate.
    pub(super) trust: Option<Arc<Trust>>,
    /// The name that the certificate must be for.
    pub(super) host: Option<String>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn check(&self, leaf: &[u8], sent: &[CertificateDer<'_>], now: UnixTime) -> Result<(), CertificateFault> {
        let Some(trust) = &self.trust else { return Ok(()) };
        let leaf = Parsed::of(leaf)?;
        // A link that cannot be read may not be needed.
        let sent: Vec<Parsed> = sent.iter().filter_map(|der| Parsed::of(der).ok()).collect();
        trust.check(&leaf, &sent, std::time::Duration::from_secs(now.as_secs()))?;
        let Some(host) = &self.host else { return Ok(()) };
        let names = Names::of(&leaf.certificate).ok_or(CertificateFault::Malformed)?;
        match names.cover(host) {
            true => Ok(()),
            false => Err(CertificateFault::Name {
                host: host.clone(),
                names: names.listed(),
            }),
        }
    }
}

/// Wraps a fault for its way through `rustls`; [`super::fault_of`] takes it out again.
fn refused(fault: CertificateFault) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.check(end_entity, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(fault) => Err(refused(fault)),
        }
    }

    // The key is taken from the certificate by our own parser in both: the one of `rustls` refuses
    // certificates of version 1.

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let parsed = Parsed::of(certificate).map_err(refused)?;
        let key = &parsed.certificate.tbs_certificate.subject_public_key_info;
        let key_algorithm = contents(&key.algorithm).ok_or_else(|| refused(CertificateFault::Malformed))?;
        let of_scheme = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme);
        let (_, candidates) = of_scheme.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let valid = candidates.iter().any(|candidate| {
            candidate.public_key_alg_id().as_ref() == key_algorithm
                && candidate
                    .verify_signature(key.subject_public_key.raw_bytes(), message, signed.signature())
                    .is_ok()
        });
        match valid {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(Error::InvalidCertificate(CertificateError::BadSignature)),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let malformed = || refused(CertificateFault::Malformed);
        let parsed = Parsed::of(certificate).map_err(refused)?;
        let key = parsed.certificate.tbs_certificate.subject_public_key_info.to_der();
        let key = SubjectPublicKeyInfoDer::from(key.map_err(|_| malformed())?);
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
