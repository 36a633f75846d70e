//! A disk that is small enough to be filled: a file system in memory, mounted for one test.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program::Answer;
use super::user::{Scratch, ServerUser};

/// A file system of a given size, of the server's user; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(Scratch);

impl SmallDisk {
    /// A new, empty one of so many bytes. Mounting needs root, as CI has it.
    pub fn new(bytes: u64) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "a small disk can be mounted only by root: run tests/run.sh as root"
        );
        let place = Scratch::new();
        let options = format!("size={bytes},mode=755");
        Answer::of(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "pgp-it"])
                .arg(place.path()),
        )
        .with_code(0);
        let disk = Self(place);
        ServerUser::get().give(disk.path());
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// How many bytes are free.
    pub fn free(&self) -> u64 {
        fs2::available_space(self.path()).expect("a mounted disk")
    }

    /// Fills it until only so many bytes are free, give or take a page.
    pub fn fill(&self, leave: u64) {
        let mut filler = fs::File::create(self.filler()).expect("a file on the small disk");
        let page = [0_u8; 4096];
        while self.free() > leave {
            match filler.write_all(&page) {
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                other => other.expect("written"),
            }
        }
    }

    /// Frees what [`Self::fill`] has taken.
    pub fn unfill(&self) {
        fs::remove_file(self.filler()).expect("filled before");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that a failed test has left behind may still have a file open here.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
