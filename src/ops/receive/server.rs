//! The server that WAL comes from: who it is, what it has, and the slot that keeps it for us.

use crate::env::Env;
use crate::error::Failure;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, SystemId, Timeline, TimelineHistory};
use crate::replication::{
    ConnectError, ReplicationError, ReplicationSession, Severity, SlotName, SqlSession, SqlState,
};
use crate::repo::ClusterInfo;
use crate::wal::WalLayout;

use super::ReceiveError;
use super::begin::Offer;

/// A server, connected to.
pub(super) struct Server {
    /// Its name in messages.
    pub(super) name: String,
    /// Its cluster.
    pub(super) cluster: ClusterInfo,
    /// The timeline it is on.
    pub(super) timeline: Timeline,
    /// What it has.
    pub(super) offer: Offer,
    /// Whether it is a standby.
    pub(super) in_recovery: bool,
}

/// What is known of the slot beside its position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SlotFacts {
    /// `wal_status` of `pg_replication_slots`.
    pub(super) wal_status: Option<String>,
    /// `safe_wal_size`: how many bytes more may be written until it is lost.
    pub(super) bytes_left: Option<u64>,
    physical: bool,
    restart: Option<Lsn>,
}

/// What to connect to.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) slot: SlotName,
    pub(super) create_slot: bool,
    pub(super) cluster: Option<SystemId>,
}

impl Server {
    /// Connects, looks at the server, and sees to it that the slot is there.
    ///
    /// # Errors
    /// A server out of reach, of another cluster or version; a slot that is missing, lost, or none for us.
    pub(super) async fn connect(
        info: &ConnInfo,
        env: &Env,
        wanted: &Wanted,
    ) -> Result<(Self, ReplicationSession), Failure> {
        let mut session = ReplicationSession::connect(info, env).await?;
        let name = session.address().to_string();
        let identity = session.identify_system().await?;
        if let Some(expected) = wanted.cluster.filter(|expected| *expected != identity.system_id) {
            return Err(ReceiveError::WrongCluster {
                server: name,
                found: identity.system_id,
                expected,
            }
            .into());
        }
        let page_size = session.show("wal_block_size").await?;
        let cluster = ClusterInfo {
            system: identity.system_id,
            major: session.server_version().major(),
            segment_size: session.wal_segment_size().await?,
            wal_page_size: page_size.parse().unwrap_or(crate::pg::PAGE_SIZE),
        };
        if WalLayout::new(cluster.major, cluster.segment_size, cluster.wal_page_size).is_err() {
            let version = cluster.major;
            return Err(ReceiveError::Version { server: name, version }.into());
        }
        let in_recovery = session.is_in_recovery().await?;
        let kept_from = slot(&mut session, info, env, wanted, &name).await?;
        let mut server = Self {
            name,
            cluster,
            timeline: identity.timeline,
            offer: Offer {
                path: Vec::new(),
                kept_from,
                end: identity.flush_lsn,
            },
            in_recovery,
        };
        server.look_again(&mut session).await?;
        Ok((server, session))
    }

    /// Asks which timeline the server is on, how it came to it, and up to where it has WAL.
    ///
    /// # Errors
    /// The server.
    pub(super) async fn look_again(&mut self, session: &mut ReplicationSession) -> Result<(), Failure> {
        let identity = session.identify_system().await?;
        // The first has none, and asking for it leaves an error in the server's log.
        let history = match identity.timeline {
            Timeline::FIRST => None,
            timeline => session.timeline_history(timeline).await?,
        };
        let history = match history {
            Some(text) => TimelineHistory::parse(identity.timeline, &text).map_err(|error| ReceiveError::NotWal {
                server: self.name.clone(),
                why: error.to_string(),
            })?,
            None => TimelineHistory::root(identity.timeline),
        };
        self.timeline = identity.timeline;
        self.offer.path = history.path();
        self.offer.end = identity.flush_lsn;
        Ok(())
    }
}

/// Sees to it that the slot is there, and answers from where on it keeps WAL, as far as that can be known.
async fn slot(
    session: &mut ReplicationSession,
    info: &ConnInfo,
    env: &Env,
    wanted: &Wanted,
    server: &str,
) -> Result<Option<Lsn>, Failure> {
    let slot = || wanted.slot.clone();
    let server = || server.to_owned();
    let mut facts = slot_facts(info, env, &wanted.slot).await;
    if matches!(facts, Known::Nothing | Known::Missing) && wanted.create_slot {
        match session.create_physical_slot(&wanted.slot, false, true).await {
            Ok(()) => {
                tracing::info!(slot = %wanted.slot, "made the replication slot");
                facts = slot_facts(info, env, &wanted.slot).await;
            }
            Err(error)
                if error
                    .server_error()
                    .is_some_and(|error| error.is(SqlState::DUPLICATE_OBJECT)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match facts {
        Known::Missing => Err(ReceiveError::NoSlot {
            server: server(),
            slot: slot(),
        }
        .into()),
        Known::Slot(facts) if !facts.physical => Err(ReceiveError::SlotKind {
            server: server(),
            slot: slot(),
        }
        .into()),
        Known::Slot(facts) if facts.wal_status.as_deref() == Some("lost") => Err(ReceiveError::SlotLost {
            server: server(),
            slot: slot(),
        }
        .into()),
        Known::Slot(facts) => Ok(facts.restart),
        // Only replication is allowed to us: the walsender tells less, and before 15 nothing.
        Known::Nothing => read_over_replication(session, wanted, &server()).await,
    }
}

async fn read_over_replication(
    session: &mut ReplicationSession,
    wanted: &Wanted,
    server: &str,
) -> Result<Option<Lsn>, Failure> {
    if session.server_version().major().number() < 15 {
        return Ok(None);
    }
    let (server, slot) = (server.to_owned(), wanted.slot.clone());
    match session.read_slot(&wanted.slot).await {
        Ok(Some(position)) => Ok(position.restart_lsn),
        Ok(None) => Err(ReceiveError::NoSlot { server, slot }.into()),
        // Of a server that shuts down the answer is fatal, and says nothing about the slot.
        Err(error)
            if error
                .server_error()
                .is_some_and(|said| said.severity() < Severity::Fatal) =>
        {
            Err(ReceiveError::SlotKind { server, slot }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// What SQL tells of a slot.
pub(super) enum Known {
    /// Nothing: we may not connect to a database.
    Nothing,
    /// There is no such slot.
    Missing,
    /// This.
    Slot(SlotFacts),
}

/// Asks `pg_replication_slots`.
pub(super) async fn slot_facts(info: &ConnInfo, env: &Env, slot: &SlotName) -> Known {
    let Ok(sql) = SqlSession::connect_any(info, env).await else {
        return Known::Nothing;
    };
    let query = "select slot_type = 'physical', restart_lsn::text, wal_status, safe_wal_size \
                 from pg_catalog.pg_replication_slots where slot_name = $1::text::name";
    match sql.query_opt(query, &[&slot.as_str()]).await {
        Ok(Some(row)) => Known::Slot(SlotFacts {
            physical: row.get(0),
            restart: row.get::<_, Option<&str>>(1).and_then(|lsn| lsn.parse().ok()),
            wal_status: row.get(2),
            bytes_left: row.get::<_, Option<i64>>(3).and_then(|bytes| u64::try_from(bytes).ok()),
        }),
        Ok(None) => Known::Missing,
        Err(_) => Known::Nothing,
    }
}

/// A refusal of `START_REPLICATION`, as what it means here.
pub(super) fn refused(error: ReplicationError, server: &str, slot: &SlotName) -> Failure {
    let (server, slot) = (server.to_owned(), slot.clone());
    match error.server_error() {
        Some(said) if said.is(SqlState::OBJECT_IN_USE) => ReceiveError::SlotInUse { server, slot }.into(),
        Some(said) if said.is(SqlState::UNDEFINED_OBJECT) => ReceiveError::NoSlot { server, slot }.into(),
        Some(said) if said.is(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => match said.message().contains("logical") {
            true => ReceiveError::SlotKind { server, slot }.into(),
            false => ReceiveError::SlotLost { server, slot }.into(),
        },
        _ => error.into(),
    }
}

/// Whether the server says that it has removed the WAL that was asked for.
pub(super) fn is_removed(failure: &Failure) -> bool {
    let said = failure
        .downcast_ref::<ReplicationError>()
        .and_then(ReplicationError::server_error);
    said.is_some_and(|said| said.is(SqlState::UNDEFINED_FILE))
}

/// Whether the server does not let us in. A password that is wrong now is wrong in a second; it may be put right while
/// a receiver runs.
pub(super) fn is_refusal(failure: &Failure) -> bool {
    matches!(
        failure.downcast_ref::<ConnectError>(),
        Some(
            ConnectError::Password { .. }
                | ConnectError::NoHbaEntry { .. }
                | ConnectError::User { .. }
                | ConnectError::Privilege { .. }
        )
    )
}
