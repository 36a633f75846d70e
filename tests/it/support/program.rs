//! Our own three binaries, run as the server's user, and what they answered.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::user::ServerUser;

/// One of our binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `pgp-pitr`
    Pitr,
    /// `pgp-archive`
    Archive,
    /// `pgp-restore`
    Restore,
}

impl Program {
    /// A path under which the server's user can run it: where cargo built it, or a copy if that lies
    /// below a folder which is closed to others. All three share one folder, as when installed.
    pub fn path(self) -> PathBuf {
        // One copy at a time, or two tests write the same temporary name.
        static COPYING: Mutex<()> = Mutex::new(());
        if [Self::Pitr, Self::Archive, Self::Restore]
            .iter()
            .all(|program| open_to_all(program.built()))
        {
            return self.built().to_owned();
        }
        let _turn = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = copies();
        for program in [Self::Pitr, Self::Archive, Self::Restore] {
            copy_if_changed(program.built(), &folder);
        }
        folder.join(self.built().file_name().expect("a binary has a name"))
    }

    /// A command that runs it as the server's user, in a quiet environment.
    pub fn command(self) -> Command {
        ServerUser::get().command(self.path())
    }

    /// Runs it with these arguments and returns what it answered.
    pub fn run<S: AsRef<std::ffi::OsStr>>(self, arguments: impl IntoIterator<Item = S>) -> Answer {
        Answer::of(self.command().args(arguments))
    }

    fn built(self) -> &'static Path {
        Path::new(match self {
            Self::Pitr => env!("CARGO_BIN_EXE_pgp-pitr"),
            Self::Archive => env!("CARGO_BIN_EXE_pgp-archive"),
            Self::Restore => env!("CARGO_BIN_EXE_pgp-restore"),
        })
    }
}

/// What a program answered.
#[derive(Debug)]
pub struct Answer {
    /// The exit code; 128 + the signal's number where one ended it, as shells have it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    said: String,
}

impl Answer {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        Self::of_input(command, "")
    }

    /// Runs a command to its end, with this text as its standard input.
    pub fn of_input(command: &mut Command, input: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} did not start: {error}"));
        let mut stdin = child.stdin.take().expect("a pipe");
        let Output { status, stdout, stderr } = thread::scope(|scope| {
            // Beside the reading, or both sides could wait for each other. A program that does not
            // read its input to the end breaks the pipe, which is its right.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
            child.wait_with_output().expect("our own child")
        });
        Self {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            said: format!("{command:?}"),
        }
    }

    /// This answer, which must have that exit code.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code of {}\n--- stdout\n{}\n--- stderr\n{}",
            self.said, self.stdout, self.stderr
        );
        self
    }

    /// Standard output, which must be exactly one JSON document.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{} did not print JSON: {error}\n{}", self.said, self.stdout))
    }
}

/// Whether anybody may execute the file: its own bits and those of each folder above it.
fn open_to_all(file: &Path) -> bool {
    file.ancestors()
        .all(|part| fs::metadata(part).is_ok_and(|about| about.permissions().mode() & 0o001 != 0))
}

/// A folder for copies, one for each build directory, and kept from run to run: what has not changed
/// is not copied again.
fn copies() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    Program::Pitr.built().hash(&mut hasher);
    let folder = std::env::temp_dir().join(format!("pgp-it-programs-{:016x}", hasher.finish()));
    fs::create_dir_all(&folder).expect("a folder for copies");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
    folder
}

fn copy_if_changed(built: &Path, folder: &Path) {
    let copy = folder.join(built.file_name().expect("a binary has a name"));
    let fresh = |path: &Path| {
        let about = fs::metadata(path).ok()?;
        Some((about.len(), about.modified().ok()?))
    };
    let (length, modified) = fresh(built).expect("cargo built it");
    if fresh(&copy).is_some_and(|(copied, at)| copied == length && at >= modified) {
        return;
    }
    // Under a name of its own first: a program that runs can't be written over, only replaced.
    let new = folder.join(format!("new-{}", std::process::id()));
    fs::copy(built, &new).expect("copy");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(&new, &copy).expect("rename");
}
