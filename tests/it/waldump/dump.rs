//! What `pg_waldump` prints, and recoveries worked out from it line by line.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use pgp_pitr::pg::{Lsn, SegmentName};
use pgp_pitr::wal::{Target, Xid};

use super::Told;
use crate::support::cluster::Cluster;
use crate::support::program::Answer;

/// One line: a record.
#[derive(Debug, Clone)]
pub struct Line {
    /// All but the description.
    pub told: Told,
    /// The description.
    pub desc: String,
    manager: String,
    length: u64,
    end: Option<End>,
}

/// What a line tells of the end of a transaction.
#[derive(Debug, Clone, Copy)]
struct End {
    committed: bool,
    xid: Xid,
    at: DateTime<Utc>,
}

/// Every record from the first of these segments to the last.
pub fn all(cluster: &Cluster, [first, last]: [SegmentName; 2]) -> Vec<Line> {
    // It ends with an error, at the end of the WAL.
    let answer = Answer::of(
        cluster
            .tool("pg_waldump")
            .arg("-p")
            .arg(cluster.data_dir().join("pg_wal"))
            .args([first.to_string(), last.to_string()]),
    );
    answer.stdout.lines().filter_map(Line::parse).collect()
}

impl Line {
    /// `None` for a line that is about no record.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("rmgr: ")?;
        let (manager, rest) = rest.split_once(" len (rec/tot):").unwrap();
        let (lengths, rest) = rest.split_once(", tx:").unwrap();
        let (xid, rest) = rest.split_once(", lsn:").unwrap();
        let (start, rest) = rest.split_once(", prev ").unwrap();
        let (previous, rest) = rest.split_once(", desc: ").unwrap();
        let (desc, blocks) = rest.split_at(rest.find(", blkref #").unwrap_or(rest.len()));
        let (manager, xid) = (manager.trim(), xid.trim());
        let length = lengths.split('/').nth(1).unwrap().trim();
        let lsn = |text: &str| text.trim().parse::<Lsn>().unwrap();
        let text = format!(
            "rmgr: {manager} len: {length} tx: {xid} prev: {}{blocks}",
            lsn(previous)
        );
        Some(Self {
            told: Told {
                start: lsn(start),
                text,
            },
            end: end(manager, xid, desc),
            desc: desc.to_owned(),
            manager: manager.to_owned(),
            length: length.parse().unwrap(),
        })
    }

    /// The record's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether a recovery cares about the record.
    pub fn is_event(&self) -> bool {
        const OF_XLOG: [&str; 8] = [
            "CHECKPOINT_ONLINE",
            "CHECKPOINT_SHUTDOWN",
            "RESTORE_POINT",
            "PARAMETER_CHANGE",
            "END_OF_RECOVERY",
            "SWITCH",
            "BACKUP_END",
            "OVERWRITE_CONTRECORD",
        ];
        match self.manager.as_str() {
            "Transaction" => self.end.is_some() || self.kind() == "PREPARE",
            "XLOG" => OF_XLOG.contains(&self.kind()),
            manager => matches!(manager, "Database" | "Tablespace"),
        }
    }

    fn kind(&self) -> &str {
        self.desc.split(' ').next().unwrap_or_default()
    }

    /// The name, where the line is a restore point.
    fn restore_point(&self) -> Option<&str> {
        self.desc
            .strip_prefix("RESTORE_POINT ")
            .filter(|_| self.manager == "XLOG")
    }
}

fn end(manager: &str, xid: &str, desc: &str) -> Option<End> {
    let (kind, rest) = desc.split_once(' ').filter(|_| manager == "Transaction")?;
    let (committed, prepared) = match kind {
        "COMMIT" => (true, false),
        "ABORT" => (false, false),
        "COMMIT_PREPARED" => (true, true),
        "ABORT_PREPARED" => (false, true),
        _ => return None,
    };
    let (xid, rest) = if prepared {
        rest.split_once(": ").unwrap()
    } else {
        (xid, rest)
    };
    let time = rest.get(..26).unwrap();
    let at = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.6f").unwrap();
    Some(End {
        committed,
        xid: Xid::new(xid.parse().unwrap()),
        at: at.and_utc(),
    })
}

/// What a recovery comes to.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Whether the target is met at all.
    pub reached: bool,
    /// The last commit replayed.
    pub last_commit: Option<Lsn>,
    /// The first commit left out.
    pub next_commit: Option<Lsn>,
}

/// PostgreSQL's own way: each record is looked at before it is replayed, and again after.
pub fn recover(lines: &[Line], target: &Target, inclusive: bool) -> Recovered {
    let mut recovered = Recovered::default();
    for line in lines {
        let start = line.told.start;
        let committed = line.end.is_some_and(|end| end.committed);
        recovered.reached |= stops_before(line, target, inclusive);
        if recovered.reached && committed {
            recovered.next_commit = Some(start);
            break;
        }
        if !recovered.reached {
            if committed {
                recovered.last_commit = Some(start);
            }
            recovered.reached = stops_after(line, target, inclusive);
        }
    }
    recovered.reached |= *target == Target::EndOfWal;
    recovered
}

fn stops_before(line: &Line, target: &Target, inclusive: bool) -> bool {
    match (target, line.end) {
        (Target::Lsn(lsn), _) => !inclusive && line.told.start >= *lsn,
        (Target::Xid(xid), Some(end)) => !inclusive && end.xid == *xid,
        (Target::Time(time), Some(end)) => end.at > *time || !inclusive && end.at == *time,
        _ => false,
    }
}

fn stops_after(line: &Line, target: &Target, inclusive: bool) -> bool {
    match (target, line.end) {
        (Target::Lsn(lsn), _) => inclusive && line.told.start >= *lsn,
        (Target::Xid(xid), Some(end)) => inclusive && end.xid == *xid,
        (Target::Name(name), _) => line.restore_point().is_some_and(|found| found.as_bytes() == name),
        _ => false,
    }
}

/// A target at or beside a line, or the next one that such a target can be about.
pub fn target(lines: &[Line], at: usize, beside: i64, kind: u8) -> Target {
    let ending = lines[at..].iter().position(|line| line.end.is_some());
    let end = ending.and_then(|ending| lines[at + ending].end);
    // Often the record that an end follows: a place where one byte makes a difference.
    let line = match (kind, ending) {
        (4, Some(ending)) => &lines[(at + ending).saturating_sub(1)],
        _ => &lines[at],
    };
    let name = lines[at..].iter().find_map(Line::restore_point);
    match (kind, end, name) {
        (0, Some(end), _) => Target::Time(end.at + TimeDelta::microseconds(beside)),
        (1, Some(end), _) => Target::Xid(end.xid),
        (2, _, Some(name)) => Target::Name(name.as_bytes().to_vec()),
        (3, ..) => Target::EndOfWal,
        _ => Target::Lsn(Lsn::new(line.told.start.bytes().saturating_add_signed(beside))),
    }
}
