//! What is done to the store: one place of one file.

use crate::store::{End, Rest, content_of, records};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use thermocline_storage::sim::{Dice, SimFs};

/// What a disk loses at once.
const BLOCK: usize = 512;
/// Zeros this near to something else may be fields of the same header: none is longer than this, and what follows one.
const NEAR: usize = 64;
/// Lengths of a file that are tried besides those near boundaries.
const CUTS: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// This bit is turned.
    Flip(usize),
    /// The file ends here.
    Cut(usize),
    /// This block of 512 bytes is zeros.
    Zero(usize),
    Delete,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub path: Arc<Path>,
    pub harm: Harm,
    /// Which of the four lists it is from: those of the first two are few, and matter most.
    weight: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.harm {
            Harm::Flip(bit) => write!(f, "{path}: bit {} of byte {} turned", bit % 8, bit / 8),
            Harm::Cut(len) => write!(f, "{path}: cut to {len} bytes"),
            Harm::Zero(block) => write!(f, "{path}: zeros from {} to {}", block * BLOCK, (block + 1) * BLOCK),
            Harm::Delete => write!(f, "{path}: deleted"),
        }
    }
}

impl Case {
    /// The bytes that are not what they were.
    pub fn hit(&self) -> Range<usize> {
        match self.harm {
            Harm::Flip(bit) => bit / 8..bit / 8 + 1,
            Harm::Cut(len) => len..usize::MAX,
            Harm::Zero(block) => block * BLOCK..(block + 1) * BLOCK,
            Harm::Delete => 0..usize::MAX,
        }
    }

    /// After one in so many of these the store goes on: that takes several times what the rest of the case does.
    pub fn goes_on(&self) -> usize {
        match self.harm {
            Harm::Flip(_) => 8,
            // Of the lengths between those that mean something there are very many.
            _ if self.weight > 1 => 8,
            _ => 2,
        }
    }

    pub fn apply(&self, disk: &SimFs) {
        let hit = self.hit();
        match self.harm {
            Harm::Flip(bit) => disk.edit(&self.path, |b| b[bit / 8] ^= 1 << (bit % 8)),
            Harm::Cut(len) => disk.edit(&self.path, |b| b.truncate(len)),
            Harm::Zero(_) => disk.edit(&self.path, |b| {
                let end = hit.end.min(b.len());
                b[hit.start..end].fill(0);
            }),
            Harm::Delete => disk.delete(&self.path),
        }
    }
}

/// What a byte is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of a header, a footer, a frame, an identity.
    Structure,
    /// Of a value.
    Payload,
    /// Nobody reads it, or it is one of very many that are alike.
    Filler,
    /// Zeros that nothing was written over.
    Nothing,
}

fn kinds(path: &Path, bytes: &[u8]) -> Vec<Kind> {
    let mut kinds = vec![Kind::Nothing; bytes.len()];
    let content = content_of(bytes);
    for at in 0..content {
        let near = &bytes[at.saturating_sub(NEAR)..(at + NEAR + 1).min(content)];
        if near.iter().any(|b| *b != 0) {
            kinds[at] = Kind::Structure;
        }
    }
    for record in records(bytes) {
        kinds[record.payload..record.at.end].fill(Kind::Payload);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // An identity is filled up with blanks.
    if matches!(name.as_str(), "manifest" | "store.a" | "store.b") {
        let text = bytes.iter().rposition(|b| !b.is_ascii_whitespace()).map_or(0, |at| at + 2);
        kinds[text.min(bytes.len())..].fill(Kind::Filler);
    }
    if name.starts_with("checkpoint") {
        // Most of the blocks are of shards in which nothing is, one like the other.
        for at in (64..content.saturating_sub(40)).step_by(1).filter(|at| bytes[*at..].starts_with(b"TCCB")) {
            let (kind, len) = (bytes[at + 4], u64::from_le_bytes(*bytes[at + 16..].first_chunk().unwrap()));
            if (kind == 2 && len == 16) || kind == 3 {
                kinds[at..(at + 40 + len as usize).min(content)].fill(Kind::Filler);
            }
        }
    }
    if path.extension().is_some_and(|e| e == "txt") {
        kinds.fill(Kind::Filler);
    }
    kinds
}

fn flips(rest: &Rest, path: &Path, all: bool, dice: &mut Dice, out: &mut [Vec<Harm>; 4]) {
    let bytes = rest.read(path);
    for (at, kind) in kinds(path, &bytes).into_iter().enumerate() {
        let every = (0..8).map(|bit| Harm::Flip(at * 8 + bit));
        let one = Harm::Flip(at * 8 + dice.below(8) as usize);
        match kind {
            _ if all && at < content_of(&bytes) + 64 => out[1].extend(every),
            // One bit of each first. Both stores have the same files, but for the end of the journal: one of them is
            // enough for every bit.
            Kind::Payload => out[1].push(one),
            Kind::Structure if bytes[at] != 0 => {
                out[1].push(one);
                if rest.end == End::Killed {
                    out[2].extend(every.filter(|bit| *bit != one));
                }
            }
            Kind::Structure if rest.end == End::Killed => out[2].extend(every),
            Kind::Filler if bytes[at] != 0 && dice.one_in(8) => out[3].push(one),
            Kind::Filler | Kind::Nothing if dice.one_in(4_000) => out[3].push(one),
            _ => {}
        }
    }
}

fn cuts(rest: &Rest, path: &Path, all: bool, dice: &mut Dice) -> BTreeSet<usize> {
    let bytes = rest.read(path);
    let (len, content) = (bytes.len(), content_of(&bytes));
    if all {
        // What is behind the content is zeros, of a journal a mebibyte.
        return (0..len).filter(|at| *at < content + 1024 || at.is_multiple_of(4096)).collect();
    }
    let mut edges = vec![0, 64, 128, 2048, 4096, 8192, content, len];
    edges.extend(records(&bytes).into_iter().flat_map(|r| [r.at.start, r.payload, r.at.end]));
    let mut cuts: BTreeSet<usize> =
        edges.iter().flat_map(|e| [e.saturating_sub(1), *e, e + 1]).filter(|at| *at < len).collect();
    cuts.extend((0..content).step_by(BLOCK));
    cuts.extend((0..CUTS).map(|_| dice.below(content as u64) as usize).filter(|at| *at < len));
    cuts
}

/// All cases of these stores, those first that matter most, and of one weight in any order; and how many of them have to
/// be tried before anything is said: those of the first two lists.
pub fn cases(rests: &[Rest], all: bool, seed: u64) -> (Vec<(usize, Case)>, usize) {
    let mut dice = Dice::new(seed);
    let mut by_weight: [Vec<(usize, Case)>; 4] = Default::default();
    for (no, rest) in rests.iter().enumerate() {
        // These two differ from the others in the catalog alone, and the closed one in hardly anything else.
        let catalog_only = matches!(rest.end, End::HalfPublished | End::Published);
        let coarse_only = rest.end == End::Closed;
        for path in rest.files() {
            if catalog_only && !path.to_string_lossy().contains("/catalog/") {
                continue;
            }
            let bytes = rest.read(&path);
            let mut harms: [Vec<Harm>; 4] = Default::default();
            harms[0].push(Harm::Delete);
            harms[1].extend(cuts(rest, &path, all, &mut dice).into_iter().map(Harm::Cut));
            if !all && rest.end == End::Killed {
                // Every length of what was written, the likely ones first.
                let content = content_of(&bytes).min(bytes.len());
                let lengths: Vec<Harm> = (0..content).map(Harm::Cut).collect();
                harms[2]
                    .extend(lengths.into_iter().filter(|cut| !harms[1].contains(cut)).collect::<Vec<_>>());
            }
            let blocks = bytes.chunks(BLOCK).enumerate().filter(|(_, b)| b.iter().any(|b| *b != 0));
            harms[1].extend(blocks.map(|(n, _)| Harm::Zero(n)));
            if all || !coarse_only || path.to_string_lossy().contains("/catalog/") {
                flips(rest, &path, all, &mut dice, &mut harms);
            }
            let path: Arc<Path> = path.into();
            for (weight, harms) in harms.into_iter().enumerate() {
                by_weight[weight]
                    .extend(harms.into_iter().map(|harm| (no, Case { path: path.clone(), harm, weight })));
            }
        }
    }
    for cases in &mut by_weight {
        for n in (1..cases.len()).rev() {
            cases.swap(n, dice.below(n as u64 + 1) as usize);
        }
    }
    println!("cases by weight: {:?}", by_weight.each_ref().map(Vec::len));
    let first = by_weight[0].len() + by_weight[1].len();
    (by_weight.into_iter().flatten().collect(), first)
}
