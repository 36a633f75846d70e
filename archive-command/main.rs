//! `pgp-archive %p`: PostgreSQL's `archive_command`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgp_pitr::cli::run::archive_command(std::env::args_os())
}
