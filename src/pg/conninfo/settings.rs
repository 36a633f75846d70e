//! The keywords of libpq (through 18) and the settings read so far, before they get their types.

use std::collections::BTreeMap;

use super::error::{ConnInfoError, Origin};

/// One of libpq's keywords.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) variable: Option<&'static str>,
    /// Why a value is refused. A setting that would change what happens must not be dropped silently.
    pub(super) refused: Option<&'static str>,
    pub(super) secret: bool,
}

const fn plain(name: &'static str, variable: Option<&'static str>) -> Keyword {
    Keyword {
        name,
        variable,
        refused: None,
        secret: false,
    }
}

const fn refused(name: &'static str, variable: Option<&'static str>, why: &'static str) -> Keyword {
    Keyword {
        name,
        variable,
        refused: Some(why),
        secret: false,
    }
}

const fn secret(name: &'static str, variable: Option<&'static str>, why: Option<&'static str>) -> Keyword {
    Keyword {
        name,
        variable,
        refused: why,
        secret: true,
    }
}

/// Every keyword. Those that nothing reads (`krbsrvname`, `oauth_…`, `sslcompression` …) matter only
/// with an authentication or feature this program does not have, so libpq would do the same.
pub(super) const KEYWORDS: &[Keyword] = &[
    plain("service", Some("PGSERVICE")),
    plain("servicefile", Some("PGSERVICEFILE")),
    plain("user", Some("PGUSER")),
    secret("password", Some("PGPASSWORD"), None),
    plain("passfile", Some("PGPASSFILE")),
    plain("channel_binding", Some("PGCHANNELBINDING")),
    plain("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    plain("dbname", Some("PGDATABASE")),
    plain("host", Some("PGHOST")),
    plain("hostaddr", Some("PGHOSTADDR")),
    plain("port", Some("PGPORT")),
    plain("client_encoding", Some("PGCLIENTENCODING")),
    plain("options", Some("PGOPTIONS")),
    plain("application_name", Some("PGAPPNAME")),
    plain("fallback_application_name", None),
    plain("keepalives", None),
    plain("keepalives_idle", None),
    plain("keepalives_interval", None),
    plain("keepalives_count", None),
    plain("tcp_user_timeout", None),
    plain("sslmode", Some("PGSSLMODE")),
    plain("sslnegotiation", Some("PGSSLNEGOTIATION")),
    plain("sslcompression", Some("PGSSLCOMPRESSION")),
    plain("sslcert", Some("PGSSLCERT")),
    plain("sslkey", Some("PGSSLKEY")),
    plain("sslcertmode", Some("PGSSLCERTMODE")),
    secret(
        "sslpassword",
        None,
        Some("store the client key without a passphrase, readable by its owner only"),
    ),
    plain("sslrootcert", Some("PGSSLROOTCERT")),
    plain("sslcrl", Some("PGSSLCRL")),
    plain("sslcrldir", Some("PGSSLCRLDIR")),
    plain("sslsni", Some("PGSSLSNI")),
    refused(
        "requirepeer",
        Some("PGREQUIREPEER"),
        "the owner of the server's socket is not checked",
    ),
    plain("require_auth", Some("PGREQUIREAUTH")),
    plain("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    plain("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    plain("gssencmode", Some("PGGSSENCMODE")),
    plain("krbsrvname", Some("PGKRBSRVNAME")),
    plain("gsslib", Some("PGGSSLIB")),
    plain("gssdelegation", Some("PGGSSDELEGATION")),
    refused("replication", None, "the kind of connection is chosen by the command"),
    plain("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    plain("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    plain("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    plain("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    secret("scram_client_key", None, Some("give the password instead")),
    secret("scram_server_key", None, Some("give the password instead")),
    refused("sslkeylogfile", None, "keys of connections are never written down"),
    plain("oauth_issuer", None),
    plain("oauth_client_id", None),
    secret("oauth_client_secret", None, None),
    plain("oauth_scope", None),
];

/// The keyword of this name.
pub(super) fn keyword(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// The name in `known` that looks most like `name`, if any does: at most a third of it differs.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&name, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance * 3 <= candidate.chars().count().max(name.chars().count()))
        .map(|(_, candidate)| candidate)
}

/// How many single characters must be inserted, dropped, exchanged or swapped with their neighbour
/// to make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(from != to)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// A value and where it came from. Has no `Debug`: it may be a password.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) bytes: Vec<u8>,
    pub(super) origin: Origin,
}

/// Keywords and their values. What is set first stays, unless replaced on purpose.
#[derive(Clone, Default)]
pub(super) struct Settings {
    values: BTreeMap<&'static str, Value>,
}

impl Settings {
    /// Sets a value in the place of an earlier one. libpq's old `requiressl` becomes `sslmode`.
    pub(super) fn replace(
        &mut self,
        name: &str,
        bytes: impl Into<Vec<u8>>,
        origin: Origin,
        at: Option<usize>,
    ) -> Result<(), ConnInfoError> {
        let bytes = bytes.into();
        if name == "requiressl" {
            let mode = if bytes.first() == Some(&b'1') {
                "require"
            } else {
                "prefer"
            };
            return self.store("sslmode", mode.into(), origin, at);
        }
        self.store(name, bytes, origin, at)
    }

    /// Sets a value unless there is one.
    pub(super) fn fill(&mut self, name: &str, bytes: impl Into<Vec<u8>>, origin: Origin) -> Result<(), ConnInfoError> {
        if self.values.contains_key(name) {
            return Ok(());
        }
        self.store(name, bytes.into(), origin, None)
    }

    fn store(&mut self, name: &str, bytes: Vec<u8>, origin: Origin, at: Option<usize>) -> Result<(), ConnInfoError> {
        let Some(keyword) = keyword(name) else {
            return Err(self.unknown(name, origin, at));
        };
        if bytes.contains(&0) {
            return Err(ConnInfoError::Bytes {
                keyword: keyword.name,
                origin,
                why: "contains a zero byte",
            });
        }
        self.values.insert(keyword.name, Value { bytes, origin });
        Ok(())
    }

    /// Takes over every value of `other`.
    pub(super) fn overlay(&mut self, other: Self) {
        self.values.extend(other.values);
    }

    pub(super) fn get(&self, name: &'static str) -> Option<&Value> {
        self.values.get(name)
    }

    /// The value as text.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, ConnInfoError> {
        let Some(value) = self.values.get(name) else {
            return Ok(None);
        };
        match std::str::from_utf8(&value.bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(ConnInfoError::Bytes {
                keyword: name,
                origin: value.origin.clone(),
                why: "is not UTF-8",
            }),
        }
    }

    /// The value as text, where an empty one counts as none.
    pub(super) fn filled_text(&self, name: &'static str) -> Result<Option<&str>, ConnInfoError> {
        Ok(self.text(name)?.filter(|text| !text.is_empty()))
    }

    /// Where a value came from.
    pub(super) fn origin(&self, name: &'static str) -> Origin {
        self.get(name).map_or(Origin::ConnInfo, |value| value.origin.clone())
    }

    /// The error for a value its keyword does not take.
    pub(super) fn invalid(&self, name: &'static str, value: &str, allowed: &'static str) -> ConnInfoError {
        ConnInfoError::Invalid {
            keyword: name,
            value: value.to_owned(),
            origin: self.origin(name),
            allowed,
        }
    }

    /// The error for a value that would change what happens, and that is not supported.
    pub(super) fn unsupported(&self, name: &'static str, why: &'static str) -> ConnInfoError {
        ConnInfoError::Unsupported {
            keyword: name,
            origin: self.origin(name),
            why,
        }
    }

    /// Where the values came from.
    pub(super) fn origins(&self) -> BTreeMap<&'static str, Origin> {
        let origin = |(name, value): (&&'static str, &Value)| (*name, value.origin.clone());
        self.values.iter().map(origin).collect()
    }

    /// Refuses what has a value and is not supported.
    pub(super) fn refuse_unsupported(&self) -> Result<(), ConnInfoError> {
        for (name, value) in &self.values {
            if let Some(why) = keyword(name).and_then(|keyword| keyword.refused)
                && !value.bytes.is_empty()
            {
                return Err(ConnInfoError::Unsupported {
                    keyword: name,
                    origin: value.origin.clone(),
                    why,
                });
            }
        }
        Ok(())
    }

    /// The error for an unknown keyword. Behind a secret the keyword may be the secret's second half
    /// (`password=two words=x`), and one that is no plain word may be a mangled URI: neither is shown.
    fn unknown(&self, name: &str, origin: Origin, at: Option<usize>) -> ConnInfoError {
        let after_a_secret = self
            .values
            .iter()
            .any(|(name, value)| value.origin == origin && keyword(name).is_some_and(|keyword| keyword.secret));
        let word = name.len() <= 40 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        ConnInfoError::UnknownKey {
            key: (word && !after_a_secret && !name.is_empty()).then(|| name.to_owned()),
            at,
            nearest: nearest(name, KEYWORDS.iter().map(|keyword| keyword.name)),
            origin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_keyword_is_named_and_a_strange_word_has_none() {
        let near = |name| nearest(name, KEYWORDS.iter().map(|keyword| keyword.name));
        assert_eq!(near("hsot"), Some("host"));
        assert_eq!(near("Port"), Some("port"));
        assert_eq!(near("username"), None);
        assert_eq!(near("ssl_mode"), Some("sslmode"));
        assert_eq!(near("sslrootcrt"), Some("sslrootcert"));
        assert_eq!(near("xyzzy"), None);
    }
}
