//! Captures configuration files that are not in a base backup, because they live outside the data
//! directory: Debian keeps all of them in `/etc`, operators in mounted volumes.
//!
//! The server reads the files for us (`pg_read_binary_file`), so this works from another machine. It
//! begins with the three files that settings name, adds those that the server's views tell of, and
//! follows what the files themselves include.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use tokio::time::timeout_at;

use super::ask::{self, Budget, Text, Trouble, Warnings};
use super::includes::{Included, Syntax, included, plain_path};
use super::settings::{CapturedFile, CapturedSettings, FileContent, SettingKind, UnreadableFile};
use crate::replication::SqlSession;

/// Files that are looked at: a cluster has a handful, and a folder that includes itself has no end.
const FILES: usize = 200;

/// Bytes of one file. The largest known are lists of access rules, some thousands of lines.
const FILE_LIMIT: usize = 1 << 20;

const PLACES: &str = "
SELECT json_object_agg(name, setting)::text
  FROM pg_settings
 WHERE name IN ('data_directory', 'config_file', 'hba_file', 'ident_file', 'server_version_num')";

/// Files that the server has read settings from: those in force, and all that are written down.
const SETTINGS_FILES: [&str; 2] = [
    "SELECT DISTINCT to_json(sourcefile)::text FROM pg_settings WHERE sourcefile IS NOT NULL",
    "SELECT DISTINCT to_json(sourcefile)::text FROM pg_file_settings WHERE sourcefile IS NOT NULL",
];

/// Files that the server has read access rules from. Before 16 these include no others.
const ACCESS_FILES: [&str; 2] = [
    "SELECT DISTINCT to_json(file_name)::text FROM pg_hba_file_rules WHERE file_name IS NOT NULL",
    "SELECT DISTINCT to_json(file_name)::text FROM pg_ident_file_mappings WHERE file_name IS NOT NULL",
];
const ACCESS_FILES_SINCE: u32 = 160_000;

/// With missing files as null.
const CONTENT: &str = "SELECT pg_read_binary_file($1, 0, $2, true)";

/// The files of a folder that the server would include, in its order.
const FOLDER: &str = "
SELECT name FROM pg_ls_dir($1, true, false) name
 WHERE name LIKE '%.conf' AND name NOT LIKE '.%' ORDER BY name COLLATE \"C\"";

/// A file to be looked at.
struct Candidate {
    path: PathBuf,
    setting: SettingKind,
    /// How to find what it includes, if it can.
    syntax: Option<Syntax>,
    /// Whether it is a fault that it isn't there.
    needed: bool,
}

/// Files on their way in.
struct Capture<'a> {
    session: &'a SqlSession,
    data_directory: PathBuf,
    waiting: VecDeque<Candidate>,
    seen: BTreeSet<PathBuf>,
    files: Vec<CapturedFile>,
    unreadable: Vec<UnreadableFile>,
}

/// Captures what the role may read. `None` where nothing lies outside, or nothing is known of it.
pub(super) async fn capture(
    session: &SqlSession,
    role: &str,
    budget: &mut Budget,
    warnings: &mut Warnings,
) -> Option<CapturedSettings> {
    let places: BTreeMap<String, Option<String>> = match ask::row(session, PLACES, budget).await {
        Ok(places) => places,
        Err(trouble) => {
            warnings.add_trouble(
                "configuration files outside the data directory are not captured",
                Some(trouble),
            );
            return None;
        }
    };
    let place = |name: &str| places.get(name).cloned().flatten().filter(|path| !path.is_empty());
    let (Some(data_directory), Some(_)) = (place("data_directory"), place("config_file")) else {
        warnings.add(format!(
            "configuration files outside the data directory, if there are any, are not captured: role \"{role}\" may \
             not see where they are; grant it pg_read_all_settings and pg_read_server_files, and EXECUTE on \
             pg_read_binary_file(text, bigint, bigint, boolean) and pg_ls_dir(text, boolean, boolean)"
        ));
        return None;
    };
    let mut capture = Capture {
        session,
        data_directory: plain_path(Path::new(&data_directory)),
        waiting: VecDeque::new(),
        seen: BTreeSet::new(),
        files: Vec::new(),
        unreadable: Vec::new(),
    };
    for (name, setting, syntax) in [
        ("config_file", SettingKind::ConfigFile, Syntax::Settings),
        ("hba_file", SettingKind::HbaFile, Syntax::Lines),
        ("ident_file", SettingKind::IdentFile, Syntax::Lines),
    ] {
        if let Some(path) = place(name) {
            capture.wait_for(Path::new(&path), setting, Some(syntax), true);
        }
    }
    let version = place("server_version_num")
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    capture.ask_views(version, budget).await;
    capture.follow(budget, warnings).await;
    capture.finish(warnings)
}

impl Capture<'_> {
    fn wait_for(&mut self, path: &Path, setting: SettingKind, syntax: Option<Syntax>, needed: bool) {
        let path = plain_path(path);
        if self.seen.insert(path.clone()) {
            self.waiting.push_back(Candidate {
                path,
                setting,
                syntax,
                needed,
            });
        }
    }

    /// The files that the server tells of. What a role may not ask is no loss: the files themselves
    /// say the same.
    async fn ask_views(&mut self, version: u32, budget: &mut Budget) {
        let access = ACCESS_FILES.iter().filter(|_| version >= ACCESS_FILES_SINCE);
        let views = SETTINGS_FILES.iter().map(|sql| (sql, Syntax::Settings));
        for (sql, syntax) in views.chain(access.map(|sql| (sql, Syntax::Lines))) {
            for path in ask::rows::<String>(self.session, sql, budget).await.0 {
                self.wait_for(Path::new(&path), SettingKind::Include, Some(syntax), true);
            }
        }
    }

    /// Reads the files that wait, and those that they name, and so on.
    async fn follow(&mut self, budget: &mut Budget, warnings: &mut Warnings) {
        let mut looked_at = 0;
        while let Some(candidate) = self.waiting.pop_front() {
            looked_at += 1;
            if looked_at > FILES {
                warnings.add(format!(
                    "more than {FILES} configuration files: those after the first {FILES} are not captured"
                ));
                return;
            }
            let content = self.read(&candidate.path, budget).await;
            if let (Ok(Some(content)), Some(syntax)) = (&content, candidate.syntax) {
                let text = String::from_utf8_lossy(content);
                for found in included(syntax, &candidate.path, &text) {
                    self.wait_for_included(found, syntax, budget).await;
                }
            }
            // What lies inside is in the backup already.
            if !candidate.path.starts_with(&self.data_directory) {
                self.keep(candidate, content);
            }
        }
    }

    async fn wait_for_included(&mut self, found: Included, syntax: Syntax, budget: &mut Budget) {
        match found {
            Included::File { path, needed } => self.wait_for(&path, SettingKind::Include, Some(syntax), needed),
            Included::Names(path) => self.wait_for(&path, SettingKind::Include, None, true),
            Included::Folder(folder) => match self.files_of(&folder, budget).await {
                Ok(files) => {
                    for file in files {
                        self.wait_for(&file, SettingKind::Include, Some(syntax), true);
                    }
                }
                Err(trouble) => self.unreadable(&folder, trouble.to_string()),
            },
        }
    }

    fn keep(&mut self, candidate: Candidate, content: Result<Option<Vec<u8>>, Trouble>) {
        match content {
            Ok(Some(bytes)) if bytes.len() > FILE_LIMIT => {
                self.unreadable(&candidate.path, format!("it is larger than {FILE_LIMIT} bytes"));
            }
            Ok(Some(bytes)) => self.files.push(CapturedFile {
                path: candidate.path.to_string_lossy().into_owned(),
                setting: candidate.setting,
                content: FileContent::new(bytes),
            }),
            Ok(None) if candidate.needed => self.unreadable(&candidate.path, "it is not there".to_owned()),
            Ok(None) => {}
            Err(trouble) => self.unreadable(&candidate.path, trouble.to_string()),
        }
    }

    fn unreadable(&mut self, path: &Path, why: String) {
        self.unreadable.push(UnreadableFile {
            path: path.to_string_lossy().into_owned(),
            why,
        });
    }

    /// A file's bytes, one more than the limit at most; `None` where there is no such file.
    async fn read(&self, path: &Path, budget: &mut Budget) -> Result<Option<Vec<u8>>, Trouble> {
        let (path, limit) = (path.to_string_lossy(), FILE_LIMIT as i64 + 1);
        let row = timeout_at(budget.until(), self.session.query_one(CONTENT, &[&path, &limit])).await;
        let content: Option<Vec<u8>> = row.map_err(|_| Trouble::Late)??.try_get(0)?;
        budget.take(content.as_ref().map_or(0, Vec::len))?;
        Ok(content)
    }

    async fn files_of(&self, folder: &Path, budget: &mut Budget) -> Result<Vec<PathBuf>, Trouble> {
        let path = folder.to_string_lossy();
        let rows = timeout_at(budget.until(), self.session.query(FOLDER, &[&path])).await;
        let rows = rows.map_err(|_| Trouble::Late)??;
        // More are never looked at.
        rows.iter()
            .take(FILES)
            .map(|row| Ok(folder.join(row.try_get::<_, Text>(0)?.0)))
            .collect()
    }

    fn finish(self, warnings: &mut Warnings) -> Option<CapturedSettings> {
        if let Some(first) = self.unreadable.first() {
            let more = match self.unreadable.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            warnings.add(format!(
                "{}, outside the data directory, is not captured{more}: {}",
                first.path, first.why
            ));
        }
        match (self.files.is_empty(), self.unreadable.is_empty()) {
            (true, true) => None,
            _ => Some(CapturedSettings::new(self.files, self.unreadable)),
        }
    }
}
