//! `pgp-pitr salvage`.

use serde_json::{Value, json};

use super::args::SalvageArgs;
use super::pitr::{PROGRAM, Session};
use super::progress::size;
use super::report::{self, printable};
use super::run::{block_on, open_store};
use crate::error::Failure;
use crate::ops::archive::LEVEL;
use crate::ops::salvage::{self, DeadServer, OnTimeline, Step, Survey};
use crate::pg::WalFileName;
use crate::pg::time::rfc3339;
use crate::repo::Repository;

impl Session {
    pub(super) fn salvage(&self, args: &SalvageArgs) -> Result<(), Failure> {
        let level = self.settings.compression_level(LEVEL)?;
        let dead = DeadServer::at(&args.directory, args.wal.as_deref())?;
        let store = open_store(PROGRAM, &self.settings, &self.env)?;
        let survey = block_on(async {
            let repository = Repository::open(&store).await?;
            let survey = salvage::survey(&repository, &dead).await?;
            if !args.dry_run {
                let mut tell = |step: &Step| report::note(&format!("stored {}", name(step)));
                salvage::store(&repository, &survey, level, &mut tell).await?;
            }
            Ok(survey)
        })?;
        let text = match args.json {
            true => format!("{}\n", json(&survey, args.dry_run)),
            false => describe(&survey, args.dry_run),
        };
        report::answer(&text)?;
        Ok(survey.complete()?)
    }
}

fn name(step: &Step) -> String {
    match step {
        Step::File { file, .. } => file.to_string(),
        Step::Piece { from, to, .. } => format!("the WAL from {from} to {to}"),
    }
}

fn json(survey: &Survey, dry_run: bool) -> Value {
    json!({
        "dry_run": dry_run,
        "complete": survey.problems.is_empty(),
        "system_identifier": survey.cluster.system,
        "pg_version": survey.cluster.major.number().to_string(),
        "wal_segment_size": survey.cluster.segment_size.bytes(),
        "timelines": survey.timelines.iter().map(timeline).collect::<Vec<_>>(),
        "latest": survey.latest().map(|latest| json!({
            "timeline": latest.timeline,
            "lsn": latest.lsn,
            "last_commit_at": latest.commit.map(|commit| rfc3339(commit.at)),
            "last_commit_xid": latest.commit.map(|commit| commit.xid.number()),
            "last_commit_lsn": latest.commit.map(|commit| commit.lsn),
        })),
        "problems": survey.problems.iter().map(|problem| json!({
            "kind": problem.kind.name(),
            "timeline": problem.timeline,
            "file": problem.file,
            "from_lsn": problem.from,
            "to_lsn": problem.to,
            "detail": problem.detail,
        })).collect::<Vec<_>>(),
    })
}

fn timeline(on: &OnTimeline) -> Value {
    let files = |wanted: fn(&WalFileName) -> bool| -> Vec<String> {
        let file = |step: &Step| match step {
            Step::File { file, .. } if wanted(file) => Some(file.to_string()),
            _ => None,
        };
        on.steps.iter().filter_map(file).collect()
    };
    json!({
        "timeline": on.timeline,
        "stored_to_lsn": on.stored_to,
        "saved": on.stretches.iter().map(|(from, to)| json!({"from_lsn": from, "to_lsn": to})).collect::<Vec<_>>(),
        "segments": files(|file| matches!(file, WalFileName::Segment(_))),
        "other_files": files(|file| !matches!(file, WalFileName::Segment(_))),
        "piece_bytes": on.piece_bytes(),
        "already_stored": on.agreed,
        "end_lsn": on.end.as_ref().map(|end| end.lsn),
        "end_reason": on.end.as_ref().map(|end| &end.why),
    })
}

fn describe(survey: &Survey, dry_run: bool) -> String {
    let mut text = format!(
        "cluster {}, PostgreSQL {}, WAL in {}\n",
        survey.cluster.system,
        survey.cluster.major.number(),
        printable(&survey.folder.display().to_string()),
    );
    for on in &survey.timelines {
        text.push_str(&describe_timeline(on, dry_run));
    }
    if survey.is_empty() {
        text.push_str("nothing to save: the repository has all of it already\n");
    }
    if let Some(latest) = survey.latest() {
        let what = match dry_run {
            true => "latest moment after a salvage",
            false => "latest moment now",
        };
        let commit = match latest.commit {
            Some(commit) => format!(
                "commit of transaction {} at {} ({})",
                commit.xid,
                rfc3339(commit.at),
                commit.lsn
            ),
            None => "no commit in what was looked at".to_owned(),
        };
        text.push_str(&format!(
            "{what}: {commit}; the WAL ends at {} on timeline {}\n",
            latest.lsn, latest.timeline
        ));
    }
    for problem in &survey.problems {
        let timeline = problem.timeline.map(|timeline| format!(" on timeline {timeline}"));
        text.push_str(&format!(
            "{}{}: {}\n",
            problem.kind.name(),
            timeline.unwrap_or_default(),
            printable(&problem.detail)
        ));
    }
    text.push_str(match (dry_run, survey.has_backup) {
        (true, _) if !survey.is_empty() => "nothing was stored: run it without --dry-run\n",
        (_, true) => "next: pgp-pitr plan --latest\n",
        (_, false) => "the repository has no base backup of this cluster: its WAL alone restores nothing\n",
    });
    text
}

fn describe_timeline(on: &OnTimeline, dry_run: bool) -> String {
    if on.steps.is_empty() && on.agreed == 0 && on.end.is_none() {
        return String::new();
    }
    let stored = match on.stored_to {
        Some(to) => format!("the repository went to {to}"),
        None => "the repository had none of its WAL".to_owned(),
    };
    let mut text = format!("timeline {}: {stored}", on.timeline);
    if on.agreed > 0 {
        text.push_str(&format!(", and has {} of the files here already", on.agreed));
    }
    text.push('\n');
    let saved = if dry_run { "would save" } else { "saved" };
    for (from, to) in &on.stretches {
        text.push_str(&format!("  {saved} {from} to {to}\n"));
    }
    if !on.stretches.is_empty() {
        let segments = match on.segments() {
            1 => "1 whole segment".to_owned(),
            segments => format!("{segments} whole segments"),
        };
        text.push_str(&format!("  as {segments}, and {} in pieces\n", size(on.piece_bytes())));
    }
    for step in &on.steps {
        if let Step::File { file, .. } = step
            && !matches!(file, WalFileName::Segment(_))
        {
            text.push_str(&format!("  {saved} {file}\n"));
        }
    }
    if let Some(end) = &on.end {
        text.push_str(&format!("  its last whole record ends at {}: {}\n", end.lsn, end.why));
    }
    text
}
