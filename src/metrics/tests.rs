use super::*;
use crate::optimizer::Strategy;
use crate::stats::{CodecStats, Counts, DirIo, LatencyStats, OptimizerStats, Stats, TierStats, TypeStats};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use thermocline_storage::latency::{Histogram, Latency};

/// Gives each number of a picture another value. What is taken apart here is named field by field, so that one that is new
/// does not compile before it is thought of.
#[derive(Default)]
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, field: &mut u64) {
        self.0 += 1;
        *field = 1_000_000 + self.0;
    }

    fn latency(&mut self, field: &mut Latency) {
        let mut sum = 0;
        self.next(&mut sum);
        let histogram = Histogram::default();
        histogram.record(sum);
        *field = histogram.snapshot();
    }

    fn counts(&mut self, counts: &mut Counts) {
        let Counts {
            gets,
            misses,
            puts,
            put_bytes,
            removes,
            expired,
            evicted,
            damaged,
            unreachable,
            displaced,
            write_failures,
            stalls,
            busy,
            made,
            containers_dropped,
            moved_bytes,
            prefetched,
            prefetch_used,
            prefetch_wasted,
            idle,
            metrics_sent,
            metrics_failed,
            metrics_dropped,
        } = counts;
        let all = [gets, misses, puts, put_bytes, removes, expired, evicted, damaged, unreachable, displaced];
        all.into_iter().for_each(|n| self.next(n));
        let all = [write_failures, stalls, busy, made, containers_dropped, moved_bytes];
        all.into_iter().for_each(|n| self.next(n));
        [prefetched, prefetch_used, prefetch_wasted, idle].into_iter().for_each(|n| self.next(n));
        [metrics_sent, metrics_failed, metrics_dropped].into_iter().for_each(|n| self.next(n));
    }

    fn io(&mut self, io: &mut DirIo) {
        let DirIo {
            path,
            reads,
            read_bytes,
            writes,
            write_bytes,
            syncs,
            errors,
            in_flight,
            read_latency,
            write_latency,
            sync_latency,
            // What the optimizer alone goes by: estimates, by the time that a read took.
            disk_reads: _,
            alone: _,
        } = io;
        *path = PathBuf::from(format!("/directory/{}", self.0));
        let all = [reads, read_bytes, writes, write_bytes, syncs, errors, in_flight];
        all.into_iter().for_each(|n| self.next(n));
        [read_latency, write_latency, sync_latency].into_iter().for_each(|l| self.latency(l));
    }

    fn tier(&mut self, tier: &mut TierStats) {
        let TierStats {
            items,
            bytes,
            limit,
            containers,
            hits,
            written,
            promoted,
            demoted,
            evicted,
            out_of_service,
            io,
        } = tier;
        [items, bytes, limit.insert(0), containers, hits].into_iter().for_each(|n| self.next(n));
        [written, promoted, demoted, evicted].into_iter().for_each(|n| self.next(n));
        // The table has how many there are: see `directories_out_of_service_are_counted`.
        *out_of_service = Vec::new();
        *io = vec![DirIo::default(), DirIo::default()];
        io.iter_mut().for_each(|io| self.io(io));
    }

    fn codec(&mut self, codec: &mut CodecStats) {
        let CodecStats { kept, original_bytes, stored_bytes, skipped, skipped_bytes, nanos } = codec;
        let all = [kept, original_bytes, stored_bytes, skipped, skipped_bytes, nanos];
        all.into_iter().for_each(|n| self.next(n));
    }

    fn content(&mut self, t: &mut TypeStats) {
        let TypeStats { items, original_bytes, stored_bytes, zlib, lz4, deflate } = t;
        [items, original_bytes, stored_bytes].into_iter().for_each(|n| self.next(n));
        [zlib, lz4, deflate].into_iter().for_each(|c| self.codec(c));
    }

    fn latencies(&mut self, latencies: &mut LatencyStats) {
        let LatencyStats { get, miss, put, remove, flush, journal_sync, data_sync } = latencies;
        get.iter_mut().for_each(|l| self.latency(l));
        [miss, put, remove, flush, journal_sync].into_iter().for_each(|l| self.latency(l));
        // Memory has no disk to sync.
        data_sync.iter_mut().skip(1).for_each(|l| self.latency(l));
    }

    fn stats(&mut self) -> Stats {
        let mut stats = Stats::default();
        let Stats {
            counts,
            tiers,
            types,
            items,
            dirty_bytes,
            inflight_bytes,
            catalog_bytes,
            journal_bytes,
            checkpoints,
            catalog_disk_bytes,
            catalog_io,
            latency,
            optimizer,
        } = &mut stats;
        self.counts(counts);
        for tier in tiers {
            self.tier(tier.insert(TierStats::default()));
        }
        types.iter_mut().for_each(|t| self.content(t));
        [items, dirty_bytes, inflight_bytes, catalog_bytes].into_iter().for_each(|n| self.next(n));
        [journal_bytes, checkpoints, catalog_disk_bytes].into_iter().for_each(|n| self.next(n));
        self.io(catalog_io.insert(DirIo::default()));
        self.latencies(latency);
        // The strategy is a word, and the pressure a share: see `what_the_optimizer_does_is_shown`.
        let OptimizerStats { strategy: _, pressure: _, turns, actions, taken_back } = optimizer;
        [turns, actions, taken_back].into_iter().for_each(|n| self.next(n));
        // Memory has no directories: what it was given above is not shown, and not counted.
        let memory = stats.tiers[0].as_mut().map(|t| std::mem::take(&mut t.io)).unwrap_or_default();
        assert_eq!(memory.len(), 2);
        stats
    }
}

#[test]
fn every_number_of_the_stats_is_in_the_table_once() {
    let mut numbers = Numbers::default();
    let stats = numbers.stats();
    let mut seen = BTreeMap::<u64, Vec<&str>>::new();
    for sample in samples(&stats).filter(|s| !["build_info", "optimizer_strategy"].contains(&s.metric.name)) {
        let number = match sample.value {
            Value::Number(n) | Value::Nanos(n) | Value::Millionths(n) => n,
            Value::Latency(l) => l.sum_ns,
        };
        if number != 0 {
            seen.entry(number).or_default().push(sample.metric.name);
        }
    }
    let twice: Vec<_> = seen.iter().filter(|(_, names)| names.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // Those of the directories of memory: seven numbers and three latencies each.
    let of_memory = 20;
    assert_eq!(seen.len() as u64, numbers.0 - of_memory);
}

#[test]
fn directories_out_of_service_are_counted() {
    let mut stats = Stats::default();
    let failed = || (PathBuf::from("/d"), "it failed".to_owned());
    stats.tiers[1] = Some(TierStats { out_of_service: vec![failed(), failed()], ..TierStats::default() });
    let text = stats.to_prometheus();
    assert!(text.contains("\nthermocline_tier_directories_out_of_service{tier=\"ssd\"} 2\n"), "{text}");
    assert!(!text.contains("it failed") && !text.contains("tier=\"hdd\""), "{text}");
}

#[test]
fn what_the_optimizer_does_is_shown() {
    let mut stats = Stats::default();
    let text = stats.to_prometheus();
    assert!(text.contains("\nthermocline_optimizer_strategy 1\n"), "it begins balanced: {text}");
    assert!(!text.contains("\nthermocline_optimizer_pressure "), "nothing is known of it: {text}");
    for (strategy, number) in
        [(Strategy::Conservative, 0), (Strategy::Balanced, 1), (Strategy::Aggressive, 2)]
    {
        stats.optimizer.strategy = strategy;
        stats.optimizer.pressure = Some(0.1234564);
        let text = stats.to_prometheus();
        assert!(text.contains(&format!("\nthermocline_optimizer_strategy {number}\n")), "{text}");
        assert!(text.contains("\nthermocline_optimizer_pressure 0.123456\n"), "{text}");
        let fields: Vec<_> = samples(&stats).flat_map(|s| s.fields()).collect();
        assert!(fields.contains(&("optimizer_pressure".to_owned(), "0.123456".to_owned())), "{fields:?}");
    }
}

#[test]
fn the_table_keeps_to_the_rules_for_names() {
    let mut names = HashSet::new();
    for m in metrics() {
        assert!(names.insert(m.name), "{} is there twice", m.name);
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(plain(m.name) && m.labels.iter().all(|l| plain(l)), "{}", m.name);
        assert_eq!(m.name.ends_with("_total"), m.kind == Kind::Counter, "{}", m.name);
        let base = m.name.trim_end_matches("_total");
        assert_eq!(base.ends_with("_bytes"), m.unit == Unit::Bytes, "{}", m.name);
        assert_eq!(base.ends_with("_seconds"), m.unit == Unit::Seconds, "{}", m.name);
        assert!(m.help.ends_with('.') && m.help.len() < 100 && !m.help.contains('\n'), "{}", m.name);
    }
    // A histogram makes names of its own, which no other metric may have.
    for m in metrics().iter().filter(|m| m.kind == Kind::Histogram) {
        for end in ["_bucket", "_sum", "_count"] {
            assert!(!names.contains(format!("{}{end}", m.name).as_str()), "{}{end}", m.name);
        }
    }
}

#[test]
fn every_sample_has_the_labels_that_its_metric_names_and_is_there_once() {
    let stats = Numbers::default().stats();
    let mut seen = BTreeSet::new();
    for sample in samples(&stats) {
        let labels: Vec<&str> = sample.labels.iter().map(|(label, _)| *label).collect();
        assert_eq!(labels, sample.metric.labels, "{}", sample.metric.name);
        let histogram = matches!(sample.value, Value::Latency(_));
        assert_eq!(histogram, sample.metric.kind == Kind::Histogram, "{}", sample.metric.name);
        for (field, _) in sample.fields() {
            assert!(seen.insert(field.clone()), "{field} is there twice");
        }
    }
}

#[test]
fn labels_are_escaped() {
    let mut stats = Stats::default();
    let path = PathBuf::from("/a \"b\"\\c\nd");
    let io = vec![DirIo { path, reads: 7, ..DirIo::default() }];
    stats.tiers[1] = Some(TierStats { io, ..TierStats::default() });
    let line = "\nthermocline_directory_reads_total{tier=\"ssd\",directory=\"/a \\\"b\\\"\\\\c\\nd\"} 7\n";
    let text = stats.to_prometheus();
    assert!(text.contains(line), "{text}");
}

#[test]
fn times_are_exact_in_seconds() {
    for (ns, text) in [
        (0, "0"),
        (1, "0.000000001"),
        (64, "0.000000064"),
        (1_500_000_000, "1.5"),
        (10_000_000_000, "10"),
        (u64::MAX, "18446744073.709551615"),
    ] {
        assert_eq!(table::seconds(ns), text);
    }
}

#[test]
fn what_memory_answers_is_timed_once_in_a_thousand_and_what_it_does_not_once_in_sixteen() {
    let cache = crate::Cache::builder().memory(16 << 20).open().unwrap();
    // A thread of its own: other tests of this process raise other stores' counters alone, but let nothing depend on it.
    cache.put("k", "v").unwrap();
    for _ in 0..10 * 1024 {
        cache.get("k").unwrap();
    }
    for _ in 0..10 * 16 {
        cache.get("missing").unwrap();
        cache.put("other", "v").unwrap();
        assert!(cache.remove("other").unwrap());
    }
    let latency = cache.stats().latency;
    assert_eq!(latency.get[0].count, 10);
    assert_eq!((latency.miss.count, latency.remove.count), (10, 10));
    // The first put of all is one of them, as is the 161st.
    assert_eq!(latency.put.count, 11);
    assert!(latency.get[0].p50_ns() > 0 && latency.get[0].p50_ns() < 1_000_000, "{latency:?}");
    assert_eq!((latency.flush.count, latency.get[1].count, latency.journal_sync.count), (0, 0, 0));
}
