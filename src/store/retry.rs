//! Trying again, within bounds.

use std::time::Duration;

use super::StoreError;
use crate::env::Env;

/// How long one call to the store may take, retries included, and how the pauses between tries grow.
///
/// Dropping the future ends everything at once: nothing goes on in the background.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    total: Duration,
    first_pause: Duration,
    longest_pause: Duration,
}

impl Default for Retry {
    /// Thirty seconds: longer than a failover of the usual stores, short enough that an archiver
    /// still tells its log within PostgreSQL's own minute of patience.
    fn default() -> Self {
        Self::within(Duration::from_secs(30))
    }
}

impl Retry {
    /// Tries for `total`, with pauses from 100 ms, doubled up to 5 s, each jittered.
    pub const fn within(total: Duration) -> Self {
        Self {
            total,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
        }
    }

    /// The same, for no longer than `total`.
    #[must_use]
    pub fn at_most(self, total: Duration) -> Self {
        Self {
            total: self.total.min(total),
            ..self
        }
    }

    /// How long one call may take.
    pub(super) const fn total(&self) -> Duration {
        self.total
    }

    pub(super) async fn run<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        env: &Env,
        call: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let deadline = tokio::time::Instant::now() + self.total;
        let mut pause = self.first_pause;
        loop {
            let error = match tokio::time::timeout_at(deadline, call()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => return Err(StoreError::Timeout(self.total)),
            };
            let wait = env.jittered(pause);
            if !error.is_passing() || tokio::time::Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(self.longest_pause);
        }
    }
}
