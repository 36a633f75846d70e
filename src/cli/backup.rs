//! `pgp-pitr backup`.

use super::args::BackupArgs;
use super::pitr::{PROGRAM, Session};
use super::progress::{Progress, size};
use super::report;
use super::run::{block_on, open_store};
use super::settings::SettingsError;
use super::shape;
use crate::error::{Class, Explain, Failure};
use crate::ops::backup::{self, Options};
use crate::pg::duration::Span;
use crate::pg::size::Rate;
use crate::replication::{Checkpoint, SlotName};
use crate::repo::backup::{BackupRecord, BackupState};

/// More threads than this gain nothing: the server's one stream is the limit.
const MOST_JOBS: usize = 8;

/// A backup whose source has damaged pages: it is kept, and it is told.
#[derive(Debug, thiserror::Error)]
#[error("the server reported damaged pages; backup {id} is kept and marked as damaged")]
struct DamagedSource {
    id: String,
}

impl Explain for DamagedSource {
    fn class(&self) -> Class {
        Class::Damaged
    }

    fn hint(&self) -> Option<String> {
        Some("`pgp-pitr show` names them; keep the older backups until the cause is found".to_owned())
    }
}

impl Session {
    pub(super) fn backup(&self, args: &BackupArgs) -> Result<(), Failure> {
        let info = self.server()?;
        let options = Options {
            label: self.settings.text("label").map(|(label, _)| label),
            checkpoint: self
                .settings
                .read("checkpoint", checkpoint)?
                .unwrap_or(Checkpoint::Fast),
            max_rate: self.settings.get::<Rate>("max_rate")?.map(Rate::kilobytes),
            slot: self.settings.read("slot", SlotName::new)?,
            wal_timeout: self
                .settings
                .get::<Span>("wal_timeout")?
                .map_or(backup::WAL_TIMEOUT, Span::length),
            level: self.settings.compression_level(backup::LEVEL)?,
            jobs: self.jobs()?,
        };
        let store = open_store(PROGRAM, &self.settings, &self.env)?;
        let mut progress = Progress::begin();
        let mut tell = |at: backup::Progress| match at {
            backup::Progress::Checking => progress.phase("looking whether WAL reaches the repository"),
            backup::Progress::Checkpoint => progress.phase("waiting for the server's checkpoint"),
            backup::Progress::Copying { bytes, total, stored } => {
                progress.bytes(bytes, total, &format!(", {} stored", size(stored)));
            }
            backup::Progress::WaitingForWal(lsn) => {
                progress.phase(&format!("waiting for the WAL up to {lsn} to arrive in the repository"));
            }
        };
        let taken = block_on(backup::backup(&store, &info, &options, &mut tell));
        progress.end();
        let record = taken?;
        let text = if args.json {
            format!("{}\n", shape::backup_entry(&record))
        } else {
            summary(&record)
        };
        report::answer(&text)?;
        match record.state {
            BackupState::Complete => Ok(()),
            BackupState::Damaged => {
                record
                    .warnings
                    .iter()
                    .for_each(|warning| report::warning(PROGRAM, warning));
                Err(DamagedSource {
                    id: record.id.to_string(),
                }
                .into())
            }
        }
    }

    /// How many threads to use.
    pub(super) fn jobs(&self) -> Result<usize, SettingsError> {
        let read = |text: &str| match text.parse() {
            Ok(jobs) if (1..=64).contains(&jobs) => Ok(jobs),
            _ => Err("a number of threads is from 1 to 64"),
        };
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_JOBS));
        Ok(self.settings.read("jobs", read)?.unwrap_or_else(cores))
    }
}

fn checkpoint(text: &str) -> Result<Checkpoint, &'static str> {
    match text {
        "fast" => Ok(Checkpoint::Fast),
        "spread" => Ok(Checkpoint::Spread),
        _ => Err("a checkpoint is fast or spread"),
    }
}

fn summary(record: &BackupRecord) -> String {
    let seconds = (record.stopped_at - record.started_at).num_milliseconds() as f64 / 1000.0;
    format!(
        "backup {} of cluster {} is complete: {} in {} entries, {} stored, {seconds:.1} s\n\
         it can be restored to any moment from {} on\n",
        record.id,
        record.system_identifier,
        size(record.size_bytes),
        record.entries,
        size(record.stored_bytes),
        crate::pg::time::rfc3339(record.stopped_at),
    )
}
