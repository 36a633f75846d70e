//! The model: reads every record that a server would replay, and looks where it would stop.

use super::*;

/// What must come of a request.
#[derive(Debug)]
pub(super) enum Expected {
    Plan {
        backup: BackupId,
        last: Option<u32>,
        next: Option<u32>,
        segments: usize,
    },
    Refused(Class),
}

/// The WAL from a backup's first segment on.
struct Readable {
    /// Slots and what is in them, on the path only.
    slots: Vec<(u64, Option<EventKind>)>,
    damaged: bool,
    /// More of the path, or of another history, lies behind.
    goes_on: bool,
    /// Whether all segments up to the backup's end are there, damaged or not.
    whole: bool,
}

fn readable(world: &World, path: &[Leg], backup: &BackupRecord) -> Readable {
    let files: BTreeSet<_> = world.files().collect();
    let first = SegmentNumber::holding(backup.start_lsn, size()).number();
    let needed = SegmentNumber::ending(backup.stop_lsn, size()).number();
    let mut found = Readable {
        slots: Vec::new(),
        damaged: false,
        goes_on: false,
        whole: false,
    };
    let takes = |number: u64| {
        path.iter().rev().find(|leg| {
            let begun = SegmentNumber::holding(leg.from, size()).number() <= number;
            let left = leg
                .to
                .is_some_and(|to| number > SegmentNumber::ending(to, size()).number());
            begun && !left && files.contains(&(leg.timeline.number(), number))
        })
    };
    let mut number = first;
    while let Some(leg) = takes(number) {
        found.whole |= number >= needed && leg.to.is_none_or(|to| backup.stop_lsn <= to);
        let file = (leg.timeline.number(), number);
        found.damaged |= world.damaged.contains(&file);
        for slot in (number - 1) * SLOTS..number * SLOTS {
            let strays = leg.to.is_some_and(|to| lsn(slot) >= to);
            found.goes_on |= strays;
            if !strays && !found.damaged {
                let kind = world.events.get(&(world.writer(file.0, slot), slot));
                found.slots.push((slot, kind.cloned()));
            }
        }
        number += 1;
        if leg.to.is_some_and(|to| to < SegmentNumber::new(number).start(size())) {
            // The rest of the path is in a file that is missing.
            found.goes_on |= (number..=SEGMENTS).any(|number| on_path(&files, path, number));
            return found;
        }
    }
    found.goes_on |= (number + 1..=SEGMENTS).any(|number| on_path(&files, path, number));
    found
}

/// Whether any file of the path holds some of this segment.
fn on_path(files: &BTreeSet<(u32, u64)>, path: &[Leg], number: u64) -> bool {
    let start = SegmentNumber::new(number).start(size());
    path.iter()
        .any(|leg| leg.to.is_none_or(|to| start < to) && files.contains(&(leg.timeline.number(), number)))
}

pub(super) fn expected(world: &World, request: &Request) -> Expected {
    let catalog = world.catalog();
    let on = match request.timeline {
        TimelineChoice::Latest => catalog.timelines().pop().unwrap().number(),
        TimelineChoice::Number(on) => on.number(),
    };
    let path = world.history(on).path();
    let mut refused = Class::OutOfReach;
    let mut lacking = false;
    let mut backups: Vec<_> = world.backups.iter().rev().collect();
    backups.sort_by_key(|backup| std::cmp::Reverse(backup.stop_lsn));
    for backup in backups {
        let named = match &request.backup {
            Some(named) if *named != backup.id => continue,
            named => named.is_some(),
        };
        let leg = path.iter().find(|leg| leg.timeline == backup.timeline);
        let leads = leg.is_some_and(|leg| leg.to.is_none_or(|to| backup.stop_lsn <= to));
        let later = match &request.requested {
            Requested::Time(at, _) => {
                at.instant() < backup.stopped_at || at.instant() == backup.stopped_at && !request.inclusive
            }
            Requested::Lsn(at) => *at < backup.stop_lsn,
            _ => false,
        };
        let wal = readable(world, &path, backup);
        if !leads || later || !wal.whole || backup.state == BackupState::Damaged && !named {
            continue;
        }
        match one(&wal, backup, request) {
            One::Plan { last, next, segments } => match world.lacking.contains(&backup.id) {
                true => lacking = true,
                false => {
                    return Expected::Plan {
                        backup: backup.id.clone(),
                        last,
                        next,
                        segments,
                    };
                }
            },
            One::Older => {}
            One::OlderOr(class) => refused = class,
            One::Refused(class) if !lacking => return Expected::Refused(class),
            One::Refused(_) => break,
        }
    }
    Expected::Refused(if lacking { Class::Damaged } else { refused })
}

enum One {
    Plan {
        last: Option<u32>,
        next: Option<u32>,
        segments: usize,
    },
    Older,
    OlderOr(Class),
    Refused(Class),
}

/// What comes of one backup.
fn one(wal: &Readable, backup: &BackupRecord, request: &Request) -> One {
    // How many slots are replayed, and how many must be readable for that.
    let mut stop: Option<(usize, usize)> = None;
    for ((slot, kind), at) in wal.slots.iter().zip(0..) {
        if lsn(*slot) < backup.start_lsn {
            continue;
        }
        let before = Some((at, at + 1));
        let after = Some((at + 1, at + 1));
        let sided = if request.inclusive { after } else { before };
        stop = match (&request.requested, kind) {
            (Requested::Immediate, _) if lsn(*slot + 1) >= backup.stop_lsn => after,
            (Requested::Lsn(target), _) if lsn(*slot) >= *target => sided,
            (Requested::Xid(xid), Some(EventKind::Commit(end) | EventKind::Abort(end))) if end.xid == *xid => sided,
            (Requested::Name(name), Some(EventKind::RestorePoint { name: found, .. })) if name.as_bytes() == found => {
                after
            }
            (Requested::Time(time, _), Some(EventKind::Commit(end) | EventKind::Abort(end)))
                if end.at > time.instant() || end.at == time.instant() && !request.inclusive =>
            {
                before
            }
            _ => None,
        };
        if stop.is_some() {
            break;
        }
    }
    let all = wal.slots.len();
    let end = wal.slots.last().map_or(Lsn::ZERO, |(slot, _)| lsn(slot + 1));
    let moments = wal.slots.iter().filter(|(slot, _)| lsn(*slot) >= backup.start_lsn);
    let last_moment = moments.filter_map(|(_, kind)| kind.as_ref()?.at()).max();
    let last_moment = last_moment.max(Some(backup.stopped_at));
    let anywhere = matches!(
        request.requested,
        Requested::Xid(_) | Requested::Name(_) | Requested::Immediate
    );
    let (replayed, needed) = match (stop, &request.requested) {
        (Some((replayed, _)), _) if lsn(wal.slots[0].0 + replayed as u64) < backup.stop_lsn => return One::Older,
        (Some(stop), _) => stop,
        (None, _) if wal.damaged && anywhere => return One::OlderOr(Class::Damaged),
        (None, Requested::Time(time, _)) if last_moment.is_some_and(|last| time.instant() <= last) => (all, all),
        (None, Requested::Lsn(target)) if *target <= end => (all, all),
        (None, _) if wal.damaged => return One::Refused(Class::Damaged),
        (None, Requested::Latest) if wal.goes_on => return One::Refused(Class::OutOfReach),
        (None, Requested::Latest) => (all, all),
        (None, Requested::Time(..) | Requested::Lsn(_)) => return One::Refused(Class::OutOfReach),
        (None, _) => return One::Older,
    };
    if end < backup.stop_lsn {
        let class = if wal.damaged { Class::Damaged } else { Class::OutOfReach };
        return One::Refused(class);
    }
    let commit = |(_, kind): &(u64, Option<EventKind>)| match kind {
        Some(EventKind::Commit(end)) => Some(end.xid.number()),
        _ => None,
    };
    One::Plan {
        last: wal.slots[..replayed].iter().rev().find_map(commit),
        next: wal.slots[replayed..].iter().find_map(commit),
        segments: needed.div_ceil(SLOTS as usize),
    }
}
