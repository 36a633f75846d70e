//! How to reach a server, by libpq's rules: connection strings, service files, `PG*` variables, password
//! files and defaults.
//!
//! What counts, first to last: the connection string, the flags `-h -p -U`, the service file, the
//! environment, the password file (for the password), the defaults. That a connection string wins over flags
//! is psql's way (`pg_basebackup` has it the other way round); see [`Overrides::over_conninfo`].
//!
//! Pure: files, variables and names of users come in through [`Surroundings`]. No message, `Debug` or
//! `Display` shows a password. What would change how a connection is made, and is not supported here, is
//! refused instead of dropped.

mod error;
mod parse;
mod passfile;
mod server;
mod service;
mod settings;
mod tls;
mod types;
mod uri;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{ConnInfoError, Origin, UriFault};
pub use passfile::Warning;
pub use server::{Endpoint, Host, Server};
pub use settings::nearest;
pub use tls::{ClientCertificate, RootCertificates, Tls};
pub use types::{
    AuthMethod, AuthMethods, ChannelBinding, LoadBalanceHosts, Secret, SslCertMode, SslMode, SslNegotiation,
    TargetSessionAttrs, TlsVersion,
};

use passfile::Passfile;
use settings::{KEYWORDS, Settings};

/// The application name where nobody says otherwise.
const APPLICATION_NAME: &str = "pgp-pitr";

/// Reads a file: its bytes and its `st_mode`.
pub type ReadFile<'a> = dyn Fn(&Path) -> io::Result<(Vec<u8>, u32)> + 'a;

/// What the outside tells.
pub struct Surroundings<'a> {
    /// The value of an environment variable; an empty one counts as unset.
    pub var: &'a dyn Fn(&str) -> Option<String>,
    /// The bytes of a file and its `st_mode`.
    pub read_file: &'a ReadFile<'a>,
    /// Whether something is at a path.
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// The operating system's name for the user of this process.
    pub os_user: Option<String>,
    /// The user's home folder: `HOME`, else what the operating system says.
    pub home: Option<PathBuf>,
}

impl Surroundings<'_> {
    fn variable(&self, name: &str) -> Option<String> {
        (self.var)(name).filter(|value| !value.is_empty())
    }
}

/// The flags of the command line; an empty one counts as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `-h`: hosts or a socket's folder.
    pub host: Option<String>,
    /// `-p`: ports.
    pub port: Option<String>,
    /// `-U`: the user.
    pub user: Option<String>,
    /// Whether they win over the connection string as well: right where that comes from a settings file,
    /// which any flag overrides. On one command line the connection string wins.
    pub over_conninfo: bool,
}

/// TCP settings of a connection; `None` leaves the operating system's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// Whether to send keepalives at all (`keepalives`).
    pub keepalives: bool,
    /// How long a connection may be silent before the first (`keepalives_idle`).
    pub keepalives_idle: Option<Duration>,
    /// How long to wait between two (`keepalives_interval`).
    pub keepalives_interval: Option<Duration>,
    /// How many may be lost (`keepalives_count`).
    pub keepalives_count: Option<u32>,
    /// How long sent data may stay unacknowledged (`tcp_user_timeout`).
    pub user_timeout: Option<Duration>,
}

/// All that is needed to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    servers: Vec<Server>,
    user: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    dbname: String,
    application_name: String,
    options: String,
    connect_timeout: Option<Duration>,
    tcp: Tcp,
    tls: Tls,
    channel_binding: ChannelBinding,
    require_auth: AuthMethods,
    target_session_attrs: TargetSessionAttrs,
    load_balance_hosts: LoadBalanceHosts,
    origins: BTreeMap<&'static str, Origin>,
    warnings: Vec<Warning>,
}

impl ConnInfo {
    /// Puts together what the connection string (or name of a database), the flags and the surroundings
    /// say.
    ///
    /// # Errors
    /// Where libpq would refuse as well; where a setting is not supported; where a URI seems to hold a
    /// password that is not percent-encoded.
    pub fn resolve(
        conninfo: Option<&str>,
        overrides: &Overrides,
        around: &Surroundings<'_>,
    ) -> Result<Self, ConnInfoError> {
        let settings = gather(conninfo, overrides, around)?;
        settings.refuse_unsupported()?;
        let user = match settings.filled_text("user")?.map(str::to_owned) {
            Some(user) => user,
            None => around.os_user.clone().ok_or(ConnInfoError::NoUser)?,
        };
        let dbname = settings.filled_text("dbname")?.unwrap_or(&user).to_owned();
        let given = settings.get("password").filter(|value| !value.bytes.is_empty());
        let password = given.map(|value| Secret::new(value.bytes.clone()));
        let mut servers = server::servers(&settings, around)?;
        let mut warnings = Vec::new();
        let mut passfile = None;
        if password.is_none() {
            passfile = passwords_from_file(&settings, around, &mut servers, &dbname, &user, &mut warnings)?;
        }
        let tls = Tls::of(&settings, around)?;
        other_refusals(&settings)?;
        Ok(Self {
            servers,
            password,
            passfile,
            application_name: application_name(&settings)?,
            options: settings.text("options")?.unwrap_or_default().to_owned(),
            connect_timeout: positive(&settings, "connect_timeout")?.map(|s| Duration::from_secs(s.into())),
            tcp: tcp(&settings)?,
            tls,
            channel_binding: word(
                &settings,
                "channel_binding",
                ChannelBinding::from_word,
                ChannelBinding::ALLOWED,
            )?
            .unwrap_or(ChannelBinding::Prefer),
            require_auth: require_auth(&settings)?,
            target_session_attrs: word(
                &settings,
                "target_session_attrs",
                TargetSessionAttrs::from_word,
                TargetSessionAttrs::ALLOWED,
            )?
            .unwrap_or(TargetSessionAttrs::Any),
            load_balance_hosts: word(
                &settings,
                "load_balance_hosts",
                LoadBalanceHosts::from_word,
                LoadBalanceHosts::ALLOWED,
            )?
            .unwrap_or(LoadBalanceHosts::Disable),
            origins: settings.origins(),
            warnings,
            user,
            dbname,
        })
    }

    /// The servers to try, in this order (or shuffled, see [`Self::load_balance_hosts`]); at least one.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The user to connect as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password for this server, one of [`Self::servers`]: the one given, else the password file's.
    pub fn password_for<'a>(&'a self, server: &'a Server) -> Option<&'a Secret> {
        self.password.as_ref().or(server.password.as_ref())
    }

    /// The file that [`Self::password_for`] this server came from, for the message that it was wrong.
    pub fn passfile_of(&self, server: &Server) -> Option<&Path> {
        let from_file = self.password.is_none() && server.password.is_some();
        self.passfile.as_deref().filter(|_| from_file)
    }

    /// The database to connect to; a connection for physical replication has none.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// The same way in, to another database of the cluster. Passwords stay: they are the role's.
    #[must_use]
    pub fn with_dbname(&self, dbname: &str) -> Self {
        Self {
            dbname: dbname.to_owned(),
            ..self.clone()
        }
    }

    /// The name the server shows for us; empty if none shall be sent.
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// Command-line options for the server's session; empty for none.
    pub fn options(&self) -> &str {
        &self.options
    }

    /// How long connecting to one address may take; `None` for as long as it takes.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// TCP settings.
    pub fn tcp(&self) -> Tcp {
        self.tcp
    }

    /// TLS settings.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Whether SCRAM is bound to the TLS channel.
    pub fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    /// Which ways of authentication will do.
    pub fn require_auth(&self) -> &AuthMethods {
        &self.require_auth
    }

    /// Which server will do.
    pub fn target_session_attrs(&self) -> TargetSessionAttrs {
        self.target_session_attrs
    }

    /// In which order to try hosts, and the addresses of one.
    pub fn load_balance_hosts(&self) -> LoadBalanceHosts {
        self.load_balance_hosts
    }

    /// Where the value of a libpq keyword came from; `None` for a default.
    pub fn origin(&self, keyword: &str) -> Option<&Origin> {
        self.origins.get(keyword)
    }

    /// What the user should be told before connecting.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// For messages: `host=… port=… user=… dbname=…`, with as many hosts as there are. Never a password.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |server: &Server| match (server.host(), server.hostaddr()) {
            (Host::Unix(folder), _) => folder.display().to_string(),
            (Host::Tcp { name }, Some(address)) if name.is_empty() => address.to_string(),
            (Host::Tcp { name }, _) => name.clone(),
        };
        let hosts: Vec<String> = self.servers.iter().map(name).collect();
        let mut ports: Vec<String> = self.servers.iter().map(|server| server.port().to_string()).collect();
        ports.dedup();
        if ports.len() > 1 {
            ports = self.servers.iter().map(|server| server.port().to_string()).collect();
        }
        write!(
            f,
            "host={} port={} user={} dbname={}",
            parse::quote(&hosts.join(",")),
            ports.join(","),
            parse::quote(&self.user),
            parse::quote(&self.dbname)
        )
    }
}

/// Layer upon layer, the strongest first.
fn gather(conninfo: Option<&str>, overrides: &Overrides, around: &Surroundings<'_>) -> Result<Settings, ConnInfoError> {
    let mut flags = Settings::default();
    let given = [
        ("host", "-h", &overrides.host),
        ("port", "-p", &overrides.port),
        ("user", "-U", &overrides.user),
    ];
    for (name, flag, value) in given {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            flags.replace(name, value.as_str(), Origin::Flag(flag), None)?;
        }
    }
    let string = parse::connection_string(conninfo.unwrap_or_default())?;
    let (mut settings, stronger) = if overrides.over_conninfo {
        (string, flags)
    } else {
        (flags, string)
    };
    settings.overlay(stronger);
    service::fill(&mut settings, around)?;
    for keyword in KEYWORDS {
        if let Some(variable) = keyword.variable
            && let Some(value) = around.variable(variable)
        {
            settings.fill(keyword.name, value, Origin::Variable(variable))?;
        }
    }
    if around
        .variable("PGREQUIRESSL")
        .is_some_and(|value| value.starts_with('1'))
    {
        settings.fill("sslmode", "require", Origin::Variable("PGREQUIRESSL"))?;
    }
    Ok(settings)
}

/// Looks each server's password up in the password file; returns the file's path if it was read.
fn passwords_from_file(
    settings: &Settings,
    around: &Surroundings<'_>,
    servers: &mut [Server],
    dbname: &str,
    user: &str,
    warnings: &mut Vec<Warning>,
) -> Result<Option<PathBuf>, ConnInfoError> {
    let named = settings.filled_text("passfile")?.map(PathBuf::from);
    let default = || around.home.as_ref().map(|home| home.join(".pgpass"));
    let is_named = named.is_some();
    let Some(path) = named.or_else(default) else {
        return Ok(None);
    };
    let Some(file) = Passfile::open(&path, is_named, (around.read_file)(&path), warnings) else {
        return Ok(None);
    };
    for server in servers {
        server.password = file.password(&server.passfile_name(around), server.port(), dbname, user);
    }
    Ok(Some(path))
}

fn application_name(settings: &Settings) -> Result<String, ConnInfoError> {
    let name = match settings.text("application_name")? {
        Some(name) => name,
        None => settings.text("fallback_application_name")?.unwrap_or(APPLICATION_NAME),
    };
    Ok(name.to_owned())
}

fn tcp(settings: &Settings) -> Result<Tcp, ConnInfoError> {
    let seconds = |name| Ok(positive(settings, name)?.map(|s| Duration::from_secs(s.into())));
    Ok(Tcp {
        keepalives: whole(settings, "keepalives")?.is_none_or(|value| value != 0),
        keepalives_idle: seconds("keepalives_idle")?,
        keepalives_interval: seconds("keepalives_interval")?,
        keepalives_count: positive(settings, "keepalives_count")?,
        user_timeout: positive(settings, "tcp_user_timeout")?.map(|ms| Duration::from_millis(ms.into())),
    })
}

/// What depends on a value and not on the keyword alone.
fn other_refusals(settings: &Settings) -> Result<(), ConnInfoError> {
    let mode = |word: &str| {
        ["disable", "prefer", "require"]
            .contains(&word)
            .then(|| word.to_owned())
    };
    if word(settings, "gssencmode", mode, "disable, prefer")?.is_some_and(|mode| mode == "require") {
        return Err(settings.unsupported(
            "gssencmode",
            "encryption by GSSAPI is not there; use TLS (sslmode=require)",
        ));
    }
    let version = |word: &str| ["3.0", "3.2", "latest"].contains(&word).then(|| word.to_owned());
    for name in ["min_protocol_version", "max_protocol_version"] {
        let wanted = word(settings, name, version, "3.0, 3.2, latest")?;
        if name == "min_protocol_version" && wanted.is_some_and(|wanted| wanted != "3.0") {
            return Err(settings.unsupported(name, "protocol 3.0 is what every supported server speaks"));
        }
    }
    Ok(())
}

/// Reads `require_auth`: a list of methods, or of methods each with `!` before it, none of them twice.
fn require_auth(settings: &Settings) -> Result<AuthMethods, ConnInfoError> {
    let Some(list) = settings.filled_text("require_auth")? else {
        return Ok(AuthMethods::default());
    };
    let invalid = || settings.invalid("require_auth", list, AuthMethod::ALLOWED);
    let negative = list.starts_with('!');
    let mut named: Vec<AuthMethod> = Vec::new();
    for item in list.split(',') {
        let bare = item.strip_prefix('!');
        if bare.is_some() != negative {
            return Err(invalid());
        }
        let method = AuthMethod::from_word(bare.unwrap_or(item)).ok_or_else(invalid)?;
        if named.contains(&method) {
            return Err(invalid());
        }
        named.push(method);
    }
    let allowed = |method: &AuthMethod| named.contains(method) != negative;
    Ok(AuthMethods(AuthMethod::ALL.into_iter().filter(allowed).collect()))
}

/// A value that must be one of some words.
fn word<T>(
    settings: &Settings,
    name: &'static str,
    read: impl Fn(&str) -> Option<T>,
    allowed: &'static str,
) -> Result<Option<T>, ConnInfoError> {
    let Some(text) = settings.text(name)? else {
        return Ok(None);
    };
    read(text)
        .map(Some)
        .ok_or_else(|| settings.invalid(name, text, allowed))
}

/// A value that must be a whole number.
fn whole(settings: &Settings, name: &'static str) -> Result<Option<i32>, ConnInfoError> {
    word(settings, name, integer, "a whole number")
}

/// The same, where zero and less mean the default.
fn positive(settings: &Settings, name: &'static str) -> Result<Option<u32>, ConnInfoError> {
    let value = whole(settings, name)?;
    Ok(value
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0))
}

/// A whole number as C's `strtol` takes it, with blanks around.
fn integer(text: &str) -> Option<i32> {
    text.trim_matches(parse::is_space).parse().ok()
}
