//! `pgp-pitr check`: what was found, line by line as it is found, and where each setting came from.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::args::CheckArgs;
use super::pitr::Session;
use super::report::{self, AnswerError};
use super::run::block_on;
use super::settings::{KEYS, Origin, Settings};
use crate::error::Failure;
use crate::ops::check::{self, Check, Request, Status};
use crate::pg::conninfo::{self, ConnInfo, Endpoint, Host, Server};
use crate::pg::settings::{SettingsError, Word, quoted, server_command};
use crate::replication::SlotName;
use crate::store::{self, RepoUrl};

/// As wide as most names of checks.
const NAME_WIDTH: usize = 22;

/// What stands in the place of a secret.
const HIDDEN: &str = "***";

/// One line of the settings in use.
#[derive(Debug, Serialize)]
struct SettingRow {
    name: String,
    value: String,
    origin: String,
}

impl Session {
    pub(super) fn check(&self, args: &CheckArgs) -> Result<(), Failure> {
        let settings = &self.settings;
        let url = settings.repo()?;
        let server = self.server()?;
        let s3 = settings.s3();
        let is_bucket = url.folder().is_none();
        let request = Request {
            plain_http: s3.plain_http_endpoint().filter(|_| is_bucket).map(str::to_owned),
            key_only_in_environment: is_bucket && settings.s3_key_only_in_environment(),
            slot: settings.read("slot", SlotName::new)?,
            wal_timeout: match settings.text("wal_timeout") {
                // The default there is a backup's.
                None | Some((_, Origin::Default)) => check::WAL_TIMEOUT,
                Some(_) => settings
                    .read("wal_timeout", humantime::parse_duration)?
                    .unwrap_or(check::WAL_TIMEOUT),
            },
            archive_command: archive_command(&url, settings.file())?,
            server,
        };
        let store = store::open(&url, &s3, &self.env);
        let mut told = Ok(());
        let tell = |check: &Check| {
            if !args.json && told.is_ok() {
                told = report::answer(&line(check));
            }
        };
        let found = block_on(async { Ok(check::check(&request, store, &self.env, tell).await) })?;
        told?;
        let rows = setting_rows(settings, &request.server, is_bucket);
        match args.json {
            true => report::answer(&format!(
                "{}\n",
                json!({"ok": found.is_fit(), "checks": found.checks, "settings": rows})
            ))?,
            false => tell_rest(&found, &rows)?,
        }
        found.verdict()
    }
}

/// The value of `archive_command`, quoted for `postgresql.conf`, that brings WAL into this repository. The
/// program is the one that was installed beside this one.
fn archive_command(url: &RepoUrl, settings: Option<&Path>) -> Result<String, SettingsError> {
    let program = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name("pgp-archive"))
        .unwrap_or_else(|| PathBuf::from("pgp-archive"));
    // The server runs it in another directory.
    let here = std::env::current_dir().unwrap_or_default();
    let url = url.clone().from_folder(&here).to_string();
    let file = settings
        .map(|file| here.join(file))
        .filter(|file| file != Path::new("/etc/pgp/pgp.toml"));
    let mut words = vec![
        Word::Exact(program.as_os_str()),
        Word::WalPath,
        Word::Exact("--repo".as_ref()),
        Word::Exact(url.as_ref()),
    ];
    if let Some(file) = &file {
        words.extend([Word::Exact("--config".as_ref()), Word::Exact(file.as_os_str())]);
    }
    let command = quoted("archive_command", &server_command(&words)?)?;
    Ok(String::from_utf8_lossy(&command).into_owned())
}

fn line(check: &Check) -> String {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Fails => "fails",
    };
    let mut text = format!("{status:<8} {:<NAME_WIDTH$} {}\n", check.name, check.detail);
    if let Some(fix) = &check.fix {
        let mut lines = fix.lines();
        text.push_str(&format!("{:9}fix: {}\n", "", lines.next().unwrap_or_default()));
        lines.for_each(|line| text.push_str(&format!("{:14}{line}\n", "")));
    }
    text
}

fn tell_rest(found: &check::Report, rows: &[SettingRow]) -> Result<(), AnswerError> {
    let mut text = format!(
        "\nok {}, warning {}, fails {}\n\nsettings in use:\n",
        found.count(Status::Ok),
        found.count(Status::Warning),
        found.count(Status::Fails)
    );
    let width = |text: fn(&SettingRow) -> &str| rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0);
    let (names, values) = (width(|row| &row.name), width(|row| &row.value));
    for row in rows {
        text.push_str(&format!(
            "  {:<names$}  {:<values$}  from {}\n",
            row.name, row.value, row.origin
        ));
    }
    report::answer(&text)
}

/// Every setting that has a value. How the server is reached is told as it was understood: by libpq's
/// rules, of which the connection string is one source of several.
fn setting_rows(settings: &Settings, server: &ConnInfo, is_bucket: bool) -> Vec<SettingRow> {
    const SERVER: [&str; 4] = ["dbname", "host", "port", "user"];
    let mut rows = Vec::new();
    for key in KEYS {
        if SERVER.contains(&key.name) || (key.name.starts_with("s3.") && !is_bucket) {
            continue;
        }
        let Some((value, origin)) = settings.text(key.name) else {
            continue;
        };
        let value = match (key.secret, &origin) {
            (true, _) => HIDDEN.to_owned(),
            (false, Origin::Default) if key.name == "wal_timeout" => {
                humantime::format_duration(check::WAL_TIMEOUT).to_string()
            }
            (false, _) => value,
        };
        rows.push(SettingRow {
            name: key.name.to_owned(),
            value,
            origin: origin.to_string(),
        });
    }
    rows.extend(server_rows(settings, server));
    rows
}

fn server_rows(settings: &Settings, server: &ConnInfo) -> Vec<SettingRow> {
    let each = |text: fn(&Server) -> String| server.servers().iter().map(text).collect::<Vec<_>>().join(",");
    let host = |server: &Server| match (server.host(), server.endpoint()) {
        (Host::Unix(folder), _) => folder.display().to_string(),
        (Host::Tcp { name }, Endpoint::Address(address)) if name.is_empty() => address.ip().to_string(),
        (Host::Tcp { name }, _) => name.clone(),
    };
    let mut values = vec![
        ("dbname", server.dbname().to_owned()),
        ("host", each(host)),
        ("port", each(|server| server.port().to_string())),
        ("user", server.user().to_owned()),
    ];
    if server.servers().iter().any(|one| server.password_for(one).is_some()) {
        values.push(("password", HIDDEN.to_owned()));
    }
    let row = |(name, value): (&str, String)| SettingRow {
        name: name.to_owned(),
        value,
        origin: server_origin(settings, server, name),
    };
    values.into_iter().map(row).collect()
}

/// Where a part of the connection settings came from; what libpq's rules call a flag or a string may
/// itself have come from the settings file or a variable of ours.
fn server_origin(settings: &Settings, server: &ConnInfo, name: &str) -> String {
    let ours = |name| settings.text(name).map(|(_, origin)| origin.to_string());
    match server.origin(name) {
        Some(conninfo::Origin::Flag(flag)) => match settings.text(name) {
            Some((_, Origin::Flag)) | None => (*flag).to_owned(),
            Some((_, origin)) => origin.to_string(),
        },
        Some(origin @ conninfo::Origin::ConnInfo) => {
            format!("{origin} ({})", ours("dbname").unwrap_or_else(|| "flag".to_owned()))
        }
        Some(origin) => origin.to_string(),
        None if name == "password" => {
            let mut files = server.servers().iter().filter_map(|one| server.passfile_of(one));
            files
                .next()
                .map_or_else(|| "default".to_owned(), |file| file.display().to_string())
        }
        None => "default".to_owned(),
    }
}
