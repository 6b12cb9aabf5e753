//! Where metrics and logs go, beside `stats()`: a Redis server, and the command's log file.
//!
//! Invariant: the password of a URL is in no text but [`RedisUrl::expose`]'s, which the file that is written and the
//! connection alone ask for.

use std::fmt;
use std::path::PathBuf;

/// The URL of a Redis server, as it was given. Neither `Debug` nor `Display` shows its password.
///
/// ```
/// use thermocline::config::RedisUrl;
///
/// let url = RedisUrl::from("rediss://reporter:s3cret@redis.example:6380/2");
/// assert_eq!(url.to_string(), "rediss://***:***@redis.example:6380/2");
/// assert!(!format!("{url:?}").contains("s3cret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The URL without what stands before its host, and without options. Of what is no URL, nothing.
    pub fn redacted(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else { return "***".to_owned() };
        // A password that was not encoded may have any of `/?#@` in it, and so may an option, which some programs give the
        // password in: of what could be either nothing is shown.
        let plain = rest.split(['?', '#']).next().unwrap_or_default();
        match (rest.rsplit_once('@'), plain.rsplit_once('@')) {
            (None, _) => format!("{scheme}://{plain}"),
            (Some(last), Some((before, host))) if last.0 == before => format!("{scheme}://***:***@{host}"),
            (Some(_), _) => format!("{scheme}://***"),
        }
    }
}

impl<T: Into<String>> From<T> for RedisUrl {
    fn from(url: T) -> RedisUrl {
        RedisUrl(url.into())
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.redacted())
    }
}

/// Metrics to a Redis server: `[metrics.redis]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisConfig {
    /// The server: `redis://` or `rediss://` (TLS), `[[USER]:PASSWORD@]HOST[:PORT][/DB]`; without a database it is 15.
    /// `None`: no Redis.
    pub url: Option<RedisUrl>,
    /// Seconds between two reports: 1 to 3,600, by default 10.
    pub interval: u64,
    /// What the names of all keys begin with, by default `thermocline`: 1 to 64 letters, digits and `.`, `_`, `-`, `:`.
    pub prefix: String,
    /// Entries that a stream of history keeps, about: 1 to 1,000,000, by default 1,000.
    pub history: u64,
    /// The name of this store among others: as the prefix. `None`: host and the start of the store's id; with memory
    /// alone, host and eight digits at random.
    pub instance: Option<String>,
}

impl Default for RedisConfig {
    fn default() -> RedisConfig {
        let prefix = "thermocline".to_owned();
        RedisConfig { url: None, interval: 10, prefix, history: 1000, instance: None }
    }
}

/// Where metrics go: `[metrics]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// A Redis server.
    pub redis: RedisConfig,
}

/// What is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what needs attention.
    Warn,
    /// And what happened.
    #[default]
    Info,
    /// And details.
    Debug,
    /// And everything.
    Trace,
}

/// When the log goes on in a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LogRotation {
    /// At midnight, UTC, and when it is full.
    #[default]
    Daily,
    /// When it is full.
    Size,
    /// Never.
    Never,
}

/// The log of the command: `[log]`. The library writes none: what it says goes to the program's `tracing` subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogConfig {
    /// The file; `None`: no log.
    pub file: Option<PathBuf>,
    /// What is written.
    pub level: LogLevel,
    /// When a new file is begun.
    pub rotation: LogRotation,
    /// Bytes of a file that is full: 64 KiB to 1 TiB, by default 16 MiB.
    pub max_size: u64,
    /// Files that are kept, the one that is being written included: 1 to 1,000, by default 7.
    pub keep: u64,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            file: None,
            level: LogLevel::default(),
            rotation: LogRotation::default(),
            max_size: 16 << 20,
            keep: 7,
        }
    }
}

/// Longest name.
const LONGEST: usize = 64;

/// What is wrong with a name that keys in Redis are made of, and what would be right.
pub(super) fn check_name(name: &str, value: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".:_-".contains(&b);
    if !value.is_empty() && value.len() <= LONGEST && value.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("{name} = {value:?}: 1 to {LONGEST} letters, digits and . _ : -"))
}

/// What is wrong with the URL, which is not repeated, and what would be right.
pub(super) fn check_url(name: &str, url: &RedisUrl) -> Result<(), String> {
    #[cfg(feature = "redis")]
    let checked = crate::metrics::redis::Target::parse(url.expose()).map(|_| ());
    #[cfg(not(feature = "redis"))]
    let checked: Result<(), String> = {
        let _ = url;
        Err("this program was built without the feature `redis`: leave the setting out, or build with the feature".into())
    };
    checked.map_err(|why| format!("{name}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_of_a_url_that_could_be_a_password() {
        for (url, shown) in [
            ("redis://h:1/3", "redis://h:1/3"),
            ("rediss://me:s3cret@h:1/3", "rediss://***:***@h:1/3"),
            ("redis://:s3c@ret@h", "redis://***:***@h"),
            ("redis://h/0?password=s3cret", "redis://h/0"),
            ("redis://h/0#s3cret", "redis://h/0"),
            ("redis://:s3cret@h/0?password=s3cret#s3cret", "redis://***:***@h/0"),
            ("redis://h?password=s3c@ret", "redis://***"),
            ("redis://me:s3?c@h", "redis://***"),
            ("redis://a:s3@h?x=s3@cret", "redis://***"),
            ("s3cret", "***"),
        ] {
            assert_eq!(RedisUrl::from(url).to_string(), shown, "{url}");
        }
    }
}
