//! The whole engine on a forged store: all of its files, the catalog's and the containers' together.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use thermocline::Cache;
use thermocline_fuzz::bound::bounded;
use thermocline_fuzz::edit::Forgery;
use thermocline_fuzz::image::{Image, builder, clock};
use thermocline_fuzz::value;
use thermocline_fuzz::watch::Watched;
use thermocline_storage::sim::SimFs;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    killed: bool,
    /// The catalog is rebuilt if it is lost.
    rebuild: bool,
    /// What is done afterwards.
    steps: u8,
    forgery: Forgery<'a>,
}

/// Of each key what it is now.
type Says = Vec<Option<bytes::Bytes>>;

/// The configuration's memory, what is in flight, and everything that is fixed.
const MEMORY: usize = 64 << 20;

fn open(disk: &SimFs, image: &Image, input: &Input<'_>) -> Option<(Cache, Says)> {
    let builder = builder(Arc::new(Watched(disk.clone())), clock()).rebuild_catalog(input.rebuild);
    let cache = match builder.open() {
        Ok(cache) => cache,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return None;
        }
    };
    let says = image.values.keys().map(|key| cache.get(key).unwrap_or_default()).collect();
    Some((cache, says))
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| {
    let image = Image::get(input.killed);
    let disk = image.disk();
    let edited = input.forgery.apply(&disk, &image.files, &image.store);
    let copy = disk.kill();
    bounded(MEMORY, || {
        let opened = open(&disk, image, &input);
        let again = open(&copy, image, &input);
        assert_eq!(opened.as_ref().map(|o| &o.1), again.as_ref().map(|o| &o.1), "opening twice gives the same");
        if let Some((cache, _)) = again {
            cache.crash();
        }
        let Some((cache, says)) = opened else { return };
        // Without right checksums nothing is read but what was put. (With a damaged catalog that may be an older value:
        // the image's edits are any number.)
        if input.forgery.keeps_all() {
            for ((key, all), value) in image.values.iter().zip(&says) {
                assert!(value.is_none() || all.contains(value), "{key} is {value:?}");
            }
        }
        if edited.is_empty() {
            for ((key, all), value) in image.values.iter().zip(&says) {
                let expired = key.ends_with("/1");
                assert!(value == all.last().unwrap() || expired && value.is_none(), "{key} is {value:?}");
            }
        }
        go_on(&cache, input.steps);
        let closed = cache.close();
        drop(cache);
        // What was closed opens, unless the forged files say that it is of another time or format.
        if closed.is_ok() {
            let (cache, _) = open(&disk, image, &input).expect("it was closed in peace");
            assert_eq!(value::number("fuzz/after", &cache.get("fuzz/after").unwrap().unwrap()), Some(9));
            cache.close().unwrap();
        }
    });
});

/// The store takes what is put, and its background work goes on.
fn go_on(cache: &Cache, steps: u8) {
    let keys: Vec<_> = cache.keys("").take(1_000).collect();
    assert!(keys.len() < 1_000);
    let _ = cache.verify();
    let value = value::make("fuzz/after", 9, 300);
    let put = cache.put("fuzz/after", value.clone());
    for _ in 0..steps % 4 {
        let _ = cache.step();
    }
    let _ = cache.flush();
    put.unwrap();
    assert_eq!(cache.get("fuzz/after").unwrap(), Some(value));
    let _ = cache.stats();
}
