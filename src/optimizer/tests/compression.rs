//! Effectiveness, codec and level of content types.

use super::*;

const ZLIB6: Method = Method { algorithm: Algorithm::Zlib, level: 6 };
const LZ4: Method = Method { algorithm: Algorithm::Lz4, level: 1 };

fn zlib(level: u64) -> Method {
    Method { algorithm: Algorithm::Zlib, level }
}

/// A sample in which a type is stored at so many of 1000.
fn stored(content: usize, per_mille: u64, cpu: f64) -> Sample {
    let mut s = Sample { cpu_percent: Some(cpu), ..quiet() };
    s.types[content] =
        TypeSample { original_bytes: 1000 * MIB, stored_bytes: per_mille * MIB, seconds: None };
    s
}

#[test]
fn a_poor_type_is_stopped_below_half_of_what_is_hoped() {
    // zlib must save a fifth, lz4 two fifths.
    for (content, per_mille, poor) in
        [(0, 900, false), (0, 901, true), (1, 900, false), (2, 800, false), (2, 801, true), (3, 801, true)]
    {
        // No room to compress harder.
        let decision = under(Strategy::Balanced, &stored(content, per_mille, 55.0));
        let change = turned(&decision, Knob::Compression(content));
        let stops = matches!(change, Some(Change::LeaveUncompressed { .. }));
        assert_eq!(stops, poor, "{content} at {per_mille}: {change:?}");
        if let Some(Change::LeaveUncompressed { retry_after, .. }) = change {
            assert_eq!(retry_after, Duration::from_secs(600), "ten samples");
        }
    }
    let mut few = stored(0, 990, 55.0);
    few.types[0] = TypeSample { original_bytes: MIB - 1, stored_bytes: MIB - 1, seconds: None };
    assert_eq!(turned(&under(Strategy::Balanced, &few), Knob::Compression(0)), None, "too little to tell");
    let everything = Policy { zlib_threshold: 1.0, ..policy() };
    let decision = decide(&stored(0, 1000, 55.0), &State::default(), &everything);
    assert_eq!(turned(&decision, Knob::Compression(0)), None, "nothing is hoped for");
}

#[test]
fn with_room_a_poor_type_is_compressed_harder_first() {
    let harder = |sample: &Sample, strategy| turned(&under(strategy, sample), Knob::Compression(2));
    let set = |to| Some(Change::SetCompression { content: ContentType::Binary, from: LZ4, to });
    assert_eq!(harder(&stored(2, 900, 40.0), Strategy::Balanced), set(ZLIB6));
    assert_eq!(harder(&stored(2, 900, 40.0), Strategy::Conservative), set(zlib(3)));
    assert!(
        matches!(harder(&stored(2, 970, 40.0), Strategy::Balanced), Some(Change::LeaveUncompressed { .. })),
        "hopeless: less than a tenth"
    );
    let unknown = Sample { cpu_percent: None, ..stored(2, 900, 0.0) };
    assert!(matches!(harder(&unknown, Strategy::Balanced), Some(Change::LeaveUncompressed { .. })));
}

#[test]
fn what_harder_does_not_help_is_stopped_and_retried_ever_more_rarely() {
    let mut s = stored(2, 950, 40.0);
    let mut state = State::default();
    let decisions = run(&mut s, &mut state, &policy(), 90);
    let seen: Vec<(usize, &str)> = decisions
        .iter()
        .enumerate()
        .filter_map(|(n, d)| match turned(d, Knob::Compression(2))? {
            Change::SetCompression { .. } => Some((n, "harder")),
            Change::LeaveUncompressed { .. } => Some((n, "stopped")),
            Change::RetryCompression { to, .. } if to == LZ4 => Some((n, "again")),
            other => panic!("{other:?}"),
        })
        .collect();
    let wanted = [
        (0, "harder"),
        (1, "stopped"),
        (11, "again"),
        (12, "stopped"),
        (32, "again"),
        (33, "stopped"),
        (73, "again"),
        (74, "stopped"),
    ];
    assert_eq!(seen, wanted);
    s.types[2].stored_bytes = 500 * MIB;
    s.knobs.methods[2] = LZ4;
    state.types[2].mode = crate::optimizer::state::Mode::Configured;
    run(&mut s, &mut state, &policy(), 1);
    assert_eq!(state.types[2], Default::default(), "it is good again, and all is forgotten");
}

#[test]
fn busy_processors_prefer_lz4() {
    for (cpu, to) in [(60.0, None), (60.01, Some(LZ4)), (100.0, Some(LZ4))] {
        let s = stored(0, 500, cpu);
        let change = turned(&under(Strategy::Balanced, &s), Knob::Compression(0));
        let wanted = to.map(|to| Change::SetCompression { content: ContentType::Text, from: ZLIB6, to });
        assert_eq!(change, wanted, "{cpu} %");
    }
    // It comes back ten points below.
    let mut s = stored(0, 500, 61.0);
    let mut state = State::default();
    run(&mut s, &mut state, &policy(), 1);
    for (cpu, algorithm) in [(59.0, Algorithm::Lz4), (50.1, Algorithm::Lz4), (50.0, Algorithm::Zlib)] {
        s.cpu_percent = Some(cpu);
        run(&mut s, &mut state, &policy(), 1);
        assert_eq!(s.knobs.methods[0].algorithm, algorithm, "{cpu} %");
    }
}

#[test]
fn a_codec_that_makes_the_processors_busy_does_not_flap() {
    // zlib costs 30 points: with it they are at 70 %, with lz4 at 40.
    let mut s = stored(0, 300, 70.0);
    let mut state = State::default();
    let mut changes = Vec::new();
    for n in 0..1000 {
        let decisions = run(&mut s, &mut state, &policy(), 1);
        if turned(&decisions[0], Knob::Compression(0)).is_some() {
            changes.push(n);
        }
        s.cpu_percent = Some(if s.knobs.methods[0].algorithm == Algorithm::Zlib { 70.0 } else { 40.0 });
    }
    let late = changes.iter().filter(|n| **n >= 500).count();
    assert!(changes.len() <= 20 && late <= 4, "{changes:?}");
}

#[test]
fn the_level_is_the_configured_one_under_the_ceiling() {
    let level = |strategy, cpu, policy: &Policy| {
        let s = stored(0, 500, cpu);
        let state = State { strategy, ..State::default() };
        match turned(&decide(&s, &state, policy), Knob::Compression(0)) {
            Some(Change::SetCompression { to, .. }) => to.level,
            None => 6,
            other => panic!("{other:?}"),
        }
    };
    use Strategy::*;
    assert_eq!(level(Conservative, 30.0, &policy()), 3);
    assert_eq!(level(Balanced, 30.0, &policy()), 6);
    assert_eq!(level(Aggressive, 39.9, &policy()), 9);
    assert_eq!(level(Aggressive, 40.0, &policy()), 6, "level 9 must not feed the pressure");
    let low = Policy { zlib_level: 2, ..policy() };
    assert_eq!((level(Balanced, 30.0, &low), level(Aggressive, 30.0, &low)), (2, 9));
}

#[test]
fn what_is_configured_to_be_stored_as_it_is_stays_so() {
    let p = Policy { algorithms: [Algorithm::None; 4], ..policy() };
    let mut s = stored(0, 1000, 10.0);
    s.knobs.methods = [Method::NONE; 4];
    let mut state = State::default();
    assert!(run(&mut s, &mut state, &p, 50).iter().all(|d| turned(d, Knob::Compression(0)).is_none()));
}

#[test]
fn lz4_in_zlibs_place_condemns_no_type() {
    // zlib brings JSON to 0.57, lz4 to 0.85: good for the one, poor for the other.
    let achieved = |s: &mut Sample| {
        let by = match s.knobs.methods[1].algorithm {
            Algorithm::Zlib => 570,
            Algorithm::Lz4 => 850,
            _ => 1000,
        };
        s.types[1].stored_bytes = by * MIB;
    };
    let mut s = stored(1, 570, 70.0);
    let mut state = State::default();
    let mut seen = Vec::new();
    for n in 0..40 {
        s.cpu_percent = Some(if n < 20 { 70.0 } else { 40.0 });
        run(&mut s, &mut state, &policy(), 1);
        seen.push(s.knobs.methods[1].algorithm);
        achieved(&mut s);
    }
    let lz4 = |n: &Algorithm| *n == Algorithm::Lz4;
    assert!(seen[..20].iter().all(lz4), "while the processors are busy: {seen:?}");
    assert!(seen[20..].iter().all(|a| *a == Algorithm::Zlib), "and zlib at once when they are not: {seen:?}");
    // The same of a type that zlib took from lz4 because that did little.
    let mut s = stored(2, 900, 40.0);
    let mut state = State::default();
    run(&mut s, &mut state, &policy(), 1);
    assert_eq!(s.knobs.methods[2].algorithm, Algorithm::Zlib, "harder");
    s.types[2].stored_bytes = 700 * MIB;
    run(&mut s, &mut state, &policy(), 3);
    (s.cpu_percent, s.types[2].stored_bytes) = (Some(70.0), 900 * MIB);
    run(&mut s, &mut state, &policy(), 5);
    assert_eq!(s.knobs.methods[2].algorithm, Algorithm::Lz4);
    s.cpu_percent = Some(40.0);
    run(&mut s, &mut state, &policy(), 1);
    assert_eq!(s.knobs.methods[2].algorithm, Algorithm::Zlib);
}
