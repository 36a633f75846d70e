//! Processes and ports, by number: nothing here ever looks for a process by its name.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How long anything may take to come up, to go down or to become true before a test gives up.
/// Generous: machines that run tests are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks `ready` every 20 ms until it answers, or panics with `what` when [`PATIENCE`] is at its end.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(since.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A loopback port that nobody listens on. Taken from below the kernel's own range, so that no
/// outgoing connection can grab it between this call and its use.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let spread = std::process::id().wrapping_mul(97);
    for _ in 0..12_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(spread);
        let port = 20_000 + u16::try_from(step % 12_000).expect("below 12,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 31999");
}

/// Sends a signal; a process that is gone already is fine.
pub fn signal(process: u32, signal: Signal) {
    let _ = kill_process(pid(process), signal);
}

/// Stops a process with all its threads, and returns when not one of them runs any more: the signal alone
/// is only a request.
pub fn freeze(process: u32) {
    signal(process, Signal::STOP);
    wait_for("each thread has stopped", || {
        let mut threads = fs::read_dir(format!("/proc/{process}/task")).expect("a process of ours");
        threads
            .all(|thread| state(&thread.expect("a thread").path()).is_none_or(|state| state == "T"))
            .then_some(())
    });
}

/// Kills a process and all it has started, directly or not, as a power cut would, and waits until
/// the descendants are gone. The caller reaps `process` itself.
pub fn kill_with_descendants(process: u32) {
    let mut doomed = vec![process];
    let mut next = 0;
    // A parent is stopped before its children are listed, so that none is born unseen.
    while let Some(&parent) = doomed.get(next) {
        signal(parent, Signal::STOP);
        doomed.extend(children_of(parent));
        next += 1;
    }
    for &process in &doomed {
        signal(process, Signal::KILL);
    }
    for &descendant in &doomed[1..] {
        wait_for("a killed process is gone", || {
            (test_kill_process(pid(descendant)).is_err() || is_zombie(descendant)).then_some(())
        });
    }
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(i32::try_from(process).expect("process ids are small")).expect("not zero")
}

fn children_of(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process| stat_field(&proc_folder(*process), 1).is_some_and(|found| found == parent))
        .collect()
}

fn is_zombie(process: u32) -> bool {
    state(&proc_folder(process)).is_some_and(|state| state == "Z")
}

fn proc_folder(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}"))
}

/// What a process or thread does: R runs, S sleeps, T is stopped, Z has ended and waits to be reaped.
fn state(folder: &Path) -> Option<String> {
    stat_field(folder, 0)
}

/// A field of the file `stat`, counted after the name (which may hold blanks): 0 state, 1 parent.
fn stat_field(folder: &Path, field: usize) -> Option<String> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(field).map(str::to_owned)
}
