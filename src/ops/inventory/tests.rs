//! The texts of `manifest.json`, whole.

use chrono::DateTime;
use serde_json::json;

use super::manifest::{Database, Manifest, Relation};
use super::*;
use crate::pg::conninfo::{Overrides, Surroundings};

fn conninfo() -> ConnInfo {
    let around = Surroundings {
        var: &|_| None,
        read_file: &|_| Err(std::io::ErrorKind::NotFound.into()),
        exists: &|_| false,
        os_user: None,
        home: None,
    };
    let text = "host=db1 port=5433 user=backup password=hunter2";
    ConnInfo::resolve(Some(text), &Overrides::default(), &around).unwrap()
}

fn facts() -> BackupFacts {
    let at = |micros| DateTime::from_timestamp_micros(micros).unwrap();
    BackupFacts {
        id: "20261121T100000Z-1f2e3d4c".parse().unwrap(),
        system: SystemId::new(7_489_000_000_000_000_123),
        server_version: ServerVersion::parse("15.20 (Debian 15.20-0+deb12u1)").unwrap(),
        from_standby: false,
        timeline: Timeline::FIRST,
        start_lsn: "0/2000028".parse().unwrap(),
        stop_lsn: "0/3000000".parse().unwrap(),
        started_at: at(1_795_255_200_000_000),
        stopped_at: at(1_795_255_260_123_456),
        segment_size: SegmentSize::DEFAULT,
        tablespaces: vec![TablespaceRecord {
            oid: 16_400,
            location: "/srv/fast disk".to_owned(),
            size_bytes: 8192,
        }],
        backup_manifest_sha256: Some([0xAB; 32]),
    }
}

#[test]
fn without_a_server_the_facts_of_the_backup_are_told() {
    let now = DateTime::from_timestamp_nanos(1_795_255_261_000_000_789);
    let text = Manifest::of_facts(&facts(), &conninfo(), now).to_json().unwrap();
    assert_eq!(
        std::str::from_utf8(&text).unwrap(),
        concat!(
            r#"{"version":2,"created_at":"2026-11-21T10:01:01.000000789Z","connector":"postgresql+bin","host":"db1","#,
            r#""port":"5433","server_version":"15.20 (Debian 15.20-0+deb12u1)","server_version_num":150020,"#,
            r#""cluster_system_identifier":"7489000000000000123","in_recovery":false,"dump_format":"basebackup","#,
            r#""pgp":{"format":1,"backup_id":"20261121T100000Z-1f2e3d4c","timeline":1,"start_lsn":"0/2000028","#,
            r#""stop_lsn":"0/3000000","start_time":"2026-11-21T10:00:00.000000Z","#,
            r#""stop_time":"2026-11-21T10:01:00.123456Z","wal_segment_size":16777216,"#,
            r#""wal_first":"000000010000000000000002","wal_last":"000000010000000000000002","#,
            r#""tablespaces":[{"oid":16400,"location":"/srv/fast disk","path":"pg_tblspc/16400"}],"#,
            r#""backup_manifest_sha256":"abababababababababababababababababababababababababababababababab","#,
            r#""archive":"clusters/7489000000000000123/wal"}}"#,
            "\n"
        )
    );
}

#[test]
fn what_the_server_leaves_null_is_left_out_and_the_rest_keeps_its_shape() {
    let database = json!({
        "name": "shop", "owner": "alice", "encoding": "UTF8", "collate": "C", "ctype": "C", "allow_conn": true,
        "is_template": false, "default_tablespace": null, "connection_limit": -1,
    });
    let relation = json!({
        "schema": "public", "name": "orders", "owner": "alice", "persistence": "p", "kind": "r", "tablespace": null,
        "row_estimate": -1, "live_row_estimate": 0, "column_count": 1, "has_primary_key": true,
        "has_triggers": false, "rls_enabled": false, "rls_forced": false, "is_partition": false,
        "partition_parent": null, "partition_strategy": null, "storage_options": null,
        "last_vacuum": null, "last_analyze": "2026-11-21T10:01:00.123456Z",
        "columns": [{"position": 1, "name": "id", "type": "integer", "nullable": false, "default": null}],
        "constraints": [{"name": "orders_pkey", "type": "p", "columns": ["id"]}],
        "indexes": [{"name": "orders_pkey", "method": "btree", "definition": "CREATE UNIQUE INDEX …",
                     "is_unique": true, "is_primary": true, "is_valid": true, "is_partial": false,
                     "constraint_name": "orders_pkey"}],
    });
    let mut database: Database = serde_json::from_value(database).unwrap();
    database
        .relations
        .push(serde_json::from_value::<Relation>(relation).unwrap());
    assert_eq!(
        serde_json::to_string(&database).unwrap(),
        concat!(
            r#"{"name":"shop","owner":"alice","encoding":"UTF8","collate":"C","ctype":"C","allow_conn":true,"#,
            r#""is_template":false,"connection_limit":-1,"relations":[{"schema":"public","name":"orders","#,
            r#""owner":"alice","persistence":"p","kind":"r","row_estimate":-1,"live_row_estimate":0,"#,
            r#""column_count":1,"has_primary_key":true,"has_triggers":false,"rls_enabled":false,"#,
            r#""rls_forced":false,"is_partition":false,"last_vacuum":null,"#,
            r#""last_analyze":"2026-11-21T10:01:00.123456Z","#,
            r#""columns":[{"position":1,"name":"id","type":"integer","nullable":false}],"#,
            r#""constraints":[{"name":"orders_pkey","type":"p","columns":["id"]}],"#,
            r#""indexes":[{"name":"orders_pkey","method":"btree","definition":"CREATE UNIQUE INDEX …","#,
            r#""is_unique":true,"is_primary":true,"is_valid":true,"is_partial":false,"#,
            r#""constraint_name":"orders_pkey"}]}]}"#,
        )
    );
}
