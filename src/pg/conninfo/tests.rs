//! What libpq 5.15 (psql 15) was seen to do with the same strings, files and variables, as tables; and
//! properties.

mod tables;

use super::*;
use crate::error::Explain;
use proptest::prelude::*;
use tables::{ACCEPTED, REFUSED};

/// A machine made up of variables and files; files have mode 0600 unless their name says otherwise.
#[derive(Default, Clone)]
struct Machine {
    variables: Vec<(&'static str, &'static str)>,
    files: Vec<(&'static str, &'static str)>,
}

impl Machine {
    fn with_passfile(content: &'static str) -> Self {
        Self {
            files: vec![("/home/me/.pgpass", content)],
            ..Self::default()
        }
    }

    fn with_service_file(content: &'static str) -> Self {
        Self {
            files: vec![("/home/me/.pg_service.conf", content)],
            ..Self::default()
        }
    }

    fn with(mut self, variables: &[(&'static str, &'static str)]) -> Self {
        self.variables.extend_from_slice(variables);
        self
    }

    fn resolve_with(&self, conninfo: &str, flags: &Overrides) -> Result<ConnInfo, ConnInfoError> {
        let var = |name: &str| {
            let found = self.variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let read_file = |path: &Path| {
            let found = self.files.iter().find(|(name, _)| Path::new(name) == path);
            let mode = match path.extension().and_then(|end| end.to_str()) {
                Some("group") => 0o100_640,
                Some("world") => 0o100_604,
                Some("folder") => 0o040_700,
                _ => 0o100_600,
            };
            found
                .map(|(_, content)| (content.as_bytes().to_vec(), mode))
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        let around = Surroundings {
            var: &var,
            read_file: &read_file,
            exists: &|path| self.files.iter().any(|(name, _)| Path::new(name) == path),
            os_user: Some("me".to_owned()),
            home: Some(PathBuf::from("/home/me")),
        };
        ConnInfo::resolve(Some(conninfo), flags, &around)
    }

    fn resolve(&self, conninfo: &str) -> Result<ConnInfo, ConnInfoError> {
        self.resolve_with(conninfo, &Overrides::default())
    }

    fn password(&self, conninfo: &str) -> Option<String> {
        let info = self.resolve(conninfo).unwrap();
        let secret = info.password_for(&info.servers()[0])?;
        Some(String::from_utf8(secret.reveal().to_vec()).unwrap())
    }

    fn display(&self, conninfo: &str) -> String {
        self.resolve(conninfo).unwrap().to_string()
    }

    fn error(&self, conninfo: &str) -> String {
        self.resolve(conninfo).unwrap_err().to_string()
    }
}

fn resolve(conninfo: &str) -> Result<ConnInfo, ConnInfoError> {
    Machine::default().resolve(conninfo)
}

#[test]
fn strings_that_libpq_accepts_mean_the_same_here() {
    for (conninfo, expected) in ACCEPTED {
        match resolve(conninfo) {
            Ok(info) => assert_eq!(info.to_string(), *expected, "{conninfo}"),
            Err(error) => panic!("{conninfo}: {error}"),
        }
    }
}

#[test]
fn strings_that_cannot_be_used_are_refused_with_a_reason() {
    for (conninfo, expected) in REFUSED {
        match resolve(conninfo) {
            Ok(info) => panic!("{conninfo}: {info}"),
            Err(error) => assert_eq!(error.to_string(), *expected, "{conninfo}"),
        }
    }
    let hint = |conninfo| resolve(conninfo).unwrap_err().hint().unwrap();
    assert_eq!(hint("hsot=a"), "Did you mean \"host\"?");
    assert_eq!(
        hint("sslmode=x"),
        "Allowed: disable, allow, prefer, require, verify-ca, verify-full."
    );
}

#[test]
fn an_unknown_word_behind_a_password_is_not_shown() {
    let error = resolve("password=abc def=ghi").unwrap_err().to_string();
    assert_eq!(
        error,
        "unknown connection setting at character 14 in the connection string"
    );
}

#[test] // psql 15 and libpq 5.15
fn a_connection_string_beats_flags_and_flags_beat_everything_else() {
    let flags = Overrides {
        host: Some("h2".to_owned()),
        port: Some("25001".to_owned()),
        user: Some("ann".to_owned()),
        over_conninfo: false,
    };
    let machine =
        Machine::with_service_file("[s]\nhost=s\nuser=svc\ndbname=d\n").with(&[("PGUSER", "env"), ("PGPORT", "9")]);
    let display = |conninfo| machine.resolve_with(conninfo, &flags).unwrap().to_string();
    assert_eq!(display("host=a user=joe"), "host=a port=25001 user=joe dbname=joe");
    assert_eq!(display("mydb"), "host=h2 port=25001 user=ann dbname=mydb");
    assert_eq!(
        display("host=''"),
        "host=/var/run/postgresql port=25001 user=ann dbname=ann"
    );
    assert_eq!(display("service=s"), "host=h2 port=25001 user=ann dbname=d");
    let flags = Overrides {
        over_conninfo: true,
        ..flags.clone()
    };
    let over = machine.resolve_with("host=a dbname=x", &flags).unwrap();
    assert_eq!(over.to_string(), "host=h2 port=25001 user=ann dbname=x");
    assert_eq!(machine.display("service=s"), "host=s port=9 user=svc dbname=d");
    assert_eq!(machine.display("service=s user=joe"), "host=s port=9 user=joe dbname=d");
}

#[test] // libpq 5.15
fn the_environment_fills_what_is_not_given() {
    let machine = Machine::default().with(&[
        ("PGHOST", "localhost"),
        ("PGPORT", "25009"),
        ("PGUSER", "ann"),
        ("PGDATABASE", "d"),
        ("PGPASSWORD", "pw"),
        ("PGAPPNAME", "a"),
        ("PGSSLMODE", ""),
        ("PGREQUIRESSL", "1"),
    ]);
    assert_eq!(machine.display(""), "host=localhost port=25009 user=ann dbname=d");
    assert_eq!(machine.display("host=b"), "host=b port=25009 user=ann dbname=d");
    assert_eq!(
        machine.display("dbname='' host=b"),
        "host=b port=25009 user=ann dbname=ann"
    );
    assert_eq!(machine.display("user='' host=b"), "host=b port=25009 user=me dbname=d");
    assert_eq!(
        machine.display("postgresql://@b/"),
        "host=b port=25009 user=ann dbname=d"
    );
    assert_eq!(machine.password("").as_deref(), Some("pw"));
    let info = machine.resolve("").unwrap();
    assert_eq!(info.application_name(), "a");
    assert_eq!(info.tls().mode(), SslMode::Require);
    assert_eq!(info.origin("sslmode"), Some(&Origin::Variable("PGREQUIRESSL")));
    assert_eq!(info.origin("connect_timeout"), None);
    let wrong = Machine::default().with(&[("PGTARGETSESSIONATTRS", "bad")]);
    assert_eq!(
        wrong.error(""),
        "invalid target_session_attrs \"bad\" (from PGTARGETSESSIONATTRS)"
    );
}

#[test]
fn the_application_name_is_ours_unless_somebody_says_otherwise() {
    let name = |conninfo| resolve(conninfo).unwrap().application_name().to_owned();
    assert_eq!(name(""), "pgp-pitr");
    assert_eq!(name("fallback_application_name=f"), "f");
    assert_eq!(name("application_name=a fallback_application_name=f"), "a");
    assert_eq!(name("application_name=''"), "");
}

const SERVICE_FILE: &str = "# c\n[other]\nhost=127.0.0.9\n\n[mine]\nhost=localhost\n  port=25005  \nuser=svc\ndbname= spaced\npassword=p=q#r\n[next]\nuser=no\n";

#[test] // libpq 5.15
fn a_service_is_a_group_of_lines() {
    let machine = Machine::with_service_file(SERVICE_FILE);
    let expected = "host=localhost port=25005 user=svc dbname=' spaced'";
    assert_eq!(machine.display("service=mine"), expected);
    assert_eq!(machine.password("service=mine").as_deref(), Some("p=q#r"));
    assert_eq!(
        machine
            .clone()
            .with(&[("PGSERVICE", "mine"), ("PGHOST", "h")])
            .display(""),
        expected
    );
    assert_eq!(
        machine.clone().with(&[("PGSERVICE", "other")]).display("service=mine"),
        expected
    );
    assert_eq!(
        machine.error("service=min"),
        "no service file defines the service \"min\""
    );
    let lines = [
        (
            "[mine] trailing\nhost=localhost\n",
            "host=localhost port=5432 user=me dbname=me",
        ),
        (
            "[mine]\nhost=a\nhost=b\n[mine]\nuser=x\n",
            "host=a port=5432 user=me dbname=me",
        ),
        ("[mine]\nhost='a'\n", "host='\\'a\\'' port=5432 user=me dbname=me"),
        ("[mine]\r\nhost=a\r\nuser=w\r\n", "host=a port=5432 user=w dbname=w"),
    ];
    for (content, expected) in lines {
        assert_eq!(
            Machine::with_service_file(content).display("service=mine"),
            expected,
            "{content}"
        );
    }
}

#[test] // libpq 5.15, save for LDAP and the words
fn a_service_line_that_cannot_be_understood_is_refused() {
    let lines = [
        ("host", "a line is \"key=value\""),
        ("host = a", "no blank may stand before the \"=\""),
        ("service=x", "a service can not refer to another service or file"),
        (
            "ldap://x/y?z?base?w",
            "services that an LDAP server defines are not supported",
        ),
    ];
    for (line, expected) in lines {
        let content: &'static str = Box::leak(format!("[mine]\n{line}\n").into_boxed_str());
        let error = Machine::with_service_file(content).error("service=mine");
        assert_eq!(error, format!("/home/me/.pg_service.conf, line 2: {expected}"));
    }
    let error = Machine::with_service_file("[mine]\nhsot=x\n").error("service=mine");
    assert_eq!(
        error,
        "unknown connection setting \"hsot\" in /home/me/.pg_service.conf, line 2"
    );
    let error = Machine::with_service_file("[mine]\nrequiressl=1\n").error("sslmode=disable service=mine");
    assert_eq!(
        error,
        "unknown connection setting \"requiressl\" in /home/me/.pg_service.conf, line 2"
    );
}

#[test] // libpq 5.15; servicefile= is of newer ones
fn service_files_are_looked_for_where_libpq_does() {
    let machine = Machine {
        files: vec![
            ("/home/me/.pg_service.conf", "[home]\nhost=h\n"),
            ("/named", "[named]\nhost=n\n"),
            ("/sys/pg_service.conf", "[home]\nhost=no\n[system]\nhost=s\n"),
            ("/etc/postgresql-common/pg_service.conf", "[debian]\nhost=d\n"),
        ],
        variables: Vec::new(),
    };
    let host = |machine: &Machine, conninfo| machine.resolve(conninfo).map(|info| info.servers()[0].to_string());
    assert_eq!(host(&machine, "service=home").unwrap(), "host=h port=5432");
    assert_eq!(host(&machine, "service=debian").unwrap(), "host=d port=5432");
    assert_eq!(
        host(&machine, "service=named servicefile=/named").unwrap(),
        "host=n port=5432"
    );
    let system = machine.clone().with(&[("PGSYSCONFDIR", "/sys")]);
    assert_eq!(host(&system, "service=system").unwrap(), "host=s port=5432");
    assert_eq!(host(&system, "service=home").unwrap(), "host=h port=5432");
    assert!(host(&system, "service=debian").is_err());
    let named = machine.clone().with(&[("PGSERVICEFILE", "/named")]);
    assert_eq!(host(&named, "service=named").unwrap(), "host=n port=5432");
    assert!(host(&named, "service=home").is_err());
    let missing = machine.with(&[("PGSERVICEFILE", "/nofile")]);
    assert_eq!(missing.error("service=home"), "could not read service file /nofile");
}

#[test] // libpq 5.15
fn the_first_matching_line_of_the_password_file_counts() {
    let lines = [
        ("localhost:5432:x:u:one\n", Some("one")),
        ("*:*:*:*:two\n", Some("two")),
        ("#localhost:5432:x:u:no\nlocalhost:*:x:*:three", Some("three")),
        ("localhost:5433:x:u:no\nlocalhost:5432:*:u:a\\:b\\\\c\n", Some("a:b\\c")),
        ("localhost:5432:x:u:a:b", Some("a")),
        ("local\\host:5432:x:u:esc\n", Some("esc")),
        ("localhost:5432:x:u:\n*:*:*:*:later\n", None),
        ("localhost:5432:x:u:pw\r\n", Some("pw")),
        (" localhost:5432:x:u:blank\n", None),
        ("*x:5432:x:u:no", None),
        ("localhost:5432:x:u", None),
        ("localhost:5432:x:u:trail\\", Some("trail\\")),
        ("localhost:5432:x:u: sp ace ", Some(" sp ace ")),
        ("LOCALHOST:5432:x:u:case", None),
    ];
    for (content, expected) in lines {
        let machine = Machine::with_passfile(content);
        assert_eq!(
            machine.password("host=localhost user=u dbname=x").as_deref(),
            expected,
            "{content:?}"
        );
    }
}

#[test] // libpq 5.15
fn the_password_file_knows_a_server_by_its_host() {
    let machine = Machine::with_passfile(
        "localhost:5432:x:u:local\n/tmp:5432:x:u:tmp\n127.0.0.1:5432:x:u:addr\nlocalhost:5432:a\\:b:u:colon\n",
    );
    let table = [
        ("user=u dbname=x", Some("local")),
        ("host=/var/run/postgresql user=u dbname=x", Some("local")),
        ("host=/tmp user=u dbname=x", Some("tmp")),
        ("hostaddr=127.0.0.1 user=u dbname=x", Some("addr")),
        ("host=localhost hostaddr=127.0.0.1 user=u dbname=x", Some("local")),
        ("host=localhost user=u dbname=a:b", Some("colon")),
        ("host=localhost user=u dbname=x password=''", Some("local")),
        ("host=localhost user=u dbname=x password=given", Some("given")),
        ("host=localhost user=u dbname=x passfile=''", Some("local")),
        ("host=localhost user=u dbname=x passfile=/nofile", None),
    ];
    for (conninfo, expected) in table {
        assert_eq!(machine.password(conninfo).as_deref(), expected, "{conninfo}");
    }
    let info = machine.resolve("host=localhost,127.0.0.1,c user=u dbname=x").unwrap();
    let passwords: Vec<_> = info
        .servers()
        .iter()
        .map(|server| info.password_for(server).cloned())
        .collect();
    assert_eq!(passwords, [Some(Secret::new("local")), Some(Secret::new("addr")), None]);
    assert_eq!(
        info.passfile_of(&info.servers()[0]),
        Some(Path::new("/home/me/.pgpass"))
    );
    assert_eq!(info.passfile_of(&info.servers()[2]), None);
}

#[test] // libpq 5.15 prints these warnings itself
fn a_password_file_open_to_others_is_ignored_with_a_warning() {
    let line = "*:*:*:*:pw\n";
    let machine = Machine {
        files: vec![("/p.group", line), ("/p.world", line), ("/p.folder", ""), ("/p", line)],
        variables: Vec::new(),
    };
    for (file, expected) in [
        (
            "/p.group",
            "password file /p.group ignored: its mode is 0640, so others can read it; run: chmod 0600 /p.group",
        ),
        (
            "/p.world",
            "password file /p.world ignored: its mode is 0604, so others can read it; run: chmod 0600 /p.world",
        ),
        ("/p.folder", "password file /p.folder ignored: it is not a plain file"),
        ("/none", "password file /none could not be read: entity not found"),
    ] {
        let info = machine.resolve(&format!("passfile={file}")).unwrap();
        assert_eq!(info.password_for(&info.servers()[0]), None);
        assert_eq!(
            info.warnings().iter().map(ToString::to_string).collect::<Vec<_>>(),
            [expected]
        );
    }
    let info = machine.resolve("passfile=/p").unwrap();
    assert_eq!(info.warnings(), []);
    assert!(info.password_for(&info.servers()[0]).is_some());
    assert_eq!(resolve("").unwrap().warnings(), []);
}

#[test]
fn an_unnamed_server_is_where_its_socket_is() {
    let host = |files: &[&'static str], conninfo: &str| {
        let machine = Machine {
            files: files.iter().map(|name| (*name, "")).collect(),
            variables: Vec::new(),
        };
        machine.resolve(conninfo).unwrap().servers()[0].clone()
    };
    let debian = ["/var/run/postgresql", "/tmp", "/var/run/postgresql/.s.PGSQL.5432"];
    let built = ["/var/run/postgresql", "/tmp", "/tmp/.s.PGSQL.5433"];
    let socket = |path: &str| Endpoint::Socket(PathBuf::from(path));
    assert_eq!(
        host(&debian, "").endpoint(),
        socket("/var/run/postgresql/.s.PGSQL.5432")
    );
    assert_eq!(host(&built, "port=5433").endpoint(), socket("/tmp/.s.PGSQL.5433"));
    assert_eq!(host(&built, "").endpoint(), socket("/var/run/postgresql/.s.PGSQL.5432"));
    assert_eq!(host(&["/tmp"], "").endpoint(), socket("/tmp/.s.PGSQL.5432"));
    assert_eq!(host(&[], "host=@x").endpoint(), socket("\0x/.s.PGSQL.5432"));
}

#[test]
fn an_address_is_used_and_its_name_is_checked() {
    let info = resolve("host=db.example,/tmp,e hostaddr=10.0.0.1,::1, port=1").unwrap();
    let [named, socket, plain] = info.servers() else {
        panic!("{info}")
    };
    assert_eq!(named.endpoint(), Endpoint::Address("10.0.0.1:1".parse().unwrap()));
    assert_eq!(named.tls_name(), Some("db.example"));
    assert_eq!(socket.endpoint(), Endpoint::Address("[::1]:1".parse().unwrap()));
    assert_eq!(plain.endpoint(), Endpoint::Name("e", 1));
    assert_eq!(resolve("hostaddr=10.0.0.1").unwrap().servers()[0].tls_name(), None);
}

#[test]
fn numbers_of_zero_and_below_mean_the_default() {
    let info =
        resolve("connect_timeout=' 5 ' keepalives=0 keepalives_idle=-1 keepalives_count=3 tcp_user_timeout=1500")
            .unwrap();
    assert_eq!(info.connect_timeout(), Some(Duration::from_secs(5)));
    let expected = Tcp {
        keepalives: false,
        keepalives_idle: None,
        keepalives_interval: None,
        keepalives_count: Some(3),
        user_timeout: Some(Duration::from_millis(1500)),
    };
    assert_eq!(info.tcp(), expected);
    assert_eq!(resolve("connect_timeout=-5").unwrap().connect_timeout(), None);
}

#[test]
fn tls_files_come_from_the_home_folder_where_they_are_there() {
    let bare = resolve("sslmode=verify-ca").unwrap();
    assert_eq!(
        bare.tls().roots(),
        &RootCertificates::Missing("/home/me/.postgresql/root.crt".into())
    );
    assert_eq!(bare.tls().certificate(), None);
    assert!(bare.tls().checks_chain());
    let machine = Machine {
        files: [".crt", ".key"]
            .map(|end| format!("/home/me/.postgresql/postgresql{end}"))
            .into_iter()
            .chain([
                "/home/me/.postgresql/root.crt".to_owned(),
                "/home/me/.postgresql/root.crl".to_owned(),
            ])
            .map(|name| (&*name.leak(), ""))
            .collect(),
        variables: Vec::new(),
    };
    let info = machine.resolve("").unwrap();
    assert_eq!(
        info.tls().roots(),
        &RootCertificates::File("/home/me/.postgresql/root.crt".into())
    );
    assert!(info.tls().checks_chain());
    assert_eq!(
        info.tls().certificate().unwrap().key,
        Path::new("/home/me/.postgresql/postgresql.key")
    );
    assert_eq!(info.tls().crl().unwrap(), Path::new("/home/me/.postgresql/root.crl"));
    assert_eq!(
        machine.resolve("sslcertmode=disable").unwrap().tls().certificate(),
        None
    );
    let named = machine
        .resolve("sslcert=/c sslkey=/k sslrootcert=/none sslcrldir=/crls sslsni=0")
        .unwrap();
    assert_eq!(named.tls().certificate().unwrap().certificate, Path::new("/c"));
    assert_eq!(named.tls().roots(), &RootCertificates::Missing("/none".into()));
    assert_eq!((named.tls().crl(), named.tls().sni()), (None, false));
}

#[test]
fn the_systems_roots_ask_for_full_verification() {
    let info = resolve("sslrootcert=system ssl_min_protocol_version=tlsv1.3").unwrap();
    assert_eq!(
        (info.tls().mode(), info.tls().roots()),
        (SslMode::VerifyFull, &RootCertificates::System)
    );
    assert_eq!(info.tls().min_version(), TlsVersion::V1_3);
    let old = resolve("ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.2").unwrap();
    assert_eq!(
        (old.tls().min_version(), old.tls().max_version()),
        (TlsVersion::V1_2, TlsVersion::V1_2)
    );
}

#[test]
fn required_authentication_is_a_list_or_a_list_of_what_is_not() {
    let allowed = |list: &str| {
        let info = resolve(&format!("require_auth={list}")).unwrap();
        AuthMethod::ALL
            .into_iter()
            .filter(|method| info.require_auth().allows(*method))
            .map(AuthMethod::word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(allowed("''"), "password md5 gss sspi scram-sha-256 oauth none");
    assert_eq!(allowed("scram-sha-256"), "scram-sha-256");
    assert_eq!(allowed("scram-sha-256,none"), "scram-sha-256 none");
    assert_eq!(allowed("!password,!md5,!none"), "gss sspi scram-sha-256 oauth");
}

/// A URI with each byte of a part percent-encoded.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// A value no layer changes: not empty, and without what would make it a list or a socket's folder.
fn plain_value() -> impl Strategy<Value = String> {
    "[^\\x00,/@:][^\\x00,@:]{0,12}"
}

proptest! {
    #[test]
    fn what_is_quoted_is_read_back(host in plain_value(), user in "[^\\x00]{1,12}", dbname in "[^\\x00]{1,12}", password in "[^\\x00]{1,12}") {
        let quote = parse::quote;
        let text = format!("host={} user={} dbname={} password={}", quote(&host), quote(&user), quote(&dbname), quote(&password));
        let info = resolve(&text).unwrap();
        prop_assert_eq!((info.user(), info.dbname()), (&*user, &*dbname));
        prop_assert_eq!(info.servers()[0].tls_name(), Some(&*host));
        prop_assert_eq!(info.password_for(&info.servers()[0]), Some(&Secret::new(password)));
        // What is shown is a connection string for the same server.
        prop_assert_eq!(resolve(&info.to_string()).unwrap().to_string(), info.to_string());
    }

    #[test]
    fn what_is_percent_encoded_is_read_back(host in plain_value(), port in 1u16.., user in "[^\\x00]{1,12}", dbname in "[^\\x00]{1,12}", password in "[^\\x00]{1,12}") {
        let [user_part, password_part, host_part, dbname_part] = [&user, &password, &host, &dbname].map(|text| encoded(text));
        let uri = format!("postgresql://{user_part}:{password_part}@{host_part}:{port}/{dbname_part}");
        let info = resolve(&uri).unwrap();
        prop_assert_eq!((info.user(), info.dbname(), info.servers()[0].port()), (&*user, &*dbname, port));
        prop_assert_eq!(info.servers()[0].tls_name(), Some(&*host));
        prop_assert_eq!(info.password_for(&info.servers()[0]), Some(&Secret::new(password)));
    }

    /// Whatever a password holds, and however badly it is written down, no text of ours shows it.
    #[test]
    fn no_text_shows_a_password(pieces in prop::collection::vec(prop::sample::select(
        vec!["hunter2", "/", "@", ":", "?", "#", "%", "%2", "&", "=", "[", "]", ",", " ", "'", "\\", "1", "ab"]), 1..9)) {
        let password = pieces.concat();
        for text in [
            format!("postgres://joe:{password}@db:5433/shop?sslmode=require"),
            format!("postgresql://joe:{password}@db"),
            format!("postgresql:/joe:{password}@db/shop"),
            format!("joe:{password}@db/shop"),
            format!("host=db password={password} user=joe"),
            format!("host=db password='{password}' user=joe"),
            format!("postgres://db/shop?user=joe&password={password}&sslmode=require"),
        ] {
            let shown = match resolve(&text) {
                Ok(info) => format!("{info} {info:?}"),
                Err(error) => format!("{error} {error:?} {:?}", error.hint()),
            };
            prop_assert!(!shown.contains("hunter2"), "{} shows {}", text, shown);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        let _ = resolve(&text);
        let _ = resolve(&format!("postgresql://{text}"));
    }
}
