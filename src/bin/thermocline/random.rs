//! Deterministic random numbers: a generator, a shuffle and the Zipf distribution.

/// SplitMix64 (Steele, Lea and Flood, 2014): one addition and a mix, any seed will do.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 if that is 0), by multiplication (Lemire, 2019, without the rejection: off by less than
    /// n / 2⁶⁴).
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A number from 0 up to, but not, 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Fisher–Yates (Durstenfeld, 1964).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// Bytes without a pattern.
    pub fn fill(&mut self, out: &mut Vec<u8>, len: usize) {
        let end = out.len() + len;
        out.reserve(len + 8);
        while out.len() < end {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(end);
    }
}

/// Ranks 0 to n − 1, rank k with a probability proportional to (k + 1)^−s: rejection-inversion (Hörmann and
/// Derflinger, 1996), which needs no table.
#[derive(Debug, Clone)]
pub struct Zipf {
    n: f64,
    s: f64,
    h_first: f64,
    h_last: f64,
    cut: f64,
}

impl Zipf {
    /// Of `n` ranks (at least 1), with exponent `s` > 0.
    pub fn new(n: u64, s: f64) -> Zipf {
        let n = n.max(1) as f64;
        let mut zipf = Zipf { n, s, h_first: 0.0, h_last: 0.0, cut: 0.0 };
        zipf.h_first = zipf.integral(1.5) - 1.0;
        zipf.h_last = zipf.integral(n + 0.5);
        zipf.cut = 2.0 - zipf.inverse(zipf.integral(2.5) - 2f64.powf(-s));
        zipf
    }

    /// The integral of x^−s from 1.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let t = (1.0 - self.s) * log;
        if t.abs() < 1e-8 { log } else { (t.exp_m1() / t) * log }
    }

    fn inverse(&self, y: f64) -> f64 {
        let t = (y * (1.0 - self.s)).max(-1.0);
        let scale = if t.abs() < 1e-8 { 1.0 } else { t.ln_1p() / t };
        (scale * y).exp()
    }

    /// One rank.
    pub fn sample(&self, random: &mut Random) -> u64 {
        loop {
            let u = self.h_last + random.unit() * (self.h_first - self.h_last);
            let x = self.inverse(u);
            let k = (x + 0.5).floor().clamp(1.0, self.n);
            if k - x <= self.cut || u >= self.integral(k + 0.5) - k.powf(-self.s) {
                return k as u64 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_is_what_it_says() {
        for (n, s) in [(1, 0.99), (10, 0.99), (1000, 0.6), (1000, 1.0), (500, 1.4)] {
            let zipf = Zipf::new(n, s);
            let mut random = Random::new(7);
            let draws = 200_000;
            let mut counts = vec![0u64; n as usize];
            for _ in 0..draws {
                counts[zipf.sample(&mut random) as usize] += 1;
            }
            let sum: f64 = (1..=n).map(|k| (k as f64).powf(-s)).sum();
            for k in [1, 2, 3, n / 2, n].into_iter().filter(|k| (1..=n).contains(k)) {
                let expected = draws as f64 * (k as f64).powf(-s) / sum;
                let got = counts[k as usize - 1] as f64;
                assert!(
                    (got - expected).abs() < 5.0 * expected.sqrt() + 1.0,
                    "{n} {s} rank {k}: {got}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut v: Vec<u32> = (0..100).collect();
        Random::new(1).shuffle(&mut v);
        assert_ne!(v, (0..100).collect::<Vec<_>>());
        v.sort_unstable();
        assert_eq!(v, (0..100).collect::<Vec<_>>());
        Random::new(1).shuffle::<u32>(&mut []);
    }

    #[test]
    fn bytes_are_as_many_as_asked_for() {
        for len in [0, 1, 7, 8, 9, 1000] {
            let mut out = vec![1, 2];
            Random::new(3).fill(&mut out, len);
            assert_eq!(out.len(), len + 2);
        }
    }
}
