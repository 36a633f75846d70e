//! Judges replication slots: each one that nobody reads fills the primary's disk (rule 10). Pure.

use std::time::Duration;

use super::facts::{ServerFacts, SlotFacts};
use super::{Check, Status, words};
use crate::pg::size::Size;
use crate::replication::SlotName;

/// Each slot, and whether the one that was named is there.
pub(super) fn judge(facts: &ServerFacts, wanted: Option<&SlotName>) -> Vec<Check> {
    let mut checks: Vec<Check> = facts.slots.iter().map(|slot| judge_one(facts, slot, wanted)).collect();
    if let Some(wanted) = wanted.map(SlotName::as_str)
        && !facts.slots.iter().any(|slot| slot.name == wanted)
    {
        checks.push(Check::fails(
            named(wanted),
            "there is no such slot",
            format!("SELECT pg_create_physical_replication_slot('{wanted}', true)"),
        ));
    } else if wanted.is_some() {
        checks.extend(limit(facts));
    } else if checks.is_empty() {
        checks.push(Check::ok("slots", "none: no slot holds WAL on this server"));
    }
    checks
}

/// Whether the server protects itself from a slot that nobody reads.
fn limit(facts: &ServerFacts) -> Option<Check> {
    let name = "max_slot_wal_keep_size";
    match facts.setting(name) {
        "" => None,
        "-1" => Some(Check::warning(
            name,
            "-1, no limit: while the receiver is down its slot keeps WAL, until the disk is full and the server stops",
            "ALTER SYSTEM SET max_slot_wal_keep_size to less than is free on the disk of pg_wal, and reload; past it the \
             slot is given up instead, and a base backup is needed",
        )),
        megabytes => Some(Check::ok(
            name,
            format!("{megabytes} MB: a slot that falls behind by more is given up, and the server goes on"),
        )),
    }
}

fn named(slot: &str) -> String {
    format!("slot:{slot}")
}

fn judge_one(facts: &ServerFacts, slot: &SlotFacts, wanted: Option<&SlotName>) -> Check {
    let is_wanted = wanted.is_some_and(|wanted| wanted.as_str() == slot.name);
    let name = named(&slot.name);
    let drop = format!("SELECT pg_drop_replication_slot('{}')", slot.name);
    if is_wanted && slot.kind != "physical" {
        let detail = format!("is a {} slot, where a physical one is needed", slot.kind);
        return Check::fails(name, detail, "name another slot with --slot");
    }
    let retained = slot.retained.unwrap_or(0);
    let holds = format!("{}, {}", slot.kind, holds(facts, slot));
    match (slot.wal_status.as_deref(), slot.active) {
        (Some("lost"), _) => Check {
            status: if is_wanted { Status::Fails } else { Status::Warning },
            ..Check::warning(
                name,
                "WAL that it needs is gone from this server",
                format!("{drop}, and make it anew"),
            )
        },
        (Some("unreserved"), _) => Check::warning(
            name,
            format!("about to be lost; {holds}"),
            "let its reader catch up now, or raise max_slot_wal_keep_size",
        ),
        (_, false) if retained > 0 => Check::warning(
            name,
            format!("nobody reads it; {holds}"),
            format!("start its reader, or, if there is none any more, {drop}"),
        ),
        (Some("extended"), true) => Check::warning(
            name,
            format!("its reader has fallen behind; {holds}"),
            "see why the reader is slow (network, disk, a stopped process)",
        ),
        (None, _) if is_wanted => Check::warning(
            name,
            "it holds no WAL yet: what is written before its receiver starts may be gone by then",
            format!(
                "start `pgp-pitr receive --slot {}` soon, or make the slot anew with `--create-slot`",
                slot.name
            ),
        ),
        (_, false) if is_wanted => Check::warning(
            name,
            format!("nobody reads it; {holds}"),
            format!("start `pgp-pitr receive --slot {}`", slot.name),
        ),
        (_, active) => Check::ok(
            name,
            format!("{}; {holds}", if active { "in use" } else { "not in use" }),
        ),
    }
}

/// How much it holds, and how much more it may.
fn holds(facts: &ServerFacts, slot: &SlotFacts) -> String {
    let retained = match slot.retained {
        None => return "holds no WAL".to_owned(),
        Some(retained) => format!("holds {} of WAL", Size::new(retained).short()),
    };
    match slot.left {
        Some(left) => format!(
            "{retained}, {} left until it is given up{}",
            Size::new(left).short(),
            time_left(facts, left)
        ),
        None if facts.setting("max_slot_wal_keep_size") == "-1" => {
            format!("{retained}, with no limit but the disk (max_slot_wal_keep_size = -1)")
        }
        None => retained,
    }
}

/// How long that lasts, where the server writes WAL at all.
fn time_left(facts: &ServerFacts, left: u64) -> String {
    let Some(rate) = facts.wal_rate.filter(|rate| *rate > 0) else {
        return String::new();
    };
    format!(
        ", about {} at {} of WAL a second",
        words::span(Duration::from_secs(left / rate)),
        Size::new(rate).short()
    )
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::server;
    use super::*;

    fn slot(active: bool, wal_status: &str, retained: u64, left: Option<u64>) -> SlotFacts {
        SlotFacts {
            name: "s".to_owned(),
            kind: "physical".to_owned(),
            active,
            wal_status: Some(wal_status.to_owned()),
            retained: Some(retained),
            left,
            reader: None,
        }
    }

    fn judged(slot: SlotFacts, wanted: Option<&str>) -> Check {
        let mut facts = server();
        facts.slots.push(slot);
        let wanted = wanted.map(|name| SlotName::new(name).unwrap());
        let mut checks = judge(&facts, wanted.as_ref());
        checks.retain(|check| check.name.starts_with("slot:"));
        checks.pop().unwrap()
    }

    #[test]
    fn a_limit_is_told_with_the_time_that_is_left_and_its_absence_is_warned_of() {
        let mut facts = server();
        facts.slots.push(slot(true, "reserved", 0, Some(3 << 30)));
        let wanted = SlotName::new("s").unwrap();
        let checks = judge(&facts, Some(&wanted));
        assert_eq!(
            checks.iter().map(|check| check.status).collect::<Vec<_>>(),
            [Status::Ok, Status::Warning]
        );
        assert!(checks[1].detail.contains("the disk is full"));
        facts
            .settings
            .insert("max_slot_wal_keep_size".to_owned(), "4096".to_owned());
        facts.wal_rate = Some(1 << 20);
        let checks = judge(&facts, Some(&wanted));
        assert_eq!(checks[1].status, Status::Ok);
        assert!(
            checks[0].detail.ends_with("about 51m 12s at 1.00 MiB of WAL a second"),
            "{checks:?}"
        );
    }

    #[test]
    fn a_slot_that_nobody_reads_is_told_with_what_it_holds_and_what_is_left() {
        let check = judged(slot(false, "reserved", 48 << 20, Some(1 << 30)), None);
        assert_eq!((check.name.as_str(), check.status), ("slot:s", Status::Warning));
        assert_eq!(
            check.detail,
            "nobody reads it; physical, holds 48.0 MiB of WAL, 1.00 GiB left until it is given up"
        );
        let unlimited = judged(slot(false, "reserved", 1, None), None);
        assert!(
            unlimited.detail.contains("no limit but the disk"),
            "{}",
            unlimited.detail
        );
    }

    #[test]
    fn a_slot_is_judged_by_its_wal_and_its_reader() {
        let logical = SlotFacts {
            kind: "logical".to_owned(),
            ..slot(true, "reserved", 1, None)
        };
        for (slot, wanted, status) in [
            (slot(true, "reserved", 1, None), None, Status::Ok),
            (slot(false, "reserved", 0, None), None, Status::Ok),
            (slot(true, "extended", 1, None), None, Status::Warning),
            (slot(true, "unreserved", 1, Some(0)), None, Status::Warning),
            (slot(false, "lost", 0, None), None, Status::Warning),
            (slot(false, "lost", 0, None), Some("s"), Status::Fails),
            (slot(true, "reserved", 1, None), Some("s"), Status::Ok),
            (slot(false, "reserved", 0, None), Some("s"), Status::Warning),
            (slot(true, "reserved", 1, None), Some("other"), Status::Fails),
            (logical.clone(), None, Status::Ok),
            (logical, Some("s"), Status::Fails),
        ] {
            let check = judged(slot, wanted);
            assert_eq!(check.status, status, "{wanted:?}: {check:?}");
        }
    }
}
