//! Whether a certificate is for a host, by libpq's rules. Pure.
//!
//! They are older than the web's and wider: a certificate without alternative names is known by its common name, and
//! so is one that has none of the host's kind (address or name); a name may be an address written
//! out; `*.` stands for exactly one label.

use std::net::IpAddr;

use x509_cert::Certificate;
use x509_cert::der::asn1::{PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// What a certificate says it is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    dns: Vec<String>,
    addresses: Vec<Vec<u8>>,
    common: Option<String>,
}

impl Names {
    /// Reads them; `None` if the alternative names are malformed.
    pub(super) fn of(certificate: &Certificate) -> Option<Self> {
        let tbs = &certificate.tbs_certificate;
        let mut names = Self {
            common: common_name(certificate),
            ..Self::default()
        };
        for name in tbs
            .get::<SubjectAltName>()
            .ok()?
            .into_iter()
            .flat_map(|(_, names)| names.0)
        {
            match name {
                GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                GeneralName::IpAddress(address) => names.addresses.push(address.as_bytes().to_vec()),
                _ => {}
            }
        }
        Some(names)
    }

    /// Whether they cover the host.
    pub(super) fn cover(&self, host: &str) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        let bytes = match address {
            Some(IpAddr::V4(address)) => Some(address.octets().to_vec()),
            Some(IpAddr::V6(address)) => Some(address.octets().to_vec()),
            None => None,
        };
        let of_its_kind = match &bytes {
            Some(_) => !self.addresses.is_empty(),
            None => !self.dns.is_empty(),
        };
        // An alternative name of the host's kind rules the common name out, matching or not.
        let common = self.common.iter().filter(|_| !of_its_kind);
        self.dns.iter().chain(common).any(|name| matches(name, host))
            || bytes.is_some_and(|bytes| self.addresses.contains(&bytes))
    }

    /// All of them, for a message.
    pub(super) fn listed(&self) -> Vec<String> {
        let address = |bytes: &Vec<u8>| match *bytes.as_slice() {
            [a, b, c, d] => IpAddr::from([a, b, c, d]).to_string(),
            ref other => match <[u8; 16]>::try_from(other) {
                Ok(octets) => IpAddr::from(octets).to_string(),
                Err(_) => "a malformed address".to_owned(),
            },
        };
        let mut all: Vec<String> = self.dns.clone();
        all.extend(self.addresses.iter().map(address));
        all.extend(self.common.iter().filter(|common| !self.dns.contains(common)).cloned());
        all
    }
}

/// The first common name in the subject.
fn common_name(certificate: &Certificate) -> Option<String> {
    let names = certificate
        .tbs_certificate
        .subject
        .0
        .iter()
        .flat_map(|set| set.0.iter());
    let value = &names.into_iter().find(|attribute| attribute.oid == COMMON_NAME)?.value;
    let utf8 = value
        .decode_as::<Utf8StringRef<'_>>()
        .map(|text| text.as_str().to_owned());
    let printable = || {
        value
            .decode_as::<PrintableStringRef<'_>>()
            .map(|text| text.as_str().to_owned())
    };
    let teletex = || {
        value
            .decode_as::<TeletexStringRef<'_>>()
            .map(|text| text.as_str().to_owned())
    };
    utf8.or_else(|_| printable()).or_else(|_| teletex()).ok()
}

/// Whether a name in a certificate, which may begin with `*.`, is this host.
fn matches(name: &str, host: &str) -> bool {
    // A zero byte inside is the old trick to show one name to people and another to programs.
    if name.contains('\0') {
        return false;
    }
    name.eq_ignore_ascii_case(host) || wildcard_matches(name, host)
}

fn wildcard_matches(pattern: &str, host: &str) -> bool {
    let Some(suffix) = pattern
        .strip_prefix('*')
        .filter(|rest| rest.len() >= 2 && rest.starts_with('.'))
    else {
        return false;
    };
    let Some(cut) = host.len().checked_sub(suffix.len()) else {
        return false;
    };
    match (host.get(..cut), host.get(cut..)) {
        (Some(label), Some(rest)) => !label.is_empty() && rest.eq_ignore_ascii_case(suffix) && !label.contains('.'),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &[&str], addresses: &[&str], common: Option<&str>) -> Names {
        let octets = |text: &&str| match text.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        Names {
            dns: dns.iter().map(|&name| name.to_owned()).collect(),
            addresses: addresses.iter().map(octets).collect(),
            common: common.map(str::to_owned),
        }
    }

    #[test]
    fn the_common_name_counts_only_without_alternative_names_of_the_hosts_kind() {
        assert!(names(&[], &[], Some("DB.example")).cover("db.example"));
        assert!(!names(&["other.example"], &[], Some("db.example")).cover("db.example"));
        assert!(names(&[], &["10.0.0.1"], Some("db.example")).cover("db.example"));
        assert!(names(&["other.example"], &[], Some("10.0.0.1")).cover("10.0.0.1"));
        assert!(!names(&[], &["10.0.0.2"], Some("10.0.0.1")).cover("10.0.0.1"));
    }

    #[test]
    fn an_address_is_compared_as_bytes_or_as_it_is_written() {
        assert!(names(&[], &["10.0.0.1"], None).cover("10.0.0.1"));
        assert!(names(&[], &["::1"], None).cover("0:0::1"));
        assert!(names(&["10.0.0.1"], &[], None).cover("10.0.0.1"));
        assert!(!names(&[], &["10.0.0.1"], None).cover("db.example"));
    }

    #[test]
    fn a_star_stands_for_one_label() {
        let covers = |pattern, host| names(&[pattern], &[], None).cover(host);
        assert!(covers("*.example.com", "db.EXAMPLE.com"));
        assert!(!covers("*.example.com", "a.b.example.com"));
        assert!(!covers("*.example.com", "example.com"));
        assert!(!covers("*.example.com", ".example.com"));
        assert!(!covers("db*.example.com", "db1.example.com"));
        assert!(!covers("*", "db"));
        assert!(!covers("*.", "db."));
        assert!(!covers("*.example.com\0.evil", "db.example.com"));
    }
}
