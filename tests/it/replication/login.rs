//! Logging in: what a server refuses and how we say so, several hosts, target_session_attrs.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use pgp_pitr::error::{Class, Explain, Failure};
use pgp_pitr::replication::{AuthError, ConnectError, ReplicationSession, SqlSession};

use super::{conninfo, env, standby_of};
use crate::support::cluster::{Cluster, Stop};
use crate::support::process::free_port;
use crate::support::tools::Major;

/// Why a connection for replication is refused.
async fn refusal(settings: &str) -> ConnectError {
    match ReplicationSession::connect(&conninfo(settings), &env()).await {
        Ok(session) => panic!("{settings}: connected to {}", session.address()),
        Err(error) => error,
    }
}

/// The message and the hint, as a person sees them.
fn said(error: ConnectError) -> String {
    let failure = Failure::from(error);
    format!("{}\n{}", failure.one_line(), failure.hint().unwrap_or_default())
}

fn over_tcp(cluster: &Cluster, more: &str) -> String {
    format!("host=127.0.0.1 port={} dbname=postgres {more}", cluster.port())
}

#[tokio::test]
async fn passwords_of_each_kind_are_accepted_and_wrong_ones_named() {
    for major in Major::all() {
        let cluster = Cluster::builder(major).build();
        for kind in ["md5", "scram-sha-256"] {
            let role = kind.split('-').next().unwrap();
            cluster.sql(&format!(
                "set password_encryption = '{kind}'; create role {role} login replication password 'séśame \"x'"
            ));
        }
        cluster.set_hba(
            "local all all trust\n\
             host replication md5 all md5\nhost replication scram all scram-sha-256\n\
             host all scram all password\nhost all all all scram-sha-256\n",
        );
        for role in ["md5", "scram"] {
            let good = over_tcp(&cluster, &format!("user={role} password='séśame \"x'"));
            let mut session = ReplicationSession::connect(&conninfo(&good), &env()).await.unwrap();
            let system = session.identify_system().await.unwrap().system_id.to_string();
            assert_eq!(system, cluster.sql("select system_identifier from pg_control_system()"));
            assert_eq!(u32::from(session.server_version().major().number()), major.number());

            let wrong = refusal(&over_tcp(&cluster, &format!("user={role} password=wrong"))).await;
            assert!(matches!(wrong, ConnectError::Password { .. }), "{wrong:?}");
            assert_eq!(wrong.class(), Class::Unavailable);
            let port = cluster.port();
            let text = said(wrong);
            assert!(
                text.starts_with(&format!("127.0.0.1:{port} rejected the password of user \"{role}\"")),
                "{text}"
            );

            let none = refusal(&over_tcp(&cluster, &format!("user={role}"))).await;
            assert!(
                matches!(
                    none,
                    ConnectError::Auth {
                        source: AuthError::PasswordMissing,
                        ..
                    }
                ),
                "{none:?}"
            );
            assert_eq!(none.class(), Class::Usage);
        }
        // In clear, over SQL.
        let clear = conninfo(&over_tcp(&cluster, "user=scram password='séśame \"x'"));
        let session = SqlSession::connect(&clear, &env()).await.unwrap();
        let user: String = session
            .query_one("select current_user::text", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(user, "scram");
        let refused = refusal(&over_tcp(
            &cluster,
            "user=md5 password='séśame \"x' require_auth=scram-sha-256",
        ))
        .await;
        assert!(
            matches!(
                refused,
                ConnectError::Auth {
                    source: AuthError::NotAllowed(_),
                    ..
                }
            ),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn each_refusal_says_what_it_is_and_what_to_do() {
    for major in Major::all() {
        let cluster = Cluster::builder(major)
            .conf("max_wal_senders", "1")
            .conf("max_replication_slots", "0")
            .build();
        cluster.sql("create role plain login; create role sleepy replication");
        cluster.set_hba("local all postgres trust\nlocal replication postgres,plain,sleepy,ghost trust\n");
        let socket = cluster.conninfo();
        let as_user = |user: &str| socket.replace("user=postgres", &format!("user={user}"));

        let error = other_refusal(&as_user("plain")).await;
        assert!(
            matches!(error, ConnectError::Privilege { replication: true, .. }),
            "{error:?}"
        );
        let text = said(error);
        assert!(
            text.contains("user \"plain\" lacks the REPLICATION privilege"),
            "{text}"
        );
        assert!(text.ends_with("ALTER ROLE \"plain\" REPLICATION"), "{text}");

        for user in ["sleepy", "ghost"] {
            let error = other_refusal(&as_user(user)).await;
            assert!(matches!(error, ConnectError::User { .. }), "{error:?}");
        }

        let error = other_refusal(&as_user("nobody")).await;
        assert!(matches!(error, ConnectError::NoHbaEntry { .. }), "{error:?}");
        assert!(said(error).contains("pg_hba.conf"));

        let error = SqlSession::connect(&conninfo(&socket.replace("dbname=postgres", "dbname=nowhere")), &env()).await;
        let error = error.unwrap_err();
        assert!(matches!(error, ConnectError::Database { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Usage);
        assert!(said(error).starts_with("database \"nowhere\" does not exist"));

        let first = once_free(&socket).await.unwrap();
        let error = refusal(&socket).await;
        assert!(matches!(error, ConnectError::WalSenders { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Unavailable);
        assert!(said(error).contains("max_wal_senders is exhausted"));
        drop(first);
    }
}

/// Why a connection is refused apart from the lack of WAL senders.
async fn other_refusal(settings: &str) -> ConnectError {
    once_free(settings).await.map(|_| ()).unwrap_err()
}

/// Connects once the server's one WAL sender has got over the connection before: its process outlives that a
/// little.
async fn once_free(settings: &str) -> Result<ReplicationSession, ConnectError> {
    for _ in 0..500 {
        match ReplicationSession::connect(&conninfo(settings), &env()).await {
            Err(ConnectError::WalSenders { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other,
        }
    }
    panic!("{settings}: the WAL sender of an earlier connection does not go away");
}

#[tokio::test]
async fn who_does_not_answer_like_a_server_is_named() {
    let error = refusal(&format!("host=127.0.0.1 port={}", free_port())).await;
    assert!(matches!(error, ConnectError::Reach { .. }), "{error:?}");
    assert!(said(error).starts_with("cannot connect to 127.0.0.1:"));

    let error = refusal("host=/nowhere port=5432").await;
    assert!(said(error).starts_with("cannot connect to socket /nowhere/.s.PGSQL.5432: No such file"));

    let error = refusal("host=no-such-host.invalid").await;
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error:?}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let since = Instant::now();
    let error = refusal(&format!("host=127.0.0.1 port={port} connect_timeout=1")).await;
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error:?}");
    assert!(since.elapsed() < Duration::from_secs(20));

    for words in ["HTTP/1.1 400 Bad Request\r\n\r\n", "220 mail.example.com ESMTP\r\n", ""] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let babbler = std::thread::spawn(move || listener.accept().unwrap().0.write_all(words.as_bytes()));
        let error = refusal(&format!(
            "host=127.0.0.1 port={port} sslmode=disable connect_timeout=10"
        ))
        .await;
        babbler.join().unwrap().unwrap();
        let told = matches!(error, ConnectError::Protocol { .. } | ConnectError::Closed { .. });
        assert!(told, "{words}: {error:?}");
        assert_eq!(error.class(), Class::Unavailable);
    }
}

#[tokio::test]
async fn of_several_hosts_the_one_that_is_asked_for_is_found() {
    for major in Major::all() {
        let primary = Cluster::builder(major).build();
        let mut standby = standby_of(&primary);
        let (one, two, dead) = (primary.port(), standby.port(), free_port());
        let found = async |attrs: &str, more: &str| {
            let settings = format!(
                "host=127.0.0.1,127.0.0.1,127.0.0.1 port={dead},{two},{one} user=postgres target_session_attrs={attrs} {more}"
            );
            let info = conninfo(&settings);
            let replication = ReplicationSession::connect(&info, &env())
                .await
                .map(|session| session.address().to_string());
            let sql = SqlSession::connect(&info, &env())
                .await
                .map(|session| session.address().to_string());
            assert_eq!(replication.is_ok(), sql.is_ok(), "{attrs}");
            (replication, sql)
        };
        for (attrs, port) in [
            ("any", two),
            ("primary", one),
            ("read-write", one),
            ("standby", two),
            ("read-only", two),
            ("prefer-standby", two),
        ] {
            for more in ["", "load_balance_hosts=random"] {
                if attrs == "any" && !more.is_empty() {
                    continue;
                }
                let (replication, sql) = found(attrs, more).await;
                assert_eq!(replication.unwrap(), format!("127.0.0.1:{port}"), "{attrs}");
                assert_eq!(sql.unwrap(), format!("127.0.0.1:{port}"), "{attrs}");
            }
        }
        standby.stop(Stop::Fast);
        let (replication, _) = found("prefer-standby", "").await;
        assert_eq!(replication.unwrap(), format!("127.0.0.1:{one}"));
        let (replication, _) = found("standby", "").await;
        let error = replication.unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
        let text = said(error);
        for part in [
            dead.to_string(),
            two.to_string(),
            "target_session_attrs=standby".to_owned(),
        ] {
            assert!(text.contains(&part), "{text}");
        }
    }
}

#[tokio::test]
async fn a_server_that_refuses_us_ends_the_search_and_one_that_is_not_ready_does_not() {
    let primary = Cluster::new();
    primary.set_hba("local all all trust\nhost replication all all scram-sha-256\n");
    primary.sql("create role rep login replication password 'x'");
    let mut other = Cluster::new();
    let ports = format!("{},{}", primary.port(), other.port());
    let settings = format!("host=127.0.0.1,127.0.0.1 port={ports} user=rep password=wrong");
    assert!(matches!(refusal(&settings).await, ConnectError::Password { .. }));

    // In recovery, and takes no connections there.
    other.stop(Stop::Fast);
    other.append("postgresql.conf", "hot_standby = off\nrestore_command = 'false'\n");
    std::fs::write(other.data_dir().join("standby.signal"), "").unwrap();
    crate::support::user::ServerUser::get().give(&other.data_dir().join("standby.signal"));
    other.start_without_waiting();
    crate::support::process::wait_for("the server is up, though not ready", || {
        std::net::TcpStream::connect(("127.0.0.1", other.port())).ok()
    });
    let ports = format!("{},{}", other.port(), primary.port());
    let settings = format!("host=127.0.0.1,127.0.0.1 port={ports} user=rep password=x");
    let session = ReplicationSession::connect(&conninfo(&settings), &env()).await.unwrap();
    assert_eq!(session.address().to_string(), format!("127.0.0.1:{}", primary.port()));
    let error = refusal(&format!("host=127.0.0.1 port={} user=postgres", other.port())).await;
    assert!(matches!(error, ConnectError::NotReady { .. }), "{error:?}");
}
