//! The command line as it is typed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

/// Makes one WAL file durable in the repository, then exits 0. For PostgreSQL's archive_command.
#[derive(Debug, Parser)]
#[command(
    name = "pgp-archive",
    version,
    after_help = "Example, in postgresql.conf:\n  archive_command = 'pgp-archive %p --repo s3://backups/pg'"
)]
pub struct ArchiveArgs {
    /// The WAL file (%p)
    pub path: PathBuf,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
    /// zstd's level, 1 to 19
    #[arg(long, value_name = "LEVEL")]
    pub compression_level: Option<String>,
}

/// Fetches one WAL file from the repository. For PostgreSQL's restore_command.
#[derive(Debug, Parser)]
#[command(
    name = "pgp-restore",
    version,
    after_help = "Example, in postgresql.conf:\n  restore_command = 'pgp-restore %f %p --repo s3://backups/pg'"
)]
pub struct FetchArgs {
    /// The WAL file's name (%f)
    pub file: String,
    /// Where to put it (%p)
    pub path: PathBuf,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
    /// How long to try before giving up, for example 5m
    #[arg(long, value_name = "DURATION")]
    pub retry_for: Option<String>,
    /// The cluster's system identifier; unless given, the one in global/pg_control
    #[arg(long, value_name = "SYSID")]
    pub cluster: Option<String>,
}

/// Protects PostgreSQL servers and brings them back to any moment.
#[derive(Debug, Parser)]
#[command(name = "pgp-pitr", version, disable_help_flag = true)]
pub struct PitrArgs {
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
    /// Print help
    #[arg(long, global = true, action = ArgAction::Help)]
    pub help: Option<bool>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the repository, once; again on the same URL changes nothing
    #[command(after_help = "Example:\n  pgp-pitr init --repo /var/backups/pg")]
    Init(InitArgs),
    /// Check the server, the repository, and the way between them
    #[command(after_help = "Example:\n  pgp-pitr check --repo /var/backups/pg -d 'host=db1 user=backup'")]
    Check(CheckArgs),
    /// Take a base backup
    #[command(
        after_help = "Example:\n  pgp-pitr backup --repo s3://backups/pg -d 'host=db1 user=backup' --label nightly"
    )]
    Backup(BackupArgs),
    /// Stream WAL from the server into the repository until told to stop
    #[command(
        after_help = "Example:\n  pgp-pitr receive --repo s3://backups/pg -d 'host=db1 user=backup' --slot pgp --create-slot"
    )]
    Receive(ReceiveArgs),
    /// List clusters, backups, WAL, gaps and the windows that can be restored
    #[command(after_help = "Example:\n  pgp-pitr list --repo s3://backups/pg")]
    List(ListArgs),
    /// Show everything known of one backup
    #[command(after_help = "Example:\n  pgp-pitr show 20261121T101500Z-1f2e3d4c --repo s3://backups/pg")]
    Show(ShowArgs),
    /// Find where in the WAL something happened, each time with the restore to the moment just before it
    #[command(
        after_help = "Example:\n  pgp-pitr find --drop --between '2 hours ago' now --repo s3://backups/pg\n\nWithout a filter, everything remarkable is told. Kinds of events add up;\n--xid, --relation, --between and --around narrow the search."
    )]
    Find(FindArgs),
    /// Show what restore would do, and do nothing
    #[command(after_help = "Example:\n  pgp-pitr plan --target-time '2026-11-21 10:20:00+01' --repo s3://backups/pg")]
    Plan(RestoreArgs),
    /// Restore a cluster to a moment
    #[command(
        after_help = "Example:\n  pgp-pitr restore --to /var/lib/postgresql/15/restored --target-time '2026-11-21 10:20:00+01' --repo s3://backups/pg"
    )]
    Restore(RestoreArgs),
    /// Take the WAL that a dead server had not handed over out of its data directory
    #[command(after_help = "Example:\n  pgp-pitr salvage /mnt/dead/postgresql/15/main --repo s3://backups/pg")]
    Salvage(SalvageArgs),
    /// Follow a recovering server: which moment it has reached, how fast, and when it is at its target
    #[command(after_help = "Example:\n  pgp-pitr watch /var/lib/postgresql/15/restored")]
    Watch(WatchArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  pgp-pitr completions bash > /etc/bash_completion.d/pgp-pitr")]
    Completions(CompletionsArgs),
}

/// `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// A replication slot to look at
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// How long to wait for the segment of the round trip [default: 1min]
    #[arg(long, value_name = "DURATION")]
    pub wal_timeout: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// A text that names the backup for people
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// How the first checkpoint is made: fast or spread
    #[arg(long, value_name = "MODE")]
    pub checkpoint: Option<String>,
    /// The most to read in a second, for example 50MB
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<String>,
    /// Store everything anew, with no reference to earlier backups
    #[arg(long)]
    pub full: bool,
    /// A replication slot that holds the backup's WAL
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// How long to wait for the last WAL to arrive in the repository [default: 5min]
    #[arg(long, value_name = "DURATION")]
    pub wal_timeout: Option<String>,
    /// zstd's level, 1 to 19
    #[arg(long, value_name = "LEVEL")]
    pub compression_level: Option<String>,
    /// How many threads compress
    #[arg(long, short, value_name = "N")]
    pub jobs: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The physical replication slot to stream from
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// Make the slot where it is missing
    #[arg(long)]
    pub create_slot: bool,
    /// Store each piece at once: commits wait for it where synchronous_standby_names says so
    #[arg(long)]
    pub synchronous: bool,
    /// How long received WAL may wait before it is stored [default: 1s]
    #[arg(long, value_name = "DURATION")]
    pub tail_interval: Option<String>,
    /// How often the server is told where the receiver is [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub status_interval: Option<String>,
    /// A folder that takes WAL while the repository can't be written to
    #[arg(long, value_name = "DIR")]
    pub spool: Option<String>,
    /// How much the spool may hold, 32MB at least [default: 1GB]
    #[arg(long, value_name = "SIZE")]
    pub spool_limit: Option<String>,
    /// What the server is told to be durable: store or spool [default: store]
    #[arg(long, value_name = "WHERE")]
    pub durable: Option<String>,
    /// Receive from this cluster only, by its system identifier
    #[arg(long, value_name = "SYSID")]
    pub cluster: Option<String>,
    /// Tell how the receiver with this slot is, and do nothing else
    #[arg(long)]
    pub status: bool,
    /// Where the receiver tells how it is [default: a file in the user's runtime folder]
    #[arg(long, value_name = "PATH")]
    pub status_file: Option<String>,
    /// With --status: answer in JSON
    #[arg(long, requires = "status")]
    pub json: bool,
    /// How the log on standard error is written: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What it tells: error, warn, info or debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Stop once the WAL up to this LSN (or all that there is: now) is stored
    #[arg(long, value_name = "LSN|now")]
    pub until: Option<String>,
    /// zstd's level, 1 to 19
    #[arg(long, value_name = "LEVEL")]
    pub compression_level: Option<String>,
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this cluster
    #[arg(long, value_name = "SYSID")]
    pub cluster: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The backup's id
    pub backup: String,
    /// Write the configuration files that were captured with it below this folder
    #[arg(long, value_name = "DIR")]
    pub settings_to: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `salvage`.
#[derive(Debug, Args)]
pub struct SalvageArgs {
    /// The data directory of the dead server; nothing in it is changed
    #[arg(value_name = "PGDATA")]
    pub directory: PathBuf,
    /// Its pg_wal, where that is a link which leads elsewhere now [default: PGDATA/pg_wal]
    #[arg(long, value_name = "DIR")]
    pub wal: Option<PathBuf>,
    /// zstd's level, 1 to 19
    #[arg(long, value_name = "LEVEL")]
    pub compression_level: Option<String>,
    /// Show what would be stored, and store nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The data directory of the recovering server
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Tell where it is now, and end
    #[arg(long)]
    pub once: bool,
    /// How long to wait between two looks [default: 1s]
    #[arg(long, value_name = "DURATION")]
    pub interval: Option<String>,
    /// The role to ask the server as [default: PGUSER, else the owner of the directory]
    #[arg(long = "username", short = 'U', value_name = "ROLE")]
    pub user: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `find`.
#[derive(Debug, Args)]
pub struct FindArgs {
    /// Dropped tables
    #[arg(long)]
    pub drop: bool,
    /// Tables emptied by TRUNCATE
    #[arg(long)]
    pub truncate: bool,
    /// Transactions that deleted so many rows of one table [default: 1000]
    #[arg(long, value_name = "ROWS", num_args = 0..=1, default_missing_value = "1000")]
    pub mass_delete: Option<String>,
    /// Restore points
    #[arg(long)]
    pub restore_points: bool,
    /// This transaction, whatever it did
    #[arg(long, value_name = "N")]
    pub xid: Option<String>,
    /// What was done to this table
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub relation: Option<String>,
    /// Only in this database
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// From A to B, times or positions in the WAL
    #[arg(long, num_args = 2, action = clap::ArgAction::Set, value_names = ["A", "B"], allow_hyphen_values = true)]
    pub between: Option<Vec<String>>,
    /// Every transaction in the minutes around this moment
    #[arg(long, value_name = "TIME", conflicts_with = "between", allow_hyphen_values = true)]
    pub around: Option<String>,
    /// Only on this timeline
    #[arg(long, value_name = "N")]
    pub timeline: Option<String>,
    /// The cluster's system identifier, where the repository holds several
    #[arg(long, value_name = "SYSID")]
    pub cluster: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// How to reach the server.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The server: a URI or key=value pairs, as for psql
    #[arg(long, short = 'd', value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// Its host or socket folder
    #[arg(long, short = 'h', value_name = "HOST")]
    pub host: Option<String>,
    /// Its port
    #[arg(long, short = 'p', value_name = "PORT")]
    pub port: Option<String>,
    /// The role to connect as
    #[arg(long = "username", short = 'U', value_name = "ROLE")]
    pub user: Option<String>,
}

/// `plan` and `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The data directory to make; must be empty or absent [default: PGDATA]
    #[arg(long = "to", short = 'D', visible_alias = "pgdata", value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// The moment to restore.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Stop just before the target, not just after it
    #[arg(long)]
    pub exclusive: bool,
    /// The timeline to follow: its number, or latest
    #[arg(long, value_name = "N", default_value = "latest")]
    pub target_timeline: String,
    /// What the server does when it has arrived: pause, promote or shutdown
    #[arg(long, value_name = "ACTION", default_value = "pause")]
    pub target_action: String,
    /// Start from this backup [default: the newest that serves]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// The cluster's system identifier, where the repository holds several
    #[arg(long, value_name = "SYSID")]
    pub cluster: Option<String>,
    /// Put a tablespace elsewhere; may be repeated
    #[arg(long, value_name = "OLD=NEW")]
    pub tablespace_mapping: Vec<String>,
    /// How many threads decompress and write
    #[arg(long, short, value_name = "N")]
    pub jobs: Option<String>,
    /// Make a standby of the server at CONNINFO
    #[arg(long, value_name = "CONNINFO")]
    pub standby: Option<String>,
    /// Whether the restored server archives its own WAL: keep (what its settings say) or off
    #[arg(long, value_name = "off|keep", default_value = "keep")]
    pub archive: String,
    /// Start the restored server and follow it to its target
    #[arg(long)]
    pub start: bool,
    /// With --start: the server's port, in the place of its configuration's
    #[arg(long, value_name = "N", requires = "start")]
    pub port: Option<u16>,
    /// With --start: the folder of PostgreSQL's programs [or PGP_BINDIR; else they are looked for]
    #[arg(long, value_name = "DIR", requires = "start")]
    pub bindir: Option<String>,
    /// With --start: the server's postgresql.conf, where it lies outside the data directory
    #[arg(long, value_name = "FILE", requires = "start")]
    pub server_config: Option<PathBuf>,
    /// With --start: more for the server's command line, as for pg_ctl -o
    #[arg(long, value_name = "OPTIONS", requires = "start", allow_hyphen_values = true)]
    pub server_options: Option<String>,
    /// With --start, as root: the account that runs the server [default: the directory's owner, or postgres]
    #[arg(long, value_name = "USER", requires = "start")]
    pub run_as: Option<String>,
    /// Don't read the WAL through for damage before the plan is given: only its indexes are looked at
    #[arg(long)]
    pub trust_wal: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// The moment to restore: one of these.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// This moment, for example '2026-11-21 10:20:00+01' or '10 minutes ago'
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub target_time: Option<String>,
    /// This position in the WAL
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<String>,
    /// This transaction
    #[arg(long, value_name = "XID")]
    pub target_xid: Option<String>,
    /// This restore point
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,
    /// The end of the WAL
    #[arg(long)]
    pub latest: bool,
    /// The end of the backup: as soon as it is consistent
    #[arg(long)]
    pub immediate: bool,
}

impl TargetArgs {
    /// Whether none was given.
    pub fn is_none(&self) -> bool {
        let texts = [&self.target_time, &self.target_lsn, &self.target_xid, &self.target_name];
        texts.iter().all(|text| text.is_none()) && !self.latest && !self.immediate
    }
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The repository: PATH, file:///PATH or s3://BUCKET/PREFIX [or PGP_REPO]
    #[arg(long, value_name = "URL", global = true)]
    pub repo: Option<String>,
    /// The settings file [or PGP_CONFIG; else /etc/pgp/pgp.toml or ~/.config/pgp/pgp.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Tell the causes of an error as well
    #[arg(long, global = true)]
    pub verbose: bool,
}

/// Flags that were given, by the setting's name.
pub type Flags = BTreeMap<&'static str, String>;

/// Collects the flags that were given.
pub fn given<const N: usize>(flags: [(&'static str, &Option<String>); N]) -> Flags {
    flags
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect()
}

impl Command {
    /// The flags that are settings as well.
    pub fn flags(&self) -> Flags {
        let server = |server: &ServerArgs| {
            given([
                ("dbname", &server.dbname),
                ("host", &server.host),
                ("port", &server.port),
                ("user", &server.user),
            ])
        };
        match self {
            Self::Check(args) => {
                let mut flags = server(&args.server);
                flags.extend(given([("slot", &args.slot), ("wal_timeout", &args.wal_timeout)]));
                flags
            }
            Self::Backup(args) => {
                let mut flags = server(&args.server);
                flags.extend(given([
                    ("label", &args.label),
                    ("checkpoint", &args.checkpoint),
                    ("max_rate", &args.max_rate),
                    ("slot", &args.slot),
                    ("wal_timeout", &args.wal_timeout),
                    ("compression_level", &args.compression_level),
                    ("jobs", &args.jobs),
                ]));
                flags
            }
            Self::Receive(args) => {
                let mut flags = server(&args.server);
                let set = |on: bool| on.then(|| "true".to_owned());
                flags.extend(given([
                    ("slot", &args.slot),
                    ("create_slot", &set(args.create_slot)),
                    ("synchronous", &set(args.synchronous)),
                    ("tail_interval", &args.tail_interval),
                    ("status_interval", &args.status_interval),
                    ("spool", &args.spool),
                    ("spool_limit", &args.spool_limit),
                    ("durable", &args.durable),
                    ("cluster", &args.cluster),
                    ("status_file", &args.status_file),
                    ("log_format", &args.log_format),
                    ("log_level", &args.log_level),
                    ("compression_level", &args.compression_level),
                ]));
                flags
            }
            Self::Plan(args) | Self::Restore(args) => given([
                ("cluster", &args.cluster),
                ("jobs", &args.jobs),
                ("bindir", &args.bindir),
            ]),
            Self::List(args) => given([("cluster", &args.cluster)]),
            Self::Salvage(args) => given([("compression_level", &args.compression_level)]),
            Self::Find(args) => given([("cluster", &args.cluster)]),
            Self::Init(_) | Self::Show(_) | Self::Watch(_) | Self::Completions(_) => Flags::new(),
        }
    }
}
