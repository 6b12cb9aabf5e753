//! Experiments, the history, and the loop.

use super::*;
use crate::sensors::{Readings, SimulatedSensors};

/// A store whose memory would answer more if it were larger; requests take so long.
fn experiment(cost: f64) -> Sample {
    let mut s = with_memory(30.0);
    s.knobs.memory_size = 256 * MIB;
    s.tiers[0] = Some(TierSample { bytes: GIB, ..TierSample::default() });
    s.tiers[1] = Some(TierSample::default());
    (s.requests.gets, s.requests.misses, s.requests.mean) = (1000, 0, Some(cost));
    s
}

/// Lets it grow, and then gives these costs; what is done with the size of memory after each.
fn after(costs: &[f64]) -> (Vec<Option<Change>>, State) {
    let mut state = State::default();
    let mut s = experiment(0.001);
    let grown = run(&mut s, &mut state, &policy(), 1);
    assert!(turned(&grown[0], Knob::MemorySize).is_some());
    assert_eq!(state.under_trial().count(), 1);
    let done = costs.iter().map(|cost| {
        s.requests.mean = Some(*cost);
        turned(&run(&mut s, &mut state, &policy(), 1)[0], Knob::MemorySize)
    });
    (done.collect(), state)
}

#[test]
fn what_made_things_worse_is_taken_back_and_not_tried_again_soon() {
    let (done, _) = after(&[0.0011, 0.0011]);
    assert_eq!(done[0], None, "it is under trial");
    assert!(matches!(done[1], Some(Change::ResizeMemoryTier { from, to }) if to > from), "a tenth is noise");
    let (done, state) = after(&[0.0012, 0.0012]);
    assert_eq!(done[1], Some(Change::ResizeMemoryTier { from: 320 * MIB, to: 256 * MIB }));
    assert!(state.under_trial().next().is_none(), "taking back is no experiment");
    let (done, _) = after(&[0.01, 0.0001]);
    assert!(done[1].as_ref().is_some_and(|c| c.direction() == Direction::Down), "the mean of both");
    // Worse each time it is tried: the waits double.
    let mut s = experiment(0.001);
    let mut state = State::default();
    let mut grown = Vec::new();
    for n in 0..300 {
        let d = run(&mut s, &mut state, &policy(), 1);
        if turned(&d[0], Knob::MemorySize).is_some_and(|c| c.direction() == Direction::Up) {
            grown.push(n);
        }
        s.requests.mean = Some(if s.knobs.memory_size > 256 * MIB { 0.01 } else { 0.001 });
    }
    let waits: Vec<i32> = grown.windows(2).map(|w| w[1] - w[0]).collect();
    // Two samples until it is judged, and the wait: an hour at most.
    assert_eq!(waits[..4], [12, 22, 42, 62], "{grown:?}");
    assert!(waits[4..].iter().all(|w| *w == 62) && waits.len() >= 6, "{waits:?}");
}

#[test]
fn noise_is_no_reason() {
    let mut s = experiment(0.001);
    s.requests.misses = 1000;
    let mut state = State::default();
    for n in 0..50 {
        s.requests.mean = Some(if n % 2 == 0 { 0.0005 } else { 0.0015 });
        run(&mut s, &mut state, &policy(), 1);
    }
    s.requests.misses = 500;
    run(&mut s, &mut state, &policy(), 1);
    s.requests.mean = Some(0.0018);
    let next = run(&mut s, &mut state, &policy(), 2);
    assert!(next.iter().all(|d| d.actions.iter().all(|a| !a.takes_back)), "{next:?}");
    s.requests.mean = Some(0.02);
    let far = run(&mut s, &mut state, &policy(), 2);
    assert!(far.iter().any(|d| d.actions.iter().any(|a| a.takes_back)));
}

#[test]
fn one_experiment_at_a_time_for_a_goal() {
    let mut s = experiment(0.001);
    // 8 ms at 128 MiB/s.
    let mut hdd = DirectorySample::new(Tier::Hdd, "/d");
    hdd.alone[0] = DiskReads { count: 100, bytes: 100 << 13, nanos: 816_103_515 };
    hdd.alone[1] = DiskReads { count: 100, bytes: 100 << 19, nanos: 1_200_625_000 };
    s.directories = vec![hdd];
    let mut state = State::default();
    let mut last = None;
    for decision in run(&mut s, &mut state, &policy(), 12) {
        let tried: Vec<_> = decision.actions.iter().filter(|a| a.goal == Goal::RequestCost).collect();
        assert!(tried.len() <= 1, "{tried:?}");
        last = tried.first().map(|a| a.change.knob()).or(last);
    }
    assert_eq!(s.knobs.read_ahead[2], 1 << 20, "its turn came, too: {last:?}");
}

#[test]
fn harder_compression_that_costs_too_much_is_taken_back_and_the_type_left_alone() {
    let mut s = quiet();
    // A tenth of a processor; and requests are what they are, whoever compresses.
    s.types[2] = TypeSample { original_bytes: 1000 * MIB, stored_bytes: 900 * MIB, seconds: Some(6.0) };
    (s.cpu_percent, s.requests.mean) = (Some(40.0), Some(0.001));
    let mut state = State::default();
    run(&mut s, &mut state, &policy(), 1);
    assert_eq!(s.knobs.methods[2].algorithm, Algorithm::Zlib);
    // It saves enough for zlib now, and costs: half of a processor.
    let begun = (s.clone(), state.clone());
    (s.types[2].stored_bytes, s.types[2].seconds) = (700 * MIB, Some(30.0));
    let decisions = run(&mut s, &mut state, &policy(), 2);
    assert!(decisions[1].actions.iter().any(|a| a.takes_back), "{decisions:?}");
    assert_eq!(s.knobs.methods[2].algorithm, Algorithm::Lz4);
    s.types[2].stored_bytes = 900 * MIB;
    run(&mut s, &mut state, &policy(), 1);
    assert_eq!(s.knobs.methods[2], Method::NONE);
    // Not a tenth of a processor more than before is not too much for that; that requests take longer is another's doing.
    let (mut s, mut state) = begun;
    (s.types[2].stored_bytes, s.types[2].seconds, s.requests.mean) = (700 * MIB, Some(11.0), Some(0.01));
    let decisions = run(&mut s, &mut state, &policy(), 2);
    assert!(decisions.iter().all(|d| d.actions.iter().all(|a| !a.takes_back)), "{decisions:?}");
    assert_eq!(s.knobs.methods[2].algorithm, Algorithm::Zlib);
}

/// What becomes of an experiment with the smallest read while requests get dearer and something else changes too.
fn judged(change: impl FnOnce(&mut Sample)) -> (bool, State) {
    let mut s = quiet();
    (s.requests.gets, s.requests.puts, s.requests.mean) = (6000, 600, Some(0.001));
    s.tiers[0].as_mut().unwrap().hits = 4000;
    s.tiers[1] = Some(TierSample { hits: 2000, ..TierSample::default() });
    let mut ssd = DirectorySample::new(Tier::Ssd, "/s");
    ssd.alone[0] = DiskReads { count: 100, bytes: 100 << 13, nanos: 100_000_000 };
    ssd.alone[1] = DiskReads { count: 100, bytes: 100 << 19, nanos: 200_000_000 };
    s.directories = vec![ssd];
    let mut state = State::default();
    let begun = run(&mut s, &mut state, &policy(), 1);
    assert!(turned(&begun[0], Knob::ReadSize).is_some(), "{begun:?}");
    s.requests.mean = Some(0.01);
    change(&mut s);
    let after = run(&mut s, &mut state, &policy(), 2);
    assert!(state.under_trial().next().is_none());
    (after.iter().any(|d| d.actions.iter().any(|a| a.takes_back)), state)
}

#[test]
fn under_another_load_there_is_no_verdict() {
    let hits = |memory: u64, ssd: u64| {
        move |s: &mut Sample| {
            s.tiers[0].as_mut().unwrap().hits = memory;
            s.tiers[1].as_mut().unwrap().hits = ssd;
        }
    };
    assert!(judged(|_| ()).0, "the same load, and ten times the cost");
    assert!(judged(hits(3500, 2500)).0, "nine points are noise");
    let (taken, state) = judged(hits(3000, 3000));
    assert!(!taken, "the SSD answers half instead of a third: that is why requests are dearer");
    assert!(state.holds.is_empty(), "and nothing is known of the change");
    let times = |n: u64, of: u64| {
        move |s: &mut Sample| {
            (s.requests.gets, s.requests.puts) = (6000 * n / of, 600 * n / of);
            hits(4000 * n / of, 2000 * n / of)(s);
        }
    };
    assert!(judged(times(4, 3)).0, "a third more is noise");
    assert!(!judged(times(2, 1)).0, "twice the requests");
    // Callers who wait for each other ask for less where requests are dear: no excuse.
    assert!(judged(times(1, 10)).0);
    assert!(!judged(|s| s.requests.puts = 2000).0, "a quarter puts instead of an eleventh");
    // Only for a moment, but in the middle of it.
    let mut s = experiment(0.001);
    let mut state = State::default();
    run(&mut s, &mut state, &policy(), 1);
    (s.requests.mean, s.requests.gets) = (Some(0.01), 5000);
    run(&mut s, &mut state, &policy(), 1);
    s.requests.gets = 1000;
    let last = run(&mut s, &mut state, &policy(), 1);
    assert!(!last[0].actions.iter().any(|a| a.takes_back), "{last:?}");
}

#[test]
fn what_a_larger_memory_tier_answers_more_is_its_own_doing() {
    let grown = |before: u64, after: u64| {
        let mut s = experiment(0.001);
        let mut state = State::default();
        s.tiers[0].as_mut().unwrap().hits = before;
        run(&mut s, &mut state, &policy(), 1);
        assert_eq!(state.under_trial().count(), 1);
        s.requests.mean = Some(0.01);
        s.tiers[0].as_mut().unwrap().hits = after;
        let d = run(&mut s, &mut state, &policy(), 2);
        d.iter().any(|d| d.actions.iter().any(|a| a.takes_back))
    };
    assert!(grown(500, 800), "dearer though it answers more: that is judged");
    assert!(!grown(500, 300), "it answers less, which growing does not do");
}

fn readings(at: u64) -> Readings {
    let mut r =
        Readings { monotonic: Duration::from_secs(at), boot: Duration::from_secs(at), ..Readings::default() };
    (r.memory.limit, r.process.anonymous) = (Some(1000 * MIB), Some(900 * MIB));
    r
}

#[test]
fn the_loop_records_what_was_done_what_failed_and_what_came_of_it() {
    use crate::sensors::Sensors;
    let mut sensors = SimulatedSensors::new((0..4).map(|n| readings(n * 60)));
    let mut optimizer = Optimizer::new(policy());
    let mut counters = Counters::default();
    counters.tiers[0] = Some(TierCounters { bytes: 500 * MIB, ..TierCounters::default() });
    let mut tried = Vec::new();
    let mut executor = |action: &Action| {
        tried.push(action.change.knob());
        if action.change.knob() == Knob::Allocator { Err("no allocator".to_owned()) } else { Ok(()) }
    };
    assert!(optimizer.step(&sensors.sample(), counters.clone(), 1, &mut executor).is_none());
    let record = optimizer.step(&sensors.sample(), counters.clone(), 2, &mut executor).unwrap().clone();
    assert_eq!((record.unix_ms, record.sample.elapsed), (2, Duration::from_secs(60)));
    assert_eq!(record.outcomes.len(), record.decision.actions.len());
    let failed: Vec<_> = record.outcomes.iter().filter(|o| o.result.is_err()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].result, Err("no allocator".to_owned()));
    assert!(tried.contains(&Knob::MemoryContent) && tried.contains(&Knob::MemorySize));
    let mut better = sensors.sample();
    better.process.anonymous = Some(700 * MIB);
    optimizer.step(&better, counters.clone(), 3, &mut |_: &Action| Ok(()));
    let first = optimizer.history().iter().next().unwrap();
    let effect = first.effects.iter().find(|e| e.goal == Goal::MemoryUse).unwrap();
    assert_eq!((effect.before, effect.after), (Some(90.0), Some(70.0)));
    // A clock that stands still is no turn.
    assert!(optimizer.step(&better, counters, 4, &mut |_: &Action| Ok(())).is_none());
    assert_eq!(optimizer.history().len(), 2);
}

#[test]
fn what_the_executor_could_not_do_waits() {
    let mut optimizer = Optimizer::new(policy());
    let mut tried = Vec::new();
    for turn in 0..15u64 {
        let mut r = readings(turn * 60);
        (r.memory.limit, r.process.anonymous) = (Some(10_000 * MIB), Some(3_000 * MIB));
        // Memory is full and half as large as it may be, and a disk answers half of the requests.
        let mut counters = Counters { gets: turn * 1000, misses: turn * 500, ..Counters::default() };
        counters.tiers[0] = Some(TierCounters { bytes: 256 * MIB, ..TierCounters::default() });
        counters.tiers[1] = Some(TierCounters::default());
        counters.request_mean = Some(0.001);
        counters.knobs.memory_size = 256 * MIB;
        let mut fail = |action: &Action| {
            if action.change.knob() == Knob::MemorySize {
                tried.push(turn);
            }
            Err("no".to_owned())
        };
        optimizer.step(&r, counters, turn, &mut fail);
        assert_eq!(optimizer.state().under_trial().count(), 0);
    }
    assert_eq!(tried, [1, 11]);
}

/// Bytes that nothing can free do not make a tier one that is rebalanced at each turn; but one that was is asked again.
#[test]
fn a_rebalance_in_vain_waits_and_one_that_was_not_ends_the_wait() {
    let mut s = quiet();
    s.tiers[1] = Some(TierSample { bytes: 900, limit: Some(1000), ..TierSample::default() });
    s.tiers[2] = Some(TierSample::default());
    let mut state = State::default();
    let mut turns = |turns: u32, result: Result<(), String>| -> Vec<u32> {
        let asked = |turn: &u32| {
            let decision = decide(&s, &state, &policy());
            state = decision.state;
            let of = |a: &&Action| a.change.knob() == Knob::Occupancy(Tier::Ssd);
            let outcome = |action: &Action| Outcome { action: action.clone(), result: result.clone() };
            let outcomes: Vec<Outcome> = decision.actions.iter().filter(of).map(outcome).collect();
            state.applied(&outcomes);
            assert!(*turn < 100 && outcomes.len() <= 1);
            !outcomes.is_empty()
        };
        (0..turns).filter(asked).collect()
    };
    assert_eq!(turns(5, Ok(())), [0, 1, 2, 3, 4]);
    let vain = turns(80, Err("no".into()));
    assert_eq!((vain.first(), vain.get(1)), (Some(&0), Some(&10)), "{vain:?}");
    assert!(vain.windows(2).all(|w| w[1] - w[0] >= 10) && vain.len() <= 5, "{vain:?}");
    // The wait runs out in the end; what is done then leaves none behind.
    let again = turns(80, Ok(()));
    let first = again[0];
    assert_eq!(again, (first..80).collect::<Vec<u32>>());
}

#[test]
fn an_experiment_that_was_not_done_is_none() {
    let mut s = experiment(0.001);
    let decision = decide(&s, &State::default(), &policy());
    let mut state = decision.state.clone();
    let fail = |action: &Action| Outcome { action: action.clone(), result: Err("no".into()) };
    let outcomes: Vec<Outcome> = decision.actions.iter().map(fail).collect();
    state.applied(&outcomes);
    assert_eq!(state.under_trial().count(), 0);
    let next = run(&mut s, &mut state, &policy(), 9);
    assert!(next.iter().all(|d| turned(d, Knob::MemorySize).is_none()), "not again at once");
}

#[test]
fn the_history_is_bounded() {
    let mut history = History::new(3);
    for n in 0..10 {
        let decision = decide(&quiet(), &State::default(), &policy());
        history.push(Record {
            unix_ms: n,
            sample: quiet(),
            decision,
            outcomes: Vec::new(),
            effects: Vec::new(),
        });
    }
    assert_eq!(history.iter().map(|r| r.unix_ms).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!(History::default().most(), 256);
}

#[test]
fn a_sample_is_the_difference_of_two_states() {
    let mut before = Counters { gets: 100, misses: 50, put_bytes: 10, prefetched: 5, ..Counters::default() };
    before.tiers[1] = Some(TierCounters { hits: 10, written: 100, ..TierCounters::default() });
    before.types[0] = (1000, 800);
    let mut now = Counters { gets: 200, misses: 60, put_bytes: 5, prefetched: 9, ..before.clone() };
    now.tiers[1] =
        Some(TierCounters { hits: 60, written: 300, bytes: 80, limit: Some(100), ..TierCounters::default() });
    now.types[0] = (3000, 1800);
    now.request_mean = Some(f64::NAN);
    now.directories = vec![DirectorySample::new(Tier::Ssd, "/d")];
    let mut r = readings(60);
    r.process.allocated = Some(7);
    r.cpu.machine_percent = Some(f64::INFINITY);
    r.pressure.io.some = Some(7.0);
    let mut device = crate::sensors::DeviceReading::default();
    (device.directory, device.read_latency) = ("/d".into(), Some(5.0));
    r.devices = vec![device];
    let s = Sample::between(&before, &now, &r, Duration::from_secs(10));
    assert_eq!((s.requests.gets, s.requests.misses, s.requests.put_bytes), (100, 10, 0));
    let ssd = s.tier(Tier::Ssd).unwrap();
    assert_eq!((ssd.hit_rate, ssd.written, ssd.occupancy()), (Some(0.5), 200, Some(0.8)));
    assert_eq!((s.types[0].ratio(), s.prefetch.issued, s.memory_allocated), (Some(0.5), 4, Some(7)));
    assert_eq!((s.requests.mean, s.cpu_percent, s.io_pressure), (None, None, None), "absurd");
    assert_eq!((s.memory_percent(), s.directories[0].read_mean), (Some(90.0), Some(5.0)));
    assert!(s.tier(Tier::Hdd).is_none());
}
