//! Where received WAL goes: to the writer at once, or through a spool.

use std::time::Duration;

use bytes::Bytes;

use super::packer::Took;
use super::spooling::Spooling;
use super::writer::{Writer, Written};
use crate::error::Failure;
use crate::pg::{Lsn, Timeline};

/// One of the two.
pub(super) enum Sink<'a> {
    Direct(Box<Writer>),
    Spooled(&'a mut Spooling),
}

impl Sink<'_> {
    /// Whether more bytes may come.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Direct(writer) => writer.has_room(),
            Self::Spooled(spooling) => spooling.has_room(),
        }
    }

    /// The server has WAL up to here.
    pub(super) fn server_has(&mut self, end: Lsn) {
        if let Self::Direct(writer) = self {
            writer.server_has(end);
        }
    }

    /// Takes the next bytes. Never waits.
    pub(super) fn take(&mut self, bytes: Bytes) -> Result<(), Failure> {
        match self {
            Self::Direct(writer) => writer.take(bytes),
            Self::Spooled(spooling) => spooling.take(bytes),
        }
    }

    /// Waits until something is done. Cancel-safe.
    pub(super) async fn progress(&mut self) -> Result<(), Failure> {
        match self {
            Self::Direct(writer) => writer.progress().await,
            Self::Spooled(spooling) => spooling.progress().await,
        }
    }

    /// Up to where WAL was received.
    pub(super) fn received(&self) -> Lsn {
        match self {
            Self::Direct(writer) => writer.received(),
            Self::Spooled(spooling) => spooling.received(),
        }
    }

    /// Up to where it is durable, as the server may be told.
    pub(super) fn durable(&self) -> Option<Lsn> {
        match self {
            Self::Direct(writer) => writer.durable(),
            Self::Spooled(spooling) => spooling.durable(),
        }
    }

    /// Up to where it is durable in the repository.
    pub(super) fn stored(&self) -> Option<Lsn> {
        match self {
            Self::Direct(writer) => writer.durable(),
            Self::Spooled(spooling) => spooling.delivered(),
        }
    }

    /// Everything leaves now.
    pub(super) fn hurry(&mut self) {
        if let Self::Direct(writer) = self {
            writer.cut_all();
        }
    }

    /// Whether all that was received survives us. What the server has not shown to be what the repository has is not
    /// ours to keep.
    pub(super) fn is_safe(&self) -> bool {
        match self {
            Self::Direct(writer) => writer.is_drained() || writer.durable().is_none(),
            Self::Spooled(spooling) => spooling.is_safe(),
        }
    }

    /// Whether all that was received is in the repository.
    pub(super) fn is_drained(&self) -> bool {
        match self {
            Self::Direct(writer) => writer.is_drained() || writer.durable().is_none(),
            Self::Spooled(spooling) => spooling.is_drained(),
        }
    }

    /// Lets what is on its way to the store come to its end.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        if let Self::Direct(writer) = self {
            while writer.is_busy() {
                writer.progress().await?;
            }
        }
        Ok(())
    }

    /// For how long the store has not answered, if something is on its way.
    pub(super) fn waits_for(&self) -> Option<Duration> {
        match self {
            Self::Direct(writer) => writer.waits_for(),
            Self::Spooled(_) => None,
        }
    }

    /// Whether the server has much more.
    pub(super) fn is_catching_up(&self) -> bool {
        match self {
            Self::Direct(writer) => writer.is_catching_up(),
            Self::Spooled(_) => false,
        }
    }

    /// What was packed since it was last asked.
    pub(super) fn took(&mut self) -> Vec<(Timeline, Took)> {
        match self {
            Self::Direct(writer) => {
                let timeline = writer.timeline();
                writer.took.drain(..).map(|took| (timeline, took)).collect()
            }
            Self::Spooled(spooling) => spooling.took(),
        }
    }

    /// What was written since it was last asked.
    pub(super) fn written(&mut self) -> Written {
        match self {
            Self::Direct(writer) => std::mem::take(&mut writer.written),
            Self::Spooled(spooling) => spooling.written(),
        }
    }

    /// To be called from time to time.
    pub(super) fn tick(&self) {
        if let Self::Spooled(spooling) = self {
            spooling.tick();
        }
    }

    /// What the spool takes on its disk, what it may take, and whether it is full.
    pub(super) fn spool(&self) -> Option<(u64, u64, bool)> {
        match self {
            Self::Direct(_) => None,
            Self::Spooled(spooling) => Some((spooling.bytes(), spooling.limit(), spooling.is_full())),
        }
    }
}
