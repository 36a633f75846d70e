//! A receiver under test: started, watched, and ended in every way.

use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::process::{signal, wait_for};
use crate::support::program::Answer;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

/// A receiver, running or not. Killed when dropped; its log is printed in a test that fails.
pub struct Receiver<'a> {
    vault: &'a Vault,
    slot: String,
    arguments: Vec<String>,
    env: Vec<(&'static str, String)>,
    scratch: Scratch,
    child: Option<Child>,
}

impl<'a> Receiver<'a> {
    /// One that was not started yet.
    pub fn new(vault: &'a Vault, conninfo: &str, slot: &str, more: &[&str]) -> Self {
        let mut arguments = vec!["-d".to_owned(), conninfo.to_owned()];
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        Self {
            vault,
            slot: slot.to_owned(),
            arguments,
            env: Vec::new(),
            scratch: Scratch::new(),
            child: None,
        }
    }

    /// One that makes its slot where it is missing, and streams.
    #[track_caller]
    pub fn streaming(vault: &'a Vault, conninfo: &str, more: &[&str]) -> Self {
        let mut receiver = Self::new(vault, conninfo, "pgp", &[&["--create-slot"], more].concat());
        receiver.start();
        receiver.wait_for_state("streaming");
        receiver
    }

    /// Starts it, and waits for nothing.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.scratch.join("log"));
        let mut command = self.command();
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stderr(log.unwrap())
            .stdout(Stdio::null());
        assert!(self.child.is_none(), "it runs");
        self.child = Some(command.spawn().unwrap());
    }

    /// Gives it a variable of its environment.
    pub fn env(&mut self, name: &'static str, value: &str) {
        self.env.push((name, value.to_owned()));
    }

    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends it as a supervisor does: its exit code, and how long it took.
    #[track_caller]
    pub fn stop(&mut self) -> (Option<i32>, Duration) {
        let since = Instant::now();
        signal(self.pid(), Signal::TERM);
        (self.wait().code(), since.elapsed())
    }

    /// Runs it until it ends by itself, with that exit code. Answers what it has logged in that time.
    #[track_caller]
    pub fn ends_with(&mut self, code: i32) -> String {
        let before = self.log().len();
        self.start();
        let status = self.wait();
        let said = self.log()[before..].to_owned();
        assert_eq!(status.code(), Some(code), "{said}");
        said
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let status = wait_for("the receiver ends", || child.try_wait().unwrap());
        self.child = None;
        status
    }

    /// Whether it runs: one that has ended by itself is reaped, and its exit code told.
    pub fn has_ended(&mut self) -> Option<i32> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status.code().unwrap_or(-1))
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// All that it has logged since the first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap_or_default()
    }

    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str) {
        wait_for(&format!("the log says {text:?}"), || {
            self.log().contains(text).then_some(())
        });
    }

    /// What `--status` answers.
    pub fn status(&self) -> Answer {
        Answer::of(self.command().args(["--status", "--json"]))
    }

    /// Waits until the status has this state, and answers it.
    #[track_caller]
    pub fn wait_for_state(&mut self, state: &str) -> Value {
        wait_for(&format!("the state is {state}"), || {
            if let Some(code) = self.has_ended() {
                panic!("the receiver has ended with {code}, and not become {state}");
            }
            let answer = self.status();
            (!answer.stdout.is_empty())
                .then(|| answer.json())
                .filter(|status| status["state"] == state && status["running"] == true)
        })
    }

    /// A line of `/proc/PID/status` in its own unit, for example `VmHWM` in KiB.
    #[track_caller]
    pub fn proc_status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    fn command(&self) -> Command {
        let status = self.scratch.join("status.json");
        let mut command = self.vault.command();
        command
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .args(["receive", "--slot", &self.slot, "--status-file"])
            .arg(status);
        command
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- end of the log of the receiver with slot {}\n{tail}", self.slot);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
