//! A receiver that runs beside a test.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::process;

/// `pgp-pitr receive`, running; killed when dropped.
#[derive(Debug)]
pub struct Receiver {
    child: Child,
    log: PathBuf,
}

impl Receiver {
    /// Starts it; what it says goes into the file `log`.
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        command.stdin(Stdio::null()).stderr(File::create(&log).expect("a log"));
        let child = command.spawn().expect("our own program starts");
        Self { child, log }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a supervisor does; its exit code, if it had one.
    pub fn stop(&mut self) -> Option<i32> {
        process::signal(self.child.id(), Signal::TERM);
        self.child.wait().expect("our own child").code()
    }

    /// Kills it as a power cut does.
    pub fn kill9(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Best effort: it may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
