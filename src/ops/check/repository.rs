//! The repository: is it one, what does its store do, and does it know this cluster by the same facts?

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};

use super::facts::ServerFacts;
use super::{Check, Log, Request, words};
use crate::disk;
use crate::error::Failure;
use crate::ops::init;
use crate::pg::SystemId;
use crate::pg::size::Size;
use crate::repo::backup::{self, BackupRecord, BackupState};
use crate::repo::{self, ClusterInfo, Doubt, RepoError, Repository, names};
use crate::store::{Name, Store, StoreError};

/// No write lasts so long: what is older and still unfinished belongs to a process that died.
const ABANDONED: TimeDelta = TimeDelta::days(1);

/// Makes every check of the repository; `None` where there is none, or its store is out of reach.
pub(super) async fn check(
    log: &mut Log<'_>,
    request: &Request,
    store: &Store,
    facts: Option<&ServerFacts>,
) -> Option<Repository> {
    if let Some(endpoint) = &request.plain_http {
        log.add(Check::warning(
            "transport",
            format!("{endpoint} is plain HTTP: whoever listens reads everything"),
            "use an endpoint that begins with https://",
        ));
    }
    if request.key_only_in_environment {
        log.add(Check::warning(
            "credentials",
            "the key stands in the environment alone: PostgreSQL's must have it too, or archive_command and \
             restore_command fail",
            "put it into /etc/pgp/pgp.toml as [s3] secret_access_key_file = \"PATH\", readable by the server's user",
        ));
    }
    let repository = match Repository::open(store).await {
        Ok(repository) => repository,
        Err(error) => {
            log.broke_off("repository", error.into());
            return None;
        }
    };
    log.add(Check::ok(
        "repository",
        format!("{} (id {})", store.url(), repository.id()),
    ));
    match init::probe(store).await {
        Ok(probed) => log.extend(judge_probe(&probed)),
        Err(error) => {
            log.broke_off("repository_write", error.into());
            return None;
        }
    }
    match leftovers(store).await {
        Ok(check) => log.extend(check),
        // Nothing depends on it.
        Err(error) => log.add(Check::warning(
            "leftovers",
            format!(
                "could not look for unfinished files: {}",
                crate::error::on_one_line(&error)
            ),
            "run check as the user that owns the repository",
        )),
    }
    if let Some(facts) = facts {
        match cluster(&repository, facts).await {
            Ok(check) => log.add(check),
            Err(failure) => log.broke_off("cluster", failure),
        }
        match repo::doubts(&repository, facts.system).await {
            Ok(doubts) => log.add(judge_doubts(&doubts)),
            Err(error) => log.broke_off("wal_content", error.into()),
        }
        match newest_backup(&repository, facts.system).await {
            Ok(newest) => log.add(judge_backup(newest.as_ref(), store.env().now())),
            Err(failure) => log.broke_off("newest_backup", failure),
        }
    }
    Some(repository)
}

fn judge_probe(probed: &init::Probed) -> Vec<Check> {
    let read = match probed.reads_back {
        true => Check::ok("repository_read", "what was written was read back the same"),
        false => Check::fails(
            "repository_read",
            "what was written was not read back the same",
            "this store can't be trusted: use another",
        ),
    };
    let create = match probed.refuses_twice {
        true => Check::ok(
            "repository_create_once",
            "a second creation of the same object is refused",
        ),
        false => Check::warning(
            "repository_create_once",
            "the store overwrites what it was told only to create: two servers that archive the same name at the \
             same moment are not kept apart",
            "use a store with conditional writes (If-None-Match), or let one server only write here",
        ),
    };
    let delete = match &probed.deleted {
        Ok(()) => Check::ok("repository_delete", "deleted what was written"),
        Err(error) => Check::warning(
            "repository_delete",
            format!(
                "{}; meant so (object lock)? then only expire is affected",
                crate::error::on_one_line(error)
            ),
            "else let the key delete objects; until then each check leaves one small object behind",
        ),
    };
    vec![
        Check::ok("repository_write", "an object was created"),
        read,
        create,
        delete,
    ]
}

/// The repository must know the cluster by the same facts, or not yet.
async fn cluster(repository: &Repository, facts: &ServerFacts) -> Result<Check, Failure> {
    let name = "cluster";
    let Some(known) = ClusterInfo::read(repository.store(), facts.system).await? else {
        let detail = format!("{} is new to the repository: nothing of it is stored yet", facts.system);
        return Ok(Check::ok(name, detail));
    };
    match facts.cluster().bind(repository, Some(known)).await {
        Ok(()) => Ok(Check::ok(
            name,
            format!("{} is in the repository with the same facts", facts.system),
        )),
        Err(error @ RepoError::ClusterMismatch { .. }) => {
            let fix = "after a major upgrade or pg_resetwal --wal-segsize, archive into a new repository";
            Ok(Check::fails(name, error.to_string(), fix))
        }
        Err(error) => Err(error.into()),
    }
}

fn judge_doubts(doubts: &[Doubt]) -> Check {
    let name = "wal_content";
    let Some(first) = doubts.first() else {
        return Check::ok(name, "nothing doubtful is noted of the WAL that is stored");
    };
    let others = match doubts.len() as u64 - 1 {
        0 => String::new(),
        others => format!("; and {} more, see `pgp-pitr list`", words::count(others, "file")),
    };
    Check::warning(
        name,
        format!("{first}{others}"),
        "WAL from there on may not be replayed: take a base backup now, and test the server's disk and memory",
    )
}

/// The newest backup that was finished.
async fn newest_backup(repository: &Repository, system: SystemId) -> Result<Option<BackupRecord>, Failure> {
    for id in backup::ids(repository, system).await?.iter().rev() {
        if let Some(record) = backup::read(repository, system, id).await? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

fn judge_backup(newest: Option<&BackupRecord>, now: DateTime<Utc>) -> Check {
    let name = "newest_backup";
    let Some(record) = newest else {
        return Check::warning(
            name,
            "there is none of this cluster: nothing can be restored yet",
            "pgp-pitr backup",
        );
    };
    let age = words::span((now - record.stopped_at).to_std().unwrap_or_default());
    let detail = format!("{}, {age} old", record.id);
    match record.state {
        BackupState::Complete => Check::ok(name, detail),
        BackupState::Damaged => Check::warning(
            name,
            format!("{detail}; the server found damaged pages while it was taken"),
            "mend the server's pages (`pgp-pitr show` tells which), then take another backup",
        ),
    }
}

/// Removes what processes that died have left: throw-away objects, and files in the making. `None` where
/// there is nothing of that kind.
async fn leftovers(store: &Store) -> Result<Option<Check>, StoreError> {
    let before = store.env().now() - ABANDONED;
    let (_, objects) = store.list_level(&Name::default()).await?;
    let mut swept = Swept::default();
    for object in objects {
        let is_probe = object.location.filename().is_some_and(names::is_probe);
        // One that can't be deleted was told of already.
        if is_probe && object.last_modified < before && store.delete(&object.location).await.is_ok() {
            swept.count(object.size);
        }
    }
    if let Some(folder) = store.folder() {
        let unreadable = |source| StoreError::Io {
            doing: "sweep",
            object: folder.display().to_string(),
            source,
        };
        sweep_files(folder, before, &mut swept).map_err(unreadable)?;
    }
    Ok((swept.files > 0).then(|| {
        let detail = format!(
            "swept {} ({}) that interrupted processes had left",
            words::count(swept.files, "unfinished file"),
            Size::new(swept.bytes).short()
        );
        Check::ok("leftovers", detail)
    }))
}

/// What was removed.
#[derive(Debug, Default)]
struct Swept {
    files: u64,
    bytes: u64,
}

impl Swept {
    fn count(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Removes files in the making last written before `before`: those beside the marker, and those of
/// clusters at any depth. Other folders are not ours.
fn sweep_files(root: &Path, before: DateTime<Utc>, swept: &mut Swept) -> io::Result<()> {
    let clusters = root.join(names::clusters().as_ref());
    let mut waiting: Vec<PathBuf> = vec![root.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && (folder != root || entry.path() == clusters) {
                waiting.push(entry.path());
            } else if kind.is_file() && disk::is_staged(&entry.file_name()) {
                sweep_file(&entry.path(), before, swept)?;
            }
        }
    }
    Ok(())
}

fn sweep_file(path: &Path, before: DateTime<Utc>, swept: &mut Swept) -> io::Result<()> {
    let removed = || -> io::Result<Option<u64>> {
        let about = fs::symlink_metadata(path)?;
        if DateTime::<Utc>::from(about.modified()?) >= before {
            return Ok(None);
        }
        disk::remove(path)?;
        Ok(Some(about.len()))
    };
    match removed() {
        Ok(removed) => {
            removed.into_iter().for_each(|bytes| swept.count(bytes));
            Ok(())
        }
        // Its maker, or another check, was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_store_that_forbids_deletes_or_overwrites_is_warned_of_and_one_that_forgets_fails() {
        let statuses = |reads_back, refuses_twice, deleted| {
            let probed = init::Probed {
                reads_back,
                refuses_twice,
                deleted,
            };
            judge_probe(&probed)
                .into_iter()
                .map(|check| check.status)
                .collect::<Vec<_>>()
        };
        let forbidden = Err(StoreError::Timeout(std::time::Duration::from_secs(1)));
        use Status::{Fails, Ok as Fit, Warning};
        assert_eq!(statuses(true, true, Ok(())), [Fit, Fit, Fit, Fit]);
        assert_eq!(statuses(true, true, forbidden), [Fit, Fit, Fit, Warning]);
        assert_eq!(statuses(true, false, Ok(())), [Fit, Fit, Warning, Fit]);
        assert_eq!(statuses(false, true, Ok(())), [Fit, Fails, Fit, Fit]);
    }

    #[test]
    fn only_old_files_in_the_making_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let wal = root.path().join("clusters/7/wal");
        fs::create_dir_all(&wal).unwrap();
        fs::create_dir(root.path().join("foreign")).unwrap();
        let [stale, kept, foreign, beside] =
            ["clusters/7/wal/a#1", "clusters/7/wal/a", "foreign/a#1", "pgp.json#9"].map(|name| root.path().join(name));
        for path in [&stale, &kept, &foreign, &beside] {
            fs::write(path, "four").unwrap();
        }
        let written = DateTime::<Utc>::from(fs::metadata(&stale).unwrap().modified().unwrap());

        let mut swept = Swept::default();
        sweep_files(root.path(), written - TimeDelta::seconds(5), &mut swept).unwrap();
        assert_eq!(swept.files, 0, "a young file was taken");
        sweep_files(root.path(), written + TimeDelta::seconds(5), &mut swept).unwrap();
        assert_eq!((swept.files, swept.bytes), (2, 8));
        assert_eq!(
            [&stale, &kept, &foreign, &beside].map(|path| path.exists()),
            [false, true, true, false]
        );
    }
}
