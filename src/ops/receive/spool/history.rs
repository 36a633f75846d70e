//! Timeline histories beside the queue: small, durable at once, and first into the repository when the store is back.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;

use super::frame::{Frame, HEADER};
use super::recover::Damage;
use super::{Spool, SpoolError, io_error};
use crate::disk;
use crate::env::Env;
use crate::pg::{Lsn, Timeline};

/// A line for each ancestor; a cluster with ten thousand promotions has less.
const LONGEST: usize = 1 << 20;

impl Spool {
    /// Keeps the history of a timeline, as the server told it. A history that is kept already stays.
    ///
    /// It is written beside its name, fsynced, renamed, and the folder fsynced: a crash leaves it whole or not
    /// at all.
    ///
    /// # Errors
    /// Full, or whatever the file system says.
    pub fn put_history(&mut self, timeline: Timeline, text: &[u8], env: &Env) -> Result<(), SpoolError> {
        self.check_usable()?;
        if self.histories.iter().any(|(known, _)| *known == timeline) {
            return Ok(());
        }
        self.check_room((HEADER + text.len()) as u64)?;
        let frame = Frame {
            timeline,
            from: Lsn::ZERO,
            len: text.len(),
        };
        let mut bytes = Vec::with_capacity(frame.size());
        frame.write(self.system, &[Bytes::copy_from_slice(text)], &mut bytes);
        let path = self.history_path(timeline);
        disk::write(&path, &bytes, 0o600, env).map_err(io_error("write", &path))?;
        self.histories.push_back((timeline, bytes.len() as u64));
        Ok(())
    }

    /// The histories that are kept, verified, oldest timeline first. They belong into the repository before the WAL.
    ///
    /// # Errors
    /// One that is damaged, or whatever the file system says.
    pub fn histories(&self) -> Result<Vec<(Timeline, Bytes)>, SpoolError> {
        let read = |(timeline, _): &(Timeline, u64)| Ok((*timeline, self.read_history(*timeline)?));
        let mut histories: Vec<(Timeline, Bytes)> =
            self.histories.iter().map(read).collect::<Result<_, SpoolError>>()?;
        histories.sort_by_key(|(timeline, _)| *timeline);
        Ok(histories)
    }

    /// Lets go of a history that is in the repository. A crash leaves it there or not.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn release_history(&mut self, timeline: Timeline) -> Result<(), SpoolError> {
        let path = self.history_path(timeline);
        if let Some(index) = self.histories.iter().position(|(known, _)| *known == timeline) {
            disk::remove(&path).map_err(io_error("remove", &path))?;
            self.histories.remove(index);
        }
        Ok(())
    }

    /// Takes in a history that was found on opening. One that is damaged is answered and not taken in, so that it
    /// can be put again.
    pub(super) fn recover_history(&mut self, timeline: Timeline, length: u64) -> Option<Damage> {
        match self.read_history(timeline) {
            Ok(_) => {
                self.histories.push_back((timeline, length));
                None
            }
            Err(_) => Some(Damage {
                path: self.history_path(timeline),
                offset: 0,
            }),
        }
    }

    fn read_history(&self, timeline: Timeline) -> Result<Bytes, SpoolError> {
        let path = self.history_path(timeline);
        let damaged = || SpoolError::Damaged {
            path: path.clone(),
            offset: 0,
            timeline,
            lsn: Lsn::ZERO,
        };
        let length = fs::metadata(&path).map_err(io_error("read", &path))?.len();
        if length > (HEADER + LONGEST) as u64 {
            return Err(damaged());
        }
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        match Frame::read(self.system, LONGEST, &bytes) {
            Some((frame, text)) if frame.timeline == timeline && frame.size() == bytes.len() => {
                Ok(Bytes::copy_from_slice(text))
            }
            _ => Err(damaged()),
        }
    }

    fn history_path(&self, timeline: Timeline) -> PathBuf {
        self.folder.join(format!("{}.history", timeline.hex()))
    }
}
