//! Certificates of every kind that people give to PostgreSQL, made by the `openssl` program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program::Answer;
use crate::support::user::{Scratch, ServerUser};

/// A folder of keys and certificates, NAME.key and NAME.crt, made as they are asked for.
#[derive(Debug)]
pub struct Folder(Scratch);

/// What a certificate is made of.
#[derive(Debug, Clone, Copy)]
struct Recipe {
    name: &'static str,
    /// `openssl`'s words for the kind of key.
    key: &'static str,
    subject: &'static str,
    /// The certificate that signs it; itself, if that is its own name.
    signer: &'static str,
    /// Extensions, a line each; none at all makes it version 1.
    extensions: &'static str,
    /// For how many days from now it is good; negative for one whose time is over.
    days: i32,
    /// More words for the signing.
    signing: &'static [&'static str],
}

/// Kinds of revocation lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListVersion {
    /// What `openssl ca` makes by default.
    One,
    /// With extensions.
    Two,
    /// Version 1, and its time is over.
    Stale,
}

/// An elliptic key: quick to make.
const EC: &str = "ec -pkeyopt ec_paramgen_curve:prime256v1";
const AUTHORITY: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign";
const NO_AUTHORITY: &str = "basicConstraints=CA:FALSE";
const VERSION_1: &str = "";

/// A good certificate for a server on this machine, signed by the root.
const fn leaf(name: &'static str) -> Recipe {
    Recipe {
        name,
        key: EC,
        subject: "/CN=localhost",
        signer: "root",
        extensions: "subjectAltName=DNS:localhost,IP:127.0.0.1",
        days: 30,
        signing: &[],
    }
}

const fn with_extensions(name: &'static str, extensions: &'static str) -> Recipe {
    Recipe {
        extensions,
        ..leaf(name)
    }
}

const fn with_key(name: &'static str, key: &'static str) -> Recipe {
    Recipe { key, ..leaf(name) }
}

const fn named(name: &'static str, subject: &'static str, extensions: &'static str) -> Recipe {
    Recipe {
        subject,
        extensions,
        ..leaf(name)
    }
}

const fn signed_by(signer: &'static str, recipe: Recipe) -> Recipe {
    Recipe { signer, ..recipe }
}

const fn by_rsa(name: &'static str, signing: &'static [&'static str]) -> Recipe {
    Recipe {
        signing,
        signer: "rsa-root",
        ..leaf(name)
    }
}

const fn client(name: &'static str, subject: &'static str, extensions: &'static str) -> Recipe {
    named(name, subject, extensions)
}

const RECIPES: &[Recipe] = &[
    // Roots.
    signed_by("root", named("root", "/CN=the root", AUTHORITY)),
    signed_by("other-root", named("other-root", "/CN=another root", AUTHORITY)),
    signed_by(
        "old-root",
        Recipe {
            days: -1,
            ..named("old-root", "/CN=old root", AUTHORITY)
        },
    ),
    signed_by("v1-root", named("v1-root", "/CN=v1 root", VERSION_1)),
    signed_by("no-root", named("no-root", "/CN=no root", NO_AUTHORITY)),
    signed_by("key-root", named("key-root", "/CN=key root", "keyUsage=keyCertSign")),
    signed_by(
        "rsa-root",
        Recipe {
            key: "rsa:2048",
            ..named("rsa-root", "/CN=rsa root", AUTHORITY)
        },
    ),
    // Links.
    named("link", "/CN=link", AUTHORITY),
    signed_by("link", named("link2", "/CN=link 2", AUTHORITY)),
    named("short", "/CN=short", "basicConstraints=critical,CA:TRUE,pathlen:0"),
    signed_by("short", named("below-short", "/CN=below short", AUTHORITY)),
    named("no-authority", "/CN=no authority", NO_AUTHORITY),
    named(
        "no-sign",
        "/CN=no sign",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=digitalSignature",
    ),
    named("v1-link", "/CN=v1 link", VERSION_1),
    // Keys and signatures of each kind.
    leaf("leaf"),
    with_key("rsa", "rsa:2048"),
    with_key("p384", "ec -pkeyopt ec_paramgen_curve:secp384r1"),
    with_key("ed25519", "ed25519"),
    by_rsa("sha384", &["-sha384"]),
    by_rsa("sha512", &["-sha512"]),
    by_rsa(
        "pss",
        &[
            "-sha256",
            "-sigopt",
            "rsa_padding_mode:pss",
            "-sigopt",
            "rsa_pss_saltlen:-1",
        ],
    ),
    // Version 1 and certificates that are their own root.
    with_extensions("v1", VERSION_1),
    Recipe {
        key: "rsa:2048",
        ..with_extensions("v1-rsa", VERSION_1)
    },
    signed_by("v1-root", leaf("by-v1-root")),
    signed_by("old-root", leaf("by-old-root")),
    signed_by("no-root", leaf("by-no-root")),
    signed_by("key-root", leaf("by-key-root")),
    signed_by("self", with_extensions("self", AUTHORITY)),
    signed_by("self-plain", with_extensions("self-plain", NO_AUTHORITY)),
    signed_by("self-v1", with_extensions("self-v1", VERSION_1)),
    signed_by(
        "self-old",
        Recipe {
            days: -1,
            ..with_extensions("self-old", AUTHORITY)
        },
    ),
    // Good and bad uses.
    with_extensions("marked", "basicConstraints=critical,CA:TRUE"),
    Recipe {
        days: -1,
        ..leaf("old")
    },
    with_extensions("for-clients", "extendedKeyUsage=clientAuth"),
    with_extensions(
        "for-servers",
        "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature",
    ),
    with_extensions("signs-only", "keyUsage=critical,keyCertSign"),
    with_extensions("strange", "1.2.3.4.5=critical,ASN1:UTF8String:strange"),
    with_extensions("not-strange", "1.2.3.4.5=ASN1:UTF8String:strange"),
    // Names.
    named("cn", "/CN=localhost", NO_AUTHORITY),
    named("cn-ip", "/CN=127.0.0.1", NO_AUTHORITY),
    named("cn-wild", "/CN=*.example.com", NO_AUTHORITY),
    named("two-cn", "/CN=localhost/CN=db.example.com", NO_AUTHORITY),
    named("no-cn", "/O=nobody", NO_AUTHORITY),
    named("san-other", "/CN=localhost", "subjectAltName=DNS:other.example.com"),
    named("san-ip", "/CN=localhost", "subjectAltName=IP:127.0.0.1"),
    named("san-other-ip", "/CN=127.0.0.1", "subjectAltName=IP:10.0.0.1"),
    named("san-ip6", "/CN=x", "subjectAltName=IP:::1"),
    named("san-dns-ip", "/CN=x", "subjectAltName=DNS:127.0.0.1"),
    named("san-wild", "/CN=x", "subjectAltName=DNS:*.example.com"),
    named("san-wild-deep", "/CN=x", "subjectAltName=DNS:*.com"),
    named("san-wild-part", "/CN=x", "subjectAltName=DNS:d*.example.com"),
    named("san-case", "/CN=x", "subjectAltName=DNS:DB.Example.COM"),
    named("san-mail", "/CN=localhost", "subjectAltName=email:a@example.com"),
    // Ends of chains.
    signed_by("link", leaf("by-link")),
    signed_by("link2", leaf("by-link2")),
    signed_by("below-short", leaf("deep")),
    signed_by("short", leaf("by-short")),
    signed_by("link", with_extensions("v1-by-link", VERSION_1)),
    signed_by("no-authority", leaf("by-no-authority")),
    signed_by("no-sign", leaf("by-no-sign")),
    signed_by("v1-link", leaf("by-v1-link")),
    // Clients.
    client("client", "/CN=postgres", NO_AUTHORITY),
    client("client-v1", "/CN=postgres", VERSION_1),
    client("client-nobody", "/CN=nobody", NO_AUTHORITY),
    signed_by("other-root", client("client-wrong", "/CN=postgres", NO_AUTHORITY)),
];

/// Several certificates in one file, with the key of the first.
const BUNDLES: &[(&str, &[&str])] = &[
    ("chain", &["by-link", "link"]),
    ("chain-twisted", &["by-link2", "link", "root", "link2", "link"]),
    ("chain-broken", &["by-link2", "link2"]),
    ("chain-v1", &["v1-by-link", "link"]),
    ("chain-deep", &["deep", "below-short", "short"]),
    ("chain-short", &["by-short", "short"]),
    ("chain-no-authority", &["by-no-authority", "no-authority"]),
    ("chain-no-sign", &["by-no-sign", "no-sign"]),
    ("chain-v1-link", &["by-v1-link", "v1-link"]),
    ("root-and-link", &["root", "link"]),
    ("both-roots", &["other-root", "root"]),
];

impl Folder {
    pub fn new() -> Self {
        let folder = Self(Scratch::new());
        fs::create_dir(folder.path("ca")).unwrap();
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a certificate, and those that it needs, unless it is there. One without a recipe is meant to
    /// be missing.
    pub fn ensure(&self, name: &str) {
        if self.path(&format!("{name}.crt")).exists() {
            return;
        }
        if let Some((_, parts)) = BUNDLES.iter().find(|(bundle, _)| *bundle == name) {
            parts.iter().for_each(|part| self.ensure(part));
            self.bundle(name, parts);
        }
        if let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) {
            if recipe.signer != name {
                self.ensure(recipe.signer);
            }
            self.make(recipe);
        }
    }

    fn make(&self, recipe: &Recipe) {
        let file = |ending: &str| format!("{}.{ending}", recipe.name);
        let (key, csr, crt, ext) = (file("key"), file("csr"), file("crt"), file("ext"));
        let mut request: Vec<&str> = vec!["req", "-new", "-nodes", "-subj", recipe.subject, "-newkey"];
        request.extend(recipe.key.split(' '));
        request.extend(["-keyout", &key, "-out", &csr]);
        self.openssl(&request);
        let days = recipe.days.to_string();
        let (by, by_key) = (format!("{}.crt", recipe.signer), format!("{}.key", recipe.signer));
        let mut sign: Vec<&str> = vec!["x509", "-req", "-in", &csr, "-out", &crt, "-days", &days];
        if recipe.signer == recipe.name {
            sign.extend(["-signkey", &key]);
        } else {
            sign.extend(["-CA", &by, "-CAkey", &by_key, "-CAcreateserial"]);
        }
        if recipe.extensions != VERSION_1 {
            fs::write(self.path(&ext), recipe.extensions).unwrap();
            sign.extend(["-extfile", &ext]);
        }
        sign.extend(recipe.signing);
        self.openssl(&sign);
        self.protect(&key, 0o600);
    }

    /// Sets the permissions of a key, for its owner, the server's user.
    pub fn protect(&self, key: &str, mode: u32) {
        let key = self.path(key);
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        ServerUser::get().give(&key);
    }

    fn bundle(&self, name: &str, parts: &[&str]) {
        let read = |part: &&str| fs::read_to_string(self.path(&format!("{part}.crt"))).unwrap();
        let crt = format!("{name}.crt");
        fs::write(self.path(&crt), parts.iter().map(read).collect::<String>()).unwrap();
        let key = format!("{name}.key");
        fs::copy(self.path(&format!("{}.key", parts[0])), self.path(&key)).unwrap();
        self.protect(&key, 0o600);
    }

    /// Makes NAME.crl, a list by `signer` of these revoked certificates.
    pub fn revoke(&self, name: &str, signer: &str, revoked: &[&str], version: ListVersion) {
        self.ensure(signer);
        let index = self.path("ca/index");
        fs::write(&index, "").unwrap();
        let extensions = match version {
            ListVersion::Two => "crl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n",
            ListVersion::One | ListVersion::Stale => "",
        };
        let config = format!(
            "[ca]\ndefault_ca=a\n[a]\ndatabase={}\ndefault_md=sha256\n{extensions}",
            index.display()
        );
        fs::write(self.path("ca/config"), config).unwrap();
        let (by, by_key) = (format!("{signer}.crt"), format!("{signer}.key"));
        let common = ["ca", "-config", "ca/config", "-cert", &by, "-keyfile", &by_key];
        for revoked in revoked {
            self.ensure(revoked);
            let file = format!("{revoked}.crt");
            self.openssl(&[&common[..], &["-revoke", &file]].concat());
        }
        let time: &[&str] = match version {
            ListVersion::Stale => &[
                "-crl_lastupdate",
                "20200101000000Z",
                "-crl_nextupdate",
                "20200201000000Z",
            ],
            ListVersion::One | ListVersion::Two => &["-crldays", "30"],
        };
        let file = format!("{name}.crl");
        self.openssl(&[&common[..], &["-gencrl", "-out", &file], time].concat());
    }

    /// Puts several lists into NAME.crl.
    pub fn join(&self, name: &str, lists: &[&str]) {
        let read = |list: &&str| fs::read_to_string(self.path(&format!("{list}.crl"))).unwrap();
        fs::write(
            self.path(&format!("{name}.crl")),
            lists.iter().map(read).collect::<String>(),
        )
        .unwrap();
    }

    /// Makes a folder of lists under the names that OpenSSL looks for.
    pub fn hashed(&self, folder: &str, lists: &[&str]) -> PathBuf {
        let folder = self.path(folder);
        fs::create_dir(&folder).unwrap();
        for list in lists {
            let file = format!("{list}.crl");
            let hash = self.openssl(&["crl", "-hash", "-noout", "-in", &file]).stdout;
            fs::copy(self.path(&file), folder.join(format!("{}.r0", hash.trim()))).unwrap();
        }
        folder
    }

    fn openssl(&self, arguments: &[&str]) -> Answer {
        Answer::of(openssl().current_dir(self.0.path()).args(arguments)).with_code(0)
    }
}

fn openssl() -> Command {
    let found = ["/usr/bin/openssl", "/usr/local/bin/openssl"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    Command::new(found.expect("no program openssl: apt-get install openssl"))
}
