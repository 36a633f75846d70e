//! Lists of revoked certificates. Pure.
//!
//! Read by hand, because `openssl ca` makes lists of version 1 unless told otherwise, and the parser
//! at hand knows version 2 only.

use std::time::Duration;

use x509_cert::crl::RevokedCert;
use x509_cert::der::asn1::{BitString, ContextSpecific};
use x509_cert::der::{Decode, Reader, SliceReader, Tag, TagNumber};
use x509_cert::ext::Extensions;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;

use super::chain::inside;

/// A list and what its signature covers.
#[derive(Debug)]
pub(super) struct RevocationList {
    pub(super) der: Vec<u8>,
    pub(super) algorithm: AlgorithmIdentifierOwned,
    pub(super) signature: BitString,
    pub(super) issuer: Name,
    serials: Vec<SerialNumber>,
    this_update: Duration,
    next_update: Option<Duration>,
    /// A critical extension changes what a list means: only some reasons, only a part.
    is_plain: bool,
}

impl RevocationList {
    /// Reads it; `None` if it is malformed.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let mut parts = SliceReader::new(inside(der)?).ok()?;
        let mut body = SliceReader::new(inside(parts.tlv_bytes().ok()?)?).ok()?;
        let algorithm = AlgorithmIdentifierOwned::decode(&mut parts).ok()?;
        let signature = BitString::decode(&mut parts).ok()?;
        if next_tag(&body) == Some(Tag::Integer) {
            body.tlv_bytes().ok()?;
        }
        AlgorithmIdentifierOwned::decode(&mut body).ok()?;
        let issuer = Name::decode(&mut body).ok()?;
        let this_update = Time::decode(&mut body).ok()?.to_unix_duration();
        let next_update = match next_tag(&body) {
            Some(Tag::UtcTime | Tag::GeneralizedTime) => Some(Time::decode(&mut body).ok()?.to_unix_duration()),
            _ => None,
        };
        let revoked = match next_tag(&body) {
            Some(Tag::Sequence) => Vec::<RevokedCert>::decode(&mut body).ok()?,
            _ => Vec::new(),
        };
        let extensions = ContextSpecific::<Extensions>::decode_explicit(&mut body, TagNumber::N0).ok()?;
        let of_entries = revoked.iter().filter_map(|entry| entry.crl_entry_extensions.as_ref());
        let is_plain = of_entries
            .chain(extensions.iter().map(|extensions| &extensions.value))
            .flatten()
            .all(|extension| !extension.critical);
        (body.is_finished() && parts.is_finished()).then(|| Self {
            der: der.to_vec(),
            algorithm,
            signature,
            issuer,
            serials: revoked.into_iter().map(|entry| entry.serial_number).collect(),
            this_update,
            next_update,
            is_plain,
        })
    }

    /// Whether it tells something at this moment.
    pub(super) fn counts_at(&self, now: Duration) -> bool {
        self.is_plain && self.this_update <= now && self.next_update.is_none_or(|next| now <= next)
    }

    /// Whether it names the certificate of this number.
    pub(super) fn names(&self, serial: &SerialNumber) -> bool {
        self.serials.contains(serial)
    }
}

fn next_tag(reader: &SliceReader<'_>) -> Option<Tag> {
    reader.peek_byte().and_then(|byte| Tag::try_from(byte).ok())
}
