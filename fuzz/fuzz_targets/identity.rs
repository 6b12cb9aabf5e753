//! Whose a directory is: records of the identity and the manifest, any text or forged ones with right checksums; alone,
//! and as a store is opened with them.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::Arc;
use thermocline_fuzz::bound::bounded;
use thermocline_fuzz::edit::{Forgery, put};
use thermocline_fuzz::image::{DIRS, Image};
use thermocline_fuzz::resum::{Sums, resum};
use thermocline_fuzz::watch::Watched;
use thermocline_storage::Tier;
use thermocline_storage::home::{Home, HomeRequest, OpenFlags, WantedDir};
use thermocline_storage::sim::SimFs;
use thermocline_storage::testing::doors;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    flags: u8,
    /// How many of the directories are asked for.
    dirs: u8,
    /// The edits are made to all records alike.
    all: bool,
    raw: Option<&'a [u8]>,
    forgery: Forgery<'a>,
}

fn contents(disk: &SimFs) -> Vec<(PathBuf, Vec<u8>)> {
    disk.files().into_iter().map(|path| (path.clone(), disk.read(&path))).collect()
}

fn open(disk: &SimFs, input: &Input<'_>) -> Result<String, String> {
    let bit = |n: u8| input.flags & n != 0;
    let flags = OpenFlags {
        without_missing: bit(1),
        discard_missing: bit(2),
        rebuild_catalog: bit(4),
        read_only: bit(8),
    };
    let dirs = DIRS.iter().zip(Tier::DISK).take(1 + usize::from(input.dirs) % 3);
    let request = HomeRequest {
        dirs: dirs.map(|(path, tier)| WantedDir { tier, path: path.into() }).collect(),
        catalog: bit(16).then(|| "/s/catalog".into()),
        flags,
    };
    let before = contents(disk);
    let mut home = Home::open(Arc::new(Watched(disk.clone())), &request).map_err(|e| e.to_string())?;
    let says = format!("{home:?}");
    if flags.read_only {
        drop(home);
        assert!(contents(disk) == before, "something was changed");
        return Ok(says);
    }
    let (store, counter) = (home.store(), home.open_counter());
    home.begin_writing().map_err(|e| e.to_string())?;
    home.finish().map_err(|e| e.to_string())?;
    drop(home);
    // What it wrote is a store that opens, the same, one opening later.
    let request =
        HomeRequest { flags: OpenFlags { without_missing: true, ..OpenFlags::default() }, ..request };
    let home = Home::open(Arc::new(disk.clone()), &request).map_err(|e| format!("not again: {e}")).unwrap();
    assert_eq!((home.store(), home.open_counter()), (store, counter + 1));
    Ok(says)
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| {
    let image = Image::get(false);
    let mut files = image.of_name("store.");
    files.extend(image.of_name("manifest"));
    let disk = image.disk();
    if let Some(raw) = input.raw {
        // As it is, and with a checksum that is right.
        let mut summed = [raw, b"\nchecksum 0000000000000000\n"].concat();
        resum(&files[0], &mut summed, &image.store, Sums(0));
        for bytes in [raw, &summed] {
            if let Some(again) = doors::identity(bytes) {
                assert_eq!(doors::identity(&again).as_ref(), Some(&again), "what was read is written and read again");
            }
        }
        put(&disk, &files[0], &summed);
    }
    let edited = input.forgery.apply(&disk, &files, &image.store);
    if let (true, Some(first)) = (input.all, edited.first()) {
        let bytes = disk.read(first);
        let name = |p: &std::path::Path| p.file_name().map(|n| n.to_string_lossy().starts_with("store."));
        files.iter().filter(|p| name(p) == name(first)).for_each(|p| put(&disk, p, &bytes));
    }
    for path in &edited {
        if let Some(again) = doors::identity(&disk.read(path)) {
            assert_eq!(doors::identity(&again).as_ref(), Some(&again), "what was read is written and read again");
        }
    }
    let copy = disk.kill();
    // A record may have 16 MiB; these have some kilobytes.
    let found = bounded(16 << 20, || open(&disk, &input));
    assert_eq!(found, open(&copy, &input), "opening twice gives the same");
});
