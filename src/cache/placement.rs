//! Where an item lies, when the caller decides: up, down, and directories put back in service.
//!
//! A crash in the middle of a move leaves the item where it was, or where it was to go: the move protocol's promise
//! (the engine's `moves.rs`).

use super::Cache;
use crate::error::Result;
use thermocline_storage::Tier;

impl Cache {
    /// Moves a key down to a tier, out of memory included; says whether anything changed. Done, and as durable as
    /// before, when it returns. To memory nothing moves down: then it changes nothing.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// use thermocline::{Cache, Error, Tier};
    ///
    /// cache.put("report", "of the year before")?;
    /// assert!(cache.demote("report", Tier::Cold)?);
    /// assert_eq!(cache.tier_of("report")?, Some(Tier::Cold));
    /// assert!(!cache.demote("report", Tier::Ssd)?); // that would be up
    ///
    /// let memory_alone = Cache::builder().memory(16 << 20).open()?;
    /// memory_alone.put("k", "v")?;
    /// assert!(matches!(memory_alone.demote("k", Tier::Cold), Err(Error::NoSuchTier(Tier::Cold))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `NoSuchTier`; otherwise as [`put`](Self::put).
    pub fn demote(&self, key: impl AsRef<[u8]>, tier: Tier) -> Result<bool> {
        self.engine().demote(key.as_ref(), tier)
    }

    /// Moves a key up to a tier; says whether anything changed. Done, and as durable as before, when it returns. To
    /// memory goes a copy; its record stays where it is.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// use thermocline::Tier;
    ///
    /// cache.put("k", "v")?;
    /// cache.demote("k", Tier::Cold)?;
    /// assert!(cache.promote("k", Tier::Ssd)?); // its record moves to the SSD
    /// assert!(cache.promote("k", Tier::Memory)?); // a copy enters memory; the record stays on the SSD
    /// assert_eq!(cache.tier_of("k")?, Some(Tier::Memory));
    /// assert!(!cache.promote("k", Tier::Memory)?); // it is there
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `NoSuchTier`; otherwise as [`put`](Self::put).
    pub fn promote(&self, key: impl AsRef<[u8]>, tier: Tier) -> Result<bool> {
        self.engine().promote(key.as_ref(), tier)
    }

    /// Tries the directories of a tier that are out of service now, and puts those back that work; says whether the
    /// whole tier is in service. By itself each is tried every 30 s.
    ///
    /// A directory goes out of service when writing fails in it, or when a read failed and it turns out that writing
    /// does, too: it takes no writes then, and what it holds is read as far as it can be, while reads and writes go on
    /// in the others. Events tell of it ([`TierOutOfService`](crate::Event::TierOutOfService),
    /// [`TierBack`](crate::Event::TierBack)), and [`TierStats::out_of_service`](crate::TierStats::out_of_service).
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// use thermocline::Tier;
    ///
    /// // What a monitor may do every minute.
    /// for tier in Tier::DISK {
    ///     if !cache.put_back(tier)? {
    ///         for (path, why) in cache.stats().tier(tier).iter().flat_map(|t| &t.out_of_service) {
    ///             println!("{}: {why}", path.display());
    ///         }
    ///     }
    /// }
    /// # assert!(cache.put_back(Tier::Ssd)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `NoSuchTier` for memory and for a tier that the store does not have; `Closed`.
    pub fn put_back(&self, tier: Tier) -> Result<bool> {
        self.engine().put_back(tier)
    }
}
