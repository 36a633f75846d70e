//! Folders of tablespaces that replay creates: they must be there, and they must not be somebody else's.
//!
//! PostgreSQL takes the path in the WAL and no other: it fails where nothing is there, and where something is it writes
//! into that (13 and 14 delete what they find there first), be it the folder of the server that still runs beside.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{DirectoryError, Goal, RestoreError, directory, place};
use crate::disk;
use crate::error::Failure;
use crate::pg::Lsn;
use crate::plan::recovery::Plan;

/// What is to be done before replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make this folder, unless it is there and empty.
    Folder(PathBuf),
    /// Make a link at the first path that leads to the second.
    Link(PathBuf, PathBuf),
}

/// The folders that a restore makes for tablespaces that are created on the way, and the links to them.
///
/// # Errors
/// Something else is there.
pub(super) fn steps(plan: &Plan, goal: &Goal) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    let mut seen: Vec<&Path> = Vec::new();
    for space in &plan.tablespaces {
        let path = space.path.as_path();
        if seen.contains(&path) {
            continue;
        }
        seen.push(path);
        let in_backup = plan
            .backup
            .tablespaces
            .iter()
            .any(|known| place(&known.location) == path);
        let mapping = goal.mappings.iter().find(|(old, _)| old == path);
        match mapping {
            // Restored there.
            None if in_backup => {}
            None => steps.extend(free(path, space.lsn)?.then(|| Step::Folder(path.to_path_buf()))),
            Some((_, new)) => {
                if !in_backup && free(new, space.lsn)? {
                    steps.push(Step::Folder(new.clone()));
                }
                steps.extend(link(path, new)?);
            }
        }
    }
    Ok(steps)
}

/// Whether a folder is to be made; it may also be there and empty.
fn free(path: &Path, lsn: Lsn) -> Result<bool, Failure> {
    match directory::check(path) {
        Ok(()) => Ok(!path.exists()),
        Err(DirectoryError::NotEmpty { path }) => Err(RestoreError::InUse { path, lsn }.into()),
        Err(error) => Err(error.into()),
    }
}

fn link(old: &Path, new: &Path) -> Result<Option<Step>, Failure> {
    match fs::symlink_metadata(old) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(Step::Link(old.to_path_buf(), new.to_path_buf())));
        }
        Err(error) => return Err(DirectoryError::io("look at", old)(error).into()),
        Ok(_) => {}
    }
    let leads_there = fs::read_link(old).is_ok_and(|to| to == new)
        || matches!((fs::canonicalize(old), fs::canonicalize(new)), (Ok(old), Ok(new)) if old == new);
    match leads_there {
        true => Ok(None),
        false => Err(RestoreError::NoLink {
            old: old.to_path_buf(),
            new: new.to_path_buf(),
        }
        .into()),
    }
}

/// Does the steps. Each may have been done by a restore that was interrupted.
pub(super) fn make(steps: &[Step]) -> Result<(), DirectoryError> {
    for step in steps {
        match step {
            Step::Folder(path) => {
                disk::make_folder(path).map_err(DirectoryError::io("make", path))?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                    .map_err(DirectoryError::io("set permissions of", path))?;
            }
            Step::Link(old, new) => {
                let above = old.parent().unwrap_or(Path::new("/"));
                disk::make_folder(above).map_err(DirectoryError::io("make", above))?;
                symlink(new, old).map_err(DirectoryError::io("make", old))?;
                disk::sync_folder(above).map_err(DirectoryError::io("make durable", above))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_once_and_one_that_is_in_use_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("a/b");
        assert!(free(&folder, Lsn::ZERO).unwrap());
        make(&[Step::Folder(folder.clone())]).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!free(&folder, Lsn::ZERO).unwrap());
        fs::create_dir(folder.join("PG_17_202406281")).unwrap();
        let refused = free(&folder, Lsn::ZERO).unwrap_err();
        assert!(refused.to_string().contains("a/b"), "{refused}");
    }

    #[test]
    fn a_link_is_made_where_nothing_is_and_kept_where_it_leads_there() {
        let scratch = tempfile::tempdir().unwrap();
        let [old, new] = ["gone/old", "new"].map(|name| scratch.path().join(name));
        let step = link(&old, &new).unwrap().unwrap();
        make(std::slice::from_ref(&step)).unwrap();
        assert_eq!(fs::read_link(&old).unwrap(), new);
        assert_eq!(link(&old, &new).unwrap(), None);
        let refused = link(&old, &scratch.path().join("other")).unwrap_err().to_string();
        assert!(refused.contains("gone/old") && refused.contains("other"), "{refused}");
        fs::create_dir(&new).unwrap();
        assert!(link(&new, &scratch.path().join("other")).is_err());
    }
}
