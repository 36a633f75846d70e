//! The documents are true: every command in them is run, in order, against a server of its own.
//!
//! What a fenced block is for stands behind its three backticks:
//!
//! | fence | what the test does |
//! | --- | --- |
//! | `sh` | runs it; it must succeed |
//! | `sh exits-3` | runs it; it must end with that code |
//! | `sh no-run` | nothing: it installs things, or needs a machine that a test has not |
//! | `conf` | adds it to `postgresql.conf` |
//! | `toml` | makes it the settings file, `/etc/pgp/pgp.toml` |
//! | anything else | nothing |
//!
//! A comment that begins with `<!-- run` is run as `sh` is, unseen by the reader: it makes the accident that
//! the document is about. All blocks of a document are one script, so that variables last. Places that
//! documents name (`/srv/pgp`, the data directory, the S3 endpoint, the moment of the accident) are
//! replaced by the test's own: see [`Story::places`].

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::cluster::Cluster;
use crate::support::program::{Answer, Program};
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};

macro_rules! documents {
    ($($test:ident: $document:literal,)*) => {
        /// Every document with commands to run.
        const DOCUMENTS: &[&str] = &[$($document),*];
        $(
            #[test]
            fn $test() {
                Story::of($document).run();
            }
        )*
    };
}

documents! {
    the_readme_is_true: "README.md",
    getting_started_is_true: "docs/getting-started.md",
    finding_the_moment_is_true: "docs/find.md",
    recovery_targets_are_true: "docs/recovery-targets.md",
    the_exit_codes_are_true: "docs/exit-codes.md",
    salvage_is_true: "docs/salvage.md",
    watching_is_true: "docs/watch.md",
    receiving_is_true: "docs/receive.md",
    recovery_by_hand_is_true: "docs/repository-format.md",
    the_settings_are_true: "docs/settings.md",
    the_runbook_for_a_dropped_table_is_true: "docs/runbooks/dropped-table.md",
    the_runbook_for_a_failing_archive_command_is_true: "docs/runbooks/archive-command-fails.md",
    the_runbook_for_a_lost_host_is_true: "docs/runbooks/host-lost.md",
    the_page_of_pgp_archive_is_true: "archive-command/README.md",
    the_page_of_pgp_restore_is_true: "restore-command/README.md",
}

#[test]
fn every_document_with_commands_is_run() {
    let with_commands: Vec<String> = all_documents()
        .into_iter()
        .filter(|document| {
            let blocks = blocks(&read(document));
            blocks
                .iter()
                .any(|block| block.fence.split(' ').next() == Some("sh") && block.fence != "sh no-run")
        })
        .collect();
    let mut run: Vec<&str> = DOCUMENTS.to_vec();
    run.sort_unstable();
    assert_eq!(with_commands, run);
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for document in all_documents() {
        let text = read(&document);
        let folder = root().join(&document).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            assert!(
                folder.join(path).exists(),
                "{document} links to {link}, which is not there"
            );
        }
    }
}

/// A document's moment: what the reader sees in commands stands for a time that the test knows.
const MOMENT: &str = "'2026-11-21 14:02:59+01'";

/// A document that is acted out.
struct Story {
    document: &'static str,
    script: String,
    s3: Option<S3Server>,
    stage: Scratch,
    server: Cluster,
}

impl Story {
    fn of(document: &'static str) -> Self {
        let text = read(document);
        let stage = Scratch::new();
        for folder in ["srv", "etc", "home"] {
            stage.folder(folder);
        }
        let server = Cluster::builder(Major::usual())
            .conf("listen_addresses", "")
            .conf("unix_socket_directories", stage.path().to_string_lossy())
            .build_stopped();
        let mut story = Self {
            document,
            script: String::new(),
            s3: text.contains("s3://").then(S3Server::start),
            stage,
            server,
        };
        let script: String = blocks(&text).iter().map(|block| story.part(block)).collect();
        story.script = story
            .places()
            .iter()
            .fold(script, |script, (named, place)| script.replace(named, place));
        story
    }

    /// What documents name, and what stands for it here.
    fn places(&self) -> Vec<(&'static str, String)> {
        let here = |path: &str| self.stage.join(path).display().to_string();
        let mut places = vec![
            (MOMENT, "\"$moment\"".to_owned()),
            (
                "/var/lib/postgresql/15/main",
                self.server.data_dir().display().to_string(),
            ),
            ("/var/lib/postgresql/15/", here("")),
            ("/srv/", here("srv/")),
            ("/etc/pgp/", here("etc/")),
            ("/etc/postgresql/", here("etc/postgresql/")),
            ("/usr/local/bin/", format!("{}/", programs().display())),
        ];
        if let Some(s3) = &self.s3 {
            let variable = |name| s3.env().into_iter().find(|(known, _)| *known == name).unwrap().1;
            places.push(("https://s3.example.com", variable("AWS_ENDPOINT_URL")));
            places.push(("YOUR-KEY-ID", variable("AWS_ACCESS_KEY_ID")));
            places.push(("YOUR-SECRET-KEY", variable("AWS_SECRET_ACCESS_KEY")));
        }
        places
    }

    /// A block as a part of the script.
    fn part(&self, block: &Block) -> String {
        let said = format!("echo '--- {}, line {}'\n", self.document, block.line);
        let text = &block.text;
        match block.fence.split_once(' ').unwrap_or((&block.fence, "")) {
            ("sh", "no-run") => String::new(),
            ("sh", "") => format!("{said}{text}"),
            ("sh", how) => {
                let code = how.strip_prefix("exits-").unwrap_or_else(|| panic!("fence sh {how}"));
                format!("{said}code=0; (\n{text}) || code=$?; echo \"exit code $code\"; [ \"$code\" = {code} ]\n")
            }
            ("conf", _) => {
                let file = self.server.data_dir().join("postgresql.conf");
                format!("{said}cat >>'{}' <<'END'\n{text}END\n", file.display())
            }
            ("toml", _) => format!(
                "{said}cat >/etc/pgp/pgp.toml <<'END'\n{text}END\nchmod 600 /etc/pgp/pgp.toml\n\
                 export PGP_CONFIG=/etc/pgp/pgp.toml\n"
            ),
            _ => String::new(),
        }
    }

    fn run(&self) {
        let postgres = self.server.major().program("");
        let path = format!(
            "{}:{}:/usr/local/bin:/usr/bin:/bin",
            programs().display(),
            postgres.display()
        );
        let mut shell = ServerUser::get().command("/bin/bash");
        shell
            .args(["-euo", "pipefail", "-c"])
            .arg(format!("{START}\n{}", self.script))
            .env("PATH", path)
            .env("HOME", self.stage.join("home"))
            .env("PGHOST", self.stage.path())
            .env("PGPORT", self.server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGDATA", self.server.data_dir())
            .current_dir(self.stage.path());
        let answer = Answer::of(&mut shell);
        if answer.code != 0 {
            eprintln!(
                "{}",
                fs::read_to_string(self.stage.join("server.log")).unwrap_or_default()
            );
        }
        answer.with_code(0);
    }
}

/// The server that every document takes for granted, and what hidden blocks use: `archived` waits until all
/// WAL up to now has been handed to the archive, `until_answer` until psql answers so. A server's output goes
/// to a file, or whoever starts it would be waited for as long as it runs.
const START: &str = r#"
pg_ctl() { command pg_ctl -w -l "$HOME/../server.log" "$@" </dev/null; }
until_answer() {
    local wanted=$1 answer; shift
    for _ in $(seq 600); do
        answer=$(psql -XAtq "$@") && [ "$answer" = "$wanted" ] && return
        sleep 0.1
    done
    echo "psql $* answers $answer, and $wanted was waited for" >&2
    return 1
}
archived() {
    psql -XAtqc "select pg_create_restore_point('archived')" >/dev/null
    local file; file=$(psql -XAtqc 'select pg_walfile_name(pg_switch_wal())')
    until_answer t -c "select last_archived_wal >= '$file' from pg_stat_archiver"
}
pg_ctl start
"#;

impl Drop for Story {
    fn drop(&mut self) {
        let restored = fs::read_dir(self.stage.path()).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = restored.map(|entry| entry.path()).collect();
        folders.push(self.server.data_dir().to_path_buf());
        for folder in folders.iter().filter(|folder| folder.join("postmaster.pid").exists()) {
            // It reads the process id from the directory itself, so it stops our servers only.
            let mut stop = self.server.tool("pg_ctl");
            Answer::of(stop.args(["stop", "-s", "-m", "immediate", "-D"]).arg(folder));
        }
    }
}

/// A fenced block or a hidden one.
struct Block {
    /// What stands behind the backticks.
    fence: String,
    /// The line it begins at.
    line: usize,
    text: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut end = None;
    for (number, line) in text.lines().enumerate() {
        if let Some(mark) = end {
            match line == mark {
                true => end = None,
                false => {
                    let block = blocks.last_mut().expect("a block was begun");
                    block.text.push_str(line);
                    block.text.push('\n');
                }
            }
            continue;
        }
        let fence = match (line.strip_prefix("```"), line) {
            (Some(fence), _) => {
                end = Some("```");
                fence
            }
            (None, "<!-- run") => {
                end = Some("-->");
                "sh"
            }
            _ => continue,
        };
        blocks.push(Block {
            fence: fence.to_owned(),
            line: number + 1,
            text: String::new(),
        });
    }
    assert!(end.is_none(), "a block does not end");
    blocks
}

/// Our binaries' folder.
fn programs() -> PathBuf {
    Program::Pitr.path().parent().expect("a folder").to_path_buf()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// Every document for users, sorted.
fn all_documents() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("docs")];
    for top in [
        "README.md",
        "CHANGELOG.md",
        "archive-command/README.md",
        "restore-command/README.md",
    ] {
        found.push(top.to_owned());
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            match root().join(&path).is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|kind| kind == "md") => {
                    found.push(path.display().to_string());
                }
                false => {}
            }
        }
    }
    found.sort();
    found
}
