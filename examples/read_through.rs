//! In front of something slow: many threads ask for the same pages at once, and each page is made once.
//!
//! `cargo run --release --example read_through`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use thermocline::{Cache, Error};

const THREADS: u32 = 16;
const PAGES: u32 = 4;
const SLOW: Duration = Duration::from_millis(200);

/// What the cache is there to spare the program: a database, a renderer, a service far away.
fn render(page: u32, calls: &AtomicU32) -> Vec<u8> {
    calls.fetch_add(1, Ordering::Relaxed);
    thread::sleep(SLOW);
    format!("<h1>page {page}</h1>").into_bytes()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is allocated: glibc would keep what the cache frees.
    thermocline::allocator::give_back();
    let dir = tempfile::tempdir()?;
    let cache = Cache::builder().memory(16 << 20).ssd(dir.path().join("ssd"), 256 << 20).open()?;
    let calls = AtomicU32::new(0);

    let start = Instant::now();
    let asked = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|worker| {
                let (cache, calls) = (cache.clone(), &calls);
                scope.spawn(move || -> Result<u32, Error> {
                    for turn in 0..PAGES {
                        // Every worker begins with another page, so that all are wanted by several at once.
                        let page = (worker + turn) % PAGES;
                        let key = format!("page/{page}");
                        let html = cache.get_or_put_with(key, || Ok::<_, Infallible>(render(page, calls)))?;
                        assert_eq!(html, format!("<h1>page {page}</h1>"));
                    }
                    Ok(PAGES)
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or(Err(Error::Closed))).sum::<Result<u32, _>>()
    })?;
    let took = start.elapsed();

    let made = calls.load(Ordering::Relaxed);
    println!("{THREADS} threads asked {asked} times for {PAGES} pages: {made} were made");
    println!("it took {took:.1?}; without the cache it would have been {:.1?} of work", SLOW * asked);
    assert_eq!(made, PAGES, "one maker a page");

    // A maker that fails: everybody who waits gets its error, nothing is cached, and the next one tries again.
    let failed = cache.get_or_put_with("page/9", || Err::<Vec<u8>, _>("the database is away"));
    match failed {
        Err(Error::Maker(why)) => println!("a maker that fails: {why}"),
        other => return Err(format!("expected the maker's error, not {other:?}").into()),
    }
    let page = cache.get_or_put_with("page/9", || Ok::<_, Infallible>("it is back"))?;
    println!("asked again: {}", String::from_utf8_lossy(&page));

    cache.close()?;
    Ok(())
}
