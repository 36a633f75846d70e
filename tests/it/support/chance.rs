//! Chance that can be replayed.

use chrono::DateTime;
use pgp_pitr::env::Env;

/// Numbers that `PGP_TEST_SEED` brings back; the seed is printed.
#[derive(Debug)]
pub struct Chance(Env);

impl Chance {
    /// From the seed in the environment, or a new one.
    pub fn new() -> Self {
        let process = Env::of_process();
        let seed = match process.var("PGP_TEST_SEED") {
            Some(seed) => seed.parse().expect("PGP_TEST_SEED is a number"),
            None => process.chance(),
        };
        eprintln!("PGP_TEST_SEED={seed}");
        Self(Env::made_up(&[], DateTime::UNIX_EPOCH, seed))
    }

    /// A number from 0 on, below `limit`.
    pub fn below(&self, limit: usize) -> usize {
        usize::try_from(self.0.chance() % limit as u64).expect("below a usize")
    }
}
