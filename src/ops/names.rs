//! What relations are called that the WAL knows by number.
//!
//! Two sources are put together: the catalogues that were captured with each backup, and rows of the catalogues that
//! passed through the WAL since ([`CatalogRow`]). Each bit of knowledge is filed under the place in the WAL where it was
//! had; an answer is what was known last at the place asked about, and otherwise what was learned first after it.
//!
//! Two things that happen to files are told by no row, and settled here:
//! - A rewrite (`VACUUM FULL`, `CLUSTER`, some `ALTER TABLE`) makes a relation `pg_temp_OID` and gives its file to the
//!   relation OID.
//! - `TRUNCATE`, `REINDEX` and `SET TABLESPACE` give relations new files one by one; the commit drops the old ones in
//!   the opposite order ([`Names::learn_new_files`]).
//!
//! Names are no proof: a transaction that told one may have been rolled back, and databases that no role could read are
//! missing. Whoever finds no name shows the [`path`].

mod history;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use futures_util::{StreamExt, stream};

use self::history::{Held, History};
use super::inventory::{CapturedName, CapturedNamesError};
use crate::error::Failure;
use crate::pg::Lsn;
use crate::repo::Repository;
use crate::repo::backup::{self, BackupRecord};
use crate::wal::{CatalogRow, Oid, RelFile};

/// So many items are kept, 300 bytes each: one for every relation of the largest capture, 150 MB.
const STATES: usize = 500_000;

/// Captured parts that are fetched at once.
const FETCHED: usize = 4;

/// `pg_default` and `pg_global`.
const DEFAULT: Oid = 1663;
const GLOBAL: Oid = 1664;

/// `pg_catalog` and `pg_toast`
const CATALOG: Oid = 11;
const TOAST: Oid = 99;

/// Schemas that have the same id in every database.
const FIXED_SCHEMAS: [(Oid, &str); 3] = [(CATALOG, "pg_catalog"), (TOAST, "pg_toast"), (2200, "public")];

/// A relation that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Schema and name, not quoted: `public.orders`. Without the schema where that is not known.
    pub name: String,
    /// The relation.
    pub oid: Oid,
    /// `relkind`: `r` table, `i` index, `t` TOAST table, `S` sequence, …
    pub kind: u8,
    /// For an index or a TOAST table, the table that it is part of, where that is known.
    pub owner: Option<Oid>,
    /// Whether a rewrite made what was asked about: it was `pg_temp_OID` for a while, and then of this relation.
    pub rewritten: bool,
}

/// What is known of relations, schemas and databases.
#[derive(Debug, Default)]
pub struct Names {
    databases: HashMap<Oid, History<Database>>,
    /// By database and schema.
    schemas: HashMap<(Oid, Oid), History<Box<str>>>,
    /// By database and relation; the database is zero for what all share.
    relations: HashMap<(Oid, Oid), History<State>>,
    /// Whose file it is.
    files: HashMap<RelFile, History<Oid>>,
    /// How many items the histories of schemas and relations have.
    states: usize,
    left_out: u64,
    warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Database {
    name: Box<str>,
    tablespace: Oid,
}

/// What a relation is like at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    name: Box<str>,
    schema: Oid,
    /// Its tablespace and number; none for what has no file.
    file: Option<(Oid, Oid)>,
    owner: Option<Oid>,
    kind: u8,
}

impl Names {
    /// What was captured with these backups of one cluster. Captures that are damaged are told as warnings.
    pub async fn captured(repository: &Repository, backups: &[BackupRecord]) -> Self {
        let mut names = Self::default();
        let parts = backups
            .iter()
            .filter_map(|record| Some((record, record.part(backup::RELATIONS)?)));
        let mut fetched = stream::iter(parts)
            .map(|(record, part)| async move { (record, backup::read_part(repository, record, part).await) })
            .buffered(FETCHED);
        while let Some((record, bytes)) = fetched.next().await {
            let learned = bytes.map_err(Failure::from).and_then(|bytes| {
                names.learn_captured(&bytes, record.stop_lsn)?;
                Ok(())
            });
            if let Err(error) = learned {
                let why = error.one_line();
                names.warnings.push(format!(
                    "names of relations captured with backup {} are lost: {why}",
                    record.id
                ));
            }
        }
        names
    }

    /// Captures that could not be read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many relations, or former states of them, are not known for want of room.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Adds what a captured part tells. Databases are known from `at` on.
    ///
    /// # Errors
    /// A part that is none. What it told before stays known.
    pub fn learn_captured(&mut self, part: &[u8], at: Lsn) -> Result<(), CapturedNamesError> {
        let (mut database, mut at) = (0, at);
        CapturedName::read(part, &mut |name| match name {
            CapturedName::Format(_) => {}
            CapturedName::Database { oid, name, tablespace } => self.learn_database(at, oid, name.into(), tablespace),
            CapturedName::Inside { database: inside, lsn } => (database, at) = (inside, lsn),
            CapturedName::Schema { oid, name } => self.learn_schema(at, (database, oid), name.into()),
            CapturedName::Relation {
                oid,
                schema,
                name,
                kind,
                file,
                tablespace,
                owner,
            } => {
                let tablespace = match tablespace {
                    0 => self.tablespace_of(database),
                    named => named,
                };
                let state = State {
                    name: name.into(),
                    schema,
                    file: (file != 0).then_some((tablespace, file)),
                    owner: (owner != 0).then_some(owner),
                    kind: u8::try_from(kind).unwrap_or(b'?'),
                };
                let database = if tablespace == GLOBAL { 0 } else { database };
                self.learn_relation(at, (database, oid), state);
            }
        })
    }

    /// Adds what a row of a catalogue tells that was written at some place.
    pub fn learn_row(&mut self, at: Lsn, row: &CatalogRow) {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into();
        match row {
            CatalogRow::Relation {
                oid,
                schema,
                name,
                kind,
                file,
            } => {
                let key = (file.database, *oid);
                let known = self.relations.get(&key).and_then(|history| history.at(at));
                let state = State {
                    name: text(name),
                    schema: *schema,
                    file: (file.number != 0).then_some((file.tablespace, file.number)),
                    // Of an index, its row does not tell; it never changes.
                    owner: known
                        .and_then(|state| state.owner)
                        .or_else(|| number_in(name, b"pg_toast_").filter(|_| *schema == TOAST)),
                    kind: *kind,
                };
                self.learn_relation(at, key, state);
            }
            CatalogRow::Mapped { database, oid, file } => {
                let known = self
                    .relations
                    .get(&(*database, *oid))
                    .and_then(|history| history.at(at));
                let state = known.cloned().unwrap_or_else(|| State {
                    name: format!("catalogue {oid}").into(),
                    schema: CATALOG,
                    file: None,
                    owner: None,
                    kind: b'r',
                });
                let file = Some((file.tablespace, file.number));
                self.learn_relation(at, (*database, *oid), State { file, ..state });
            }
            CatalogRow::Schema { database, oid, name } => self.learn_schema(at, (*database, *oid), text(name)),
            CatalogRow::Database { oid, name, tablespace } => self.learn_database(at, *oid, text(name), *tablespace),
        }
    }

    /// Adds what a commit tells by the files that its transaction created and those that went with it, these in the
    /// order of the record: which relations got new files. All that happened before must be known already.
    pub fn learn_new_files(&mut self, at: Lsn, created: &[RelFile], dropped: &[RelFile]) {
        // Numbers are given in ascending order, whichever subtransaction asked for them. Those that are known belong to
        // relations that were created.
        let mut new: Vec<RelFile> = created.to_vec();
        new.retain(|file| !self.files.contains_key(file));
        new.sort_by_key(|file| file.number);
        new.dedup();
        // Of a relation that was rewritten, the new file and its TOAST came with rows of their own.
        let rewritten: Vec<(Oid, Oid)> = created.iter().filter_map(|file| self.rewritten(file, at)).collect();
        let mut old: Vec<RelFile> = dropped.to_vec();
        old.reverse();
        old.retain(|file| {
            let table = self.table_without_indexes(file, at);
            !table.is_some_and(|oid| rewritten.contains(&(file.database, oid)))
        });
        if new.len() != old.len() {
            return;
        }
        for (new, old) in new.into_iter().zip(old) {
            let Some(oid) = self.owner_of(&old, at).filter(|_| old.database == new.database) else {
                continue;
            };
            let state = self
                .relations
                .get(&(old.database, oid))
                .and_then(|history| history.at(at));
            if let Some(state) = state.cloned() {
                let file = Some((new.tablespace, new.number));
                self.learn_relation(at, (old.database, oid), State { file, ..state });
            }
        }
    }

    /// What a file's relation was called at some place in the WAL.
    pub fn relation(&self, file: &RelFile, at: Lsn) -> Option<Known> {
        let oid = self.owner_of(file, at)?;
        let here = Some((file.tablespace, file.number));
        let history = self.relations.get(&(file.database, oid))?;
        let state = history.at_where(at, |state| state.file == here)?;
        Some(self.known(file.database, oid, state, at))
    }

    /// What a relation was called at some place in the WAL.
    pub fn by_oid(&self, database: Oid, oid: Oid, at: Lsn) -> Option<Known> {
        [database, 0].into_iter().find_map(|database| {
            let state = self.relations.get(&(database, oid))?.at(at)?;
            Some(self.known(database, oid, state, at))
        })
    }

    /// What a database is called by the newest knowledge.
    pub fn database(&self, oid: Oid) -> Option<&str> {
        Some(&self.databases.get(&oid)?.newest()?.name)
    }

    /// What all databases are called by the newest knowledge, in order.
    pub fn databases(&self) -> Vec<&str> {
        let newest = self.databases.values().filter_map(History::newest);
        let mut names: Vec<&str> = newest.map(|database| &*database.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether a database has or had this name.
    pub fn was_called(&self, database: Oid, name: &str) -> bool {
        let history = self.databases.get(&database);
        history.is_some_and(|history| history.iter().any(|held| *held.known.name == *name))
    }

    /// Whether some database has or had this name.
    pub fn knows_database(&self, name: &str) -> bool {
        self.databases.keys().any(|oid| self.was_called(*oid, name))
    }

    /// What kind of relation without files has or had this name: `p` partitioned table, `v` view, `f` foreign table.
    pub fn kind_without_files(&self, name: &str, database: Option<&str>) -> Option<u8> {
        let mut kinds = self.relations.iter().flat_map(|((inside, _), history)| {
            let right = database.is_none_or(|wanted| self.was_called(*inside, wanted));
            let fits = move |held: &&Held<State>| {
                right
                    && matches!(held.known.kind, b'p' | b'v' | b'f')
                    && name.ends_with(&*held.known.name)
                    && self.full_name(*inside, &held.known, held.from) == name
            };
            history.iter().filter(fits).map(|held| held.known.kind)
        });
        kinds.next()
    }

    /// All files that relations of this name (`public.orders`) ever had, of one database or of all. What was rewritten
    /// or renamed is found by its former files and names, too; indexes and TOAST tables are not.
    pub fn files_of(&self, name: &str, database: Option<&str>) -> Vec<(RelFile, Oid)> {
        let right_database = |oid: Oid| database.is_none_or(|wanted| oid == 0 || self.was_called(oid, wanted));
        let mut found = Vec::new();
        for ((database, oid), history) in &self.relations {
            let original = history.iter().find_map(|held| rewrite_of(&held.known));
            let named = original
                .and_then(|original| self.relations.get(&(*database, original)))
                .unwrap_or(history);
            let fits = |held: &Held<State>| {
                !is_part(held.known.kind)
                    // The name alone first: it is compared with every relation there is.
                    && name.ends_with(&*held.known.name)
                    && self.full_name(*database, &held.known, held.from) == name
            };
            if right_database(*database) && named.iter().any(fits) {
                let oid = original.unwrap_or(*oid);
                let files = history.iter().filter_map(|held| held.known.file);
                found.extend(files.map(|(tablespace, number)| {
                    let file = RelFile {
                        tablespace,
                        database: *database,
                        number,
                    };
                    (file, oid)
                }));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn learn_database(&mut self, at: Lsn, oid: Oid, name: Box<str>, tablespace: Oid) {
        let known = Database { name, tablespace };
        learn(&mut self.databases, oid, at, known);
    }

    fn learn_schema(&mut self, at: Lsn, key: (Oid, Oid), name: Box<str>) {
        if self.has_room() {
            self.states += learn(&mut self.schemas, key, at, name);
        }
    }

    fn learn_relation(&mut self, at: Lsn, (database, oid): (Oid, Oid), state: State) {
        if !self.has_room() {
            return;
        }
        if let Some((tablespace, number)) = state.file {
            let file = RelFile {
                tablespace,
                database,
                number,
            };
            learn(&mut self.files, file, at, oid);
        }
        self.states += learn(&mut self.relations, (database, oid), at, state);
    }

    fn has_room(&mut self) -> bool {
        let room = self.states < STATES;
        self.left_out += u64::from(!room);
        room
    }

    fn tablespace_of(&self, database: Oid) -> Oid {
        let newest = self.databases.get(&database).and_then(History::newest);
        newest.map_or(DEFAULT, |database| database.tablespace)
    }

    fn owner_of(&self, file: &RelFile, at: Lsn) -> Option<Oid> {
        self.files.get(file)?.at(at).copied()
    }

    /// The relation that a file was made for by a rewrite.
    fn rewritten(&self, file: &RelFile, at: Lsn) -> Option<(Oid, Oid)> {
        let oid = self.owner_of(file, at)?;
        let state = self.relations.get(&(file.database, oid))?.at(at)?;
        Some((file.database, rewrite_of(state)?))
    }

    /// The table whose rows, TOAST included, a file holds or held.
    fn table_without_indexes(&self, file: &RelFile, at: Lsn) -> Option<Oid> {
        let oid = self.owner_of(file, at)?;
        let state = self.relations.get(&(file.database, oid))?.at(at)?;
        match state.schema {
            TOAST => self.table_of(file.database, state, at),
            _ => rewrite_of(state).or(Some(oid)),
        }
    }

    fn known(&self, database: Oid, oid: Oid, state: &State, at: Lsn) -> Known {
        let original = rewrite_of(state);
        let known = original.and_then(|oid| Some((oid, self.relations.get(&(database, oid))?.at(at)?)));
        let (oid, state) = known.unwrap_or((oid, state));
        Known {
            name: self.full_name(database, state, at),
            oid,
            kind: state.kind,
            owner: self.table_of(database, state, at),
            rewritten: original.is_some(),
        }
    }

    /// The table that an index or a TOAST table is part of: an index of a TOAST table belongs to that one's table.
    fn table_of(&self, database: Oid, state: &State, at: Lsn) -> Option<Oid> {
        let mut owner = state.owner.filter(|_| is_part(state.kind))?;
        // Index, TOAST table, the relation that a rewrite made, table.
        for _ in 0..3 {
            let Some(state) = self
                .relations
                .get(&(database, owner))
                .and_then(|history| history.at(at))
            else {
                break;
            };
            let next = match state.owner.filter(|_| is_part(state.kind)) {
                Some(next) => Some(next),
                None => rewrite_of(state),
            };
            match next {
                Some(next) => owner = next,
                None => break,
            }
        }
        Some(owner)
    }

    fn full_name(&self, database: Oid, state: &State, at: Lsn) -> String {
        let fixed = || {
            FIXED_SCHEMAS
                .iter()
                .find(|(oid, _)| *oid == state.schema)
                .map(|(_, name)| *name)
        };
        let schema = self
            .schemas
            .get(&(database, state.schema))
            .and_then(|history| history.at(at));
        match schema.map(|name| &**name).or_else(fixed) {
            Some(schema) => format!("{schema}.{}", state.name),
            None => state.name.to_string(),
        }
    }
}

/// Where a relation's file lies below the data directory. In another tablespace the folder of the server's version is
/// left out.
pub fn path(file: &RelFile) -> String {
    let RelFile {
        tablespace,
        database,
        number,
    } = file;
    match *tablespace {
        GLOBAL => format!("global/{number}"),
        DEFAULT => format!("base/{database}/{number}"),
        _ => format!("pg_tblspc/{tablespace}/{database}/{number}"),
    }
}

/// Whether relations of this kind are part of another: indexes, TOAST tables.
const fn is_part(kind: u8) -> bool {
    matches!(kind, b'i' | b'I' | b't')
}

/// The relation that a rewrite made this one for.
fn rewrite_of(state: &State) -> Option<Oid> {
    number_in(state.name.as_bytes(), b"pg_temp_")
}

/// The number between a prefix and the end, or the `_index` behind it.
fn number_in(name: &[u8], prefix: &[u8]) -> Option<Oid> {
    let rest = name.strip_prefix(prefix)?;
    let digits = rest.strip_suffix(b"_index").unwrap_or(rest);
    let plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

/// Files knowledge under a key. Answers how many more items that takes.
fn learn<K: Eq + Hash, T: PartialEq + Clone>(all: &mut HashMap<K, History<T>>, key: K, at: Lsn, known: T) -> usize {
    match all.entry(key) {
        Entry::Occupied(mut entry) => entry.get_mut().learn(at, known),
        Entry::Vacant(entry) => {
            entry.insert(History::new(at, known));
            1
        }
    }
}
