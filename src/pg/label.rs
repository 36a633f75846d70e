//! What a server writes about a base backup: `backup_label`, which goes with the backup and tells recovery where to
//! begin, and the `.backup` file, which it archives when the backup has ended.
//!
//! A restored directory must hold `backup_label` byte for byte as the server sent it; here it is only understood.
//! Lines that are not known (newer majors add some) are passed over.

use std::fmt;

use super::{Lsn, SegmentName, Timeline};
use crate::error::{Class, Explain};

/// What `backup_label` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins: the redo position of the backup's checkpoint.
    pub start: Lsn,
    /// The segment that holds it.
    pub start_segment: SegmentName,
    /// Where the checkpoint's record is.
    pub checkpoint: Lsn,
    /// How it was made: `streamed`, or `pg_start_backup` for one made by hand (13 and 14).
    pub method: String,
    /// Whether a standby made it.
    pub from_standby: bool,
    /// When it began, in the words and the time zone (`log_timezone`) of the server.
    pub start_time: String,
    /// The name that its maker gave it. Bytes that are not UTF-8 are replaced.
    pub label: String,
    /// The timeline on which it began.
    pub start_timeline: Timeline,
    /// For an incremental backup (17 and newer): where the one it builds on began, and on which timeline.
    pub incremental_from: Option<(Lsn, Timeline)>,
}

/// What a `.backup` file tells: the label, and the backup's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupHistory {
    /// What the label tells.
    pub label: BackupLabel,
    /// Where the backup's WAL ends: recovery must reach this to be consistent.
    pub stop: Lsn,
    /// The segment that the server names for it.
    pub stop_segment: SegmentName,
    /// When it ended, in the words and the time zone of the server.
    pub stop_time: String,
    /// The timeline on which it ended.
    pub stop_timeline: Timeline,
}

impl BackupLabel {
    /// Reads `backup_label`.
    pub fn parse(bytes: &[u8]) -> Result<Self, LabelError> {
        Self::of(&Lines::of("backup_label", &String::from_utf8_lossy(bytes)))
    }

    fn of(lines: &Lines<'_>) -> Result<Self, LabelError> {
        let (start, start_segment) = lines.location("START WAL LOCATION")?;
        let incremental_from = match lines.find("INCREMENTAL FROM LSN") {
            None => None,
            Some(_) => Some((
                lines.parsed("INCREMENTAL FROM LSN")?,
                lines.parsed("INCREMENTAL FROM TLI")?,
            )),
        };
        Ok(Self {
            start,
            start_segment,
            checkpoint: lines.parsed("CHECKPOINT LOCATION")?,
            method: lines.need("BACKUP METHOD")?.to_owned(),
            // The primary was called "master" up to 13.
            from_standby: lines.need("BACKUP FROM")? == "standby",
            start_time: lines.need("START TIME")?.to_owned(),
            label: lines.need("LABEL")?.to_owned(),
            start_timeline: lines.parsed("START TIMELINE")?,
            incremental_from,
        })
    }

    /// Writes the lines of the file, with `stop` where a `.backup` file has it.
    fn write(&self, f: &mut fmt::Formatter<'_>, end: Option<&BackupHistory>) -> fmt::Result {
        writeln!(f, "START WAL LOCATION: {} (file {})", self.start, self.start_segment)?;
        if let Some(end) = end {
            writeln!(f, "STOP WAL LOCATION: {} (file {})", end.stop, end.stop_segment)?;
        }
        writeln!(f, "CHECKPOINT LOCATION: {}", self.checkpoint)?;
        writeln!(f, "BACKUP METHOD: {}", self.method)?;
        let from = if self.from_standby { "standby" } else { "primary" };
        writeln!(f, "BACKUP FROM: {from}")?;
        writeln!(f, "START TIME: {}", self.start_time)?;
        writeln!(f, "LABEL: {}", self.label)?;
        writeln!(f, "START TIMELINE: {}", self.start_timeline)?;
        if let Some(end) = end {
            writeln!(f, "STOP TIME: {}", end.stop_time)?;
            writeln!(f, "STOP TIMELINE: {}", end.stop_timeline)?;
        }
        if let Some((lsn, timeline)) = self.incremental_from {
            writeln!(f, "INCREMENTAL FROM LSN: {lsn}")?;
            writeln!(f, "INCREMENTAL FROM TLI: {timeline}")?;
        }
        Ok(())
    }
}

impl BackupHistory {
    /// Reads a `.backup` file.
    pub fn parse(bytes: &[u8]) -> Result<Self, LabelError> {
        let text = String::from_utf8_lossy(bytes);
        let lines = Lines::of("the backup history file", &text);
        let (stop, stop_segment) = lines.location("STOP WAL LOCATION")?;
        Ok(Self {
            label: BackupLabel::of(&lines)?,
            stop,
            stop_segment,
            stop_time: lines.need("STOP TIME")?.to_owned(),
            stop_timeline: lines.parsed("STOP TIMELINE")?,
        })
    }
}

impl fmt::Display for BackupLabel {
    /// The file, as a server from 14 on writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, None)
    }
}

impl fmt::Display for BackupHistory {
    /// The file, as a server from 14 on writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.write(f, Some(self))
    }
}

/// The lines `KEY: value` of one file.
struct Lines<'a> {
    file: &'static str,
    text: &'a str,
}

impl<'a> Lines<'a> {
    const fn of(file: &'static str, text: &'a str) -> Self {
        Self { file, text }
    }

    /// The value of the first line with this key; what follows a label that has line breaks in it can't pass for a
    /// line above.
    fn find(&self, key: &str) -> Option<&'a str> {
        let mut lines = self.text.split_terminator('\n');
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    }

    fn need(&self, key: &'static str) -> Result<&'a str, LabelError> {
        self.find(key).ok_or(LabelError::Missing { file: self.file, key })
    }

    fn bad(&self, key: &'static str, value: &str) -> LabelError {
        LabelError::Value {
            file: self.file,
            key,
            value: value.to_owned(),
        }
    }

    fn parsed<T: std::str::FromStr>(&self, key: &'static str) -> Result<T, LabelError> {
        let value = self.need(key)?;
        value.parse().map_err(|_| self.bad(key, value))
    }

    /// `0/2000028 (file 000000010000000000000002)`.
    fn location(&self, key: &'static str) -> Result<(Lsn, SegmentName), LabelError> {
        let value = self.need(key)?;
        let read = || {
            let (lsn, file) = value.split_once(" (file ")?;
            Some((lsn.parse().ok()?, file.strip_suffix(')')?.parse().ok()?))
        };
        read().ok_or_else(|| self.bad(key, value))
    }
}

/// Why a label can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// A line that every supported server writes is not there.
    #[error("{file} has no line \"{key}\"")]
    Missing {
        /// Which file.
        file: &'static str,
        /// How the line begins.
        key: &'static str,
    },
    /// A line tells something that can't be.
    #[error("{file} has \"{value}\" as its {key}")]
    Value {
        /// Which file.
        file: &'static str,
        /// How the line begins.
        key: &'static str,
        /// What follows.
        value: String,
    },
}

impl Explain for LabelError {
    fn class(&self) -> Class {
        Class::Damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{WalFileName, golden};
    use proptest::prelude::*;

    #[test]
    fn a_servers_files_are_read_and_print_alike() {
        for major in golden::MAJORS {
            let today = |text: String| text.replace("BACKUP FROM: master", "BACKUP FROM: primary");
            let text = today(golden::text(major, "backup_label"));
            let label = BackupLabel::parse(text.as_bytes()).unwrap();
            assert_eq!(label.to_string(), text, "{major}");
            assert_eq!(label.label, format!("golden \"{major}\""));
            assert_eq!(label.method, "streamed");
            assert!(!label.from_standby);
            let (name, text) = golden::ending(major, ".backup");
            let text = today(text);
            let history = BackupHistory::parse(text.as_bytes()).unwrap();
            assert_eq!(history.to_string(), text, "{major}");
            assert_eq!(history.label, label);
            assert!(history.stop > label.start);
            assert_eq!(
                name.parse::<WalFileName>().unwrap().segment(),
                Some(label.start_segment),
                "{name}"
            );
        }
    }

    #[test]
    fn an_incremental_backup_tells_what_it_builds_on() {
        for major in [17, 18] {
            let text = golden::text(major, "incremental.backup_label");
            let label = BackupLabel::parse(text.as_bytes()).unwrap();
            assert_eq!(label.to_string(), text, "{major}");
            let full = BackupLabel::parse(&golden::read(major, "backup_label")).unwrap();
            assert_eq!(label.incremental_from, Some((full.start, full.start_timeline)));
        }
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let whole = golden::text(17, "backup_label");
        for line in whole.lines() {
            let key = line.split(": ").next().unwrap();
            let without = whole.replace(&format!("{line}\n"), "");
            let error = BackupLabel::parse(without.as_bytes()).unwrap_err();
            assert!(
                matches!(error, LabelError::Missing { key: missing, .. } if missing == key),
                "{key}"
            );
        }
        let start = BackupLabel::parse(whole.as_bytes()).unwrap().start.to_string();
        for (good, bad) in [
            (start.as_str(), "0/x"),
            (" (file", "(file"),
            ("TIMELINE: 1", "TIMELINE: 0"),
        ] {
            assert!(whole.contains(good), "{good}");
            let error = BackupLabel::parse(whole.replacen(good, bad, 1).as_bytes()).unwrap_err();
            assert!(matches!(error, LabelError::Value { .. }), "{error}");
        }
    }

    #[test]
    fn unknown_lines_and_odd_labels_do_no_harm() {
        let whole = golden::text(14, "backup_label");
        let odd = whole.replace("LABEL: golden", "LABEL: a\nSTART WAL LOCATION: 9/9\nb golden") + "NEWS: none\n";
        let label = BackupLabel::parse(odd.as_bytes()).unwrap();
        assert_eq!(label.label, "a");
        assert_eq!(label.start, BackupLabel::parse(whole.as_bytes()).unwrap().start);
    }

    fn labels() -> impl Strategy<Value = BackupLabel> {
        let segment = "[0-9A-F]{24}".prop_filter_map("timeline 0", |name| name.parse().ok());
        let timeline = (1u32..).prop_filter_map("zero", Timeline::new);
        let text = || "[^\n\r]{0,20}";
        let incremental = prop::option::of((any::<u64>(), 1u32..));
        (
            segment,
            timeline,
            [any::<u64>(), any::<u64>()],
            any::<bool>(),
            [text(), text(), text()],
            incremental,
        )
            .prop_map(
                |(
                    start_segment,
                    start_timeline,
                    [start, checkpoint],
                    from_standby,
                    [method, start_time, label],
                    from,
                )| {
                    BackupLabel {
                        start: Lsn::new(start),
                        start_segment,
                        checkpoint: Lsn::new(checkpoint),
                        method,
                        from_standby,
                        start_time,
                        label,
                        start_timeline,
                        incremental_from: from.map(|(lsn, timeline)| (Lsn::new(lsn), Timeline::new(timeline).unwrap())),
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn every_label_survives_printing(label in labels(), stop: u64) {
            prop_assert_eq!(BackupLabel::parse(label.to_string().as_bytes()), Ok(label.clone()));
            let history = BackupHistory {
                stop: Lsn::new(stop),
                stop_segment: label.start_segment,
                stop_time: label.start_time.clone(),
                stop_timeline: label.start_timeline,
                label,
            };
            prop_assert_eq!(BackupHistory::parse(history.to_string().as_bytes()), Ok(history));
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(at in 0usize..300, with: Vec<u8>) {
            let (_, text) = golden::ending(17, ".backup");
            let mut bytes = text.into_bytes();
            let at = at.min(bytes.len());
            bytes.splice(at.., with.iter().copied());
            for bytes in [&bytes, &with] {
                let _ = BackupLabel::parse(bytes);
                let _ = BackupHistory::parse(bytes);
            }
        }
    }
}
