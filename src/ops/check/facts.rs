//! What the server tells of itself. Asked with the privileges of any role; what a role may not see is
//! absent, and the judges say so.

use std::collections::BTreeMap;

use super::CheckError;
use super::sql::{Row, Sql};
use crate::error::Failure;
use crate::pg::{MajorVersion, SegmentSize, SystemId, Timeline};
use crate::repo::ClusterInfo;

/// More slots than this are not looked at one by one.
const SLOTS: usize = 100;

/// A server.
#[derive(Debug, Clone)]
pub(super) struct ServerFacts {
    pub(super) major: MajorVersion,
    /// The server's own words for its version.
    pub(super) version: String,
    pub(super) system: SystemId,
    pub(super) segment_size: SegmentSize,
    pub(super) wal_page_size: u32,
    pub(super) in_recovery: bool,
    /// The one that it writes, or on a standby the newest that it has got WAL of.
    pub(super) timeline: Timeline,
    pub(super) database: String,
    pub(super) role: String,
    /// The role has `REPLICATION` or is a superuser.
    pub(super) may_replicate: bool,
    pub(super) may_switch_wal: bool,
    /// The role may read files of the server outside its data directory, as `backup` does.
    pub(super) may_read_files: bool,
    /// How many walsenders are in use.
    pub(super) walsenders: u64,
    /// How many of them stream to a receiver of ours.
    pub(super) receivers: u64,
    /// The slots that hold most WAL, at most [`SLOTS`].
    pub(super) slots: Vec<SlotFacts>,
    /// Who receives WAL from this server.
    pub(super) senders: Vec<SenderFacts>,
    /// How fast WAL is written, in bytes per second, where it was measured.
    pub(super) wal_rate: Option<u64>,
    /// By name, in the setting's own unit; without those that the role may not see.
    pub(super) settings: BTreeMap<String, String>,
}

/// A replication slot.
#[derive(Debug, Clone, Default)]
pub(super) struct SlotFacts {
    pub(super) name: String,
    /// `physical` or `logical`.
    pub(super) kind: String,
    pub(super) active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`; none where it holds no WAL.
    pub(super) wal_status: Option<String>,
    /// How many bytes of WAL lie behind it.
    pub(super) retained: Option<u64>,
    /// How many more may be written before it is given up, where that is limited.
    pub(super) left: Option<u64>,
    /// The `application_name` of its reader, where the role may see it.
    pub(super) reader: Option<String>,
}

/// A walsender that streams.
#[derive(Debug, Clone, Default)]
pub(super) struct SenderFacts {
    /// The `application_name` of who receives.
    pub(super) name: String,
    /// `sync`, `quorum`, `potential` or `async`, where the role may see it.
    pub(super) sync_state: Option<String>,
}

impl ServerFacts {
    /// A setting's value; empty where the role may not see it, or the version has no such setting.
    pub(super) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether WAL is archived, or would be after a promotion.
    pub(super) fn archives(&self) -> bool {
        matches!(self.setting("archive_mode"), "on" | "always")
    }

    /// Whether the archiver runs now.
    pub(super) fn archives_now(&self) -> bool {
        self.setting("archive_mode") == "always" || (self.setting("archive_mode") == "on" && !self.in_recovery)
    }

    /// What the repository is told of the cluster.
    pub(super) fn cluster(&self) -> ClusterInfo {
        ClusterInfo {
            system: self.system,
            major: self.major,
            segment_size: self.segment_size,
            wal_page_size: self.wal_page_size,
        }
    }
}

/// Asks the server.
pub(super) async fn gather(sql: &Sql, major: MajorVersion) -> Result<ServerFacts, Failure> {
    let row = sql
        .row(
            "select current_setting('server_version') as version,
                    (select system_identifier from pg_control_system()) as system,
                    pg_is_in_recovery() as in_recovery,
                    case when pg_is_in_recovery()
                         then lpad(to_hex(greatest((select timeline_id from pg_control_checkpoint()),
                                                   (select min_recovery_end_timeline from pg_control_recovery()),
                                                   (select received_tli from pg_stat_wal_receiver))), 8, '0')
                         else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end as timeline,
                    current_database() as database,
                    current_user as role,
                    (select rolreplication or rolsuper from pg_roles where rolname = current_user) as replicate,
                    has_function_privilege('pg_switch_wal()', 'execute') as switch_wal,
                    has_function_privilege('pg_read_binary_file(text, bigint, bigint, boolean)', 'execute')
                      and has_function_privilege('pg_ls_dir(text, boolean, boolean)', 'execute')
                      and pg_has_role('pg_read_server_files', 'member') as read_files,
                    count(*) as walsenders,
                    count(*) filter (where application_name = 'pgp-pitr'
                                       and coalesce(state in ('catchup', 'streaming'), true)) as receivers
               from pg_stat_replication",
        )
        .await?;
    let settings = settings(sql).await?;
    let number = |name: &'static str| {
        let value = settings.get(name).and_then(|value| value.parse::<u64>().ok());
        value.ok_or(CheckError::Answer(name))
    };
    let segment_size = SegmentSize::new(number("wal_segment_size")?);
    Ok(ServerFacts {
        major,
        version: row.need("version")?,
        system: row.need("system")?,
        segment_size: segment_size.map_err(|_| CheckError::Answer("wal_segment_size"))?,
        wal_page_size: u32::try_from(number("wal_block_size")?).map_err(|_| CheckError::Answer("wal_block_size"))?,
        in_recovery: row.is("in_recovery"),
        timeline: row
            .text("timeline")
            .and_then(Timeline::from_hex)
            .ok_or(CheckError::Answer("timeline"))?,
        database: row.need("database")?,
        role: row.need("role")?,
        may_replicate: row.is("replicate"),
        may_switch_wal: row.is("switch_wal"),
        may_read_files: row.is("read_files"),
        walsenders: row.need("walsenders")?,
        receivers: row.need("receivers")?,
        slots: slots(sql).await?,
        senders: senders(sql).await?,
        wal_rate: None,
        settings,
    })
}

async fn settings(sql: &Sql) -> Result<BTreeMap<String, String>, Failure> {
    let rows = sql
        .rows(
            "select name, setting from pg_settings where name in (
                'archive_command', 'archive_library', 'archive_mode', 'archive_timeout', 'config_file',
                'data_checksums', 'data_directory', 'fsync', 'full_page_writes', 'hba_file', 'hot_standby',
                'ident_file', 'max_slot_wal_keep_size', 'max_wal_senders', 'synchronous_standby_names',
                'wal_block_size', 'wal_level', 'wal_segment_size')",
        )
        .await?;
    let pair = |row: &Row| Some((row.get("name")?, row.text("setting")?.to_owned()));
    Ok(rows.iter().filter_map(pair).collect())
}

async fn slots(sql: &Sql) -> Result<Vec<SlotFacts>, Failure> {
    let rows = sql
        .rows(&format!(
            "select slot_name, slot_type, active, wal_status, safe_wal_size,
                    (select application_name from pg_stat_replication where pid = active_pid) as reader,
                    pg_wal_lsn_diff(
                      case when pg_is_in_recovery()
                           then coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                           else pg_current_wal_lsn() end, restart_lsn) as retained
               from pg_replication_slots where not temporary
              order by retained desc nulls last, slot_name limit {SLOTS}"
        ))
        .await?;
    // A slot ahead of what a standby has replayed holds nothing.
    let amount = |row: &Row, column| row.get(column).map(|bytes: i64| u64::try_from(bytes).unwrap_or(0));
    let slot = |row: &Row| SlotFacts {
        name: row.text("slot_name").unwrap_or_default().to_owned(),
        kind: row.text("slot_type").unwrap_or_default().to_owned(),
        active: row.is("active"),
        wal_status: row.get("wal_status"),
        retained: amount(row, "retained"),
        left: amount(row, "safe_wal_size"),
        reader: row.get("reader"),
    };
    Ok(rows.iter().map(slot).collect())
}

async fn senders(sql: &Sql) -> Result<Vec<SenderFacts>, Failure> {
    // What a role may not see is null.
    let rows = sql
        .rows(
            "select application_name, sync_state from pg_stat_replication
              where coalesce(state = 'streaming', true)",
        )
        .await?;
    let sender = |row: &Row| SenderFacts {
        name: row.text("application_name").unwrap_or_default().to_owned(),
        sync_state: row.get("sync_state"),
    };
    Ok(rows.iter().map(sender).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A primary with nothing wrong.
    pub(in super::super) fn server() -> ServerFacts {
        let settings = [
            ("archive_command", "pgp-archive %p --repo /backups"),
            ("archive_mode", "on"),
            ("archive_timeout", "60"),
            ("config_file", "/data/postgresql.conf"),
            ("data_checksums", "on"),
            ("data_directory", "/data"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("hba_file", "/data/pg_hba.conf"),
            ("hot_standby", "on"),
            ("ident_file", "/data/pg_ident.conf"),
            ("max_slot_wal_keep_size", "-1"),
            ("max_wal_senders", "10"),
            ("synchronous_standby_names", ""),
            ("wal_level", "replica"),
        ];
        ServerFacts {
            major: MajorVersion::from_server_version_num(150_020).unwrap(),
            version: "15.20".to_owned(),
            system: SystemId::new(7),
            segment_size: SegmentSize::DEFAULT,
            wal_page_size: 8192,
            in_recovery: false,
            timeline: Timeline::FIRST,
            database: "postgres".to_owned(),
            role: "backup".to_owned(),
            may_replicate: true,
            may_switch_wal: true,
            may_read_files: true,
            walsenders: 0,
            receivers: 0,
            slots: Vec::new(),
            senders: Vec::new(),
            wal_rate: None,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }
}
