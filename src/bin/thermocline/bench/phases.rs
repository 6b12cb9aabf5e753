//! The phases of a benchmark. Each looks at the signals as it goes and ends early with what it has.

use super::items::{Item, Items, hash};
use super::plan::Plan;
use super::{BenchArgs, Compared, Latency, Load, Reads, Reopen, Settle, Verified, let_go};
use crate::failure::Failure;
use crate::inspect::counting_bar;
use crate::interrupt::stopped;
use crate::random::{Random, Zipf};
use crate::show;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};
use thermocline::{Cache, Entry, PutOptions};
use walkdir::WalkDir;

/// Most reads that are remembered for the advice: beyond that the distances would take gigabytes.
const REMEMBERED: usize = 4_000_000;
/// Most reads of the warm-up.
const WARM_UP: usize = 1_000_000;
/// Longest wait for migration.
const SETTLE: Duration = Duration::from_secs(30);
/// Nothing moved for so long: it is at rest.
const REST: Duration = Duration::from_millis(1200);
/// Reads with the page cache dropped: at most so many, for at most so long.
const DROPPED: (usize, Duration) = (4_000, Duration::from_secs(4));
/// Wrong values that are named.
const NAMED: usize = 10;

/// What was read, in its order, by item number.
#[derive(Debug, Default)]
pub struct History {
    pub warm_up: Vec<u32>,
    pub measured: Vec<u32>,
}

fn bar(template: &str, len: u64, what: &'static str) -> ProgressBar {
    let bar = show::drawn(ProgressBar::new(len));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// Puts every item.
pub fn load(cache: &Cache, items: &mut Items) -> Result<Load, Failure> {
    let mut put = Latency::new()?;
    let (mut bytes, mut put_time) = (0, Duration::ZERO);
    let bar = bar("{msg:<10} {wide_bar} {bytes}/{total_bytes}  {elapsed}", items.bytes(), "loading");
    let (mut gone, mut forbidden) = (0, 0);
    for item in &mut items.all {
        if stopped() {
            break;
        }
        // A file that is gone by now, or that we may not read, is no item.
        let value = match item.value() {
            Ok(value) => value,
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                forbidden += 1;
                continue;
            }
            Err(_) => {
                gone += 1;
                continue;
            }
        };
        item.len = value.len() as u64;
        let known = hash(&value);
        let options = PutOptions::new().content_type(item.content_type).forever();
        let start = Instant::now();
        cache.put_with(&item.key, value, options)?;
        let took = start.elapsed();
        item.put = Some(known);
        put.record(took);
        put_time += took;
        bytes += item.len;
        bar.inc(item.len);
    }
    for (why, n) in [("gone when they were read", gone), ("not ours to read (permission denied)", forbidden)]
    {
        if n > 0 {
            items.left_out.insert(why, n);
        }
    }
    if !stopped() {
        items.all.retain(|i| i.put.is_some());
    }
    let start = Instant::now();
    cache.flush()?;
    bar.finish_and_clear();
    let flush_seconds = start.elapsed().as_secs_f64();
    Ok(Load { put, bytes, put_seconds: put_time.as_secs_f64(), flush_seconds })
}

/// Waits until nothing moves between the tiers.
pub fn settle(cache: &Cache) -> Result<Settle, Failure> {
    let spinner = ProgressBar::new_spinner().with_message("waiting for migration to come to rest");
    let spinner = show::drawn(spinner);
    let start = Instant::now();
    let picture = || {
        let stats = cache.stats();
        let items: Vec<_> = stats.tiers.iter().flatten().map(|t| (t.items, t.containers)).collect();
        (stats.counts.moved_bytes, stats.dirty_bytes, items)
    };
    let mut last = picture();
    let mut since = Instant::now();
    let mut at_rest = false;
    while !stopped() && start.elapsed() < SETTLE && !at_rest {
        std::thread::sleep(Duration::from_millis(100));
        spinner.tick();
        let now = picture();
        if now != last {
            last = now;
            since = Instant::now();
        }
        at_rest = since.elapsed() >= REST;
    }
    spinner.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    Ok(Settle { seconds: if at_rest { seconds - REST.as_secs_f64() } else { seconds }, at_rest })
}

/// One get, timed, and counted where it was answered.
fn timed(cache: &Cache, item: &Item, reads: &mut Reads) -> Result<Option<Entry>, Failure> {
    let start = Instant::now();
    let found = cache.get_entry(&item.key)?;
    let took = start.elapsed();
    match &found {
        Some(entry) => {
            if let Some((_, latency)) = reads.tiers.iter_mut().find(|(t, _)| *t == entry.tier) {
                latency.record(took);
            }
        }
        None => {
            reads.missing += 1;
            reads.missing_keys.insert(item.key.clone());
        }
    }
    Ok(found)
}

/// Reads by Zipf's law: a quarter of the time to warm up, then measured.
pub fn read(cache: &Cache, items: &Items, args: &BenchArgs) -> Result<(Reads, History), Failure> {
    let mut random = Random::new(args.seed ^ 0x7265_6164);
    let mut ranks: Vec<u32> = (0..items.all.len() as u32).collect();
    random.shuffle(&mut ranks);
    let zipf = Zipf::new(ranks.len() as u64, args.skew);
    let mut history = History::default();
    let mut warm = Reads::new()?;
    let template = "{msg:<10} {wide_bar} {elapsed}";
    let total = Duration::from_secs(args.seconds);
    let mut go = |reads: &mut Reads, most: usize, time: Duration, list: &mut Vec<u32>, what| {
        let bar = bar(template, u64::try_from(time.as_millis()).unwrap_or(u64::MAX), what);
        let start = Instant::now();
        let mut n = 0usize;
        while n < most && !stopped() {
            if n.is_multiple_of(64) {
                let passed = start.elapsed();
                if passed >= time {
                    break;
                }
                if n.is_multiple_of(4096) {
                    bar.set_position(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
                }
            }
            n += 1;
            let Some(number) = ranks.get(zipf.sample(&mut random) as usize) else { continue };
            let Some(item) = items.all.get(*number as usize) else { continue };
            timed(cache, item, reads)?;
            if list.len() < REMEMBERED {
                list.push(*number);
            }
        }
        reads.seconds = start.elapsed().as_secs_f64();
        bar.finish_and_clear();
        Ok::<(), Failure>(())
    };
    go(&mut warm, WARM_UP, total / 4, &mut history.warm_up, "warming up")?;
    let mut reads = Reads::new()?;
    if !stopped() {
        go(&mut reads, usize::MAX, total, &mut history.measured, "reading")?;
    }
    Ok((reads, history))
}

/// Asks what type each item was found to be.
pub fn learn_types(cache: &Cache, items: &mut Items) -> Result<(), Failure> {
    for item in items.all.iter_mut().filter(|i| i.content_type == thermocline::ContentType::Auto) {
        if stopped() {
            break;
        }
        if let Some(info) = cache.info(&item.key)? {
            item.content_type = info.content_type;
        }
    }
    Ok(())
}

/// Closes and opens, twice: as it is, and with the store's files dropped from the page cache; then reads a few items
/// from where they are, each for the first time. Adds the items that the closed engines let go of to `gone`.
pub fn reopen(cache: Cache, plan: &Plan, items: &Items, gone: &mut u64) -> Result<(Cache, Reopen), Failure> {
    let spinner = show::spinner("reopening");
    let seconds = |start: Instant| start.elapsed().as_secs_f64();
    let start = Instant::now();
    cache.close()?;
    *gone += let_go(&cache);
    drop(cache);
    let close_seconds = seconds(start);
    let start = Instant::now();
    let cache = Cache::open(plan.config.clone())?;
    let open_seconds = seconds(start);
    cache.close()?;
    *gone += let_go(&cache);
    drop(cache);
    plan.dirs.iter().for_each(|(_, dir)| drop_pages(dir));
    let start = Instant::now();
    let cache = Cache::open(plan.config.clone())?;
    let cold_open_seconds = seconds(start);
    let mut order: Vec<&Item> = items.all.iter().collect();
    Random::new(order.len() as u64).shuffle(&mut order);
    let mut reads = Reads::new()?;
    let start = Instant::now();
    for item in order.into_iter().take(DROPPED.0) {
        if stopped() || start.elapsed() > DROPPED.1 {
            break;
        }
        timed(&cache, item, &mut reads)?;
    }
    reads.seconds = seconds(start);
    spinner.finish_and_clear();
    Ok((cache, Reopen { close_seconds, open_seconds, cold_open_seconds, reads }))
}

/// Asks the kernel to forget the pages of all files below a directory. It may keep some.
fn drop_pages(dir: &Path) {
    let files = WalkDir::new(dir).into_iter().flatten().filter(|e| e.file_type().is_file());
    for file in files.filter_map(|e| File::open(e.path()).ok()) {
        // Only clean pages can be dropped.
        let _ = file.sync_all();
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// Every byte of every item against what was put.
pub fn compare(cache: &Cache, items: &Items, when: &'static str) -> Result<Compared, Failure> {
    let mut found = Compared {
        when,
        items: 0,
        bytes: 0,
        wrong: Vec::new(),
        wrong_count: 0,
        missing: 0,
        changed: 0,
        seconds: 0.0,
    };
    let bar = counting_bar(items.all.len() as u64, "comparing");
    let start = Instant::now();
    for item in &items.all {
        if stopped() {
            break;
        }
        bar.inc(1);
        let Some(value) = cache.get(&item.key)? else {
            found.missing += 1;
            continue;
        };
        found.items += 1;
        found.bytes += value.len() as u64;
        match judge(item, &value) {
            Verdict::Right => {}
            Verdict::Changed => found.changed += 1,
            Verdict::Wrong => {
                found.wrong_count += 1;
                if found.wrong.len() < NAMED {
                    found.wrong.push(show::key(&item.key));
                }
            }
        }
    }
    found.seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    Ok(found)
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    /// The file is no longer what was put; the value is, by its hash.
    Changed,
    Wrong,
}

fn judge(item: &Item, value: &Bytes) -> Verdict {
    match item.value() {
        Ok(again) if again == value => Verdict::Right,
        Ok(again) if Some(hash(&again)) == item.put => Verdict::Wrong,
        _ if Some(hash(value)) == item.put => Verdict::Changed,
        _ => Verdict::Wrong,
    }
}

/// The engine's own check of all that is there.
pub fn verify(cache: &Cache) -> Result<Verified, Failure> {
    let bar = counting_bar(cache.stats().items, "verifying");
    let start = Instant::now();
    let report = cache.verify_with(|n| bar.inc(n))?;
    bar.finish_and_clear();
    Ok(Verified { report, seconds: start.elapsed().as_secs_f64() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_told_from_a_changed_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "as it was put").unwrap();
        let mut items = Items::files(dir.path(), 1000, 10, 1).unwrap();
        let item = &mut items.all[0];
        item.put = Some(hash(b"as it was put"));
        assert_eq!(judge(item, &Bytes::from("as it was put")), Verdict::Right);
        assert_eq!(judge(item, &Bytes::from("as it was not")), Verdict::Wrong);
        std::fs::write(&file, "as it is now").unwrap();
        assert_eq!(judge(item, &Bytes::from("as it was put")), Verdict::Changed);
        assert_eq!(judge(item, &Bytes::from("something else")), Verdict::Wrong);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(judge(item, &Bytes::from("as it was put")), Verdict::Changed);
    }
}
