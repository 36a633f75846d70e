//! The servers a connection string names: hosts, addresses and ports, matched one to one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::Surroundings;
use super::error::ConnInfoError;
use super::settings::Settings;
use super::types::Secret;

/// PostgreSQL's port (`DEF_PGPORT`).
const DEFAULT_PORT: u16 = 5432;

/// Where servers put their sockets: as Debian and the RPMs build them, and as the sources do.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How a server was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or address; empty if only `hostaddr` was given.
    Tcp {
        /// As given.
        name: String,
    },
    /// The folder of a Unix socket; one that begins with `@` is in the abstract name space.
    Unix(PathBuf),
}

/// What to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint<'a> {
    /// A Unix socket; a path that begins with a zero byte is an abstract one.
    Socket(PathBuf),
    /// An address: no name needs to be looked up (`hostaddr`).
    Address(SocketAddr),
    /// A name to look up, and a port.
    Name(&'a str, u16),
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    host: Host,
    hostaddr: Option<IpAddr>,
    port: u16,
    pub(super) password: Option<Secret>,
}

impl Server {
    /// How it was named.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The address to use in the place of the name's (`hostaddr`).
    pub fn hostaddr(&self) -> Option<IpAddr> {
        self.hostaddr
    }

    /// Its port; names the socket too.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What to connect to.
    pub fn endpoint(&self) -> Endpoint<'_> {
        match (&self.host, self.hostaddr) {
            (_, Some(address)) => Endpoint::Address(SocketAddr::new(address, self.port)),
            (Host::Unix(folder), None) => Endpoint::Socket(socket_path(folder, self.port)),
            (Host::Tcp { name }, None) => Endpoint::Name(name, self.port),
        }
    }

    /// The name its certificate must be for (`verify-full`) and that TLS announces (SNI). `None` where
    /// only an address was given; libpq then refuses `verify-full`.
    pub fn tls_name(&self) -> Option<&str> {
        match &self.host {
            Host::Tcp { name } if !name.is_empty() => Some(name),
            Host::Unix(folder) if self.hostaddr.is_some() => folder.to_str(),
            Host::Tcp { .. } | Host::Unix(_) => None,
        }
    }

    /// The name that password files know it by.
    pub(super) fn passfile_name(&self, around: &Surroundings<'_>) -> String {
        match (&self.host, self.hostaddr) {
            (Host::Tcp { name }, Some(address)) if name.is_empty() => address.to_string(),
            (Host::Tcp { name }, _) => name.clone(),
            (Host::Unix(folder), _) if *folder == default_folder(self.port, around) => "localhost".to_owned(),
            (Host::Unix(folder), _) => folder.to_string_lossy().into_owned(),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.hostaddr) {
            (Host::Unix(folder), _) => write!(f, "host={}", folder.display())?,
            (Host::Tcp { name }, _) if !name.is_empty() => write!(f, "host={name}")?,
            (Host::Tcp { .. }, Some(address)) => write!(f, "hostaddr={address}")?,
            (Host::Tcp { .. }, None) => {}
        }
        write!(f, " port={}", self.port)
    }
}

/// The socket's path. Linux keeps abstract sockets under names with a leading zero byte.
fn socket_path(folder: &Path, port: u16) -> PathBuf {
    let file = format!(".s.PGSQL.{port}");
    match folder.to_str().and_then(|folder| folder.strip_prefix('@')) {
        Some(rest) => PathBuf::from(format!("\0{rest}/{file}")),
        None => folder.join(file),
    }
}

/// Where to look for the socket of a server on this machine, if nobody said. libpq has one folder
/// compiled in; as we do not know which the server has, the socket itself decides.
fn default_folder(port: u16, around: &Surroundings<'_>) -> PathBuf {
    let folders = SOCKET_FOLDERS.map(PathBuf::from);
    let has_socket = |folder: &&PathBuf| (around.exists)(&socket_path(folder, port));
    let there = |folder: &&PathBuf| (around.exists)(folder);
    let chosen = folders.iter().find(has_socket).or_else(|| folders.iter().find(there));
    chosen.unwrap_or(&folders[0]).clone()
}

/// The servers that `host`, `hostaddr` and `port` name together.
pub(super) fn servers(settings: &Settings, around: &Surroundings<'_>) -> Result<Vec<Server>, ConnInfoError> {
    let list = |name| {
        Ok(settings
            .filled_text(name)?
            .map(|text| text.split(',').collect::<Vec<_>>()))
    };
    let (hosts, addresses, ports) = (list("host")?, list("hostaddr")?, list("port")?);
    let count = addresses.as_ref().or(hosts.as_ref()).map_or(1, Vec::len);
    if let (Some(hosts), Some(_)) = (&hosts, &addresses)
        && hosts.len() != count
    {
        return Err(ConnInfoError::Counts {
            what: "host names",
            count: hosts.len(),
            whom: "hostaddr values",
            hosts: count,
        });
    }
    if let Some(ports) = &ports
        && ports.len() != 1
        && ports.len() != count
    {
        return Err(ConnInfoError::Counts {
            what: "port numbers",
            count: ports.len(),
            whom: "hosts",
            hosts: count,
        });
    }
    let nth = |list: &Option<Vec<&str>>, index: usize| {
        let item = list.as_ref().and_then(|list| list.get(index)).copied();
        item.unwrap_or_default().to_owned()
    };
    (0..count)
        .map(|index| {
            let port_index = if ports.as_ref().is_some_and(|ports| ports.len() == 1) {
                0
            } else {
                index
            };
            let port = port(settings, &nth(&ports, port_index))?;
            let hostaddr = address(settings, &nth(&addresses, index))?;
            let host = nth(&hosts, index);
            let host = if host.starts_with(['/', '@']) {
                Host::Unix(PathBuf::from(host))
            } else if host.is_empty() && hostaddr.is_none() {
                Host::Unix(default_folder(port, around))
            } else if host.contains('@') {
                // Not shown: most likely the end of a password in a mangled URI.
                return Err(ConnInfoError::Bytes {
                    keyword: "host",
                    origin: settings.origin("host"),
                    why: "contains an \"@\", which no host name does",
                });
            } else {
                Host::Tcp { name: host }
            };
            Ok(Server {
                host,
                hostaddr,
                port,
                password: None,
            })
        })
        .collect()
}

fn port(settings: &Settings, text: &str) -> Result<u16, ConnInfoError> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let number = super::integer(text).and_then(|number| u16::try_from(number).ok());
    number
        .filter(|port| *port > 0)
        .ok_or_else(|| settings.invalid("port", text, "a number from 1 to 65535"))
}

fn address(settings: &Settings, text: &str) -> Result<Option<IpAddr>, ConnInfoError> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |_| settings.invalid("hostaddr", text, "an IPv4 or IPv6 address; names go into host");
    text.parse().map(Some).map_err(invalid)
}
