//! `restore`: the directory that a plan describes.
//!
//! Executes a [`Plan`] and nothing else. Nothing is written before the
//! plan is whole, the directories are free and there is room (rules 5 and 6).

mod directory;
mod files;
mod record;
mod replayed;
mod settings;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::disk;
use crate::env::Env;
use crate::error::{Class, Explain, Failure};
use crate::pg::Lsn;
use crate::pg::settings::SettingsError;
use crate::plan::recovery::Plan;
use crate::repo::backup::{self, BackupRecord};
use crate::repo::{RepoError, Repository};

pub use directory::{DirectoryError, check as check_directory};
pub use files::FilesError;
pub use record::{RecordedTarget, RestoreRecord};
pub use settings::{Action, RecoverySettings, RestoreCommand, synchronous_standbys};

/// A manifest is a line per file; larger than this, it is kept but not unpacked in one piece.
const MANIFEST_LIMIT: usize = 1 << 30;

/// Where a restore goes and what the server is told, besides the plan.
#[derive(Debug, Clone)]
pub struct Goal {
    /// The data directory.
    pub to: PathBuf,
    /// Old and new places of tablespaces.
    pub mappings: Vec<(PathBuf, PathBuf)>,
    /// What the server does when it has arrived.
    pub action: Action,
    /// How it fetches its WAL.
    pub command: RestoreCommand,
    /// Where it streams from afterwards, as a standby.
    pub standby: Option<String>,
    /// Whether its own archiving is switched off.
    pub archive_off: bool,
    /// How many threads work.
    pub jobs: usize,
}

/// A goal that a restore can't have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A mapping for a tablespace that the backup doesn't have.
    #[error("the backup has no tablespace at {}{}", old.display(), known(locations))]
    NoSuchTablespace {
        /// The old place in the mapping.
        old: PathBuf,
        /// The places of the backup's tablespaces.
        locations: Vec<String>,
    },
    /// A place that is not absolute.
    #[error("a tablespace's new place must be absolute: {}", new.display())]
    Relative {
        /// The place.
        new: PathBuf,
    },
    /// A tablespace is created during replay in a folder that is in use.
    #[error(
        "tablespace {} is created at {lsn}, after the backup, and that folder is not empty: replay would write into it",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Where in the WAL it is created.
        lsn: Lsn,
    },
    /// A tablespace that is created during replay can be elsewhere only if its old place is a link to there.
    #[error(
        "{} is not a link to {}, and PostgreSQL creates that tablespace during replay at the first path and no other",
        old.display(),
        new.display()
    )]
    NoLink {
        /// The path in the WAL.
        old: PathBuf,
        /// Where it should be.
        new: PathBuf,
    },
    /// Too little room.
    #[error(
        "{} needs {needed} bytes and has {free} free",
        path.display()
    )]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

fn known(locations: &[String]) -> String {
    match locations {
        [] => "; it has none".to_owned(),
        _ => format!("; it has {}", locations.join(", ")),
    }
}

impl Explain for RestoreError {
    fn class(&self) -> Class {
        match self {
            Self::NoSuchTablespace { .. } | Self::Relative { .. } | Self::InUse { .. } | Self::NoLink { .. } => {
                Class::Usage
            }
            Self::NoRoom { .. } => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoRoom { .. } => Some(
                "make room, or choose another disk with --to or --tablespace-mapping; nothing was written".to_owned(),
            ),
            Self::InUse { lsn, .. } => Some(format!(
                "restore where that folder is free, or up to before it (--target-lsn {lsn} --exclusive), or from a \
                 backup that has the tablespace; nothing was written"
            )),
            Self::NoLink { .. } => Some(
                "move away what is there (a link is made then), or restore from a backup that has the tablespace; \
                 nothing was written"
                    .to_owned(),
            ),
            _ => Some("write --tablespace-mapping OLD=NEW with the place as the backup has it".to_owned()),
        }
    }
}

/// The settings that make the server recover as planned.
///
/// # Errors
/// A path that can't be quoted.
pub fn recovery_settings(plan: &Plan, goal: &Goal) -> Result<RecoverySettings, SettingsError> {
    let mut settings: RecoverySettings = vec![("restore_command", goal.command.command()?)];
    let mut set = |name, value: &str| settings.push((name, value.as_bytes().to_vec()));
    match &goal.standby {
        Some(conninfo) => {
            set("primary_conninfo", conninfo);
            set("recovery_target_timeline", "latest");
        }
        None => {
            for (name, value) in &plan.stop {
                set(name, value);
            }
            set("recovery_target_timeline", &plan.timeline.to_string());
            set("recovery_target_action", goal.action.word());
            if goal.action == Action::Pause {
                // A server that may not be read while it recovers can't pause: it would stop.
                set("hot_standby", "on");
            }
        }
    }
    for (name, value) in &plan.settings {
        set(name, &value.to_string());
    }
    // From 15 on a server decodes WAL before it replays it, and would wait for the damaged segment behind its target.
    if plan.no_read_ahead && plan.backup.pg_version.parse::<u16>().is_ok_and(|major| major >= 15) {
        set("recovery_prefetch", "off");
    }
    if goal.archive_off {
        set("archive_mode", "off");
    }
    Ok(settings)
}

/// Says whether each tablespace mapping is for a tablespace that the backup has.
///
/// # Errors
/// One that isn't, or leads to a place that is not absolute.
pub fn check_mappings(plan: &Plan, goal: &Goal) -> Result<(), RestoreError> {
    tablespaces(plan, goal).map(drop)
}

/// Says whether the goal can be had: directories free, room enough. Changes nothing.
///
/// # Errors
/// What stands in the way.
pub fn check(plan: &Plan, goal: &Goal) -> Result<(), Failure> {
    directory::check(&goal.to)?;
    let spaces = tablespaces(plan, goal)?;
    for (_, folder) in &spaces {
        directory::check(folder)?;
    }
    replayed::steps(plan, goal)?;
    enough_room(&plan.backup, goal, &spaces)?;
    Ok(())
}

/// The folders that a restore will make for tablespaces that are created during replay. Nothing links to them until
/// then.
pub fn folders_for_replay(plan: &Plan, goal: &Goal) -> Vec<PathBuf> {
    let steps = replayed::steps(plan, goal).unwrap_or_default();
    let folder = |step| match step {
        replayed::Step::Folder(path) => Some(path),
        replayed::Step::Link(..) => None,
    };
    steps.into_iter().filter_map(folder).collect()
}

/// Restores.
///
/// Steps, and what a crash after each leaves:
/// 1. the directories are claimed with a marker: a directory that no server starts on, and that the
///    same command takes again;
/// 2. files, manifest, settings, signal and the plan are written: the same;
/// 3. all of it is made durable: the same;
/// 4. `global/pg_control` is made durable: the restored cluster, with markers beside it, which the
///    same command takes again as long as no server was started on it;
/// 5. the markers go, the data directory's first: the restored cluster.
///
/// # Errors
/// A damaged backup, the store, or the file system. The directory can't be started then.
pub async fn restore(
    repository: &Repository,
    plan: &Plan,
    goal: &Goal,
    env: &Env,
    tell: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    check(plan, goal)?;
    let spaces = tablespaces(plan, goal)?;
    let folders: Vec<PathBuf> = spaces.iter().map(|(_, folder)| folder.clone()).collect();
    let claimed = directory::Claimed::take(&goal.to, &folders, &plan.backup.id, env)?;
    replayed::make(&replayed::steps(plan, goal)?)?;
    let layout = files::Layout {
        root: goal.to.clone(),
        tablespaces: spaces,
    };
    let control = files::unpack(repository, &plan.backup, layout, goal.jobs, tell).await?;
    let modes = Modes::of(&goal.to);
    write_manifest(repository, &plan.backup, &goal.to, modes, env).await?;
    let settings = recovery_settings(plan, goal)?;
    settings::write(&goal.to, &settings, goal.standby.is_some(), modes.file, env)?;
    RestoreRecord::of(plan, goal).write(&goal.to, modes.file, env)?;
    for folder in folders.iter().chain([&goal.to]) {
        fs::set_permissions(folder, fs::Permissions::from_mode(modes.folder))
            .map_err(DirectoryError::io("set permissions of", folder))?;
        disk::sync_file_system(folder).map_err(DirectoryError::io("make durable", folder))?;
    }
    let path = goal.to.join(directory::CONTROL);
    disk::write(&path, &control, modes.file, env).map_err(DirectoryError::io("write", &path))?;
    claimed.release(&folders)?;
    Ok(())
}

/// The tablespaces outside the data directory, by OID, at their new places.
fn tablespaces(plan: &Plan, goal: &Goal) -> Result<Vec<(u32, PathBuf)>, RestoreError> {
    let record = &plan.backup;
    let places: Vec<(u32, PathBuf)> = record
        .tablespaces
        .iter()
        .map(|space| (space.oid, place(&space.location)))
        // A relative one lies within the data directory (allow_in_place_tablespaces).
        .filter(|(_, place)| place.is_absolute())
        .collect();
    for (old, new) in &goal.mappings {
        let created = plan.tablespaces.iter().map(|space| &space.path);
        if !places
            .iter()
            .map(|(_, place)| place)
            .chain(created)
            .any(|place| place == old)
        {
            let of_backup = record.tablespaces.iter().map(|space| space.location.clone());
            let created = plan.tablespaces.iter().map(|space| space.path.display().to_string());
            let locations = of_backup.chain(created).collect();
            return Err(RestoreError::NoSuchTablespace {
                old: old.clone(),
                locations,
            });
        }
        if !new.is_absolute() {
            return Err(RestoreError::Relative { new: new.clone() });
        }
    }
    let mapped = |place: PathBuf| {
        let mapping = goal.mappings.iter().find(|(old, _)| *old == place);
        mapping.map(|(_, new)| new.clone()).unwrap_or(place)
    };
    Ok(places.into_iter().map(|(oid, place)| (oid, mapped(place))).collect())
}

/// The location in a record as a path: UTF-8, or bytes in hexadecimal.
fn place(location: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let Some(digits) = location.strip_prefix("\\x") else {
        return PathBuf::from(location);
    };
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    match (0..digits.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>() {
        Some(bytes) => PathBuf::from(std::ffi::OsString::from_vec(bytes)),
        None => PathBuf::from(location),
    }
}

/// Holds what each file system must take against what it has. WAL that recovery will fetch passes
/// through one segment at a time and is not counted.
fn enough_room(record: &BackupRecord, goal: &Goal, spaces: &[(u32, PathBuf)]) -> Result<(), Failure> {
    let in_spaces = |oid: u32| {
        record
            .tablespaces
            .iter()
            .find(|space| space.oid == oid)
            .map_or(0, |space| space.size_bytes)
    };
    let elsewhere: u64 = spaces.iter().map(|(oid, _)| in_spaces(*oid)).sum();
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    let mut add = |path: &Path, bytes: u64| -> Result<(), DirectoryError> {
        // The nearest folder that is there tells the file system.
        let there = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
        let device = fs::metadata(there).map_err(DirectoryError::io("look at", there))?.dev();
        needed.entry(device).or_insert_with(|| (there.to_path_buf(), 0)).1 += bytes;
        Ok(())
    };
    add(&goal.to, record.size_bytes.saturating_sub(elsewhere))?;
    for (oid, folder) in spaces {
        add(folder, in_spaces(*oid))?;
    }
    for (path, needed) in needed.into_values() {
        let free = disk::free_space(&path).map_err(DirectoryError::io("look at", &path))?;
        if free < needed {
            return Err(RestoreError::NoRoom { path, needed, free }.into());
        }
    }
    Ok(())
}

async fn write_manifest(
    repository: &Repository,
    record: &BackupRecord,
    root: &Path,
    modes: Modes,
    env: &Env,
) -> Result<(), Failure> {
    let Some(part) = record.part(backup::MANIFEST) else {
        return Ok(());
    };
    let stored = backup::read_part(repository, record, part).await?;
    let bytes = zstd::bulk::decompress(&stored, MANIFEST_LIMIT).map_err(|error| RepoError::Damaged {
        object: part.name.clone(),
        why: error.to_string(),
    })?;
    let path = root.join("backup_manifest");
    disk::write(&path, &bytes, modes.file, env).map_err(DirectoryError::io("write", &path))?;
    Ok(())
}

/// Permissions of what a restore makes itself.
#[derive(Debug, Clone, Copy)]
struct Modes {
    folder: u32,
    file: u32,
}

impl Modes {
    /// The server refuses a directory that others may enter; the group may where `initdb` was told so,
    /// which every file's permissions show.
    fn of(root: &Path) -> Self {
        let mode = fs::metadata(root.join("PG_VERSION")).map_or(0o600, |metadata| metadata.permissions().mode());
        let (folder, file) = if mode & 0o040 != 0 {
            (0o750, 0o640)
        } else {
            (0o700, 0o600)
        };
        Self { folder, file }
    }
}
