//! Throwaway PostgreSQL clusters: new ones, and servers started on a restored directory.
//!
//! The server runs in the foreground as our own child, so that it is known by process id and never by
//! name. It listens on a free loopback port and on a socket in its own scratch folder; both are given on
//! its command line, so that a restored directory needs no change to its files.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::process::{PATIENCE, free_port, kill_with_descendants, signal, wait_for};
use super::program::Answer;
use super::tools::Major;
use super::user::{Scratch, ServerUser};

/// A cluster and, while it runs, its server. Dropping it stops the server and removes the files; in a
/// test that fails it also prints the end of the server's log.
#[derive(Debug)]
pub struct Cluster {
    major: &'static Major,
    data: PathBuf,
    port: u16,
    server: Option<Child>,
    /// How long the log was when the server was last started.
    log_before: usize,
    /// More arguments for the server's command line.
    options: Vec<String>,
    scratch: Scratch,
}

/// What a new cluster is to be like.
#[derive(Debug)]
pub struct Builder {
    major: &'static Major,
    initdb: Vec<String>,
    settings: String,
}

/// How to ask a server to stop.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// Waits for clients to leave.
    Smart,
    /// Disconnects clients, writes a checkpoint and archives what is there.
    Fast,
    /// Stops without a checkpoint: the next start recovers.
    Immediate,
}

/// What became of a server that was started to recover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// Recovery is over and the server takes writes.
    Open,
    /// Recovery is paused at its target; the server can be read.
    Paused,
    /// The server has stopped; [`Cluster::log`] says why.
    Stopped,
}

impl Builder {
    /// More arguments for `initdb`, for example `--wal-segsize=1`.
    #[must_use]
    pub fn initdb_args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.initdb.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A line of `postgresql.conf`; the value is quoted here.
    #[must_use]
    pub fn conf(mut self, name: &str, value: impl AsRef<str>) -> Self {
        // A backslash begins an escape in this file, unlike in SQL.
        let value = value.as_ref().replace('\\', r"\\").replace('\'', "''");
        self.settings.push_str(&format!("{name} = '{value}'\n"));
        self
    }

    /// Makes the cluster and starts its server.
    pub fn build(self) -> Cluster {
        let mut cluster = self.build_stopped();
        cluster.start();
        cluster
    }

    /// Makes the cluster; the server is left for later.
    pub fn build_stopped(self) -> Cluster {
        let scratch = Scratch::new();
        let data = scratch.folder("data");
        Answer::of(
            ServerUser::get()
                .command(self.major.program("initdb"))
                // A throwaway need not survive a power cut while it is made.
                .args(["--no-sync", "--auth=trust", "--username=postgres"])
                .args(["--encoding=UTF8", "--locale=C", "-D"])
                .arg(&data)
                .args(&self.initdb),
        )
        .with_code(0);
        let cluster = Cluster::at(self.major, data, scratch);
        cluster.append("postgresql.conf", &self.settings);
        cluster
    }
}

impl Cluster {
    /// A new cluster of the usual major with nothing but defaults, running.
    pub fn new() -> Self {
        Self::builder(Major::usual()).build()
    }

    /// A new cluster, to be described further. Superuser `postgres`, trusted on every way in.
    pub fn builder(major: &'static Major) -> Builder {
        Builder {
            major,
            initdb: Vec::new(),
            // Small, and the same zone everywhere, so that times in logs and results can be compared. Shared
            // memory in the data directory: nothing is left behind when the server is killed for good.
            settings: "shared_buffers = '16MB'\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n\
                       dynamic_shared_memory_type = 'mmap'\n"
                .to_owned(),
        }
    }

    /// A cluster in a directory that is there already, restored or copied. The directory is given to
    /// the server's user; it stays when this value is dropped. Not started: call [`Self::recover`].
    pub fn on_directory(major: &'static Major, directory: impl Into<PathBuf>) -> Self {
        let data = directory.into();
        ServerUser::get().give(&data);
        Self::at(major, data, Scratch::new())
    }

    fn at(major: &'static Major, data: PathBuf, scratch: Scratch) -> Self {
        Self {
            major,
            data,
            port: free_port(),
            server: None,
            log_before: 0,
            options: Vec::new(),
            scratch,
        }
    }

    /// Starts the server and waits until it can be connected to. Panics if it can't.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        assert!(self.wait_for_connections(), "the server did not start");
    }

    /// Starts the server and waits for nothing: for one that takes no connections.
    #[track_caller]
    pub fn start_without_waiting(&mut self) {
        self.spawn();
    }

    /// Starts a server that has something to recover, and waits until that is over, one way or another.
    #[track_caller]
    pub fn recover(&mut self) -> Recovered {
        self.spawn();
        self.recovered()
    }

    /// Waits until recovery is over, for a server that is running already.
    #[track_caller]
    pub fn recovered(&mut self) -> Recovered {
        if !self.wait_for_connections() {
            return Recovered::Stopped;
        }
        wait_for("recovery comes to an end", || {
            if self.has_exited() {
                return Some(Recovered::Stopped);
            }
            let paused = "select case when pg_is_in_recovery() then pg_is_wal_replay_paused() end";
            match self.try_sql(paused).ok()?.as_str() {
                "" => Some(Recovered::Open),
                "t" => Some(Recovered::Paused),
                _ => None,
            }
        })
    }

    /// Ends recovery and waits until the server takes writes.
    #[track_caller]
    pub fn promote(&mut self) {
        self.sql("select pg_promote(wait => false)");
        wait_for("the promoted server takes writes", || {
            (self.try_sql("select pg_is_in_recovery()").ok()? == "f").then_some(())
        });
    }

    /// Gives a setting on the server's command line from the next start on: for those that no file can
    /// have (`config_file`).
    pub fn start_with(&mut self, name: &str, value: &str) {
        self.options.extend(["-c".to_owned(), format!("{name}={value}")]);
    }

    /// Stops the server and waits for its end.
    #[track_caller]
    pub fn stop(&mut self, how: Stop) {
        let how = match how {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        let Some(server) = &self.server else { return };
        signal(server.id(), how);
        wait_for("the server stops", || self.has_exited().then_some(()));
    }

    /// Stops the server and starts it again.
    #[track_caller]
    pub fn restart(&mut self, how: Stop) {
        self.stop(how);
        self.start();
    }

    /// Kills the server and all its children at once, running archive commands included.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            kill_with_descendants(server.id());
            server.wait().expect("a killed server can be reaped");
        }
    }

    /// Whether the server has ended, or was never started.
    pub fn has_exited(&mut self) -> bool {
        if let Some(server) = &mut self.server
            && server.try_wait().expect("our own child").is_none()
        {
            return false;
        }
        self.server = None;
        true
    }

    /// Runs SQL in the database `postgres` and returns what `psql -At` prints, without the last line
    /// end. Each statement is a transaction of its own. Panics with the server's words if it fails.
    #[track_caller]
    pub fn sql(&self, text: &str) -> String {
        self.sql_in("postgres", text)
    }

    /// As [`Self::sql`], in another database.
    #[track_caller]
    pub fn sql_in(&self, database: &str, text: &str) -> String {
        self.try_sql_in(database, text)
            .unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    /// As [`Self::sql`], for statements that may fail.
    pub fn try_sql(&self, text: &str) -> Result<String, String> {
        self.try_sql_in("postgres", text)
    }

    fn try_sql_in(&self, database: &str, text: &str) -> Result<String, String> {
        let answer = Answer::of_input(
            self.client("psql")
                .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database]),
            text,
        );
        if answer.code == 0 {
            Ok(answer.stdout.trim_end_matches('\n').to_owned())
        } else {
            Err(answer.stderr)
        }
    }

    /// Waits until a query answers `t`.
    #[track_caller]
    pub fn wait_until(&self, query: &str) {
        wait_for(query, || (self.try_sql(query).ok()? == "t").then_some(()));
    }

    /// Ends the current WAL file and waits until the archiver has been told yes for it. Returns its name.
    #[track_caller]
    pub fn archive_now(&self) -> String {
        // A file that holds nothing yet would not be switched: a restore point makes sure of one record.
        self.sql("select pg_create_restore_point('archive_now')");
        let file = self.sql("select pg_walfile_name(pg_switch_wal())");
        // Names on one timeline are in the order of the WAL; `.backup` and `.partial` names sort with them.
        self.wait_until(&format!("select last_archived_wal >= '{file}' from pg_stat_archiver"));
        file
    }

    /// Sets a configuration value for good and reloads. For one that needs it, call [`Self::restart`].
    #[track_caller]
    pub fn set(&self, name: &str, value: &str) {
        self.sql(&format!("alter system set {name} = '{}'", value.replace('\'', "''")));
        self.reload();
    }

    /// Replaces `pg_hba.conf` and reloads.
    #[track_caller]
    pub fn set_hba(&self, lines: &str) {
        fs::write(self.data.join("pg_hba.conf"), lines).expect("pg_hba.conf can be written");
        self.reload();
    }

    /// Makes the server read its configuration files again.
    #[track_caller]
    pub fn reload(&self) {
        let server = self.server.as_ref().expect("the server runs");
        let loaded = "select extract(epoch from pg_conf_load_time())";
        let before = self.try_sql(loaded);
        signal(server.id(), Signal::HUP);
        // A configuration that now refuses us has been loaded, too.
        wait_for("the configuration is loaded", || {
            (self.try_sql(loaded) != before).then_some(())
        });
    }

    /// Adds text to the end of a file of the data directory.
    pub fn append(&self, file: &str, text: &str) {
        use std::io::Write;
        let path = self.data.join(file);
        let mut file = OpenOptions::new().append(true).open(path).expect("a file to append to");
        file.write_all(text.as_bytes()).expect("appended");
    }

    /// A client program of this major, told how to connect as superuser through its `PG*` variables.
    pub fn client(&self, program: &str) -> Command {
        let mut command = self.tool(program);
        command
            .env("PGHOST", self.scratch.path())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    /// A program of this major that needs no server (`pg_waldump`, `pg_verifybackup`, …), run as the
    /// server's user.
    pub fn tool(&self, program: &str) -> Command {
        ServerUser::get().command(self.major.program(program))
    }

    /// How to connect through the socket, as superuser.
    pub fn conninfo(&self) -> String {
        let socket = self.scratch.path().display();
        format!("host={socket} port={} user=postgres dbname=postgres", self.port)
    }

    /// How to connect over TCP, as superuser.
    pub fn conninfo_tcp(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// The major that runs here.
    pub fn major(&self) -> &'static Major {
        self.major
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the server has logged since it was last started.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.log_before..).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.join("log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("--- end of the log of {}\n{tail}", self.data.display())
    }

    #[track_caller]
    fn spawn(&mut self) {
        assert!(self.has_exited(), "the server is running already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        self.log_before = usize::try_from(log.metadata().expect("its size").len()).expect("a small log");
        let mut command = self.tool("postgres");
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-c", "listen_addresses=127.0.0.1", "-p", &self.port.to_string(), "-k"])
            .arg(self.scratch.path())
            // Everything to our log, whatever a restored configuration says.
            .args(["-c", "log_destination=stderr", "-c", "logging_collector=off"])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        self.server = Some(command.spawn().expect("postgres can be started"));
    }

    /// True once connections are taken (in recovery, too); false if the server has exited instead.
    #[track_caller]
    fn wait_for_connections(&mut self) -> bool {
        wait_for("the server takes connections, or exits", || {
            if self.has_exited() {
                return Some(false);
            }
            let server = self.server.as_ref()?.id().to_string();
            // First line: the process, to tell a file left behind by a killed server. Eighth: its state.
            let lock = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
            let mut lines = lock.lines();
            (lines.next() == Some(&server) && lines.nth(6).map(str::trim) == Some("ready")).then_some(true)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        let Some(server) = &self.server else { return };
        signal(server.id(), Signal::QUIT);
        let since = std::time::Instant::now();
        while !self.has_exited() {
            if since.elapsed() > PATIENCE / 10 {
                self.kill9();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
