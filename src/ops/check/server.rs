//! Judges a server's settings, the role, and the way in for `backup`. Pure.

use std::ffi::OsStr;
use std::path::Path;

use super::facts::ServerFacts;
use super::words;
use super::{Check, Status};
use crate::pg::MajorVersion;
use crate::pg::size::Size;
use crate::replication::SystemIdentity;

/// Before 16 the server cuts an expanded command there (`MAXPGPATH`, less the byte that ends it).
const COMMAND_LIMIT: usize = 1023;
const LAST_MAJOR_WITH_LIMIT: u16 = 15;

/// What `%p` and `%f` become for a segment.
const EXPANDED_PATH: usize = "pg_wal/000000010000000000000001".len();
const EXPANDED_NAME: usize = "000000010000000000000001".len();

/// Everything that the facts alone tell. `at` is where the server is; `line` the value of
/// `archive_command` that would bring WAL into this repository.
pub(super) fn judge(facts: &ServerFacts, at: &str, line: &str) -> Vec<Check> {
    let mut checks = vec![
        server(facts, at),
        version(facts),
        wal_level(facts),
        archive_mode(facts, line),
    ];
    if facts.archives() {
        checks.push(archive_command(facts, line));
        checks.extend(archive_timeout(facts));
    }
    checks.extend([
        max_wal_senders(facts),
        on_or_warning(
            facts,
            "full_page_writes",
            "a page torn by a crash stays torn, in backups too",
            "full_page_writes = on",
        ),
        on_or_warning(facts, "fsync", "a power cut may destroy the cluster", "fsync = on"),
        on_or_warning(
            facts,
            "data_checksums",
            "a page that the disk has damaged is backed up like any other",
            "stop the server, run pg_checksums --enable, start it again (a downtime of some minutes per 100 GB)",
        ),
        on_or_warning(
            facts,
            "hot_standby",
            "a restore can't pause at its target to be looked at",
            "hot_standby = on, then restart the server",
        ),
        role(facts),
        config_files(facts),
    ]);
    checks
}

fn server(facts: &ServerFacts, at: &str) -> Check {
    let kind = if facts.in_recovery { "a standby" } else { "a primary" };
    let detail = format!(
        "{kind} at {at}, cluster {}, database {}, role {}",
        facts.system, facts.database, facts.role
    );
    Check::ok("server", detail)
}

fn version(facts: &ServerFacts) -> Check {
    let detail = format!("PostgreSQL {}", facts.version);
    match facts.major.is_newer_than_known() {
        false => Check::ok("version", detail),
        true => {
            let newest = MajorVersion::NEWEST_KNOWN.number();
            let why = format!("{detail}; this program was tested with versions up to {newest}");
            Check::warning("version", why, "look for a newer pgp-pitr, and test a restore")
        }
    }
}

fn wal_level(facts: &ServerFacts) -> Check {
    match facts.setting("wal_level") {
        level @ "minimal" => Check::fails(
            "wal_level",
            format!("{level}: the WAL lacks what a recovery needs"),
            "wal_level = replica in postgresql.conf, then restart the server, then take a backup",
        ),
        level => Check::ok("wal_level", level),
    }
}

fn archive_mode(facts: &ServerFacts, line: &str) -> Check {
    let name = "archive_mode";
    let mode = facts.setting(name);
    match (facts.archives(), facts.in_recovery, facts.receivers) {
        (true, true, _) if mode == "on" => Check::ok(name, "on: this standby archives from its promotion on"),
        (true, _, _) => Check::ok(name, mode),
        (false, true, _) => Check::ok(name, format!("{mode} on this standby; its primary must archive")),
        (false, false, 1..) => Check::ok(name, format!("{mode}, but a receiver streams the WAL")),
        (false, false, 0) => Check::fails(
            name,
            format!("{mode}, and no receiver streams: no WAL leaves this server"),
            format!(
                "put these two lines into postgresql.conf, then restart the server:\n\
                 archive_mode = on\narchive_command = {line}"
            ),
        ),
    }
}

fn archive_command(facts: &ServerFacts, line: &str) -> Check {
    let name = "archive_command";
    let fix = || format!("put this line into postgresql.conf, then reload it:\narchive_command = {line}");
    let library = facts.setting("archive_library");
    if !library.is_empty() {
        return Check::ok("archive_library", format!("{library} archives in place of a command"));
    }
    // The server shows this in place of the command while it does not archive.
    let command = match facts.setting(name) {
        "(disabled)" => return Check::ok(name, "not shown while this server does not archive"),
        command => command,
    };
    if command.trim().is_empty() {
        let why = "empty: the server keeps every segment until its disk is full";
        return Check::fails(name, why, fix());
    }
    if throws_away(command) {
        let why = "it succeeds and stores nothing: the WAL is lost for good";
        return Check::fails(name, why, fix());
    }
    let length = expanded_length(command);
    if facts.major.number() <= LAST_MAJOR_WITH_LIMIT && length > COMMAND_LIMIT {
        let major = facts.major.number();
        return Check::warning(
            name,
            format!("{length} bytes long: PostgreSQL {major} cuts it after {COMMAND_LIMIT}"),
            "move options into a settings file, or the command into a script",
        );
    }
    // Not shown whole: somebody may have put a secret into it.
    match command.contains("pgp-archive") {
        true => Check::ok(name, "runs pgp-archive"),
        false => Check::ok(
            name,
            "does not name pgp-archive; the round trip tells whether WAL arrives here",
        ),
    }
}

/// Whether a command says yes to every segment without looking at it.
fn throws_away(command: &str) -> bool {
    let command = command.split(" #").next().unwrap_or_default();
    // What goes on after one of these words may do the work.
    if command.contains(['&', '|', ';', '>', '\n']) {
        return false;
    }
    let first = command.split_whitespace().next().unwrap_or_default();
    let program = Path::new(first).file_name().and_then(OsStr::to_str).unwrap_or_default();
    matches!(program, "true" | ":" | "exit" | "echo" | "printf" | "sleep")
}

fn expanded_length(command: &str) -> usize {
    let more = |mark: &str, length: usize| command.matches(mark).count() * (length - mark.len());
    command.len() + more("%p", EXPANDED_PATH) + more("%f", EXPANDED_NAME)
}

fn archive_timeout(facts: &ServerFacts) -> Option<Check> {
    let name = "archive_timeout";
    match facts.setting(name) {
        "0" if facts.receivers == 0 => Some(Check::warning(
            name,
            "off: on a quiet server the newest changes wait for hours until their segment is full",
            "archive_timeout = '1min' in postgresql.conf, then reload it",
        )),
        "" | "0" => None,
        seconds => Some(Check::ok(name, format!("{seconds} s"))),
    }
}

fn max_wal_senders(facts: &ServerFacts) -> Check {
    let name = "max_wal_senders";
    let all: u64 = facts.setting(name).parse().unwrap_or(0);
    let free = all.saturating_sub(facts.walsenders);
    let fix = format!(
        "max_wal_senders = {} in postgresql.conf, then restart the server",
        all + 2
    );
    match (all, free) {
        (0, _) => Check::fails(name, "0: nobody can take a backup", fix),
        (_, 0) => Check::fails(name, format!("all {all} are in use: nobody can take a backup"), fix),
        _ => Check::ok(name, format!("{all}, of which {free} are free")),
    }
}

fn on_or_warning(facts: &ServerFacts, name: &str, why: &str, fix: &str) -> Check {
    match facts.setting(name) {
        "on" => Check::ok(name, "on"),
        value => Check::warning(name, format!("{value}: {why}"), fix),
    }
}

fn role(facts: &ServerFacts) -> Check {
    let role = &facts.role;
    match facts.may_replicate {
        true => Check::ok("role", format!("{role} may replicate")),
        false => Check::fails(
            "role",
            format!("{role} lacks the REPLICATION privilege, so it can't take a backup"),
            format!("ALTER ROLE {} REPLICATION", identifier(role)),
        ),
    }
}

/// Configuration files outside the data directory are not in a base backup: they are captured beside it.
fn config_files(facts: &ServerFacts) -> Check {
    let name = "config_files";
    let role = identifier(&facts.role);
    let files = ["config_file", "hba_file", "ident_file"].map(|file| facts.setting(file));
    let data = Path::new(facts.setting("data_directory"));
    if data.as_os_str().is_empty() || files.iter().any(|file| file.is_empty()) {
        return Check::warning(
            name,
            "the role may not see where they are; a backup lacks those outside the data directory",
            format!("GRANT pg_read_all_settings TO {role}"),
        );
    }
    if files.iter().all(|file| Path::new(file).starts_with(data)) {
        return Check::ok(name, "in the data directory, so in every backup");
    }
    match facts.may_read_files {
        true => Check::ok(name, "outside the data directory, and captured with every backup"),
        false => Check::warning(
            name,
            "outside the data directory, and the role may not read them: no backup has them",
            format!(
                "GRANT pg_read_server_files TO {role}; GRANT EXECUTE ON FUNCTION \
                 pg_read_binary_file(text, bigint, bigint, boolean), pg_ls_dir(text, boolean, boolean) TO {role}"
            ),
        ),
    }
}

/// A name as SQL reads it back.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What the replication protocol says must be what SQL says: of several hosts, two may have answered.
pub(super) fn judge_identity(facts: &ServerFacts, identity: &SystemIdentity) -> Check {
    let name = "replication_connection";
    match identity.system_id == facts.system {
        true => Check::ok(name, format!("let in, on timeline {}", identity.timeline)),
        false => Check::fails(
            name,
            format!(
                "leads to cluster {}, and a connection for queries to cluster {}",
                identity.system_id, facts.system
            ),
            "name one host, or set target_session_attrs=primary",
        ),
    }
}

/// Free space below which a disk with WAL on it is worth a word: so many segments.
const LITTLE: u64 = 64;

/// Judges the room on the disk of `pg_wal`, where it can be seen. `rate` is how many bytes of WAL are
/// written in a second, where that is known.
pub(super) fn judge_disk(facts: &ServerFacts, free: u64, rate: Option<f64>) -> Check {
    let mut check = Check::ok(
        "wal_disk",
        format!("{} free on the disk of pg_wal", Size::new(free).short()),
    );
    if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
        let left = std::time::Duration::try_from_secs_f64(free as f64 / rate).unwrap_or_default();
        check.detail = format!(
            "{}: about {} at the rate of now if nothing is archived",
            check.detail,
            words::span(left)
        );
    }
    if free < LITTLE * facts.segment_size.bytes() {
        check.status = Status::Warning;
        check.fix = Some("make room there; a full disk stops the server".to_owned());
    }
    check
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::server;
    use super::*;

    const LINE: &str = "'pgp-archive %p --repo /backups'";

    /// What a name came to on a server of which one setting is different.
    fn with(name: &str, value: &str) -> Check {
        let mut facts = server();
        facts.settings.insert(name.to_owned(), value.to_owned());
        let checks = judge(&facts, "here", LINE);
        checks.into_iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn a_server_as_it_should_be_passes_every_check() {
        for check in judge(&server(), "here", LINE) {
            assert_eq!(check.status, Status::Ok, "{check:?}");
        }
    }

    #[test]
    fn each_setting_that_spoils_a_restore_fails_and_others_are_warned_of() {
        for (name, value, status) in [
            ("wal_level", "minimal", Status::Fails),
            ("wal_level", "logical", Status::Ok),
            ("archive_mode", "off", Status::Fails),
            ("archive_mode", "always", Status::Ok),
            ("archive_command", "", Status::Fails),
            ("archive_command", "cp %p /backups/%f", Status::Ok),
            ("archive_timeout", "0", Status::Warning),
            ("max_wal_senders", "0", Status::Fails),
            ("full_page_writes", "off", Status::Warning),
            ("fsync", "off", Status::Warning),
            ("data_checksums", "off", Status::Warning),
            ("hot_standby", "off", Status::Warning),
        ] {
            let check = with(name, value);
            assert_eq!(check.status, status, "{check:?}");
            assert_eq!(check.fix.is_some(), status != Status::Ok, "{check:?}");
        }
    }

    #[test]
    fn the_way_out_of_no_archiving_is_two_lines_to_copy() {
        let fix = with("archive_mode", "off").fix.unwrap();
        let lines: Vec<&str> = fix.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "archive_mode = on",
                "archive_command = 'pgp-archive %p --repo /backups'"
            ]
        );
    }

    #[test]
    fn a_receiver_makes_up_for_an_archiver_and_a_standby_leaves_it_to_its_primary() {
        let mut facts = server();
        facts.settings.insert("archive_mode".to_owned(), "off".to_owned());
        facts.receivers = 1;
        assert_eq!(archive_mode(&facts, LINE).status, Status::Ok);
        facts.receivers = 0;
        facts.in_recovery = true;
        assert_eq!(archive_mode(&facts, LINE).status, Status::Ok);
    }

    #[test]
    fn commands_that_store_nothing_are_known() {
        for command in [
            "true",
            "/bin/true",
            "/usr/bin/true # %p",
            ":",
            "exit 0",
            "echo %p",
            "  true",
        ] {
            assert!(throws_away(command), "{command}");
        }
        for command in [
            "pgp-archive %p",
            "true && pgp-archive %p",
            "echo %p; pgp-archive %p",
            "truecopy %p",
            "test ! -f /a/%f && cp %p /a/%f",
        ] {
            assert!(!throws_away(command), "{command}");
        }
    }

    #[test]
    fn a_command_is_measured_as_the_server_will_run_it() {
        assert_eq!(expanded_length("a %p %f"), "a ".len() + 31 + 1 + 24);
        let long = format!("pgp-archive %p --repo /{}", "x".repeat(COMMAND_LIMIT));
        assert_eq!(with("archive_command", &long).status, Status::Warning);
        let mut facts = server();
        facts.major = MajorVersion::from_server_version_num(160_000).unwrap();
        facts.settings.insert("archive_command".to_owned(), long);
        assert_eq!(archive_command(&facts, LINE).status, Status::Ok);
    }

    #[test]
    fn no_free_walsender_means_no_backup() {
        let mut facts = server();
        facts.walsenders = 10;
        assert_eq!(max_wal_senders(&facts).status, Status::Fails);
    }

    #[test]
    fn files_outside_the_data_directory_need_a_role_that_may_read_them() {
        let status = |data_directory: &str, may_read_files| {
            let mut facts = server();
            facts
                .settings
                .insert("data_directory".to_owned(), data_directory.to_owned());
            facts.may_read_files = may_read_files;
            config_files(&facts).status
        };
        assert_eq!(status("/data", false), Status::Ok);
        assert_eq!(status("/elsewhere", true), Status::Ok);
        assert_eq!(status("/elsewhere", false), Status::Warning);
        assert_eq!(status("", true), Status::Warning);
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_told_with_the_time_left() {
        let roomy = judge_disk(&server(), 100 << 30, Some(f64::from(16 << 20)));
        assert_eq!(roomy.status, Status::Ok);
        assert!(roomy.detail.contains("1h 46m"), "{}", roomy.detail);
        assert_eq!(judge_disk(&server(), 1 << 20, None).status, Status::Warning);
    }
}
