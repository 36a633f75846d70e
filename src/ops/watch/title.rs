//! The title of the startup process: which WAL segment it replays or waits for.
//!
//! It is there on every Linux, needs no login, and tells most before the server lets anybody in. With
//! `update_process_title = off` it says nothing.

use std::fs;
use std::path::{Path, PathBuf};

use super::postmaster::field_after_name;
use crate::pg::SegmentName;

/// A title is some dozens of bytes in a field that the system pads.
const TITLE_LIMIT: usize = 4096;

/// What the startup process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// It replays this segment. From 15 on it reads a little ahead of what it replays.
    Recovering(SegmentName),
    /// It has asked for this segment and does not have it yet.
    WaitingFor(SegmentName),
    /// Something else, in its own words; empty where it says nothing.
    Other(String),
}

/// Reads a title. `None`: it is not the startup process.
pub fn parse(title: &[u8]) -> Option<Doing> {
    let text = String::from_utf8_lossy(title).replace('\0', " ");
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    if words.first() != Some(&"postgres:") {
        return None;
    }
    // Before it may stand the cluster's name and a colon; behind it nothing is free text.
    let at = words.iter().rposition(|word| *word == "startup")?;
    if at != 1 && !words[at - 1].ends_with(':') {
        return None;
    }
    let segment = |name: &str| name.parse::<SegmentName>().ok();
    let rest = &words[at + 1..];
    let doing = match rest {
        ["recovering", name, ..] => segment(name).map(Doing::Recovering),
        ["waiting", "for", name, ..] => segment(name).map(Doing::WaitingFor),
        _ => None,
    };
    Some(doing.unwrap_or_else(|| Doing::Other(rest.join(" "))))
}

/// What the startup process of this server does. `None` where there is no such process, or none can
/// be seen.
pub fn of_server(postmaster: i32) -> Option<Doing> {
    children(postmaster)
        .into_iter()
        .find_map(|child| parse(&read(&folder(child).join("cmdline"))?))
}

fn folder(process: i32) -> PathBuf {
    Path::new("/proc").join(process.to_string())
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    bytes.truncate(TITLE_LIMIT);
    Some(bytes)
}

/// The processes that it has started.
fn children(parent: i32) -> Vec<i32> {
    let listed = folder(parent).join(format!("task/{parent}/children"));
    if let Ok(text) = fs::read_to_string(listed) {
        return text
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
    }
    // Not every kernel lists them.
    let parent = parent.to_string();
    let is_child = |process: &i32| {
        let stat = fs::read_to_string(folder(*process).join("stat")).unwrap_or_default();
        field_after_name(&stat, 1) == Some(&parent)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter(is_child).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> SegmentName {
        "00000001000000000000000A".parse().unwrap()
    }

    #[test] // as seen on 14, 15 and 18
    fn a_title_tells_the_segment_that_is_replayed_or_waited_for() {
        for title in [
            "postgres: startup recovering 00000001000000000000000A     ",
            "postgres: startup   recovering 00000001000000000000000A",
            "postgres: main 15: startup recovering 00000001000000000000000A\0\0\0",
            "postgres: startup: startup recovering 00000001000000000000000A",
            "postgres: startup recovering 00000001000000000000000A waiting",
        ] {
            assert_eq!(parse(title.as_bytes()), Some(Doing::Recovering(segment())), "{title}");
        }
        let waiting = "postgres: startup waiting for 00000001000000000000000A          ";
        assert_eq!(parse(waiting.as_bytes()), Some(Doing::WaitingFor(segment())));
    }

    #[test]
    fn a_title_that_names_no_segment_is_kept_in_its_own_words() {
        let other = |text: &str| Some(Doing::Other(text.to_owned()));
        assert_eq!(parse(b"postgres: startup \0"), other(""));
        assert_eq!(
            parse(b"postgres: startup performing end-of-recovery checkpoint"),
            other("performing end-of-recovery checkpoint")
        );
        assert_eq!(
            parse(b"postgres: startup recovering NONSENSE"),
            other("recovering NONSENSE")
        );
    }

    #[test]
    fn another_process_is_not_the_startup_process() {
        for title in [
            "postgres: checkpointer ",
            "postgres: walreceiver streaming 0/3000000",
            "postgres: alice startup [local] idle",
            "/usr/lib/postgresql/15/bin/postgres\0-D\0/srv/startup",
            "startup recovering 00000001000000000000000A",
            "",
        ] {
            assert_eq!(parse(title.as_bytes()), None, "{title}");
        }
    }
}
