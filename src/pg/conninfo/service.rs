//! Service files: named groups of settings (`[name]`, then `key=value` lines, unquoted).

use std::io;
use std::path::{Path, PathBuf};

use super::Surroundings;
use super::error::{ConnInfoError, Origin};
use super::settings::Settings;

/// Where packagers compile libpq to look for `pg_service.conf`: Debian and Ubuntu, then the RPMs of
/// postgresql.org. `PGSYSCONFDIR` overrides both.
const SYSTEM_FOLDERS: [&str; 2] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql"];

/// Fills in what the wanted service defines, if one is wanted: the user's file first, and the system's
/// if that does not define it.
pub(super) fn fill(settings: &mut Settings, around: &Surroundings<'_>) -> Result<(), ConnInfoError> {
    let service = match settings.text("service")? {
        Some(service) => service.to_owned(),
        None => match around.variable("PGSERVICE") {
            Some(service) => service,
            None => return Ok(()),
        },
    };
    let named = settings.filled_text("servicefile")?.map(PathBuf::from);
    let named = named.or_else(|| around.variable("PGSERVICEFILE").map(PathBuf::from));
    let mut candidates = Vec::new();
    match &named {
        Some(path) => candidates.push(path.clone()),
        None => candidates.extend(around.home.as_ref().map(|home| home.join(".pg_service.conf"))),
    }
    match around.variable("PGSYSCONFDIR") {
        Some(folder) => candidates.push(Path::new(&folder).join("pg_service.conf")),
        None => candidates.extend(SYSTEM_FOLDERS.map(|folder| Path::new(folder).join("pg_service.conf"))),
    }
    let mut read = Vec::new();
    for path in candidates {
        let content = match (around.read_file)(&path) {
            Ok((content, _)) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.as_ref() != Some(&path) => continue,
            Err(source) => return Err(ConnInfoError::ReadServiceFile { path, source }),
        };
        if fill_from(settings, &content, &path, &service)? {
            return Ok(());
        }
        read.push(path);
    }
    Err(ConnInfoError::UnknownService { service, read })
}

/// Fills in what this file says of the service; tells whether it has it.
fn fill_from(settings: &mut Settings, content: &[u8], path: &Path, service: &str) -> Result<bool, ConnInfoError> {
    let header = format!("[{service}]");
    let mut found = false;
    for (index, line) in content.split(|b| *b == b'\n').enumerate() {
        let line = trim(line);
        let number = index + 1;
        let wrong = |why| ConnInfoError::ServiceLine {
            path: path.to_owned(),
            line: number,
            why,
        };
        match line.first() {
            None | Some(b'#') => {}
            Some(b'[') if found => return Ok(true),
            Some(b'[') => found = line.starts_with(header.as_bytes()),
            Some(_) if !found => {}
            Some(_) if line.starts_with(b"ldap") => {
                return Err(wrong("services that an LDAP server defines are not supported"));
            }
            Some(_) => {
                let Some(equals) = line.iter().position(|b| *b == b'=') else {
                    return Err(wrong("a line is \"key=value\""));
                };
                let (key, value) = (&line[..equals], &line[equals + 1..]);
                let key = String::from_utf8_lossy(key);
                if key.ends_with([' ', '\t']) {
                    return Err(wrong("no blank may stand before the \"=\""));
                }
                if key == "service" || key == "servicefile" {
                    return Err(wrong("a service can not refer to another service or file"));
                }
                let origin = Origin::Service {
                    path: path.to_owned(),
                    line: number,
                };
                settings.fill(&key, value, origin)?;
            }
        }
    }
    Ok(found)
}

fn trim(line: &[u8]) -> &[u8] {
    let blank = |b: &u8| super::parse::is_space(char::from(*b));
    let start = line.iter().position(|b| !blank(b)).unwrap_or(line.len());
    let end = line.iter().rposition(|b| !blank(b)).map_or(start, |last| last + 1);
    &line[start..end]
}
