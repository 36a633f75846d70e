//! Each cell of the table "certificate of the server" by "settings of the client", asked of `psql` and of us.

use std::cell::RefCell;
use std::fs;

use pgp_pitr::pg::conninfo::ConnInfo;
use pgp_pitr::pg::conninfo::{Overrides, Surroundings};
use pgp_pitr::replication::SqlSession;

use super::certificates::{Folder, ListVersion};
use super::env;
use crate::support::cluster::Cluster;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::ServerUser;

/// What became of a connection: refused, or there with or without TLS.
type Outcome = Option<bool>;

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// A server with TLS, and certificates to give to it.
struct Bench {
    cluster: Cluster,
    folder: Folder,
    /// Cells where we and psql differ.
    differ: RefCell<Vec<String>>,
}

impl Bench {
    fn new(major: &'static Major, settings: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        folder.ensure("leaf");
        let mut builder = Cluster::builder(major)
            .conf("ssl", "on")
            .conf("ssl_cert_file", folder.path("leaf.crt").display().to_string())
            .conf("ssl_key_file", folder.path("leaf.key").display().to_string());
        for (name, value) in settings {
            builder = builder.conf(name, value);
        }
        Self {
            cluster: builder.build(),
            folder,
            differ: RefCell::new(Vec::new()),
        }
    }

    /// Gives the server another certificate.
    fn present(&self, name: &str) {
        self.folder.ensure(name);
        for (setting, ending) in [("ssl_cert_file", "crt"), ("ssl_key_file", "key")] {
            let path = self.folder.path(&format!("{name}.{ending}"));
            self.cluster
                .sql(&format!("alter system set {setting} = '{}'", path.display()));
        }
        // Twice: when the second has been seen, the first is certainly done with.
        self.cluster.reload();
        self.cluster.reload();
    }

    /// A connection string; `{dir}` stands for the folder of certificates.
    fn string(&self, settings: &str) -> String {
        let dir = self.folder.path("");
        let dir = dir.display().to_string();
        format!(
            "port={} user=postgres dbname=postgres gssencmode=disable {}",
            self.cluster.port(),
            settings.replace("{dir}", dir.trim_end_matches('/'))
        )
    }

    /// Asks both, and remembers where they differ.
    async fn same(&self, what: &str, settings: &str) -> Outcome {
        let string = self.string(settings);
        let (theirs, words) = by_psql(&string);
        let (ours, reason) = by_us(&string).await;
        if ours != theirs {
            let line = format!("{what}: {settings}\n  psql: {theirs:?} {words}\n  we: {ours:?} {reason}");
            self.differ.borrow_mut().push(line);
        }
        ours
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let differ = self.differ.borrow();
            assert!(
                differ.is_empty(),
                "{} cells differ:\n{}",
                differ.len(),
                differ.join("\n")
            );
        }
    }
}

/// The newest libpq at hand decides.
fn by_psql(string: &str) -> (Outcome, String) {
    let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let answer = Answer::of(
        ServerUser::get()
            .command(Major::newest().program("psql"))
            .args(["-XAtq", "-d", string, "-c", query]),
    );
    match answer.code {
        0 => (Some(answer.stdout.trim() == "t"), String::new()),
        _ => (None, answer.stderr),
    }
}

async fn by_us(string: &str) -> (Outcome, String) {
    let around = Surroundings {
        var: &|_| None,
        read_file: &|path| Ok((fs::read(path)?, 0o600)),
        exists: &|path| path.exists(),
        os_user: None,
        home: None,
    };
    let info = match ConnInfo::resolve(Some(string), &Overrides::default(), &around) {
        Ok(info) => info,
        Err(error) => return (None, error.to_string()),
    };
    match SqlSession::connect(&info, &env()).await {
        Ok(session) => {
            let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
            (Some(session.query_one(query, &[]).await.unwrap().get(0)), String::new())
        }
        Err(error) => (None, pgp_pitr::error::on_one_line(&error)),
    }
}

#[tokio::test]
async fn a_chain_is_judged_as_by_psql() {
    let bench = Bench::new(Major::newest(), &[]);
    let mut accepted = 0;
    // Presented by the server, and the root files to check it against.
    for (presented, roots) in [
        (
            "leaf",
            &["root", "other-root", "both-roots", "link", "leaf", "missing"][..],
        ),
        ("rsa", &["root"]),
        ("p384", &["root"]),
        ("ed25519", &["root"]),
        ("sha384", &["rsa-root"]),
        ("sha512", &["rsa-root"]),
        ("pss", &["rsa-root"]),
        ("v1", &["root", "other-root", "v1"]),
        ("v1-rsa", &["root"]),
        ("by-v1-root", &["v1-root"]),
        ("by-key-root", &["key-root"]),
        ("chain-v1-link", &["root"]),
        ("by-old-root", &["old-root"]),
        ("by-no-root", &["no-root"]),
        ("self", &["self", "root"]),
        ("self-plain", &["self-plain"]),
        ("self-v1", &["self-v1"]),
        ("self-old", &["self-old"]),
        ("marked", &["root"]),
        ("old", &["root"]),
        ("for-clients", &["root"]),
        ("for-servers", &["root"]),
        ("signs-only", &["root"]),
        ("strange", &["root"]),
        ("not-strange", &["root"]),
        ("by-link", &["root", "link", "root-and-link"]),
        ("chain", &["root", "link"]),
        ("chain-twisted", &["root"]),
        ("chain-broken", &["root", "root-and-link"]),
        ("chain-v1", &["root", "other-root"]),
        ("chain-deep", &["root"]),
        ("chain-short", &["root"]),
        ("chain-no-authority", &["root"]),
        ("chain-no-sign", &["root"]),
    ] {
        bench.present(presented);
        for root in roots {
            bench.folder.ensure(root);
            for mode in ["prefer", "require", "verify-ca", "verify-full"] {
                let settings =
                    format!("host=localhost hostaddr=127.0.0.1 sslmode={mode} sslrootcert={{dir}}/{root}.crt");
                let outcome = bench.same(presented, &settings).await;
                accepted += u32::from(outcome == Some(true));
            }
        }
    }
    assert!(
        accepted > 60,
        "{accepted} cells with TLS: the table does not test what it should"
    );
}

#[tokio::test]
async fn a_name_is_judged_as_by_psql() {
    let bench = Bench::new(Major::newest(), &[]);
    let hosts = [
        "host=localhost hostaddr=127.0.0.1",
        "host=127.0.0.1",
        "hostaddr=127.0.0.1",
        "host=db.example.com hostaddr=127.0.0.1",
        "host=a.b.example.com hostaddr=127.0.0.1",
        "host=example.com hostaddr=127.0.0.1",
    ];
    for presented in [
        "leaf",
        "cn",
        "two-cn",
        "cn-ip",
        "cn-wild",
        "no-cn",
        "san-other",
        "san-ip",
        "san-other-ip",
        "san-ip6",
        "san-dns-ip",
        "san-wild",
        "san-wild-deep",
        "san-wild-part",
        "san-case",
        "san-mail",
        "v1",
    ] {
        bench.present(presented);
        for host in hosts {
            bench
                .same(
                    presented,
                    &format!("{host} sslmode=verify-full sslrootcert={{dir}}/root.crt"),
                )
                .await;
        }
    }
}

#[tokio::test]
async fn each_mode_does_what_psql_does_with_each_kind_of_server() {
    let bench = Bench::new(Major::newest(), &[]);
    let roots = [
        "",
        "sslrootcert={dir}/root.crt",
        "sslrootcert={dir}/other-root.crt",
        "sslrootcert=system",
    ];
    let trusted = "local all all trust\n";
    for hba in [
        "host all all all trust",
        "hostssl all all all trust",
        "hostnossl all all all trust",
        "host all all all reject",
    ] {
        bench.cluster.set_hba(&format!("{trusted}{hba}\n"));
        for mode in MODES {
            for root in roots {
                bench.same(hba, &format!("host=127.0.0.1 sslmode={mode} {root}")).await;
            }
        }
    }
    bench.cluster.set_hba(&format!("{trusted}host all all all trust\n"));
    bench.cluster.set("ssl", "off");
    bench.cluster.reload();
    for mode in MODES {
        bench
            .same(
                "no TLS",
                &format!("host=127.0.0.1 sslmode={mode} sslrootcert={{dir}}/root.crt"),
            )
            .await;
        bench
            .same(
                "no TLS",
                &format!("host=127.0.0.1 sslmode={mode} channel_binding=require"),
            )
            .await;
    }
}

#[tokio::test]
async fn revocation_lists_are_judged_as_by_psql() {
    let bench = Bench::new(Major::newest(), &[]);
    let folder = &bench.folder;
    for (version, ending) in [(ListVersion::One, ""), (ListVersion::Two, "-2")] {
        folder.revoke(&format!("leaf{ending}"), "root", &["leaf"], version);
        folder.revoke(&format!("none{ending}"), "root", &[], version);
    }
    folder.revoke("other", "other-root", &[], ListVersion::One);
    folder.revoke("link", "root", &["link"], ListVersion::Two);
    folder.revoke("by-link", "link", &[], ListVersion::Two);
    folder.revoke("stale", "root", &[], ListVersion::Stale);
    folder.join("both", &["none", "by-link"]);
    folder.join("stale-and-new", &["stale", "none-2"]);
    let hashed = folder.hashed("lists", &["none", "by-link"]);
    for presented in ["leaf", "v1", "self", "chain", "chain-v1"] {
        bench.present(presented);
        let to = "host=localhost sslmode=verify-full sslrootcert={dir}/root.crt";
        for list in [
            "leaf",
            "leaf-2",
            "none",
            "none-2",
            "other",
            "link",
            "by-link",
            "stale",
            "both",
            "stale-and-new",
        ] {
            bench.same(presented, &format!("{to} sslcrl={{dir}}/{list}.crl")).await;
        }
        bench
            .same(presented, &format!("{to} sslcrldir={}", hashed.display()))
            .await;
    }
}

#[tokio::test]
async fn client_certificates_are_used_as_by_psql() {
    let bench = Bench::new(Major::newest(), &[]);
    for name in ["root", "client", "client-v1", "client-wrong", "client-nobody"] {
        bench.folder.ensure(name);
    }
    let root = bench.folder.path("root.crt").display().to_string();
    bench.cluster.set("ssl_ca_file", &root);
    bench.cluster.reload();
    fs::copy(bench.folder.path("client.key"), bench.folder.path("open.key")).unwrap();
    bench.folder.protect("open.key", 0o644);
    let to = "host=127.0.0.1 sslmode=require";
    for hba in ["cert", "trust clientcert=verify-ca", "trust"] {
        bench
            .cluster
            .set_hba(&format!("local all all trust\nhostssl all all all {hba}\n"));
        for (certificate, key) in [
            ("client", "client"),
            ("client-v1", "client-v1"),
            ("client-wrong", "client-wrong"),
            ("client-nobody", "client-nobody"),
            ("client", "leaf"),
            ("client", "open"),
            ("client", "missing"),
        ] {
            let pair = format!("sslcert={{dir}}/{certificate}.crt sslkey={{dir}}/{key}.key");
            bench.same(hba, &format!("{to} {pair}")).await;
        }
        for mode in ["disable", "allow", "require"] {
            let pair = "sslcert={dir}/client.crt sslkey={dir}/client.key";
            bench.same(hba, &format!("{to} sslcertmode={mode} {pair}")).await;
            bench.same(hba, &format!("{to} sslcertmode={mode}")).await;
        }
    }
    bench.cluster.set("ssl_ca_file", "");
    bench.cluster.reload();
    for mode in ["disable", "allow", "require"] {
        bench.same("asks for none", &format!("{to} sslcertmode={mode}")).await;
    }
}

#[tokio::test]
async fn a_client_certificate_that_was_named_must_be_there() {
    // psql would go on without it, and leave it to the server to say something less clear.
    let bench = Bench::new(Major::usual(), &[]);
    let settings = "host=127.0.0.1 sslmode=require sslcert={dir}/missing.crt sslkey={dir}/leaf.key";
    let (outcome, reason) = by_us(&bench.string(settings)).await;
    assert_eq!(outcome, None);
    assert!(reason.starts_with("cannot read client certificate"), "{reason}");
}

#[tokio::test]
async fn versions_of_tls_and_direct_negotiation_are_used_as_by_psql() {
    let bench = Bench::new(Major::newest(), &[]);
    for negotiation in ["postgres", "direct"] {
        for mode in ["require", "verify-full"] {
            let settings =
                format!("host=localhost sslmode={mode} sslrootcert={{dir}}/root.crt sslnegotiation={negotiation}");
            assert_eq!(bench.same("newest", &settings).await, Some(true));
        }
    }
    for (least, most) in [("TLSv1.2", "TLSv1.2"), ("TLSv1.3", "TLSv1.3")] {
        bench.cluster.set("ssl_min_protocol_version", least);
        bench.cluster.set("ssl_max_protocol_version", most);
        bench.cluster.reload();
        for (least, most) in [
            ("TLSv1", "TLSv1.2"),
            ("TLSv1.2", "TLSv1.3"),
            ("TLSv1.3", "TLSv1.3"),
            ("TLSv1.2", "TLSv1.2"),
        ] {
            for presented in ["leaf", "v1", "v1-rsa", "rsa", "pss"] {
                bench.present(presented);
                let range = format!("ssl_min_protocol_version={least} ssl_max_protocol_version={most}");
                let root = if presented == "pss" { "rsa-root" } else { "root" };
                let settings = format!("host=localhost sslmode=verify-full sslrootcert={{dir}}/{root}.crt {range}");
                bench.same(presented, &settings).await;
            }
        }
    }
}

#[tokio::test]
async fn a_login_is_bound_to_the_channel_as_by_psql() {
    for major in Major::all() {
        let bench = Bench::new(major, &[("password_encryption", "scram-sha-256")]);
        bench
            .cluster
            .sql("create role bound login password 'sesame'; create role plain login");
        bench
            .cluster
            .sql("set password_encryption = 'md5'; create role old login password 'sesame'");
        bench.cluster.set_hba(
            "local all all trust\nhost all old all md5\nhost all plain all trust\nhost all all all scram-sha-256\n",
        );
        let users = [
            "user=bound password=sesame",
            "user=bound password=wrong",
            "user=old password=sesame",
            "user=plain",
        ];
        for user in users {
            for mode in ["disable", "require"] {
                for binding in ["disable", "prefer", "require"] {
                    let to = format!("host=127.0.0.1 sslmode={mode} channel_binding={binding}");
                    bench.same(user, &format!("{to} {user}")).await;
                }
            }
        }
        // The hash is by the signature of the certificate; the majors do not differ in it.
        if major != Major::newest() {
            continue;
        }
        for presented in ["rsa", "p384", "v1-rsa", "sha384", "sha512", "pss", "ed25519"] {
            bench.present(presented);
            for binding in ["prefer", "require"] {
                let to = format!("host=127.0.0.1 sslmode=require channel_binding={binding}");
                bench.same(presented, &format!("{to} {}", users[0])).await;
            }
        }
    }
}
