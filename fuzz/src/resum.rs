//! Checksums made again after edits, so that what is behind them is reached: from the formats as `docs/design.md` and
//! the heads of the modules tell them, not from the engine's code.

use arbitrary::Arbitrary;
use std::path::Path;
use thermocline_storage::record::checksum;

/// Kinds of checksums, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub struct Sums(pub u8);

impl Sums {
    const PAYLOADS: u8 = 1;
    const RECORDS: u8 = 2;
    const BLOCKS: u8 = 4;
    const HEADS: u8 = 8;
    const FOOTERS: u8 = 16;
    const TEXTS: u8 = 32;

    fn again(self, kind: u8) -> bool {
        self.0 & kind == 0
    }
}

fn int(b: &[u8], at: usize, len: usize) -> u64 {
    b.get(at..at + len).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn size(b: &[u8], at: usize, len: usize) -> usize {
    usize::try_from(int(b, at, len)).unwrap_or(usize::MAX)
}

fn set(b: &mut [u8], at: usize, sum: u64) {
    if let Some(slot) = b.get_mut(at..at + 8) {
        slot.copy_from_slice(&sum.to_le_bytes());
    }
}

/// The hexadecimal number behind a name's last `-`, and of a value file that of its folder.
pub fn number(path: &Path) -> u64 {
    let of = |p: &Path| {
        let name = p.file_name()?.to_str()?.strip_suffix(".zip").or(p.file_name()?.to_str())?;
        u64::from_str_radix(name.rsplit('-').next()?, 16).ok()
    };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name.starts_with("values-") { path.parent().and_then(of) } else { of(path) }.unwrap_or(0)
}

/// Makes the checksums of a file of this store again, as its name and its contents say which.
pub fn resum(path: &Path, b: &mut [u8], store: &[u8; 16], keep: Sums) {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let id = number(path);
    let catalog = checksum(id, store);
    let last = b.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    if name.starts_with("seg-") {
        records(b, last, id, keep);
        segment(b, id, keep);
    } else if name.starts_with("values-") {
        records(b, last, id, keep);
        values(b, last, id, keep);
    } else if name.starts_with("pack-") {
        pack(b, last, catalog, keep);
    } else if name.starts_with("journal-") {
        journal(b, last, catalog, keep);
    } else if name.starts_with("checkpoint-") {
        checkpoint(b, last, catalog, keep);
    } else if keep.again(Sums::TEXTS) {
        text(b);
    }
}

fn records(b: &mut [u8], last: usize, id: u64, keep: Sums) {
    for at in (0..last).step_by(32) {
        if b[at..].starts_with(b"TCR1") {
            record(&mut b[at..], id, keep);
        }
    }
}

/// The record that the bytes begin with.
pub fn record(b: &mut [u8], id: u64, keep: Sums) {
    let (key, stored) = (size(b, 6, 2), size(b, 36, 4));
    if keep.again(Sums::PAYLOADS)
        && let Some(payload) = b.get(64 + key..64usize.saturating_add(key).saturating_add(stored))
    {
        let sum = checksum(int(b, 8, 8), payload);
        set(b, 40, sum);
    }
    if keep.again(Sums::RECORDS)
        && let Some(key) = b.get(64..64 + key)
    {
        let sum = checksum(checksum(id, &b[..56]), key);
        set(b, 56, sum);
    }
}

fn segment(b: &mut [u8], id: u64, keep: Sums) {
    let end = b.len().saturating_sub(128);
    if keep.again(Sums::FOOTERS) && b.len() >= 128 {
        let (at, len) = (size(b, end + 56, 8), size(b, end + 64, 8));
        if let Some(footer) = b.get(at..at.saturating_add(len)) {
            let sum = checksum(id, footer);
            set(b, end + 96, sum);
        }
    }
    if keep.again(Sums::HEADS) {
        for at in [0, 2048, end] {
            if let Some(block) = b.get(at..at + 120) {
                let sum = checksum(at as u64, block);
                set(b, at + 120, sum);
            }
        }
    }
}

fn values(b: &mut [u8], last: usize, id: u64, keep: Sums) {
    if keep.again(Sums::HEADS) {
        for at in [0, 4096] {
            if let Some(head) = b.get(at..at + 56) {
                let sum = checksum(0, head);
                set(b, at + 56, sum);
            }
        }
    }
    if !keep.again(Sums::BLOCKS) {
        return;
    }
    for at in (0..last).step_by(32) {
        let (fixed, head) = (b.get(at..at + 56), at.saturating_add(size(b, at + 36, 4)));
        if b[at..].starts_with(b"TCB1")
            && let (Some(fixed), Some(table)) = (fixed, b.get(at + 64..head))
        {
            let sum = checksum(checksum(id, fixed), table);
            set(b, at + 56, sum);
        }
    }
}

fn journal(b: &mut [u8], last: usize, seed: u64, keep: Sums) {
    if keep.again(Sums::HEADS) && b.len() >= 64 {
        let sum = checksum(seed, &b[..56]);
        set(b, 56, sum);
    }
    for at in (64..last).step_by(32) {
        let end = at.saturating_add(64).saturating_add(size(b, at + 4, 4).saturating_mul(32));
        if keep.again(Sums::BLOCKS)
            && b[at..].starts_with(b"TCJB")
            && let Some(frames) = b.get(at + 64..end)
        {
            let sum = checksum(checksum(seed, &b[at..at + 56]), frames);
            set(b, at + 56, sum);
        }
    }
}

fn checkpoint(b: &mut [u8], last: usize, seed: u64, keep: Sums) {
    if keep.again(Sums::HEADS) && b.len() >= 64 {
        let sum = checksum(seed, &b[..56]);
        set(b, 56, sum);
    }
    for at in 64..last {
        let end = at.saturating_add(40).saturating_add(size(b, at + 16, 8));
        if keep.again(Sums::BLOCKS)
            && b[at..].starts_with(b"TCCB")
            && let Some(payload) = b.get(at + 40..end)
        {
            let sum = checksum(checksum(seed, &b[at..at + 32]), payload);
            set(b, at + 32, sum);
        }
    }
}

fn pack(b: &mut [u8], last: usize, seed: u64, keep: Sums) {
    for at in 0..last {
        // Name and extra fields, and where the local header is.
        let (name, name_len, extra_len) = match &b[at..] {
            rest if rest.starts_with(b"PK\x03\x04") => (at + 30, size(b, at + 26, 2), size(b, at + 28, 2)),
            rest if rest.starts_with(b"PK\x01\x02") => (at + 46, size(b, at + 28, 2), size(b, at + 30, 2)),
            rest if rest.starts_with(b"thermocline-pack") => {
                if keep.again(Sums::TEXTS)
                    && let Some(sum) = b[at..].windows(5).take(200).position(|w| w == b" sum=")
                {
                    digits(b, at + sum + 5, checksum(0, &b[at..at + sum]));
                }
                continue;
            }
            _ => continue,
        };
        let mut field = name + name_len;
        let end = (field + extra_len).min(b.len());
        while field + 4 <= end {
            let len = size(b, field + 2, 2);
            if int(b, field, 2) == int(b"TC", 0, 2) && field + 4 + len <= end && len >= 72 {
                entry(b, field + 4, len, name..name + name_len, seed, keep);
            }
            field += 4 + len;
        }
    }
}

/// The extra field of a record at `at`.
fn entry(b: &mut [u8], at: usize, len: usize, name: std::ops::Range<usize>, seed: u64, keep: Sums) {
    let payload = size(b, at + 48, 4).saturating_mul(32).saturating_add(size(b, at + 52, 4));
    let end = payload.saturating_add(size(b, at + 36, 4));
    if keep.again(Sums::PAYLOADS)
        && let Some(payload) = b.get(payload..end)
    {
        let sum = checksum(int(b, at + 8, 8), payload);
        set(b, at + 40, sum);
    }
    if keep.again(Sums::RECORDS)
        && let (Some(key), Some(name)) = (b.get(at + 72..at + len), b.get(name))
    {
        let sum = checksum(checksum(checksum(seed, &b[at..at + 64]), key), name);
        set(b, at + 64, sum);
    }
}

fn text(b: &mut [u8]) {
    let mark = b"\nchecksum ";
    if let Some(at) = b.windows(mark.len()).rposition(|w| w == mark) {
        digits(b, at + mark.len(), checksum(0, &b[..=at]));
    }
}

fn digits(b: &mut [u8], at: usize, sum: u64) {
    if let Some(slot) = b.get_mut(at..at + 16) {
        slot.copy_from_slice(format!("{sum:016x}").as_bytes());
    }
}
