//! Where a recovery will stop, for `watch`, when no restore of ours has left its plan: from the target in the
//! server's settings and the repository that its `restore_command` names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::args::TargetArgs;
use super::pitr::{PROGRAM, Session};
use super::report;
use super::run::{block_on, open_store};
use super::settings::Settings;
use crate::catalog::Catalog;
use crate::error::Failure;
use crate::ops::plan::{self, Request, TimelineChoice};
use crate::ops::restore::RecordedTarget;
use crate::ops::watch::{Watcher, running};
use crate::pg::settings::command_words;
use crate::plan::recovery::Reaches;
use crate::repo::Repository;

impl Session {
    /// Finds out where in the WAL the target lies; where that can't be told, it says so and watching goes
    /// on without.
    pub(super) fn find_stop(&self, watcher: &mut Watcher) {
        let goal = watcher.goal();
        let Some(target) = goal.target.clone().filter(|_| goal.stop_lsn.is_none() && !goal.standby) else {
            return;
        };
        if running(watcher.directory()).is_none() {
            return;
        }
        match self.stop_of(watcher, &target) {
            Ok(reaches) => watcher.know_stop(reaches.lsn, reaches.last_commit.map(|point| point.at)),
            Err(failure) => report::warning(
                PROGRAM,
                &format!("the time left is not told: where in the WAL the target lies is not known ({failure})"),
            ),
        }
    }

    fn stop_of(&self, watcher: &Watcher, target: &RecordedTarget) -> Result<Reaches, Failure> {
        let goal = watcher.goal();
        let elsewhere = self.settings_of(goal.restore_command.as_deref())?;
        let settings = elsewhere.as_ref().unwrap_or(&self.settings);
        let value = |kind: &str| target.value.clone().filter(|_| target.kind == kind);
        let request = Request {
            requested: self.requested(&TargetArgs {
                target_time: value("time"),
                target_lsn: value("lsn"),
                target_xid: value("xid"),
                target_name: value("name"),
                latest: target.kind == "latest",
                immediate: target.kind == "immediate",
            })?,
            inclusive: target.inclusive,
            timeline: goal.timeline.map_or(TimelineChoice::Latest, TimelineChoice::Number),
            backup: None,
        };
        let store = open_store(PROGRAM, settings, &self.env)?;
        let system = watcher.cluster().control.system;
        block_on(async {
            let repository = Repository::open(&store).await?;
            let info = plan::choose_cluster(&repository, Some(system)).await?;
            let catalog = Catalog::read(&repository, info).await?;
            Ok(plan::plan(&repository, &catalog, &request).await?.reaches)
        })
    }

    /// The settings that the server's `restore_command` works with; `None` where ours name a repository.
    fn settings_of(&self, command: Option<&[u8]>) -> Result<Option<Settings>, Failure> {
        if self.settings.repo().is_ok() {
            return Ok(None);
        }
        let words = command.and_then(command_words).unwrap_or_default();
        let repo = flag(&words, "--repo").map(|repo| String::from_utf8_lossy(&repo).into_owned());
        let config = flag(&words, "--config");
        let config = config.as_deref().map(|path| Path::new(OsStr::from_bytes(path)));
        let flags: BTreeMap<_, _> = repo.map(|repo| ("repo", repo)).into_iter().collect();
        Ok(Some(Settings::gather(flags, config, &self.env)?))
    }
}

/// The value of a flag in a command line.
fn flag(words: &[Vec<u8>], name: &str) -> Option<Vec<u8>> {
    let joined = format!("{name}=");
    words.iter().enumerate().find_map(|(at, word)| {
        if word == name.as_bytes() {
            return words.get(at + 1).cloned();
        }
        word.strip_prefix(joined.as_bytes()).map(<[u8]>::to_vec)
    })
}
