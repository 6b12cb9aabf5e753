//! What a hit ratio is compared with: LRU, and the optimum.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Hits of a simulated cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// Requests.
    pub requests: u64,
    /// Bytes, where sizes are known.
    pub bytes: u64,
}

/// Hits of an LRU cache that holds a total weight of at most `capacity` and at most so many items. An item that is larger than that is not
/// admitted; the weight of an item is that of the request that brought it in. `bytes` are those that a request counts.
pub fn lru(
    requests: &[u32],
    items: usize,
    (capacity, most): (u64, u64),
    weight: impl Fn(usize) -> u64,
    bytes: impl Fn(usize) -> u64,
) -> Hits {
    let mut list = List::new(items);
    let mut weights = vec![0u64; items];
    let (mut held, mut count) = (0u64, 0u64);
    let mut hits = Hits::default();
    for (at, item) in requests.iter().enumerate() {
        if list.contains(*item) {
            list.unlink(*item);
            list.push(*item);
            hits.requests += 1;
            hits.bytes += bytes(at);
            continue;
        }
        let w = weight(at);
        if w > capacity || most == 0 {
            continue;
        }
        while held + w > capacity || count >= most {
            let Some(oldest) = list.oldest() else { break };
            list.unlink(oldest);
            held -= weights.get(oldest as usize).copied().unwrap_or(0);
            count -= 1;
        }
        list.push(*item);
        held += w;
        count += 1;
        if let Some(slot) = weights.get_mut(*item as usize) {
            *slot = w;
        }
    }
    hits
}

/// Items in order of use, linked by number; `None` of both sides and absent: not in it.
#[derive(Debug)]
struct List {
    /// Before (older) and after (newer), by item, `END` at an end.
    links: Vec<Option<(u32, u32)>>,
    oldest: u32,
    newest: u32,
}

const END: u32 = u32::MAX;

impl List {
    fn new(items: usize) -> List {
        List { links: vec![None; items], oldest: END, newest: END }
    }

    fn contains(&self, item: u32) -> bool {
        matches!(self.links.get(item as usize), Some(Some(_)))
    }

    fn oldest(&self) -> Option<u32> {
        (self.oldest != END).then_some(self.oldest)
    }

    fn link(&mut self, item: u32) -> Option<&mut (u32, u32)> {
        self.links.get_mut(item as usize)?.as_mut()
    }

    fn push(&mut self, item: u32) {
        let before = self.newest;
        if let Some(slot) = self.links.get_mut(item as usize) {
            *slot = Some((before, END));
        }
        match self.link(before) {
            Some(link) => link.1 = item,
            None => self.oldest = item,
        }
        self.newest = item;
    }

    fn unlink(&mut self, item: u32) {
        let Some((before, after)) = self.links.get_mut(item as usize).and_then(Option::take) else { return };
        match self.link(before) {
            Some(link) => link.1 = after,
            None => self.oldest = after,
        }
        match self.link(after) {
            Some(link) => link.0 = before,
            None => self.newest = before,
        }
    }
}

/// Hits of the best cache that there can be, of items of one size (Belady, 1966): of those that it holds and the one
/// that it is asked for, it lets go of the one that is asked for last.
pub fn optimum(requests: &[u32], items: usize, capacity: u64) -> u64 {
    const NEVER: u32 = u32::MAX;
    let mut next_of = vec![NEVER; items];
    let mut next = vec![NEVER; requests.len()];
    for (at, item) in requests.iter().enumerate().rev() {
        if let (Some(slot), Some(of)) = (next.get_mut(at), next_of.get_mut(*item as usize)) {
            *slot = std::mem::replace(of, u32::try_from(at).unwrap_or(NEVER));
        }
    }
    let mut held = vec![false; items];
    let mut count = 0u64;
    let mut hits = 0u64;
    // Furthest next use first. What is asked for again gets a new entry, further away than its old one, which by then
    // is in the past and so never at the top while anything is held.
    let mut heap: BinaryHeap<(u32, Reverse<u32>)> = BinaryHeap::new();
    for (item, next) in requests.iter().zip(&next) {
        let Some(is_held) = held.get_mut(*item as usize) else { continue };
        if std::mem::replace(is_held, true) {
            hits += 1;
        } else {
            count += 1;
        }
        heap.push((*next, Reverse(*item)));
        if count > capacity
            && let Some((_, Reverse(victim))) = heap.pop()
            && let Some(slot) = held.get_mut(victim as usize)
        {
            *slot = false;
            count -= 1;
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Stack;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// No limit of items.
    const NONE: u64 = u64::MAX;

    fn unit(_: usize) -> u64 {
        1
    }

    #[test]
    fn known_sequences() {
        // The sequence of Belady's anomaly: FIFO has 3 and 2 hits with 3 and 4 frames.
        let s = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5];
        assert_eq!(lru(&s, 6, (3, NONE), unit, unit).requests, 2);
        assert_eq!(lru(&s, 6, (4, NONE), unit, unit).requests, 4);
        assert_eq!(optimum(&s, 6, 3), 5);
        assert_eq!(optimum(&s, 6, 4), 6);
        // A loop one larger than the cache: LRU never hits.
        let looped: Vec<u32> = (0..5).cycle().take(50).collect();
        assert_eq!(lru(&looped, 5, (4, NONE), unit, unit).requests, 0);
        assert!(optimum(&looped, 5, 4) >= 33);
        assert_eq!(optimum(&looped, 5, 5), 45);
        assert_eq!((optimum(&looped, 5, 0), lru(&looped, 5, (0, NONE), unit, unit).requests), (0, 0));
    }

    #[test]
    fn by_bytes() {
        // a (3), b (3), a: both fit in 6; c (6) throws both out; d (7) never comes in.
        let (requests, sizes) = ([0u32, 1, 0, 2, 0, 3, 3], [3u64, 3, 3, 6, 3, 7, 7]);
        assert_eq!(
            lru(&requests, 4, (6, NONE), |at| sizes[at], |at| 10 * sizes[at]),
            Hits { requests: 1, bytes: 30 }
        );
        // One item at most: b throws a out.
        assert_eq!(lru(&requests, 4, (7, 1), |at| sizes[at], |at| sizes[at]), Hits { requests: 1, bytes: 7 });
    }

    /// The best of all ways to let go of something, or not to take it in.
    fn best(requests: &[u32], held: &BTreeSet<u32>, capacity: usize) -> u64 {
        let Some((item, rest)) = requests.split_first() else { return 0 };
        if held.contains(item) {
            return 1 + best(rest, held, capacity);
        }
        let mut with = held.clone();
        with.insert(*item);
        if with.len() <= capacity {
            return best(rest, &with, capacity);
        }
        let ways = with.iter().map(|out| {
            let mut left = with.clone();
            left.remove(out);
            best(rest, &left, capacity)
        });
        ways.max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn the_optimum_is_the_best_there_is(
            requests in proptest::collection::vec(0u32..5, 0..11), capacity in 0usize..4,
        ) {
            prop_assert_eq!(optimum(&requests, 5, capacity as u64), best(&requests, &BTreeSet::new(), capacity));
        }

        #[test]
        fn lru_is_the_stack_cut_at_its_size(
            requests in proptest::collection::vec(0u32..12, 0..150), capacity in 0u64..12,
        ) {
            let mut stack = Stack::new(vec![1; 12], requests.len());
            let by_stack = requests.iter().filter(|r| stack.access(**r).is_some_and(|d| d <= capacity)).count();
            prop_assert_eq!(lru(&requests, 12, (capacity, NONE), unit, unit).requests, by_stack as u64);
            prop_assert!(optimum(&requests, 12, capacity) >= by_stack as u64);
        }
    }
}
