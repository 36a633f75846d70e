//! Making a store from an address and settings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::{RepoUrl, Store, StoreError};
use crate::env::Env;

/// One request's bounds. A pack of 32 MiB must pass on a line of 2 Mbit/s; a connection is there at
/// once or not at all; a stalled one is given up after the read timeout.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(150);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of S3 under the names of the `AWS_*` variables in small letters
/// (`aws_access_key_id`, `aws_endpoint_url`, …), whatever they came from.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Settings {
    values: BTreeMap<String, String>,
}

impl S3Settings {
    /// The settings in the environment's `AWS_*` variables.
    pub fn of_environment(env: &Env) -> Self {
        let values = env.vars_with_prefix("AWS_");
        Self {
            values: values
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
        }
    }

    /// Sets a value where the environment has none.
    pub fn set_default(&mut self, name: &str, value: String) {
        self.values.entry(name.to_owned()).or_insert(value);
    }

    /// A setting's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The endpoint, where one is set.
    pub fn endpoint(&self) -> Option<&str> {
        self.get("aws_endpoint_url_s3")
            .or_else(|| self.get("aws_endpoint_url"))
            .or_else(|| self.get("aws_endpoint"))
    }

    /// The endpoint, where it is plain HTTP to another machine: whoever listens reads everything.
    pub fn plain_http_endpoint(&self) -> Option<&str> {
        let endpoint = self.endpoint()?;
        let url = url::Url::parse(endpoint).ok()?;
        let loopback = match url.host()? {
            url::Host::Domain(name) => name == "localhost",
            url::Host::Ipv4(address) => address.is_loopback(),
            url::Host::Ipv6(address) => address.is_loopback(),
        };
        (url.scheme() == "http" && !loopback).then_some(endpoint)
    }
}

impl std::fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.values.keys()).finish()
    }
}

/// Opens the store at `url`. Nothing is made: a folder that isn't there is an error.
///
/// # Errors
/// A folder that isn't there; settings that contradict each other.
pub fn open(url: &RepoUrl, s3: &S3Settings, env: &Arc<Env>) -> Result<Store, StoreError> {
    let objects: Arc<dyn ObjectStore> = match url {
        RepoUrl::Folder(path) => {
            let folder = LocalFileSystem::new_with_prefix(path).map_err(|source| StoreError::NoFolder {
                url: url.clone(),
                source: source.into(),
            })?;
            Arc::new(folder.with_fsync(true))
        }
        RepoUrl::S3 { bucket, prefix } => {
            let bucket = s3_client(bucket, s3).map_err(|source| StoreError::Settings {
                url: url.clone(),
                source: source.into(),
            })?;
            if prefix.is_empty() {
                Arc::new(bucket)
            } else {
                Arc::new(PrefixStore::new(bucket, prefix.as_str()))
            }
        }
    };
    Ok(Store::new(objects, url.clone(), env.clone()))
}

fn s3_client(bucket: &str, settings: &S3Settings) -> object_store::Result<impl ObjectStore + use<>> {
    // The crate's own retries are off: `Retry` is the one place that tries again.
    let once = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: REQUEST_TIMEOUT,
    };
    let options = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_allow_http(
            settings
                .endpoint()
                .is_some_and(|endpoint| endpoint.starts_with("http://")),
        );
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(once);
    for (name, value) in &settings.values {
        // AWS_* variables that mean nothing to this client (AWS_PROFILE, AWS_PAGER…) are not ours.
        if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = settings.endpoint() {
        builder = builder.with_endpoint(endpoint);
    }
    if settings
        .get("aws_region")
        .or_else(|| settings.get("aws_default_region"))
        .is_none()
    {
        builder = builder.with_region("us-east-1");
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoint: &str) -> S3Settings {
        let mut settings = S3Settings::default();
        settings.set_default("aws_endpoint_url", endpoint.to_owned());
        settings
    }

    #[test]
    fn plain_http_is_told_of_only_where_others_may_listen() {
        for quiet in [
            "http://127.0.0.1:9000",
            "http://localhost:1",
            "http://[::1]:1",
            "https://example.com",
        ] {
            assert_eq!(settings(quiet).plain_http_endpoint(), None, "{quiet}");
        }
        assert_eq!(
            settings("http://10.0.0.1:9000").plain_http_endpoint(),
            Some("http://10.0.0.1:9000")
        );
    }

    #[test]
    fn debugging_never_shows_a_secret() {
        let mut settings = S3Settings::default();
        settings.set_default("aws_secret_access_key", "hush".to_owned());
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
