//! `tablespace_map`: which links a server in recovery makes in `pg_tblspc`, and where to.
//!
//! One line for each tablespace, `OID PATH`; line breaks in a path stand behind a backslash, from 14 on backslashes
//! too. Paths are bytes, not UTF-8.

use super::MajorVersion;
use crate::error::{Class, Explain};

/// One tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    /// The tablespace's OID: the link's name.
    pub oid: u32,
    /// Where it points to, on the machine that was backed up.
    pub path: Vec<u8>,
}

/// The tablespaces of a base backup, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// One for each line.
    pub links: Vec<TablespaceLink>,
}

impl TablespaceMap {
    /// Reads the file of a server of this major. A line that is no line of it is an error, and so is a last line without its end: a tablespace
    /// that was forgotten would be lost.
    pub fn parse(bytes: &[u8], major: MajorVersion) -> Result<Self, TablespaceMapError> {
        let mut links: Vec<TablespaceLink> = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let number = links.len() + 1;
            let (line, after) = take_line(rest, major).ok_or(TablespaceMapError::Unfinished { number })?;
            rest = after;
            let link = parse_line(&line).ok_or_else(|| TablespaceMapError::Line {
                number,
                line: String::from_utf8_lossy(&line).into_owned(),
            })?;
            if links.iter().any(|other| other.oid == link.oid) {
                return Err(TablespaceMapError::Twice { oid: link.oid });
            }
            links.push(link);
        }
        Ok(Self { links })
    }

    /// The file, as a server of this major would write it.
    pub fn to_bytes(&self, major: MajorVersion) -> Vec<u8> {
        let mut bytes = Vec::new();
        for link in &self.links {
            bytes.extend_from_slice(link.oid.to_string().as_bytes());
            bytes.push(b' ');
            for &byte in &link.path {
                if is_escaped(byte, major) {
                    bytes.push(b'\\');
                }
                bytes.push(byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }
}

const fn is_escaped(byte: u8, major: MajorVersion) -> bool {
    match byte {
        b'\n' | b'\r' => true,
        b'\\' => major.escapes_backslashes_in_tablespace_map(),
        _ => false,
    }
}

/// The first line without its escapes, and what follows its end.
fn take_line(bytes: &[u8], major: MajorVersion) -> Option<(Vec<u8>, &[u8])> {
    let mut line = Vec::new();
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'\\' => {
                let &next = rest.as_slice().first()?;
                // 14 and newer take the backslash away from whatever follows it.
                if is_escaped(b'\\', major) || is_escaped(next, major) {
                    line.push(next);
                    rest.next();
                } else {
                    line.push(byte);
                }
            }
            b'\n' | b'\r' => return Some((line, rest.as_slice())),
            byte => line.push(byte),
        }
    }
    None
}

fn parse_line(line: &[u8]) -> Option<TablespaceLink> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let (oid, path) = (line.get(..space)?, line.get(space + 1..)?);
    let oid = std::str::from_utf8(oid)
        .ok()
        .filter(|_| oid.iter().all(u8::is_ascii_digit))?;
    // Zero is InvalidOid, and a link to nowhere is none.
    let oid = oid.parse().ok().filter(|&oid| oid != 0)?;
    (!path.is_empty() && !path.contains(&0)).then(|| TablespaceLink {
        oid,
        path: path.to_vec(),
    })
}

/// Why a `tablespace_map` can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TablespaceMapError {
    /// Not `OID PATH`.
    #[error("line {number} of tablespace_map is damaged: \"{line}\"")]
    Line {
        /// Which line, from 1.
        number: usize,
        /// What stands there.
        line: String,
    },
    /// The file ends within a line.
    #[error("tablespace_map ends within its line {number}")]
    Unfinished {
        /// Which line, from 1.
        number: usize,
    },
    /// Two lines for one tablespace.
    #[error("tablespace_map tells of tablespace {oid} twice")]
    Twice {
        /// Which tablespace.
        oid: u32,
    },
}

impl Explain for TablespaceMapError {
    fn class(&self) -> Class {
        Class::Damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::golden;
    use proptest::prelude::*;

    #[test]
    fn a_servers_file_is_read_and_prints_alike() {
        for major in golden::MAJORS {
            let bytes = golden::read(major, "tablespace_map");
            let map = TablespaceMap::parse(&bytes, MajorVersion::new(major).unwrap()).unwrap();
            assert_eq!(map.to_bytes(MajorVersion::new(major).unwrap()), bytes, "{major}");
            let [plain, odd] = map.links.as_slice() else {
                panic!("{map:?}");
            };
            assert!(plain.path.ends_with(b"/plain"), "{plain:?}");
            assert!(odd.path.ends_with(b"/odd \nnew\\line"), "{odd:?}");
            assert!(plain.oid < odd.oid);
        }
    }

    fn parse(bytes: &[u8]) -> Result<TablespaceMap, TablespaceMapError> {
        TablespaceMap::parse(bytes, MajorVersion::NEWEST_KNOWN)
    }

    #[test]
    fn a_damaged_file_is_refused() {
        use TablespaceMapError as E;
        for text in [
            "x /a\n",
            "1\n",
            "1 \n",
            "-1 /a\n",
            "0 /a\n",
            "4294967296 /a\n",
            "1 /a\0\n",
            "\n",
            " /a\n",
        ] {
            assert!(matches!(parse(text.as_bytes()), Err(E::Line { .. })), "{text:?}");
        }
        for text in ["1 /a", "1 /a\\\n", "1 /a\n2", "1 /a\\"] {
            assert!(matches!(parse(text.as_bytes()), Err(E::Unfinished { .. })), "{text:?}");
        }
        assert_eq!(parse(b"1 /a\n1 /b\n"), Err(E::Twice { oid: 1 }));
        assert_eq!(parse(b""), Ok(TablespaceMap::default()));
    }

    proptest! {
        #[test]
        fn every_map_survives_printing(paths in prop::collection::btree_map(1u32.., prop::collection::vec(1u8.., 1..20), 0..5)) {
            let links = paths.into_iter().map(|(oid, path)| TablespaceLink { oid, path }).collect();
            let map = TablespaceMap { links };
            prop_assert_eq!(parse(&map.to_bytes(MajorVersion::NEWEST_KNOWN)), Ok(map));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, text in "[0-9a/ \\\\\n]{0,30}") {
            let _ = parse(&bytes);
            let _ = TablespaceMap::parse(&bytes, MajorVersion::OLDEST);
            let _ = parse(text.as_bytes());
        }
    }
}
