//! What must hold of any tier on disk, whatever is in its files.

use crate::bound::bounded;
use crate::edit::{Forgery, put};
use crate::image::{DIRS, Image, LATER};
use crate::watch::Watched;
use arbitrary::Arbitrary;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thermocline::testing::ManualClock;
use thermocline_storage::cold::{Cold, ColdConfig};
use thermocline_storage::container::{
    Containers, DiskTier, Entry, Known, OpenReport, Purpose, TierContext, TierDir, Unknown,
};
use thermocline_storage::hdd::{Hdd, HddConfig, IndexKind};
use thermocline_storage::sim::SimFs;
use thermocline_storage::ssd::{ReadMode, Ssd, SsdConfig};
use thermocline_storage::{Error, Item, Result, Tier, codec, record};

/// What was found in a tier: file, position and item of each record that could be read.
pub type Contents = Vec<(u64, u32, Option<Item>)>;

/// How the tier meets its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meet {
    /// The catalog knows them.
    Known,
    /// The catalog is rebuilt.
    Rebuilt,
    /// Nothing may be changed.
    ReadOnly,
}

impl Meet {
    /// One of them.
    pub fn of(n: u8) -> Meet {
        [Meet::Known, Meet::Rebuilt, Meet::ReadOnly][usize::from(n) % 3]
    }
}

fn open(ctx: TierContext, tier: Tier) -> Result<(Arc<dyn DiskTier>, OpenReport)> {
    Ok(match tier {
        Tier::Ssd => {
            let config = SsdConfig {
                segment_size: 8 << 10,
                read_mode: ReadMode::Map,
                borrow: false,
                smallest_read: 512,
            };
            let (tier, report) = Ssd::open(ctx, config)?;
            (tier, report)
        }
        Tier::Hdd => {
            let config = HddConfig {
                generation_size: 32 << 10,
                block_size: 4 << 10,
                open_wait: Duration::from_secs(20),
                reserve: 0,
                index: IndexKind::Ram,
                ..HddConfig::for_limit(Some(1 << 20))
            };
            let (tier, report) = Hdd::open(ctx, config)?;
            tier.settle(Duration::from_secs(20));
            (tier, report)
        }
        _ => {
            let (tier, report) =
                Cold::open(ctx, ColdConfig { pack_size: 64 << 10, ..ColdConfig::default() })?;
            (tier, report)
        }
    })
}

/// Opens a tier of this store on this disk and looks at everything in it.
///
/// What must hold: it opens, or says that it is of a newer format; each record that is read is whole, and listed where
/// it is read; reading again gives the same; what is written to the tier then is read back; the end comes.
pub fn look(
    disk: &SimFs,
    tier: Tier,
    dir: &str,
    store: [u8; 16],
    ids: &[u64],
    meet: Meet,
) -> Option<Contents> {
    let containers = Arc::new(Containers::new(1_000));
    let known = |(no, id): (usize, &u64)| Known {
        no: no as u16,
        id: *id,
        tier,
        dir: 0,
        created_ms: 7,
        records: 20,
        earliest_expiry: 0,
    };
    let ctx = TierContext {
        vfs: Arc::new(Watched(disk.clone())),
        clock: Arc::new(ManualClock::new(LATER)),
        store,
        containers: containers.clone(),
        dirs: vec![TierDir {
            no: 0,
            path: Path::new(dir).into(),
            limit: Some(4 << 20),
            older: None,
            anchor: None,
        }],
        known: if meet == Meet::Rebuilt { Vec::new() } else { ids.iter().enumerate().map(known).collect() },
        unknown: match meet {
            Meet::Known => Unknown::Delete,
            Meet::Rebuilt => Unknown::Attach,
            Meet::ReadOnly => Unknown::Ignore,
        },
    };
    let before = disk.changes();
    let (opened, report) = match open(ctx, tier) {
        Ok(opened) => opened,
        Err(e) => {
            assert!(matches!(e, Error::NewerFormat { .. }), "only a newer format is refused: {e}");
            return None;
        }
    };
    if meet == Meet::ReadOnly {
        assert_eq!(disk.changes(), before, "something was changed");
    }
    assert!(report.quarantined.len() + report.missing.len() <= 2 * ids.len() + 4);
    let mut contents = Contents::new();
    for entry in containers.all() {
        let Ok(listed) = entry.container.list() else { continue };
        assert!(listed.windows(2).all(|w| w[0].position < w[1].position), "in order, each once");
        let mut positions: BTreeSet<u32> = listed.iter().map(|l| l.position).collect();
        // Some at which nothing may be.
        positions.extend([0, 1, 128, 129, 255, 256, (1 << 24) - 1, u32::MAX]);
        for position in positions {
            let item = entry.container.read_up_to(position, 1 << 20).ok();
            let again = entry.container.read_up_to(position, 1 << 20).ok();
            assert_eq!(item, again, "reading again gives the same");
            let head = entry.container.head(position).ok();
            if let Some(item) = &item {
                assert_eq!(head.as_ref(), Some(&item.head()));
                if let Ok(value) = codec::decode(item.codec, &item.payload, item.original_len.min(1 << 20)) {
                    assert_eq!(value.len(), item.original_len as usize);
                }
                assert!(entry.container.read_up_to(position, 0).is_err() || item.original_len == 0);
                neighbours(&entry, position);
            }
            // Where nothing is, this looks through the whole file: once will do.
            let worth = item.is_some() || position == 129;
            if let Some(raw) = worth.then(|| entry.container.raw(position)).flatten() {
                let file = disk.read(&raw.path);
                let at = usize::try_from(raw.offset).unwrap();
                let there = file.get(at..at + raw.bytes.len()).unwrap_or_default();
                assert_eq!(there, &raw.bytes[..], "raw bytes are the file's");
                if let Some(item) = item.as_ref().filter(|_| tier != Tier::Cold) {
                    encodes_again(item, &raw.bytes, entry.id);
                }
            }
            if item.is_some() || listed.iter().any(|l| l.position == position) {
                contents.push((entry.id, position, item));
            }
        }
    }
    if meet != Meet::ReadOnly {
        goes_on(&*opened, &containers, &contents);
    }
    opened.close().unwrap();
    Some(contents)
}

/// What is read with a record is what is read by itself.
fn neighbours(entry: &Entry, position: u32) {
    let following = entry.container.following(position, 64 << 10).unwrap_or_default();
    for (at, item) in following {
        assert_ne!(at, position, "no record stands behind itself");
        let alone = entry.container.read_up_to(at, 1 << 20).ok();
        assert_eq!(alone.as_ref(), Some(&item), "at {at}, behind {position}");
    }
}

/// What was read from a record's bytes makes a record that says the same.
fn encodes_again(item: &Item, raw: &[u8], id: u64) {
    let path = Path::new("again");
    let (header, payload) = record::parse(raw, id, path, 0).unwrap();
    let ordinal = header.ordinal;
    assert_eq!(&header.into_item(payload), item);
    let mut bytes = Vec::new();
    record::encode(item, id, ordinal, &mut bytes);
    let (header, payload) = record::parse(&bytes, id, path, 0).unwrap();
    assert_eq!((header.ordinal, &header.into_item(payload)), (ordinal, item));
}

/// The tier takes what is put into it, and gives it back.
fn goes_on(tier: &dyn DiskTier, containers: &Containers, contents: &Contents) {
    if let Some(entry) = containers.all().first() {
        tier.quarantine_record(entry, contents.first().map_or(5, |c| c.1), "for the fuzzer");
    }
    let item = item("after", b"what is written afterwards");
    match tier.write(std::slice::from_ref(&item), Purpose::Reclaim) {
        Ok(written) => {
            let place = written[0].place;
            let entry = containers.get(place.container()).unwrap();
            let back = entry.container.read(place.position()).unwrap();
            assert_eq!((&back.key, back.ident, back.version), (&item.key, item.ident, item.version));
            assert_eq!(codec::decode(back.codec, &back.payload, back.original_len).unwrap(), item.payload);
        }
        // The forged files may leave no room.
        Err(e) => assert!(e.is_no_space(), "{e}"),
    }
    tier.maintain();
    for entry in containers.all() {
        if let Some(entry) = containers.remove(entry.no) {
            tier.drop_container(&entry).unwrap();
        }
    }
}

/// An item that is stored as it is.
pub fn item(key: &str, value: &[u8]) -> Item {
    Item {
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
        ident: thermocline_storage::Ident::from_bits(77),
        version: thermocline_storage::Version(1 << 40),
        expires_at: 0,
        content_type: thermocline_storage::ContentType::Binary,
        codec: thermocline_storage::Codec::None,
        original_len: value.len() as u32,
        payload: bytes::Bytes::copy_from_slice(value),
    }
}

/// What a target of a tier is given.
#[derive(Debug, Arbitrary)]
pub struct Input<'a> {
    killed: bool,
    meet: u8,
    /// Instead of the first file; the edits come on top.
    pub raw: Option<&'a [u8]>,
    forgery: Forgery<'a>,
}

/// Most memory that opening a tier and reading everything in it may take: its fixed buffers, and a value of a mebibyte
/// that is stored in less, twice.
const MEMORY: usize = 24 << 20;

/// Forges the containers of a tier and looks at it, twice.
pub fn run(input: &Input<'_>, tier: Tier, prefix: &str) {
    let image = Image::get(input.killed);
    let no = Tier::DISK.iter().position(|t| *t == tier).unwrap();
    let (dir, files) = (DIRS[no], image.of_name(prefix));
    let ids: BTreeSet<u64> = files.iter().map(|p| crate::resum::number(p)).collect();
    let ids: Vec<u64> = ids.into_iter().collect();
    let disk = image.disk();
    if let Some(raw) = input.raw {
        put(&disk, &files[0], raw);
    }
    let edited = input.forgery.apply(&disk, &files, &image.store);
    let meet = Meet::of(input.meet);
    let look = |disk: &SimFs| look(disk, tier, dir, image.store, &ids, meet);
    let copy = disk.kill();
    let found = bounded(MEMORY, || look(&disk));
    assert_eq!(found, look(&copy), "opening twice gives the same");
    let untouched = edited.is_empty() && input.raw.is_none();
    if input.forgery.keeps_all() || untouched {
        // No checksum was made again, so what is read is what was written.
        let whole = originals(image, tier, dir, &ids);
        for (id, position, item) in found.iter().flatten() {
            let was = whole.iter().find(|(i, p, _)| (i, p) == (id, position)).and_then(|w| w.2.as_ref());
            assert!(item.is_none() || item.as_ref() == was, "{id:x} {position}: {item:?} was {was:?}");
            assert!(!untouched || item.is_some() == was.is_some());
        }
    }
}

/// What is in the tier when nothing was forged.
fn originals(image: &Image, tier: Tier, dir: &str, ids: &[u64]) -> Contents {
    look(&image.disk(), tier, dir, image.store, ids, Meet::ReadOnly).unwrap()
}
