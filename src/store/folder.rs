//! Listing a folder of this machine.
//!
//! A year of WAL is half a million files. The general way costs a path, a parse and two or three system calls for each;
//! this one costs one call, and several folders are read at a time (see [`super::Store::walk`]).

use std::fs::{self, DirEntry, FileType};
use std::io;
use std::path::{Path, PathBuf};

use super::Name;
use crate::disk;

/// What lies directly in one folder: the folders below it, and what was picked of its files.
pub(super) type Level<T> = (Vec<Name>, Vec<T>);

/// Reads one folder, `name` in the store and `path` here. Names in the making are no objects. What vanishes meanwhile,
/// the folder itself included, was not there; links are followed, and one that leads nowhere is nothing.
///
/// # Errors
/// Whatever the file system says, save that something is gone.
pub(super) fn read<T>(path: &Path, name: &Name, pick: fn(&Name, &str, u64) -> Option<T>) -> io::Result<Level<T>> {
    let mut level = (Vec::new(), Vec::new());
    let Some(entries) = unless_gone(fs::read_dir(path))? else {
        return Ok(level);
    };
    for entry in entries {
        let Some(entry) = unless_gone(entry)? else { continue };
        let file = entry.file_name();
        // No object of ours has a name that is not text.
        let Some(file) = file.to_str() else { continue };
        let Some((kind, size)) = look_at(&entry, file)? else {
            continue;
        };
        if kind.is_dir() {
            level.0.extend(Name::parse(format!("{name}/{file}")));
        } else if kind.is_file() {
            level.1.extend(pick(name, file, size));
        }
    }
    Ok(level)
}

/// What an entry is, and a file's size in bytes; `None` for what is no object, nor a folder of objects.
fn look_at(entry: &DirEntry, file: &str) -> io::Result<Option<(FileType, u64)>> {
    let kind = entry.file_type()?;
    if kind.is_dir() {
        return Ok(Some((kind, 0)));
    }
    if disk::is_staged(file.as_ref()) {
        return Ok(None);
    }
    let metadata = if kind.is_symlink() {
        fs::metadata(entry.path())
    } else {
        entry.metadata()
    };
    Ok(unless_gone(metadata)?.map(|metadata| (metadata.file_type(), metadata.len())))
}

/// Removes files: how many are gone then, and the first that is not.
pub(super) fn delete(paths: &[PathBuf]) -> (usize, Option<(usize, io::Error)>) {
    let (mut gone, mut refused) = (0, None);
    for (at, path) in paths.iter().enumerate() {
        match unless_gone(fs::remove_file(path)) {
            Ok(_) => gone += 1,
            Err(error) => refused = refused.or(Some((at, error))),
        }
    }
    (gone, refused)
}

fn unless_gone<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn all(_: &Name, file: &str, size: u64) -> Option<(String, u64)> {
        Some((file.to_owned(), size))
    }

    #[test]
    fn files_in_the_making_and_links_to_nowhere_are_no_objects() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["a", "a#17", "b#x", "c#"] {
            fs::write(at(name), "123").unwrap();
        }
        fs::create_dir(at("below")).unwrap();
        fs::create_dir(at("below#1")).unwrap();
        symlink(at("a"), at("link")).unwrap();
        symlink(at("below"), at("linked")).unwrap();
        symlink(at("nothing"), at("broken")).unwrap();
        let (mut folders, mut files) = read(root.path(), &Name::from("x"), all).unwrap();
        folders.sort();
        files.sort();
        // A folder is no file in the making, whatever its name is.
        let expected = ["x/below", "x/below#1", "x/linked"].map(|name| Name::parse(name).unwrap());
        assert_eq!(folders, expected);
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b#x", "c#", "link"]);
        assert!(files.iter().all(|(_, size)| *size == 3));
    }

    #[test]
    fn a_folder_that_is_gone_is_empty_and_one_that_can_not_be_read_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let gone = read(&root.path().join("gone"), &Name::from("gone"), all).unwrap();
        assert!(gone.0.is_empty() && gone.1.is_empty());
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = read(&file, &Name::from("file"), all).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
