//! `pgp-restore %f %p`: PostgreSQL's `restore_command`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgp_pitr::cli::run::restore_command(std::env::args_os())
}
