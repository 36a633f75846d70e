//! `pgp-pitr`: everything that PostgreSQL does not call itself.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgp_pitr::cli::pitr(std::env::args_os())
}
