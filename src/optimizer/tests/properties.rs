//! Whatever a sample says: no panic, nothing out of bounds, and rest.

use super::{Method, *};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Any;

/// Any number, and none, and such as are none.
fn number() -> impl Any<Value = Option<f64>> {
    let odd = prop::sample::select(vec![f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, f64::MIN_POSITIVE, 100.0]);
    prop_oneof![Just(None), any::<f64>().prop_map(Some), odd.prop_map(Some), (0.0..120.0).prop_map(Some)]
}

fn count() -> impl Any<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), 0..1000u64, (0..60u32).prop_map(|n| 1 << n)]
}

fn samples() -> impl Any<Value = Sample> {
    let numbers = (vec(number(), 12), vec(count(), 40), 0..2_000_000_000u64);
    (numbers, vec(any::<bool>(), 8)).prop_map(|((f, n, ms), is)| {
        let mut s = Sample { elapsed: Duration::from_millis(ms), ..Sample::default() };
        (s.memory_used, s.memory_limit) = (is[0].then_some(n[0]), is[1].then_some(n[1]));
        (s.memory_available, s.memory_stalled) = (is[2].then_some(n[2]), f[0]);
        (s.cpu_percent, s.io_pressure, s.network_percent) = (f[1], f[2], f[4]);
        (s.requests.gets, s.requests.misses, s.requests.put_bytes) = (n[3], n[4], n[5]);
        (s.requests.stalls, s.requests.mean, s.requests.p99) = (n[6], f[5], f[6]);
        for (i, t) in s.tiers.iter_mut().enumerate() {
            let limit = is[i].then_some(n[8 + i]);
            let (hits, written, bytes, items) = (n[12 + i], n[16 + i], n[20 + i], n[24 + i]);
            let t2 =
                TierSample { hits, written, bytes, items, limit, item_limit: limit, ..TierSample::default() };
            *t = is[4 + i].then_some(t2);
        }
        (s.memory_allocated, s.oldest_idle) =
            (is[3].then_some(n[7]), is[4].then(|| Duration::from_secs(n[28])));
        (s.commit_mean, s.moved_bytes, s.index_lookups, s.index_misses) = (f[7], n[29], n[30], n[31]);
        s.types[0] = TypeSample { original_bytes: n[32], stored_bytes: n[33], seconds: f[8] };
        s.types[2] = TypeSample { original_bytes: n[33], stored_bytes: n[32], seconds: f[8] };
        s.prefetch = PrefetchSample { issued: n[34], used: n[35] };
        for tier in [Tier::Ssd, Tier::Hdd, Tier::Cold] {
            let (reads, read_bytes, writes, write_bytes) = (n[36], n[37], n[38], n[39]);
            let (read_mean, write_mean, sync_mean) = (f[9], f[10], f[11]);
            let disk = |i: usize| DiskReads { count: n[i], bytes: n[i + 1], nanos: n[i + 2] };
            let (disk, alone, concurrency, syncs) = (disk(35), [disk(20), disk(25)], n[32], n[3]);
            let of = DirectorySample::new(tier, "/d");
            s.directories.push(DirectorySample {
                reads,
                read_bytes,
                read_mean,
                writes,
                write_bytes,
                write_mean,
                syncs,
                sync_mean,
                disk,
                alone,
                concurrency,
                ..of
            });
        }
        let k = &mut s.knobs;
        (k.memory_size, k.sled_cache, k.pack_size, k.read_size) = (n[36], n[35], n[34], n[33]);
        (k.write_buffer, k.background_rate) = (n[31], n[30]);
        (k.read_ahead, k.reclaim_rate) = ([n[29]; 4], [n[28]; 4]);
        k.prefetch = f[4].unwrap_or(1.0);
        s
    })
}

/// What a store may well say.
fn likely() -> impl Any<Value = Sample> {
    (vec(0.0..1.0f64, 24), vec(any::<bool>(), 6)).prop_map(|(f, is)| {
        let n = |i: usize, most: f64| (f[i] * most) as u64;
        let mut s = with_memory(f[0] * 100.0);
        (s.cpu_percent, s.io_pressure) = (is[0].then_some(f[1] * 100.0), is[1].then_some(f[2]));
        (s.requests.gets, s.requests.misses, s.requests.stalls) = (100_000, n(3, 1e4), n(4, 3.0));
        (s.requests.put_bytes, s.commit_mean) = (n(5, 1e10), Some(f[6] / 10.0));
        (s.requests.mean, s.requests.p99) = (Some(f[7] / 1e4), Some(f[8] / 1e3));
        (s.memory_allocated, s.moved_bytes) = (is[2].then_some(n(9, 5e9)), n(10, 4e9));
        s.oldest_idle = Some(Duration::from_secs(n(11, 2000.0)));
        s.knobs.memory_size = 64 * MIB + n(12, 448.0 * MIB as f64);
        s.tiers[0] = Some(TierSample { bytes: s.knobs.memory_size, hits: 70_000, ..TierSample::default() });
        for (i, tier) in [Tier::Ssd, Tier::Hdd, Tier::Cold].into_iter().enumerate() {
            let (bytes, written) = (n(13 + i, GIB as f64), n(16, 6e9));
            s.tiers[i + 1] = Some(TierSample { bytes, written, limit: Some(GIB), ..TierSample::default() });
            let mut of = DirectorySample::new(tier, format!("/{tier}"));
            let (access, speed) = (f[18] / 100.0, f[19] * 1e9 + 1.0);
            for (class, size) in of.alone.iter_mut().zip([1u64 << 13, 1 << 20]) {
                let (count, took) = (n(17, 1e6), access + size as f64 / speed);
                let nanos = (count as f64 * took * 1e9) as u64;
                *class = DiskReads { count, bytes: count.saturating_mul(size), nanos };
            }
            of.disk = DiskReads { count: n(17, 2e6), bytes: 0, nanos: n(18, 1e11) };
            s.directories.push(of);
        }
        for (i, t) in s.types.iter_mut().enumerate() {
            *t = TypeSample { original_bytes: GIB, stored_bytes: n(20 + i, GIB as f64), seconds: None };
        }
        (s.prefetch.issued, s.prefetch.used) = (1000, n(11, 1000.0));
        (s.index_lookups, s.index_misses) = (10_000, n(10, 2000.0));
        s.knobs.sled_cache = 8 * MIB;
        s
    })
}

/// What may be set.
fn is_within(change: &Change, p: &Policy, ceilings: &Ceilings) -> bool {
    let method = |m: &Method| (1..=ceilings.compression_level).contains(&m.level);
    match change {
        Change::FreeMemory { bytes, from, to } => from - to == *bytes,
        Change::ResizeMemoryTier { to, .. } => (p.memory_floor..=p.memory_max).contains(to),
        Change::SetReclaimRate { to, .. } | Change::SetBackgroundRate { to, .. } => {
            (p.background_rate / 64..=p.background_rate).contains(to)
        }
        Change::SetSledCache { to, .. } => (p.sled_cache / 8..=p.sled_cache).contains(to),
        Change::SetPackSize { to, .. } => (4 * MIB..=p.pack_size).contains(to),
        Change::SetReadAhead { to, .. } => (p.buffer_size..=p.read_ahead_size).contains(to),
        Change::SetReadSize { to, .. } => (p.buffer_size..=64 << 10).contains(to),
        Change::SetConcurrency { to, .. } => (4..=p.max_concurrent_ops).contains(to),
        Change::SetWriteBuffer { to, .. } => (MIB..=p.write_buffer_size).contains(to),
        Change::SetCompression { to, .. } | Change::RetryCompression { to, .. } => method(to),
        Change::SetPrefetch { to, .. } => (0.0..=ceilings.prefetch).contains(to),
        Change::Rebalance { to, .. } => *to == 0.8,
        _ => true,
    }
}

/// Whether it sets something, and is not done anew each time a limit is exceeded.
fn sets(action: &Action) -> bool {
    action.change.reversed().is_some() || matches!(action.change, Change::SetStrategy { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_sample_panics_and_nothing_is_out_of_bounds(all in vec(prop_oneof![samples(), likely()], 1..6)) {
        let p = policy();
        let mut state = State::default();
        for s in all {
            let decision = decide(&s, &state, &p);
            // A sample that is not clean, of numbers that are none, is not equal to itself: what is decided is.
            prop_assert_eq!(&decision, &decide(&s, &state, &p));
            prop_assert!(decision.pressure.is_none_or(|x| (0.0..=1.0 + 1e-9).contains(&x)));
            for action in decision.actions.iter().filter(|a| !a.takes_back) {
                prop_assert!(is_within(&action.change, &p, &decision.ceilings), "{:?}", action);
            }
            state = decision.state;
        }
    }

    #[test]
    fn a_policy_of_extremes_does_not_panic(s in samples(), n in vec(count(), 9), f in vec(any::<f64>(), 6)) {
        let mut p = policy();
        (p.memory_max_percent, p.memory_buffer_percent, p.gc_threshold) = (f[0], f[1], f[2]);
        (p.cpu_max_percent, p.compression_threshold) = (f[3], f[4]);
        (p.memory_floor, p.memory_max, p.max_concurrent_ops, p.buffer_size) = (n[0], n[1], n[2], n[3]);
        (p.write_buffer_size, p.read_ahead_size, p.background_rate) = (n[4], n[5], n[6]);
        (p.sled_cache, p.pack_size) = (n[7], n[8]);
        decide(&s, &State::default(), &p);
    }

    /// What is set comes to rest: in the last of many turns only what is retried ever more rarely is left.
    #[test]
    fn a_constant_sample_settles(s in prop_oneof![samples(), likely()], elapsed in 1..600u64) {
        let mut s = Sample { elapsed: Duration::from_secs(elapsed), ..s };
        let mut state = State::default();
        let decisions = run(&mut s, &mut state, &policy(), 400);
        let mut late = std::collections::BTreeMap::new();
        for action in decisions.iter().skip(200).flat_map(|d| &d.actions).filter(|a| sets(a)) {
            *late.entry(action.change.knob()).or_insert(0) += 1;
        }
        // Two retries fit into 200 turns: each begins and ends.
        prop_assert!(late.values().all(|n| *n <= 4), "{:?}", late);
    }

    #[test]
    fn noise_around_a_border_changes_the_strategy_once_at_most(
        border in prop::sample::select(vec![0.6, 0.8]),
        noise in vec(-0.024..0.024f64, 300),
    ) {
        let mut state = State::default();
        let mut changes = 0;
        for n in noise {
            let s = Sample { io_pressure: Some(border + n), ..Sample::default() };
            let decision = decide(&s, &state, &policy());
            changes += decision.actions.iter().filter(|a| a.change.knob() == Knob::Strategy).count();
            state = decision.state;
        }
        prop_assert!(changes <= 1, "{changes}");
    }
}
