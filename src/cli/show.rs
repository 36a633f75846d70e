//! `pgp-pitr show`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::ShowArgs;
use super::pitr::{PROGRAM, Session};
use super::progress::size;
use super::run::{block_on, open_store};
use super::{report, shape};
use crate::error::Failure;
use crate::ops::inventory::{CapturedSettings, SettingKind};
use crate::ops::show::{ShowError, Shown, show};
use crate::pg::time::rfc3339;
use crate::repo::Repository;
use crate::repo::backup::{BackupId, BackupKind, BackupRecord, BackupState};

impl Session {
    pub(super) fn show(&self, args: &ShowArgs) -> Result<(), Failure> {
        let id: BackupId = args.backup.parse().map_err(ShowError::Id)?;
        let store = open_store(PROGRAM, &self.settings, &self.env)?;
        let shown = block_on(async { show(&Repository::open(&store).await?, &id).await })?;
        let Shown { record, settings } = shown;
        let settings = match (settings, &args.settings_to) {
            // Somebody wants these files: that they are damaged is the answer.
            (Some(Err(damaged)), Some(_)) => return Err(damaged),
            (Some(Err(damaged)), None) => {
                report::warning(PROGRAM, &damaged.one_line());
                None
            }
            (settings, _) => settings.and_then(Result::ok),
        };
        let written = match (&args.settings_to, &settings) {
            (Some(folder), Some(settings)) => settings.write_below(folder, &self.env)?,
            (Some(_), None) => {
                report::warning(PROGRAM, "no configuration files were captured with this backup");
                Vec::new()
            }
            (None, _) => Vec::new(),
        };
        let text = match args.json {
            true => format!("{}\n", json(&record, settings.as_ref(), &written)),
            false => describe(&record, settings.as_ref(), &written),
        };
        Ok(report::answer(&text)?)
    }
}

/// The entry of `list`, and all that is known besides.
fn json(record: &BackupRecord, settings: Option<&CapturedSettings>, written: &[PathBuf]) -> Value {
    let mut entry = shape::backup_entry(record);
    let files = settings.iter().flat_map(|settings| &settings.files);
    let unreadable = settings.iter().flat_map(|settings| &settings.unreadable);
    let more = json!({
        "system_identifier": record.system_identifier,
        "pg_version": record.pg_version,
        "server_version": record.server_version,
        "from_standby": record.from_standby,
        "entries": record.entries,
        "tablespaces": record.tablespaces,
        "warnings": record.warnings,
        "parts": record.parts.iter().map(|part| json!({
            "name": part.name, "size_bytes": part.size, "digest": part.digest,
        })).collect::<Vec<_>>(),
        "settings_files": files.map(|file| json!({
            "path": file.path, "setting": file.setting, "size_bytes": file.content.bytes().len(),
        })).collect::<Vec<_>>(),
        "settings_unreadable": unreadable.collect::<Vec<_>>(),
        "settings_written": written.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
    });
    if let (Value::Object(entry), Value::Object(more)) = (&mut entry, more) {
        entry.extend(more);
    }
    entry
}

fn describe(record: &BackupRecord, settings: Option<&CapturedSettings>, written: &[PathBuf]) -> String {
    let mut lines = facts(record);
    for space in &record.tablespaces {
        let what = format!("{}, {}", space.location, size(space.size_bytes));
        lines.push((format!("tablespace {}", space.oid), what));
    }
    for part in &record.parts {
        lines.push(("object".to_owned(), format!("{}, {}", part.name, size(part.size))));
    }
    for file in settings.iter().flat_map(|settings| &settings.files) {
        let bytes = size(file.content.bytes().len() as u64);
        let what = match file.setting {
            SettingKind::ConfigFile => " (config_file)",
            SettingKind::HbaFile => " (hba_file)",
            SettingKind::IdentFile => " (ident_file)",
            SettingKind::Include => "",
        };
        lines.push(("settings file".to_owned(), format!("{}{what}, {bytes}", file.path)));
    }
    for file in settings.iter().flat_map(|settings| &settings.unreadable) {
        lines.push(("not captured".to_owned(), format!("{}: {}", file.path, file.why)));
    }
    for path in written {
        lines.push(("written to".to_owned(), path.display().to_string()));
    }
    for warning in &record.warnings {
        lines.push(("warning".to_owned(), warning.clone()));
    }
    let title = match &record.label {
        Some(label) => format!("backup {} \"{label}\"\n", record.id),
        None => format!("backup {}\n", record.id),
    };
    let lines = lines.iter().map(|(name, what)| format!("  {name:<18} {what}\n"));
    title + &lines.collect::<String>()
}

/// What every backup has.
fn facts(record: &BackupRecord) -> Vec<(String, String)> {
    let state = match record.state {
        BackupState::Complete => "complete",
        BackupState::Damaged => "damaged: the server reported pages that fail their checksums",
    };
    let kind = match record.kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incremental",
    };
    let source = if record.from_standby { "standby" } else { "primary" };
    let seconds = (record.stopped_at - record.started_at).num_milliseconds() as f64 / 1000.0;
    let stored = match record.stored_bytes {
        0 => size(0),
        stored => format!("{} ({:.1} : 1)", size(stored), record.size_bytes as f64 / stored as f64),
    };
    let facts = [
        ("cluster", record.system_identifier.to_string()),
        ("server", format!("PostgreSQL {}, {source}", record.server_version)),
        ("state", format!("{kind}, {state}")),
        ("begun", rfc3339(record.started_at)),
        ("ended", format!("{}, {seconds:.1} s later", rfc3339(record.stopped_at))),
        (
            "WAL",
            format!(
                "{} to {} on timeline {}",
                record.start_lsn, record.stop_lsn, record.timeline
            ),
        ),
        (
            "size",
            format!("{} in {} entries", size(record.size_bytes), record.entries),
        ),
        ("stored", stored),
    ];
    facts.into_iter().map(|(name, what)| (name.to_owned(), what)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::shape::tests::record;
    use super::*;
    use crate::ops::inventory::{CapturedFile, FileContent, UnreadableFile};

    fn settings() -> CapturedSettings {
        CapturedSettings::new(
            vec![CapturedFile {
                path: "/etc/pg/pg_hba.conf".to_owned(),
                setting: SettingKind::HbaFile,
                content: FileContent::new(b"local all all trust\n".to_vec()),
            }],
            vec![UnreadableFile {
                path: "/etc/pg/secret.conf".to_owned(),
                why: "permission denied".to_owned(),
            }],
        )
    }

    #[test]
    fn people_are_told_all_that_is_known() {
        let mut record = record();
        record.warnings = vec!["page verification failed".to_owned()];
        let text = describe(&record, Some(&settings()), &[PathBuf::from("out/etc/pg/pg_hba.conf")]);
        assert_eq!(
            text,
            "backup 20261121T100000Z-1f2e3d4c \"before \"the\" upgrade\"
  cluster            7489000000000000123
  server             PostgreSQL 15.20 (Debian 15.20-0+deb12u1), primary
  state              full, complete
  begun              2026-11-21T10:00:00.000000Z
  ended              2026-11-21T10:01:00.123456Z, 60.1 s later
  WAL                0/2000028 to 0/2000100 on timeline 1
  size               4.00 MiB in 12 entries
  stored             1.00 MiB (4.0 : 1)
  tablespace 16400   /srv/fast disk, 8.00 KiB
  settings file      /etc/pg/pg_hba.conf (hba_file), 20 B
  not captured       /etc/pg/secret.conf: permission denied
  written to         out/etc/pg/pg_hba.conf
  warning            page verification failed
"
        );
    }

    #[test]
    fn scripts_find_the_entry_of_list_and_more() {
        let told = json(&record(), Some(&settings()), &[]);
        let entry = shape::backup_entry(&record());
        for (name, value) in entry.as_object().unwrap() {
            assert_eq!(told[name], *value, "{name}");
        }
        assert_eq!(
            told["tablespaces"][0],
            json!({"oid": 16_400, "location": "/srv/fast disk", "size_bytes": 8192})
        );
        assert_eq!(
            told["settings_files"],
            json!([{"path": "/etc/pg/pg_hba.conf", "setting": "hba_file", "size_bytes": 20}])
        );
        assert!(!told.to_string().contains("trust"), "contents are not shown");
    }
}
