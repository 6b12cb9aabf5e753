//! The catalog's recovery: any bytes as its files, or whole ones forged with right checksums, in either copy or in both.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use thermocline::testing::ManualClock;
use thermocline_fuzz::bound::bounded;
use thermocline_fuzz::edit::{Forgery, put};
use thermocline_fuzz::image::{Image, LATER};
use thermocline_fuzz::watch::Watched;
use thermocline_storage::catalog::{Catalog, NewValue, SHARDS, Setup};
use thermocline_storage::clock::EngineClock;
use thermocline_storage::container::{Known, Purpose};
use thermocline_storage::pair::Pair;
use thermocline_storage::sim::SimFs;
use thermocline_storage::testing::Hollow;
use thermocline_storage::{ContentType, Error, Ident, Place, Tier, Version};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    killed: bool,
    read_only: bool,
    has_containers: bool,
    /// What is done to a file is done to its other copy too.
    both: bool,
    /// Instead of a file.
    raw: Option<(u8, &'a [u8])>,
    forgery: Forgery<'a>,
}

const DIR: &str = "/s/catalog";
/// The files have some ten thousand bytes, and an entry of one takes some tens in RAM; buffers come to a few mebibytes.
const MEMORY: usize = 48 << 20;

fn setup(disk: &SimFs, image: &Image, input: &Input<'_>, open: u64) -> Setup {
    Setup {
        vfs: Arc::new(Watched(disk.clone())),
        dir: DIR.into(),
        store: image.store,
        open,
        clock: Arc::new(EngineClock::new(Arc::new(ManualClock::new(LATER)))),
        read_only: input.read_only,
        has_containers: input.has_containers,
        journal_step: 1 << 12,
    }
}

/// What the catalog says: containers, and of each identity the place.
#[derive(Debug, PartialEq)]
struct Says {
    containers: Vec<Known>,
    places: BTreeMap<Ident, (Place, Option<u64>)>,
    indexed: u64,
}

fn open(setup: Setup) -> Result<(Catalog, Says), String> {
    let (catalog, recovered) = match Catalog::open(setup) {
        Ok(opened) => opened,
        Err(e) => {
            assert!(matches!(e, Error::NewerFormat { .. } | Error::CatalogLost { .. }), "{e}");
            return Err(e.to_string());
        }
    };
    for k in &recovered.containers {
        catalog.containers.attach(*k, Arc::new(Hollow(0)));
    }
    catalog.count_live();
    let says = says(&catalog, recovered.containers);
    Ok((catalog, says))
}

fn says(catalog: &Catalog, containers: Vec<Known>) -> Says {
    let mut places = BTreeMap::new();
    for k in &containers {
        for (ident, place) in catalog.pointing_at(k.no) {
            places.insert(ident, (place, catalog.changed_expiry(ident, place)));
        }
    }
    let walked: usize = (0..SHARDS).map(|no| catalog.walk(no).len()).sum();
    assert_eq!(walked, places.len(), "what is seen lies in containers that are there");
    for e in catalog.containers.all() {
        let live = places.values().filter(|(p, _)| p.container() == e.no).count() as u64;
        assert_eq!(e.live(), live);
    }
    Says { containers, places, indexed: catalog.indexed() }
}

/// A write, made durable.
fn write(catalog: &Catalog) -> Option<(Ident, Place)> {
    let ident = Ident::from_bits(0x0102_0304_0506);
    let reserved = catalog.containers.reserve(Purpose::Write).ok()?;
    let entry = catalog.containers.publish(reserved, Tier::Ssd, 0, 7, Arc::new(Hollow(0)));
    let place = Place::new(entry.no, 128)?;
    let new = NewValue {
        pair: Pair::new(b"a key", &bytes::Bytes::from_static(b"a value")),
        content_type: ContentType::Binary,
        expires_at: 0,
    };
    let value = catalog.lock(ident).put_in_flight(ident, new);
    assert!(catalog.lock(ident).commit(ident, &value, place));
    catalog.sync().unwrap();
    Some((ident, place))
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| {
    let image = Image::get(input.killed);
    let mut files = image.of_name("journal-");
    files.extend(image.of_name("checkpoint-"));
    let disk = image.disk();
    if let Some((file, bytes)) = input.raw {
        put(&disk, &files[usize::from(file) % files.len()], bytes);
    }
    let edited = input.forgery.apply(&disk, &files, &image.store);
    if input.both {
        for path in &edited {
            let name = path.file_name().unwrap();
            for copy in ["a", "b"] {
                let twin = Path::new(DIR).join(copy).join(name);
                put(&disk, &twin, &disk.read(path));
            }
        }
    }
    let copy = disk.kill();
    let before = disk.changes();
    let opened = bounded(MEMORY, || open(setup(&disk, image, &input, 100)));
    let again = open(setup(&copy, image, &input, 100));
    assert_eq!(opened.as_ref().map(|o| &o.1), again.as_ref().map(|o| &o.1), "opening twice gives the same");
    let Ok((catalog, mut says)) = opened else { return };
    if input.read_only {
        assert_eq!(disk.changes(), before, "something was changed");
        return;
    }
    catalog.skip_versions(Version(1 << 40));
    // What was found stays found, with what is written, after a kill and after a checkpoint.
    let written = write(&catalog);
    let left = disk.kill();
    catalog.checkpoint_now().unwrap();
    catalog.close();
    drop(catalog);
    for disk in [left, disk] {
        let (_, found) = open(setup(&disk, image, &input, 101)).expect("it opened before");
        if let Some((ident, place)) = written {
            assert_eq!(found.places.get(&ident).map(|p| p.0), Some(place));
        }
        let mut found = found.places;
        let mut expected = std::mem::take(&mut says.places);
        for map in [&mut found, &mut expected] {
            map.remove(&Ident::from_bits(0x0102_0304_0506));
        }
        assert_eq!(found, expected, "what was found once is found again");
        says.places = expected;
    }
});
