//! `pgp-pitr`: everything that is not called by PostgreSQL itself.
fn main() {}
