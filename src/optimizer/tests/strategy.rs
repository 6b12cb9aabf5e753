//! Pressure and strategy.

use super::*;

fn sample(memory: Option<f64>, cpu: Option<f64>, io: Option<f64>) -> Sample {
    let mut s = quiet();
    (s.memory_limit, s.memory_used) = (Some(1000), memory.map(|m| (m * 1000.0).round() as u64));
    (s.cpu_percent, s.io_pressure) = (cpu.map(|c| c * 100.0), io);
    s
}

/// The strategy after so many samples of one pressure.
fn settles(from: Strategy, pressure: f64, samples: usize) -> Strategy {
    let mut state = State { strategy: from, ..State::default() };
    let s = sample(None, None, Some(pressure));
    run(&mut s.clone(), &mut state, &policy(), samples).last().unwrap().strategy
}

#[test]
fn the_parts_have_their_weights_and_what_is_missing_none() {
    for (memory, cpu, io, pressure) in [
        (Some(1.0), Some(0.0), Some(0.0), Some(0.4)),
        (Some(0.0), Some(1.0), Some(0.0), Some(0.3)),
        (Some(0.0), Some(0.0), Some(1.0), Some(0.3)),
        (Some(0.8), Some(0.8), Some(0.8), Some(0.8)),
        (Some(1.0), None, Some(0.0), Some(4.0 / 7.0)),
        (None, Some(0.9), Some(0.3), Some(0.6)),
        (None, None, Some(0.9), Some(0.9)),
        (None, None, None, None),
        (Some(2.0), Some(1.0), Some(1.0), Some(1.0)),
        (Some(0.5), Some(f64::NAN), Some(-1.0), Some(0.5)),
    ] {
        let decision = under(Strategy::Balanced, &sample(memory, cpu, io));
        match (decision.pressure, pressure) {
            (Some(is), Some(wanted)) => {
                assert!((is - wanted).abs() < 1e-12, "{memory:?} {cpu:?} {io:?}: {is}")
            }
            (is, wanted) => assert_eq!(is, wanted),
        }
    }
}

#[test]
fn the_borders() {
    use Strategy::*;
    for (from, pressure, to) in [
        (Balanced, 0.8, Balanced),
        (Balanced, 0.801, Aggressive),
        (Conservative, 0.6, Conservative),
        (Conservative, 0.601, Balanced),
        (Conservative, 0.9, Aggressive),
        // What is near below a border does not lead down.
        (Aggressive, 0.8, Aggressive),
        (Aggressive, 0.751, Aggressive),
        (Aggressive, 0.75, Balanced),
        (Balanced, 0.6, Balanced),
        (Balanced, 0.551, Balanced),
        (Balanced, 0.55, Conservative),
        (Aggressive, 0.1, Conservative),
    ] {
        assert_eq!(settles(from, pressure, 10), to, "from {from} at {pressure}");
    }
    // Sums of weighted parts are not exact: all at the border are at the border.
    let mut at = sample(Some(0.8), Some(0.8), Some(0.8));
    let mut state = State::default();
    assert_eq!(run(&mut at, &mut state, &policy(), 10).last().unwrap().strategy, Balanced);
    let mut at = sample(Some(0.6), Some(0.6), Some(0.6));
    let mut state = State { strategy: Conservative, ..State::default() };
    assert_eq!(run(&mut at, &mut state, &policy(), 10).last().unwrap().strategy, Conservative);
}

#[test]
fn it_takes_two_samples_to_rise_and_three_to_fall() {
    use Strategy::*;
    assert_eq!((settles(Balanced, 0.9, 1), settles(Balanced, 0.9, 2)), (Balanced, Aggressive));
    assert_eq!((settles(Balanced, 0.1, 2), settles(Balanced, 0.1, 3)), (Balanced, Conservative));
    let mut state = State::default();
    for pressure in [0.9, 0.7, 0.9, 0.7] {
        let decision = decide(&sample(None, None, Some(pressure)), &state, &policy());
        state = decision.state;
        assert_eq!(decision.strategy, Balanced, "moments apart");
    }
    let unknown = decide(&sample(None, None, None), &state, &policy());
    assert_eq!((unknown.strategy, unknown.pressure), (Balanced, None));
}

#[test]
fn the_change_is_an_action_with_its_reason() {
    let mut state = State::default();
    let mut s = sample(None, None, Some(0.9));
    let decision = run(&mut s, &mut state, &policy(), 2).pop().unwrap();
    let action = &decision.actions[0];
    let change = Change::SetStrategy { from: Strategy::Balanced, to: Strategy::Aggressive };
    assert_eq!((&action.change, action.goal), (&change, Goal::Pressure));
    assert!(action.because.contains("0.900"), "{}", action.because);
}

#[test]
fn the_table_is_ceilings() {
    let p = policy();
    let of = |s| {
        let c = p.ceilings(s);
        (c.memory_percent, c.compression_level, c.prefetch, c.eviction_age.as_secs())
    };
    assert_eq!(of(Strategy::Aggressive), (80.0, 9, 2.0, 300), "0.9 of memory is over max_usage_percent");
    assert_eq!(of(Strategy::Balanced), (80.0, 6, 1.5, 600));
    assert_eq!(of(Strategy::Conservative), (70.0, 3, 1.0, 1200));
    let generous = Policy { memory_max_percent: 95.0, ..policy() };
    assert_eq!(generous.ceilings(Strategy::Aggressive).memory_percent, 90.0);
}
