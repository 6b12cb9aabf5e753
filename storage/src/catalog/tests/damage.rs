//! Damage of one copy, at every place; and of both, where the catalog must refuse rather than forget.

use super::*;
use crate::error::Result;
use crate::sim::Op;

pub(super) const DIR: &str = "/c";

/// A checkpoint, a journal of an earlier open that follows it, and the newest one, all with content.
struct Small {
    mem: SimFs,
    end: BTreeMap<Ident, At>,
    /// Journals after the checkpoint, rising.
    journals: Vec<String>,
    checkpoint: String,
}

fn small() -> Small {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new(DIR), 1).unwrap();
    let entry = container(&cat);
    for i in 0..200u8 {
        write(&cat, id(i), Place::new(entry.no, u32::from(i)).unwrap());
    }
    cat.checkpoint_now().unwrap();
    for i in 0..60u8 {
        cat.lock(id(i)).remove(id(i));
        if i % 15 == 0 {
            cat.sync().unwrap();
        }
    }
    cat.sync().unwrap();
    drop(cat);
    let (cat, _) = open(Arc::new(mem.clone()), Path::new(DIR), 2).unwrap();
    for i in 60..70u8 {
        cat.lock(id(i)).set_expiry(id(i), 5);
        cat.sync().unwrap();
    }
    let end = durable(&cat);
    assert_eq!(end.len(), 140);
    let names = |prefix: &str| {
        let files = mem.files();
        let names = files.iter().filter(|p| p.starts_with("/c/a"));
        let mut n: Vec<String> = names.map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        n.retain(|n| n.starts_with(prefix));
        n.sort();
        n
    };
    let (journals, mut checkpoints) = (names("journal-"), names("checkpoint-"));
    assert_eq!((journals.len(), checkpoints.len()), (2, 1));
    Small { mem, end, journals, checkpoint: checkpoints.remove(0) }
}

impl Small {
    fn path(&self, copy: &str, name: &str) -> PathBuf {
        Path::new(DIR).join(copy).join(name)
    }

    fn all(&self) -> Vec<String> {
        self.journals.iter().cloned().chain([self.checkpoint.clone()]).collect()
    }

    fn open(&self, mem: &SimFs) -> Result<BTreeMap<Ident, At>> {
        open(Arc::new(mem.clone()), Path::new(DIR), 3).map(|(cat, _)| durable(&cat))
    }

    fn expect_whole(&self, mem: &SimFs, what: &str) {
        assert_eq!(self.open(mem).unwrap(), self.end, "{what}");
    }

    fn expect_lost(&self, mem: &SimFs, what: &str) {
        let r = self.open(mem);
        assert!(matches!(r, Err(Error::CatalogLost { .. })), "{what}: {r:?}");
    }

    fn content(&self, path: &Path) -> usize {
        self.mem.read(path).iter().rposition(|b| *b != 0).unwrap() + 1
    }
}

/// Every bit of everything that is written of each copy.
#[test]
fn any_flipped_bit_of_one_copy_changes_nothing() {
    let s = small();
    let files: Vec<PathBuf> = s.all().iter().flat_map(|n| ["a", "b"].map(|copy| s.path(copy, n))).collect();
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (s, files) = (&s, &files);
            scope.spawn(move || {
                for path in files {
                    for bit in (half..s.content(path) * 8).step_by(2) {
                        let mem = s.mem.kill();
                        mem.edit(path, |b| b[bit / 8] ^= 1 << (bit % 8));
                        s.expect_whole(&mem, &format!("{} bit {bit}", path.display()));
                    }
                }
            });
        }
    });
}

#[test]
fn damage_at_rest_of_one_copy_is_found_and_mended_while_the_catalog_is_open() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new(DIR), 1).unwrap();
    let entry = container(&cat);
    for i in 0..200u8 {
        write(&cat, id(i), Place::new(entry.no, u32::from(i)).unwrap());
    }
    assert!(cat.verify_copies().unwrap().is_empty(), "before the first checkpoint");
    cat.checkpoint_now().unwrap();
    let end = durable(&cat);
    let copies = |mem: &SimFs| -> Vec<PathBuf> {
        mem.files().into_iter().filter(|p| p.to_string_lossy().contains("checkpoint-")).collect()
    };
    assert_eq!(copies(&mem).len(), 2);
    let len = mem.read(&copies(&mem)[0]).len();
    for n in 0..60 {
        assert!(cat.verify_copies().unwrap().is_empty());
        let path = copies(&mem)[n % 2].clone();
        match n % 4 {
            0 | 1 => mem.edit(&path, |b| b[n * len / 60] ^= 1 << (n % 8)),
            2 => mem.edit(&path, |b| b.truncate(n * len / 60)),
            _ => mem.delete(&path),
        }
        let bad = cat.verify_copies().unwrap();
        assert!(n % 4 == 3 || bad == [path], "{n}: {bad:?}");
        assert_eq!(bad.len(), 1, "{n}");
    }
    // A folder that cannot be listed has no good copy; where that is so of both, nobody knows.
    let list = |copy: &str| Fault::on(Op::List).below(Path::new(DIR).join(copy)).times(1);
    mem.fail(list("a"));
    assert!(cat.verify_copies().unwrap().is_empty(), "the file itself can be read");
    ["a", "b"].iter().for_each(|copy| mem.fail(list(copy)));
    assert!(cat.verify_copies().unwrap_err().to_string().contains("list"));
    drop(cat);
    let (cat, recovered) = open(Arc::new(mem), Path::new(DIR), 2).unwrap();
    assert_eq!((durable(&cat), recovered.mended), (end, 0));
}

/// A checkpoint is read in large pieces; what cannot be read is one block all the same.
#[test]
fn a_place_of_each_copy_that_cannot_be_read_costs_the_block_there_alone() {
    let s = small();
    let len = s.content(&s.path("a", &s.checkpoint)) as u64;
    let mem = s.mem.kill();
    let before = mem.calls(Op::Read);
    s.expect_whole(&mem, "a whole disk");
    let reads = mem.calls(Op::Read) - before;
    assert!(reads < 60, "{reads} reads of two files for {SHARDS} blocks");
    for (a, b) in [(len / 3, 2 * len / 3), (2 * len / 3, len / 3), (len / 2, len - 1)] {
        let mem = s.mem.kill();
        for (copy, at) in [("a", a), ("b", b)] {
            let path = s.path(copy, &s.checkpoint);
            mem.fail(Fault::when(move |c| c.op == Op::Read && c.path == path && c.range.contains(&at)));
        }
        let (cat, recovered) = open(Arc::new(mem), Path::new(DIR), 3).unwrap();
        assert_eq!((durable(&cat), recovered.mended), (s.end.clone(), 1), "bytes {a} and {b}");
    }
}

#[test]
fn any_cut_of_one_copy_changes_nothing_and_is_mended() {
    let s = small();
    for (copy, name) in s.all().into_iter().flat_map(|n| [("a", n.clone()), ("b", n)]) {
        let (path, other) = (s.path(copy, &name), s.path(if copy == "a" { "b" } else { "a" }, &name));
        let content = s.content(&path);
        for len in (0..content).step_by(61).chain([content - 1]) {
            let mem = s.mem.kill();
            mem.edit(&path, |b| b.truncate(len));
            s.expect_whole(&mem, &format!("{} cut at {len}", path.display()));
            // What was read from one copy is in two again: the other may go now.
            if mem.files().contains(&other) {
                mem.delete(&other);
            }
            s.expect_whole(&mem, &format!("{} cut at {len}, then the other gone", path.display()));
        }
    }
}

#[test]
fn one_copy_may_be_gone_altogether() {
    let s = small();
    for copy in COPIES {
        let mem = s.mem.kill();
        for name in s.all() {
            mem.delete(&s.path(copy, &name));
        }
        s.expect_whole(&mem, copy);
        let other = if copy == "a" { "/c/b" } else { "/c/a" };
        for path in mem.files().iter().filter(|p| p.starts_with(other)) {
            mem.delete(path);
        }
        s.expect_whole(&mem, "then the other");
    }
}

/// Each batch, damaged in both copies. All but the last are named durable by a later one.
#[test]
fn a_gap_below_the_durable_number_is_a_lost_catalog_and_above_it_a_torn_tail() {
    let s = small();
    let (first, last) = (&s.journals[0], &s.journals[1]);
    let batches = |name: &str| {
        let b = s.mem.read(&s.path("a", name));
        let mut at = frame::HEAD;
        let mut found = Vec::new();
        while b.get(at..at + 4) == Some(b"TCJB") {
            found.push(at);
            at += frame::HEAD + frame::FRAME * b[at + 4] as usize;
        }
        found
    };
    let (early, late) = (batches(first), batches(last));
    assert_eq!((early.len(), late.len()), (5, 10));
    let damage = |name: &str, at: usize| {
        let mem = s.mem.kill();
        for copy in COPIES {
            mem.edit(&s.path(copy, name), |b| b[at + 70] ^= 4);
        }
        mem
    };
    for at in &early {
        s.expect_lost(&damage(first, *at), "in an older journal");
    }
    for at in &late[..9] {
        s.expect_lost(&damage(last, *at), "below the durable number");
    }
    let mem = damage(last, late[9]);
    let mut shorter = s.end.clone();
    shorter.get_mut(&id(69)).unwrap().1 = None;
    assert_eq!(s.open(&mem).unwrap(), shorter, "the tail is cut");
    // What was cut does not come back when one copy turns out to be whole after all.
    let whole = s.mem.read(&s.path("b", last));
    if mem.files().contains(&s.path("b", last)) {
        mem.edit(&s.path("b", last), |b| *b = whole);
    }
    assert_eq!(open(Arc::new(mem), Path::new(DIR), 4).map(|(c, _)| durable(&c)).unwrap(), shorter);
    // Different batches damaged in the two copies: the union is whole.
    let mem = s.mem.kill();
    mem.edit(&s.path("a", last), |b| b[late[2] + 70] ^= 4);
    mem.edit(&s.path("b", last), |b| b[late[3] + 70] ^= 4);
    s.expect_whole(&mem, "union");
}

#[test]
fn headers_damaged_in_both_copies_are_a_lost_catalog() {
    let s = small();
    for name in s.all() {
        for at in [0, 4, 20, 30, 40, 60] {
            let mem = s.mem.kill();
            for copy in COPIES {
                mem.edit(&s.path(copy, &name), |b| b[at] ^= 1);
            }
            s.expect_lost(&mem, &format!("{name} byte {at}"));
        }
        // A header alone is what a crash leaves while the pair is made, but only behind everything else.
        if name != s.journals[1] {
            let mem = s.mem.kill();
            for copy in COPIES {
                mem.edit(&s.path(copy, &name), |b| b.truncate(10));
            }
            s.expect_lost(&mem, &name);
        }
    }
}

#[test]
fn without_its_checkpoint_the_catalog_is_lost_even_beside_an_older_one() {
    let s = small();
    let mem = s.mem.kill();
    for copy in COPIES {
        mem.delete(&s.path(copy, &s.checkpoint));
    }
    s.expect_lost(&mem, "both gone");
    // An older checkpoint and journal that were not removed yet, the newest damaged in both.
    let old = disk();
    let (cat, _) = open(Arc::new(old.clone()), Path::new(DIR), 1).unwrap();
    let entry = container(&cat);
    write(&cat, id(1), Place::new(entry.no, 1).unwrap());
    cat.sync().unwrap();
    let before: Vec<(PathBuf, Vec<u8>)> = old.files().iter().map(|p| (p.clone(), old.read(p))).collect();
    cat.lock(id(1)).remove(id(1));
    cat.checkpoint_now().unwrap();
    drop(cat);
    let newest = old.files().into_iter().rfind(|p| p.to_str().unwrap().contains("checkpoint")).unwrap();
    for (path, bytes) in &before {
        let _ = old.open(path, crate::vfs::OpenMode::CreateNew);
        old.edit(path, |b| b.clone_from(bytes));
    }
    for copy in COPIES {
        old.edit(&Path::new(DIR).join(copy).join(newest.file_name().unwrap()), |b| b[200] ^= 1);
    }
    let r = s.open(&old);
    assert!(matches!(r, Err(Error::CatalogLost { .. })), "{r:?}");
}

/// A crash between the two renames, then damage of the one copy that has the new checkpoint: the old one with its
/// journals says the same.
#[test]
fn a_checkpoint_in_one_copy_only_may_be_damaged() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new(DIR), 1).unwrap();
    let entry = container(&cat);
    for i in 0..20 {
        write(&cat, id(i), Place::new(entry.no, u32::from(i)).unwrap());
    }
    cat.sync().unwrap();
    let n = mem.changes();
    let trial = mem.kill();
    drop(cat);
    assert!(n > 0);
    let (cat, _) = open(Arc::new(trial.clone()), Path::new(DIR), 2).unwrap();
    let end = durable(&cat);
    let mut renamed = None;
    for ahead in 0..600 {
        let mem = trial.kill();
        let (cat, _) = open(Arc::new(mem.clone()), Path::new(DIR), 3).unwrap();
        mem.fail_changes(mem.changes() + ahead + 1..);
        let _ = cat.checkpoint_now();
        let cps: Vec<PathBuf> =
            mem.files().into_iter().filter(|p| p.to_str().unwrap().contains("checkpoint-")).collect();
        if cps.len() == 3 && cps.iter().all(|p| p.extension().is_none()) {
            renamed = Some((mem, cps));
            break;
        }
    }
    let (mem, cps) = renamed.unwrap();
    let newest = cps.iter().max_by_key(|p| p.file_name().unwrap().to_owned()).unwrap().clone();
    for at in [3, 100, 400] {
        let mem = mem.kill();
        mem.edit(&newest, |b| b[at] ^= 1);
        let (cat, _) = open(Arc::new(mem.clone()), Path::new(DIR), 4).unwrap();
        assert_eq!(durable(&cat), end);
        drop(cat);
        assert_eq!(durable(&open(Arc::new(mem), Path::new(DIR), 5).unwrap().0), end);
    }
}

#[test]
fn a_newer_format_with_a_right_checksum_is_refused_by_name() {
    let s = small();
    for name in s.all() {
        let mem = s.mem.kill();
        let seq = u64::from_str_radix(name.rsplit('-').next().unwrap(), 16).unwrap();
        mem.edit(&s.path("b", &name), |b| {
            b[4] = 2;
            let sum = crate::record::checksum(frame::seed(&[9; 16], seq), &b[..56]);
            b[56..64].copy_from_slice(&sum.to_le_bytes());
        });
        let r = s.open(&mem);
        assert!(matches!(r, Err(Error::NewerFormat { found: 2, supported: 1, .. })), "{name}: {r:?}");
    }
}

#[test]
fn names_that_no_store_makes_are_nobodys() {
    let s = small();
    let mem = s.mem.kill();
    let strange =
        ["checkpoint-ffffffffffffffff", "journal-ffffffffffffffff", "checkpoint-+00000000000000f", "x"];
    for name in strange {
        mem.open(&s.path("a", name), crate::vfs::OpenMode::CreateNew).unwrap();
    }
    s.expect_whole(&mem, "strange names");
}

#[test]
fn a_rebuild_that_is_not_finished_leaves_the_lost_catalog_lost() {
    let s = small();
    let mem = s.mem.kill();
    for copy in COPIES {
        mem.edit(&s.path(copy, &s.journals[1]), |b| b[64 + 70] ^= 4);
    }
    s.expect_lost(&mem, "damaged");
    let arc: Arc<dyn Vfs> = Arc::new(mem.clone());
    drop(Catalog::rebuild(setup(arc.clone(), Path::new(DIR), 4)).unwrap());
    let r = open(arc.clone(), Path::new(DIR), 5);
    assert!(matches!(r, Err(Error::CatalogLost { .. })), "still");
    let cat = Catalog::rebuild(setup(arc.clone(), Path::new(DIR), 6)).unwrap();
    let entry = container(&cat);
    let listed = |position, ident, version| Listed { position, ident, version, expires_at: 0, bytes: 32 };
    let mut newest = std::collections::HashMap::new();
    let records = [listed(1, id(1), Version(5)), listed(2, id(1), Version(9)), listed(3, id(1), Version(7))];
    cat.adopt(entry.no, &records, &mut newest);
    check_counts(&cat);
    cat.checkpoint_now().unwrap();
    let end = durable(&cat);
    assert_eq!(end[&id(1)].0.position(), 2, "the newest version wins");
    drop(cat);
    assert_eq!(durable(&open(arc, Path::new(DIR), 7).unwrap().0), end);
}

/// Changes both copies of a file, and makes the checksum of its header right again.
fn forge(mem: &SimFs, name: &str, seq: u64, change: impl Fn(&mut Vec<u8>, u64)) {
    let seed = crate::record::checksum(seq, &[9; 16]);
    for copy in COPIES {
        mem.edit(&Path::new(DIR).join(copy).join(name), |b| {
            change(b, seed);
            let sum = crate::record::checksum(seed, &b[..56]);
            b[56..64].copy_from_slice(&sum.to_le_bytes());
        });
    }
}

fn number(name: &str) -> u64 {
    u64::from_str_radix(name.rsplit('-').next().unwrap(), 16).unwrap()
}

/// Changes a checkpoint's blocks of a kind, and makes their checksums right again.
fn forge_blocks(mem: &SimFs, name: &str, kind: u8, change: impl Fn(&mut [u8])) {
    forge(mem, name, number(name), |b, seed| {
        let mut at = 64;
        while at < b.len() {
            let end = at + 40 + u64::from_le_bytes(*b[at + 16..].first_chunk().unwrap()) as usize;
            if b[at + 4] == kind {
                change(&mut b[at..end]);
                let head = crate::record::checksum(seed, &b[at..at + 32]);
                let sum = crate::record::checksum(head, &b[at + 40..end]);
                b[at + 32..at + 40].copy_from_slice(&sum.to_le_bytes());
            }
            at = end;
        }
    });
}

#[test]
fn a_journal_whose_numbers_cannot_be_is_damage() {
    let s = small();
    for first in [0, 1 << 62, u64::MAX - 1, u64::MAX] {
        for name in &s.journals {
            let mem = s.mem.kill();
            forge(&mem, name, number(name), |b, _| b[40..48].copy_from_slice(&first.to_le_bytes()));
            s.expect_lost(&mem, &format!("{name} begins with frame {first}"));
        }
    }
}

#[test]
fn a_checkpoint_with_frames_of_the_future_is_damage() {
    let s = small();
    let mem = s.mem.kill();
    // Frames up to a shard's number are passed over in the journal: a later write of this store would be.
    forge_blocks(&mem, &s.checkpoint, 2, |b| b[24..32].copy_from_slice(&u64::MAX.to_le_bytes()));
    s.expect_lost(&mem, "shards have frames up to the largest number");
}

#[test]
fn a_container_with_the_most_records_takes_another() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new(DIR), 1).unwrap();
    let entry = container(&cat);
    write(&cat, id(1), Place::new(entry.no, 1).unwrap());
    cat.checkpoint_now().unwrap();
    write(&cat, id(2), Place::new(entry.no, 2).unwrap());
    cat.sync().unwrap();
    drop(cat);
    let name = mem.files().iter().find_map(|p| {
        let name = p.file_name()?.to_str()?;
        name.starts_with("checkpoint-").then(|| name.to_owned())
    });
    forge_blocks(&mem, &name.unwrap(), 1, |b| b[40 + 22..40 + 30].copy_from_slice(&u64::MAX.to_le_bytes()));
    let (cat, rec) = open(Arc::new(mem), Path::new(DIR), 2).unwrap();
    assert_eq!(rec.containers[0].records, u64::MAX);
    assert_eq!(durable(&cat).len(), 2);
}

#[test]
fn containers_without_a_catalog_are_a_lost_catalog_and_not_a_new_store() {
    let how = setup(Arc::new(disk()), Path::new("/c"), 1);
    let found = Catalog::open(Setup { has_containers: true, ..how });
    assert!(matches!(found, Err(Error::CatalogLost { .. })), "{found:?}");
}
