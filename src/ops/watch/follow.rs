//! Follows a recovery to its end, with how fast it is and how long it will take.

use std::time::{Duration, Instant};

use super::speed::{Sample, Samples, Speed};
use super::{Connect, Observation, State, Status, WatchError, Watcher};
use crate::env::Env;
use crate::error::Failure;

/// A look, and what follows from the looks before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The look.
    pub seen: Observation,
    /// How fast replay is.
    pub speed: Speed,
    /// Bytes of WAL left to the target, where its position is known.
    pub left_bytes: Option<u64>,
    /// How long that will take at this speed.
    pub left: Option<Duration>,
}

/// How far to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// One look, and a second one for the speed.
    Once,
    /// To the target, or the end of recovery; a standby is followed for ever.
    Target,
    /// To where connections are taken.
    Connections,
}

/// How following came to its end.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// Where it was to.
    Reached(Progress),
    /// Somebody wanted no more.
    Interrupted(Option<Progress>),
}

/// Says whether a server that isn't there yet may still come.
pub type MayCome<'a> = Box<dyn FnMut() -> bool + 'a>;

/// How to follow.
pub struct Following<'a> {
    /// How far.
    pub until: Until,
    /// How long to wait between two looks.
    pub interval: Duration,
    /// How to connect.
    pub connect: &'a Connect<'a>,
    /// Where time comes from.
    pub env: &'a Env,
    /// Where the server has just been started: whether it may still come.
    pub starting: Option<MayCome<'a>>,
}

/// Follows a server. `tell` is shown each look; `stop` ends it.
///
/// # Errors
/// No server runs, or it stops before its target.
pub async fn follow(
    watcher: &mut Watcher,
    how: Following<'_>,
    tell: &mut dyn FnMut(&Progress),
    stop: impl Future<Output = ()>,
) -> Result<Ended, Failure> {
    tokio::pin!(stop);
    let Following {
        until,
        interval,
        connect,
        env,
        mut starting,
    } = how;
    let begun = Instant::now();
    let (mut samples, mut last, mut was_there) = (Samples::default(), None, starting.is_some());
    let mut awaited = true;
    loop {
        // Asked before the look: a server that came and went in between is seen as gone.
        awaited = awaited && starting.as_mut().is_some_and(|starting| starting());
        let seen = tokio::select! {
            seen = watcher.look(connect, env) => seen?,
            () = &mut stop => return Ok(Ended::Interrupted(last)),
        };
        let progress = progress(watcher, seen, begun.elapsed(), &mut samples);
        match progress.seen.state {
            State::NotRunning if awaited => {}
            State::NotRunning => return Err(gone(watcher, &progress, last.as_ref(), was_there)),
            state => {
                (was_there, awaited) = (true, false);
                tell(&progress);
                let server = progress.seen.postmaster.as_ref();
                let done = match until {
                    Until::Once => last.is_some() || state != State::Recovering,
                    Until::Target => state.is_end(),
                    Until::Connections => state.is_end() || server.is_some_and(|server| server.status == Status::Ready),
                };
                if done {
                    return Ok(Ended::Reached(progress));
                }
                last = Some(progress);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = &mut stop => return Ok(Ended::Interrupted(last)),
        }
    }
}

fn progress(watcher: &Watcher, seen: Observation, at: Duration, samples: &mut Samples) -> Progress {
    if let (State::Recovering | State::PausedEarly | State::Paused, Some(lsn)) = (seen.state, seen.replayed_lsn) {
        let moment = seen.replayed_at;
        samples.push(Sample { at, lsn, moment });
    }
    let speed = samples.speed();
    let stop = watcher.goal().stop_lsn.filter(|_| seen.state != State::Running);
    let left_bytes = match seen.state {
        State::Paused | State::StoppedAtTarget => Some(0),
        _ => stop.zip(seen.replayed_lsn).map(|(stop, lsn)| stop.since(lsn)),
    };
    Progress {
        left: left_bytes.and_then(|bytes| speed.time_for(bytes)),
        left_bytes,
        speed,
        seen,
    }
}

fn gone(watcher: &Watcher, now: &Progress, last: Option<&Progress>, was_there: bool) -> Failure {
    let path = watcher.directory().to_path_buf();
    let words = watcher.words();
    match was_there {
        true => WatchError::Died {
            path,
            reached: last.and_then(|last| last.seen.replayed_lsn),
            words,
            log: watcher.log().map(|log| log.path.clone()),
        },
        false => WatchError::NotRunning {
            path,
            state: now.seen.control.state,
            words,
        },
    }
    .into()
}
