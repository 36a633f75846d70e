//! The replication client against real servers, with libpq's own programs as the oracle.

mod backup;
mod certificates;
mod login;
mod stream;
mod tls;

use std::fs;
use std::os::unix::fs::MetadataExt;

use pgp_pitr::env::Env;
use pgp_pitr::pg::conninfo::{ConnInfo, Overrides, Surroundings};

use crate::support::cluster::Cluster;
use crate::support::program::Answer;
use crate::support::user::Scratch;

/// Settings from a connection string alone: no environment, no home folder.
fn conninfo(text: &str) -> ConnInfo {
    let around = Surroundings {
        var: &|_| None,
        read_file: &|path| Ok((fs::read(path)?, fs::metadata(path)?.mode())),
        exists: &|path| path.exists(),
        os_user: Some("postgres".to_owned()),
        home: None,
    };
    ConnInfo::resolve(Some(text), &Overrides::default(), &around).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn env() -> Env {
    Env::of_process()
}

/// A standby of a running cluster that streams from it.
fn standby_of(primary: &Cluster) -> Standby {
    let scratch = Scratch::new();
    let data = scratch.join("standby");
    let mut copy = primary.client("pg_basebackup");
    Answer::of(copy.args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(&data)).with_code(0);
    let mut cluster = Cluster::on_directory(primary.major(), data);
    cluster.start();
    Standby {
        cluster,
        _scratch: scratch,
    }
}

/// A standby, and the folder it lies in.
struct Standby {
    // Dropped first: the server must stop before its files go.
    cluster: Cluster,
    _scratch: Scratch,
}

impl std::ops::Deref for Standby {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl std::ops::DerefMut for Standby {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}
