//! From configuration and directories to an engine, and back.
//!
//! Order of opening: directories judged and locked; the open counter raised; the catalog recovered; the tiers
//! attached to what the catalog knows; what points at nothing dropped; the tail verified; then the threads.
//!
//! Invariants:
//! - no answer is given before all of this was done, and the tail is read back: an item whose record did not reach the
//!   disk is absent, never wrong;
//! - no container is deleted before the catalog has said what is live;
//! - what fails on the way is an error that gives the locks back;
//! - closing refuses new operations first, then waits for those under way, then stops the threads, then writes:
//!   nothing is added to what it flushes.
//!
//! A crash while opening leaves what the tables of §7 (*Crash*) and §6 (*Opening*) of the design say: the raised
//! counter, the union of both journals, leftovers gone or not; the next opening does it again. One while closing
//! leaves what a crash of a running store does (§8): at worst no last checkpoint, and a journal to replay.

use super::dials::Dials;
use super::export::Export;
use super::settings::{compression, first_ahead, hdd_config, move_bytes, settings, ssd_config};
use super::tune::{Eyes, Tuner};
use super::{Engine, rebuild};
use crate::budget::Budget;
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::events::{Event, Events, RateLimit};
use crate::heat::Heat;
use crate::metrics::{Latencies, Meters};
use crate::sensors::Sensors;
use crate::stats::Counters;
use crossbeam::queue::SegQueue;
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use thermocline_storage::catalog::{Catalog, JOURNAL_STEP, Recovered, Setup};
use thermocline_storage::clock::{Clock, EngineClock};
use thermocline_storage::codec::{Compression, Effort};
use thermocline_storage::cold::{Cold, ColdConfig};
use thermocline_storage::container::{
    Container, DiskTier, Known, Listed, OpenReport, RawRecord, TierContext, TierDir, Unknown,
};
use thermocline_storage::hdd::Hdd;
use thermocline_storage::home::{DirInfo, Home, HomeRequest, OpenFlags, WantedDir};
use thermocline_storage::item::Head;
use thermocline_storage::memory::{HeatSink, MemoryConfig, MemoryTier};
use thermocline_storage::ssd::Ssd;
use thermocline_storage::vfs::{EntryKind, Vfs};
use thermocline_storage::{Error as StorageError, Hasher, Item, Tier};

/// What an engine gets from outside, so that a simulation can stand behind it.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Whether background threads run the jobs.
    pub(crate) threads: bool,
    /// It is a simulation: sled, which opens files of its own, is left out (indexes are kept in RAM), and the
    /// configuration is taken as it is, so that containers may be tiny.
    pub(crate) simulated: bool,
    /// What the optimizer sees of the machine, if that was given; taken by the first store that is opened.
    pub(crate) sensors: Given,
}

/// Sensors that were given to whoever opens a store first.
#[derive(Clone, Default)]
pub(crate) struct Given(Arc<Mutex<Option<Box<dyn Sensors>>>>);

impl Given {
    pub(crate) fn put(&self, sensors: Box<dyn Sensors>) {
        *self.0.lock() = Some(sensors);
    }

    fn take(&self) -> Option<Box<dyn Sensors>> {
        self.0.lock().take()
    }
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given")
    }
}

/// What opening a store found and did.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// The catalog was rebuilt from the containers: removed and overwritten items may be among them.
    pub rebuilt: bool,
    /// Pieces of the catalog that were damaged in one copy and taken from the other.
    pub mended: u64,
    /// Journal frames replayed.
    pub frames: u64,
    /// Whether the journal ended in the middle of a write.
    pub torn: bool,
    /// Items that are gone because their container is, or because their record did not verify.
    pub lost: u64,
    /// Containers moved to the quarantine, and why.
    pub quarantined: Vec<(std::path::PathBuf, String)>,
    /// Leftovers of a crash that were deleted.
    pub deleted: u64,
    /// Containers and directories that a rebuilding of the catalog, this one or an earlier one, did not see, and why.
    /// What they hold is absent, takes up space, and is kept: opening with
    /// [`rebuild_catalog`](crate::Builder::rebuild_catalog) takes in what can be read by then. Also containers of a
    /// directory that is away which lie in another one: they are kept as well, and belong back there.
    pub unseen: Vec<(std::path::PathBuf, String)>,
}

impl Recovery {
    /// Enters what a tier found, and tells of it; gives the tier back.
    fn take(&mut self, tier: Arc<dyn DiskTier>, found: OpenReport, events: &Events) -> Arc<dyn DiskTier> {
        for (path, why) in &found.quarantined {
            let (tier, path, why) = (tier.tier(), path.clone(), why.clone());
            events.emit(|| Event::Quarantined { tier, path, why, key: None });
        }
        self.quarantined.extend(found.quarantined);
        self.deleted += found.deleted;
        self.unseen.extend(found.unseen);
        tier
    }
}

impl HeatSink for Heat {
    fn add(&self, ident: thermocline_storage::Ident, uses: u32) {
        self.record(ident, uses);
    }
}

/// A container in a directory that is not here: its items are absent until it is back.
#[derive(Debug)]
struct Away {
    path: std::path::PathBuf,
}

impl Away {
    fn error(&self) -> StorageError {
        StorageError::OutOfService { path: self.path.clone(), why: "the directory is not here".into() }
    }
}

impl Container for Away {
    fn read_up_to(&self, _: u32, _: u64) -> Result<Item, StorageError> {
        Err(self.error())
    }
    fn head(&self, _: u32) -> Result<Head, StorageError> {
        Err(self.error())
    }
    fn list(&self) -> Result<Vec<Listed>, StorageError> {
        Err(self.error())
    }
    fn raw(&self, _: u32) -> Option<RawRecord> {
        None
    }
    fn occupied(&self) -> u64 {
        0
    }
}

/// Sketch counters for a store about to fill up; it grows with it.
const FIRST_HEAT: u64 = 65_536;
/// Bytes by which the journal of a simulated store grows, all of which is tiny.
const SIMULATED_STEP: u64 = 4 << 10;
/// The journal's share of a limited directory that holds the catalog: one part in this many for each copy.
const JOURNAL_SHARE: u64 = 32;
/// A journal of fewer bytes does not make a checkpoint due.
const LEAST_JOURNAL: u64 = 1 << 20;

impl Engine {
    /// Opens a store; nothing happens in the background before [`begin`](Self::begin).
    pub(crate) fn open(
        config: &Config,
        flags: OpenFlags,
        world: World,
        events: Arc<Events>,
    ) -> Result<(Arc<Engine>, Recovery)> {
        if !world.simulated {
            config.validate()?;
        }
        let clock = Arc::new(EngineClock::new(world.clock.clone()));
        let (engine, recovery) = if config.has_disk() {
            Self::open_disks(config, flags, &world, clock, events)?
        } else {
            let catalog = Catalog::in_memory(world.vfs.clone(), clock);
            let secret = random_secret(&*world.vfs)?;
            let heat = Arc::new(Heat::new(FIRST_HEAT));
            let parts = (Vec::new(), Meters::default());
            let engine = Self::assemble(config, &world, secret, catalog, parts, heat, None, events);
            (engine, Recovery::default())
        };
        Ok((Arc::new(engine), recovery))
    }

    /// Starts the background threads; if one does not start, those that did end, and the directories are free again.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<()> {
        self.start().inspect_err(|_| {
            let _ = self.close();
        })?;
        self.start_export();
        Ok(())
    }

    fn open_disks(
        config: &Config,
        flags: OpenFlags,
        world: &World,
        clock: Arc<EngineClock>,
        events: Arc<Events>,
    ) -> Result<(Engine, Recovery)> {
        let mut home = Home::open(world.vfs.clone(), &request(config, flags))?;
        home.begin_writing()?;
        let meters = Meters::of(&home);
        let world = &World { vfs: meters.over(world.vfs.clone()), ..world.clone() };
        let (catalog, recovered, rebuilt) = open_catalog(&mut home, flags, world, clock, &meters)?;
        let take_in = flags.rebuild_catalog && !rebuilt && home.rebuilt_in_part().is_some();
        let older = rebuild::older(&home, take_in);
        let unknown = if rebuilt { Unknown::Attach } else { Unknown::Delete };
        let effort = &meters.effort;
        let opened = open_tiers(config, &home, world, &catalog, &recovered, (unknown, older), effort)?;
        let mut recovery = Recovery {
            rebuilt,
            mended: recovered.mended,
            frames: recovered.frames,
            torn: recovered.torn,
            ..Recovery::default()
        };
        let tiers = opened.into_iter().map(|(tier, report)| recovery.take(tier, report, &events)).collect();
        if rebuilt {
            rebuild::rebuild(&catalog, &mut home, &mut recovery.unseen)?;
        } else {
            catalog.count_live();
            recovery.lost += drop_lost(&catalog, &home, &recovered, &events);
            if take_in {
                let known = recovered.containers.iter().map(|k| k.id).collect();
                rebuild::take_in(&catalog, &mut home, &known, &mut recovery.unseen)?;
            } else if older.is_some() {
                rebuild::away(&home, &mut recovery.unseen);
            }
        }
        home.finish()?;
        let first_heat = if world.simulated { 0 } else { FIRST_HEAT };
        let heat = Arc::new(Heat::from_bytes(&recovered.heat, catalog.indexed().max(first_heat)));
        let source = heat.clone();
        catalog.on_checkpoint(move || source.to_bytes());
        let secret = home.secret();
        let share = journal_share(config, &home);
        let parts = (tiers, meters);
        let mut engine = Self::assemble(config, world, secret, catalog, parts, heat, Some(home), events);
        engine.settings.checkpoint_bytes = engine.settings.checkpoint_bytes.min(share);
        engine.advance_credit();
        recovery.lost += engine.verify_tail(&recovered);
        engine.catalog.sync()?;
        Ok((engine, recovery))
    }

    #[expect(clippy::too_many_arguments, reason = "one private constructor for the two ways in")]
    fn assemble(
        config: &Config,
        world: &World,
        secret: [u8; 16],
        catalog: Catalog,
        (tiers, meters): (Vec<Arc<dyn DiskTier>>, Meters),
        heat: Arc<Heat>,
        home: Option<Home>,
        events: Arc<Events>,
    ) -> Engine {
        let memory = MemoryConfig {
            max_bytes: config.memory.max_size,
            max_items: config.memory.item_limit,
            policy: config.memory.policy,
            shards: None,
        };
        let opened_ms = catalog.now();
        let there = home.iter().flat_map(|h| h.dirs()).filter(|d| d.present);
        let directories = there.map(|d| d.path.clone()).collect();
        meters.set_concurrency(config.resources.io.max_concurrent_ops);
        let export = Export::new(config, home.as_ref().map(Home::store));
        Engine {
            hasher: Hasher::new(secret),
            memory: MemoryTier::new(&memory, heat.clone()),
            catalog,
            tiers,
            heat,
            events,
            budget: Budget::new(config.inflight()),
            flights: Arc::default(),
            counters: Counters::default(),
            latencies: Latencies::default(),
            meters,
            settings: settings(config),
            log: RateLimit::new(world.clock.clone()),
            closed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            signals: Default::default(),
            handles: Mutex::default(),
            has_threads: AtomicBool::new(false),
            committing: Mutex::default(),
            writing_large: RwLock::new(()),
            last_failure: Mutex::default(),
            claims: Default::default(),
            urgent: AtomicUsize::new(0),
            placement: Default::default(),
            promotions: SegQueue::new(),
            throttle: Mutex::default(),
            dials: Dials::new(&settings(config)),
            prefetch: Default::default(),
            tuner: Mutex::new(Tuner::new(config)),
            eyes: Mutex::new(Eyes::new(world.sensors.take(), directories)),
            runs: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            beat_ms: AtomicU64::new(opened_ms),
            export,
            open: RwLock::new(()),
            opened_ms,
            home: Mutex::new(home),
            first_dead: Mutex::new(HashMap::new()),
            checkpointed_ms: Mutex::new(opened_ms),
            used: AtomicBool::new(false),
            directories: Mutex::default(),
        }
    }

    /// Verifies what the unsynced end of the journal points at; gives how many items were lost.
    fn verify_tail(&self, recovered: &Recovered) -> u64 {
        let mut lost = 0;
        for (ident, place) in &recovered.tail {
            let at = self.catalog.lock(*ident).durable(*ident).filter(|at| at.place == *place);
            if let Some(at) = at
                && let Err(e) = at.entry.container.read(place.position())
                && e.is_corrupt()
            {
                self.condemn(*ident, *place, &at.entry, &e.to_string(), None);
                lost += 1;
            }
        }
        lost
    }

    /// Closes the store: what is dirty is written, containers are sealed, the catalog is checkpointed, the locks are
    /// let go. The first error is returned; closing goes on all the same.
    pub(crate) fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let left = self.export.leave();
        let all = self.open.write();
        self.stop();
        let mut result = self.flush_all();
        for tier in &self.tiers {
            result = result.and(tier.close().map_err(Error::from));
        }
        if self.has_disk() {
            // The journal is short again, so that the next opening is quick.
            result = result.and(self.catalog.checkpoint_now().map_err(Error::from));
        }
        self.catalog.close();
        self.events.close();
        // Whoever waits for this finds it closed, and waits for no server.
        drop(all);
        // Before others may open it: a farewell that came after their first report would take that away.
        left();
        self.home.lock().take();
        result
    }

    /// Ends as a crash would, as far as one process can play it: nothing more is written.
    pub(crate) fn crash(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let left = self.export.leave();
        let all = self.open.write();
        self.stop();
        drop(all);
        left();
        self.home.lock().take();
    }
}

fn random_secret(vfs: &dyn Vfs) -> Result<[u8; 16]> {
    thermocline_storage::home::random_id(vfs).map_err(Error::from)
}

pub(super) fn request(config: &Config, flags: OpenFlags) -> HomeRequest {
    let of = |tier, dirs: &[config::DirConfig]| {
        dirs.iter().map(|d| WantedDir { tier, path: d.path.clone() }).collect::<Vec<_>>()
    };
    let mut dirs = of(Tier::Ssd, &config.ssd.dirs);
    dirs.extend(of(Tier::Hdd, &config.hdd.dirs));
    dirs.extend(of(Tier::Cold, &config.cold.dirs));
    HomeRequest { dirs, catalog: config.storage.catalog.clone(), flags }
}

/// What a catalog is opened with.
pub(super) fn setup(home: &Home, world: &World, clock: Arc<EngineClock>, read_only: bool) -> Setup {
    let has_containers = home.dirs().iter().any(|d| d.present && holds_containers(&*world.vfs, &d.path));
    Setup {
        vfs: home.catalog_vfs(),
        dir: home.catalog_dir().to_path_buf(),
        store: home.store(),
        open: home.open_counter(),
        clock,
        read_only,
        has_containers,
        journal_step: if world.simulated { SIMULATED_STEP } else { JOURNAL_STEP },
    }
}

fn open_catalog(
    home: &mut Home,
    flags: OpenFlags,
    world: &World,
    clock: Arc<EngineClock>,
    meters: &Meters,
) -> Result<(Catalog, Recovered, bool)> {
    let setup = setup(home, world, clock, false);
    let setup = Setup { vfs: meters.over(setup.vfs.clone()), ..setup };
    if home.catalog_must_rebuild() {
        return Ok((Catalog::rebuild(setup)?, Recovered::default(), true));
    }
    match Catalog::open(setup.clone()) {
        Ok((catalog, recovered)) => Ok((catalog, recovered, false)),
        Err(StorageError::CatalogLost { path, why }) if flags.rebuild_catalog => {
            tracing::warn!(path = %path.display(), why, "the catalog is lost and is rebuilt");
            home.require_rebuild()?;
            Ok((Catalog::rebuild(setup)?, Recovered::default(), true))
        }
        Err(e) => Err(e.into()),
    }
}

fn holds_containers(vfs: &dyn Vfs, dir: &std::path::Path) -> bool {
    ["segments", "generations", "packs"].iter().any(|folder| {
        let folder = dir.join(folder);
        matches!(vfs.kind(&folder), Ok(Some(EntryKind::Dir)))
            && vfs.read_dir(&folder).is_ok_and(|e| e.iter().any(|e| !e.name.ends_with(".tmp")))
    })
}

pub(super) fn open_tiers(
    config: &Config,
    home: &Home,
    world: &World,
    catalog: &Catalog,
    recovered: &Recovered,
    (unknown, older): (Unknown, Option<(u64, Unknown)>),
    effort: &Arc<Effort>,
) -> Result<Vec<(Arc<dyn DiskTier>, OpenReport)>> {
    let away: HashMap<u16, std::path::PathBuf> =
        home.dirs().iter().filter(|d| !d.present).map(|d| (d.no, d.path.clone())).collect();
    for known in &recovered.containers {
        if let Some(path) = away.get(&known.dir) {
            catalog.containers.attach(*known, Arc::new(Away { path: path.clone() }));
        }
    }
    let context = |tier: Tier| {
        let dirs: Vec<TierDir> = limited(config, home, tier)
            .filter(|(d, _)| d.present)
            .map(|(d, limit)| TierDir {
                no: d.no,
                path: d.path.clone(),
                limit,
                // What a directory that has just joined holds is garbage.
                older: older.filter(|_| !d.new),
                anchor: home.anchor(d.no),
            })
            .collect();
        let ours: HashSet<u16> = dirs.iter().map(|d| d.no).chain(away.keys().copied()).collect();
        let known: Vec<Known> = recovered
            .containers
            .iter()
            .filter(|k| k.tier == tier && ours.contains(&k.dir))
            .copied()
            .collect();
        (!dirs.is_empty()).then(|| TierContext {
            vfs: world.vfs.clone(),
            clock: world.clock.clone(),
            store: home.store(),
            containers: catalog.containers.clone(),
            dirs,
            known,
            unknown,
        })
    };
    let mut tiers: Vec<(Arc<dyn DiskTier>, OpenReport)> = Vec::new();
    if let Some(ctx) = context(Tier::Ssd) {
        let (tier, found) = Ssd::open(ctx, ssd_config(config))?;
        tiers.push((tier, found));
    }
    if let Some(ctx) = context(Tier::Hdd) {
        let (tier, found) = Hdd::open(ctx, hdd_config(config, world.simulated))?;
        tiers.push((tier, found));
    }
    if let Some(ctx) = context(Tier::Cold) {
        let cold = ColdConfig {
            pack_size: config.pack_size(),
            compression: if config.cold.compression { compression(config) } else { Compression::none() },
            window: move_bytes(config),
            window_items: usize::try_from(config.resources.cpu.batch_size).unwrap_or(1000),
            read_ahead: first_ahead(config),
            effort: effort.clone(),
        };
        let (tier, found) = Cold::open(ctx, cold)?;
        tiers.push((tier, found));
    }
    Ok(tiers)
}

/// The directories of a tier that were asked for, with their limits in bytes.
fn limited<'a>(
    config: &Config,
    home: &'a Home,
    tier: Tier,
) -> impl Iterator<Item = (&'a DirInfo, Option<u64>)> + use<'a> {
    let limits: Vec<Option<u64>> = match tier {
        Tier::Ssd => config.ssd_limits().into_iter().map(Some).collect(),
        Tier::Hdd => config.hdd_limits().into_iter().map(Some).collect(),
        _ => config.cold_limits(),
    };
    // The limits are those of all directories that were asked for, missing ones included, in their order; in the
    // list of all directories these come first.
    home.dirs().iter().filter(move |d| d.tier == tier).zip(limits)
}

/// Bytes of a journal that a small directory of a tier can spare for one copy. The catalog is not counted in the
/// tier's limit, so beside a small one it is kept small.
fn journal_share(config: &Config, home: &Home) -> u64 {
    let holds = |d: &DirInfo| home.catalog_dir().starts_with(&d.path);
    let limit = Tier::DISK.iter().find_map(|t| limited(config, home, *t).find(|(d, _)| holds(d)));
    let share = limit.and_then(|(_, limit)| limit).map_or(u64::MAX, |limit| limit / JOURNAL_SHARE);
    share.max(LEAST_JOURNAL)
}

/// Takes out what points into containers that are gone for good.
fn drop_lost(catalog: &Catalog, home: &Home, recovered: &Recovered, events: &Events) -> u64 {
    let discarded: HashSet<u16> = home.discarded().iter().copied().collect();
    let gone: HashSet<u16> = recovered
        .containers
        .iter()
        .filter(|k| discarded.contains(&k.dir) || catalog.containers.get(k.no).is_none())
        .map(|k| k.no)
        .collect();
    if gone.is_empty() {
        return 0;
    }
    let lost = catalog.drop_lost(|no| gone.contains(&no));
    if lost > 0 {
        tracing::warn!(containers = gone.len(), items = lost, "containers are gone, and the items in them");
        events.emit(|| Event::Lost { items: lost, containers: gone.len() as u64 });
    }
    lost
}
