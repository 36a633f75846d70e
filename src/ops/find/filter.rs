//! What is asked for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::event::{Happened, Kind};
use super::transaction::Transaction;
use super::{MASS_DELETE, Request};
use crate::ops::names::Names;
use crate::pg::{Lsn, SegmentNumber, Timeline};
use crate::wal::{RelFile, Xid};

/// Where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// From this moment to that one, both included.
    Times(DateTime<Utc>, DateTime<Utc>),
    /// From this place in the WAL up to that one.
    Places(Lsn, Lsn),
    /// Around this moment.
    Around(DateTime<Utc>),
}

/// What to tell of all that is seen.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// Only these; what is remarkable otherwise.
    kinds: BTreeSet<Kind>,
    least: u64,
    pub(super) xid: Option<Xid>,
    /// The files that the relation asked for ever had.
    pub(super) files: Option<BTreeSet<RelFile>>,
    database: Option<String>,
    pub(super) window: Option<Window>,
    /// Whether every transaction is told and not only what is remarkable.
    pub(super) everything: bool,
    /// The segments that the window is in.
    pub(super) span: BTreeMap<Timeline, (SegmentNumber, SegmentNumber)>,
    /// Segments to be read themselves.
    pub(super) read: BTreeSet<(Timeline, SegmentNumber)>,
    /// Whether nothing is told: the WAL is read for what relations are called.
    silent: bool,
}

impl Filter {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            kinds: request.kinds.iter().copied().collect(),
            least: request.least.unwrap_or(MASS_DELETE),
            xid: request.xid,
            database: request.database.clone(),
            window: request.window,
            everything: request.tells_everything(),
            ..Self::default()
        }
    }

    /// One that nothing passes.
    pub(super) fn silent() -> Self {
        Self {
            silent: true,
            ..Self::default()
        }
    }

    pub(super) fn asks_for(&self, kind: Kind) -> bool {
        match self.kinds.is_empty() {
            _ if self.silent => false,
            true => self.everything || self.xid.is_some() || kind.is_remarkable(),
            false => self.kinds.contains(&kind),
        }
    }

    /// From how many deleted rows on a transaction is told as a mass delete, if such are asked for.
    pub(super) fn mass_delete(&self) -> Option<u64> {
        self.asks_for(Kind::MassDelete).then_some(self.least)
    }

    /// Whether a segment is to be read itself.
    pub(super) fn reads(&self, timeline: Timeline, number: SegmentNumber) -> bool {
        self.read.contains(&(timeline, number))
    }

    /// Whether a transaction may be told at all.
    pub(super) fn may_tell(&self, transaction: &Transaction) -> bool {
        let (end, did) = (&transaction.end, &transaction.did);
        let is_it = |xid| end.ended.xid == xid || end.subtransactions.contains(&xid);
        let touched = |files: &BTreeSet<RelFile>| {
            let mut all = did.relations.keys().chain(&end.dropped).chain(&did.created);
            all.any(|file| files.contains(file))
        };
        !self.silent && self.xid.is_none_or(is_it) && self.files.as_ref().is_none_or(touched)
    }

    /// Whether an event that is no end of a transaction may be told.
    pub(super) fn is_for_plain_events(&self, kind: Kind, xid: Option<Xid>) -> bool {
        let own = self.xid.is_none() || kind == Kind::Prepare && self.xid == xid;
        own && self.files.is_none()
    }

    /// Whether a file is of the relation that was asked for.
    pub(super) fn is_asked_for(&self, file: &RelFile) -> bool {
        self.files.as_ref().is_some_and(|files| files.contains(file))
    }

    /// Whether an event is where it was asked for.
    pub(super) fn is_where_asked(&self, happened: &Happened, segment: SegmentNumber, names: &Names) -> bool {
        let other_database = match (&self.database, happened.database) {
            (Some(asked), Some(oid)) => !names.was_called(oid, asked),
            _ => false,
        };
        let spanned = || {
            let span = self.span.get(&happened.timeline);
            span.is_some_and(|(first, last)| (first..=last).contains(&&segment))
        };
        let inside = match (self.window, happened.at) {
            (None, _) => true,
            (Some(Window::Places(from, to)), _) => (from..to).contains(&happened.lsn),
            (Some(Window::Times(from, to)), Some(at)) => (from..=to).contains(&at),
            // Without a time it counts with its neighbours. What is around a moment is chosen in the end.
            (Some(Window::Times(..) | Window::Around(_)), _) => spanned(),
        };
        !other_database && inside
    }
}
