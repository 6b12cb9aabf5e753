//! Every rule at its borders; properties of all of them together.

mod compression;
mod configured;
mod disks;
mod memory;
mod properties;
mod strategy;
mod taking_back;

use super::state::State;
use super::*;
use crate::config::Algorithm;
use std::time::Duration;
use thermocline_storage::{ContentType, Tier};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A minute in which nothing asks for anything: 50 % of 10 GiB of memory and of the processors in use.
fn quiet() -> Sample {
    let mut s = Sample { elapsed: Duration::from_secs(60), ..Sample::default() };
    (s.memory_limit, s.memory_used) = (Some(10_000 * MIB), Some(5_000 * MIB));
    (s.cpu_percent, s.io_pressure) = (Some(50.0), Some(0.5));
    s.tiers[0] = Some(TierSample { bytes: 400 * MIB, limit: Some(512 * MIB), ..TierSample::default() });
    s
}

/// The same with so many percent of the memory in use.
fn with_memory(percent: f64) -> Sample {
    let mut s = quiet();
    s.memory_used = Some((10_000.0 * MIB as f64 * percent / 100.0).round() as u64);
    s
}

fn policy() -> Policy {
    Policy::default()
}

/// What is decided in the state of a strategy.
fn under(strategy: Strategy, sample: &Sample) -> Decision {
    decide(sample, &State { strategy, ..State::default() }, &policy())
}

fn changes(decision: &Decision) -> Vec<Change> {
    decision.actions.iter().map(|a| a.change.clone()).collect()
}

/// What is done with a knob.
fn turned(decision: &Decision, knob: Knob) -> Option<Change> {
    let mut of = decision.actions.iter().filter(|a| a.change.knob() == knob);
    let found = of.next().map(|a| a.change.clone());
    assert!(of.next().is_none(), "{knob:?} is turned twice: {:?}", decision.actions);
    found
}

/// Does to a sample what an engine would: the knobs are turned, memory is freed.
fn obey(sample: &mut Sample, decision: &Decision) {
    for change in changes(decision) {
        turn(sample, &change);
    }
}

fn turn(sample: &mut Sample, change: &Change) {
    let k = &mut sample.knobs;
    let at = |content: &ContentType| rules::CONTENT.iter().position(|c| c == content).unwrap();
    match change {
        Change::FreeMemory { bytes, .. } => {
            sample.memory_used = sample.memory_used.map(|n| n.saturating_sub(*bytes));
            if let Some(t) = &mut sample.tiers[0] {
                t.bytes = t.bytes.saturating_sub(*bytes);
            }
        }
        Change::EvictIdle { age } => sample.oldest_idle = sample.oldest_idle.map(|o| o.min(*age)),
        Change::ResizeMemoryTier { to, .. } => k.memory_size = *to,
        Change::SetReclaimRate { tier, to, .. } => k.reclaim_rate[*tier as usize] = *to,
        Change::SetSledCache { to, .. } => k.sled_cache = *to,
        Change::SetPackSize { to, .. } => k.pack_size = *to,
        Change::SetReadAhead { tier, to, .. } => k.read_ahead[*tier as usize] = *to,
        Change::SetReadSize { to, .. } => k.read_size = *to,
        Change::SetConcurrency { directory, to, .. } => {
            sample
                .directories
                .iter_mut()
                .filter(|d| directory.as_ref() == Some(&d.path))
                .for_each(|d| d.concurrency = *to);
        }
        Change::SetWriteBuffer { to, .. } => k.write_buffer = *to,
        Change::SetBackgroundRate { to, .. } => k.background_rate = *to,
        Change::SetCompression { content, to, .. } | Change::RetryCompression { content, to } => {
            k.methods[at(content)] = *to;
        }
        Change::LeaveUncompressed { content, .. } => k.methods[at(content)] = Method::NONE,
        Change::SetPrefetch { to, .. } => k.prefetch = *to,
        _ => {}
    }
}

/// Decides over and over, each time with what the last decision did; gives all decisions.
fn run(sample: &mut Sample, state: &mut State, policy: &Policy, times: usize) -> Vec<Decision> {
    let turn = |_| {
        let decision = decide(sample, state, policy);
        *state = decision.state.clone();
        obey(sample, &decision);
        decision
    };
    (0..times).map(turn).collect()
}
