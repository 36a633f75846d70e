//! Tables of what psql 15 was seen to do, and properties.

use super::*;

/// A machine made up of variables and files; every file has mode 0600 unless its name ends in `.open`.
#[derive(Default)]
struct Machine {
    variables: Vec<(&'static str, &'static str)>,
    files: Vec<(&'static str, &'static str)>,
}

impl Machine {
    fn resolve_with(&self, conninfo: &str, flags: &Overrides) -> Result<ConnInfo, ConnInfoError> {
        let var = |name: &str| {
            let found = self.variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let read_file = |path: &Path| {
            let found = self.files.iter().find(|(name, _)| Path::new(name) == path);
            let mode = if path.extension().is_some_and(|end| end == "open") {
                0o100_640
            } else {
                0o100_600
            };
            found
                .map(|(_, content)| (content.as_bytes().to_vec(), mode))
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        let around = Surroundings {
            var: &var,
            read_file: &read_file,
            exists: &|path| self.files.iter().any(|(name, _)| Path::new(name) == path),
            os_user: Some("me".to_owned()),
            home: Some(PathBuf::from("/home/me")),
        };
        ConnInfo::resolve(Some(conninfo), flags, &around)
    }

    fn resolve(&self, conninfo: &str) -> Result<ConnInfo, ConnInfoError> {
        self.resolve_with(conninfo, &Overrides::default())
    }
}

fn resolve(conninfo: &str) -> Result<ConnInfo, ConnInfoError> {
    Machine::default().resolve(conninfo)
}

#[test]
fn a_pair_list_is_read() {
    let info = resolve("host=db port=5433 user = joe dbname='my db' password='it\\'s'").unwrap();
    assert_eq!(info.to_string(), "host=db port=5433 user=joe dbname='my db'");
    assert_eq!(info.password_for(&info.servers()[0]), Some(&Secret::new("it's")));
    assert_eq!(info.application_name(), "pgp-pitr");
}

#[test]
fn a_uri_is_read() {
    let info = resolve("postgres://joe:s%40@[::1]:5433,h2/my%20db?sslmode=require").unwrap();
    assert_eq!(info.to_string(), "host=::1,h2 port=5433,5432 user=joe dbname='my db'");
    assert_eq!(info.tls().mode(), SslMode::Require);
}
