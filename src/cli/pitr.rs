//! `pgp-pitr`: each command from its arguments to its answer.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::CommandFactory;
use serde_json::json;

use super::args::{Command, InitArgs, PitrArgs};
use super::report;
use super::run::{block_on, finish, guarded, open_store, typed};
use super::settings::Settings;
use crate::disk::Created;
use crate::env::Env;
use crate::error::{Caller, Class, Failure, exit_code};
use crate::ops;

/// What messages call the program.
pub(super) const PROGRAM: &str = "pgp-pitr";

/// `pgp-pitr`, whole.
pub fn pitr(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    guarded(PROGRAM, Caller::Person, || {
        let args = match typed::<PitrArgs>(arguments) {
            Ok(args) => args,
            Err(code) => return code.unwrap_or(exit_code(Caller::Person, Class::Usage)),
        };
        let answer = run(&args);
        finish(PROGRAM, Caller::Person, &args.common, answer)
    })
}

fn run(args: &PitrArgs) -> Result<(), Failure> {
    let env = Arc::new(Env::of_process());
    let mut flags = args.command.flags();
    flags.extend(super::args::given([("repo", &args.common.repo)]));
    let settings = Settings::gather(flags, args.common.config.as_deref(), &env)?;
    let session = Session { env, settings };
    match &args.command {
        Command::Init(args) => session.init(args),
        Command::Check(args) => session.check(args),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut PitrArgs::command(), PROGRAM, &mut script);
            Ok(report::answer(&String::from_utf8_lossy(&script))?)
        }
        Command::Backup(args) => session.backup(args),
        Command::Find(args) => session.find(args),
        Command::List(args) => session.list(args),
        Command::Plan(args) => session.plan_or_restore(args, false),
        Command::Receive(args) => session.receive(args),
        Command::Restore(args) => session.plan_or_restore(args, !args.dry_run),
        Command::Salvage(args) => session.salvage(args),
        Command::Show(args) => session.show(args),
        Command::Watch(args) => session.watch(args),
    }
}

/// What every command needs.
pub(super) struct Session {
    pub(super) env: Arc<Env>,
    pub(super) settings: Settings,
}

impl Session {
    fn init(&self, args: &InitArgs) -> Result<(), Failure> {
        let url = self.settings.repo()?;
        if let Some(folder) = url.folder() {
            ops::init::make_folder(folder)?;
        }
        let store = open_store(PROGRAM, &self.settings, &self.env)?;
        let done = block_on(ops::init::init(&store))?;
        if !done.refuses_twice {
            report::warning(
                PROGRAM,
                "this store overwrites objects that it was told only to create: two writers of the same WAL at the \
                 same moment are not kept apart",
            );
        }
        let created = done.created == Created::New;
        let text = match (args.json, created) {
            (true, _) => format!(
                "{}\n",
                json!({"repository": url.to_string(), "id": done.id, "created": created, "encrypted": false,
                       "conditional_create": done.refuses_twice})
            ),
            (false, true) => format!("made the repository {url}\n"),
            (false, false) => format!("{url} is a repository already; nothing was changed\n"),
        };
        Ok(report::answer(&text)?)
    }
}
