//! The JSON that several commands answer with, in one place so that it is the same everywhere.

use serde_json::{Value, json};

use crate::pg::time::rfc3339;
use crate::repo::backup::{BackupId, BackupRecord};

/// A base backup as `list`, `backup` and `show` tell it: sizes in bytes, times RFC 3339 in UTC with
/// microseconds, LSNs in hexadecimal. Fields are added, never renamed.
pub(super) fn backup_entry(record: &BackupRecord) -> Value {
    json!({
        "id": record.id,
        "label": record.label,
        "kind": record.kind,
        "state": record.state,
        "timeline": record.timeline,
        "start_lsn": record.start_lsn,
        "stop_lsn": record.stop_lsn,
        "started_at": rfc3339(record.started_at),
        "stopped_at": rfc3339(record.stopped_at),
        "size_bytes": record.size_bytes,
        "stored_bytes": record.stored_bytes,
        // Format 1 knows neither: nothing keeps a backup from expiring, and each is whole by itself.
        "pinned": false,
        "parent": null,
    })
}

/// A base backup whose record can't be read: nothing but its id is known.
pub(super) fn damaged_entry(id: &BackupId) -> Value {
    let mut entry = json!({"id": id, "kind": "full", "state": "damaged", "pinned": false});
    for unknown in [
        "label",
        "timeline",
        "start_lsn",
        "stop_lsn",
        "started_at",
        "stopped_at",
        "size_bytes",
        "stored_bytes",
        "parent",
    ] {
        entry[unknown] = Value::Null;
    }
    entry
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pg::{Lsn, SystemId, Timeline};
    use crate::repo::backup::{BackupId, BackupKind, BackupState, TablespaceRecord};
    use chrono::DateTime;

    pub(in crate::cli) fn record() -> BackupRecord {
        let at = |micros| DateTime::from_timestamp_micros(micros).unwrap();
        BackupRecord {
            id: BackupId::new(at(1_795_255_200_000_000), 0x1f2e_3d4c),
            system_identifier: SystemId::new(7_489_000_000_000_000_123),
            label: Some("before \"the\" upgrade".to_owned()),
            kind: BackupKind::Full,
            state: BackupState::Complete,
            pg_version: "15".to_owned(),
            server_version: "15.20 (Debian 15.20-0+deb12u1)".to_owned(),
            timeline: Timeline::FIRST,
            start_lsn: Lsn::new(0x200_0028),
            stop_lsn: Lsn::new(0x200_0100),
            started_at: at(1_795_255_200_000_000),
            stopped_at: at(1_795_255_260_123_456),
            size_bytes: 4 << 20,
            stored_bytes: 1 << 20,
            entries: 12,
            tablespaces: vec![TablespaceRecord {
                oid: 16_400,
                location: "/srv/fast disk".to_owned(),
                size_bytes: 8192,
            }],
            from_standby: false,
            warnings: Vec::new(),
            parts: Vec::new(),
        }
    }

    #[test]
    fn a_backup_is_told_as_the_contract_says() {
        assert_eq!(
            backup_entry(&record()),
            json!({
                "id": "20261121T100000Z-1f2e3d4c", "label": "before \"the\" upgrade", "kind": "full", "state": "complete",
                "timeline": 1, "start_lsn": "0/2000028", "stop_lsn": "0/2000100",
                "started_at": "2026-11-21T10:00:00.000000Z", "stopped_at": "2026-11-21T10:01:00.123456Z",
                "size_bytes": 4_194_304, "stored_bytes": 1_048_576, "pinned": false, "parent": null,
            })
        );
    }
}
