//! What ends a receiver, and what it waits for.

use crate::error::{Class, Explain};
use crate::pg::{Lsn, MajorVersion, SystemId, Timeline};
use crate::replication::SlotName;

/// Why WAL can't be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum ReceiveError {
    /// The slot is not there.
    #[error("{server} has no replication slot \"{slot}\"")]
    NoSlot { server: String, slot: SlotName },
    /// Somebody else streams from it.
    #[error("replication slot \"{slot}\" on {server} is in use by another receiver; waiting until it is free")]
    SlotInUse { server: String, slot: SlotName },
    /// A slot for logical replication.
    #[error("replication slot \"{slot}\" on {server} is not a physical one")]
    SlotKind { server: String, slot: SlotName },
    /// The server gave the slot up.
    #[error("replication slot \"{slot}\" on {server} is lost: WAL that it kept has been removed")]
    SlotLost { server: String, slot: SlotName },
    /// Another cluster than was asked for, or than the one before.
    #[error("{server} is cluster {found}, not {expected}")]
    WrongCluster {
        server: String,
        found: SystemId,
        expected: SystemId,
    },
    /// A version whose WAL this one can't receive.
    #[error("{server} runs PostgreSQL {version}, whose WAL this version can't read")]
    Version { server: String, version: MajorVersion },
    /// The repository has WAL that the server never wrote.
    #[error(
        "the repository has WAL of timeline {timeline} up to {repository_end}, but the WAL of {server} ends at \
         {server_end}: nothing was received, and nothing overwritten"
    )]
    Ahead {
        server: String,
        timeline: Timeline,
        repository_end: Lsn,
        server_end: Lsn,
    },
    /// A standby that has not received yet what the repository has.
    #[error(
        "standby {server} is at {server_end} of timeline {timeline}, behind the repository's {repository_end}; waiting \
         until it has caught up"
    )]
    StandbyBehind {
        server: String,
        timeline: Timeline,
        repository_end: Lsn,
        server_end: Lsn,
    },
    /// None of what the repository lacks is there.
    #[error("{server} has no WAL from {from} on any more")]
    NothingLeft { server: String, from: Lsn },
    /// The same place, other bytes.
    #[error(
        "{server} sends other WAL of timeline {timeline} than the repository has from {from} to {to}: nothing was \
         overwritten"
    )]
    Diverged {
        server: String,
        timeline: Timeline,
        from: Lsn,
        to: Lsn,
    },
    /// What is sent is not the WAL of this cluster at that place.
    #[error("{server} sent a segment that is none: {why}")]
    NotWal { server: String, why: String },
    /// Nothing came, not even an answer.
    #[error("{server} has sent nothing for {seconds} s")]
    Silent { server: String, seconds: u64 },
    /// The time to stop was over before everything was stored.
    #[error("stopped with WAL from {durable} to {received} not stored yet")]
    Undrained { durable: Lsn, received: Lsn },
    /// The spool's disk.
    #[error("the spool failed: {why}")]
    Spool { why: String },
    /// The spool holds WAL of several clusters.
    #[error("{folder} holds WAL of several clusters for this slot")]
    SpoolOfSeveral { folder: String },
    /// Told to stop twice.
    #[error("stopped at once, before everything was stored")]
    Impatient,
    /// Signals can't be listened to.
    #[error("could not listen to signals")]
    Signals(#[source] std::io::Error),
    /// The thread that packs segments is gone.
    #[error("packing a segment stopped unexpectedly")]
    PackerGone,
}

impl Explain for ReceiveError {
    fn class(&self) -> Class {
        match self {
            Self::NoSlot { .. }
            | Self::SlotKind { .. }
            | Self::WrongCluster { .. }
            | Self::Version { .. }
            | Self::SpoolOfSeveral { .. } => Class::Usage,
            Self::SlotLost { .. } | Self::Ahead { .. } | Self::NothingLeft { .. } => Class::OutOfReach,
            Self::SlotInUse { .. }
            | Self::StandbyBehind { .. }
            | Self::Silent { .. }
            | Self::Undrained { .. }
            | Self::Impatient => Class::Unavailable,
            Self::Diverged { .. } | Self::NotWal { .. } | Self::Signals(_) | Self::Spool { .. } | Self::PackerGone => {
                Class::Failed
            }
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoSlot { .. } => "give --create-slot to have it made, or the name of another with --slot".to_owned(),
            Self::SlotInUse { .. } => return None,
            Self::SlotKind { .. } => "name another slot with --slot".to_owned(),
            Self::SlotLost { slot, .. } => format!(
                "SELECT pg_drop_replication_slot('{slot}'), start again with --create-slot, then take a base backup: \
                 `pgp-pitr list` shows whether there is a gap"
            ),
            Self::WrongCluster { .. } => "check host and port; each cluster has a receiver of its own".to_owned(),
            Self::SpoolOfSeveral { .. } => "name the right one with --cluster SYSID".to_owned(),
            Self::Version { .. } => "archive_command = 'pgp-archive %p' archives it all the same".to_owned(),
            Self::Ahead { .. } => {
                "this server was made from an older copy of the cluster: recover it with recovery.signal, which gives \
                 it a timeline of its own, or use another repository"
                    .to_owned()
            }
            Self::Diverged { .. } => {
                "two servers write the same timeline, or one was set back by copying files: find out which is the \
                 right one; one made by a recovery gets a timeline of its own"
                    .to_owned()
            }
            Self::Undrained { .. } | Self::Impatient => {
                "the server keeps it for the slot, and it is received at the next start".to_owned()
            }
            Self::NothingLeft { .. } => "take a base backup, and start again".to_owned(),
            Self::StandbyBehind { .. }
            | Self::Silent { .. }
            | Self::NotWal { .. }
            | Self::Signals(_)
            | Self::Spool { .. }
            | Self::PackerGone => return None,
        };
        Some(text)
    }
}
