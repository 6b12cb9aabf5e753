//! What is done to the files of a valid image: edits that find the places that matter, so that the fuzzer need not.

use crate::resum::{Sums, resum};
use arbitrary::Arbitrary;
use std::path::{Path, PathBuf};
use thermocline_storage::sim::SimFs;

/// No file grows beyond this.
const LONGEST: usize = 1 << 20;

/// What structures begin with.
const MARKS: [&[u8]; 16] = [
    b"TCR1",
    b"TCSEGMNT",
    b"TCSEGEND",
    b"TCJF",
    b"TCJB",
    b"TCCP",
    b"TCCB",
    b"TCB1",
    b"TCV1",
    b"TCE1",
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"thermocline-",
    b"\n",
];

/// Where in a file.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum At {
    /// So many bytes behind the beginning of one of its structures.
    Mark(u16, u8),
    /// Anywhere.
    Any(u32),
    /// So many bytes before its end.
    End(u8),
}

/// A number that is likely to matter.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Number {
    /// What is there, and this.
    Add(i8),
    /// A power of two, and this.
    Power(u8, i8),
    /// The length of the file, and this.
    Length(i8),
    /// Where this is in the file, and this.
    Here(i8),
    /// Any.
    Any(u64),
}

/// What is done.
#[derive(Debug, Clone, Arbitrary)]
pub enum Change<'a> {
    /// Bits are turned.
    Xor(u8),
    /// A number of one, two, four or eight bytes.
    Number(u8, Number),
    /// Bytes over those that are there.
    Over(&'a [u8]),
    /// Bytes between those that are there.
    Insert(&'a [u8]),
    /// Bytes are taken out.
    Remove(u8),
    /// Zeros.
    Zero(u16),
    /// What stands elsewhere, over what is here.
    Copy(At, u16),
    /// The file ends here.
    Cut,
    /// The file is this much longer.
    Grow(u16),
}

/// One edit of one file.
#[derive(Debug, Clone, Arbitrary)]
pub struct Edit<'a> {
    /// Which file.
    pub file: u8,
    /// Where.
    pub at: At,
    /// What.
    pub change: Change<'a>,
}

/// Edits, and which checksums are made again behind them.
#[derive(Debug, Clone, Arbitrary)]
pub struct Forgery<'a> {
    /// Checksums to leave as they are: none makes all again.
    pub keep: Sums,
    /// The edits.
    pub edits: Vec<Edit<'a>>,
}

impl At {
    fn find(self, bytes: &[u8]) -> usize {
        match self {
            At::Any(n) => n as usize % (bytes.len() + 1),
            At::End(n) => bytes.len().saturating_sub(usize::from(n)),
            At::Mark(n, plus) => {
                let marks = marks(bytes);
                let mark = if marks.is_empty() { 0 } else { marks[usize::from(n) % marks.len()] };
                (mark + usize::from(plus)).min(bytes.len())
            }
        }
    }
}

/// Where structures begin.
fn marks(bytes: &[u8]) -> Vec<usize> {
    let last = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    let likely = |b: u8| matches!(b, b'T' | b'P' | b't' | b'\n');
    (0..last).filter(|at| likely(bytes[*at]) && MARKS.iter().any(|m| bytes[*at..].starts_with(m))).collect()
}

impl Change<'_> {
    fn apply(&self, bytes: &mut Vec<u8>, at: usize) {
        let left = bytes.len() - at;
        match self {
            Change::Xor(bits) => {
                if let Some(b) = bytes.get_mut(at) {
                    *b ^= bits.max(&1);
                }
            }
            Change::Number(width, number) => {
                let width = (1usize << (width % 4)).min(left);
                let there = bytes[at..at + width].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
                let n = match number {
                    Number::Add(n) => there.wrapping_add_signed((*n).into()),
                    Number::Power(p, n) => (1u64 << (p % 64)).wrapping_add_signed((*n).into()),
                    Number::Length(n) => (bytes.len() as u64).wrapping_add_signed((*n).into()),
                    Number::Here(n) => (at as u64).wrapping_add_signed((*n).into()),
                    Number::Any(n) => *n,
                };
                bytes[at..at + width].copy_from_slice(&n.to_le_bytes()[..width]);
            }
            Change::Over(new) => {
                let n = new.len().min(left);
                bytes[at..at + n].copy_from_slice(&new[..n]);
            }
            Change::Insert(new) if bytes.len() + new.len() <= LONGEST => {
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Insert(_) => {}
            Change::Remove(n) => drop(bytes.drain(at..at + usize::from(*n).min(left))),
            Change::Zero(n) => bytes[at..at + usize::from(*n).min(left)].fill(0),
            Change::Copy(from, n) => {
                let from = from.find(bytes);
                let n = usize::from(*n).min(left).min(bytes.len() - from);
                bytes.copy_within(from..from + n, at);
            }
            Change::Cut => bytes.truncate(at),
            Change::Grow(n) => bytes.resize((bytes.len() + usize::from(*n)).min(LONGEST.max(bytes.len())), 0),
        }
    }
}

impl Forgery<'_> {
    /// Edits some of these files, and makes the checksums of those again. Gives which were edited.
    pub fn apply(&self, disk: &SimFs, files: &[PathBuf], store: &[u8; 16]) -> Vec<PathBuf> {
        let mut edited: Vec<PathBuf> = Vec::new();
        for edit in self.edits.iter().take(16) {
            let Some(path) = files.get(usize::from(edit.file) % files.len().max(1)) else { continue };
            disk.edit(path, |bytes| {
                let at = edit.at.find(bytes);
                edit.change.apply(bytes, at);
            });
            if !edited.contains(path) {
                edited.push(path.clone());
            }
        }
        for path in &edited {
            disk.edit(path, |bytes| resum(path, bytes, store, self.keep));
        }
        edited
    }

    /// Whether every checksum is as the edits left it.
    pub fn keeps_all(&self) -> bool {
        self.keep == Sums(u8::MAX)
    }
}

/// A file of the image, whole, as the fuzzer has it.
pub fn put(disk: &SimFs, path: &Path, bytes: &[u8]) {
    disk.edit(path, |b| {
        b.clear();
        b.extend_from_slice(bytes);
    });
}
