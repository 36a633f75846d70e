//! The whole WAL of a scene as `pg_waldump` tells it: where each record begins and ends, and what it means to a recovery.

use std::path::Path;

use chrono::{DateTime, NaiveDateTime, Utc};
use pgp_pitr::pg::{Lsn, SegmentName, SegmentSize};

use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::ServerUser;

/// `XLOG_BLCKSZ`, `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD`.
const PAGE: u64 = 8192;
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends, aligned; a switch ends with its segment.
    pub end: Lsn,
    /// What it is.
    pub kind: Kind,
}

/// What a recovery looks at.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A commit or a rollback, in one phase or two.
    End(End),
    /// `PREPARE TRANSACTION`.
    Prepare { xid: u32 },
    /// `pg_create_restore_point`
    RestorePoint(String),
    /// The end of the backup that began there.
    BackupEnd(Lsn),
    /// All else.
    Other,
}

/// The end of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub committed: bool,
    pub xid: u32,
    pub at: DateTime<Utc>,
    pub subtransactions: Vec<u32>,
}

impl Record {
    /// The end of a transaction, if it is one.
    pub fn ended(&self) -> Option<&End> {
        match &self.kind {
            Kind::End(end) => Some(end),
            _ => None,
        }
    }

    /// As [`Self::ended`], of commits only.
    pub fn commit(&self) -> Option<&End> {
        self.ended().filter(|end| end.committed)
    }
}

/// Every record of the segments from `first` to `last`, which lie in `folder`.
pub fn read(major: &Major, folder: &Path, [first, last]: [SegmentName; 2], size: SegmentSize) -> Vec<Record> {
    let answer = Answer::of(
        ServerUser::get()
            .command(major.program("pg_waldump"))
            .arg("-p")
            .arg(folder)
            .args([first.to_string(), last.to_string()]),
    );
    let records: Vec<Record> = answer.stdout.lines().filter_map(|line| record(line, size)).collect();
    assert!(!records.is_empty(), "{}", answer.stderr);
    records
}

/// A line is `rmgr: Transaction len (rec/tot): 34/ 34, tx: 735, lsn: 0/01568E30, prev 0/01568DF8, desc: …`
fn record(line: &str, size: SegmentSize) -> Option<Record> {
    let rest = line.strip_prefix("rmgr: ")?;
    let (head, desc) = rest.split_once(", desc: ").expect("a description");
    let (manager, _) = head.split_once(' ').expect("a manager");
    let field = |name: &str, until: char| {
        let (_, rest) = head.split_once(name).expect(name);
        rest.split(until).next().expect("something").trim()
    };
    let length: u64 = field("len (rec/tot):", ',')
        .rsplit('/')
        .next()?
        .trim()
        .parse()
        .expect("a length");
    let start: Lsn = field("lsn: ", ',').parse().expect("an LSN");
    let kind = kind(manager, field("tx:", ','), desc);
    let switch = manager == "XLOG" && desc.trim() == "SWITCH";
    let end = match (end_of(start, length, size), size.bytes()) {
        (end, segment) if switch => Lsn::new(end.bytes().next_multiple_of(segment)),
        (end, _) => end,
    };
    Some(Record { start, end, kind })
}

/// Where the last byte of a record comes to lie: each page on the way begins with a header.
fn end_of(start: Lsn, length: u64, size: SegmentSize) -> Lsn {
    let (mut at, mut left) = (start.bytes(), length);
    loop {
        let room = PAGE - at % PAGE;
        if left <= room {
            return Lsn::new((at + left).next_multiple_of(8));
        }
        left -= room;
        at += room;
        at += if at.is_multiple_of(size.bytes()) {
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
    }
}

fn kind(manager: &str, xid: &str, desc: &str) -> Kind {
    let (what, about) = desc.split_once(' ').unwrap_or((desc, ""));
    match (manager, what) {
        ("Transaction", "COMMIT" | "ABORT") => Kind::End(end(what == "COMMIT", xid, about)),
        ("Transaction", "COMMIT_PREPARED" | "ABORT_PREPARED") => {
            let (xid, about) = about.split_once(": ").expect("the xid of the first phase");
            Kind::End(end(what == "COMMIT_PREPARED", xid, about))
        }
        ("Transaction", "PREPARE") => Kind::Prepare {
            xid: xid.parse().expect("an xid"),
        },
        ("XLOG", "RESTORE_POINT") => Kind::RestorePoint(about.to_owned()),
        ("XLOG", "BACKUP_END") => Kind::BackupEnd(about.parse().expect("an LSN")),
        _ => Kind::Other,
    }
}

/// `2026-11-21 12:00:14.123456 UTC; rels: …; subxacts: 736 737; …`
fn end(committed: bool, xid: &str, about: &str) -> End {
    let (time, rest) = about.split_once(" UTC").expect("a time in UTC");
    let at = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.6f").expect("a time");
    let subtransactions = rest.split("; ").find_map(|part| part.strip_prefix("subxacts: "));
    End {
        committed,
        xid: xid.parse().expect("an xid"),
        at: at.and_utc(),
        subtransactions: subtransactions
            .unwrap_or_default()
            .split_whitespace()
            .map(|xid| xid.parse().expect("an xid"))
            .collect(),
    }
}
