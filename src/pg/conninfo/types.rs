//! The values that connection settings can have.

use std::fmt;

/// An enum whose variants are words of libpq's.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $allowed:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// What may be written, for messages.
            pub(super) const ALLOWED: &'static str = $allowed;

            /// Reads the word; case matters, as in libpq.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }

            /// The word.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// Whether to use TLS, and what to check (`sslmode`). Unix sockets never use TLS.
    SslMode: "disable, allow, prefer, require, verify-ca, verify-full" {
        /// Never TLS.
        Disable = "disable",
        /// TLS only if the server refuses without.
        Allow = "allow",
        /// TLS if the server has it, else without. The default.
        Prefer = "prefer",
        /// TLS or nothing; the certificate is checked only where root certificates are there.
        Require = "require",
        /// TLS, and the certificate must come from a trusted root.
        VerifyCa = "verify-ca",
        /// The same, and the certificate must be for the host asked for.
        VerifyFull = "verify-full",
    }
}

words! {
    /// How TLS begins (`sslnegotiation`).
    SslNegotiation: "postgres, direct" {
        /// After asking in PostgreSQL's protocol. The default.
        Postgres = "postgres",
        /// At once, with ALPN; needs PostgreSQL 17 or newer.
        Direct = "direct",
    }
}

words! {
    /// Whether to present a client certificate (`sslcertmode`).
    SslCertMode: "disable, allow, require" {
        /// Never.
        Disable = "disable",
        /// If the server asks and there is one. The default.
        Allow = "allow",
        /// The server must ask for one.
        Require = "require",
    }
}

words! {
    /// Whether SCRAM is bound to the TLS channel (`channel_binding`).
    ChannelBinding: "disable, prefer, require" {
        /// Never.
        Disable = "disable",
        /// Where both sides can. The default.
        Prefer = "prefer",
        /// Or nothing: any other authentication is refused.
        Require = "require",
    }
}

words! {
    /// Which server will do (`target_session_attrs`).
    TargetSessionAttrs: "any, read-write, read-only, primary, standby, prefer-standby" {
        /// Any. The default.
        Any = "any",
        /// One whose sessions can write.
        ReadWrite = "read-write",
        /// One whose sessions cannot write.
        ReadOnly = "read-only",
        /// One that is not in recovery.
        Primary = "primary",
        /// One that is in recovery.
        Standby = "standby",
        /// One that is in recovery; if no host is, any.
        PreferStandby = "prefer-standby",
    }
}

words! {
    /// In which order hosts and their addresses are tried (`load_balance_hosts`).
    LoadBalanceHosts: "disable, random" {
        /// As listed. The default.
        Disable = "disable",
        /// Shuffled.
        Random = "random",
    }
}

words! {
    /// A way a server can ask who we are (`require_auth`).
    AuthMethod: "password, md5, gss, sspi, scram-sha-256, oauth, none, or a list of them each with \"!\" before it" {
        /// The password in clear.
        Password = "password",
        /// MD5.
        Md5 = "md5",
        /// GSSAPI.
        Gss = "gss",
        /// SSPI.
        Sspi = "sspi",
        /// SCRAM-SHA-256, with or without channel binding.
        ScramSha256 = "scram-sha-256",
        /// OAuth.
        OAuth = "oauth",
        /// The server asks nothing (`trust`, `cert`, `peer`).
        None = "none",
    }
}

impl AuthMethod {
    /// Every method.
    pub const ALL: [Self; 7] = [
        Self::Password,
        Self::Md5,
        Self::Gss,
        Self::Sspi,
        Self::ScramSha256,
        Self::OAuth,
        Self::None,
    ];
}

/// The authentication methods that will do (`require_auth`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthMethods(pub(super) Vec<AuthMethod>);

impl AuthMethods {
    /// Whether the server may use this method.
    pub fn allows(&self, method: AuthMethod) -> bool {
        self.0.contains(&method)
    }
}

impl Default for AuthMethods {
    /// All of them.
    fn default() -> Self {
        Self(AuthMethod::ALL.to_vec())
    }
}

/// A version of TLS. Older ones than these two are not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Bytes that are never printed: a password. Not text: passwords can have any encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Hides these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for whoever has to send or hash them.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
