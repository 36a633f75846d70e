//! Which other files a configuration file names. Pure; reads what PostgreSQL reads, and passes over
//! what it does not understand: the file itself is captured all the same.

use std::path::{Component, Path, PathBuf};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `postgresql.conf`: `name = 'value'`.
    Settings,
    /// `pg_hba.conf`, `pg_ident.conf`: words, some in double quotes.
    Lines,
}

/// What a file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Included {
    /// A file in the same syntax. `needed`: the server complains where it is missing.
    File { path: PathBuf, needed: bool },
    /// All files of a folder whose names end in `.conf`.
    Folder(PathBuf),
    /// A list of names (`@FILE` in a field of `pg_hba.conf`).
    Names(PathBuf),
}

/// The files that the file at `path` names, in order.
pub(super) fn included(syntax: Syntax, path: &Path, text: &str) -> Vec<Included> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let at = |name: &str| plain_path(&folder.join(name));
    let mut found = Vec::new();
    for line in text.lines() {
        let words = match syntax {
            Syntax::Settings => setting(line),
            Syntax::Lines => words(line),
        };
        let directive = words.first().map(|word| word.to_ascii_lowercase());
        match (directive.as_deref(), words.get(1)) {
            (Some("include"), Some(name)) => found.push(Included::File {
                path: at(name),
                needed: true,
            }),
            (Some("include_if_exists"), Some(name)) => found.push(Included::File {
                path: at(name),
                needed: false,
            }),
            (Some("include_dir"), Some(name)) => found.push(Included::Folder(at(name))),
            _ if syntax == Syntax::Lines => {
                let names = words.iter().flat_map(|word| word.split(','));
                found.extend(names.filter_map(|name| Some(Included::Names(at(name.strip_prefix('@')?)))));
            }
            _ => {}
        }
    }
    found
}

/// A path without `.` and `..`, by its text alone, as the server does it.
pub(super) fn plain_path(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            component => plain.push(component),
        }
    }
    plain
}

/// The name and the value of a setting's line.
fn setting(line: &str) -> Vec<String> {
    let line = line.trim_start();
    let end = line
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted),
        None => rest
            .split(|c: char| c.is_whitespace() || c == '#')
            .next()
            .unwrap_or_default()
            .to_owned(),
    };
    match (name, value.as_str()) {
        ("", _) | (_, "") => Vec::new(),
        _ => vec![name.to_owned(), value],
    }
}

/// A value up to its closing quote; a doubled quote or one behind a backslash is one of its own.
fn unquoted(text: &str) -> String {
    let mut value = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' if rest.peek() == Some(&'\'') => value.extend(rest.next()),
            '\'' => break,
            '\\' => value.extend(rest.next()),
            c => value.push(c),
        }
    }
    value
}

/// The words of a line, double quotes taken off.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, needed: bool) -> Included {
        Included::File {
            path: path.into(),
            needed,
        }
    }

    #[test]
    fn settings_files_are_followed_as_the_server_follows_them() {
        let text = "# include 'no'\ninclude 'a.conf'\n  INCLUDE = b.conf # why\ninclude_if_exists='/x/it''s.conf'\n\
                    include_dir '../conf.d'\nwork_mem = '1MB'\ninclude_dir\n";
        let found = included(Syntax::Settings, Path::new("/etc/pg/main/postgresql.conf"), text);
        assert_eq!(
            found,
            [
                file("/etc/pg/main/a.conf", true),
                file("/etc/pg/main/b.conf", true),
                file("/x/it's.conf", false),
                Included::Folder("/etc/pg/conf.d".into()),
            ]
        );
    }

    #[test]
    fn access_files_name_files_of_rules_and_files_of_names() {
        let text = "local all @admins,bob trust\nhost \"@two words\" all 127.0.0.1/32 trust # @no\n\
                    include \"more rules.conf\"\ninclude_dir d\n";
        let found = included(Syntax::Lines, Path::new("/etc/pg_hba.conf"), text);
        assert_eq!(
            found,
            [
                Included::Names("/etc/admins".into()),
                Included::Names("/etc/two words".into()),
                file("/etc/more rules.conf", true),
                Included::Folder("/etc/d".into()),
            ]
        );
    }

    #[test]
    fn a_path_becomes_plain_without_asking_the_disk() {
        assert_eq!(plain_path(Path::new("/a/./b/../../../c//d")), Path::new("/c/d"));
    }
}
