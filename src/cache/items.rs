//! What is put with a value, and what is known of one.
//!
//! Plain values: nothing here refers to the store, so that an [`Entry`] may outlive its item.

use bytes::Bytes;
use std::time::{Duration, SystemTime};
use thermocline_storage::{ContentType, Tier};

/// One item, as [`Cache::get_entry`](crate::Cache::get_entry) finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// What it was put as, or was found to be.
    pub content_type: ContentType,
    /// The tier that answered.
    pub tier: Tier,
    /// When it expires; `None`: never.
    pub expires_at: Option<SystemTime>,
    /// The order of the write that made it, for [`Cache::put_if_version`](crate::Cache::put_if_version). Later writes
    /// have greater ones, in every later opening of the store, too.
    pub version: u64,
}

/// What is known of an item without its value, as [`Cache::info`](crate::Cache::info) finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Length of the value in bytes.
    pub len: u64,
    /// What it was put as, or was found to be.
    pub content_type: ContentType,
    /// The highest tier that holds it.
    pub tier: Tier,
    /// When it expires; `None`: never.
    pub expires_at: Option<SystemTime>,
    /// The order of the write that made it.
    pub version: u64,
}

/// How a value is put.
///
/// ```
/// # use std::time::Duration;
/// # use thermocline::{Cache, ContentType, PutOptions};
/// # fn main() -> Result<(), thermocline::Error> {
/// # let cache = Cache::builder().memory(16 << 20).open()?;
/// let options = PutOptions::new().content_type(ContentType::Json).ttl(Duration::from_secs(60));
/// cache.put_with("feed/7", r#"{"n":1}"#, options)?;
/// let entry = cache.get_entry("feed/7")?.ok_or(thermocline::Error::Closed)?;
/// assert_eq!(entry.content_type, ContentType::Json);
/// assert!(entry.expires_at.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOptions {
    pub(super) content_type: ContentType,
    pub(super) ttl: Option<Duration>,
    pub(super) forever: bool,
}

impl PutOptions {
    /// Content type found from the bytes, the configured default time to live.
    pub const fn new() -> PutOptions {
        PutOptions { content_type: ContentType::Auto, ttl: None, forever: false }
    }

    /// What the value is, which decides how it is compressed.
    #[must_use]
    pub const fn content_type(mut self, content_type: ContentType) -> PutOptions {
        self.content_type = content_type;
        self
    }

    /// How long it lives, to the millisecond. Zero: it is dead at once.
    #[must_use]
    pub const fn ttl(mut self, ttl: Duration) -> PutOptions {
        self.ttl = Some(ttl);
        self.forever = false;
        self
    }

    /// It lives until it is removed or evicted, whatever the configured default.
    #[must_use]
    pub const fn forever(mut self) -> PutOptions {
        self.ttl = None;
        self.forever = true;
        self
    }
}
