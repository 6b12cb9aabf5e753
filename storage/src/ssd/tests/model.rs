//! Random histories against a model: what was acknowledged and not dropped is there, byte for byte.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(u8, u32)>, bool),
    Seal,
    Drop(usize),
    Close,
    Kill,
    Age,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 0u32..3000, 2 => 3000u32..9000, 1 => 9000u32..60_000];
    prop_oneof![
        6 => (prop::collection::vec((any::<u8>(), length), 1..12), any::<bool>())
            .prop_map(|(batch, reclaim)| Step::Write(batch, reclaim)),
        1 => Just(Step::Seal),
        3 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => Just(Step::Age),
    ]
}

struct Model {
    bench: Bench,
    live: BTreeMap<Place, Item>,
    version: u64,
}

impl Model {
    fn step(&mut self, step: Step) {
        let b = &mut self.bench;
        match step {
            Step::Write(batch, reclaim) => {
                let batch: Vec<Item> = batch
                    .into_iter()
                    .map(|(key, len)| {
                        self.version += 1;
                        item(&format!("key {key}"), self.version, len as usize)
                    })
                    .collect();
                let purpose = if reclaim { Purpose::Reclaim } else { Purpose::Write };
                match b.ssd.write(&batch, purpose) {
                    Ok(written) => {
                        for (item, w) in batch.into_iter().zip(written) {
                            assert!(self.live.insert(w.place, item).is_none(), "a place twice");
                        }
                    }
                    Err(e) => assert!(e.is_no_space(), "{e}"),
                }
            }
            Step::Seal => b.ssd.seal().unwrap(),
            Step::Drop(n) => {
                let all = b.containers.all();
                if let Some(no) = all.get(n % all.len().max(1)).map(|e| e.no) {
                    drop(all);
                    b.remove(no);
                    self.live.retain(|p, _| p.container() != no);
                }
            }
            Step::Close => {
                b.ssd.close().unwrap();
                b.reopen();
            }
            Step::Kill => b.reopen(),
            Step::Age => {
                b.clock.advance(GENERATION_MS);
                b.ssd.maintain();
            }
        }
    }

    fn check(&self) {
        let b = &self.bench;
        for (place, item) in &self.live {
            assert_eq!(&b.read(*place).unwrap(), item);
        }
        let mut listed = 0;
        for e in b.containers.all() {
            for l in e.container.list().unwrap() {
                let item = &self.live[&Place::new(e.no, l.position).unwrap()];
                assert_eq!((l.ident, l.version, l.expires_at), (item.ident, item.version, item.expires_at));
                listed += 1;
            }
        }
        assert_eq!(listed, self.live.len());
        assert_eq!(b.ssd.usage().occupied, b.on_disk());
        for d in &b.dirs {
            let folder = d.path.join(FOLDER);
            let sum: u64 =
                std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
            assert!(sum <= d.limit.unwrap());
        }
        assert!(b.report.missing.is_empty() && b.report.quarantined.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_history(steps in prop::collection::vec(step(), 1..25), pread in any::<bool>(),
                   borrow in any::<bool>(), smallest_read in prop_oneof![Just(64usize), Just(8192)]) {
        let (a, c) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let read_mode = if pread { ReadMode::Pread } else { ReadMode::Map };
        let config = SsdConfig { segment_size: 16 * KIB, read_mode, borrow, smallest_read };
        let dirs = vec![dir(0, a.path(), 256 * KIB), dir(9, c.path(), 200 * KIB)];
        let mut model =
            Model { bench: Bench::new(dirs, config, Arc::new(RealFs)), live: BTreeMap::new(), version: 0 };
        for step in steps {
            model.step(step);
            model.check();
        }
    }
}
