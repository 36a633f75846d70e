//! `pgp-pitr list`.

use serde_json::{Value, json};

use super::args::ListArgs;
use super::pitr::{PROGRAM, Session};
use super::progress::size;
use super::run::{block_on, open_store};
use super::{report, shape};
use crate::catalog::Entry;
use crate::error::Failure;
use crate::ops::list::{self, Listing};
use crate::pg::time::rfc3339;
use crate::pg::{Lsn, SystemId, Timeline};
use crate::repo::backup::BackupState;
use crate::repo::{Form, Repository};

impl Session {
    pub(super) fn list(&self, args: &ListArgs) -> Result<(), Failure> {
        let only = self.settings.get::<SystemId>("cluster")?;
        let store = open_store(PROGRAM, &self.settings, &self.env)?;
        let listings = block_on(async {
            let repository = Repository::open(&store).await?;
            list::list(&repository, only).await
        })?;
        for warning in listings.iter().flat_map(|listing| &listing.catalog.warnings) {
            report::warning(PROGRAM, warning);
        }
        let url = store.url().to_string();
        let text = match args.json {
            true => {
                let clusters: Vec<Value> = listings.iter().map(json).collect();
                format!("{}\n", json!({"repository": url, "clusters": clusters}))
            }
            false if listings.is_empty() => format!("{url} holds no cluster yet\n"),
            false => listings.iter().map(describe).collect::<Vec<_>>().join("\n"),
        };
        Ok(report::answer(&text)?)
    }
}

fn json(listing: &Listing) -> Value {
    let info = &listing.catalog.info;
    let gap = |(from, to): &(Lsn, Lsn)| json!({"from_lsn": from, "to_lsn": to});
    let whole = listing.catalog.backups.iter().map(shape::backup_entry);
    let damaged = listing.catalog.damaged.iter().map(|(id, _)| shape::damaged_entry(id));
    let backups: Vec<Value> = whole.chain(damaged).collect();
    json!({
        "system_identifier": info.system,
        "name": null,
        "pg_version": info.major.number().to_string(),
        "wal_segment_size": info.segment_size.bytes(),
        "backups": backups,
        "wal": listing.wal.iter().map(|wal| json!({
            "timeline": wal.timeline,
            "start_lsn": wal.start,
            "end_lsn": wal.end,
            "segments": wal.segments,
            "stored_bytes": wal.stored_bytes,
            "last_commit_at": wal.last_commit_at.map(rfc3339),
            "gaps": wal.gaps.iter().map(gap).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "windows": listing.windows.iter().map(|window| json!({
            "timeline": window.timeline,
            "from": rfc3339(window.from),
            "to": rfc3339(window.to),
            "from_lsn": window.from_lsn,
            "to_lsn": window.to_lsn,
            "backup": window.backup,
        })).collect::<Vec<_>>(),
        "gaps_after_newest_backup": after_newest(listing).iter().map(gap).collect::<Vec<_>>(),
        "timelines_without_backup": unserved(listing).iter().map(|(timeline, _)| timeline).collect::<Vec<_>>(),
        "doubtful": listing.catalog.doubts.iter().map(|doubt| json!({
            "file": doubt.file.to_string(),
            "lsn": doubt.at,
            "why": doubt.why,
        })).collect::<Vec<_>>(),
    })
}

/// WAL that is missing after the newest backup, on the newest timeline.
fn after_newest(listing: &Listing) -> Vec<(Lsn, Lsn)> {
    let newest = listing.catalog.timelines().last().copied();
    let gaps = newest.and_then(|timeline| listing.gaps(timeline));
    gaps.map(|gaps| gaps.after).unwrap_or_default()
}

/// Timelines that no recovery can enter though there are backups, and of the newest backup why.
fn unserved(listing: &Listing) -> Vec<(Timeline, String)> {
    let why = |timeline| match listing.catalog.entry(timeline) {
        Entry::Nowhere(newest, why) => Some((timeline, format!("of the newest, {}: {why}", newest.id))),
        Entry::Backup(_) | Entry::NoBackup => None,
    };
    listing.catalog.timelines().into_iter().filter_map(why).collect()
}

fn describe(listing: &Listing) -> String {
    let info = &listing.catalog.info;
    let mut text = format!(
        "cluster {}, PostgreSQL {}, WAL segments of {}\n",
        info.system,
        info.major.number(),
        size(info.segment_size.bytes()),
    );
    for backup in &listing.catalog.backups {
        let label = backup
            .label
            .as_ref()
            .map(|label| format!(" \"{label}\""))
            .unwrap_or_default();
        let state = match backup.state {
            BackupState::Complete => "complete",
            BackupState::Damaged => "damaged",
        };
        text.push_str(&format!(
            "  backup {}{label}: {state}, timeline {}, {} to {}, {} ({} stored)\n",
            backup.id,
            backup.timeline,
            backup.start_lsn,
            backup.stop_lsn,
            size(backup.size_bytes),
            size(backup.stored_bytes),
        ));
    }
    for (id, how) in &listing.catalog.damaged {
        text.push_str(&format!("  backup {id}: damaged, its record can't be read ({how})\n"));
    }
    for wal in &listing.wal {
        let last = wal
            .last_commit_at
            .map(|at| format!(", last commit {}", rfc3339(at)))
            .unwrap_or_default();
        text.push_str(&format!(
            "  WAL on timeline {}: {} to {}, {} segments{}, {}{last}\n",
            wal.timeline,
            wal.start,
            wal.end,
            wal.segments,
            match wal.last_form {
                Form::Pieces => " (the last is in pieces)",
                Form::Whole | Form::Partial => "",
            },
            size(wal.stored_bytes),
        ));
        for (from, to) in &wal.gaps {
            let what = match wal.unlinked == Some((*from, *to)) {
                true => "does not follow on what is before, as if of another server",
                false => "is missing",
            };
            text.push_str(&format!("    gap: {from} to {to} {what}\n"));
        }
    }
    let newest = listing.catalog.timelines().last().copied();
    for (timeline, why) in unserved(listing) {
        let advice = match Some(timeline) == newest {
            true => "; take a base backup now",
            false => "",
        };
        text.push_str(&format!(
            "  no backup leads to timeline {timeline}: nothing on it can be restored ({why}){advice}\n"
        ));
    }
    for doubt in &listing.catalog.doubts {
        text.push_str(&format!("  warning: {doubt}\n"));
    }
    for window in &listing.windows {
        text.push_str(&format!(
            "  can be restored on timeline {}: {} to {}\n",
            window.timeline,
            rfc3339(window.from),
            rfc3339(window.to),
        ));
    }
    if let Some((from, _)) = after_newest(listing).first() {
        text.push_str(&format!(
            "  take a base backup now: WAL is missing after the newest one, and nothing behind {from} can be restored\n"
        ));
    }
    if listing.windows.is_empty() {
        text.push_str("  nothing can be restored yet: there is no whole backup with its WAL\n");
    }
    text
}
