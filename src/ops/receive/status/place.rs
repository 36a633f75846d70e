//! Where the status lies unless `--status-file` says otherwise: in a folder of this machine's run-time state, under a
//! name that follows from slot and repository, so that writer and reader agree without a word.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::{StatusError, io_error};
use crate::codec::Digest;
use crate::env::Env;
use crate::replication::SlotName;
use crate::store::RepoUrl;

/// Made by whoever installs the service (systemd: `RuntimeDirectory=pgp`).
const RUN: &str = "/run/pgp";

/// Where to write: in `pgp` below `XDG_RUNTIME_DIR`; else in `/run/pgp`, where that can be written to; else in a folder
/// of this user's alone below the one for temporary files. The folder is made.
///
/// # Errors
/// No such folder can be made, or the one that is there is not ours alone: in a folder that everybody may write to
/// somebody else may have been first.
pub fn place(slot: &SlotName, repository: &RepoUrl, env: &Env) -> Result<PathBuf, StatusError> {
    let name = name(slot, repository);
    if let Some(folder) = of_session(env)
        && make_private(&folder).is_ok()
    {
        return Ok(folder.join(name));
    }
    let run = Path::new(RUN);
    let is_closed = fs::metadata(run).is_ok_and(|about| about.is_dir() && about.mode() & 0o002 == 0);
    if is_closed && access(run, Access::WRITE_OK | Access::EXEC_OK).is_ok() {
        return Ok(run.join(name));
    }
    let folder = of_user(env);
    make_private(&folder)?;
    Ok(folder.join(name))
}

/// Where to read: the first of the same places where there is one. The service may have been given another place than
/// whoever looks would be. Where there is none, the place that this user would write to.
pub fn find(slot: &SlotName, repository: &RepoUrl, env: &Env) -> PathBuf {
    let name = name(slot, repository);
    let session = of_session(env).map(|folder| folder.join(&name));
    let mut places = session.into_iter().chain([Path::new(RUN).join(&name)]);
    let own = of_user(env);
    // Elsewhere than in a folder of ours it may be anybody's.
    let last = own.join(&name);
    places.find(|path| path.exists()).unwrap_or(last)
}

fn of_session(env: &Env) -> Option<PathBuf> {
    let folder = Path::new(env.var_os("XDG_RUNTIME_DIR")?);
    folder.is_absolute().then(|| folder.join("pgp"))
}

fn of_user(env: &Env) -> PathBuf {
    let temporary = env.var_os("TMPDIR").map_or(Path::new("/tmp"), Path::new);
    temporary.join(format!("pgp-{}", rustix::process::geteuid().as_raw()))
}

/// The slot for people, the repository so that two of them are kept apart.
fn name(slot: &SlotName, repository: &RepoUrl) -> String {
    let repository = match repository.folder() {
        // However many slashes it was written with.
        Some(folder) => folder.components().collect::<PathBuf>().display().to_string(),
        None => repository.to_string(),
    };
    let digest = Digest::of(repository.as_bytes()).to_string();
    format!("receive-{}-{}.json", slot.as_str(), &digest[..8])
}

/// Makes a folder for this user alone, or sees that the one which is there is that: no link, ours, closed to others.
/// In a folder like `/tmp` nobody else can move or replace it then.
fn make_private(folder: &Path) -> Result<(), StatusError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(io_error("make the folder", folder)(error));
        }
        _ => {}
    }
    let about = fs::symlink_metadata(folder).map_err(io_error("look at", folder))?;
    let is_ours = about.is_dir() && about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o077 == 0;
    is_ours
        .then_some(())
        .ok_or_else(|| StatusError::Unsafe(folder.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn env(variable: &str, folder: &Path) -> Env {
        Env::made_up(&[(variable, folder.to_str().unwrap())], chrono::DateTime::UNIX_EPOCH, 1)
    }

    fn names() -> (SlotName, RepoUrl) {
        (SlotName::new("pgp").unwrap(), "s3://backups/pg".parse().unwrap())
    }

    #[test]
    fn writer_and_reader_agree() {
        let (slot, repository) = names();
        let session = tempfile::tempdir().unwrap();
        let env = env("XDG_RUNTIME_DIR", session.path());
        let path = place(&slot, &repository, &env).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(find(&slot, &repository, &env), path);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        let other = "s3://backups/other".parse().unwrap();
        assert_ne!(place(&slot, &other, &env).unwrap(), path);
        let name = |url: &str| name(&slot, &url.parse().unwrap());
        assert_eq!(name("/srv/pgp/"), name("file:///srv//pgp"));
    }

    #[test]
    fn a_folder_that_others_could_have_made_is_refused() {
        let (slot, repository) = names();
        let outside = tempfile::tempdir().unwrap();
        let own = format!("pgp-{}", rustix::process::geteuid().as_raw());
        let place = |prepare: &dyn Fn(&Path)| {
            let temporary = tempfile::tempdir().unwrap();
            prepare(&temporary.path().join(&own));
            let folder = of_user(&env("TMPDIR", temporary.path()));
            make_private(&folder).map(|()| folder.join(name(&slot, &repository)))
        };
        place(&|_| {}).unwrap();
        let unsafe_ones: [&dyn Fn(&Path); 3] = [
            &|folder| symlink(outside.path(), folder).unwrap(),
            &|folder| fs::write(folder, "").unwrap(),
            &|folder| {
                fs::create_dir(folder).unwrap();
                fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
            },
        ];
        for prepare in unsafe_ones {
            assert!(matches!(place(prepare), Err(StatusError::Unsafe(_))));
        }
    }
}
