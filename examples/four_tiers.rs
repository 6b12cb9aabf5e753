//! All four tiers, each in a directory of its own: a load sinks through them, and every tier serves what it holds.
//!
//! `cargo run --release --example four_tiers [SSD-DIRECTORY HDD-DIRECTORY ARCHIVE-DIRECTORY]`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::path::PathBuf;
use std::time::{Duration, Instant};
use thermocline::{Cache, Tier};

const ITEMS: u32 = 6_000;

/// About 8 KiB that compress to about half, different for each item.
fn value(item: u32) -> Vec<u8> {
    let mut state = u64::from(item) + 1;
    (0..512)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let [a, b, c, d, e, f, g, h] = state.to_be_bytes();
            [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0]
        })
        .collect()
}

fn table(cache: &Cache) {
    println!(
        "{:<8}{:>8}{:>12}{:>12}{:>12}{:>8}{:>10}{:>10}",
        "tier", "items", "KiB", "of KiB", "containers", "hits", "demoted", "promoted"
    );
    let stats = cache.stats();
    for tier in Tier::ALL {
        let Some(t) = stats.tier(tier) else { continue };
        let limit = t.limit.map_or("unlimited".to_owned(), |bytes| (bytes >> 10).to_string());
        println!(
            "{:<8}{:>8}{:>12}{limit:>12}{:>12}{:>8}{:>10}{:>10}",
            tier.name(),
            t.items,
            t.bytes >> 10,
            t.containers,
            t.hits,
            t.demoted,
            t.promoted
        );
    }
    println!("{} items in all, {} lost\n", stats.items, stats.counts.evicted + stats.counts.damaged);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is allocated: glibc would keep what the cache frees.
    thermocline::allocator::give_back();
    let temporary = tempfile::tempdir()?;
    let given: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let dirs = match given.as_slice() {
        [] => ["ssd", "hdd", "archive"].map(|name| temporary.path().join(name)),
        [ssd, hdd, cold] => [ssd.clone(), hdd.clone(), cold.clone()],
        _ => return Err("give three directories (SSD, HDD, archive), or none".into()),
    };
    let [ssd, hdd, cold] = dirs;

    // Far too small for the load, so that it has to sink: real sizes are those of the disks. What has no method of
    // its own is set in the configuration: with tiers this small, small batches of writes.
    let mut builder = Cache::builder().memory(2 << 20).ssd(ssd, 8 << 20).hdd(hdd, 12 << 20).cold(cold);
    builder.config_mut().resources.io.write_buffer_size = 2 << 20;
    let cache = builder.open()?;

    for item in 0..ITEMS {
        cache.put(format!("item/{item}"), value(item))?;
    }
    cache.flush()?;
    // What is over 80 % of a tier sinks in the background; give it a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    while cache.stats().tier(Tier::Cold).is_none_or(|t| t.items == 0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("after putting {ITEMS} items of 8 KiB:");
    table(&cache);

    let mut from = [0u32; 4];
    // Every item once, and then the last hundred again, some of which memory has by now.
    for item in (0..ITEMS).chain(ITEMS - 100..ITEMS) {
        let entry = cache.get_entry(format!("item/{item}"))?.ok_or("every item is in some tier")?;
        assert_eq!(entry.value, value(item), "item {item}");
        if let Some(count) = from.get_mut(entry.tier as usize) {
            *count += 1;
        }
    }
    println!("after reading every one, and the last hundred again:");
    table(&cache);
    for (tier, count) in Tier::ALL.iter().zip(from) {
        println!("{count:>6} reads were answered by {tier}");
    }

    // By hand: to the archive, and back up.
    let key = format!("item/{}", ITEMS - 1);
    let tier_of = |key: &str| Ok::<_, thermocline::Error>(cache.tier_of(key)?.map_or("nowhere", Tier::name));
    println!("\n{key} is in {}", tier_of(&key)?);
    cache.demote(&key, Tier::Cold)?;
    println!("demoted, it is in {}", tier_of(&key)?);
    cache.promote(&key, Tier::Memory)?;
    println!("promoted, it is in {}", tier_of(&key)?);

    cache.close()?;
    Ok(())
}
