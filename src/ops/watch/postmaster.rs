//! `postmaster.pid`: what a running server says of itself, and whether it really runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::process::{Pid, test_kill_process};

/// How far the server is, in its own words. `pg_ctl` waits for the same word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nobody is let in yet.
    Starting,
    /// It is in recovery and may not be read (`hot_standby` is off).
    Standby,
    /// Connections are taken.
    Ready,
    /// It goes down.
    Stopping,
    /// Not said yet.
    Unknown,
}

/// A server that runs in a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postmaster {
    /// Its process.
    pub pid: i32,
    /// When it was started.
    pub started_at: Option<DateTime<Utc>>,
    /// The port, also in the name of its socket.
    pub port: Option<u16>,
    /// The folder of its first socket.
    pub socket_directory: Option<PathBuf>,
    /// The first address that it listens on, where it listens at all.
    pub listen_address: Option<String>,
    /// How far it is.
    pub status: Status,
}

impl Postmaster {
    /// Reads the file. The server writes it line by line as it comes up, so that the end may be missing.
    pub fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |number: usize| lines.get(number).copied().filter(|line| !line.is_empty());
        let pid: i32 = line(0)?.parse().ok()?;
        Some(Self {
            // A negative number is a single-user backend.
            pid: pid.checked_abs().filter(|pid| *pid != 0)?,
            started_at: line(2)
                .and_then(|seconds| seconds.parse().ok())
                .and_then(|seconds| DateTime::from_timestamp(seconds, 0)),
            port: line(3).and_then(|port| port.parse().ok()),
            socket_directory: line(4).map(PathBuf::from),
            listen_address: line(5).map(str::to_owned),
            status: match line(7) {
                Some("starting") => Status::Starting,
                Some("standby") => Status::Standby,
                Some("ready") => Status::Ready,
                Some("stopping") => Status::Stopping,
                _ => Status::Unknown,
            },
        })
    }

    /// The host to connect to: the socket's folder, or else where it listens.
    pub fn host(&self) -> Option<String> {
        let folder = self.socket_directory.as_ref().and_then(|folder| folder.to_str());
        let address = || match self.listen_address.as_deref()? {
            "*" | "0.0.0.0" | "::" => Some("localhost".to_owned()),
            address => Some(address.to_owned()),
        };
        folder.map(str::to_owned).or_else(address)
    }
}

/// The server that runs in a data directory, if one does.
pub fn running(directory: &Path) -> Option<Postmaster> {
    let bytes = fs::read(directory.join("postmaster.pid")).ok()?;
    let postmaster = Postmaster::parse(&String::from_utf8_lossy(&bytes))?;
    is_alive(postmaster.pid, directory).then_some(postmaster)
}

/// Whether the process is there and is this directory's: a file that outlived its server may name a
/// number that somebody else has by now.
fn is_alive(pid: i32, directory: &Path) -> bool {
    let Some(process) = Pid::from_raw(pid) else {
        return false;
    };
    let there = matches!(test_kill_process(process), Ok(()) | Err(rustix::io::Errno::PERM));
    let folder = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
    let ended = field_after_name(&stat, 0).is_some_and(|state| matches!(state, "Z" | "X"));
    // The server is of the user that owns its data directory, and works in it. Not everybody may look where
    // a process works.
    let owner = |path: &Path| fs::metadata(path).ok().map(|about| about.uid());
    let elsewhere = match (fs::read_link(folder.join("cwd")), fs::canonicalize(directory)) {
        (Ok(works_in), Ok(directory)) => works_in != directory,
        _ => folder.exists() && owner(&folder) != owner(directory),
    };
    there && !ended && !elsewhere
}

/// A field of `/proc/PID/stat`, counted after the name, which may hold blanks: 0 state, 1 parent.
pub(super) fn field_after_name(stat: &str, field: usize) -> Option<&str> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_tells_everything() {
        let text = "6258\n/srv/restored\n1795272960\n7001\n/run/postgresql\nlocalhost\n  9987231   6127672\nready   \n";
        let found = Postmaster::parse(text).unwrap();
        assert_eq!((found.pid, found.port, found.status), (6258, Some(7001), Status::Ready));
        assert_eq!(found.started_at.unwrap().timestamp(), 1_795_272_960);
        assert_eq!(found.host().as_deref(), Some("/run/postgresql"));
    }

    #[test]
    fn a_file_in_the_making_tells_what_is_there() {
        let found = Postmaster::parse("6258\n/srv/restored\n1795272960\n7001\n\n").unwrap();
        assert_eq!((found.socket_directory.clone(), found.status), (None, Status::Unknown));
        assert_eq!(found.host(), None);
        let found = Postmaster::parse("-77\n").unwrap();
        assert_eq!((found.pid, found.port), (77, None));
    }

    #[test]
    fn a_server_without_a_socket_is_reached_where_it_listens() {
        let at = |address: &str| {
            Postmaster::parse(&format!("1\n/d\n0\n5432\n\n{address}\n"))
                .unwrap()
                .host()
        };
        assert_eq!(at("10.0.0.7").as_deref(), Some("10.0.0.7"));
        assert_eq!(at("*").as_deref(), Some("localhost"));
    }

    #[test]
    fn what_names_no_process_is_no_server() {
        for text in ["", "\n", "x\n", "0\n", "99999999999999\n", "-2147483648\n"] {
            assert_eq!(Postmaster::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_process_that_works_elsewhere_is_not_this_directorys_server() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("postmaster.pid"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        assert_eq!(running(folder.path()), None);
        let here = std::env::current_dir().unwrap();
        assert!(is_alive(std::process::id().cast_signed(), &here));
    }

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let stat = "42 (a ) b) S 7 42 42 0 -1";
        assert_eq!(field_after_name(stat, 0), Some("S"));
        assert_eq!(field_after_name(stat, 1), Some("7"));
    }
}
