//! How to reach the server: the settings, put together by libpq's rules.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::pitr::{PROGRAM, Session};
use super::report;
use super::settings::Origin;
use crate::error::Failure;
use crate::pg::conninfo::{ConnInfo, Overrides, Surroundings};

/// A password or service file is some lines; more is something else.
const FILE_LIMIT: u64 = 1 << 20;

impl Session {
    /// The server that the settings name.
    pub(super) fn server(&self) -> Result<ConnInfo, Failure> {
        let text = |name| self.settings.text(name);
        let conninfo = text("dbname");
        let overrides = Overrides {
            host: text("host").map(|(value, _)| value),
            port: text("port").map(|(value, _)| value),
            user: text("user").map(|(value, _)| value),
            // On one command line, as psql has it; but a flag beats what a file or a variable says.
            over_conninfo: conninfo.as_ref().is_some_and(|(_, origin)| *origin != Origin::Flag),
        };
        self.resolve(conninfo.as_ref().map(|(text, _)| text.as_str()), &overrides)
    }

    /// The server that a connection string names.
    pub(super) fn resolve(&self, conninfo: Option<&str>, overrides: &Overrides) -> Result<ConnInfo, Failure> {
        let env = &self.env;
        let around = Surroundings {
            var: &|name| env.var(name).map(str::to_owned),
            read_file: &read_file,
            exists: &|path| path.exists(),
            os_user: os_user(),
            home: env.var_os("HOME").map(PathBuf::from),
        };
        let info = ConnInfo::resolve(conninfo, overrides, &around)?;
        for warning in info.warnings() {
            report::warning(PROGRAM, &warning.to_string());
        }
        Ok(info)
    }
}

fn read_file(path: &Path) -> std::io::Result<(Vec<u8>, u32)> {
    let file = fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok((bytes, mode))
}

/// The name of this process's user.
fn os_user() -> Option<String> {
    user_name(rustix::process::geteuid().as_raw())
}

/// The name of a user, as `/etc/passwd` has it.
pub(super) fn user_name(uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}
