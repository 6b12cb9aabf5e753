//! The block: what a value file is made of, and what one read of the disk brings.
//!
//! ```text
//!  0  u32  magic "TCB1"
//!  4  u16  format (1)             6  u16  number of the value file
//!  8  u64  container id
//! 16  u64  offset of the block in the value file
//! 24  u32  block number           28 u32  record number of the first record
//! 32  u32  count of records (1..=65,535)
//! 36  u32  length of header and table, a multiple of 32
//! 40  u64  length of the block, header and padding included, a multiple of 32
//! 48  u64  zero
//! 56  u64  header checksum: xxh3-64 of bytes 0..56, then of the table, seeded with the container's id
//! 64  table: for each record a u32, where it begins in the block in units of 32 bytes; zeros up to a multiple of 32
//!     records, as in `record.rs`, each with its record number as ordinal
//! ```
//!
//! All integers are little-endian. Invariants:
//! - a block says where it stands (container, file, offset), so one that a disk returns from elsewhere does not
//!   verify;
//! - its records verify alone: damage to the header costs time, not records.

use crate::item::Item;
use crate::record::{self, checksum, le16, le32, le64};
use std::sync::Arc;

/// Bytes of the fixed part of the header.
pub(super) const HEADER: usize = 64;
/// Most records in one block.
pub(super) const MAX_RECORDS: usize = 65_535;
/// The magic, as the first bytes of a block.
pub(super) const MAGIC: [u8; 4] = *b"TCB1";
const FORMAT: u16 = 1;
const ALIGN: usize = record::ALIGN;

/// Where a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    /// The generation's container id.
    pub container: u64,
    /// The number of the value file.
    pub file: u16,
    /// The offset of the block in it.
    pub offset: u64,
}

/// A verified header with its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Where it stands.
    pub spot: Spot,
    /// The record number of the first record.
    pub first: u32,
    /// Bytes of the block, header and padding included.
    pub len: u64,
    starts: Arc<[u32]>,
}

impl Block {
    /// How many records it holds.
    pub fn count(&self) -> u32 {
        u32::try_from(self.starts.len()).unwrap_or(0)
    }

    /// Whether a record number is one of the block's.
    pub fn holds(&self, record: u32) -> bool {
        record >= self.first && record - self.first < self.count()
    }

    /// Where in the block a record begins and ends.
    pub fn record(&self, record: u32) -> Option<(u64, u64)> {
        let i = usize::try_from(record.checked_sub(self.first)?).ok()?;
        let start = u64::from(*self.starts.get(i)?) * ALIGN as u64;
        let end = self.starts.get(i + 1).map_or(self.len, |e| u64::from(*e) * ALIGN as u64);
        Some((start, end))
    }

    /// Where each record begins and ends in the block, in order.
    pub fn records(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        (self.first..).zip(0..self.starts.len()).filter_map(|(n, _)| self.record(n).map(|(s, e)| (n, s, e)))
    }

    /// Bytes that the block takes in a cache of headers.
    pub fn weight(&self) -> usize {
        96 + 4 * self.starts.len()
    }
}

/// Bytes of header and table for this many records.
pub(super) fn header_len(count: usize) -> usize {
    (HEADER + 4 * count).next_multiple_of(ALIGN)
}

/// How many of the items, from the first, go into the next block of about `block_size` bytes, and its length. At
/// least one: an item larger than a block has one to itself.
pub(super) fn plan(items: &[Item], block_size: usize, max_records: usize) -> (usize, u64) {
    let max_records = max_records.min(MAX_RECORDS);
    let (mut count, mut bytes) = (0, 0u64);
    for item in items.iter().take(max_records) {
        let size = record::size(item.key.len(), item.payload.len());
        if count > 0 && bytes + size + header_len(count + 1) as u64 > block_size as u64 {
            break;
        }
        count += 1;
        bytes += size;
    }
    (count, bytes + header_len(count) as u64)
}

/// Appends a block of these items to `out`, as it is to stand at `spot`.
pub(super) fn encode(spot: Spot, number: u32, first: u32, items: &[Item], out: &mut Vec<u8>) {
    let head = header_len(items.len());
    let mut at = head as u64;
    let mut table = Vec::with_capacity(head - HEADER);
    for item in items {
        table.extend_from_slice(&((at / ALIGN as u64) as u32).to_le_bytes());
        at += record::size(item.key.len(), item.payload.len());
    }
    table.resize(head - HEADER, 0);
    let mut fixed = Vec::with_capacity(HEADER);
    fixed.extend_from_slice(&MAGIC);
    fixed.extend_from_slice(&FORMAT.to_le_bytes());
    fixed.extend_from_slice(&spot.file.to_le_bytes());
    fixed.extend_from_slice(&spot.container.to_le_bytes());
    fixed.extend_from_slice(&spot.offset.to_le_bytes());
    fixed.extend_from_slice(&number.to_le_bytes());
    fixed.extend_from_slice(&first.to_le_bytes());
    fixed.extend_from_slice(&(items.len() as u32).to_le_bytes());
    fixed.extend_from_slice(&(head as u32).to_le_bytes());
    fixed.extend_from_slice(&at.to_le_bytes());
    fixed.extend_from_slice(&[0; 8]);
    let sum = header_sum(spot.container, &fixed, &table);
    out.reserve(usize::try_from(at).unwrap_or(0));
    out.extend_from_slice(&fixed);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&table);
    for (ordinal, item) in (first..).zip(items) {
        record::encode(item, spot.container, ordinal, out);
    }
}

fn header_sum(container: u64, fixed: &[u8], table: &[u8]) -> u64 {
    checksum(checksum(container, fixed), table)
}

/// Bytes of header and table that the first [`HEADER`] bytes claim: only to know how much to read.
pub(super) fn peek_header_len(fixed: &[u8]) -> Result<usize, &'static str> {
    if fixed.len() < HEADER {
        return Err("the block's header is cut short");
    }
    if !fixed.starts_with(&MAGIC) {
        return Err("no block begins here");
    }
    let count = le32(fixed, 32) as usize;
    if count == 0 || count > MAX_RECORDS || le32(fixed, 36) as usize != header_len(count) {
        return Err("impossible block header");
    }
    Ok(header_len(count))
}

/// Parses and verifies a block's header and table; `bytes` begins with the block and may end after the table.
pub(super) fn parse(bytes: &[u8], spot: Spot) -> Result<Block, &'static str> {
    let head = peek_header_len(bytes)?;
    let (fixed, table) = match (bytes.get(..HEADER - 8), bytes.get(HEADER..head)) {
        (Some(fixed), Some(table)) => (fixed, table),
        _ => return Err("the block's table is cut short"),
    };
    if header_sum(spot.container, fixed, table) != le64(bytes, 56) {
        return Err("the block header's checksum does not match");
    }
    if le16(bytes, 4) != FORMAT {
        return Err("the block has another format");
    }
    if le16(bytes, 6) != spot.file || le64(bytes, 8) != spot.container || le64(bytes, 16) != spot.offset {
        return Err("the block belongs elsewhere");
    }
    let count = le32(bytes, 32) as usize;
    let len = le64(bytes, 40);
    let starts: Arc<[u32]> = (0..count).map(|i| le32(table, 4 * i)).collect();
    let first = le32(bytes, 28);
    let rising = starts.windows(2).all(|w| matches!(w, [a, b] if a < b));
    let inside = starts.last().is_some_and(|l| u64::from(*l) * (ALIGN as u64) < len);
    let after_head = starts.first().is_some_and(|f| *f as usize * ALIGN == head);
    if !rising || !inside || !after_head || first.checked_add(count as u32).is_none() {
        return Err("the block's table makes no sense");
    }
    Ok(Block { spot, first, len, starts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hdd::tests::item;

    const SPOT: Spot = Spot { container: 77, file: 2, offset: 8192 };

    fn sample() -> Vec<u8> {
        let items: Vec<_> = (0..5).map(|i| item(i, 10 * i as usize)).collect();
        let mut out = Vec::new();
        encode(SPOT, 3, 40, &items, &mut out);
        out
    }

    #[test]
    fn a_block_says_where_its_records_are() {
        let bytes = sample();
        let block = parse(&bytes, SPOT).unwrap();
        assert_eq!((block.first, block.count(), block.len), (40, 5, bytes.len() as u64));
        for (n, start, end) in block.records() {
            let header = record::parse_header(&bytes[start as usize..end as usize], 77).unwrap();
            assert_eq!(header.ordinal, n);
            assert_eq!(header.size(), end - start);
        }
        assert!(!block.holds(39) && block.holds(44) && !block.holds(45) && block.record(45).is_none());
    }

    #[test]
    fn every_flipped_bit_of_header_and_table_is_found() {
        let good = sample();
        for bit in 0..header_len(5) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad, SPOT).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_block_of_another_place_does_not_verify() {
        let bytes = sample();
        assert!(parse(&bytes, Spot { container: 78, ..SPOT }).is_err());
        assert!(parse(&bytes, Spot { file: 1, ..SPOT }).is_err());
        assert!(parse(&bytes, Spot { offset: 8224, ..SPOT }).is_err());
    }

    #[test]
    fn a_plan_fills_blocks_and_gives_a_large_item_its_own() {
        let items: Vec<_> = (0..100).map(|i| item(i, 1000)).collect();
        let (n, len) = plan(&items, 65_536, usize::MAX);
        assert!(n > 50 && len <= 65_536, "{n} {len}");
        let mut out = Vec::new();
        encode(SPOT, 0, 0, &items[..n], &mut out);
        assert_eq!(out.len() as u64, len);
        assert_eq!(plan(&items, 65_536, 3).0, 3);
        assert_eq!(plan(&[item(1, 200_000), item(2, 1)], 65_536, usize::MAX).0, 1);
    }
}
