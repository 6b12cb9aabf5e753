//! `Lru` against the plainest model of it.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Get(u64),
    Peek(u64),
    Put(u64, usize),
    Remove(u64),
    Shrink(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..40).prop_map(Op::Get),
        1 => (0u64..40).prop_map(Op::Peek),
        4 => (0u64..40, prop_oneof![3 => Just(100usize), 1 => 0usize..900]).prop_map(|(k, n)| Op::Put(k, n)),
        1 => (0u64..40).prop_map(Op::Remove),
        1 => (0u64..8000).prop_map(Op::Shrink),
    ]
}

/// Least recently used first.
struct Model {
    order: Vec<(u64, u64)>,
    max_bytes: u64,
    max_items: usize,
}

impl Model {
    fn weight(&self) -> u64 {
        self.order.iter().map(|e| e.1).sum()
    }

    fn take(&mut self, key: u64) -> Option<(u64, u64)> {
        let at = self.order.iter().position(|e| e.0 == key)?;
        Some(self.order.remove(at))
    }

    fn put(&mut self, key: u64, weight: u64, out: &mut Vec<u64>) {
        self.take(key);
        while self.weight() + weight > self.max_bytes || self.order.len() + 1 > self.max_items {
            out.push(self.order.remove(0).0);
        }
        self.order.push((key, weight));
    }

    fn shrink(&mut self, bytes: u64, out: &mut Vec<u64>) {
        while self.weight() > bytes {
            out.push(self.order.remove(0).0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// The same victims in the same order, whatever the number of shards.
    #[test]
    fn evicts_what_a_list_would(
        ops in prop::collection::vec(op(), 1..300),
        shards in prop_oneof![Just(1usize), Just(4), Just(16)],
        max_items in 1u64..30,
    ) {
        let tier = tier(6000, max_items, MemoryPolicy::Lru, Some(shards));
        let mut model = Model { order: Vec::new(), max_bytes: 6000, max_items: max_items as usize };
        for op in ops {
            let (mut out, mut expected) = (Vec::new(), Vec::new());
            match op {
                Op::Get(k) => {
                    let hit = matches!(tier.get(ident(k), &k.to_le_bytes(), 0), Lookup::Hit(_));
                    let known = model.take(k);
                    prop_assert_eq!(hit, known.is_some());
                    model.order.extend(known);
                }
                Op::Peek(k) => {
                    let known = model.order.iter().any(|e| e.0 == k);
                    prop_assert_eq!(tier.peek(ident(k), &k.to_le_bytes(), 0).is_some(), known);
                }
                Op::Put(k, n) => {
                    prop_assert!(tier.insert(new(&k.to_le_bytes(), k, vec![0; n]), 0, &mut out));
                    model.put(k, entry::weight(8, n), &mut expected);
                }
                Op::Remove(k) => {
                    prop_assert_eq!(tier.remove(ident(k)).is_some(), model.take(k).is_some());
                }
                Op::Shrink(bytes) => {
                    tier.shrink_to(bytes, &mut out);
                    model.shrink(bytes, &mut expected);
                }
            }
            prop_assert_eq!(out.iter().map(|e| e.ident.bits()).collect::<Vec<_>>(), expected);
            tier.audit();
        }
    }
}
