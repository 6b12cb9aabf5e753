//! The operations, and how they are drawn.

use proptest::prelude::*;

#[derive(Debug, Clone)]
pub enum Op {
    Put {
        key: u8,
        size: u32,
        ttl: Ttl,
    },
    PutMany {
        key: u8,
        count: u8,
        size: u32,
    },
    /// Other keys, to fill the tiers.
    Fill {
        start: u8,
        count: u8,
        size: u32,
    },
    Get {
        key: u8,
        times: u8,
    },
    GetFill {
        start: u8,
        count: u8,
    },
    GetMemory {
        key: u8,
    },
    GetOrPut {
        key: u8,
        size: u32,
    },
    Contains {
        key: u8,
    },
    TierOf {
        key: u8,
    },
    Remove {
        key: u8,
    },
    RemovePrefix {
        prefix: u8,
    },
    Clear,
    Keys {
        prefix: u8,
    },
    ExpireIn {
        key: u8,
        ms: Option<u32>,
    },
    Touch {
        key: u8,
    },
    PutIfAbsent {
        key: u8,
        size: u32,
    },
    PutIfVersion {
        key: u8,
        size: u32,
        right: bool,
    },
    Demote {
        key: u8,
        tier: u8,
    },
    Promote {
        key: u8,
        tier: u8,
    },
    Advance {
        ms: u32,
    },
    Flush,
    Step,
    Verify,
    Reopen {
        small: bool,
    },
    Crash {
        small: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum Ttl {
    Default,
    Forever,
    Ms(u32),
}

const KEYS: u8 = 14;
const FILL: u8 = 48;
pub const PREFIXES: [&str; 5] = ["", "a/", "a/b/", "c/", "nothing/"];

pub fn key_of(no: u8) -> String {
    match no % KEYS {
        n @ 0..=4 => format!("a/{n}"),
        n @ 5..=8 => format!("a/b/{n}"),
        n => format!("c/{n}/{}", "long".repeat(usize::from(n) * 20)),
    }
}

pub fn fill_key(no: u8) -> String {
    format!("f/{}", no % FILL)
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..100u32, 4 => 500..5_000u32, 3 => 20_000..70_000u32, 2 => 100_000..250_000u32,
                1 => 270_000..900_000u32]
}

fn ttl() -> impl Strategy<Value = Ttl> {
    prop_oneof![5 => Just(Ttl::Default), 1 => Just(Ttl::Forever), 2 => (0..20_000u32).prop_map(Ttl::Ms)]
}

pub fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS;
    prop_oneof![
        12 => (key(), size(), ttl()).prop_map(|(key, size, ttl)| Op::Put { key, size, ttl }),
        2 => (key(), 1..6u8, size()).prop_map(|(key, count, size)| Op::PutMany { key, count, size }),
        4 => (0..FILL, 4..24u8, size()).prop_map(|(start, count, size)| Op::Fill { start, count, size }),
        8 => (key(), 1..5u8).prop_map(|(key, times)| Op::Get { key, times }),
        2 => (0..FILL, 4..24u8).prop_map(|(start, count)| Op::GetFill { start, count }),
        1 => key().prop_map(|key| Op::GetMemory { key }),
        2 => (key(), size()).prop_map(|(key, size)| Op::GetOrPut { key, size }),
        1 => key().prop_map(|key| Op::Contains { key }),
        2 => key().prop_map(|key| Op::TierOf { key }),
        6 => key().prop_map(|key| Op::Remove { key }),
        1 => (0..5u8).prop_map(|prefix| Op::RemovePrefix { prefix }),
        1 => Just(Op::Clear),
        1 => (0..5u8).prop_map(|prefix| Op::Keys { prefix }),
        4 => (key(), proptest::option::weighted(0.8, 0..30_000u32))
            .prop_map(|(key, ms)| Op::ExpireIn { key, ms }),
        1 => key().prop_map(|key| Op::Touch { key }),
        2 => (key(), size()).prop_map(|(key, size)| Op::PutIfAbsent { key, size }),
        2 => (key(), size(), any::<bool>())
            .prop_map(|(key, size, right)| Op::PutIfVersion { key, size, right }),
        3 => (key(), 0..4u8).prop_map(|(key, tier)| Op::Demote { key, tier }),
        3 => (key(), 0..4u8).prop_map(|(key, tier)| Op::Promote { key, tier }),
        4 => prop_oneof![3 => 1..5_000u32, 1 => 50_000..400_000u32].prop_map(|ms| Op::Advance { ms }),
        3 => Just(Op::Flush),
        6 => Just(Op::Step),
        1 => Just(Op::Verify),
        2 => any::<bool>().prop_map(|small| Op::Reopen { small }),
        3 => any::<bool>().prop_map(|small| Op::Crash { small }),
    ]
}
