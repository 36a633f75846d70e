//! A session that speaks the replication protocol's commands.
//!
//! One command at a time. A future of this module may be dropped at any moment; the session then knows
//! that it stands in the middle of an answer and refuses further commands. Dropping it closes the
//! socket, and with it temporary slots and a running base backup end on the server.

use std::fmt;

use bytes::Bytes;

use super::connect::{self, Purpose};
use super::error::{ConnectError, ReplicationError};
use super::message::Row;
use super::server_error::Severity;
use super::socket::ServerAddress;
use super::wire::{Wire, WireError};
use super::{ServerError, SqlState};
use crate::env::{Clock, Env};
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, MajorVersion, SegmentSize, SystemId, Timeline, VersionError};

/// What a server says of its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerVersion {
    major: MajorVersion,
    number: u32,
    text: String,
}

impl ServerVersion {
    /// Reads the text that servers report: `15.18 (Debian …)`, `18beta1`.
    pub(crate) fn parse(text: &str) -> Result<Self, VersionError> {
        let number = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..end].parse::<u16>().ok()
        };
        let major = number(text).ok_or_else(|| VersionError::NotAVersion(text.to_owned()))?;
        let minor = text.split_once('.').and_then(|(_, rest)| number(rest)).unwrap_or(0);
        Ok(Self {
            major: MajorVersion::new(major)?,
            number: u32::from(major) * 10_000 + u32::from(minor),
            text: text.to_owned(),
        })
    }

    /// The major version.
    pub fn major(&self) -> MajorVersion {
        self.major
    }

    /// As a number, for example 150018 (`server_version_num`).
    pub fn number(&self) -> u32 {
        self.number
    }

    /// As the server writes it, often with the packager's name.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Which cluster it is.
    pub system_id: SystemId,
    /// The timeline it is on.
    pub timeline: Timeline,
    /// How far its WAL is flushed (on a standby, replayed or received).
    pub flush_lsn: Lsn,
    /// The database of this session; none for physical replication.
    pub dbname: Option<String>,
}

/// The name of a replication slot: 1 to 63 lower-case letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(String);

impl SlotName {
    /// The slot of this name.
    ///
    /// # Errors
    /// Where no slot can have that name.
    pub fn new(name: &str) -> Result<Self, ReplicationError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        match (1..=63).contains(&name.len()) && name.bytes().all(plain) {
            true => Ok(Self(name.to_owned())),
            false => Err(ReplicationError::SlotName(name.to_owned())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a physical slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPosition {
    /// The oldest WAL that it keeps; none before it was first used, or if it reserved none.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that position.
    pub restart_timeline: Option<Timeline>,
}

/// A connection to a walsender.
#[derive(Debug)]
pub struct ReplicationSession {
    wire: Wire,
    version: ServerVersion,
    clock: Clock,
    /// The command whose answer has not been read to its end.
    running: Option<String>,
}

impl ReplicationSession {
    /// Connects for physical replication.
    pub async fn connect(info: &ConnInfo, env: &Env) -> Result<Self, ConnectError> {
        let wire = connect::connect(info, env, Purpose::Replication).await?;
        let text = wire.parameter("server_version").unwrap_or_default();
        let version = ServerVersion::parse(text).map_err(|source| ConnectError::Version {
            at: wire.at().clone(),
            source,
        })?;
        Ok(Self {
            wire,
            version,
            clock: env.clock(),
            running: None,
        })
    }

    /// The server's version.
    pub fn server_version(&self) -> &ServerVersion {
        &self.version
    }

    /// Which server of several it is.
    pub fn address(&self) -> &ServerAddress {
        self.wire.at()
    }

    /// Which cluster, timeline and position this is.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let doing = "IDENTIFY_SYSTEM";
        let row = Fields(self.row(doing, doing).await?);
        let identity = || {
            Some(SystemIdentity {
                system_id: row.parsed(0)?,
                timeline: row.parsed(1)?,
                flush_lsn: row.parsed(2)?,
                dbname: row.text(3),
            })
        };
        identity().ok_or_else(|| self.protocol(doing, "an unreadable answer"))
    }

    /// The value of a setting, as text in the server's units.
    pub async fn show(&mut self, setting: &str) -> Result<String, ReplicationError> {
        let doing = format!("SHOW {setting}");
        let row = Fields(self.row(&doing, &format!("SHOW {}", quoted_name(setting))).await?);
        row.text(0).ok_or_else(|| self.protocol(&doing, "no value"))
    }

    /// Whether the server is in recovery: a standby, or one that has not been promoted yet. A server of 13 on which
    /// every transaction is read-only by default (`default_transaction_read_only`) counts as none.
    pub async fn is_in_recovery(&mut self) -> Result<bool, ReplicationError> {
        if self.version.major.number() >= 14 {
            return Ok(self.show("in_hot_standby").await? == "on");
        }
        // 13 does not tell directly; in recovery every transaction is read-only, whatever the default.
        let read_only = self.show("transaction_read_only").await? == "on";
        Ok(read_only && self.show("default_transaction_read_only").await? == "off")
    }

    /// The size of the cluster's WAL segments.
    pub async fn wal_segment_size(&mut self) -> Result<SegmentSize, ReplicationError> {
        let text = self.show("wal_segment_size").await?;
        segment_size(&text).ok_or_else(|| self.protocol("SHOW wal_segment_size", &text))
    }

    /// The bytes of a timeline's history file; `None` if the server has none, as for the first.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<Option<Bytes>, ReplicationError> {
        let doing = format!("TIMELINE_HISTORY {timeline}");
        match self.row(&doing, &doing).await {
            Ok(mut row) if row.len() == 2 => Ok(row.swap_remove(1)),
            Ok(_) => Err(self.protocol(&doing, "an unreadable answer")),
            Err(error)
                if error
                    .server_error()
                    .is_some_and(|error| error.is(SqlState::UNDEFINED_FILE)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a physical slot. A temporary one goes with this session, and already with the next command
    /// that the server refuses: so says PostgreSQL. One that reserves WAL keeps it from now on, the other
    /// from its first use.
    pub async fn create_physical_slot(
        &mut self,
        name: &SlotName,
        temporary: bool,
        reserve_wal: bool,
    ) -> Result<(), ReplicationError> {
        let doing = format!("CREATE_REPLICATION_SLOT {name}");
        let temporary = if temporary { " TEMPORARY" } else { "" };
        let reserve_wal = match (reserve_wal, self.version.major.has_command_options_in_parentheses()) {
            (false, _) => "",
            (true, true) => " (RESERVE_WAL)",
            (true, false) => " RESERVE_WAL",
        };
        let command = format!("CREATE_REPLICATION_SLOT \"{name}\"{temporary} PHYSICAL{reserve_wal}");
        self.row(&doing, &command).await.map(drop)
    }

    /// Drops a slot.
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<(), ReplicationError> {
        let doing = format!("DROP_REPLICATION_SLOT {name}");
        self.query(&doing, &format!("DROP_REPLICATION_SLOT \"{name}\""))
            .await
            .map(drop)
    }

    /// Where a physical slot stands; `None` if there is no such slot. Servers before 15 cannot tell over
    /// this protocol: ask `pg_replication_slots` there.
    pub async fn read_slot(&mut self, name: &SlotName) -> Result<Option<SlotPosition>, ReplicationError> {
        if self.version.major.number() < 15 {
            return Err(ReplicationError::Version {
                at: self.address().clone(),
                doing: "READ_REPLICATION_SLOT",
                version: self.version.major,
            });
        }
        let doing = format!("READ_REPLICATION_SLOT {name}");
        let row = Fields(self.row(&doing, &format!("READ_REPLICATION_SLOT \"{name}\"")).await?);
        Ok(row.text(0).map(|_| SlotPosition {
            restart_lsn: row.parsed(1),
            restart_timeline: row.parsed(2),
        }))
    }

    /// Sends a replication command and reads its answer: rows of texts. `doing` names it in errors.
    pub async fn query(&mut self, doing: &str, command: &str) -> Result<Vec<Row>, ReplicationError> {
        self.begin(doing)?;
        match self.wire.query(command).await {
            Ok(rows) => {
                self.running = None;
                Ok(rows)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The warnings that came since they were last taken; no more than the first thousand of them.
    pub fn take_warnings(&mut self) -> Vec<ServerError> {
        self.wire.take_warnings()
    }

    /// Marks a command as running.
    pub(super) fn begin(&mut self, doing: &str) -> Result<(), ReplicationError> {
        match self.running.replace(doing.to_owned()) {
            None => Ok(()),
            Some(left) => {
                self.running = Some(left.clone());
                Err(ReplicationError::Abandoned {
                    at: self.address().clone(),
                    doing: left,
                })
            }
        }
    }

    /// The answer was read to its end.
    pub(super) fn ended(&mut self) {
        self.running = None;
    }

    /// The messages, for a command with more than rows to its answer.
    pub(super) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// The clock that was given when the connection was made.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Says what failed during the running command.
    pub(super) fn failed(&mut self, error: WireError) -> ReplicationError {
        let doing = self.running.clone().unwrap_or_default();
        let at = self.address().clone();
        match error {
            WireError::Lost(source) => ReplicationError::Lost { at, doing, source },
            WireError::Frame(error) => ReplicationError::Protocol {
                at,
                doing,
                what: error.to_string(),
            },
            WireError::Unexpected(what) => ReplicationError::Protocol {
                at,
                doing,
                what: what.to_owned(),
            },
            WireError::Server(source) => {
                // After an error, the session is ready again; after a fatal one it is gone.
                if source.severity() < Severity::Fatal {
                    self.running = None;
                }
                ReplicationError::Server { at, doing, source }
            }
        }
    }

    pub(super) fn protocol(&self, doing: &str, what: &str) -> ReplicationError {
        ReplicationError::Protocol {
            at: self.address().clone(),
            doing: doing.to_owned(),
            what: what.to_owned(),
        }
    }

    /// The first row of an answer that has at least one.
    async fn row(&mut self, doing: &str, command: &str) -> Result<Row, ReplicationError> {
        let rows = self.query(doing, command).await?;
        let first = rows.into_iter().next();
        first.ok_or_else(|| self.protocol(doing, "an answer without rows"))
    }
}

/// The values of a row, to be read as text.
pub(super) struct Fields(pub(super) Row);

impl Fields {
    pub(super) fn text(&self, column: usize) -> Option<String> {
        let value = self.0.get(column)?.as_ref()?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, column: usize) -> Option<T> {
        self.text(column)?.parse().ok()
    }
}

/// A name in double quotes, as the replication commands read it.
fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Reads what `SHOW wal_segment_size` says: `16MB`, `1GB`.
fn segment_size(text: &str) -> Option<SegmentSize> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    SegmentSize::new(digits.parse::<u64>().ok()?.checked_mul(unit)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_servers_write_them() {
        let number = |text| ServerVersion::parse(text).map(|version| version.number());
        assert_eq!(number("15.18 (Debian 15.18-0+deb12u1)"), Ok(150_018));
        assert_eq!(number("13.23"), Ok(130_023));
        assert_eq!(number("18beta1"), Ok(180_000));
        assert_eq!(number("9.6.24"), Err(VersionError::TooOld("9".to_owned())));
        for text in ["", "devel"] {
            assert_eq!(number(text), Err(VersionError::NotAVersion(text.to_owned())));
        }
    }

    #[test]
    fn segment_sizes_read_as_servers_write_them() {
        let size = |text| segment_size(text).map(|size| size.bytes());
        assert_eq!(size("16MB"), Some(16 << 20));
        assert_eq!(size("1GB"), Some(1 << 30));
        assert_eq!(size("1MB"), Some(1 << 20));
        assert_eq!(size("3MB"), None);
        assert_eq!(size("16"), None);
    }

    #[test]
    fn a_name_that_no_slot_has_is_refused() {
        assert!(SlotName::new("pgp_1").is_ok());
        for name in ["", "A", "a-b", "a b", "ä", &"a".repeat(64)] {
            assert!(SlotName::new(name).is_err(), "{name}");
        }
    }
}
