//! What the tests of more than one part of the engine begin with: what they end with, stores in which nothing happens by
//! itself, what goes into them and is to be moved, and machines that have nothing to do.

use super::moves::Mover;
use crate::optimizer::{Action, Change, Goal};
use crate::sensors::{Readings, SimulatedSensors};
use crate::testing::{ManualClock, vfs::RealFs};
use crate::{Builder, Cache};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thermocline_storage::Version;
use thermocline_storage::container::Listed;
use thermocline_storage::testing::noise;

/// What a test ends with, and its helpers.
pub(super) type Try<T = ()> = Result<T, Box<dyn std::error::Error>>;

pub(super) const MIB: u64 = 1 << 20;

/// A store of all four tiers.
pub(super) fn builder(dir: &Path) -> Builder {
    Cache::builder()
        .memory(64 * MIB)
        .ssd(dir.join("s"), 256 * MIB)
        .hdd(dir.join("h"), 256 * MIB)
        .cold(dir.join("c"))
}

/// Without threads: nothing happens but what the test asks for.
pub(super) fn open(builder: Builder) -> Try<Cache> {
    Ok(open_with_clock(builder)?.0)
}

/// The same, and its clock.
pub(super) fn open_with_clock(builder: Builder) -> Try<(Cache, Arc<ManualClock>)> {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    Ok((builder.world(Arc::new(RealFs), clock.clone(), false).open()?, clock))
}

/// Puts a value of so many bytes under each of these keys, and flushes.
pub(super) fn fill(cache: &Cache, keys: Range<u32>, bytes: usize) -> Try {
    for no in keys {
        cache.put(no.to_be_bytes(), noise(no.into(), bytes))?;
    }
    Ok(cache.flush()?)
}

/// These, of so many bytes each, wherever on disk they are: to be moved in one go, as reclaim does it.
pub(super) fn movers(cache: &Cache, keys: Range<u32>, bytes: u32) -> Try<Vec<Mover>> {
    let engine = cache.engine();
    let of = |no: u32| {
        let ident = engine.ident(&no.to_be_bytes())?;
        let at = engine.catalog.lock(ident).durable(ident).ok_or("it is on disk")?;
        let position = at.place.position();
        let listed = Listed { position, ident, version: Version(0), expires_at: 0, bytes };
        Ok(Mover { entry: at.entry, listed })
    };
    keys.map(of).collect()
}

/// Memory holds none of these.
pub(super) fn forget(cache: &Cache, keys: impl IntoIterator<Item = u32>) -> Try {
    for no in keys {
        cache.engine().memory.remove(cache.engine().ident(&no.to_be_bytes())?);
    }
    Ok(())
}

/// What the optimizer might have decided.
pub(super) fn action(change: Change) -> Action {
    Action { change, goal: Goal::MemoryUse, because: "a test".to_owned(), takes_back: false }
}

/// Does it.
pub(super) fn act(cache: &Cache, change: Change) -> Result<(), String> {
    cache.engine().act(&action(change))
}

/// The last record's outcomes, by what was to change.
pub(super) fn done(cache: &Cache) -> Vec<(Change, Result<(), String>)> {
    let last = cache.optimizer().last();
    last.into_iter().flat_map(|r| r.outcomes).map(|o| (o.action.change, o.result)).collect()
}

/// Readings of one second after another, each as `change` makes it of a machine that has nothing to do.
pub(super) fn script(n: u64, change: impl Fn(u64, &mut Readings)) -> SimulatedSensors {
    SimulatedSensors::new((0..n).map(|at| {
        let mut r = Readings::default();
        (r.monotonic, r.boot) = (Duration::from_secs(at), Duration::from_secs(at));
        r.memory.limit = Some(1024 * MIB);
        r.memory.available = Some(512 * MIB);
        r.process.anonymous = Some(100 * MIB);
        r.cpu.machine_percent = Some(5.0);
        change(at, &mut r);
        r
    }))
}
