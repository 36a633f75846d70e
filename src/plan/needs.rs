//! What a restored server must be ready for, because the WAL that it will replay asks for it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::pg::{ControlSettings, Lsn};
use crate::wal::{Event, EventKind, Oid};

/// Found on the way to the target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// The highest of each setting that the server was started with after the backup; `None` if it was not started
    /// with other settings.
    pub settings: Option<ControlSettings>,
    /// Tablespaces that were created after the backup began, outside the data directory, in WAL order.
    pub tablespaces: Vec<NewTablespace>,
}

/// A tablespace that is created during replay. PostgreSQL fails where its folder is not there, and takes the one at
/// this very path, whatever is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTablespace {
    /// Its object id.
    pub oid: Oid,
    /// Its folder.
    pub path: PathBuf,
    /// Where it was created.
    pub lsn: Lsn,
}

impl Needs {
    /// Takes an event that will be replayed.
    pub fn note(&mut self, event: &Event) {
        match &event.kind {
            EventKind::ParameterChange(change) => {
                let so_far = self.settings.unwrap_or(change.settings);
                self.settings = Some(each(so_far, change.settings, i32::max));
            }
            // An empty path is one within the data directory.
            EventKind::TablespaceCreated { tablespace, path } if !path.is_empty() => {
                let path = PathBuf::from(OsString::from_vec(path.clone()));
                self.tablespaces.push(NewTablespace {
                    oid: *tablespace,
                    path,
                    lsn: event.lsn,
                });
            }
            _ => {}
        }
    }

    /// The settings that must be higher than what the backup's server ran with, by name.
    pub fn above(&self, backup: &ControlSettings) -> Vec<(&'static str, i32)> {
        let Some(needed) = &self.settings else {
            return Vec::new();
        };
        let pairs = named(needed).into_iter().zip(named(backup));
        pairs
            .filter(|((_, needed), (_, had))| needed > had)
            .map(|(needed, _)| needed)
            .collect()
    }
}

fn named(settings: &ControlSettings) -> [(&'static str, i32); 5] {
    [
        ("max_connections", settings.max_connections),
        ("max_worker_processes", settings.max_worker_processes),
        ("max_wal_senders", settings.max_wal_senders),
        ("max_prepared_transactions", settings.max_prepared_transactions),
        ("max_locks_per_transaction", settings.max_locks_per_transaction),
    ]
}

fn each(a: ControlSettings, b: ControlSettings, of: fn(i32, i32) -> i32) -> ControlSettings {
    ControlSettings {
        max_connections: of(a.max_connections, b.max_connections),
        max_worker_processes: of(a.max_worker_processes, b.max_worker_processes),
        max_wal_senders: of(a.max_wal_senders, b.max_wal_senders),
        max_prepared_transactions: of(a.max_prepared_transactions, b.max_prepared_transactions),
        max_locks_per_transaction: of(a.max_locks_per_transaction, b.max_locks_per_transaction),
    }
}
