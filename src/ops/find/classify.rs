//! What a transaction did that somebody may want undone. Pure.
//!
//! A commit tells which files go with it. Those of dropped relations do, and so do the old files of relations that got
//! new ones: by `TRUNCATE`, but by `VACUUM FULL`, `CLUSTER`, `REINDEX`, `REFRESH MATERIALIZED VIEW` and many an `ALTER
//! TABLE` as well, which lose no row. What tells them apart:
//!
//! - A rewrite makes a relation `pg_temp_OID` for a while, and a row of `pg_class` for it.
//! - A new file that no row told belongs to a relation that was there. Of a table that was emptied it has no block, or
//!   rows that were inserted since; an index and a sequence get their first block at once.
//! - A relation that is dropped takes its rows in the server's catalogues with it.

use std::collections::{BTreeMap, BTreeSet};

use super::event::Relation;
use super::transaction::Transaction;
use crate::ops::names::{self, Known, Names};
use crate::pg::Lsn;
use crate::wal::index::{Activity, Rows};
use crate::wal::{Oid, RelFile};

/// `pg_class`, `pg_attribute`, `pg_type`, `pg_depend`: whoever drops a relation deletes rows of all, and `TRUNCATE` of
/// none.
const OF_RELATIONS: [Oid; 4] = [1259, 1249, 1247, 2608];
/// The first object id that is not the server's own.
const FIRST_NORMAL: Oid = 16384;
/// So many relations of one transaction are tried in all combinations.
const COMBINED: usize = 12;

/// What else is known of the WAL around a transaction.
pub(super) struct Around<'a> {
    pub(super) names: &'a Names,
    /// What was done to a file that the transaction created, by whomever.
    pub(super) activity: &'a dyn Fn(&RelFile) -> Activity,
    /// Where a relation `pg_temp_OID` was made: database and OID.
    pub(super) rewrites: &'a [(Lsn, (Oid, Oid))],
}

/// Relations that lost their content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) relations: Vec<Relation>,
    /// Their files, and those of their indexes and TOAST tables.
    pub(super) files: Vec<RelFile>,
    /// Whether some of them may have been lost the other way, or not at all.
    pub(super) uncertain: bool,
}

/// Files of one relation with its indexes and TOAST table.
struct Group {
    /// `None`: it has no name.
    table: Option<(Oid, Known)>,
    main: Option<RelFile>,
    files: Vec<RelFile>,
}

/// What happened to a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    Emptied,
    Either,
}

/// The relations that a committed transaction dropped, and those that it emptied.
pub(super) fn lost(transaction: &Transaction, around: &Around<'_>) -> (Lost, Lost) {
    let files = Files::of(transaction, around);
    let mut groups = files.groups(transaction, around);
    files.name_by_changes(&mut groups, transaction, around);
    groups.retain(|group| !files.is_rewritten(group, transaction));
    let fates = files.fates(&groups, transaction);
    let (mut dropped, mut emptied) = (Lost::default(), Lost::default());
    for (group, fate) in groups.iter().zip(fates) {
        let lists: &mut [&mut Lost] = match fate {
            Fate::Kept => &mut [],
            Fate::Dropped => &mut [&mut dropped],
            Fate::Emptied => &mut [&mut emptied],
            Fate::Either => &mut [&mut dropped, &mut emptied],
        };
        for lost in lists {
            lost.uncertain |= fate == Fate::Either;
            lost.files.extend(&group.files);
            lost.relations.push(group.relation(transaction));
        }
    }
    let owned = |lost: &mut Lost, groups: &[Group]| {
        // A sequence goes with its table: only alone is it told.
        let sequence = |relation: &Relation| {
            groups
                .iter()
                .any(|group| group.kind() == Some(b'S') && group.oid() == relation.oid && relation.oid.is_some())
        };
        if lost.relations.iter().any(|relation| !sequence(relation)) {
            lost.relations.retain(|relation| !sequence(relation));
        }
    };
    owned(&mut dropped, &groups);
    owned(&mut emptied, &groups);
    (dropped, emptied)
}

/// The files that a transaction made and those that went with it.
struct Files {
    /// Went, and was there before.
    gone: Vec<RelFile>,
    /// Came for a relation that was there before; in the order of their making.
    replacing: Vec<RelFile>,
    /// Relations that are known to have got one of those.
    replaced: BTreeSet<(Oid, Oid)>,
    /// Came for nothing that was there before, and went again.
    passing: Vec<RelFile>,
    /// Relations that were rewritten, and are still there: database and object id.
    rewritten: BTreeSet<(Oid, Oid)>,
    /// New files that are a table's, by what was done to them.
    heaps: BTreeSet<RelFile>,
    /// Rows that tell of relations and were deleted.
    rows_deleted: u64,
    /// Whether as many files came for relations that were there as went.
    even: bool,
}

impl Files {
    fn of(transaction: &Transaction, around: &Around<'_>) -> Self {
        let did = &transaction.did;
        let created: BTreeSet<RelFile> = did.created.iter().copied().collect();
        let dropped: BTreeSet<RelFile> = transaction.end.dropped.iter().copied().collect();
        let gone: Vec<RelFile> = transaction
            .end
            .dropped
            .iter()
            .filter(|file| !created.contains(file))
            .copied()
            .collect();
        let at = transaction.end.event.lsn;
        let first = did.first.unwrap_or(at);
        let before = before(transaction);
        let old: BTreeSet<(Oid, Oid)> = gone
            .iter()
            .filter_map(|file| Some((file.database, around.names.relation(file, before)?.oid)))
            .collect();
        let mut rewritten: BTreeSet<(Oid, Oid)> = around
            .rewrites
            .iter()
            .filter(|(lsn, relation)| (first..=at).contains(lsn) && transaction.end.changed.contains(relation))
            .map(|(_, relation)| *relation)
            .collect();
        // Rewritten and then dropped, the new file went as well.
        rewritten.retain(|(database, oid)| {
            let made = |file: &&RelFile| {
                let known = around.names.relation(file, at);
                file.database == *database && known.is_some_and(|known| known.oid == *oid)
            };
            let mut made = created.iter().filter(made).peekable();
            made.peek().is_none() || made.any(|file| !dropped.contains(file))
        });
        let (mut replacing, mut replaced, mut passing) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut came = 0;
        for file in &created {
            let known = around.names.relation(file, at);
            let part = |known: &Known| known.rewritten || matches!(known.kind, b'i' | b'I' | b't');
            came += usize::from(!dropped.contains(file) && known.as_ref().is_none_or(part));
            let Some(known) = known else {
                match dropped.contains(file) {
                    true => passing.push(*file),
                    false => replacing.push(*file),
                }
                continue;
            };
            let relation = (file.database, known.oid);
            let table = (file.database, known.owner.unwrap_or(known.oid));
            let there_before = old.contains(&relation) && !known.rewritten && !rewritten.contains(&table);
            if there_before && !dropped.contains(file) {
                replacing.push(*file);
                replaced.insert(relation);
            }
        }
        replacing.sort_by_key(|file| file.number);
        let is_heap = |file: &&RelFile| {
            let activity = (around.activity)(file);
            did.relations.contains_key(file) || activity.rows.all() > 0 || activity.references == 0
        };
        let heaps = replacing.iter().chain(&passing).filter(is_heap).copied().collect();
        let class = did.relations.iter().filter(|(file, _)| {
            let known = around.names.relation(file, before);
            OF_RELATIONS.contains(&known.map_or(file.number, |known| known.oid))
        });
        Self {
            rows_deleted: class.map(|(_, rows)| rows.deletes).sum(),
            even: came == gone.len(),
            gone,
            replacing,
            replaced,
            passing,
            rewritten,
            heaps,
        }
    }

    /// What went, each table with its indexes and TOAST.
    fn groups(&self, transaction: &Transaction, around: &Around<'_>) -> Vec<Group> {
        let before = before(transaction);
        let mut groups: BTreeMap<(Oid, Oid, Oid), Group> = BTreeMap::new();
        for file in &self.gone {
            let known = around.names.relation(file, before);
            // Files without a name are each on its own.
            let key = match &known {
                Some(known) => (file.database, known.owner.unwrap_or(known.oid), 0),
                None => (file.database, 0, file.number),
            };
            let group = groups.entry(key).or_insert(Group {
                table: None,
                main: None,
                files: Vec::new(),
            });
            group.files.push(*file);
            match known {
                Some(known) if known.owner.is_none() && !matches!(known.kind, b'i' | b'I' | b't') => {
                    group.main = Some(*file);
                    group.table = Some((known.oid, known));
                }
                Some(known) if group.table.is_none() => group.table = Some((key.1, known)),
                Some(_) => {}
                None => group.main = Some(*file),
            }
        }
        groups.into_values().collect()
    }

    /// Finds whose files those are that have no name, by the relations that the commit says have changed. Indexes and
    /// TOAST are passed over: without names they can't be told from tables.
    fn name_by_changes(&self, groups: &mut Vec<Group>, transaction: &Transaction, around: &Around<'_>) {
        let nameless: Vec<RelFile> = groups
            .iter()
            .filter(|group| group.table.is_none())
            .flat_map(|group| group.files.clone())
            .collect();
        let Some(first) = nameless.first() else { return };
        let created: BTreeSet<Oid> = transaction
            .did
            .created
            .iter()
            .filter_map(|file| around.names.relation(file, transaction.end.event.lsn))
            .map(|known| known.oid)
            .collect();
        let mut candidates: BTreeMap<Oid, Option<Known>> = BTreeMap::new();
        for (database, oid) in &transaction.end.changed {
            let accounted = self.rewritten.contains(&(*database, *oid))
                || created.contains(oid)
                || groups
                    .iter()
                    .any(|group| group.oid() == Some(*oid) && group.main.is_some());
            if *database != first.database || *oid < FIRST_NORMAL || accounted {
                continue;
            }
            match around.names.by_oid(*database, *oid, before(transaction)) {
                Some(known) if known.rewritten || !matches!(known.kind, b'r' | b'm' | b'S') => {}
                known => drop(candidates.insert(*oid, known)),
            }
        }
        let named = groups.iter().any(|group| group.main.is_some() && group.table.is_some());
        if candidates.is_empty() && (named || !self.rewritten.is_empty()) {
            // Of those that have names.
            groups.retain(|group| group.table.is_some());
            return;
        }
        let only = candidates.len() == 1;
        if let Some((oid, Some(known))) = candidates.pop_first().filter(|_| only) {
            let mut files = nameless.clone();
            let parts = groups.extract_if(.., |group| group.table.is_none() || group.oid() == Some(oid));
            files.extend(
                parts
                    .filter(|group| group.table.is_some())
                    .flat_map(|group| group.files),
            );
            groups.push(Group {
                table: Some((oid, known)),
                main: Some(*first),
                files,
            });
        }
    }

    /// Whether a group was rewritten, and lost no row by that.
    fn is_rewritten(&self, group: &Group, transaction: &Transaction) -> bool {
        let Some(oid) = group.oid() else {
            // The name of an index is often not known.
            return self.even && !self.rewritten.is_empty();
        };
        let Some(file) = group.files.first() else { return false };
        if !self.rewritten.contains(&(file.database, oid)) {
            return false;
        }
        // Emptied first, in a file that went again with the rewrite.
        let emptied = self.passing.iter().any(|file| self.heaps.contains(file));
        let truncated = transaction.did.truncated.contains(&(file.database, oid));
        !emptied && !truncated
    }

    fn fates(&self, groups: &[Group], transaction: &Transaction) -> Vec<Fate> {
        let pairs: BTreeMap<RelFile, RelFile> = match self.gone.len() == self.replacing.len() {
            true => self
                .gone
                .iter()
                .rev()
                .copied()
                .zip(self.replacing.iter().copied())
                .collect(),
            false => BTreeMap::new(),
        };
        let all_replaced = self.rows_deleted == 0 || !pairs.is_empty();
        let logged = !transaction.did.truncated.is_empty();
        // Of a relation that was rewritten, indexes get new files, too: they can't be told from others.
        let chosen = match all_replaced || !self.rewritten.is_empty() {
            true => None,
            false => self.combination(groups),
        };
        let any_emptied = self.replacing.iter().any(|file| self.heaps.contains(file));
        let fate = |(number, group): (usize, &Group)| {
            let replaced = group.files.first().zip(group.oid()).is_some_and(|(file, oid)| {
                let relation = (file.database, oid);
                self.replaced.contains(&relation) || transaction.did.truncated.contains(&relation)
            });
            let fate = if replaced || all_replaced {
                Fate::Emptied
            } else if self.replacing.is_empty() || logged {
                Fate::Dropped
            } else {
                match &chosen {
                    Some(dropped) if dropped.contains(&number) => Fate::Dropped,
                    Some(_) => Fate::Emptied,
                    None if !any_emptied => Fate::Dropped,
                    None => Fate::Either,
                }
            };
            match (fate, group.main) {
                // Only an index, or what a rewrite left.
                (_, None) => Fate::Kept,
                // A sequence that begins anew, a materialized view that is filled.
                (Fate::Emptied, Some(_)) if group.kind().is_some_and(|kind| kind != b'r') => Fate::Kept,
                (Fate::Emptied, Some(file)) if !self.was_emptied(&file, &pairs) => Fate::Kept,
                (fate, _) => fate,
            }
        };
        groups.iter().enumerate().map(fate).collect()
    }

    /// Whether the file in the place of this one is as after `TRUNCATE`.
    fn was_emptied(&self, file: &RelFile, pairs: &BTreeMap<RelFile, RelFile>) -> bool {
        match pairs.get(file) {
            // `SET TABLESPACE` moves what is there.
            Some(new) => new.tablespace == file.tablespace && self.heaps.contains(new),
            // Of an unlogged table, the new file is not told.
            None if self.replacing.is_empty() => true,
            None => self.heaps.iter().any(|new| new.tablespace == file.tablespace),
        }
    }

    /// Which groups were dropped, where so many files less came than went, and only one choice fits.
    fn combination(&self, groups: &[Group]) -> Option<BTreeSet<usize>> {
        let sizes: Vec<usize> = groups.iter().map(|group| group.files.len()).collect();
        let missing = sizes.iter().sum::<usize>().checked_sub(self.replacing.len())?;
        if groups.len() > COMBINED {
            return None;
        }
        let fits = |choice: &u32| {
            let chosen = (0..sizes.len()).filter(|number| choice >> number & 1 == 1);
            chosen.map(|number| sizes[number]).sum::<usize>() == missing
        };
        let mut choices = (0..1_u32 << sizes.len()).filter(fits);
        let choice = choices.next()?;
        let only = choices.next().is_none();
        only.then(|| (0..sizes.len()).filter(|number| choice >> number & 1 == 1).collect())
    }
}

impl Group {
    fn oid(&self) -> Option<Oid> {
        self.table.as_ref().map(|(oid, _)| *oid)
    }

    fn kind(&self) -> Option<u8> {
        self.table.as_ref().map(|(_, known)| known.kind)
    }

    fn relation(&self, transaction: &Transaction) -> Relation {
        let rows = self.main.and_then(|file| transaction.did.relations.get(&file)).copied();
        Relation {
            name: match (&self.table, self.main) {
                (Some((_, known)), _) => known.name.clone(),
                (None, Some(file)) => names::path(&file),
                (None, None) => String::new(),
            },
            oid: self.oid(),
            rows: rows.unwrap_or_default(),
        }
    }
}

/// The last place before the transaction did anything.
pub(super) fn before(transaction: &Transaction) -> Lsn {
    let first = transaction.did.first.unwrap_or(transaction.end.event.lsn);
    Lsn::new(first.bytes().saturating_sub(1))
}

/// The tables whose rows a transaction changed, with their rows. The server's own count only where `own` says so; TOAST
/// tables never do.
pub(super) fn rows(transaction: &Transaction, names: &Names, own: &dyn Fn(&RelFile) -> bool) -> Vec<Relation> {
    let at = transaction.end.event.lsn;
    let mut relations: BTreeMap<(Oid, Option<Oid>, String), Rows> = BTreeMap::new();
    for (file, rows) in &transaction.did.relations {
        let known = names
            .relation(file, at)
            .or_else(|| names.relation(file, before(transaction)));
        let oid = known.as_ref().map(|known| known.oid);
        if known.as_ref().is_some_and(|known| known.kind == b't') {
            continue;
        }
        if oid.unwrap_or(file.number) < FIRST_NORMAL && !own(file) {
            continue;
        }
        let name = known.map_or_else(|| names::path(file), |known| known.name);
        relations.entry((file.database, oid, name)).or_default().add(rows);
    }
    let relation = |((_, oid, name), rows)| Relation { name, oid, rows };
    relations.into_iter().map(relation).collect()
}

/// The tables that a transaction deleted rows of, if it deleted at least `least` of one.
pub(super) fn mass_delete(
    transaction: &Transaction,
    names: &Names,
    least: u64,
    own: &dyn Fn(&RelFile) -> bool,
) -> Vec<Relation> {
    let refreshed = |relation: &Relation| {
        let database = transaction.did.relations.keys().map(|file| file.database).max();
        let known = relation
            .oid
            .zip(database)
            .and_then(|(oid, database)| names.by_oid(database, oid, transaction.end.event.lsn));
        known.is_some_and(|known| known.kind == b'm')
    };
    let mut relations = rows(transaction, names, own);
    relations.retain(|relation| relation.rows.deletes > 0 && !refreshed(relation));
    match relations.iter().any(|relation| relation.rows.deletes >= least) {
        true => relations,
        false => Vec::new(),
    }
}
