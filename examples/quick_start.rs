//! The smallest useful program: a cache in memory and on disk that survives a restart.
//!
//! `cargo run --release --example quick_start [DIRECTORY]` (without one, in a temporary directory)

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::path::PathBuf;
use std::time::Duration;
use thermocline::{Cache, ContentType, PutOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is allocated: glibc would keep what the cache frees.
    thermocline::allocator::give_back();
    let temporary = tempfile::tempdir()?;
    let root = std::env::args_os().nth(1).map_or_else(|| temporary.path().join("cache"), PathBuf::from);

    // 64 MiB of memory; SSD, HDD and archive in three folders of one directory.
    let builder = Cache::builder().memory(64 << 20).root(&root);

    let cache = builder.clone().open()?;
    println!("opened {} with {} items from before", root.display(), cache.stats().items);

    // A value with what the engine finds out by itself, and one with what only the program knows.
    cache.put("thumb/42", vec![0x42; 10_000])?;
    let feed = r#"{"items":[1,2,3],"next":null}"#;
    let a_minute = PutOptions::new().content_type(ContentType::Json).ttl(Duration::from_secs(60));
    cache.put_with("feed/7", feed, a_minute)?;

    let entry = cache.get_entry("feed/7")?.ok_or("feed/7 was put a moment ago")?;
    println!("feed/7: {} bytes of {}, from {}", entry.value.len(), entry.content_type, entry.tier);

    println!("absent keys are None: {:?}", cache.get("thumb/43")?);
    cache.close()?; // or drop the last handle

    let cache = builder.open()?;
    let thumb = cache.get_entry("thumb/42")?.ok_or("thumb/42 was there before the restart")?;
    println!("after a restart: thumb/42 has {} bytes, from {}", thumb.value.len(), thumb.tier);
    let again = cache.get_entry("thumb/42")?.ok_or("thumb/42 was there a moment ago")?;
    println!("asked again:     thumb/42 has {} bytes, from {}", again.value.len(), again.tier);

    println!("removed: {}, removed again: {}", cache.remove("thumb/42")?, cache.remove("thumb/42")?);
    cache.close()?;
    Ok(())
}
