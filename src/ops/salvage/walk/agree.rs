//! Whether files and the repository tell the same.

use std::path::Path;

use super::Walk;
use crate::error::{Class, Explain, Failure, on_one_line};
use crate::ops::salvage::ProblemKind;
use crate::ops::salvage::compare::Compare;
use crate::ops::salvage::files;
use crate::pg::{Lsn, SegmentNumber};
use crate::repo::{self, Identity, RepoError, names, tail};

impl Walk<'_> {
    /// Whether a file is what the repository has under its name, or the beginning of it.
    pub(super) async fn agrees(
        &mut self,
        number: SegmentNumber,
        path: &Path,
        known: &Identity,
    ) -> Result<bool, Failure> {
        let start = self.start(number);
        match files::digest(path) {
            Ok(digest) if digest == known.content => {
                self.on.agreed += 1;
                return Ok(true);
            }
            Ok(_) => {}
            // The repository has it.
            Err(_) => return Ok(true),
        }
        let (index, _) = files::index(path, self.timeline, start, self.ground.layout);
        let until = index.broken.map_or(self.end(number), |broken| broken.at);
        let mut compare = Compare::new(path, start, until).map_err(|error| unreadable(path, error))?;
        let (store, system) = (self.ground.repository.store(), self.ground.cluster().system);
        let fetched = repo::fetch(store, system, self.file(number), &mut compare).await;
        let Some(differs) = compare.differs() else {
            match fetched {
                Err(error) if error.class() == Class::Damaged => {
                    let about = format!("can't be held against the repository's: {}", on_one_line(&error));
                    self.tell(ProblemKind::Damaged, path, start, None, &about);
                }
                fetched => drop(fetched?),
            }
            return Ok(true);
        };
        let object = store.full(&names::wal_file(system, self.file(number)));
        let about = format!(
            "is in the repository already with other content, which differs from {differs} on ({object}): that copy is \
             untouched, and nothing that follows this file was taken"
        );
        self.tell(ProblemKind::Conflict, path, differs, None, &about);
        Ok(false)
    }

    /// Where the repository's pieces of a segment end that agree with the file up to `until`; `None`, and a problem, where
    /// they are something else.
    pub(super) async fn tail_of(
        &mut self,
        number: SegmentNumber,
        path: &Path,
        until: Lsn,
    ) -> Result<Option<Lsn>, Failure> {
        let start = self.start(number);
        let cluster = self.ground.cluster();
        if !self
            .pieces
            .iter()
            .any(|piece| piece.segment(cluster.segment_size) == Some(number))
        {
            return Ok(Some(start));
        }
        let mut compare = Compare::new(path, start, until).map_err(|error| unreadable(path, error))?;
        let tail = tail::tail(self.ground.repository, cluster, self.timeline, number, &mut compare).await?;
        let Some(differs) = compare.differs() else {
            return Ok(Some(tail.end));
        };
        let about = format!(
            "differs from {differs} on from what the repository has of it in pieces, up to {}: those are untouched, and \
             nothing of this file was taken",
            tail.end
        );
        self.tell(ProblemKind::Conflict, path, differs, Some(tail.end), &about);
        Ok(None)
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> RepoError {
    RepoError::File {
        doing: "read",
        file: path.display().to_string(),
        source,
    }
}
