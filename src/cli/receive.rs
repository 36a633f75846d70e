//! `pgp-pitr receive`.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::args::ReceiveArgs;
use super::pitr::{PROGRAM, Session};
use super::receive_status::{receive_status, status_file};
use super::run::{block_on, open_store};
use super::settings::SettingsError;
use super::{log, report};
use crate::error::{Class, Explain, Failure};
use crate::ops;
use crate::ops::receive::spool::{DEFAULT_LIMIT, LEAST_LIMIT};
use crate::ops::receive::{self, Options, Pace, Promise, SpoolOptions, Until};
use crate::pg::duration::Span;
use crate::pg::size::Size;
use crate::pg::{Lsn, SystemId};
use crate::replication::SlotName;
use crate::store::Store;

/// Between two tries to open a repository that is away.
const REPOSITORY_PAUSE: Duration = Duration::from_secs(2);

/// A receiver that was given too little to go on.
#[derive(Debug, thiserror::Error)]
enum ReceiveUsage {
    #[error("no replication slot was named")]
    NoSlot,
    #[error("what is in the spool shall count as durable, and there is no spool")]
    NoSpool,
    #[error("--until \"{0}\": neither an LSN nor \"now\"")]
    Until(String),
}

impl Explain for ReceiveUsage {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSlot => Some(
                "give --slot NAME (and --create-slot the first time): without a slot the server may remove WAL before \
                 it was received"
                    .to_owned(),
            ),
            Self::NoSpool => Some("give --spool DIR, a folder on a local disk".to_owned()),
            Self::Until(_) => Some("for example --until 16/B374D848".to_owned()),
        }
    }
}

impl Session {
    pub(super) fn receive(&self, args: &ReceiveArgs) -> Result<(), Failure> {
        if args.status {
            return receive_status(&self.settings, &self.env, args.json);
        }
        log::begin(&self.settings)?;
        let options = self.receive_options(args)?;
        let info = self.server()?;
        let store = self.store_of_receiver(&options)?;
        block_on(async {
            let stop = CancellationToken::new();
            let signals = until_signal(stop.clone())?;
            tokio::select! {
                received = ops::receive::receive(&store, &info, &options, &stop) => received,
                // The second signal: whoever sent it does not want to wait.
                () = signals => Err(receive::ReceiveError::Impatient.into()),
            }
        })
    }

    /// The store. A folder that is away is waited for where a spool shows that it was there.
    fn store_of_receiver(&self, options: &Options) -> Result<Store, Failure> {
        let used = options.spool.as_ref().is_some_and(|spool| spool.folder.is_dir());
        let mut told = false;
        loop {
            match open_store(PROGRAM, &self.settings, &self.env) {
                Err(failure) if used && failure.class() == Class::Unavailable => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(error = %failure, "the repository can't be opened; trying again");
                    }
                    std::thread::sleep(REPOSITORY_PAUSE);
                }
                opened => return opened,
            }
        }
    }

    fn receive_options(&self, args: &ReceiveArgs) -> Result<Options, Failure> {
        let until = match args.until.as_deref() {
            None => None,
            Some("now") => Some(Until::Now),
            Some(text) => match text.parse::<Lsn>() {
                Ok(lsn) => Some(Until::Lsn(lsn)),
                Err(_) => return Err(ReceiveUsage::Until(text.to_owned()).into()),
            },
        };
        let interval = self.interval("tail_interval")?;
        let pace = match self.settings.get::<bool>("synchronous")?.unwrap_or_default() {
            true => Pace::Synchronous,
            false => Pace::Interval(interval),
        };
        let slot = self.settings.read("slot", SlotName::new)?;
        let slot = slot.ok_or(ReceiveUsage::NoSlot)?;
        let status_file = match status_file(&self.settings, &slot, &self.env) {
            Ok(path) => Some(path),
            Err(failure) => {
                report::warning(PROGRAM, &format!("no status is told: {failure}"));
                None
            }
        };
        Ok(Options {
            slot,
            status_file,
            spool: self.spool()?,
            create_slot: self.settings.get::<bool>("create_slot")?.unwrap_or_default(),
            cluster: self.settings.get::<SystemId>("cluster")?,
            pace,
            level: self.settings.compression_level(ops::archive::LEVEL)?,
            status_interval: self.interval("status_interval")?,
            until,
        })
    }

    fn spool(&self) -> Result<Option<SpoolOptions>, Failure> {
        let promise = |text: &str| match text {
            "store" => Ok(Promise::Store),
            "spool" => Ok(Promise::Spool),
            _ => Err("what is durable is what is in the store or in the spool: store or spool"),
        };
        let promise = self.settings.read("durable", promise)?.unwrap_or_default();
        let limit = |text: &str| match text.parse::<Size>() {
            Ok(limit) if limit < LEAST_LIMIT => Err(format!("a spool holds {LEAST_LIMIT} at least")),
            Ok(limit) => Ok(limit),
            Err(error) => Err(error.to_string()),
        };
        let limit = self.settings.read("spool_limit", limit)?.unwrap_or(DEFAULT_LIMIT);
        match self.settings.text("spool") {
            Some((folder, _)) => Ok(Some(SpoolOptions {
                folder: folder.into(),
                limit,
                promise,
            })),
            None if promise == Promise::Spool => Err(ReceiveUsage::NoSpool.into()),
            None => Ok(None),
        }
    }

    fn interval(&self, name: &'static str) -> Result<Duration, SettingsError> {
        let read = |text: &str| match text.parse::<Span>().map(Span::length) {
            Ok(length) if length.is_zero() => Err("it must be longer than nothing".to_owned()),
            Ok(length) => Ok(length),
            Err(error) => Err(error.to_string()),
        };
        Ok(self.settings.read(name, read)?.unwrap_or(Duration::from_secs(1)))
    }
}

/// Tells `stop` of the first signal to end; done at the second.
fn until_signal(stop: CancellationToken) -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(receive::ReceiveError::Signals);
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    Ok(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        }
    })
}
