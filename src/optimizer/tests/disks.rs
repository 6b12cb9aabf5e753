//! Tiers, I/O, the write buffer, background work, the network.

use super::*;

fn tier(bytes: u64, written: u64) -> TierSample {
    TierSample { bytes, limit: Some(1000 * MIB), written, ..TierSample::default() }
}

#[test]
fn a_tier_over_80_percent_is_rebalanced() {
    let balanced = |s: &Sample, tier| {
        matches!(
            turned(&under(Strategy::Balanced, s), Knob::Occupancy(tier)),
            Some(Change::Rebalance { to: 0.8, .. })
        )
    };
    for (bytes, items, over) in
        // Of items the tier keeps the limit by itself.
        [(800 * MIB, 0, false), (801 * MIB, 0, true), (0, 81, false), (0, 200, false)]
    {
        let mut s = quiet();
        s.tiers[1] = Some(TierSample { items, item_limit: Some(100), ..tier(bytes, 0) });
        s.tiers[2] = Some(tier(0, 0));
        assert_eq!(balanced(&s, Tier::Ssd), over, "{bytes} bytes, {items} items");
        s.tiers[2] = None;
        assert!(!balanced(&s, Tier::Ssd), "nothing is below");
        s.tiers[3] = Some(TierSample { bytes: GIB, ..TierSample::default() });
        assert_eq!(balanced(&s, Tier::Ssd), over);
        assert!(!balanced(&s, Tier::Cold), "it has no limit");
    }
}

#[test]
fn the_hdd_is_rebalanced_as_the_ssd_is_at_its_own_border() {
    for (bytes, over) in [(799 * MIB, false), (800 * MIB, false), (801 * MIB, true), (1000 * MIB, true)] {
        let mut s = quiet();
        (s.tiers[2], s.tiers[3]) = (Some(tier(bytes, 0)), Some(TierSample::default()));
        let change = turned(&under(Strategy::Balanced, &s), Knob::Occupancy(Tier::Hdd));
        assert_eq!(matches!(change, Some(Change::Rebalance { to: 0.8, .. })), over, "{bytes}: {change:?}");
    }
}

#[test]
fn reclaim_keeps_up_with_what_flows_in() {
    let rate = |bytes, inflow: u64, from| {
        let mut s = quiet();
        s.tiers[1] = Some(tier(bytes, inflow * 60));
        s.knobs.reclaim_rate[1] = from;
        match turned(&under(Strategy::Balanced, &s), Knob::ReclaimRate(Tier::Ssd)) {
            Some(Change::SetReclaimRate { to, .. }) => Some(to),
            _ => None,
        }
    };
    assert_eq!(rate(500 * MIB, 8 * MIB, 2 * MIB), Some(8 * MIB));
    assert_eq!(rate(800 * MIB, 8 * MIB, 2 * MIB), Some(8 * MIB));
    assert_eq!(rate(900 * MIB, 8 * MIB, 2 * MIB), Some(12 * MIB), "half as fast again, half way to full");
    assert_eq!(rate(500 * MIB, 8 * MIB, 10 * MIB), None, "near enough");
    assert_eq!(rate(500 * MIB, 8 * MIB, 32 * MIB), Some(8 * MIB));
    assert_eq!(rate(500 * MIB, 0, 2 * MIB), Some(MIB), "never less than a 64th");
    assert_eq!(rate(900 * MIB, GIB, 2 * MIB), Some(64 * MIB), "never more than configured");
}

#[test]
fn caches_of_sled_give_way_to_memory_and_come_back() {
    let cache = |memory, from, lookups, misses| {
        let mut s = with_memory(memory);
        s.tiers[2] = Some(tier(0, 0));
        (s.index_lookups, s.index_misses, s.knobs.sled_cache) = (lookups, misses, from);
        match turned(&under(Strategy::Balanced, &s), Knob::SledCache) {
            Some(Change::SetSledCache { to, .. }) => Some(to / MIB),
            _ => None,
        }
    };
    assert_eq!(cache(81.0, 32 * MIB, 0, 0), Some(16));
    assert_eq!(cache(81.0, 4 * MIB, 0, 0), None, "an eighth is left");
    assert_eq!(cache(30.0, 8 * MIB, 1000, 51), Some(16));
    assert_eq!(cache(30.0, 8 * MIB, 1000, 50), None);
    assert_eq!(cache(30.0, 8 * MIB, 999, 900), None, "too few to tell");
    assert_eq!(cache(71.0, 8 * MIB, 1000, 900), None, "no room");
    assert_eq!(cache(30.0, 32 * MIB, 1000, 900), None, "never more than configured");
}

/// A disk that is asked for one thing after another, as a reader who waits for each asks: small reads and large ones, as
/// many of each, and nothing else is under way.
fn disk(tier: Tier, access: f64, speed: f64, reads: u64) -> DirectorySample {
    let mut d = DirectorySample::new(tier, format!("/{tier}"));
    for (class, size) in d.alone.iter_mut().zip([16u64 << 10, 512 << 10]) {
        let nanos = (reads as f64 * (access + size as f64 / speed) * 1e9) as u64;
        *class = DiskReads { count: reads, bytes: reads * size, nanos };
        d.disk.count += reads;
        d.disk.bytes += class.bytes;
        d.disk.nanos += nanos;
    }
    d.reads = d.disk.count;
    d.read_mean = Some(d.disk.nanos as f64 / 1e9 / d.reads as f64);
    d
}

#[test]
fn reads_are_as_large_as_an_access_is_dear() {
    let mut s = quiet();
    // 8 ms at 128 MiB/s: 1 MiB for the time of an access; 100 µs at 1 GiB/s: 105 KiB.
    let (hdd, ssd) = (disk(Tier::Hdd, 0.0081, 134_217_728.0, 100), disk(Tier::Ssd, 0.0001, GIB as f64, 100));
    s.directories = vec![hdd, ssd, disk(Tier::Cold, 0.008, 1e9, 15)];
    s.knobs.read_size = 64 << 10;
    s.knobs.read_ahead = [64 << 10; 4];
    let mut state = State::default();
    let decision = run(&mut s, &mut state, &policy(), 3).remove(0);
    let ahead = |tier, to| Some(Change::SetReadAhead { tier, from: 64 << 10, to });
    assert_eq!(turned(&decision, Knob::ReadAhead(Tier::Hdd)), ahead(Tier::Hdd, 1 << 20));
    assert_eq!(turned(&decision, Knob::ReadAhead(Tier::Cold)), None, "too few reads");
    let size = Change::SetReadSize { from: 64 << 10, to: 8 << 10 };
    assert_eq!(turned(&decision, Knob::ReadSize), Some(size), "a tenth of an access to the SSD");
    s.directories[0] = disk(Tier::Hdd, 0.5, 1e9, 100);
    run(&mut s, &mut state, &policy(), 1);
    assert_eq!(s.knobs.read_ahead[2], 4 << 20, "never more than configured");
    // Large reads were no slower than small ones: the page cache, or chance.
    s.directories[0].alone[1].nanos = s.directories[0].alone[0].nanos / 2;
    assert_eq!(turned(&under(Strategy::Balanced, &s), Knob::ReadAhead(Tier::Hdd)), None);
    // Nothing is said of what an access costs by reads that waited for others.
    s.directories[0].alone = [DiskReads::default(); 2];
    assert_eq!(turned(&under(Strategy::Balanced, &s), Knob::ReadAhead(Tier::Hdd)), None);
}

#[test]
fn read_ahead_is_of_tiers_that_read_ahead_and_the_smallest_read_is_the_ssds() {
    let mut s = quiet();
    (s.knobs.read_size, s.knobs.read_ahead) = (8 << 10, [64 << 10; 4]);
    // 1 ms at 1 GiB/s: a mebibyte; a tenth of that is more than the largest of smallest reads.
    s.directories = vec![disk(Tier::Ssd, 0.001, GIB as f64, 100)];
    let ssd = under(Strategy::Balanced, &s);
    assert_eq!(turned(&ssd, Knob::ReadAhead(Tier::Ssd)), None, "nothing there reads ahead");
    assert_eq!(turned(&ssd, Knob::ReadSize), Some(Change::SetReadSize { from: 8 << 10, to: 64 << 10 }));
    // A disk on which an access is cheap has no say in what another reads.
    s.directories.push(disk(Tier::Hdd, 0.000_01, GIB as f64, 100));
    assert_eq!(turned(&under(Strategy::Balanced, &s), Knob::ReadSize), turned(&ssd, Knob::ReadSize));
    s.directories.remove(0);
    assert_eq!(turned(&under(Strategy::Balanced, &s), Knob::ReadSize), None);
}

/// A directory whose disk answered so many reads, each in so long, with the limit as it is.
fn asked(tier: Tier, path: &str, reads: u64, latency: f64, limit: u64) -> DirectorySample {
    let mut d = DirectorySample::new(tier, path);
    let nanos = (reads as f64 * latency * 1e9) as u64;
    (d.reads, d.concurrency, d.disk) = (reads, limit, DiskReads { count: reads, bytes: reads << 13, nanos });
    d
}

#[test]
fn concurrency_follows_use_and_latency() {
    let limit = |ops: u64, latency, usual: f64, from| {
        let mut s = quiet();
        s.directories = vec![asked(Tier::Ssd, "/d", ops, latency, from)];
        let state = State { usual_latency: [("/d".into(), usual)].into(), ..State::default() };
        match turned(&decide(&s, &state, &policy()), Knob::Concurrency("/d".into())) {
            Some(Change::SetConcurrency { to, .. }) => Some(to),
            _ => None,
        }
    };
    // 48,000 in a minute of 10 ms each: 8 in flight.
    assert_eq!(limit(48_000, 0.01, 0.01, 16), Some(20), "half is in use: the square root more");
    assert_eq!(limit(47_000, 0.01, 0.01, 16), None, "less is in use");
    assert_eq!(limit(48_000, 0.015, 0.01, 40), None, "within the tolerance");
    assert_eq!(limit(1_000, 0.03, 0.01, 40), Some(20), "three times as slow");
    assert_eq!(limit(1_000, 0.1, 0.01, 20), Some(16), "never less than 16");
    assert_eq!(limit(1_000, 0.1, 0.01, 16), None);
    assert_eq!(limit(1_000_000, 0.01, 0.01, 98), None, "off by less than a tenth");
    assert_eq!(limit(1_000_000, 0.01, 0.01, 90), Some(99));
    assert_eq!(limit(1_000_000, 0.01, 0.01, 500), Some(100), "never more than configured");
    assert_eq!(limit(15, 0.01, 0.01, 500), None, "too few to tell");
}

#[test]
fn reads_that_move_to_a_slower_disk_make_no_disk_slow() {
    let mut s = quiet();
    // From a million reads of the SSD and a hundred of the HDD to the opposite: each disk is as fast as ever.
    let both =
        |ssd, hdd| vec![asked(Tier::Ssd, "/ssd", ssd, 0.0001, 100), asked(Tier::Hdd, "/hdd", hdd, 0.01, 100)];
    let mut state = State::default();
    s.directories = both(1_000_000, 100);
    run(&mut s, &mut state, &policy(), 20);
    s.directories = both(100, 100_000);
    let after = run(&mut s, &mut state, &policy(), 20);
    let limits = |of: &Sample| of.directories.iter().map(|d| d.concurrency).collect::<Vec<_>>();
    assert_eq!(limits(&s), [100, 100], "{after:?}");
    // One that is slow alone is held back alone.
    s.directories[1].disk.nanos *= 10;
    run(&mut s, &mut state, &policy(), 3);
    assert!(limits(&s)[0] == 100 && limits(&s)[1] < 50, "{:?}", limits(&s));
    // What is not there any more is forgotten.
    s.directories.pop();
    run(&mut s, &mut state, &policy(), 1);
    assert_eq!(state.usual_latency.len(), 1);
}

#[test]
fn the_write_buffer_follows_stalls_and_memory() {
    let buffer = |memory, stalls, from, per_second: u64, commit| {
        let mut s = Sample { commit_mean: Some(commit), ..with_memory(memory) };
        (s.requests.stalls, s.requests.put_bytes, s.knobs.write_buffer) = (stalls, per_second * 60, from);
        match turned(&under(Strategy::Balanced, &s), Knob::WriteBuffer) {
            Some(Change::SetWriteBuffer { to, .. }) => Some(to / MIB),
            _ => None,
        }
    };
    assert_eq!(buffer(30.0, 0, 16 * MIB, 100 * MIB, 0.1), None);
    assert_eq!(buffer(30.0, 1, 4 * MIB, MIB, 0.1), Some(8));
    assert_eq!(buffer(30.0, 1, 4 * MIB, 100 * MIB, 0.1), Some(32), "four commits are 40 MiB");
    assert_eq!(buffer(30.0, 1, 64 * MIB, 100 * MIB, 0.1), None, "never more than configured");
    assert_eq!(buffer(75.0, 1, 4 * MIB, MIB, 0.1), None, "memory is tight");
    assert_eq!(buffer(81.0, 0, 64 * MIB, 20 * MIB, 0.1), Some(16));
    assert_eq!(buffer(81.0, 0, 64 * MIB, 100 * MIB, 0.1), None, "it is needed");
    assert_eq!(buffer(81.0, 1, 64 * MIB, 20 * MIB, 0.1), None, "somebody waits for it");
    assert_eq!(buffer(81.0, 1, MIB, 5 * MIB, 0.1), Some(4), "no more than is needed");
    assert_eq!(buffer(81.0, 1, 4 * MIB, 5 * MIB, 0.1), None);
    assert_eq!(buffer(81.0, 0, 64 * MIB, 0, 0.1), Some(1), "never less than 1 MiB");
}

#[test]
fn a_write_buffer_that_gave_way_to_memory_comes_back_without_anybody_waiting() {
    let mut s = Sample { commit_mean: Some(0.1), ..with_memory(81.0) };
    (s.requests.put_bytes, s.knobs.write_buffer) = (60 * 5 * MIB, 48 * MIB);
    let mut state = State::default();
    let sizes = |s: &mut Sample, state: &mut State, percent: f64, times| {
        s.memory_used = with_memory(percent).memory_used;
        let mut of = |_| {
            run(s, state, &policy(), 1);
            s.knobs.write_buffer / MIB
        };
        (0..times).map(&mut of).collect::<Vec<u64>>()
    };
    assert_eq!(sizes(&mut s, &mut state, 81.0, 2), [4, 4]);
    assert_eq!(sizes(&mut s, &mut state, 75.0, 2), [4, 4], "no room yet");
    assert_eq!(sizes(&mut s, &mut state, 50.0, 6), [8, 16, 32, 48, 48, 48], "what it was, and no more");
}

/// The background rate that is set, in MiB a second.
fn background(change: impl FnOnce(&mut Sample), quiet_tail: f64) -> Option<u64> {
    let mut s = quiet();
    // 16 MiB a second.
    (s.moved_bytes, s.requests.p99, s.knobs.background_rate) = (60 * 16 * MIB, Some(0.001), 32 * MIB);
    change(&mut s);
    let state = State { quiet_tail: Some(quiet_tail), ..State::default() };
    match turned(&decide(&s, &state, &policy()), Knob::BackgroundRate) {
        Some(Change::SetBackgroundRate { to, .. }) => Some(to / MIB),
        _ => None,
    }
}

#[test]
fn background_work_is_not_felt() {
    assert_eq!(background(|_| (), 0.001), None);
    assert_eq!(background(|s| s.requests.p99 = Some(0.002), 0.001), None, "twice the quiet tail");
    assert_eq!(background(|s| s.requests.p99 = Some(0.00201), 0.001), Some(16), "over it");
    assert_eq!(background(|s| s.requests.p99 = Some(1.0), 0.001), Some(8));
    assert_eq!(background(|s| (s.requests.p99, s.moved_bytes) = (Some(1.0), 0), 0.001), None, "it is idle");
    assert_eq!(background(|s| s.cpu_percent = Some(70.0), 0.001), None);
    assert_eq!(background(|s| s.cpu_percent = Some(70.1), 0.001), Some(28));
    assert_eq!(background(|s| s.cpu_percent = Some(100.0), 0.001), Some(16));
    assert_eq!(background(|s| s.io_pressure = Some(0.8), 0.001), None);
    assert_eq!(background(|s| s.io_pressure = Some(0.81), 0.001), Some(24));
    assert_eq!(background(|s| s.moved_bytes = 60 * 32 * MIB, 0.001), Some(36), "it wants more, and may");
    let at =
        |mib| move |s: &mut Sample| (s.moved_bytes, s.knobs.background_rate) = (60 * mib * MIB, mib * MIB);
    assert_eq!(background(at(48), 0.001), Some(52), "over half of the configured rate a sixteenth more");
    for (mib, to) in [(1, 5), (4, 8), (8, 16), (20, 32), (30, 34)] {
        assert_eq!(background(at(mib), 0.001), Some(to), "{mib}: what was taken comes back faster");
    }
    assert_eq!(background(|s| (s.moved_bytes, s.requests.p99) = (60 * 32 * MIB, None), 0.001), Some(36));
    let busy = |s: &mut Sample| (s.cpu_percent, s.knobs.background_rate) = (Some(100.0), MIB);
    assert_eq!(background(busy, 0.001), None, "it never stops");
    let full = |s: &mut Sample| {
        busy(s);
        s.tiers[1] = Some(tier(901 * MIB, 60 * 10 * MIB));
    };
    assert_eq!(background(full, 0.001), Some(10), "callers would wait for room");
    let at_the_border = |s: &mut Sample| {
        busy(s);
        s.tiers[1] = Some(tier(900 * MIB, 60 * 10 * MIB));
    };
    assert_eq!(background(at_the_border, 0.001), None, "nine tenths are not over nine tenths");
}

#[test]
fn a_rate_that_was_taken_is_back_within_minutes() {
    let mut s = quiet();
    (s.moved_bytes, s.requests.p99, s.knobs.background_rate) = (60 * 64 * MIB, Some(0.001), MIB);
    let mut state = State { quiet_tail: Some(0.001), ..State::default() };
    let mut rates = Vec::new();
    while s.knobs.background_rate < 64 * MIB && rates.len() < 60 {
        run(&mut s, &mut state, &policy(), 1);
        rates.push(s.knobs.background_rate / MIB);
    }
    assert_eq!(rates[..4], [5, 10, 20, 32], "{rates:?}");
    assert!(rates.len() <= 20, "{rates:?}");
}

#[test]
fn packs_are_what_the_archive_takes_in_ten_seconds() {
    let size = |speed: f64, syncs, from| {
        let mut s = quiet();
        let mut d = DirectorySample::new(Tier::Cold, "/c");
        // 64 MiB, in writes of one.
        (d.writes, d.write_bytes, d.write_mean) = (64, 64 * MIB, Some(MIB as f64 / speed));
        (d.syncs, d.sync_mean) = (syncs, Some(1.0));
        s.directories = vec![d];
        s.knobs.pack_size = from;
        match turned(&under(Strategy::Balanced, &s), Knob::PackSize) {
            Some(Change::SetPackSize { to, .. }) => Some(to / MIB),
            _ => None,
        }
    };
    let mib = MIB as f64;
    assert_eq!(size(100.0 * mib, 0, 64 * MIB), Some(256));
    assert_eq!(size(10.0 * mib, 0, 64 * MIB), None, "off by less than two");
    assert_eq!(size(3.0 * mib, 0, 64 * MIB), Some(16));
    assert_eq!(size(1000.0, 0, 64 * MIB), Some(4));
    // Writes that the page cache takes at 10 GiB/s, and a disk that takes 8 s for them when they are synced.
    assert_eq!(size(10_240.0 * mib, 0, 64 * MIB), Some(256));
    assert_eq!(size(10_240.0 * mib, 8, 64 * MIB), None, "8 MiB a second: off by less than two");
    assert_eq!(size(10_240.0 * mib, 32, 64 * MIB), Some(16), "2 MiB a second");
}

#[test]
fn a_tail_that_slowing_does_not_lower_is_not_background_works() {
    let mut s = quiet();
    (s.moved_bytes, s.requests.p99, s.knobs.background_rate) = (60 * 16 * MIB, Some(0.01), 32 * MIB);
    let mut state = State { quiet_tail: Some(0.001), ..State::default() };
    // Other requests than before: the tail stays where it is, whatever the rate.
    let decisions = run(&mut s, &mut state, &policy(), 20);
    let down = |d: &Decision| match turned(d, Knob::BackgroundRate) {
        Some(Change::SetBackgroundRate { from, to }) => to < from,
        _ => false,
    };
    let slowed: Vec<usize> = (0..20).filter(|n| down(&decisions[*n])).collect();
    assert_eq!(slowed, [0], "once, and not for hours");
    // Where it helps, it goes on.
    let mut state = State { quiet_tail: Some(0.001), ..State::default() };
    for tail in [0.01, 0.005, 0.003] {
        s.requests.p99 = Some(tail);
        let decision = decide(&s, &state, &policy());
        state = decision.state.clone();
        obey(&mut s, &decision);
        assert!(down(&decision), "{tail}");
    }
}

/// Little's law: seconds of operations over the seconds that passed are how many were under way.
#[test]
fn without_a_word_of_the_system_io_pressure_is_what_the_operations_took() {
    let quiet = crate::sensors::Readings::default();
    let pressure = |seconds: Option<f64>, readings: &crate::sensors::Readings| {
        let counters = Counters { io_seconds: seconds, ..Counters::default() };
        Sample::between(&Counters::default(), &counters, readings, Duration::from_secs(10)).io_pressure
    };
    assert_eq!(pressure(None, &quiet), None, "memory alone");
    assert_eq!(pressure(Some(0.0), &quiet), Some(0.0));
    assert_eq!(pressure(Some(2.5), &quiet), Some(0.25));
    assert_eq!(pressure(Some(90.0), &quiet), Some(1.0), "nine at a time");
    assert_eq!(pressure(Some(f64::NAN), &quiet), None);
    let mut said = quiet.clone();
    said.pressure.io.some = Some(0.75);
    assert_eq!(pressure(Some(2.5), &said), Some(0.75));
}
