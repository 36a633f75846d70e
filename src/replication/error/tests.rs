//! How refusals are sorted, and what is said of them.

use super::*;
use crate::error::Failure;

fn facts() -> LoginFacts {
    LoginFacts {
        at: ServerAddress::Socket("/run/.s.PGSQL.5432".into()),
        user: "rep".to_owned(),
        database: "shop".to_owned(),
        passfile: None,
        replication: true,
    }
}

fn refusal(state: &str, message: &str, routine: &str) -> ConnectError {
    let fields = format!("SFATAL\0VFATAL\0C{state}\0M{message}\0R{routine}\0\0");
    ConnectError::of_login(ServerError::parse(fields.as_bytes()).unwrap(), facts())
}

#[test]
fn a_refusal_is_sorted_by_what_is_never_translated() {
    // As German servers say it.
    for (state, message, routine, beginning) in [
        (
            "28P01",
            "Passwort-Authentifizierung fehlgeschlagen",
            "auth_failed",
            "socket /run/.s.PGSQL.5432 rejected the password of user \"rep\"",
        ),
        (
            "28000",
            "kein pg_hba.conf-Eintrag",
            "ClientAuthentication",
            "pg_hba.conf of socket /run/.s.PGSQL.5432 does not let user \"rep\" in",
        ),
        (
            "28000",
            "Rolle existiert nicht",
            "InitializeSessionUserId",
            "socket /run/.s.PGSQL.5432 refused user \"rep\"",
        ),
        (
            "42501",
            "keine Berechtigung",
            "InitPostgres",
            "socket /run/.s.PGSQL.5432: user \"rep\" lacks the REPLICATION privilege",
        ),
        (
            "53300",
            "mehr als max_wal_senders (aktuell 10)",
            "InitProcess",
            "socket /run/.s.PGSQL.5432 has no free walsender: max_wal_senders is exhausted",
        ),
        (
            "53300",
            "tut mir leid, schon zu viele Verbindungen",
            "InitProcess",
            "socket /run/.s.PGSQL.5432 takes no more connections",
        ),
        (
            "3D000",
            "Datenbank existiert nicht",
            "InitPostgres",
            "database \"shop\" does not exist on socket /run/.s.PGSQL.5432",
        ),
        (
            "57P03",
            "das Datenbanksystem startet",
            "ProcessStartupPacket",
            "socket /run/.s.PGSQL.5432 does not take connections now",
        ),
        (
            "XX000",
            "etwas anderes",
            "elsewhere",
            "socket /run/.s.PGSQL.5432 refused the connection",
        ),
    ] {
        let failure = Failure::from(refusal(state, message, routine));
        assert_eq!(failure.one_line(), format!("{beginning}: {message}"));
    }
}

#[test]
fn settings_are_told_from_outages() {
    let class = |state: &str| refusal(state, "x", "").class();
    assert_eq!(class("3D000"), Class::Usage);
    for state in ["28P01", "28000", "42501", "53300", "57P03", "XX000"] {
        assert_eq!(class(state), Class::Unavailable, "{state}");
    }
    let missing = ConnectError::Auth {
        at: facts().at,
        user: "rep".to_owned(),
        source: AuthError::PasswordMissing,
    };
    assert_eq!(missing.class(), Class::Usage);
}

#[test]
fn of_several_hosts_each_says_why_it_would_not_do() {
    let attempts = vec![
        refusal("57P03", "starting up", ""),
        ConnectError::Session {
            at: facts().at,
            wanted: TargetSessionAttrs::Primary,
        },
    ];
    assert_eq!(
        Failure::from(ConnectError::NoHost { attempts }).one_line(),
        "none of the 2 addresses would do: socket /run/.s.PGSQL.5432 does not take connections now: starting up; \
         socket /run/.s.PGSQL.5432 is not what target_session_attrs=primary asks for"
    );
}

#[test]
fn a_damaged_page_is_named() {
    let fields = b"VERROR\0CXX001\0Mchecksum verification failure during base backup\0\0";
    let damaged = |warnings: &[&str]| ReplicationError::DamagedPages {
        at: facts().at,
        warnings: warnings.iter().map(|&warning| warning.to_owned()).collect(),
        end: None,
        source: ServerError::parse(fields).unwrap(),
    };
    let line = Failure::from(damaged(&["file a", "file b", "file c"])).one_line();
    assert!(line.contains("file a (and 2 more)"), "{line}");
    assert!(damaged(&[]).to_string().ends_with("it does not say which"));
    assert_eq!(damaged(&[]).class(), Class::Damaged);
}
