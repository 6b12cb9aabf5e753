//! What a program can see: counters at any moment, and events as they happen.
//!
//! `cargo run --release --example stats_and_events`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::BTreeMap;
use std::time::Duration;
use thermocline::{Cache, ContentType, Event, PutOptions, Received, Subscription};

/// Counts events by kind until the cache is closed, printing the first of each.
fn listen(events: Subscription) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for received in events {
        let (kind, n) = match &received {
            // A listener that is too slow is told how much it missed; the cache never waits for it.
            Received::Lagged(n) => ("missed, because this listener was too slow", *n),
            Received::Event(event) => (kind(event), 1),
            _ => continue,
        };
        let count = counts.entry(kind).or_insert(0);
        if *count == 0
            && let Received::Event(event) = &received
        {
            println!("first {kind}: {event:?}");
        }
        *count += n;
    }
    counts
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Promoted { .. } => "promoted",
        Event::Demoted { .. } => "demoted",
        Event::Evicted { .. } => "evicted",
        Event::Expired { .. } => "expired",
        Event::Quarantined { .. } => "quarantined",
        _ => "other",
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is allocated: glibc would keep what the cache frees.
    thermocline::allocator::give_back();
    let dir = tempfile::tempdir()?;
    // No archive: when the HDD tier is full, the coldest items go, each with an event.
    let mut builder = Cache::builder()
        .memory(2 << 20)
        .ssd(dir.path().join("ssd"), 4 << 20)
        .hdd(dir.path().join("hdd"), 8 << 20);
    builder.config_mut().resources.io.write_buffer_size = 2 << 20;
    let cache = builder.open()?;
    let listener = std::thread::spawn({
        let events = cache.subscribe();
        move || listen(events)
    });

    let blink = PutOptions::new().ttl(Duration::from_millis(1));
    cache.put_with("gone in a blink", "…", blink)?;
    let text = "It is a truth universally acknowledged that a cache must be in want of room. ".repeat(100);
    let as_text = PutOptions::new().content_type(ContentType::Text);
    let mut noise = 7u64;
    for i in 0..2_000u32 {
        cache.put_with(format!("text/{i}"), text.clone(), as_text)?;
        let bytes: Vec<u8> = (0..1024)
            .flat_map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise.to_le_bytes()
            })
            .collect();
        cache.put(format!("noise/{i}"), bytes)?;
    }
    cache.flush()?;
    assert_eq!(cache.get("gone in a blink")?, None);

    // The hottest keys stay in memory, or come back to it.
    for i in 0..10_000u32 {
        cache.get(format!("text/{}", 1_900 + i % 50))?;
    }

    let stats = cache.stats();
    println!("\n{:#?}", stats.counts);
    for t in [ContentType::Text, ContentType::Binary] {
        if let Some(s) = stats.content(t).filter(|s| s.original_bytes > 0) {
            let percent = 100 * s.stored_bytes / s.original_bytes;
            println!("{t}: {} values, stored in {percent} % of their size", s.items);
        }
    }
    cache.close()?;
    drop(cache); // the last handle: the listener ends, once it has received everything

    let counts = listener.join().map_err(|_| "the listener panicked")?;
    println!("\nevents:");
    for (kind, n) in &counts {
        println!("{n:>8} {kind}");
    }
    let told: u64 = counts.values().sum();
    assert!(told >= stats.counts.evicted, "every eviction is an event, received or missed");
    Ok(())
}
