//! Judges replication slots: each one that nobody reads fills the primary's disk (rule 10). Pure.

use super::facts::{ServerFacts, SlotFacts};
use super::{Check, Status};
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
    } else if checks.is_empty() {
        checks.push(Check::ok("slots", "none: no slot holds WAL on this server"));
    }
    checks
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
        Some(left) => format!("{retained}, {} left until it is given up", Size::new(left).short()),
        None if facts.setting("max_slot_wal_keep_size") == "-1" => {
            format!("{retained}, with no limit but the disk (max_slot_wal_keep_size = -1)")
        }
        None => retained,
    }
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
        }
    }

    fn judged(slot: SlotFacts, wanted: Option<&str>) -> Check {
        let mut facts = server();
        facts.slots.push(slot);
        let wanted = wanted.map(|name| SlotName::new(name).unwrap());
        judge(&facts, wanted.as_ref()).pop().unwrap()
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
            (slot(true, "reserved", 1, None), Some("other"), Status::Fails),
            (logical.clone(), None, Status::Ok),
            (logical, Some("s"), Status::Fails),
        ] {
            let check = judged(slot, wanted);
            assert_eq!(check.status, status, "{wanted:?}: {check:?}");
        }
    }
}
