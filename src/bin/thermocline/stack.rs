//! LRU of every size at once, by stack distance (Mattson, Gecsei, Slutz and Traiger, 1970).
//!
//! The distance of an access is the weight of the distinct items used since the last access of the same item, itself
//! included: an LRU cache of at least that size hits it, a smaller one does not. Kept as a Fenwick tree (1994) over
//! the times of last use (Bennett and Kruskal, 1975), which makes an access O(log n).

/// Sums of weights over positions, each update and query O(log n).
#[derive(Debug)]
struct Fenwick(Vec<u64>);

impl Fenwick {
    fn new(n: usize) -> Fenwick {
        Fenwick(vec![0; n + 1])
    }

    /// Adds to a position; `delta` may be the two's complement of what is taken away.
    fn add(&mut self, at: usize, delta: u64) {
        let mut i = at + 1;
        while let Some(sum) = self.0.get_mut(i) {
            *sum = sum.wrapping_add(delta);
            i += i & i.wrapping_neg();
        }
    }

    /// The sum of the positions below `end`.
    fn below(&self, end: usize) -> u64 {
        let mut i = end;
        let mut sum = 0u64;
        while i > 0 {
            sum = sum.wrapping_add(self.0.get(i).copied().unwrap_or(0));
            i &= i - 1;
        }
        sum
    }
}

/// Distances of a sequence of accesses, one at a time.
#[derive(Debug)]
pub struct Stack {
    tree: Fenwick,
    /// By item: the time of its last use plus one; 0: never used.
    last: Vec<u32>,
    weights: Vec<u64>,
    now: usize,
    total: u64,
}

impl Stack {
    /// For items 0 to `weights.len() - 1` and at most `accesses` accesses (fewer than 2³²).
    pub fn new(weights: Vec<u64>, accesses: usize) -> Stack {
        Stack { tree: Fenwick::new(accesses), last: vec![0; weights.len()], weights, now: 0, total: 0 }
    }

    /// Uses an item; gives its distance, `None` at its first use (and for an item or a time that there is not).
    pub fn access(&mut self, item: u32) -> Option<u64> {
        let weight = *self.weights.get(item as usize)?;
        let last = self.last.get_mut(item as usize)?;
        let distance = (*last as usize).checked_sub(1).map(|at| {
            let distance = self.total - self.tree.below(at);
            self.tree.add(at, weight.wrapping_neg());
            self.total -= weight;
            distance
        });
        self.tree.add(self.now, weight);
        self.total += weight;
        self.now += 1;
        *last = u32::try_from(self.now).ok()?;
        distance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The list itself, most recently used first.
    fn brute(weights: &[u64], accesses: &[u32]) -> Vec<Option<u64>> {
        let mut list: Vec<u32> = Vec::new();
        let mut distances = Vec::new();
        for a in accesses {
            let at = list.iter().position(|i| i == a);
            distances.push(at.map(|at| list[..=at].iter().map(|i| weights[*i as usize]).sum()));
            if let Some(at) = at {
                list.remove(at);
            }
            list.insert(0, *a);
        }
        distances
    }

    #[test]
    fn a_known_sequence() {
        let mut stack = Stack::new(vec![1; 4], 8);
        let got: Vec<_> = [0, 1, 2, 0, 0, 3, 1, 2].iter().map(|i| stack.access(*i)).collect();
        assert_eq!(got, [None, None, None, Some(3), Some(1), None, Some(4), Some(4)]);
        assert_eq!(stack.access(9), None);
    }

    proptest! {
        #[test]
        fn as_the_list_itself(
            weights in proptest::collection::vec(0u64..1000, 1..12),
            accesses in proptest::collection::vec(any::<u32>(), 0..120),
        ) {
            let accesses: Vec<u32> = accesses.iter().map(|a| a % weights.len() as u32).collect();
            let mut stack = Stack::new(weights.clone(), accesses.len());
            let got: Vec<_> = accesses.iter().map(|a| stack.access(*a)).collect();
            prop_assert_eq!(got, brute(&weights, &accesses));
        }
    }
}
