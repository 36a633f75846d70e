//! The server's log: where it is, and its last words.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// So much of the end is looked at.
const TAIL: u64 = 64 << 10;
/// So many lines are passed on.
const WORDS: usize = 5;
/// What a server says first.
const BEGINNING: &str = "starting PostgreSQL ";
/// What it says when it has arrived.
const PAUSED: &str = "pausing at the end of recovery";
const SHUT_DOWN: &str = "shutdown at recovery target";
/// Refusals of clients, which say nothing about the server's own end.
const REFUSALS: [&str; 4] = [
    "the database system is",
    "no pg_hba.conf entry",
    "authentication failed",
    "terminating connection",
];

/// A log, and how long it was before the server in question wrote into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The file.
    pub path: PathBuf,
    /// What lies before is another server's.
    pub from: u64,
}

impl Log {
    /// The log of a server that runs in this directory, where it can be found: the collector's file, or
    /// where its standard error goes.
    pub fn of_server(directory: &Path, pid: i32) -> Option<Self> {
        let file = |path: PathBuf| path.is_file().then_some(Self { path, from: 0 });
        collected(directory)
            .and_then(file)
            .or_else(|| file(fs::read_link(format!("/proc/{pid}/fd/2")).ok()?))
    }

    /// The log of a server that ran in this directory.
    pub fn of_directory(directory: &Path) -> Option<Self> {
        let own = directory.join(super::START_LOG);
        let path = Some(own)
            .filter(|path| path.is_file())
            .or_else(|| collected(directory))?;
        path.is_file().then_some(Self { path, from: 0 })
    }

    /// Whether the server says that it has paused at its target.
    pub(super) fn says_paused(&self) -> bool {
        since_start(&self.tail()).contains(PAUSED)
    }

    /// Whether the server says that it went down because it had reached its target.
    pub(super) fn says_shut_down_at_target(&self) -> bool {
        since_start(&self.tail()).contains(SHUT_DOWN)
    }

    /// The lines that tell best why the server went away.
    pub fn last_words(&self) -> Vec<String> {
        last_words(&self.tail())
    }

    fn tail(&self) -> String {
        let read = || {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL).max(self.from)))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }
}

/// The file that the server's own collector writes.
fn collected(directory: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(directory.join("current_logfiles")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("stderr "))?;
    Some(directory.join(path))
}

fn since_start(text: &str) -> &str {
    text.rfind(BEGINNING).map_or(text, |at| &text[at..])
}

fn last_words(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tells = |line: &&str| {
        (line.contains("FATAL:") || line.contains("PANIC:")) && !REFUSALS.iter().any(|refusal| line.contains(refusal))
    };
    let end = match lines.iter().rposition(tells) {
        // With what PostgreSQL adds to it, and with what came before: often the reason.
        Some(at) => {
            let more = |line: &&&str| line.contains("DETAIL:") || line.contains("HINT:") || line.starts_with('\t');
            at + 1 + lines[at + 1..].iter().take_while(more).count()
        }
        None => lines.len(),
    };
    lines[end.saturating_sub(WORDS)..end]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_fatal_line_is_told_with_what_leads_to_it_and_no_refusal_of_a_client() {
        let text = "\
            1 LOG:  starting PostgreSQL 15.20\n2 LOG:  starting archive recovery\n\
            pgp-restore: 000000010000000000000009 of cluster 7 is not in /srv/pgp\n\
            4 LOG:  redo done at 0/8000000\n\
            5 FATAL:  recovery ended before configured recovery target was reached\n5 HINT:  look\n\
            6 LOG:  startup process (PID 7) exited with exit code 1\n7 FATAL:  the database system is starting up\n\
            8 LOG:  database system is shut down\n";
        let words = last_words(text);
        assert_eq!(words.last().unwrap(), "5 HINT:  look");
        assert!(
            words.iter().any(|line| line.starts_with("5 FATAL")) && words.len() == 5,
            "{words:?}"
        );
        assert_eq!(last_words("a\n\nb\n"), ["a", "b"]);
        assert!(last_words("").is_empty());
    }

    #[test]
    fn what_an_earlier_server_said_is_not_taken_for_this_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Log {
            path: path.clone(),
            from: 0,
        };
        fs::write(&path, format!("x {BEGINNING}15\nx {PAUSED}\n")).unwrap();
        assert!(log.says_paused() && !log.says_shut_down_at_target());
        fs::write(&path, format!("x {BEGINNING}15\nx {PAUSED}\nx {BEGINNING}15\n")).unwrap();
        assert!(!log.says_paused());
        fs::write(&path, format!("x {PAUSED}\n{}", "y\n".repeat(TAIL as usize))).unwrap();
        assert!(!log.says_paused() && log.last_words().len() == WORDS);
        assert!(
            Log {
                path: folder.path().join("gone"),
                from: 0
            }
            .last_words()
            .is_empty()
        );
    }
}
