//! Whether a certificate comes from a root that is trusted, as OpenSSL would judge. Pure.
//!
//! The web's rules, which `rustls` brings, refuse what PostgreSQL's own manual makes: certificates of version 1, and self-signed
//! ones that are marked as an authority. So the chain is walked here: each certificate in time, signed by the next, each
//! signer an authority, the last one a self-signed certificate of the file. What this code does not understand (a critical
//! extension, name constraints) is refused, never passed over.

use std::collections::HashSet;
use std::time::Duration;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, NameConstraints, SubjectAltName};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::revocation::RevocationList;

/// How long a chain may be, as in OpenSSL.
const MOST_SIGNERS: usize = 100;

/// How many signatures are checked before we give up: a server could send a maze of certificates.
const MOST_SIGNATURES: usize = 200;

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
const CERTIFICATE_POLICIES: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.32");

/// Why a server's certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateFault {
    /// It cannot be read.
    #[error("it is malformed")]
    Malformed,
    /// Its time is over, or that of one it depends on.
    #[error("it, or one that it depends on, has expired")]
    Expired,
    /// Its time has not come yet.
    #[error("it, or one that it depends on, is not valid yet; is this machine's clock right?")]
    NotYetValid,
    /// No root that is trusted stands behind it.
    #[error("no trusted root certificate stands behind it")]
    UnknownIssuer,
    /// It may not be used for a server, or its signer may not sign.
    #[error("it, or one that it depends on, is not made for this use")]
    Usage,
    /// It has something in it that must not be ignored and is not understood.
    #[error("it, or one that it depends on, has an extension that must not be ignored and is not supported ({0})")]
    Extension(String),
    /// It was revoked.
    #[error("it, or one that it depends on, was revoked")]
    Revoked,
    /// There are revocation lists, but none that covers it.
    #[error("no valid revocation list covers it, or one that it depends on")]
    NoRevocationList,
    /// It is for another host.
    #[error("it is not for host \"{host}\" but for {}", listed(names))]
    Name {
        /// The host asked for.
        host: String,
        /// What the certificate is for.
        names: Vec<String>,
    },
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none that it names".to_owned(),
        names => names.join(", "),
    }
}

/// A certificate and its bytes.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    pub(super) certificate: Certificate,
    der: Vec<u8>,
}

impl Parsed {
    pub(super) fn of(der: &[u8]) -> Result<Self, CertificateFault> {
        let certificate = Certificate::from_der(der).map_err(|_| CertificateFault::Malformed)?;
        Ok(Self {
            certificate,
            der: der.to_vec(),
        })
    }

    fn is_self_issued(&self) -> bool {
        self.certificate.tbs_certificate.issuer == self.certificate.tbs_certificate.subject
    }

    fn is_of_version_1(&self) -> bool {
        self.certificate.tbs_certificate.version == x509_cert::Version::V1
    }

    /// Whether `signer` has the name and the key that signed it.
    fn is_signed_by(&self, signer: &Self, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        self.certificate.tbs_certificate.issuer == signer.certificate.tbs_certificate.subject
            && signature_is_valid(
                &self.der,
                &self.certificate.signature_algorithm,
                self.certificate.signature.raw_bytes(),
                &signer.certificate.tbs_certificate.subject_public_key_info,
                algorithms,
            )
    }
}

/// Whom to trust.
#[derive(Debug)]
pub(super) struct Trust {
    roots: Vec<Parsed>,
    /// Certificates of the file that are not self-signed: links of a chain, never its end.
    links: Vec<Parsed>,
    revocations: Vec<RevocationList>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    /// Takes over the certificates of a root file. Those that cannot be read are left out: a machine's
    /// store often has one or two.
    pub(super) fn new(file: &[CertificateDer<'_>], algorithms: WebPkiSupportedAlgorithms) -> Self {
        let readable = file.iter().filter_map(|der| Parsed::of(der).ok());
        let (roots, links) = readable.partition(Parsed::is_self_issued);
        Self {
            roots,
            links,
            revocations: Vec::new(),
            algorithms,
        }
    }

    /// Adds a list of revoked certificates. With at least one, every certificate of a chain must be
    /// covered by one.
    pub(super) fn revoke(&mut self, list: RevocationList) {
        self.revocations.push(list);
    }

    /// How many roots there are.
    pub(super) fn roots(&self) -> usize {
        self.roots.len()
    }

    /// Checks a server's certificate with the links that came with it.
    pub(super) fn check(&self, leaf: &Parsed, sent: &[Parsed], now: Duration) -> Result<(), CertificateFault> {
        check_time(leaf, now)?;
        check_extensions(leaf)?;
        check_server_usage(leaf)?;
        let mut search = Search {
            trust: self,
            sent,
            now,
            signatures: 0,
            why: CertificateFault::UnknownIssuer,
        };
        match search.leads_to_a_root(leaf, &mut Vec::new()) {
            true => Ok(()),
            false => Err(search.why),
        }
    }

    /// Whether the lists say that a certificate is still good. Without any list it is.
    fn check_revocation(&self, subject: &Parsed, signer: &Parsed, now: Duration) -> Result<(), CertificateFault> {
        if self.revocations.is_empty() {
            return Ok(());
        }
        let tbs = &subject.certificate.tbs_certificate;
        let key = &signer.certificate.tbs_certificate.subject_public_key_info;
        let mut covered = false;
        for list in &self.revocations {
            let signature = list.signature.raw_bytes();
            let is_theirs = list.issuer == tbs.issuer
                && signature_is_valid(&list.der, &list.algorithm, signature, key, &self.algorithms);
            if !is_theirs || !list.counts_at(now) {
                continue;
            }
            if list.names(&tbs.serial_number) {
                return Err(CertificateFault::Revoked);
            }
            covered = true;
        }
        match covered {
            true => Ok(()),
            false => Err(CertificateFault::NoRevocationList),
        }
    }
}

/// One search for a way to a root.
struct Search<'a> {
    trust: &'a Trust,
    sent: &'a [Parsed],
    now: Duration,
    signatures: usize,
    /// What was wrong with the last way that looked right at first.
    why: CertificateFault,
}

impl<'a> Search<'a> {
    /// `below` are the links between the leaf and `subject`, to keep the search from going in circles.
    fn leads_to_a_root(&mut self, subject: &'a Parsed, below: &mut Vec<&'a Parsed>) -> bool {
        // A root itself: nothing to verify, and nobody else could have signed it.
        if self.trust.roots.iter().any(|root| root.der == subject.der) {
            return self.is_good(self.trust.check_revocation(subject, subject, self.now));
        }
        for root in &self.trust.roots {
            if self.signs(root, subject) && self.may_sign(root, subject, below) {
                return self.is_good(self.trust.check_revocation(root, root, self.now));
            }
        }
        let links: Vec<&'a Parsed> = self.trust.links.iter().chain(self.sent).collect();
        for link in links {
            let known = below.iter().any(|other| other.der == link.der) || link.der == subject.der;
            if known
                || below.len() >= MOST_SIGNERS
                || !self.signs(link, subject)
                || !self.may_sign(link, subject, below)
            {
                continue;
            }
            below.push(link);
            if self.leads_to_a_root(link, below) {
                return true;
            }
            below.pop();
        }
        false
    }

    fn signs(&mut self, signer: &Parsed, subject: &Parsed) -> bool {
        let tbs = &subject.certificate.tbs_certificate;
        if tbs.issuer != signer.certificate.tbs_certificate.subject || self.signatures >= MOST_SIGNATURES {
            return false;
        }
        self.signatures += 1;
        subject.is_signed_by(signer, &self.trust.algorithms)
    }

    fn may_sign(&mut self, signer: &Parsed, subject: &Parsed, below: &[&Parsed]) -> bool {
        // Certificates that an authority issues to itself, when it changes its key, don't count.
        let links = below.iter().filter(|link| !link.is_self_issued()).count();
        let fit = check_time(signer, self.now)
            .and_then(|()| check_extensions(signer))
            .and_then(|()| check_authority(signer, links))
            .and_then(|()| self.trust.check_revocation(subject, signer, self.now));
        self.is_good(fit)
    }

    fn is_good(&mut self, result: Result<(), CertificateFault>) -> bool {
        result.map_err(|why| self.why = why).is_ok()
    }
}

fn check_time(certificate: &Parsed, now: Duration) -> Result<(), CertificateFault> {
    let validity = certificate.certificate.tbs_certificate.validity;
    if now < validity.not_before.to_unix_duration() {
        return Err(CertificateFault::NotYetValid);
    }
    if now > validity.not_after.to_unix_duration() {
        return Err(CertificateFault::Expired);
    }
    Ok(())
}

/// What is critical must be understood; no extension twice.
fn check_extensions(certificate: &Parsed) -> Result<(), CertificateFault> {
    let understood = [
        BasicConstraints::OID,
        KeyUsage::OID,
        ExtendedKeyUsage::OID,
        SubjectAltName::OID,
        CERTIFICATE_POLICIES,
    ];
    let mut seen = HashSet::new();
    for extension in certificate.certificate.tbs_certificate.extensions.iter().flatten() {
        // Name constraints restrict even where they are not marked as critical.
        let restricts = extension.extn_id == NameConstraints::OID;
        if restricts || (extension.critical && !understood.contains(&extension.extn_id)) {
            return Err(CertificateFault::Extension(extension.extn_id.to_string()));
        }
        if !seen.insert(extension.extn_id) {
            return Err(CertificateFault::Malformed);
        }
    }
    Ok(())
}

/// The extension of this type, if it is there.
fn extension<'a, T: Decode<'a> + AssociatedOid>(certificate: &'a Parsed) -> Result<Option<T>, CertificateFault> {
    let found = certificate.certificate.tbs_certificate.get::<T>();
    found
        .map(|found| found.map(|(_, extension)| extension))
        .map_err(|_| CertificateFault::Malformed)
}

fn check_server_usage(leaf: &Parsed) -> Result<(), CertificateFault> {
    let usage = extension::<ExtendedKeyUsage>(leaf)?;
    let for_servers = usage.is_none_or(|usage| usage.0.iter().any(|oid| [SERVER_AUTH, ANY_USAGE].contains(oid)));
    let key = extension::<KeyUsage>(leaf)?;
    let key_fits = key.is_none_or(|key| key.digital_signature() || key.key_encipherment() || key.key_agreement());
    match for_servers && key_fits {
        true => Ok(()),
        false => Err(CertificateFault::Usage),
    }
}

/// Whether it may sign others, with so many links below it and above the leaf.
fn check_authority(signer: &Parsed, links: usize) -> Result<(), CertificateFault> {
    let key = extension::<KeyUsage>(signer)?;
    let usage = extension::<ExtendedKeyUsage>(signer)?;
    let for_servers = usage.is_none_or(|usage| usage.0.iter().any(|oid| [SERVER_AUTH, ANY_USAGE].contains(oid)));
    let key_fits = key.is_none_or(|key| key.key_cert_sign());
    let is_authority = match extension::<BasicConstraints>(signer)? {
        Some(constraints) => {
            constraints.ca
                && constraints
                    .path_len_constraint
                    .is_none_or(|most| links <= usize::from(most))
        }
        // Version 1 knows no such mark, and some roots have only the other one. Nobody is a root of the
        // file by chance, so OpenSSL takes both there.
        None => signer.is_self_issued() && (signer.is_of_version_1() || key.is_some()),
    };
    match key_fits && for_servers && is_authority {
        true => Ok(()),
        false => Err(CertificateFault::Usage),
    }
}

/// Checks the signature of something signed: a sequence of the signed part, the algorithm, the bits.
fn signature_is_valid(
    der: &[u8],
    algorithm: &AlgorithmIdentifierOwned,
    signature: &[u8],
    key: &SubjectPublicKeyInfoOwned,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let signed = || {
        let mut parts = SliceReader::new(inside(der)?).ok()?;
        parts.tlv_bytes().ok()
    };
    let (Some(signed), Some(algorithm), Some(key_algorithm)) =
        (signed(), contents(algorithm), contents(&key.algorithm))
    else {
        return false;
    };
    algorithms.all.iter().any(|candidate| {
        candidate.signature_alg_id().as_ref() == algorithm
            && candidate.public_key_alg_id().as_ref() == key_algorithm
            && candidate
                .verify_signature(key.subject_public_key.raw_bytes(), signed, signature)
                .is_ok()
    })
}

/// The DER of an algorithm's name and parameters without the sequence's own head, which is how
/// `rustls` knows them.
pub(super) fn contents(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let der = algorithm.to_der().ok()?;
    inside(&der).map(<[u8]>::to_vec)
}

/// The value of a DER element, without tag and length.
pub(super) fn inside(der: &[u8]) -> Option<&[u8]> {
    AnyRef::from_der(der).ok().map(|any| any.value())
}
