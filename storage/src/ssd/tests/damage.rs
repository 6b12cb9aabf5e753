//! Damage: no flipped bit and no cut gives a wrong value, and all of them open.

use super::*;
use crate::testing::{Fault, FaultFs, Op};
use format::Identity;
use std::fs;

/// A sealed segment of 8 KiB with a few records, and where they stand.
fn small(dir: &Path) -> (Bench, Vec<(Item, Place)>, PathBuf) {
    let b = Bench::one(dir, 1024 * KIB, config(8 * KIB));
    let all: Vec<Item> = (0..6).map(|i| item(&format!("key {i}"), i + 1, 40 * i as usize)).collect();
    let w = b.put(&all);
    b.ssd.close().unwrap();
    let path = b.files().remove(0);
    assert_eq!(b.files().len(), 1);
    (b, all.into_iter().zip(w.iter().map(|w| w.place)).collect(), path)
}

fn flip(path: &Path, offset: usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

#[test]
fn no_flipped_bit_gives_a_wrong_value() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, placed, path) = small(home.path());
    let good = fs::read(&path).unwrap();
    let known = b.known();
    let data_end = placed
        .last()
        .map(|(i, p)| p.position() as usize * 32 + record::HEADER + i.key.len() + i.payload.len());
    for (mode, smallest_read) in [(ReadMode::Map, 64), (ReadMode::Pread, 8192)] {
        b.config.read_mode = mode;
        b.config.smallest_read = smallest_read;
        for offset in (0..good.len()).filter(|o| good[*o] != 0 || o % 16 == 3) {
            for bit in if offset < 4096 { 0..8 } else { 3..5 } {
                let mut bad = good.clone();
                bad[offset] ^= 1 << bit;
                fs::write(&path, &bad).unwrap();
                b.reopen_with(known.clone(), Unknown::Delete);
                assert!(b.report.quarantined.is_empty() && b.report.missing.is_empty(), "byte {offset}");
                let entry = b.containers.get(known[0].no).unwrap();
                let mut lost = 0;
                for (item, place) in &placed {
                    for _ in 0..2 {
                        match entry.container.read(place.position()) {
                            Ok(found) => assert_eq!(&found, item, "byte {offset} bit {bit}"),
                            Err(e) => {
                                assert!(e.is_corrupt());
                                lost += 1;
                            }
                        }
                    }
                    if let Ok(head) = entry.container.head(place.position()) {
                        assert_eq!(head, item.head());
                    }
                }
                let in_records = offset >= 4096 && Some(offset) < data_end;
                assert!(lost <= if in_records { 2 } else { 0 }, "byte {offset}: one record at most dies");
                for l in entry.container.list().unwrap() {
                    let (item, _) = placed.iter().find(|(_, p)| p.position() == l.position).unwrap();
                    assert_eq!(
                        (l.ident, l.version, l.expires_at),
                        (item.ident, item.version, item.expires_at)
                    );
                }
            }
        }
    }
}

#[test]
fn every_length_opens_and_serves_what_is_left() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, placed, path) = small(home.path());
    let good = fs::read(&path).unwrap();
    let known = b.known();
    for len in (0..=good.len()).rev() {
        fs::write(&path, &good[..len]).unwrap();
        b.reopen_with(known.clone(), Unknown::Delete);
        if len < format::BLOCK {
            assert_eq!(b.report.quarantined.len(), 1, "{len}");
            assert_eq!(b.report.missing, known);
            assert!(!path.exists());
            continue;
        }
        let entry = b.containers.get(known[0].no).unwrap();
        let mut whole = 0;
        for (item, place) in &placed {
            let end = place.position() as usize * 32 + record::HEADER + item.key.len() + item.payload.len();
            for _ in 0..2 {
                match entry.container.read(place.position()) {
                    Ok(found) => assert!(found == *item && end <= len),
                    Err(e) => assert!(e.is_corrupt() && end > len, "{len}: {e}"),
                }
            }
            whole += usize::from(end <= len);
        }
        assert_eq!(entry.container.list().unwrap().len(), whole, "{len}");
    }
}

#[test]
fn one_copy_of_the_header_or_the_trailer_is_enough() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, placed, path) = small(home.path());
    let good = fs::read(&path).unwrap();
    let known = b.known();
    let wipe = |ranges: &[(usize, usize)]| {
        let mut bad = good.clone();
        for r in ranges {
            bad[r.0..r.1].fill(0xA5);
        }
        fs::write(&path, bad).unwrap();
    };
    let trailer = (good.len() - format::BLOCK, good.len());
    for ranges in [vec![(0, 2048)], vec![(2048, 4096)], vec![(0, 4096)], vec![(0, 2048), trailer]] {
        wipe(&ranges);
        let before = fs::read(&path).unwrap();
        b.reopen_with(known.clone(), Unknown::Delete);
        assert!(b.report.quarantined.is_empty(), "{ranges:?}");
        for (item, place) in &placed {
            assert_eq!(&b.read(*place).unwrap(), item);
        }
        assert_eq!(b.containers.all()[0].container.list().unwrap().len(), placed.len());
        assert_eq!(fs::read(&path).unwrap(), before, "nothing is repaired in place");
    }
    wipe(&[(0, 4096), trailer]);
    let before = b.ssd.usage().occupied;
    b.reopen_with(known.clone(), Unknown::Delete);
    assert_eq!((b.report.quarantined.len(), &b.report.missing), (1, &known));
    assert_eq!(b.ssd.usage().occupied, before, "the quarantine counts");
    assert!(home.path().join("quarantine").read_dir().unwrap().count() == 2);
}

#[test]
fn a_header_of_another_store_or_segment_is_not_served() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, _, path) = small(home.path());
    let known = b.known();
    let id = known[0].id;
    let foreign = Identity { store: [1; 16], id, dir: 0, created_ms: 0, size: 8192 };
    let other = Identity { store: STORE, id: id + 2, ..foreign };
    for identity in [foreign, other] {
        let mut bytes = format::encode_header(&identity);
        bytes.resize(8192, 0);
        fs::write(&path, bytes).unwrap();
        b.reopen_with(known.clone(), Unknown::Delete);
        assert_eq!(b.report.quarantined.len(), 1);
        assert!(b.containers.all().is_empty());
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, _, path) = small(home.path());
    let known = b.known();
    let mut bytes = fs::read(&path).unwrap();
    for at in [0, 2048] {
        bytes[at + 8] = 2;
        flip_free_checksum(&mut bytes, at);
    }
    fs::write(&path, &bytes).unwrap();
    for known in [known, Vec::new()] {
        let ctx = b.context(known, Unknown::Delete);
        let e = Ssd::open(ctx, b.config.clone()).unwrap_err();
        assert!(matches!(e, Error::NewerFormat { found: 2, supported: 1, .. }), "{e}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    // The number without the checksum is damage, not a newer format.
    flip(&path, 100, 0);
    flip(&path, 2148, 0);
    let ctx = b.context(Vec::new(), Unknown::Delete);
    assert!(Ssd::open(ctx, b.config.clone()).is_ok());
}

fn flip_free_checksum(bytes: &mut [u8], at: usize) {
    let sum = record::checksum(at as u64, &bytes[at..at + 120]);
    bytes[at + 120..at + 128].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_scan_finds_what_follows_damage_and_nothing_inside_values() {
    let home = tempfile::tempdir().unwrap();
    let mut b = Bench::one(home.path(), 1024 * KIB, config(64 * KIB));
    let mut inner = Vec::new();
    // A record of another container inside a value, at the alignment of records.
    record::encode(&item("inner", 1, 100), 4711, 0, &mut inner);
    let mut payload = vec![0; 32 - 5];
    payload.extend_from_slice(&inner);
    let outer = Item { payload: Bytes::from(payload), ..item("outer", 2, 0) };
    let all = [item("first", 3, 1000), outer, item("last", 4, 10)];
    let w = b.put(&all);
    let path = b.files().remove(0);
    flip(&path, w[0].place.position() as usize * 32 + 66, 1);
    flip(&path, w[1].place.position() as usize * 32 + 8, 1);
    b.reopen();
    let entry = b.containers.all().remove(0);
    let positions: Vec<_> = entry.container.list().unwrap().iter().map(|l| l.position).collect();
    assert_eq!(
        positions,
        [w[2].place.position()],
        "the key of the first and the header of the second are bad"
    );
}

#[test]
fn a_damaged_record_goes_to_the_quarantine_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let mut b = Bench::one(home.path(), 1024 * KIB, config(64 * KIB));
    let w = b.put(&[item("a", 1, 500), item("b", 2, 500)]);
    let path = b.files().remove(0);
    let at = w[1].place.position() as usize * 32;
    flip(&path, at + 100, 0);
    b.reopen();
    let entry = b.containers.all().remove(0);
    let e = entry.container.read(w[1].place.position()).unwrap_err();
    let before = b.ssd.usage().occupied;
    b.ssd.quarantine_record(&entry, w[1].place.position(), &e.to_string());
    let kept = fs::read(home.path().join("quarantine/0000000000-record")).unwrap();
    assert_eq!(kept, fs::read(&path).unwrap()[at..at + 64 + 1 + 500]);
    assert_eq!(b.ssd.usage().occupied, before + kept.len() as u64);
    let report = fs::read_to_string(home.path().join("quarantine/0000000000-record.txt")).unwrap();
    assert!(report.lines().any(|l| l == "key    b"), "{report}");
    flip(&path, at, 0);
    assert_eq!(entry.container.raw(w[1].place.position()).unwrap().bytes.len(), 4096);
}

#[test]
fn a_forged_length_is_seen_for_what_it_is() {
    let home = tempfile::tempdir().unwrap();
    let mut b = Bench::one(home.path(), 1024 * KIB, config(64 * KIB));
    let w = b.put(&[item("a", 1, 500)]);
    let path = b.files().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let at = w[0].place.position() as usize * 32 + 36;
    for (len, what) in [(1u32 << 30, "reaches beyond"), (60_000, "checksum"), (u32::MAX, "impossible")] {
        bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        b.reopen();
        let e = b.read(w[0].place).unwrap_err();
        assert!(e.to_string().contains(what), "{e}");
    }
}

#[test]
fn a_segment_of_another_store_that_the_quarantine_cannot_keep_stays() {
    let home = tempfile::tempdir().unwrap();
    // The quarantine keeps 51 KiB.
    let mut b = Bench::one(home.path(), 1024 * KIB, config(64 * KIB));
    b.put(&items(5, 300));
    b.ssd.close().unwrap();
    let (path, before) = (b.files().remove(0), b.ssd.usage().occupied);
    let foreign = Identity { store: [1; 16], id: b.known()[0].id, dir: 0, created_ms: 0, size: 64 * KIB };
    let mut bytes = format::encode_header(&foreign);
    bytes.resize(64 << 10, 0);
    fs::write(&path, &bytes).unwrap();
    for known in [b.known(), Vec::new()] {
        b.reopen_with(known, Unknown::Delete);
        assert_eq!((b.report.quarantined.len(), b.report.deleted), (1, 0), "{:?}", b.report);
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(b.ssd.usage().occupied, before, "it counts");
        assert!(b.containers.all().is_empty());
    }
}

#[test]
fn a_record_in_the_place_of_another_is_damage_not_an_older_value() {
    let home = tempfile::tempdir().unwrap();
    let mut b = Bench::one(home.path(), 1 << 20, config(64 * KIB));
    let both = [item("key", 1, 700), item("key", 2, 700)];
    let written = b.put(&both);
    let known = b.known();
    let path = b.files()[0].clone();
    b.ssd.close().unwrap();
    // The disk returns the first where the second was written.
    let mut bytes = fs::read(&path).unwrap();
    let [old, new] = [0, 1].map(|i: usize| written[i].place.position() as usize * 32);
    bytes.copy_within(old..old + written[0].bytes as usize, new);
    fs::write(&path, &bytes).unwrap();
    b.reopen_with(known, Unknown::Delete);
    assert_eq!(b.read(written[0].place).unwrap(), both[0]);
    // From the disk, then where it may be mapped.
    for _ in 0..2 {
        assert!(b.read(written[1].place).is_err_and(|e| e.is_corrupt()));
        let entry = b.containers.get(written[1].place.container()).unwrap();
        assert!(entry.container.head(written[1].place.position()).is_err_and(|e| e.is_corrupt()));
    }
    // Nor does a scan take it for one.
    let end = bytes.len();
    bytes[end - 128..].fill(0);
    fs::write(&path, &bytes).unwrap();
    let known = b.known();
    b.reopen_with(known, Unknown::Delete);
    let listed = b.containers.all()[0].container.list().unwrap();
    assert_eq!(listed.iter().map(|l| l.position).collect::<Vec<_>>(), [written[0].place.position()]);
}

#[test]
fn the_footer_of_a_segment_of_which_every_record_is_damaged_is_read_once() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, placed, path) = small(home.path());
    placed.iter().for_each(|(_, place)| flip(&path, place.position() as usize * 32 + 8, 0));
    let (faults, reads) = (FaultFs::default().without_maps(), Arc::new(AtomicU64::new(0)));
    let count = reads.clone();
    faults.fail(Fault::when(move |c| {
        let trailer = c.op == Op::Read && c.range.start == 8 * KIB - format::TRAILER;
        count.fetch_add(u64::from(trailer), Ordering::Relaxed);
        false
    }));
    b.vfs = Arc::new(faults);
    b.reopen();
    let entry = b.containers.all().remove(0);
    for (item, place) in &placed {
        assert!(entry.container.read(place.position()).unwrap_err().is_corrupt());
        assert_eq!(entry.container.key(place.position()), Some(item.key.clone()));
    }
    assert_eq!(reads.load(Ordering::Relaxed), 1);
    b.ssd.maintain();
    assert!(entry.container.key(placed[0].1.position()).is_some());
    assert_eq!(reads.load(Ordering::Relaxed), 2, "nothing is kept for long");
}
