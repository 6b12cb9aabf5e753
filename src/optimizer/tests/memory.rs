//! The memory tier, idle entries, prefetching.

use super::*;

fn free(sample: &Sample, strategy: Strategy) -> Option<u64> {
    changes(&under(strategy, sample)).into_iter().find_map(|c| match c {
        Change::FreeMemory { bytes, .. } => Some(bytes),
        _ => None,
    })
}

/// A tier so large that the floor is no matter.
fn large(percent: f64) -> Sample {
    let mut s = with_memory(percent);
    s.tiers[0] = Some(TierSample { bytes: 6_000 * MIB, ..TierSample::default() });
    s.knobs.memory_size = 6_000 * MIB;
    s
}

#[test]
fn over_the_threshold_it_is_freed_down_to_that_less_the_buffer() {
    use Strategy::*;
    for (strategy, percent, bytes) in [
        (Balanced, 80.0, None),
        (Balanced, 80.01, Some(1_001 * MIB)),
        (Balanced, 85.0, Some(1_500 * MIB)),
        // `aggressive` would allow 90.
        (Aggressive, 80.0, None),
        (Aggressive, 85.0, Some(1_500 * MIB)),
        (Conservative, 70.0, None),
        (Conservative, 75.0, Some(1_500 * MIB)),
    ] {
        assert_eq!(free(&large(percent), strategy), bytes, "{strategy} at {percent} %");
    }
    let unknown = Sample { memory_limit: None, ..large(99.0) };
    assert_eq!(free(&unknown, Balanced), None);
}

#[test]
fn no_more_is_freed_than_there_is_above_the_floor() {
    let s = with_memory(95.0);
    let p = policy();
    let decision = under(Strategy::Balanced, &s);
    let (held, floor) = (400 * MIB, p.memory_floor);
    let freed = Change::FreeMemory { bytes: held - floor, from: held, to: floor };
    assert!(changes(&decision).contains(&freed), "{decision:?}");
    let shrunk = Change::ResizeMemoryTier { from: 512 * MIB, to: floor };
    assert_eq!(turned(&decision, Knob::MemorySize), Some(shrunk));
    let fixed = Policy { dynamic: false, ..policy() };
    let decision = decide(&s, &State::default(), &fixed);
    assert!(changes(&decision).contains(&freed) && turned(&decision, Knob::MemorySize).is_none());
}

#[test]
fn over_the_gc_threshold_memory_goes_back_to_the_system() {
    let held = |percent, bytes| {
        let mut s = with_memory(percent);
        s.tiers[0] = Some(TierSample { bytes, ..TierSample::default() });
        turned(&under(Strategy::Balanced, &s), Knob::Allocator).is_some()
    };
    for (percent, freed, trims) in [
        (80.0, false, false),
        (80.01, true, false),
        (85.0, true, false),
        (85.01, true, true),
        (100.0, true, true),
    ] {
        // What was freed is given back; and over the threshold, what is free anyhow.
        assert_eq!(held(percent, 400 * MIB), freed || trims, "{percent} %");
        assert_eq!(held(percent, policy().memory_floor), trims, "{percent} %, and nothing to free");
    }
    let last = changes(&under(Strategy::Balanced, &with_memory(90.0)));
    let at = |wanted: fn(&Change) -> bool| last.iter().position(wanted);
    assert!(at(|c| matches!(c, Change::TrimAllocator)) > at(|c| matches!(c, Change::FreeMemory { .. })));
}

/// 3,000 MiB are in use, so many of them kept by the allocator.
fn kept(spare: u64) -> Sample {
    let used = 3_000 * MIB;
    Sample { memory_used: Some(used), memory_allocated: Some(used - spare), ..quiet() }
}

#[test]
fn what_the_allocator_keeps_goes_back_where_it_is_much() {
    let trims = |s: &Sample| turned(&under(Strategy::Balanced, s), Knob::Allocator).is_some();
    assert!(!trims(&kept(375 * MIB)), "an eighth");
    assert!(trims(&kept(375 * MIB + 1)));
    let small =
        |spare| Sample { memory_used: Some(64 * MIB), memory_allocated: Some(64 * MIB - spare), ..quiet() };
    assert!(!trims(&small(16 * MIB)) && trims(&small(16 * MIB + 1)), "few bytes are not worth it");
    let absurd = Sample { memory_allocated: Some(u64::MAX), ..kept(0) };
    assert!(!trims(&absurd) && !trims(&Sample { memory_allocated: None, ..kept(0) }));
}

#[test]
fn an_allocator_that_keeps_it_all_the_same_is_asked_ever_more_rarely() {
    let mut state = State::default();
    let mut turns = |spare: u64, n: u64, gives: bool| -> Vec<u64> {
        let s = kept(spare);
        let mut asked = Vec::new();
        for n in 0..n {
            let decision = decide(&s, &state, &policy());
            state = decision.state.clone();
            let trims = |a: &&Action| a.change == Change::TrimAllocator;
            let outcome = |action: &Action| {
                asked.push(n);
                let result = if gives { Ok(()) } else { Err("it stays".to_owned()) };
                Outcome { action: action.clone(), result }
            };
            let outcomes: Vec<Outcome> = decision.actions.iter().filter(trims).map(outcome).collect();
            state.applied(&outcomes);
        }
        asked
    };
    assert_eq!(
        turns(GIB, 251, false),
        [0, 10, 30, 70, 130, 190, 250],
        "in vain: 10, 20, 40 turns between, and 60 from then on"
    );
    assert!(turns(100 * MIB, 200, true).is_empty());
    assert_eq!(turns(GIB, 3, true), [0, 1, 2]);
    assert_eq!(turns(GIB, 15, false), [0, 10], "what went back ended the waiting");
}

#[test]
fn what_the_allocator_keeps_is_taken_before_what_the_tier_holds() {
    let over = |spare| {
        let s = large(85.0);
        Sample { memory_allocated: Some(s.memory_used.unwrap() - spare), ..s }
    };
    assert_eq!(free(&over(GIB), Strategy::Balanced), Some(1_500 * MIB), "little of it");
    assert_eq!(free(&over(1_200 * MIB), Strategy::Balanced), Some(300 * MIB));
    let all = under(Strategy::Balanced, &over(2_000 * MIB));
    assert!(turned(&all, Knob::Allocator).is_some() && turned(&all, Knob::MemoryContent).is_none());
    // Once it was asked in vain, the tier has to give.
    let mut state = State::default();
    state.refuse(&Change::TrimAllocator);
    assert!(changes(&decide(&over(2_000 * MIB), &state, &policy())).contains(&Change::FreeMemory {
        bytes: 1_500 * MIB,
        from: 6_000 * MIB,
        to: 4_500 * MIB
    }));
}

#[test]
fn idle_entries_leave_at_their_age_while_memory_is_in_the_buffer() {
    use Strategy::*;
    for (strategy, percent, age) in
        [(Aggressive, 75.0, 300), (Balanced, 75.0, 600), (Conservative, 65.0, 1200)]
    {
        for (oldest, leave) in [(age - 1, false), (age, false), (age + 1, true)] {
            let mut s = with_memory(percent);
            s.oldest_idle = Some(Duration::from_secs(oldest));
            let change = turned(&under(strategy, &s), Knob::MemoryContent);
            let wanted = leave.then_some(Change::EvictIdle { age: Duration::from_secs(age) });
            assert_eq!(change, wanted, "{strategy}: idle for {oldest} s");
        }
    }
    let mut roomy = with_memory(70.0);
    roomy.oldest_idle = Some(Duration::from_secs(9999));
    assert_eq!(turned(&under(Balanced, &roomy), Knob::MemoryContent), None, "there is room");
    assert_eq!(turned(&under(Balanced, &with_memory(75.0)), Knob::MemoryContent), None, "not known");
}

/// A full tier of half the maximum, with room; the tiers below it answer so many of 1000 requests.
fn wanted(below: u64) -> Sample {
    let mut s = with_memory(30.0);
    s.knobs.memory_size = 256 * MIB;
    s.tiers[0] = Some(TierSample { bytes: 250 * MIB, hits: 300, ..TierSample::default() });
    s.tiers[1] = Some(TierSample::default());
    (s.requests.gets, s.requests.misses) = (1000, 700 - below);
    s
}

#[test]
fn a_dynamic_tier_grows_where_it_helps() {
    let grown = |s: &Sample| turned(&under(Strategy::Balanced, s), Knob::MemorySize);
    let more = Some(Change::ResizeMemoryTier { from: 256 * MIB, to: 320 * MIB });
    assert_eq!(grown(&wanted(50)), more);
    assert_eq!(grown(&wanted(49)), None, "it would help too little");
    let mut alone = wanted(50);
    assert_eq!(grown(&Sample { requests: Requests { misses: 50, ..alone.requests }, ..alone.clone() }), more);
    alone.tiers[1] = None;
    let nothing = |misses| Sample { requests: Requests { misses, ..alone.requests }, ..alone.clone() };
    assert_eq!(
        (grown(&nothing(50)), grown(&nothing(49))),
        (more, None),
        "nobody below: what is found nowhere"
    );
    let mut not_full = wanted(500);
    not_full.tiers[0].as_mut().unwrap().bytes = 230 * MIB;
    assert_eq!(grown(&not_full), None);
    let tight = Sample { memory_used: with_memory(70.1).memory_used, ..wanted(500) };
    assert_eq!(grown(&tight), None, "no room");
    assert_eq!(grown(&Sample { memory_stalled: Some(0.11), ..wanted(500) }), None);
    let fixed = Policy { dynamic: false, ..policy() };
    assert_eq!(turned(&decide(&wanted(500), &State::default(), &fixed), Knob::MemorySize), None);
    let mut s = wanted(500);
    s.knobs.memory_size = 500 * MIB;
    s.tiers[0].as_mut().unwrap().bytes = 500 * MIB;
    assert_eq!(grown(&s), Some(Change::ResizeMemoryTier { from: 500 * MIB, to: 512 * MIB }), "the maximum");
}

#[test]
fn what_a_limit_took_from_the_tier_comes_back_when_there_is_room() {
    let mut state = State::default();
    // Nobody below answers: to grow is not worth a trial.
    let mut s = wanted(0);
    s.knobs.memory_size = 512 * MIB;
    s.tiers[0].as_mut().unwrap().bytes = 512 * MIB;
    s.memory_available = Some(1_100 * MIB);
    assert_eq!(
        turned(&run(&mut s, &mut state, &policy(), 1)[0], Knob::MemorySize).map(|c| c.direction()),
        Some(Direction::Down)
    );
    assert_eq!(s.knobs.memory_size, 64 * MIB, "down to the floor");
    s.tiers[0].as_mut().unwrap().bytes = 64 * MIB;
    run(&mut s, &mut state, &policy(), 3);
    assert_eq!(s.knobs.memory_size, 64 * MIB, "little is available");
    s.memory_available = Some(5_000 * MIB);
    for size in [128, 256, 512, 512] {
        run(&mut s, &mut state, &policy(), 1);
        assert_eq!(s.knobs.memory_size, size * MIB);
        s.tiers[0].as_mut().unwrap().bytes = size * MIB;
    }
    assert!(state.under_trial().next().is_none());
}

#[test]
fn prefetching_follows_the_strategy_and_stops_where_fewer_than_half_are_used() {
    let decided = |strategy, issued, used, memory, cpu| {
        let mut s = Sample { cpu_percent: Some(cpu), ..with_memory(memory) };
        (s.prefetch, s.knobs.prefetch) = (PrefetchSample { issued, used }, 1.25);
        match turned(&under(strategy, &s), Knob::Prefetch) {
            Some(Change::SetPrefetch { to, .. }) => Some(to),
            _ => None,
        }
    };
    use Strategy::*;
    assert_eq!(decided(Aggressive, 100, 50, 30.0, 30.0), Some(2.0));
    assert_eq!(decided(Balanced, 100, 50, 30.0, 30.0), Some(1.5));
    assert_eq!(decided(Conservative, 100, 50, 30.0, 30.0), Some(1.0));
    assert_eq!(decided(Aggressive, 100, 49, 30.0, 30.0), Some(0.0));
    assert_eq!(decided(Aggressive, 31, 0, 30.0, 30.0), Some(2.0), "too few to tell");
    assert_eq!(decided(Aggressive, 100, 90, 81.0, 30.0), Some(1.0), "memory overrides it");
    assert_eq!(decided(Aggressive, 100, 90, 80.0, 70.0), Some(2.0));
    assert_eq!(decided(Aggressive, 100, 90, 30.0, 71.0), Some(1.0), "the processors override it");
}

#[test]
fn stopped_prefetching_is_tried_again_ever_more_rarely() {
    let mut s = with_memory(30.0);
    (s.cpu_percent, s.io_pressure) = (Some(70.0), Some(0.7));
    s.prefetch = PrefetchSample { issued: 100, used: 10 };
    let mut state = State::default();
    let decisions = run(&mut s, &mut state, &policy(), 100);
    let on: Vec<usize> = (0..100)
        .filter(|n| matches!(turned(&decisions[*n], Knob::Prefetch), Some(Change::SetPrefetch { to, .. }) if to > 0.0))
        .collect();
    assert_eq!(on, [10, 31, 72], "stopped at 0, 11, 32, for 10, 20, 40");
}

#[test]
fn memory_gives_way_to_others_while_little_is_available() {
    use Strategy::*;
    // Of 10,000 MiB this process has 4,000; 15 % are to be left, and 25 % once it gives way.
    for (available, freed) in
        [(1501, None), (1500, None), (1499, Some(1001)), (400, Some(2100)), (0, Some(2500))]
    {
        let s = Sample { memory_available: Some(available * MIB), ..large(40.0) };
        assert_eq!(free(&s, Balanced), freed.map(|n: u64| n * MIB), "{available} MiB");
        let decision = under(Balanced, &s);
        assert_eq!(turned(&decision, Knob::Allocator).is_some(), freed.is_some(), "{available} MiB");
        assert_eq!(turned(&decision, Knob::MemorySize).is_some(), freed.is_some(), "a dynamic tier shrinks");
    }
    let both = Sample { memory_available: Some(1000 * MIB), ..large(85.0) };
    assert_eq!(free(&both, Balanced), Some(1_500 * MIB), "whichever is more");
    let small = Sample { memory_available: Some(0), ..with_memory(40.0) };
    assert_eq!(free(&small, Balanced), Some(400 * MIB - policy().memory_floor), "not below the floor");
    // And it does not grow meanwhile.
    let full = Sample { memory_available: Some(1400 * MIB), ..wanted(500) };
    assert!(
        !matches!(turned(&under(Balanced, &full), Knob::MemorySize), Some(Change::ResizeMemoryTier { from, to }) if to > from)
    );
}

#[test]
fn what_was_freed_is_waited_for_before_more_is() {
    let mut state = State::default();
    let freed: Vec<bool> = (0..6)
        .map(|_| {
            // The allocator keeps it, or the writer: it does not show.
            let decision = decide(&large(90.0), &state, &policy());
            state = decision.state.clone();
            changes(&decision).iter().any(|c| matches!(c, Change::FreeMemory { .. }))
        })
        .collect();
    assert_eq!(freed, [true, false, true, false, true, false]);
}

#[test]
fn the_thresholds_of_all_strategies_at_their_borders() {
    use Strategy::*;
    // `aggressive` has its 90 % where `max_usage_percent` is over that.
    for (most, strategy, percent, bytes) in [
        (95.0, Aggressive, 90.0, None),
        (95.0, Aggressive, 90.01, Some(1_001 * MIB)),
        (90.0, Aggressive, 90.0, None),
        (90.0, Aggressive, 90.01, Some(1_001 * MIB)),
        (89.0, Aggressive, 89.01, Some(1_001 * MIB)),
        (95.0, Conservative, 70.0, None),
        (95.0, Conservative, 70.01, Some(1_001 * MIB)),
        (95.0, Balanced, 80.01, Some(1_001 * MIB)),
        (65.0, Conservative, 65.01, Some(1_001 * MIB)),
    ] {
        let p = Policy { memory_max_percent: most, ..policy() };
        let decision = decide(&large(percent), &State { strategy, ..State::default() }, &p);
        let freed = changes(&decision).into_iter().find_map(|c| match c {
            Change::FreeMemory { bytes, .. } => Some(bytes),
            _ => None,
        });
        assert_eq!(freed, bytes, "{strategy} at {percent} % of at most {most} %");
    }
}

/// One turn in which all is done, but that the allocator keeps what it has.
fn in_vain(s: &Sample, state: &mut State) -> Vec<Change> {
    let decision = decide(s, state, &policy());
    *state = decision.state.clone();
    let outcome = |action: &Action| {
        let vain = action.change == Change::TrimAllocator;
        let result = if vain { Err("it stays".to_owned()) } else { Ok(()) };
        Outcome { action: action.clone(), result }
    };
    state.applied(&decision.actions.iter().map(outcome).collect::<Vec<_>>());
    changes(&decision)
}

fn frees(changes: &[Change]) -> Option<u64> {
    changes.iter().find_map(|c| match c {
        Change::FreeMemory { bytes, .. } => Some(*bytes),
        _ => None,
    })
}

#[test]
fn what_the_writer_frees_later_and_the_allocator_keeps_does_not_leave_twice() {
    // Also where the allocator was asked in vain not long ago.
    for refused in [false, true] {
        let mut state = State::default();
        if refused {
            state.refuse(&Change::TrimAllocator);
            state.refuse(&Change::TrimAllocator);
        }
        // Dirty: until it is written, all of it is in use.
        let mut s = large(85.0);
        s.memory_allocated = s.memory_used;
        let first = in_vain(&s, &mut state);
        assert!(frees(&first) == Some(1_500 * MIB) && first.contains(&Change::TrimAllocator), "{first:?}");
        let second = in_vain(&s, &mut state);
        assert_eq!(frees(&second), None, "the writer is at it");
        s.tiers[0].as_mut().unwrap().bytes -= 1_500 * MIB;
        s.memory_allocated = s.memory_used.map(|n| n - 1_500 * MIB);
        let third = in_vain(&s, &mut state);
        assert!(third.contains(&Change::TrimAllocator), "{third:?}");
        assert_eq!(frees(&third), None, "it has left already: {third:?}");
        // Nothing else was freed, and it stays: then the tier has to give.
        let fourth = in_vain(&s, &mut state);
        assert_eq!(frees(&fourth), Some(1_500 * MIB));
    }
}

#[test]
fn a_trim_that_a_limit_asks_for_says_nothing_of_what_the_allocator_keeps() {
    let mut state = State::default();
    // Over `gc_threshold`, with nothing to free, and little that is kept.
    let mut s = with_memory(90.0);
    s.tiers[0] = Some(TierSample { bytes: policy().memory_floor, ..TierSample::default() });
    s.memory_allocated = s.memory_used.map(|n| n - MIB);
    for n in 0..100 {
        let all = in_vain(&s, &mut state);
        assert!(all.contains(&Change::TrimAllocator), "turn {n}: it is asked over the limit");
    }
    let all = in_vain(&kept(GIB), &mut state);
    assert!(all.contains(&Change::TrimAllocator), "what is much is asked for: {all:?}");
    // Nor is a time that runs made longer.
    for _ in 0..9 {
        in_vain(&s, &mut state);
    }
    assert!(in_vain(&kept(GIB), &mut state).contains(&Change::TrimAllocator), "after ten");
}
