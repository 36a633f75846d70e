//! The hash of a server's certificate that SCRAM binds a login to (`tls-server-end-point`, RFC 5929).

use aws_lc_rs::digest::{self, Algorithm, SHA224, SHA256, SHA384, SHA512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ContextSpecific};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{SliceReader, TagNumber};
use x509_cert::spki::AlgorithmIdentifierRef;

const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// The hash of a certificate by its signature's own digest; `None` where that has none (Ed25519) or is
/// not known. The server then cannot bind either.
pub(super) fn end_point(der: &[u8], certificate: &Certificate) -> Option<Vec<u8>> {
    let algorithm = &certificate.signature_algorithm;
    let digest = match algorithm.oid {
        RSA_PSS => pss_digest(algorithm.parameters.as_ref()?.into()),
        oid => signature_digest(oid),
    };
    digest.map(|digest| digest::digest(digest, der).as_ref().to_vec())
}

/// MD5 and SHA-1 are replaced by SHA-256, says the RFC.
fn signature_digest(oid: ObjectIdentifier) -> Option<&'static Algorithm> {
    Some(match oid.to_string().as_str() {
        // RSA with MD5, SHA-1; ECDSA with SHA-1
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => &SHA256,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => &SHA224,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => &SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &SHA512,
        _ => return None,
    })
}

/// RSA-PSS has its digest in its parameters: the first, or SHA-1 if that is left out.
fn pss_digest(parameters: AnyRef<'_>) -> Option<&'static Algorithm> {
    let mut reader = SliceReader::new(parameters.value()).ok()?;
    let hash = ContextSpecific::<AlgorithmIdentifierRef<'_>>::decode_explicit(&mut reader, TagNumber::N0).ok()?;
    match hash?.value.oid.to_string().as_str() {
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(&SHA256),
        "2.16.840.1.101.3.4.2.4" => Some(&SHA224),
        "2.16.840.1.101.3.4.2.2" => Some(&SHA384),
        "2.16.840.1.101.3.4.2.3" => Some(&SHA512),
        _ => None,
    }
}
