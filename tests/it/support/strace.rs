//! A disk that breaks at a chosen system call: `strace` answers in the kernel's place, or kills the program
//! there.
//!
//! Calls are numbered from 1 among those of the same name in one thread, as `strace` counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use super::program::Answer;
use super::user::{Scratch, ServerUser};

/// The calls through which files are changed. Not each is there on each machine.
const CALLS: [&str; 14] = [
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "syncfs",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "linkat",
    "unlink",
    "unlinkat",
    "ftruncate",
];

/// How a call breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// It does nothing and answers this error.
    Error(&'static str),
    /// The program is killed in it.
    Kill,
}

/// One call of a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: usize,
}

impl Call {
    /// The ways in which it may break on a real machine.
    pub fn breaks(&self) -> Vec<Break> {
        let makes_something = !self.name.contains("sync") && !self.name.starts_with("unlink");
        let mut breaks = vec![Break::Error("EIO"), Break::Kill];
        if makes_something {
            breaks.push(Break::Error("ENOSPC"));
        }
        breaks
    }
}

/// What became of a program of which a call broke.
#[derive(Debug)]
pub struct Broken {
    /// What it answered.
    pub answer: Answer,
    /// Whether a call that goes to a file has answered the error.
    pub disk_failed: bool,
}

/// What a program did that was left to run to its end.
#[derive(Debug)]
pub struct Trace {
    /// What it answered.
    pub answer: Answer,
    /// Its calls, a line each, in their order. Files are named.
    pub lines: Vec<String>,
    /// The calls that touch a file below the place that was watched.
    pub calls: BTreeSet<Call>,
}

impl Trace {
    /// The place in the order of the last line that has all these words in it.
    #[track_caller]
    pub fn last(&self, words: &[&str]) -> usize {
        let holds = |line: &String| words.iter().all(|word| line.contains(word));
        let found = self.lines.iter().rposition(holds);
        found.unwrap_or_else(|| panic!("no line with {words:?} in\n{}", self.lines.join("\n")))
    }
}

/// Runs a command unbroken and watches what it does below `place`.
#[track_caller]
pub fn watch(command: &Command, place: &Path) -> Trace {
    let scratch = Scratch::new();
    let output = scratch.join("trace");
    let names: Vec<String> = CALLS.iter().map(|name| format!("?{name}")).collect();
    let trace = format!("trace={}", names.join(","));
    let answer = run(command, &output, &["-f", "-y", "--seccomp-bpf", "-e", &trace]);
    let text = fs::read_to_string(&output).expect("a trace");
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut calls = BTreeSet::new();
    for line in &lines {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let Some(name) = CALLS.iter().find(|name| {
            let rest = call.trim_start().strip_prefix(**name);
            rest.is_some_and(|rest| rest.starts_with('('))
        }) else {
            continue;
        };
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        if line.contains(place.to_str().expect("a path of tests is UTF-8")) {
            calls.insert(Call { name, number: *count });
        }
    }
    assert!(
        !calls.is_empty(),
        "strace has seen nothing; is ptrace permitted here?\n{text}"
    );
    Trace { answer, lines, calls }
}

/// Runs a command that breaks at one of its calls. Errors in `write` strike the first thread alone: the
/// others wake it by writing, and that is no disk.
#[track_caller]
pub fn broken(command: &Command, call: &Call, how: Break) -> Broken {
    let scratch = Scratch::new();
    let output = scratch.join("trace");
    let (name, number) = (call.name, call.number);
    let trace = format!("trace={name}");
    let what = match how {
        Break::Error(error) => format!("inject={name}:error={error}:when={number}"),
        Break::Kill => format!("inject={name}:signal=SIGKILL:when={number}"),
    };
    let mut arguments = vec!["-y", "-e", trace.as_str(), "-e", &what];
    if name != "write" || how == Break::Kill {
        arguments.extend(["-f", "--seccomp-bpf"]);
    }
    let answer = run(command, &output, &arguments);
    let text = fs::read_to_string(&output).expect("a trace");
    let on_disk = |line: &str| line.contains("(INJECTED)") && !line.contains("[eventfd]");
    Broken {
        answer,
        disk_failed: text.lines().any(on_disk),
    }
}

#[track_caller]
fn run(command: &Command, output: &Path, arguments: &[&str]) -> Answer {
    let strace = Path::new("/usr/bin/strace");
    assert!(strace.is_file(), "strace is not installed: run tests/run.sh");
    let mut traced = ServerUser::get().command(strace);
    traced
        .arg("-o")
        .arg(output)
        .args(arguments)
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        traced.env(name, value.expect("only set, never removed"));
    }
    if let Some(folder) = command.get_current_dir() {
        traced.current_dir(folder);
    }
    let answer = Answer::of(&mut traced);
    assert!(
        !answer.stderr.contains("strace: "),
        "strace could not do its work; is ptrace permitted here?\n{}",
        answer.stderr
    );
    answer
}
