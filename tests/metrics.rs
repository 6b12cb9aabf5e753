//! One source, three views: `stats()`, the flat list and Prometheus's text agree, value by value, on a store that has
//! worked; and what they say is what happened.

#![cfg(test)]

use std::collections::BTreeMap;
use thermocline::metrics::{self, Kind, Value};
use thermocline::{Cache, ContentType, Latency, PutOptions, Stats, Tier};

type Failure = Box<dyn std::error::Error>;
type Done = Result<(), Failure>;

/// A sample as the text has it: its name with sorted labels, and its value.
type Parsed = BTreeMap<(String, Labels), f64>;
/// Labels and what they are, sorted.
type Labels = Vec<(String, String)>;

/// A family: what `TYPE` says of it, and its samples.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: bool,
}

/// Reads the exposition format 0.0.4, and fails on anything that is not in it.
fn parse(text: &str) -> Result<(BTreeMap<String, Family>, Parsed), Failure> {
    let (mut families, mut samples) = (BTreeMap::<String, Family>::new(), Parsed::new());
    let mut current = String::new();
    assert!(text.ends_with('\n'), "the last line ends too");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or(line)?;
            let family = families.entry(name.to_owned()).or_default();
            assert!(!family.help && family.kind.is_empty() && !help.is_empty(), "{line}");
            family.help = true;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or(line)?;
            let family = families.get_mut(name).ok_or(line)?;
            assert!(family.kind.is_empty() && ["counter", "gauge", "histogram"].contains(&kind), "{line}");
            family.kind = kind.to_owned();
            current = name.to_owned();
        } else {
            let (name, labels, value) = sample(line)?;
            let ends: &[&str] = match families.get(&current).ok_or(line)?.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(ends.iter().any(|end| name == format!("{current}{end}")), "{line}: not of {current}");
            assert!(samples.insert((name, labels), value).is_none(), "{line}: it is there twice");
        }
    }
    Ok((families, samples))
}

/// One line: name, labels, value.
fn sample(line: &str) -> Result<(String, Labels, f64), Failure> {
    let end = line.find(['{', ' ']).ok_or(line)?;
    let (name, mut rest) = line.split_at(end);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
    assert!(name.bytes().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or(line)?;
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().ok_or(line)? {
                    (at, '"') => break at + 1,
                    (_, '\\') => match chars.next().ok_or(line)?.1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        c => return Err(format!("\\{c}: {line}").into()),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &after[end..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').ok_or(line)?;
    }
    labels.sort();
    Ok((name.to_owned(), labels, rest.strip_prefix(' ').ok_or(line)?.parse()?))
}

/// A store of all tiers after every kind of work.
fn worked(dir: &std::path::Path) -> Result<Cache, Failure> {
    let builder = Cache::builder().memory(1 << 20).ssd(dir.join("a \"quoted\\ ssd"), 64 << 20);
    let cache = builder.hdd(dir.join("hdd"), 64 << 20).cold(dir.join("cold")).open()?;
    let text = "all work and no play ".repeat(200);
    for n in 0..400 {
        let kind = ContentType::STORED[n % 4];
        cache.put_with(format!("k{n:03}"), format!("{n} {text}"), PutOptions::new().content_type(kind))?;
    }
    cache.flush()?;
    for n in 0..40 {
        cache.demote(format!("k{n:03}"), if n % 2 == 0 { Tier::Hdd } else { Tier::Cold })?;
    }
    for n in 0..400 {
        assert!(cache.get(format!("k{n:03}"))?.is_some());
        cache.get(format!("missing{n}"))?;
    }
    for n in 40..60 {
        assert!(cache.remove(format!("k{n:03}"))?);
    }
    cache.flush()?;
    Ok(cache)
}

/// What Prometheus is to have for a latency.
fn of_latency(samples: &Parsed, name: &str, labels: &[(String, String)], latency: &Latency) {
    let get = |end: &str, le: Option<&str>| {
        let mut labels = labels.to_vec();
        labels.extend(le.map(|le| ("le".to_owned(), le.to_owned())));
        labels.sort();
        samples.get(&(format!("{name}{end}"), labels)).copied()
    };
    let count = latency.count as f64;
    assert_eq!(get("_count", None), Some(count), "{name}");
    assert_eq!(get("_bucket", Some("+Inf")), Some(count), "{name}");
    assert_eq!(get("_sum", None), Some(latency.sum_ns as f64 / 1e9), "{name}");
    let buckets = samples
        .iter()
        .filter(|((n, l), _)| *n == format!("{name}_bucket") && labels.iter().all(|label| l.contains(label)));
    let mut buckets: Vec<(f64, f64)> = buckets
        .map(|((_, l), value)| {
            (l.iter().find(|(label, _)| label == "le").unwrap().1.parse().unwrap(), *value)
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.len() > 20 && buckets.is_sorted_by(|a, b| a.1 <= b.1), "{name}: {buckets:?}");
    for (le, value) in buckets.iter().filter(|(le, _)| le.is_finite()) {
        assert_eq!(*value, latency.at_most((le * 1e9).round() as u64) as f64, "{name} {le}");
    }
}

#[test]
fn the_stats_the_flat_list_and_prometheus_agree() -> Done {
    let dir = tempfile::tempdir()?;
    let cache = worked(dir.path())?;
    let stats = cache.stats();
    let (families, parsed) = parse(&stats.to_prometheus())?;
    let mut left = parsed.clone();
    let mut fields = 0;
    for sample in metrics::samples(&stats) {
        let name = format!("thermocline_{}", sample.metric.name);
        assert_eq!(families.get(&name).map(|f| f.kind.as_str()), Some(sample.metric.kind.name()), "{name}");
        let mut labels: Vec<_> = sample.labels.iter().map(|(l, v)| ((*l).to_owned(), v.clone())).collect();
        labels.sort();
        let flat: BTreeMap<String, String> = sample.fields().into_iter().collect();
        fields += flat.len();
        match sample.value {
            Value::Latency(latency) => {
                of_latency(&parsed, &name, &labels, latency);
                left.retain(|(n, l), _| {
                    !(n.starts_with(&format!("{name}_")) && labels.iter().all(|label| l.contains(label)))
                });
                // The first of the list is the count, then comes `_max`.
                let first = sample.fields();
                assert_eq!(first[0].1, latency.count.to_string(), "{name}");
                let seconds = |n: usize| (first[n].1.parse::<f64>().unwrap() * 1e9).round() as u64;
                let wanted =
                    [latency.sum_ns, latency.max_ns, latency.p50_ns(), latency.p90_ns(), latency.p99_ns()];
                assert_eq!([1, 2, 3, 4, 5].map(seconds), wanted, "{name}");
                assert_eq!(seconds(6), latency.p999_ns(), "{name}");
            }
            Value::Number(_) | Value::Nanos(_) | Value::Millionths(_) => {
                let value = left.remove(&(name.clone(), labels)).ok_or(name.clone())?;
                let [(_, flat)] = &sample.fields()[..] else { return Err(name.into()) };
                assert_eq!(flat.parse::<f64>()?, value, "{name}");
                match sample.value {
                    Value::Number(n) => assert_eq!(value, n as f64, "{name}"),
                    Value::Nanos(n) => assert_eq!(value, n as f64 / 1e9, "{name}"),
                    Value::Millionths(n) => assert_eq!(value, n as f64 / 1e6, "{name}"),
                    _ => unreachable!(),
                }
            }
            _ => return Err(name.into()),
        }
    }
    assert!(left.is_empty(), "Prometheus has more: {left:?}");
    assert!(fields > 200, "{fields}");
    named_by_hand(&stats, &parsed);
    Ok(())
}

/// The table says from which field a name takes its value; these say it a second time.
fn named_by_hand(stats: &Stats, parsed: &Parsed) {
    let get = |name: &str, labels: &[(&str, &str)]| {
        let mut labels: Vec<_> = labels.iter().map(|(l, v)| ((*l).to_owned(), (*v).to_owned())).collect();
        labels.sort();
        *parsed.get(&(format!("thermocline_{name}"), labels)).unwrap_or_else(|| panic!("no {name}"))
    };
    let c = &stats.counts;
    for (name, value) in [
        ("gets_total", c.gets),
        ("misses_total", c.misses),
        ("puts_total", c.puts),
        ("put_bytes_total", c.put_bytes),
        ("removes_total", c.removes),
        ("expired_total", c.expired),
        ("evicted_total", c.evicted),
        ("moved_bytes_total", c.moved_bytes),
        ("items", stats.items),
        ("catalog_memory_bytes", stats.catalog_bytes),
        ("journal_written_bytes_total", stats.journal_bytes),
        ("flush_seconds_count", stats.latency.flush.count),
        ("journal_sync_seconds_count", stats.latency.journal_sync.count),
    ] {
        assert_eq!(get(name, &[]), value as f64, "{name}");
    }
    for tier in Tier::ALL {
        let (t, of) = (stats.tier(tier).unwrap(), [("tier", tier.name())]);
        assert_eq!(get("tier_items", &of), t.items as f64);
        assert_eq!(get("tier_bytes", &of), t.bytes as f64);
        assert_eq!(get("tier_hits_total", &of), t.hits as f64);
        assert_eq!(get("tier_demoted_total", &of), t.demoted as f64);
        assert_eq!(get("get_seconds_count", &of), stats.latency.get[tier as usize].count as f64);
        for io in &t.io {
            let of = [("tier", tier.name()), ("directory", io.path.to_str().unwrap())];
            assert_eq!(get("directory_written_bytes_total", &of), io.write_bytes as f64);
            assert_eq!(get("directory_sync_seconds_count", &of), io.syncs as f64);
        }
    }
    for kind in ContentType::STORED {
        let (t, of) = (stats.content(kind).unwrap(), [("content_type", kind.name())]);
        assert_eq!(get("type_stored_bytes_total", &of), t.stored_bytes as f64);
        let of = [("content_type", kind.name()), ("codec", "zlib")];
        assert_eq!(get("compression_kept_total", &of), t.zlib.kept as f64);
        assert_eq!(get("compression_seconds_total", &of), t.zlib.nanos as f64 / 1e9);
    }
}

/// The stats once nothing is under way in the background.
fn at_rest(cache: &Cache) -> Result<Stats, Failure> {
    for _ in 0..300 {
        let stats = cache.stats();
        let io = stats.tiers.iter().flatten().flat_map(|t| &t.io).chain(&stats.catalog_io);
        if io.map(|io| io.in_flight).sum::<u64>() == 0 {
            return Ok(stats);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err("something is always under way".into())
}

#[test]
fn what_is_counted_is_what_happened() -> Done {
    let dir = tempfile::tempdir()?;
    let cache = worked(dir.path())?;
    let stats = at_rest(&cache)?;
    assert_eq!((stats.counts.puts, stats.counts.removes, stats.counts.misses), (400, 20, 400));
    let hits: u64 = Tier::ALL.iter().filter_map(|t| stats.tier(*t)).map(|t| t.hits).sum();
    assert_eq!((stats.counts.gets, hits), (800, 400));
    // Every one from a disk that seeks is timed, none of which memory had; of the others one in 16.
    let latency = &stats.latency;
    for tier in [Tier::Hdd, Tier::Cold] {
        let hits = stats.tier(tier).map(|t| t.hits);
        assert!(hits > Some(0) && hits == Some(latency.get[tier as usize].count), "{tier}: {hits:?}");
    }
    let below = stats.counts.gets - stats.tier(Tier::Memory).map_or(0, |t| t.hits);
    let sampled = latency.miss.count + latency.get[1].count;
    assert!(sampled > 0 && sampled <= below.div_ceil(16) && latency.miss.count < 400, "{sampled} of {below}");
    assert_eq!((latency.put.count, latency.remove.count, latency.flush.count), (25, 2, 2));
    assert!(latency.flush.max_ns >= latency.flush.p50_ns() && latency.flush.p50_ns() > 0);
    assert!(latency.journal_sync.count > 0);
    for tier in Tier::DISK {
        let t = stats.tier(tier).ok_or("all tiers are there")?;
        assert!(latency.data_sync[tier as usize].count > 0, "{tier}");
        let [io] = &t.io[..] else { return Err(format!("{tier}: {:?}", t.io).into()) };
        assert!(io.path.starts_with(dir.path().canonicalize()?), "{}", io.path.display());
        assert!(io.writes > 0 && io.write_bytes >= t.written / 2 && io.syncs > 0, "{tier}: {io:?}");
        assert_eq!((io.writes, io.syncs), (io.write_latency.count, io.sync_latency.count));
        assert_eq!(io.errors, 0, "{tier}");
    }
    // Read with `pread`, as against the SSD's map.
    for tier in [Tier::Hdd, Tier::Cold] {
        assert!(stats.tier(tier).is_some_and(|t| t.io[0].reads > 0 && t.io[0].read_bytes > 0), "{tier}");
    }
    let catalog = stats.catalog_io.as_ref().ok_or("there is a catalog")?;
    assert!(catalog.write_bytes >= stats.journal_bytes && catalog.syncs >= 2 * latency.journal_sync.count);
    for kind in ContentType::STORED {
        let t = stats.content(kind).ok_or("a stored type")?;
        let zlib = matches!(kind, ContentType::Text | ContentType::Json);
        let (used, other) = if zlib { (&t.zlib, &t.lz4) } else { (&t.lz4, &t.zlib) };
        assert_eq!((t.items, used.kept, used.skipped, other.kept), (100, 100, 0, 0), "{kind}");
        assert_eq!((used.original_bytes, used.stored_bytes), (t.original_bytes, t.stored_bytes), "{kind}");
        assert!(used.stored_bytes < used.original_bytes / 5 && used.nanos > 10_000, "{kind}: {used:?}");
    }
    // What came to the archive with lz4 was deflated, and what came with zlib was not touched.
    let deflated = ContentType::STORED.map(|kind| stats.content(kind).map_or(0, |t| t.deflate.kept));
    assert_eq!(deflated, [0, 0, 0, 10]);
    Ok(())
}

#[test]
fn what_is_made_is_one_request_and_one_miss() -> Done {
    // With a disk tier below, which the second look goes to as well, and without.
    let dir = tempfile::tempdir()?;
    let memory = || Cache::builder().memory(16 << 20);
    for cache in [memory().open()?, memory().root(dir.path()).open()?] {
        for nth in 0..1000 {
            cache.get_or_put_with(format!("key/{}", nth % 100), || Ok::<_, std::io::Error>("made"))?;
        }
        let stats = at_rest(&cache)?;
        let hits: u64 = Tier::ALL.iter().filter_map(|t| stats.tier(*t)).map(|t| t.hits).sum();
        let counts = &stats.counts;
        assert_eq!((counts.gets, hits, counts.misses, counts.made), (1000, 900, 100, 100));
    }
    Ok(())
}

#[test]
fn a_store_has_metrics_of_what_it_has() -> Done {
    let cache = Cache::builder().memory(16 << 20).open()?;
    cache.put("k", "v")?;
    let (families, parsed) = parse(&cache.prometheus())?;
    assert!(parsed.keys().all(|(_, labels)| labels.iter().all(|(l, v)| l != "tier" || v == "memory")));
    assert!(!families.contains_key("thermocline_directory_reads_total"));
    assert!(families.contains_key("thermocline_tier_hits_total"));
    assert!(cache.stats().catalog_io.is_none());
    let kinds = |kind| metrics::metrics().iter().filter(|m| m.kind == kind).count();
    assert!(kinds(Kind::Counter) > 30 && kinds(Kind::Gauge) > 10 && kinds(Kind::Histogram) > 8);
    Ok(())
}

#[test]
fn no_key_and_no_value_is_in_a_metric() -> Done {
    let dir = tempfile::tempdir()?;
    let cache = Cache::builder().memory(1 << 20).root(dir.path()).open()?;
    cache.put("topsecretkey", "topsecretvalue")?;
    cache.flush()?;
    cache.demote("topsecretkey", Tier::Cold)?;
    cache.get("topsecretkey")?;
    cache.remove("topsecretkey")?;
    let stats = cache.stats();
    let text = cache.prometheus();
    let flat: Vec<_> = metrics::samples(&stats).flat_map(|s| s.fields()).collect();
    assert!(text.len() > 1000 && !text.contains("topsecret") && !format!("{flat:?}").contains("topsecret"));
    Ok(())
}
