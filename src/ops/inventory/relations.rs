//! What every database's relations are called and which files are theirs: the part `relations.jsonl.zst` of a backup.
//!
//! The WAL knows relations by the numbers of their files alone. `find` learns their names here, and from what the WAL
//! itself tells of relations made later ([`crate::wal::CatalogRow`]).
//!
//! Rows go from the server through the compressor one by one, so that half a million of them cost memory for their
//! compressed form only.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::ask::{self, Budget, Trouble, Warnings};
use crate::pg::Lsn;
use crate::replication::SqlSession;
use crate::wal::Oid;

const FORMAT: u32 = 1;

/// Relations of all databases together: some 40 MiB of rows, a tenth of that compressed.
const RELATIONS: usize = 500_000;

/// Bytes of rows as the server sends them: those of [`RELATIONS`] with names of usual length.
const BYTES: usize = 96 << 20;

/// Rows are alike: more would save little and cost much.
const LEVEL: i32 = 3;

/// No line is longer: a name has 63 bytes, each of which JSON writes in six at most.
const LINE: u64 = 4096;

/// One line of `relations.jsonl.zst`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CapturedName {
    /// The first line: the version of this layout.
    Format(u32),
    /// A database. All come before the first [`Self::Inside`].
    Database {
        /// The database.
        oid: Oid,
        /// Its name.
        name: String,
        /// Where relations are that name no tablespace.
        tablespace: Oid,
    },
    /// The lines that follow are of this database.
    Inside {
        /// The database.
        database: Oid,
        /// Where the WAL ended just before they were read.
        lsn: Lsn,
    },
    /// A schema.
    Schema {
        /// The schema.
        oid: Oid,
        /// Its name.
        name: String,
    },
    /// A relation of any kind, save temporary ones.
    Relation {
        /// The relation.
        oid: Oid,
        /// The schema that it is in.
        schema: Oid,
        /// Its name.
        name: String,
        /// `relkind`, one letter.
        kind: char,
        /// The number of its file; zero where it has none.
        file: Oid,
        /// Its tablespace; zero: the database's.
        tablespace: Oid,
        /// The table that an index or a TOAST table belongs to; otherwise zero.
        owner: Oid,
    },
}

/// A captured part that can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CapturedNamesError {
    /// Of a format of a later version.
    #[error("the captured names of relations have format {found}, this version reads up to {FORMAT}")]
    NewerFormat {
        /// Its format.
        found: u32,
    },
    /// Not what it should be.
    #[error("the captured names of relations can't be read")]
    Damaged {
        /// Why not.
        source: io::Error,
    },
}

impl crate::error::Explain for CapturedNamesError {
    fn class(&self) -> crate::error::Class {
        crate::error::Class::Damaged
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NewerFormat { .. } => {
                Some("use the version of pgp-pitr that took the backup, or a later one".to_owned())
            }
            Self::Damaged { .. } => None,
        }
    }
}

impl CapturedName {
    /// Hands out the lines of a part, all but the first.
    ///
    /// # Errors
    /// A part of another format, or none at all. Lines handed out before stay true.
    pub fn read(part: &[u8], each: &mut dyn FnMut(Self)) -> Result<(), CapturedNamesError> {
        let damaged = |source| CapturedNamesError::Damaged { source };
        let unpacked = zstd::stream::read::Decoder::with_buffer(part).map_err(damaged)?;
        let mut lines = BufReader::new(unpacked);
        let mut line = Vec::new();
        let mut first = true;
        loop {
            line.clear();
            let read = (&mut lines).take(LINE).read_until(b'\n', &mut line).map_err(damaged)?;
            if read == 0 && !first {
                return Ok(());
            }
            let name = serde_json::from_slice(&line).map_err(|error| damaged(error.into()))?;
            match (first, name) {
                (true, Self::Format(1..=FORMAT)) => {}
                (true, Self::Format(found)) => return Err(CapturedNamesError::NewerFormat { found }),
                (true, _) => return Err(damaged(io::Error::other("its first line tells no format"))),
                (false, name) => each(name),
            }
            first = false;
        }
    }
}

/// For the whole cluster, whichever database is asked.
const DATABASES: &str = "
SELECT json_build_object('database', json_build_object(
           'oid', oid::bigint, 'name', datname, 'tablespace', dattablespace::bigint))::text
  FROM pg_database
 WHERE datconnlimit <> -2 -- left behind by a DROP DATABASE that failed
 ORDER BY oid";

const INSIDE: &str = "
SELECT json_build_object('inside', json_build_object(
           'database', oid::bigint,
           'lsn', coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                ELSE pg_current_wal_insert_lsn() END, '0/0')))::text
  FROM pg_database
 WHERE datname = current_database()";

const SCHEMAS: &str = "
SELECT json_build_object('schema', json_build_object('oid', oid::bigint, 'name', nspname))::text FROM pg_namespace";

fn relations_query(limit: usize) -> String {
    format!(
        "
SELECT json_build_object('relation', json_build_object(
           'oid', c.oid::bigint, 'schema', c.relnamespace::bigint, 'name', c.relname, 'kind', c.relkind,
           'file', coalesce(pg_relation_filenode(c.oid)::bigint, 0), 'tablespace', c.reltablespace::bigint,
           'owner', coalesce(i.indrelid, t.oid, 0)::bigint))::text
  FROM pg_class c
  LEFT JOIN pg_index i ON i.indexrelid = c.oid
  LEFT JOIN pg_class t ON c.relkind = 't' AND t.reltoastrelid = c.oid
 WHERE c.relpersistence <> 't'
 LIMIT {limit}"
    )
}

/// The part on its way in.
pub(super) struct Capture {
    lines: zstd::stream::write::Encoder<'static, Vec<u8>>,
    budget: Budget,
    /// How many more relations there is room for.
    room: usize,
    /// Whether it was said that there is no more room, or time.
    cut: bool,
}

impl Capture {
    /// `None`: zstd has no memory.
    pub(super) fn new(until: Instant) -> Option<Self> {
        let mut lines = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).ok()?;
        lines.include_checksum(true).ok()?;
        let mut capture = Self {
            lines,
            budget: Budget::new(BYTES, until),
            room: RELATIONS,
            cut: false,
        };
        capture.write(&CapturedName::Format(FORMAT)).ok()?;
        Some(capture)
    }

    /// Captures which databases there are, from a session in any of them.
    pub(super) async fn databases(&mut self, session: &SqlSession, warnings: &mut Warnings) {
        let trouble = self.rows(session, DATABASES).await.err();
        warnings.add_trouble("names of databases are missing for `pgp-pitr find`", trouble);
    }

    /// Captures what is in the session's database.
    pub(super) async fn inside(&mut self, session: &SqlSession, database: &str, warnings: &mut Warnings) {
        if self.cut {
            return;
        }
        let mut trouble = self.rows(session, INSIDE).await.err();
        if trouble.is_none() {
            trouble = self.rows(session, SCHEMAS).await.err();
        }
        if trouble.is_none() {
            trouble = match self.rows(session, &relations_query(self.room + 1)).await {
                Ok(rows) if rows > self.room => Some(Trouble::Full),
                Ok(rows) => {
                    self.room -= rows;
                    None
                }
                Err(trouble) => Some(trouble),
            };
        }
        let Some(trouble) = trouble else { return };
        self.cut = matches!(trouble, Trouble::Full | Trouble::Late);
        let and_others = if self.cut { " and those after it" } else { "" };
        warnings.add(format!(
            "names of relations of database \"{database}\"{and_others} may be missing for `pgp-pitr find`: {trouble}"
        ));
    }

    /// Whether no more will be taken.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The part's content.
    pub(super) fn finish(self) -> Option<Bytes> {
        self.lines.finish().ok().map(Bytes::from)
    }

    /// How many rows were taken.
    async fn rows(&mut self, session: &SqlSession, sql: &str) -> Result<usize, Trouble> {
        let mut count = 0;
        let lines = &mut self.lines;
        ask::each_row(session, sql, &mut self.budget, &mut |name: CapturedName| {
            count += 1;
            write_line(lines, &name)
        })
        .await?;
        Ok(count)
    }

    fn write(&mut self, name: &CapturedName) -> Result<(), Trouble> {
        write_line(&mut self.lines, name)
    }
}

fn write_line(out: &mut impl Write, name: &CapturedName) -> Result<(), Trouble> {
    serde_json::to_writer(&mut *out, name)?;
    out.write_all(b"\n").map_err(serde_json::Error::io)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(lines: &str) -> Vec<u8> {
        zstd::bulk::compress(lines.as_bytes(), LEVEL).unwrap()
    }

    fn read(part: &[u8]) -> Result<Vec<CapturedName>, CapturedNamesError> {
        let mut names = Vec::new();
        CapturedName::read(part, &mut |name| names.push(name)).map(|()| names)
    }

    #[test]
    fn what_was_captured_can_be_read() {
        let names = [
            CapturedName::Database {
                oid: 16384,
                name: "it's \"ödd\"\n".to_owned(),
                tablespace: 1663,
            },
            CapturedName::Inside {
                database: 16384,
                lsn: Lsn::new(0x200_0028),
            },
            CapturedName::Schema {
                oid: 2200,
                name: "public".to_owned(),
            },
            CapturedName::Relation {
                oid: 16402,
                schema: 2200,
                name: "\u{1}".repeat(63),
                kind: 'r',
                file: u32::MAX,
                tablespace: 0,
                owner: 0,
            },
        ];
        let mut capture = Capture::new(Instant::now()).unwrap();
        for name in &names {
            capture.write(name).unwrap();
        }
        assert_eq!(read(&capture.finish().unwrap()).unwrap(), names);
    }

    #[test]
    fn the_lines_are_as_documented() {
        let lines = concat!(
            "{\"format\":1}\n",
            "{\"database\":{\"oid\":5,\"name\":\"postgres\",\"tablespace\":1663}}\n",
            "{\"inside\":{\"database\":5,\"lsn\":\"0/3000028\"}}\n",
            "{\"schema\":{\"oid\":2200,\"name\":\"public\"}}\n",
            "{\"relation\":{\"oid\":16402,\"schema\":2200,\"name\":\"orders\",\"kind\":\"r\",\"file\":16402,",
            "\"tablespace\":0,\"owner\":0}}\n"
        );
        let mut written = Vec::new();
        write_line(&mut written, &CapturedName::Format(FORMAT)).unwrap();
        for name in read(&packed(lines)).unwrap() {
            write_line(&mut written, &name).unwrap();
        }
        assert_eq!(String::from_utf8(written).unwrap(), lines);
    }

    #[test]
    fn what_is_no_such_part_is_refused() {
        assert!(matches!(
            read(&packed("{\"format\":2}\n")),
            Err(CapturedNamesError::NewerFormat { found: 2 })
        ));
        let long = format!(
            "{{\"format\":1}}\n{{\"schema\":{{\"oid\":1,\"name\":\"{}\"}}}}\n",
            "a".repeat(5000)
        );
        for lines in [
            "",
            "\n",
            "{}\n",
            "{\"schema\":{\"oid\":1,\"name\":\"a\"}}\n",
            "{\"format\":1}\n7",
            long.as_str(),
        ] {
            assert!(
                matches!(read(&packed(lines)), Err(CapturedNamesError::Damaged { .. })),
                "{lines}"
            );
        }
        assert!(read(b"not compressed").is_err());
        let whole = packed("{\"format\":1}\n{\"schema\":{\"oid\":1,\"name\":\"a\"}}\n");
        assert!(read(&whole[..whole.len() - 2]).is_err(), "it is cut off");
    }
}
