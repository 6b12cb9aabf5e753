//! A generation looked at by who changes nothing: every live record, and what else is there: both headers of each value
//! file, the headers of the blocks, the seal and the index that it describes.
//!
//! sled is not asked: what it left is compared with the seal, to the bit, and that is all that it is trusted for when
//! it is opened. The index in RAM that the records are found by is that of a scan, which passes over every block, and
//! is let go of again, so that one generation's at a time is held.

use super::generation::Generation;
use super::scan::Found;
use super::seal::{self, Seal};
use super::value::Header;
use crate::container::Container;
use crate::error::Result;
use crate::flaw::{Flaw, Part};
use crate::item::Item;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Reads the live records of a generation and gives what else is wrong with it.
pub(super) fn examine(
    generation: &Arc<Generation>,
    read: &dyn Container,
    live: &[u32],
    each: &mut dyn FnMut(u32, Result<Item>),
) -> Vec<Flaw> {
    let mut found = headers(generation);
    let wanted: BTreeSet<u32> = live.iter().copied().collect();
    // Of each value file where the first live record is that stands alone, and how many there are. A record that is
    // live was synced with its block, so the block's header was whole once.
    let mut alone: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    let begun = generation.core.clock.awake_ms();
    let index = generation.rebuild_watched(&mut |no, found| {
        if let Found::Record(at, header) = found
            && wanted.contains(&header.ordinal)
        {
            alone.entry(no).or_insert((*at, 0)).1 += 1;
        }
    });
    for (no, (at, count)) in alone {
        let why = format!(
            "the header of a block near byte {at} is damaged; {count} live records are found without it"
        );
        found.push(Flaw::new(generation.value_path(no), Part::Block, why));
    }
    match index {
        Ok(ram) => {
            generation.set_ram(ram, begun);
            live.iter().for_each(|record| each(*record, read.read(*record)));
            generation.drop_ram();
        }
        Err(e) => {
            let again = || crate::Error::io("read", &generation.path, std::io::Error::other(e.to_string()));
            live.iter().for_each(|record| each(*record, Err(again())));
        }
    }
    found.extend(sealed(generation));
    found
}

fn headers(generation: &Generation) -> Vec<Flaw> {
    let mut found = Vec::new();
    for (no, _) in generation.values() {
        let path = generation.value_path(no);
        // What cannot be opened cannot be read either, and each of its records is told of.
        let Ok(file) = generation.file(no) else { continue };
        for (copy, header) in Header::copies(&*file, &path).into_iter().enumerate() {
            let why = match header {
                Ok(h) if h.container == generation.id && h.file == no => continue,
                Ok(_) => "it is of another value file".to_owned(),
                Err(e) => e.to_string(),
            };
            found.push(Flaw::new(&path, Part::Header, format!("copy {} of 2: {why}", copy + 1)));
        }
    }
    found
}

/// Checks the seal, if there is one: a generation whose process ended before its index was written has none.
fn sealed(generation: &Generation) -> Vec<Flaw> {
    let (vfs, folder) = (&*generation.dir.vfs, &generation.path);
    let path = folder.join(seal::NAME);
    if matches!(vfs.kind(&path), Ok(None)) {
        return Vec::new();
    }
    let seal = match Seal::read(vfs, folder, generation.id) {
        Ok(seal) => seal,
        Err(e) => return vec![Flaw::new(&path, Part::Index, format!("the seal of the index: {e}"))],
    };
    let mut found = Vec::new();
    let there: BTreeMap<u16, u64> = generation.values().into_iter().collect();
    for (no, len) in &seal.values {
        let why = match there.get(no) {
            Some(end) if end >= len => continue,
            Some(end) => format!("it is {end} bytes long, and was {len}"),
            None => "it is not there".to_owned(),
        };
        found.push(Flaw::new(generation.value_path(*no), Part::Container, why));
    }
    if there.keys().any(|no| !seal.values.iter().any(|(sealed, _)| sealed == no)) {
        found.push(Flaw::new(&path, Part::Index, "the index does not cover all value files"));
    }
    let index = folder.join(seal::index_name(seal.index));
    if let Err(e) = seal.check(vfs, folder) {
        found.push(Flaw::new(&index, Part::Index, e.to_string()));
    } else if matches!(
        vfs.kind(&folder.join(format!("{}.abandoned", seal::index_name(seal.index)))),
        Ok(Some(_))
    ) {
        found.push(Flaw::new(&index, Part::Index, "sled failed in it while the store was used"));
    }
    found
}
