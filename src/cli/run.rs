//! From arguments to an exit code.

use std::ffi::OsString;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;

use super::args::{ArchiveArgs, Common, FetchArgs, given};
use super::report;
use super::settings::Settings;
use crate::env::Env;
use crate::error::{Caller, Class, Failure, exit_code};
use crate::ops;
use crate::pg::SystemId;
use crate::pg::duration::Span;
use crate::store::{self, Store};

/// `pgp-archive`, whole: PostgreSQL runs it in the data directory.
pub fn archive_command(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    guarded("pgp-archive", Caller::ArchiveCommand, || {
        let args = match typed::<ArchiveArgs>(arguments) {
            Ok(args) => args,
            Err(code) => return code.unwrap_or(exit_code(Caller::ArchiveCommand, Class::Usage)),
        };
        let answer = (|| {
            let env = Arc::new(Env::of_process());
            let flags = given([
                ("repo", &args.common.repo),
                ("compression_level", &args.compression_level),
            ]);
            let settings = Settings::gather(flags, args.common.config.as_deref(), &env)?;
            let store = open_store("pgp-archive", &settings, &env)?;
            let level = settings.compression_level(ops::archive::LEVEL)?;
            let stored = block_on(ops::archive::archive(&store, &args.path, Path::new("."), level))?;
            if let Some(doubt) = stored.doubt {
                report::warning(
                    "pgp-archive",
                    &format!(
                        "{doubt}; it is archived as it is, and no recovery may get past that place: look at it with \
                         pg_waldump, check the server's disk and memory, and take a new base backup"
                    ),
                );
            }
            Ok(())
        })();
        finish("pgp-archive", Caller::ArchiveCommand, &args.common, answer)
    })
}

/// `pgp-restore`, whole: PostgreSQL runs it in the data directory.
pub fn restore_command(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let caller = if Path::new("recovery.signal").exists() {
        Caller::RecoverySignal
    } else {
        Caller::RestoreCommand
    };
    guarded("pgp-restore", caller, || {
        let args = match typed::<FetchArgs>(arguments) {
            Ok(args) => args,
            Err(code) => return code.unwrap_or(exit_code(caller, Class::Usage)),
        };
        let answer = (|| {
            let env = Arc::new(Env::of_process());
            let flags = given([
                ("repo", &args.common.repo),
                ("restore_retry", &args.retry_for),
                ("cluster", &args.cluster),
            ]);
            let settings = Settings::gather(flags, args.common.config.as_deref(), &env)?;
            let request = ops::fetch::Request {
                file: args
                    .file
                    .parse()
                    .map_err(|error| ops::fetch::FetchError::Name { error })?,
                path: &args.path,
                data_directory: Path::new("."),
                cluster: settings.get::<SystemId>("cluster")?,
                retry_for: settings
                    .get::<Span>("restore_retry")?
                    .map_or(ops::fetch::RETRY_FOR, Span::length),
            };
            let open = || open_store("pgp-restore", &settings, &env);
            let tell = |how: &str| report::warning("pgp-restore", how);
            block_on(ops::fetch::fetch(open, &request, &env, tell))
        })();
        finish("pgp-restore", caller, &args.common, answer)
    })
}

/// Opens the store that the settings name, with a warning where others may listen.
pub(super) fn open_store(program: &str, settings: &Settings, env: &Arc<Env>) -> Result<Store, Failure> {
    let s3 = settings.s3();
    let url = settings.repo()?;
    if let (None, Some(endpoint)) = (url.folder(), s3.plain_http_endpoint()) {
        report::warning(
            program,
            &format!("{endpoint} is plain HTTP: whoever listens reads everything"),
        );
    }
    Ok(store::open(&url, &s3, env)?)
}

/// Runs a command on a runtime of its own, of one thread: 30 % faster than several for one stream.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(source) => Err(RuntimeError(source).into()),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the system gave no resources to start with")]
struct RuntimeError(#[source] std::io::Error);

impl crate::error::Explain for RuntimeError {
    fn class(&self) -> Class {
        Class::Failed
    }
}

/// Reads arguments; `Err` holds the exit code where clap has said all there is to say, and `None`
/// where what was typed makes no sense.
pub(super) fn typed<A: Parser>(arguments: impl Iterator<Item = OsString>) -> Result<A, Option<u8>> {
    A::try_parse_from(arguments).map_err(|error| {
        // With stderr gone there is nobody left to tell.
        let _ = error.print();
        matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion).then_some(0)
    })
}

/// Reports an outcome and gives its exit code.
pub(super) fn finish(program: &str, caller: Caller, common: &Common, answer: Result<(), Failure>) -> u8 {
    match answer {
        Ok(()) => 0,
        // PostgreSQL asks for files that don't exist as a matter of course: an answer, not an error.
        Err(failure) if failure.class() == Class::NotFound && caller != Caller::Person => {
            report::note(&format!("{program}: {failure}"));
            exit_code(caller, failure.class())
        }
        Err(failure) => {
            report::failure(program, &failure, common.verbose);
            exit_code(caller, failure.class())
        }
    }
}

/// A bug must not look like an answer: Rust's own exit code for a panic, 101, would tell PostgreSQL
/// "no such file", and end recovery.
pub(super) fn guarded(program: &str, caller: Caller, run: impl FnOnce() -> u8) -> ExitCode {
    crate::disk::keep_from_others();
    let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        report::warning(
            program,
            "this is a bug in pgp-pitr; please report it with the lines above",
        );
        exit_code(caller, Class::Failed)
    });
    ExitCode::from(code)
}
